"""Simpler graphs: biases inside of convolutions and dense layers, means as one operation, no node without a reader."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from resfit.export.onnx.graph import Graph, Node
from resfit.export.onnx.shapes import AXES_ARE_AN_INPUT


def simplify(g: Graph) -> None:
    """Merge operations and drop those without a reader. Outputs get their names without an `Identity` if possible.

    Args:
      g: the graph, which is changed.
    """
    _merge(g)
    _rename_outputs(g)
    _drop_unread(g)


def _merge(g: Graph) -> None:
    """Merge pairs of nodes of which the second is the only reader of the first and otherwise reads a constant."""
    readers = Counter([*(name for node in g.nodes for name in node.inputs), *(port.name for port in g.outputs)])
    made: dict[str, Node] = {}
    gone: set[int] = set()
    for i, node in enumerate(g.nodes):
        source, array = _operands(g, node, made)
        if source is not None and array is not None and readers[source.outputs[0]] == 1:
            found = (merge(g, node, source, array) for merge in _MERGES)
            if (merged := next((new for new in found if new is not None), None)) is not None:
                gone.add(id(source))
                g.nodes[i] = merged
        made.update(dict.fromkeys(g.nodes[i].outputs, g.nodes[i]))
    g.nodes = [node for node in g.nodes if id(node) not in gone]


def _operands(g: Graph, node: Node, made: dict[str, Node]) -> tuple[Node | None, np.ndarray[Any, Any] | None]:
    """Return the node before an operation of arithmetic with a constant, and the constant."""
    if node.op not in ("Add", "Sub", "Mul", "Div"):
        return None, None
    x, other = node.inputs
    if x in g.arrays and node.op in ("Add", "Mul"):
        x, other = other, x
    return made.get(x), g.arrays.get(other)


def _is_per_channel(array: np.ndarray[Any, Any], rank: int) -> bool:
    """Return True for one number per channel, or one number, of an array (batch, channels, ...)."""
    sizes = (1,) * (rank - array.ndim) + array.shape
    return array.ndim <= rank and all(size == 1 for axis, size in enumerate(sizes) if axis != 1)


def _convolution(g: Graph, node: Node, conv: Node, array: np.ndarray[Any, Any]) -> Node | None:
    """Put a factor or a term per channel into the convolution before it."""
    if conv.op != "Conv" or conv.inputs[1] not in g.arrays or not set(conv.inputs[2:]) <= set(g.arrays):
        return None
    kernel, *biases = (g.arrays[name] for name in conv.inputs[1:])
    if not _is_per_channel(array, kernel.ndim):
        return None
    factor = np.broadcast_to(array.reshape(-1).astype(np.float64), (len(kernel),))
    bias, inputs = (biases[0] if biases else 0.0), conv.inputs[:2]
    if node.op in ("Mul", "Div"):
        gain = 1 / factor if node.op == "Div" else factor
        scaled = kernel * gain.reshape(-1, *(1,) * (kernel.ndim - 1))
        inputs, bias = [conv.inputs[0], g.constant(scaled.astype(kernel.dtype), conv.inputs[1])], bias * gain
    else:
        bias = bias + (factor if node.op == "Add" else -factor)
    if biases or node.op in ("Add", "Sub"):
        inputs = [*inputs, g.constant(np.asarray(bias, kernel.dtype), f"{conv.inputs[1]}.bias")]
    return Node("Conv", inputs, node.outputs, conv.attributes)


def _bias_of_matrix(g: Graph, node: Node, product: Node, array: np.ndarray[Any, Any]) -> Node | None:
    """Put a bias into the product of a matrix (batch, features) and a constant: a dense layer."""
    if product.op != "MatMul" or node.op != "Add" or product.inputs[1] not in g.arrays:
        return None
    if product.size != 2 or array.ndim > 2 or (array.ndim == 2 and len(array) != 1):
        return None
    return Node("Gemm", [*product.inputs, g.constant(array.reshape(-1))], node.outputs)


def _mean(g: Graph, node: Node, total: Node, array: np.ndarray[Any, Any]) -> Node | None:
    """Make a sum that is divided by the number of its terms a mean."""
    if total.op != "ReduceSum" or node.op not in ("Mul", "Div") or array.size != 1 or not total.size:
        return None
    count = float(array.reshape(())) if node.op == "Div" else 1 / float(array.reshape(()))
    if abs(count - total.size) > 1e-6 * total.size:
        return None
    attributes = dict(total.attributes)
    if g.opset < AXES_ARE_AN_INPUT["ReduceMean"]:
        attributes["axes"] = g.arrays[total.inputs[1]].tolist()
        return Node("ReduceMean", total.inputs[:1], node.outputs, attributes)
    return Node("ReduceMean", total.inputs, node.outputs, attributes)


def _normalization(g: Graph, node: Node, source: Node, array: np.ndarray[Any, Any]) -> Node | None:
    """Make (x - mean) * scale + bias, by channel, a batch normalization of variance 1."""
    if array.ndim < 3 or array.size == 1 or not _is_per_channel(array, array.ndim):
        return None
    numbers = array.reshape(-1)
    if node.op == "Mul" and source.op == "Sub" and source.inputs[1] in g.arrays:
        mean = g.arrays[source.inputs[1]]
        if mean.shape != array.shape:
            return None
        further = (numbers, np.zeros_like(numbers), mean.reshape(-1), np.ones_like(numbers))
        inputs = [source.inputs[0], *(g.constant(values) for values in further)]
        return Node("BatchNormalization", inputs, node.outputs, {"epsilon": 0.0})
    if node.op == "Add" and source.op == "BatchNormalization":
        inputs = [*source.inputs[:2], g.constant(numbers), *source.inputs[3:]]
        return Node("BatchNormalization", inputs, node.outputs, source.attributes)
    return None


# A merge: (graph, node, the node before it, the constant operand) -> the node in place of both, or None.
_Merge = Callable[[Graph, Node, Node, np.ndarray[Any, Any]], Node | None]
_MERGES: tuple[_Merge, ...] = (_convolution, _bias_of_matrix, _mean, _normalization)


def _rename_outputs(g: Graph) -> None:
    outputs = {port.name for port in g.outputs}
    made = {name for node in g.nodes for name in node.outputs}
    names: dict[str, str] = {}
    for node in list(g.nodes):
        if node.op == "Identity" and node.outputs[0] in outputs and node.inputs[0] in made - set(names):
            names[node.inputs[0]] = node.outputs[0]
            g.nodes.remove(node)
    for node in g.nodes:
        node.inputs = [names.get(name, name) for name in node.inputs]
        node.outputs = [names.get(name, name) for name in node.outputs]


def _drop_unread(g: Graph) -> None:
    needed = {port.name for port in g.outputs}
    kept = []
    for node in reversed(g.nodes):
        if needed & set(node.outputs):
            needed |= set(node.inputs)
            kept.append(node)
    g.nodes = kept[::-1]
    g.arrays = {name: array for name, array in g.arrays.items() if name in needed}
