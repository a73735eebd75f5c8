"""The function that `Model.predict` computes, as every exporter traces it: its weights are an argument."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from resfit import losses
from resfit import preprocess as preprocess_
from resfit.errors import ExportError
from resfit.trainer.graph.module_plan import plan_module
from resfit.trainer.graph.slots import module_leaves
from resfit.trainer.state.train_state import StateLayout
from resfit.trainer.step import predict_step


class Function(NamedTuple):
    """A function of weights and a batch.

    Attributes:
      names: the names of the weights.
      arrays: the weights, as files hold them: half precision as its bits.
      predict: (arrays, batch) -> outputs.
    """

    names: list[str]
    arrays: list[np.ndarray[Any, Any]]
    predict: Callable[[Any, Any], Any]


def function(
    module: nnx.Module,
    precision: str,
    preprocess: preprocess_.Preprocess | None,
    finish: Callable[[Any], Any],
    seed: int,
) -> Function:
    """Return the function that `Model.predict` computes.

    Args:
      module: the module with its weights.
      precision: the precision of the program, see `trainer.graph.layer_options`.
      preprocess: the preprocessing of a batch, or None.
      finish: applied to the outputs, see `losses.FINISHES`.
      seed: the seed of random numbers, for modules that draw some in evaluation too.
    """
    plan = plan_module(module, precision=precision)
    leaves = [leaf.get_raw_value() if isinstance(leaf, nnx.Variable) else leaf for _, leaf in module_leaves(module)]
    of_kind = {
        kind: [leaf for leaf, slot in zip(leaves, plan.slots, strict=True) if slot.kind == kind]
        for kind in ("param", "carried")
    }
    layout = StateLayout(plan, of_kind["param"], None)
    arrays = [np.asarray(jax.numpy.asarray(leaf)) for leaf in (*of_kind["param"], *of_kind["carried"])]
    dtypes = [array.dtype for array in arrays]
    key = np.asarray(jax.random.key_data(jax.random.key(seed)))

    def predict(stored: Sequence[jax.Array], x: Any) -> Any:
        weights = tuple(
            array if array.dtype == dtype else jax.lax.bitcast_convert_type(array, dtype)
            for array, dtype in zip(stored, dtypes, strict=True)
        )
        return predict_step(layout, preprocess, finish, weights, jax.numpy.asarray(key), x)

    return Function(layout.visible_names, [_storable(array) for array in arrays], predict)


def _storable(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the array, or its bits for a dtype that NumPy does not have, such as bfloat16."""
    return array if array.dtype.isbuiltin == 1 else array.view(f"u{array.dtype.itemsize}")


def check_network(module: Any, outputs: str) -> None:
    """Raise if a module or a kind of outputs cannot be exported.

    Raises:
      ExportError: for a module without a call, and for unknown outputs.
    """
    if outputs not in losses.FINISHES:
        raise ExportError(f"export received outputs={outputs!r}. Expected one of {list(losses.FINISHES)}.")
    if not callable(module):
        raise ExportError(
            f"export received a {type(module).__name__}, which has no __call__. Expected a module with "
            "def __call__(self, x)."
        )


@contextlib.contextmanager
def explaining_batch_size(module: str) -> Iterator[None]:
    """Replace the errors of JAX for code that needs the size of a batch, while a program for any size is traced.

    Args:
      module: the name of the module's class.

    Raises:
      ExportError: in place of the errors of JAX.
    """
    try:
        yield
    except (jax.errors.InconclusiveDimensionOperation, TypeError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        if isinstance(error, TypeError) and "_DimExpr" not in reason:  # of len(x), which must be a number
            raise
        raise ExportError(
            f"{module} depends on the batch size, which an exported program does not know: {reason}. Expected the same "
            "operations for every batch size. Remove the code that depends on x.shape[0] from __call__, and write "
            "x.shape[0] in place of len(x)."
        ) from error


def checked_names(class_names: Sequence[str], shape: Sequence[Any], outputs: str) -> list[str]:
    """Return the names of the classes as a list.

    Args:
      class_names: one text for each class.
      shape: of the first output.
      outputs: a name in `losses.FINISHES`.

    Raises:
      ExportError: for another number of names than of classes, or anything but texts.
    """
    names = list(class_names)
    expected = len(names)
    if outputs != "labels" or len(shape) == 2:  # the labels of a multi-label model
        # A single logit means two classes.
        expected = 2 if shape[1:][-1:] in ((), (1,)) else shape[-1]
    if isinstance(class_names, str) or not all(isinstance(name, str) for name in names) or len(names) != expected:
        raise ExportError(
            f"export received class_names={class_names!r:.200}. Expected one text for each of the {expected} classes."
        )
    return names
