"""Look inside a network while it runs: the output of every part, and the gradient that reaches it."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend.core import get_opaque_trace_state

from resfit.errors import ModuleError
from resfit.nets.intercept import intercept

# (name, output) -> the output to continue with.
Change = Callable[[str, jax.Array], jax.Array]


@runtime_checkable
class Recomputing(Protocol):
    """A module that computes its activations again for the gradient. Its inner values cannot leave it meanwhile."""

    def keep_activations(self) -> None:
        """Stop recomputing; called on a copy of the module."""


class BlockStatistics(NamedTuple):
    """One part of a network in one training step.

    Attributes:
      name: its dotted path.
      rms: root mean square of its output.
      dead: share of its channels that are zero everywhere, for every example, from 0 to 1.
      gradient: Euclidean norm of the gradient of the mean loss by its output.
    """

    name: str
    rms: float
    dead: float
    gradient: float


def parts(module: nnx.Module) -> dict[str, nnx.Module]:
    """Return the parts of a network by dotted path, in the order of its attributes.

    The parts are the blocks (modules whose class sets `is_block = True`, such as `Residual`) and the modules beside
    them (stem, head). In a network without blocks, they are its direct parts, with lists and sequences taken apart.

    Example:
      >>> import resfit
      >>> list(parts(resfit.create_model("resnet20", num_classes=10, depths=(1, 1), widths=(4, 8))))
      ['head', 'stage1.blocks.0', 'stage2.blocks.0', 'stem']
    """
    found: dict[str, nnx.Module] = {}

    def walk(node: Any, path: tuple[Any, ...]) -> None:
        for name, child in nnx.iter_children(node):
            container = isinstance(child, nnx.List | nnx.Dict | nnx.Sequential)
            if not _is_block(child) and (container or _holds_blocks(child)):
                walk(child, (*path, name))
            elif isinstance(child, nnx.Module) and callable(child):  # Variables are callable too
                found[".".join(map(str, (*path, name)))] = child

    walk(module, ())
    return found


def _is_block(part: nnx.Module) -> bool:
    return getattr(type(part), "is_block", False) is True


def _holds_blocks(module: nnx.Module) -> bool:
    return any(_is_block(part) for path, part in nnx.iter_modules(module) if path)


def tap(module: nnx.Module, change: Change) -> None:
    """Pass the output of every part of a network through a function, in each call.

    Parts that return anything else than one floating-point array are skipped, and calls inside a transformation such as
    nnx.scan. Further calls of a part have a number in
    their name: "block (2)".

    Args:
      module: a private copy: the classes of its parts are changed.
      change: (name, output) -> output.
    """
    keep_activations(module)
    calls: dict[str, int] = {}
    for name, part in parts(module).items():
        tap_module(part, name, change, calls)


def tap_part(module: nnx.Module, name: str, change: Change) -> None:
    """Pass the output of one module of any depth through a function, as `tap` does.

    Args:
      module: a private copy.
      name: dotted path of the part.
      change: (name, output) -> output.

    Raises:
      ModuleError: if the module has no callable part of that name.
    """
    modules = {".".join(map(str, path)): part for path, part in nnx.iter_modules(module) if path and callable(part)}
    if name not in modules:
        raise ModuleError(
            f"{type(module).__name__} has no callable part {name!r}. Expected the dotted path of a module; the outer "
            f"ones are {sorted(path for path in modules if path.count('.') == 0)}."
        )
    keep_activations(module)
    tap_module(modules[name], name, change)


def keep_activations(module: nnx.Module) -> None:
    """End rematerialization: no value can leave a rematerialized part while a gradient is computed.

    Args:
      module: a private copy.
    """
    for _, part in nnx.iter_modules(module):
        if isinstance(part, Recomputing):
            part.keep_activations()


def tap_module(part: nnx.Module, name: str, change: Change, calls: dict[str, int] | None = None) -> None:
    """Pass the output of one module through a function, as `tap` does.

    Calls inside a transformation of the network's own (nnx.scan, nnx.remat, nnx.jit, nnx.cond) are left alone: values
    of their traces cannot leave them.

    Args:
      part: a module in a private copy, tapped inside the trace that calls the network.
      name: of the part, for `change`.
      change: (name, output) -> output.
      calls: number of calls so far, by name.
    """
    calls = {} if calls is None else calls
    outside = get_opaque_trace_state()

    def around(_: Any, call: Any, *args: Any, **kwargs: Any) -> Any:
        output = call(*args, **kwargs)
        is_array = isinstance(output, jax.Array) and jnp.issubdtype(output.dtype, jnp.floating)
        if not is_array or get_opaque_trace_state() != outside:
            return output
        calls[name] = calls.get(name, 0) + 1
        return change(name if calls[name] == 1 else f"{name} ({calls[name]})", output)

    intercept(part, around)


def block_statistics(
    step: Callable[..., tuple[jax.Array, Any]], *arguments: Any
) -> tuple[tuple[BlockStatistics, ...], float, Any]:
    """Run one step of a network and return the statistics of every part.

    Args:
      step: (change, *arguments) -> (mean loss, anything). It taps the network with change.
      arguments: arrays.

    Returns:
      (statistics in the order of the calls, mean loss, the step's second value).
    """
    # In the order of the trace: a jitted function would return them sorted.
    shapes: dict[str, jax.ShapeDtypeStruct] = {}

    def note(name: str, output: jax.Array) -> jax.Array:
        shapes[name] = jax.ShapeDtypeStruct(output.shape, output.dtype)
        return output

    jax.eval_shape(lambda *arguments: step(note, *arguments)[0], *arguments)
    zeros = {name: np.zeros(output.shape, output.dtype) for name, output in shapes.items()}
    loss, seen, gradients, others = jax.jit(lambda *arguments: _observed(step, *arguments))(zeros, *arguments)
    blocks = tuple(
        BlockStatistics(name, float(seen[name][0]), float(seen[name][1]), float(gradients[name])) for name in shapes
    )
    return blocks, float(loss), others


def _observed(step: Callable[..., Any], zeros: dict[str, Any], *arguments: Any) -> Any:
    """Return loss, (rms, dead) and gradient norm of each part, and the step's second value."""

    # The gradient by zeros that are added to an output is the gradient by the output.
    # The tapped classes keep `change` alive after the trace, so it must hold no array of it then.
    def loss_of(added: dict[str, Any]) -> tuple[jax.Array, Any]:
        seen: dict[str, Any] = {}
        left = dict(added)

        def change(name: str, output: jax.Array) -> jax.Array:
            output = output + left.pop(name)
            values = jnp.asarray(output, jnp.float32)
            dead = jnp.all(values == 0, axis=tuple(range(output.ndim - 1)))
            seen[name] = jnp.sqrt(jnp.mean(jnp.square(values))), jnp.mean(dead)
            return output

        loss, others = step(change, *arguments)
        found = dict(seen)
        seen.clear()
        return loss, (found, others)

    (loss, (seen, others)), gradients = jax.value_and_grad(loss_of, has_aux=True)(zeros)
    norms = jax.tree.map(lambda g: jnp.linalg.norm(jnp.asarray(g, jnp.float32).reshape(-1)), gradients)
    return loss, seen, norms, others
