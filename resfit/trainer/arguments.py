"""What the arguments of `Model`'s methods mean: Keras's forms, taken apart and checked."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax

from resfit.callbacks import Callback, ProgressBar
from resfit.data import Batch
from resfit.data.sources.arrays import as_arrays, class_weights
from resfit.data.values import check_values
from resfit.errors import DataError


def unpacked(data: Any, what: str) -> tuple[Any, Any, Any]:
    """(x, y, sample_weight) of a tuple of two or three, or of data that bring their own."""
    if isinstance(data, list) and len(data) in (2, 3) and all(hasattr(entry, "__array__") for entry in data):
        raise DataError(
            f"{what} is a list of {len(data)} arrays, which does not say what is what. Expected a "
            "tuple: (x, y) or (x, y, sample_weight)."
        )
    if not isinstance(data, tuple):
        return data, None, None
    if len(data) not in (2, 3):
        raise DataError(f"Expected {what} as (x, y) or (x, y, sample_weight), got {len(data)} entries.")
    return data[0], data[1], data[2] if len(data) == 3 else None


def weights_of(y: Any, sample_weight: Any, class_weight: Mapping[int, float] | None) -> Any:
    """The weight of each example, from whichever of the two arguments was given."""
    if class_weight is None:
        return sample_weight
    if sample_weight is not None:
        raise DataError("Got both class_weight and sample_weight. Multiply them into one sample_weight.")
    return class_weights(y, class_weight)


def one_batch(x: Any, y: Any, sample_weight: Any, class_weight: Mapping[int, float] | None) -> Batch:
    """The arguments of `train_on_batch` and the like as a batch."""
    x, y, weight = as_arrays(x, y, weights_of(y, sample_weight, class_weight))
    check_values(x, y)
    return Batch(x, y, weight, None, len(jax.tree.leaves(x)[0]))


def bar(verbose: str | int) -> list[Callback]:
    """The progress bar that `verbose` asks for, if it does."""
    if verbose not in ("auto", 0, 1, 2):
        raise DataError(f"Expected verbose to be 'auto', 0, 1 or 2, got {verbose!r}.")
    if verbose == 0 or jax.process_index() > 0:  # every process would show the same
        return []
    return [ProgressBar(1 if verbose == "auto" else int(verbose))]


def listed(callbacks: Callback | Iterable[Callback] | None) -> list[Callback]:
    """The callbacks argument as a list."""
    if isinstance(callbacks, Callback):
        return [callbacks]
    # What is one thing, and no callback, is told so by the list of hooks.
    return list(callbacks or ()) if isinstance(callbacks, Iterable | None) else [callbacks]


def returned(results: dict[str, Any], return_dict: bool) -> Any:
    """Results as Keras returns them: a dict, a list, or one number."""
    if return_dict:
        return results
    values = list(results.values())
    return values[0] if len(values) == 1 else values
