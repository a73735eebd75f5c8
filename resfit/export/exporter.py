"""Export of a model as a program that needs jax, but not the Python code of the model.

The file is an uncompressed zip, which NumPy reads as an .npz. It holds the program as `jax.export` serializes it
(StableHLO), each weight as an array, and metadata as JSON. The weights are arguments of the program, not constants. The
program is then a few kilobytes and compiles faster, and NumPy can read, compare and exchange the weights.
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

from resfit import losses
from resfit import preprocess as preprocess_
from resfit._utils.atomic_write import write
from resfit._utils.checks import is_int
from resfit._utils.paths import expand_user
from resfit.backends.cpu_barrier import tracing_for
from resfit.errors import ExportError
from resfit.export.exported import FORMAT, FORMAT_VERSION, METADATA, PROGRAM
from resfit.export.program import check_network, checked_names, explaining_batch_size, function
from resfit.nets import fold_batch_norm
from resfit.transforms import FolderTransforms, Transforms
from resfit.transforms.folder_transforms import to_config

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
DEFAULT_PLATFORMS = ("cpu", "cuda", "tpu")
LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the date of all members, so that equal models give equal files


def inputs(
    seen: Any,
    shape: Any,
    dtype: str | None,
    preprocess: preprocess_.Preprocess | None,
    trained_on: preprocess_.Kinds | None,
) -> Any:
    """Return shape and dtype of one example, from the arguments of the caller or from the inputs seen so far.

    Args:
      seen: an example of earlier inputs, a result of `preprocess.example`, or None.
      shape: (height, width, channels) or a pytree of shapes; None for the shape of `seen`.
      dtype: the dtype of all inputs; None for the dtype of `seen`.
      preprocess: the preprocessing of the model.
      trained_on: the kinds of the training inputs, if they are known.

    Raises:
      ExportError: if the shape or the dtype is unknown or invalid.
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
            f"export received input_shape={shape!r}. Expected positive integers without the batch size: (height, "
            "width, channels)."
        )
    shapes, structure = jax.tree.flatten(shape, is_leaf=_is_shape)
    like_seen = seen is not None and str(jax.tree.structure(seen)) == str(structure)
    dtypes = [dtype] * len(shapes)
    if dtype is None:
        dtypes = _dtypes(jax.tree.leaves(seen) if like_seen else None, len(shapes), preprocess, trained_on)
    try:
        leaves = [jax.ShapeDtypeStruct(s, np.dtype(d)) for s, d in zip(shapes, dtypes, strict=True)]
    except TypeError as error:
        raise ExportError(f"export received input_dtype={dtype!r}. Expected a dtype, such as 'uint8'.") from error
    return jax.tree.unflatten(structure, leaves)


def _dtypes(
    seen: list[Any] | None, count: int, preprocess: preprocess_.Preprocess | None, trained_on: preprocess_.Kinds | None
) -> list[Any]:
    if seen is not None:
        return [leaf.dtype for leaf in seen]
    if trained_on is not None and len(trained_on) == count:
        return ["uint8" if kind == "uint8" else "float32" for kind in trained_on]
    if preprocess is None:
        return ["float32"] * count
    raise ExportError(
        "export received no input_dtype, and this model has not been called yet. Expected the dtype of the images: the "
        "preprocessing may depend on it. Pass input_dtype='uint8' or 'float32'."
    )


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
    transforms: Transforms | FolderTransforms | None = None,
) -> None:
    """Write a program that predicts as `Model.predict` does; see `Model.export`.

    Args:
      path: a path that ends in ".npz".
      module: the module with the weights to export.
      example: shape and dtype of one example, see `inputs`.
      preprocess: the preprocessing of a batch.
      precision: the precision of the program, see `trainer.graph.layer_options`.
      seed: the seed of random numbers, for modules that draw some in evaluation too.
      outputs: a name in `losses.FINISHES`.
      weights: the kind of the weights, "raw" or "ema".
      fold: if True, fold batch norms into convolutions.
      class_names: the names of the classes.
      platforms: the platforms of the program.
      multi_label: True if every output is an independent label.
      transforms: of photographs, kept with the program.
    """
    path = pathlib.Path(expand_user(path))
    _check_arguments(path, module, outputs, platforms)
    if fold:
        one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype), example)
        module = fold_batch_norm(module, one if preprocess is None else jax.eval_shape(preprocess, one))
    finish = (losses.MULTI_LABEL_FINISHES if multi_label else losses.FINISHES)[outputs]
    names, arrays, predict = function(module, precision, preprocess, finish, seed)
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
        "transforms": to_config(transforms),
        "class_names": None if class_names is None else checked_names(class_names, program.out_avals[0].shape, outputs),
        "platforms": list(program.platforms),
        "precision": precision,
        "preprocess": preprocess_.to_config(preprocess),
        "batch_norm_folded": fold,
        "weights_are": weights,
        "weights": names,
    }
    content = _packed(metadata, program, arrays)
    if jax.process_index() == 0:
        write(path, content)


def _check_arguments(path: pathlib.Path, module: Any, outputs: str, platforms: Sequence[str]) -> None:
    if path.suffix != ".npz":
        raise ExportError(f"export received the path {str(path)!r}. Expected one that ends in '.npz' or '.onnx'.")
    check_network(module, outputs)
    if isinstance(platforms, str) or not platforms or not set(platforms) <= set(PLATFORMS):
        raise ExportError(f"export received platforms={platforms!r}. Expected a list of some of {list(PLATFORMS)}.")


def is_onnx(path: str | os.PathLike[str], opset: int | None, dynamic_batch: bool, platforms: Sequence[str]) -> bool:
    """Return True for the path of an ONNX file.

    Raises:
      ExportError: for arguments of the other kind of file.
    """
    if pathlib.Path(path).suffix == ".onnx":
        if tuple(platforms) != DEFAULT_PLATFORMS:
            raise ExportError(
                f"export received platforms={platforms!r} with the path {str(path)!r}. Expected platforms with '.npz' "
                "only: the runtime decides where an ONNX file runs. Omit platforms."
            )
        return True
    if opset is not None or not dynamic_batch:
        raise ExportError(
            f"export received opset={opset} and dynamic_batch={dynamic_batch} with the path {str(path)!r}. Expected "
            "these arguments with a path that ends in '.onnx' only. Omit them, or write an ONNX file."
        )
    return False


def _packed(metadata: dict[str, Any], program: jax.export.Exported, arrays: Sequence[np.ndarray[Any, Any]]) -> bytes:
    """Return the content of the file."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as file:
        file.writestr(zipfile.ZipInfo(METADATA, LONG_AGO), json.dumps(metadata, indent=1, ensure_ascii=False))
        file.writestr(zipfile.ZipInfo(PROGRAM, LONG_AGO), bytes(program.serialize()))
        for name, array in zip(metadata["weights"], arrays, strict=True):
            with file.open(zipfile.ZipInfo(f"weights/{name}.npy", LONG_AGO), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    return content.getvalue()


def _program(
    predict: Callable[[Any, Any], Any], arrays: Sequence[Any], example: Any, platforms: Sequence[str], module: str
) -> jax.export.Exported:
    (rows,) = jax.export.symbolic_shape("batch")
    batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape), leaf.dtype), example)
    stored = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in arrays]
    with explaining_batch_size(module), tracing_for(platforms):
        return jax.export.export(jax.jit(predict), platforms=tuple(platforms))(stored, batch)


def _check_rows(program: jax.export.Exported) -> None:
    rows = {leaf.shape[:1] for leaf in (*program.out_avals, *_batch(program))}
    if len(rows) > 1:
        raise ExportError(
            f"The module returns the shapes {[leaf.shape for leaf in program.out_avals]}. Expected one output per row "
            "for every batch size."
        )


def _batch(program: jax.export.Exported) -> list[Any]:
    (_, x), _ = jax.tree.unflatten(program.in_tree, program.in_avals)
    return jax.tree.leaves(x)
