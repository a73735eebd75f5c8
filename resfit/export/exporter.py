"""Exporting: a model as a program that needs neither its own Python code nor resfit, only jax.

The file is an uncompressed zip, which NumPy reads as an .npz: the program, as `jax.export` serialises it (StableHLO);
each weight as an array; and JSON that says what is what. The weights are arguments of the program, not constants in it:
so it is a few kilobytes, compiles in less time, and whoever has NumPy can read, compare and exchange the weights.
"""

import importlib.metadata
import io
import json
import os
import pathlib
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.export
import numpy as np
from flax import nnx

from resfit import losses
from resfit import preprocess as preprocess_
from resfit._utils.atomic_write import write
from resfit._utils.checks import is_int
from resfit._utils.paths import expand_user
from resfit.errors import ExportError
from resfit.export.exported import FORMAT, FORMAT_VERSION, METADATA, PROGRAM
from resfit.nets import fold_batch_norm
from resfit.trainer.graph import plan as modes
from resfit.trainer.state import Layout
from resfit.trainer.step import predict_step

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the date of all members: the same model is the same file, byte for byte


def inputs(
    seen: Any,
    shape: Any,
    dtype: str | None,
    preprocess: preprocess_.Preprocess | None,
    trained_on: preprocess_.Kinds | None,
) -> Any:
    """What one example will be, by what the caller says, and else by what the model has seen.

    Args:
      seen: an example, as `preprocess.example` tells of it, or None.
      shape: (height, width, channels), or a pytree of such; None: as seen.
      dtype: of all inputs; None: as seen.
      preprocess: the model's own.
      trained_on: what kinds of inputs it was trained on, as far as is known.

    Raises:
      ExportError: if neither tells.
    """
    if shape is None and seen is None:
        raise ExportError(
            "export received no input_shape, and this model has not been called yet. Expected the shape of one image. "
            "Pass input_shape=(height, width, channels)."
        )
    if shape is None:
        shape = jax.tree.map(lambda leaf: leaf.shape, seen)
    if not all(is_int(size, 1) for size in jax.tree.leaves(shape)):
        raise ExportError(
            f"export received input_shape={shape!r}. Expected positive whole numbers, without the batch's size: "
            "(height, width, channels)."
        )
    shapes, structure = jax.tree.flatten(shape, is_leaf=_is_shape)
    if dtype is not None:
        dtypes = [dtype] * len(shapes)
    elif seen is not None and str(jax.tree.structure(seen)) == str(structure):
        dtypes = [leaf.dtype for leaf in jax.tree.leaves(seen)]
    elif trained_on is not None and len(trained_on) == len(shapes):
        dtypes = ["uint8" if kind == "uint8" else "float32" for kind in trained_on]
    elif preprocess is None:
        dtypes = ["float32"] * len(shapes)
    else:
        raise ExportError(
            "export received no input_dtype, and this model, whose preprocessing may treat uint8 and float images "
            "differently, has not been called yet. Expected what the images will be. Pass input_dtype='uint8' or "
            "'float32'."
        )
    try:
        leaves = [jax.ShapeDtypeStruct(s, np.dtype(d)) for s, d in zip(shapes, dtypes, strict=True)]
    except TypeError as error:
        raise ExportError(f"export received input_dtype={dtype!r}. Expected a dtype, such as 'uint8'.") from error
    return jax.tree.unflatten(structure, leaves)


def _is_shape(node: Any) -> bool:
    return isinstance(node, tuple | list) and all(is_int(size) for size in node)


def export(
    path: str | os.PathLike[str],
    module: Any,
    example: Any,
    *,
    preprocess: preprocess_.Preprocess | None,
    precision: str,
    seed: int,
    outputs: str,
    weights: str,
    fold: bool,
    class_names: Sequence[str] | None,
    platforms: Sequence[str],
    multi_label: bool = False,
) -> None:
    """Writes what predicts as `Model.predict` does; see `Model.export`.

    Args:
      path: ending in ".npz".
      module: with the weights to export.
      example: what one example is, see `inputs`.
      preprocess: what happens to a batch before the module.
      precision: see `trainer.graph.plan.plan`.
      seed: for modules that draw random numbers in evaluation too.
      outputs: a name in `losses.FINISHES`.
      weights: which ones they are.
      fold: whether to fold batch norms into convolutions.
      class_names: of the outputs.
      platforms: where the program shall run.
      multi_label: whether every output is a label of its own.
    """
    path = pathlib.Path(expand_user(path))
    if path.suffix != ".npz":
        raise ExportError(f"export received the path {str(path)!r}. Expected one that ends in '.npz'.")
    if outputs not in losses.FINISHES:
        raise ExportError(f"export received outputs={outputs!r}. Expected one of {list(losses.FINISHES)}.")
    if isinstance(platforms, str) or not platforms or not set(platforms) <= set(PLATFORMS):
        raise ExportError(f"export received platforms={platforms!r}. Expected some of {list(PLATFORMS)}, in a list.")
    if not callable(module):
        raise ExportError(
            f"{type(module).__name__} has no __call__, so there is no function to export. Expected "
            "def __call__(self, x)."
        )
    if fold:
        one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype), example)
        module = fold_batch_norm(module, one if preprocess is None else jax.eval_shape(preprocess, one))
    finish = (losses.MULTI_LABEL_FINISHES if multi_label else losses.FINISHES)[outputs]
    names, arrays, predict = _function(module, precision, preprocess, finish, seed)
    program = _program(predict, arrays, example, platforms, type(module).__name__)
    _check_rows(program)
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "versions": {"resfit": importlib.metadata.version("resfit"), "jax": jax.__version__},
        "module": type(module).__name__,
        "inputs": [
            {"name": jax.tree_util.keystr(where), "shape": [None, *leaf.shape], "dtype": str(leaf.dtype)}
            for where, leaf in jax.tree_util.tree_flatten_with_path(example)[0]
        ],
        "outputs": outputs,
        "multi_label": multi_label,
        "class_names": None if class_names is None else _names(class_names, program, outputs),
        "platforms": list(program.platforms),
        "precision": precision,
        "preprocess": preprocess_.to_config(preprocess),
        "batch_norm_folded": fold,
        "weights_are": weights,
        "weights": names,
    }
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as file:
        file.writestr(zipfile.ZipInfo(METADATA, LONG_AGO), json.dumps(metadata, indent=1, ensure_ascii=False))
        file.writestr(zipfile.ZipInfo(PROGRAM, LONG_AGO), bytes(program.serialize()))
        for name, array in zip(names, arrays, strict=True):
            with file.open(zipfile.ZipInfo(f"weights/{name}.npy", LONG_AGO), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    if jax.process_index() == 0:
        write(path, content.getvalue())


def _function(
    module: nnx.Module,
    precision: str,
    preprocess: preprocess_.Preprocess | None,
    finish: Callable[[Any], Any],
    seed: int,
) -> tuple[list[str], list[np.ndarray[Any, Any]], Callable[[Any, Any], Any]]:
    """The weights by name, as files hold them, and the function of them and of a batch."""
    plan = modes.plan(module, precision=precision)
    leaves = [leaf.get_raw_value() if isinstance(leaf, nnx.Variable) else leaf for _, leaf in modes.leaves(module)]
    of_kind = {
        kind: [leaf for leaf, slot in zip(leaves, plan.slots, strict=True) if slot.kind == kind]
        for kind in ("param", "carried")
    }
    layout = Layout(plan, of_kind["param"], None)
    arrays = [np.asarray(jax.numpy.asarray(leaf)) for leaf in (*of_kind["param"], *of_kind["carried"])]
    dtypes = [array.dtype for array in arrays]
    key = np.asarray(jax.random.key_data(jax.random.key(seed)))

    def predict(stored: Sequence[jax.Array], x: Any) -> Any:
        weights = tuple(
            array if array.dtype == dtype else jax.lax.bitcast_convert_type(array, dtype)
            for array, dtype in zip(stored, dtypes, strict=True)
        )
        return predict_step(layout, preprocess, finish, weights, jax.numpy.asarray(key), x)

    return layout.visible_names, [_storable(array) for array in arrays], predict


def _storable(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The array, or its bits where its dtype is none of NumPy's own, such as bfloat16."""
    return array if array.dtype.isbuiltin == 1 else array.view(f"u{array.dtype.itemsize}")


def _program(
    predict: Callable[[Any, Any], Any], arrays: Sequence[Any], example: Any, platforms: Sequence[str], module: str
) -> jax.export.Exported:
    (rows,) = jax.export.symbolic_shape("batch")
    batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape), leaf.dtype), example)
    stored = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in arrays]
    try:
        return jax.export.export(jax.jit(predict), platforms=tuple(platforms))(stored, batch)
    except jax.errors.InconclusiveDimensionOperation as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ExportError(
            f"{module} decides something by the size of the batch, which an exported program leaves open: {reason}. "
            "Expected the same operations for any batch. Take what depends on x.shape[0] out of __call__."
        ) from error


def _check_rows(program: jax.export.Exported) -> None:
    rows = {leaf.shape[:1] for leaf in (*program.out_avals, *_batch(program))}
    if len(rows) > 1:
        raise ExportError(
            f"The module returns the shapes {[leaf.shape for leaf in program.out_avals]}. Expected one output per row, "
            "so that batches of any size can be predicted."
        )


def _batch(program: jax.export.Exported) -> list[Any]:
    (_, x), _ = jax.tree.unflatten(program.in_tree, program.in_avals)
    return jax.tree.leaves(x)


def _names(class_names: Sequence[str], program: jax.export.Exported, outputs: str) -> list[str]:
    names = list(class_names)
    expected = len(names)
    shape = program.out_avals[0].shape
    if outputs != "labels" or len(shape) == 2:  # the labels of a multi-label model
        # A single logit tells two classes apart.
        expected = 2 if shape[1:] in ((), (1,)) else shape[-1]
    if isinstance(class_names, str) or not all(isinstance(name, str) for name in names) or len(names) != expected:
        raise ExportError(
            f"export received class_names={class_names!r:.200}. Expected one text for each of the {expected} classes."
        )
    return names
