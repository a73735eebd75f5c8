"""ONNX files: a graph as the protocol buffer of the package `onnx`."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from resfit._utils.checks import is_int
from resfit._utils.optional_import import load_package
from resfit._utils.texts import storable
from resfit.errors import ExportError
from resfit.export.onnx.graph import Graph, Node, Port

FORMAT = "resfit-onnx"  # "format" in the metadata
INSTALL = "pip install 'resfit[onnx]'"
LARGEST_FILE = 2**31 - 2**20  # bytes of weights: a protocol buffer has at most 2 GiB
OLDEST_OPSET = 13  # the first one with scales per channel in QuantizeLinear


def check_opset(opset: Any) -> None:
    """Raise if the installed `onnx` does not have this version of the operations; None is the default version.

    Raises:
      ExportError: for any other version.
      MissingPackageError: if onnx is not installed.
    """
    newest = load_package("onnx", "Export to ONNX", INSTALL).defs.onnx_opset_version()
    if opset is not None and (not is_int(opset, OLDEST_OPSET) or opset > newest):
        raise ExportError(
            f"export received opset={opset!r}. Expected a version from {OLDEST_OPSET} to {newest}, the newest of the "
            "installed onnx. Omit opset for the version that most runtimes read."
        )


def content(g: Graph, metadata: Mapping[str, Any]) -> bytes:
    """Return the bytes of an ONNX file.

    Args:
      g: the graph.
      metadata: JSON values by name, for the `metadata_props` of the file.

    Raises:
      ExportError: if the graph is not valid ONNX, such as an operation on a dtype that it does not have, or if its
        weights exceed `LARGEST_FILE`.
    """
    size = sum(array.nbytes for array in g.arrays.values())
    if size > LARGEST_FILE:
        raise ExportError(
            f"The network has weights of {size / 2**30:.1f} GiB. Expected at most 2 GiB, the limit of an ONNX file. "
            "Export a program of JAX, which has no limit: a path that ends in '.npz'."
        )
    onnx = load_package("onnx", "Export to ONNX", INSTALL)
    helper = onnx.helper
    graph = helper.make_graph(
        [_node(helper, node) for node in g.nodes],
        "resfit",
        [_port(helper, port) for port in g.inputs],
        [_port(helper, port) for port in g.outputs],
        [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in g.arrays.items()],
    )
    opsets = [helper.make_opsetid("", g.opset)]
    model = helper.make_model(graph, producer_name="resfit", opset_imports=opsets)
    model.ir_version = helper.find_min_ir_version_for(opsets)  # the newest version is unknown to older runtimes
    helper.set_model_props(model, encoded(metadata))
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"The network uses an operation that ONNX lacks for these dtypes or sizes: {str(error)[:300]} Expected "
            "operations on float32. Convert before them: x.astype(jax.numpy.float32). Or export a program of JAX: a "
            "path that ends in '.npz'."
        ) from error
    found: bytes = model.SerializeToString()
    return found


def encoded(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return JSON values as the texts of `metadata_props`.

    Example:
      >>> encoded({"class_names": ["cat", "dog"]})
      {'class_names': '["cat", "dog"]'}
    """
    return {name: storable(json.dumps(value, ensure_ascii=False)) for name, value in metadata.items()}


def with_metadata(model: bytes, texts: dict[str, str]) -> bytes:
    """Return the bytes of an ONNX file with other `metadata_props`.

    Args:
      model: the bytes of a file.
      texts: by name, see `encoded`.
    """
    onnx = load_package("onnx", "Export to ONNX", INSTALL)
    found = onnx.load_model_from_string(model)
    del found.metadata_props[:]
    onnx.helper.set_model_props(found, texts)
    content: bytes = found.SerializeToString()
    return content


def _node(helper: Any, node: Node) -> Any:
    attributes = {
        name: helper.np_dtype_to_tensor_dtype(value) if isinstance(value, np.dtype) else _plain(value)
        for name, value in node.attributes.items()
    }
    return helper.make_node(node.op, node.inputs, node.outputs, name=node.outputs[0], **attributes)


def _plain(value: Any) -> Any:
    return [int(number) for number in value] if isinstance(value, Sequence) and not isinstance(value, str) else value


def _port(helper: Any, port: Port) -> Any:
    return helper.make_tensor_value_info(port.name, helper.np_dtype_to_tensor_dtype(port.dtype), port.shape)
