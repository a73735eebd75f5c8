"""The arguments of the methods of `Model`: the forms of Keras, checked and taken apart."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax

from resfit.callbacks import Callback, ProgressBar
from resfit.data import Batch
from resfit.data.class_weights import class_weights
from resfit.data.sources.arrays import as_arrays
from resfit.data.values import check_values
from resfit.errors import CompileError, DataError


def unpacked(data: Any, what: str) -> tuple[Any, Any, Any]:
    """Return (x, y, sample_weight) of a tuple of two or three; other data hold their labels and weights.

    Args:
      data: argument of `fit` or `evaluate`.
      what: its name, for messages.

    Raises:
      DataError: if `data` is a number, a list of arrays, or a tuple of another length.
    """
    if isinstance(data, list) and len(data) in (2, 3) and all(hasattr(entry, "__array__") for entry in data):
        raise DataError(
            f"{what} is a list of {len(data)} arrays. Expected a tuple: (x, y) or (x, y, sample_weight). Pass the "
            "arrays as a tuple."
        )
    if isinstance(data, int | float):
        remedy = "or an iterable of batches. For a part of the training data, pass validation_split=0.2."
        if what != "validation_data":
            remedy = "or an input shape, (height, width, channels)."
        raise DataError(f"{what} is {data!r}. Expected (x, y), (x, y, sample_weight), {remedy}")
    if not isinstance(data, tuple):
        return data, None, None
    if len(data) not in (2, 3):
        raise DataError(f"{what} is a tuple of {len(data)} entries. Expected (x, y) or (x, y, sample_weight).")
    return data[0], data[1], data[2] if len(data) == 3 else None


def weights_of(y: Any, sample_weight: Any, class_weight: Mapping[int, float] | None) -> Any:
    """Return the weight of each example, from the argument that was given.

    Raises:
      DataError: if both arguments were given.
    """
    if class_weight is None:
        return sample_weight
    if sample_weight is not None:
        raise DataError(
            "Got both class_weight and sample_weight. Expected one of them. Multiply them into one sample_weight."
        )
    return class_weights(y, class_weight)


def one_batch(x: Any, y: Any, sample_weight: Any, class_weight: Mapping[int, float] | None) -> Batch:
    """Return the arguments of `train_on_batch` or `test_on_batch` as a batch."""
    x, y, weight = as_arrays(x, y, weights_of(y, sample_weight, class_weight))
    check_values(x, y)
    return Batch(x, y, weight, None, len(jax.tree.leaves(x)[0]))


def dispatch_of(dispatch: str, run_eagerly: bool, jit_compile: bool | str) -> str:
    """Return the `dispatch` that the arguments of `compile` mean, two of which are Keras's.

    Raises:
      CompileError: if they contradict each other.
    """
    if jit_compile not in (True, False, "auto"):
        raise CompileError(f"Expected jit_compile to be True, False or 'auto', got {jit_compile!r}.")
    eager = run_eagerly or not jit_compile
    if eager and (dispatch not in ("auto", "eager") or jit_compile is True):
        raise CompileError(
            f"compile got run_eagerly={run_eagerly}, jit_compile={jit_compile} and dispatch={dispatch!r}, which "
            "contradict each other. Expected one of them: for steps that are not compiled pass dispatch='eager'."
        )
    return "eager" if eager else dispatch


def bar(verbose: str | int) -> list[Callback]:
    """Return the progress bar that `verbose` requests, in a list that is empty for none.

    Raises:
      DataError: if `verbose` is unknown.
    """
    if verbose not in ("auto", 0, 1, 2):
        raise DataError(f"Expected verbose to be 'auto', 0, 1 or 2, got {verbose!r}.")
    if verbose == 0 or jax.process_index() > 0:  # all processes would print the same bar
        return []
    return [ProgressBar(1 if verbose == "auto" else int(verbose))]


def listed(callbacks: Callback | Iterable[Callback] | None) -> list[Callback]:
    """Return the callbacks argument as a list."""
    if isinstance(callbacks, Callback | str):
        return [callbacks]  # CallbackList raises for text
    # CallbackList raises for a single object that is not a callback.
    return list(callbacks or ()) if isinstance(callbacks, Iterable | None) else [callbacks]


def returned(results: dict[str, Any], return_dict: bool) -> Any:
    """Return results in the form of Keras: a dict, a list, or one number."""
    if return_dict:
        return results
    values = list(results.values())
    return values[0] if len(values) == 1 else values
