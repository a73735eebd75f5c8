"""Export of a model as an ONNX file, which other runtimes read, and its comparison with `Model.predict`."""

import functools
import importlib.metadata
import importlib.util
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.export
import numpy as np
from rich.console import Console

from resfit import losses
from resfit import preprocess as preprocess_
from resfit._utils.atomic_write import write
from resfit._utils.paths import expand_user
from resfit._utils.random_inputs import random_batch
from resfit.backends.cpu_barrier import tracing_for
from resfit.errors import ExportError, SavedModelError
from resfit.export.onnx import file
from resfit.export.onnx.converter import convert
from resfit.export.onnx.graph import Graph, constant, stored_dtype
from resfit.export.onnx.runtime import OnnxModel
from resfit.export.onnx.simplify import simplify
from resfit.export.program import Function, check_network, checked_names, explaining_batch_size, function
from resfit.nets.fold import fold_if_possible
from resfit.transforms import FolderTransforms, Transforms
from resfit.transforms.folder_transforms import to_config

DEFAULT_OPSET = 17  # of 2022, which every runtime in use reads
_COMPARED_ROWS = 8


class Settings(NamedTuple):
    """The settings of a model and of its export that decide the file.

    Attributes:
      preprocess: the preprocessing of a batch, or None.
      transforms: the transforms of photographs, or None.
      precision: the precision of `Model.predict`; the file computes in float32.
      seed: the seed of random numbers, for modules that draw some in evaluation too.
      outputs: a name in `losses.FINISHES`.
      weights: the kind of the weights, "raw" or "ema".
      class_names: the names of the classes, or None.
      multi_label: True if every output is an independent label.
      opset: the version of the ONNX operations; None for `DEFAULT_OPSET`.
      dynamic_batch: True for batches of any size, False for one example.
    """

    preprocess: preprocess_.Preprocess | None
    transforms: Transforms | FolderTransforms | None
    precision: str
    seed: int
    outputs: str
    weights: str
    class_names: Sequence[str] | None
    multi_label: bool
    opset: int | None = None
    dynamic_batch: bool = True


class Written(NamedTuple):
    """A network as a graph.

    Attributes:
      graph: with the preprocessing, the network, and the function of its outputs.
      metadata: the metadata of the file.
      original: the function of a batch that `Model.predict` computes, for comparisons.
    """

    graph: Graph
    metadata: dict[str, Any]
    original: Callable[[Any], Any]


def export(path: str | os.PathLike[str], module: Any, example: Any, settings: Settings) -> None:
    """Write an ONNX file that predicts as `Model.predict` does, and print its comparison; see `Model.export`.

    Args:
      path: a path that ends in ".onnx".
      module: the module with the weights to export.
      example: shape and dtype of one example.
      settings: see there.
    """
    path = pathlib.Path(expand_user(path))
    file.check_opset(settings.opset)
    content, said = compare(written(module, example, settings), example)
    if jax.process_index() == 0:
        write(path, content)
        Console().print(said, highlight=False)


def written(module: Any, example: Any, settings: Settings) -> Written:
    """Return a model as a graph, with folded batch norms, in float32.

    Args:
      module: the module with the weights to export.
      example: shape and dtype of one example.
      settings: see there.

    Raises:
      ExportError: for an operation that ONNX lacks, a module that depends on the batch size, or invalid settings.
    """
    check_network(module, settings.outputs)
    opset = DEFAULT_OPSET if settings.opset is None else settings.opset
    finish = (losses.MULTI_LABEL_FINISHES if settings.multi_label else losses.FINISHES)[settings.outputs]
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype), example)
    folded = fold_if_possible(module, one if settings.preprocess is None else jax.eval_shape(settings.preprocess, one))
    exported = function(folded, "float32", settings.preprocess, finish, settings.seed)
    rows: Any = jax.export.symbolic_shape("batch")[0] if settings.dynamic_batch else 1
    g = Graph(opset, rows if settings.dynamic_batch else None)
    names, shape = _write(g, exported, example, rows, settings.outputs, type(module).__name__)
    simplify(g)
    metadata = _metadata(module, example, settings, g, names, shape)
    as_predict = function(module, settings.precision, settings.preprocess, finish, settings.seed)
    return Written(g, metadata, functools.partial(jax.jit(as_predict.predict), as_predict.arrays))


def _metadata(
    module: Any, example: Any, settings: Settings, g: Graph, names: list[str], shape: Sequence[Any]
) -> dict[str, Any]:
    classes = settings.class_names
    return {
        "format": file.FORMAT,
        "versions": {"resfit": importlib.metadata.version("resfit"), "jax": jax.__version__},
        "module": type(module).__name__,
        "inputs": [
            {
                "name": key,
                "shape": [None if settings.dynamic_batch else 1, *leaf.shape],
                "dtype": str(stored_dtype(leaf.dtype)),
            }
            for key, leaf in _leaves(example).items()
        ],
        "outputs": settings.outputs,
        "output_names": names,
        "multi_label": settings.multi_label,
        "class_names": None if classes is None else checked_names(classes, shape, settings.outputs),
        "preprocess": preprocess_.to_config(settings.preprocess),
        "transforms": to_config(settings.transforms),
        "weights_are": settings.weights,
        "opset": g.opset,
        "quantization": None,
    }


def _leaves(tree: Any) -> dict[str, Any]:
    return {jax.tree_util.keystr(where): leaf for where, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _port_names(tree: Any, single: str) -> list[str]:
    """Return the names of the leaves of a tree as other runtimes show them: `single` for one array."""
    found = [
        jax.tree_util.keystr(where, simple=True, separator=".")
        for where, _ in jax.tree_util.tree_flatten_with_path(tree)[0]
    ]
    return [name or single for name in found] if len(found) == 1 else [f"{single}.{name}" for name in found]


def _write(
    g: Graph, exported: Function, example: Any, rows: Any, outputs: str, module: str
) -> tuple[list[str], tuple[Any, ...]]:
    """Fill the graph; return the names of the outputs, and the shape of the first one."""
    batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape), leaf.dtype), example)
    stored = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in exported.arrays]
    with explaining_batch_size(module), tracing_for(["onnx"]):
        program, shapes = jax.make_jaxpr(exported.predict, return_shape=True)(stored, batch)
    weights = [constant(array, name) for name, array in zip(exported.names, exported.arrays, strict=True)]
    leaves = zip(_port_names(batch, "images"), jax.tree.leaves(batch), strict=True)
    found = convert(g, program, [*weights, *(g.input(name, leaf.shape, leaf.dtype) for name, leaf in leaves)])
    names = _port_names(shapes, outputs)
    for name, value in zip(names, found, strict=True):
        if value.shape[:1] != (rows,):
            raise ExportError(
                f"The module returns the shape {value.shape}. Expected one output per row for every batch size."
            )
        g.output(name, value)
    return names, found[0].shape


# --- comparison -------------------------------------------------------------------------------------------------------


def compare(network: Written, example: Any) -> tuple[bytes, str]:
    """Run random inputs through onnxruntime and through `Model.predict`'s function.

    Args:
      network: the graph.
      example: shape and dtype of one example.

    Returns:
      The ONNX file with the result in its metadata as "parity", and a sentence about it.
    """
    content = file.content(network.graph, network.metadata)
    parity: dict[str, Any] = {"runtime": None, "rows": 0}
    said = "onnxruntime is not installed, so the ONNX file was not compared with predict. Install resfit[onnx]."
    if importlib.util.find_spec("onnxruntime") is not None:
        x = jax.tree.map(lambda leaf: np.asarray(random_batch(leaf, _COMPARED_ROWS)), example)
        found = _in_order(_loaded(content).predict(x), network.metadata)
        expected = [np.asarray(leaf) for leaf in jax.tree.leaves(network.original(x))]
        runtime = f"onnxruntime {importlib.metadata.version('onnxruntime')}"
        parity = {"runtime": runtime, "rows": _COMPARED_ROWS, **differences(found, expected)}
        said = (
            f"ONNX file compared with predict in {runtime} on {_COMPARED_ROWS} random inputs: largest difference "
            f"{parity['largest_difference']:.2g}, same class for {parity['same_class']:.0%}."
        )
    return file.with_metadata(content, file.encoded({**network.metadata, "parity": parity})), said


def _loaded(content: bytes) -> OnnxModel:
    try:
        return OnnxModel(content, "The network")
    except SavedModelError as error:
        raise ExportError(
            f"onnxruntime cannot run the network as ONNX: {str(error.__cause__)[:300]} Expected operations on dtypes "
            "that it has. Compute on float32: x.astype(jax.numpy.float32). Or export a program of JAX: a path that "
            "ends in '.npz'."
        ) from error


def _in_order(outputs: Any, metadata: Mapping[str, Any]) -> list[Any]:
    return [outputs[name] for name in metadata["output_names"]] if isinstance(outputs, dict) else [outputs]


def differences(found: Sequence[Any], expected: Sequence[Any]) -> dict[str, float]:
    """Return the largest absolute difference of outputs, and the share of rows whose largest entry is the same.

    Args:
      found: arrays (rows, ...).
      expected: arrays of the same shapes.

    Example:
      >>> differences([np.array([[0.0, 1.0], [2.0, 1.0]])], [np.array([[0.0, 1.5], [2.0, 3.0]])])
      {'largest_difference': 2.0, 'same_class': 0.5}
    """
    largest = max(float(np.abs(a.astype(np.float64) - b).max()) for a, b in zip(found, expected, strict=True))
    same = np.concatenate([(_classes(a) == _classes(b)).ravel() for a, b in zip(found, expected, strict=True)])
    return {"largest_difference": largest, "same_class": float(same.mean())}


def _classes(outputs: Any) -> Any:
    """Return the number of the largest entry; of single logits and of labels, the sign or the label."""
    if np.issubdtype(outputs.dtype, np.integer):
        return outputs
    return outputs.argmax(-1) if outputs.ndim > 1 and outputs.shape[-1] > 1 else outputs > 0
