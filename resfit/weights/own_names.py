"""The names of arrays in files of `Model.save`: their dotted paths."""

from typing import Any

from flax import nnx


def named_arrays(module: nnx.Module) -> dict[str, Any]:
    """Return all arrays of a module by dotted path, as in a file of `Model.save`: no random state, no intermediates."""
    return {".".join(map(str, path)): array for path, array in arrays_by_path(module).items()}


def arrays_by_path(module: nnx.Module) -> dict[tuple[Any, ...], Any]:
    """Return all arrays by path, without intermediate values and random state, which every step sets."""
    state = nnx.state(module, nnx.Not((nnx.RngState, nnx.Intermediate)))
    return {
        path: leaf.get_raw_value() if isinstance(leaf, nnx.Variable) else leaf
        for path, leaf in nnx.to_flat_state(state)
    }
