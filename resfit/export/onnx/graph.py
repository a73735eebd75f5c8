"""A graph of ONNX operations that is being built: nodes, constant arrays, and values with any order of their axes.

ONNX convolutions read images as (batch, channels, height, width), and networks of JAX as (batch, height, width,
channels). A value therefore knows in which order its axes are stored. A transposition of the program changes only that
order, and elementwise operations keep it, so a whole network needs one `Transpose` node.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from resfit.errors import ExportError

Shape = tuple[Any, ...]  # of ints; the batch size can be a symbolic dimension of `jax.export`
Order = tuple[int, ...]


class Value(NamedTuple):
    """An array of the program.

    Attributes:
      shape: the shape in the program.
      dtype: the stored dtype.
      dims: the stored size of each axis of the program: that of `shape`, or 1 if all entries along the axis are equal.
      order: the axes of the program in the order in which they are stored.
      name: the name of the array in the graph; None for a constant.
      array: the constant with the sizes of `dims`, in the program's order of axes; None for the result of a node.
      label: the name of the weight that a constant was made from, or "".
    """

    shape: Shape
    dtype: np.dtype[Any]
    dims: Shape
    order: Order
    name: str | None = None
    array: np.ndarray[Any, Any] | None = None
    label: str = ""


@dataclass
class Node:
    """An operation of a graph.

    Attributes:
      op: ONNX's name of the operation.
      inputs: the names of the arrays that it reads.
      outputs: the names of its results.
      attributes: the attributes of the node.
      size: for `simplify`: the number of terms of a sum, or the rank of a product of matrices.
    """

    op: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any] = field(default_factory=dict)
    size: int = 0


class Port(NamedTuple):
    """An input or output of the graph; the size of an axis is a number, or the name of a size that can vary."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str, ...]


def identity(rank: int) -> Order:
    """Return the order of axes as the program has them.

    Example:
      >>> identity(3)
      (0, 1, 2)
    """
    return tuple(range(rank))


def stored_dtype(dtype: Any) -> np.dtype[Any]:
    """Return the dtype in which a graph computes arrays of a dtype: float32 for half precision, which CPUs lack.

    Example:
      >>> stored_dtype(jnp.bfloat16), stored_dtype(np.uint8)
      (dtype('float32'), dtype('uint8'))
    """
    found = np.dtype(dtype)
    return np.dtype(np.float32) if found in (jnp.bfloat16, np.float16) else found


def is_key(array: Any) -> bool:
    """Return True for keys of random numbers, which NumPy cannot hold.

    Example:
      >>> is_key(jax.random.key(0)), is_key(np.zeros(3))
      (True, False)
    """
    return bool(jnp.issubdtype(np.result_type(array) if np.isscalar(array) else array.dtype, jax.dtypes.extended))


def constant(array: Any, label: str = "") -> Value:
    """Return a constant.

    Args:
      array: in the program's order of axes.
      label: the name of the weight that it was made from.
    """
    if is_key(array):  # the program computes with keys of random numbers, and no node reads them
        return Value(array.shape, array.dtype, array.shape, identity(array.ndim), array=array)
    array = np.asarray(array)
    array = array.astype(stored_dtype(array.dtype), copy=False)
    return Value(array.shape, array.dtype, array.shape, identity(array.ndim), array=array, label=label)


class Graph:
    """Nodes and constants; `add` appends a node.

    Args:
      opset: the version of the ONNX operations.
      batch: the symbolic batch size, or None if it is fixed.

    Attributes:
      nodes: in the order in which they run.
      arrays: the constants that nodes read, by name.
      inputs: the inputs of the graph.
      outputs: the outputs of the graph.
    """

    def __init__(self, opset: int, batch: Any = None) -> None:
        self.opset = opset
        self.batch = batch
        self.nodes: list[Node] = []
        self.arrays: dict[str, np.ndarray[Any, Any]] = {}
        self.inputs: list[Port] = []
        self.outputs: list[Port] = []
        self._numbers = itertools.count()
        self._transposed: dict[tuple[Any, Order], tuple[Any, str]] = {}
        self._taken: set[str] = set()

    def input(self, name: str, shape: Shape, dtype: Any) -> Value:
        """Add an input of the graph and return it."""
        found = Value(shape, stored_dtype(dtype), shape, identity(len(shape)), name)
        self._taken.add(name)
        self.inputs.append(Port(name, found.dtype, self.sizes(shape)))
        return found

    def output(self, name: str, value: Value) -> None:
        """Make a value an output of the graph, with the axes in the program's order."""
        source = self.stored(self.full(value))
        self.nodes.append(Node("Identity", [source], [name]))
        self.outputs.append(Port(name, value.dtype, self.sizes(value.shape)))

    def sizes(self, shape: Shape) -> tuple[int | str, ...]:
        """Return a shape with the name of the batch size in place of the symbol."""
        return tuple(size if isinstance(size, int) else str(size) for size in shape)

    def raw(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Append a node with one output, from names; return the name of the output."""
        name = self._name(op.lower())
        self.nodes.append(Node(op, list(inputs), [name], attributes))
        return name

    def add(
        self, op: str, inputs: Sequence[str], shape: Shape, dtype: Any, order: Order | None = None, **attributes: Any
    ) -> Value:
        """Append a node with one output and return the output.

        Args:
          op: ONNX's name of the operation.
          inputs: the names of the inputs.
          shape: of the output, in the program's order of axes.
          dtype: of the output.
          order: the axes in the order of the output; the program's order by default.
          attributes: of the node.
        """
        name = self.raw(op, *inputs, **attributes)
        return Value(shape, stored_dtype(dtype), shape, order or identity(len(shape)), name)

    def constant(self, array: Any, label: str = "") -> str:
        """Add a constant for a node; return its name."""
        name = self._name(label or "constant", numbered=not label)
        self.arrays[name] = np.ascontiguousarray(array) if np.ndim(array) else np.asarray(array)
        return name

    def stored(self, value: Value, order: Order | None = None) -> str:
        """Return the name of a value whose axes are stored in an order; the program's order by default."""
        order = identity(len(value.shape)) if order is None else order
        moved = tuple(value.order.index(axis) for axis in order)
        key = (value.name or id(value.array), moved)
        if key not in self._transposed:
            self._transposed[key] = (value.array, self._in_order(value, moved))  # the array keeps its id taken
        return self._transposed[key][1]

    def _in_order(self, value: Value, axes: Order) -> str:
        """Return the name of a value with its stored axes in another order."""
        if value.array is not None:
            return self.constant(value.array.transpose(axes), value.label)
        return str(value.name) if axes == identity(len(axes)) else self.raw("Transpose", str(value.name), perm=[*axes])

    def full(self, value: Value) -> Value:
        """Return a value whose stored sizes are those of the program."""
        if value.dims == value.shape:
            return value
        if value.array is not None and all(isinstance(size, int) for size in value.shape):
            return value._replace(dims=value.shape, array=np.broadcast_to(value.array, value.shape))
        order = value.order
        name = self.raw("Expand", self.stored(value, order), self.lengths([value.shape[axis] for axis in order]))
        return Value(value.shape, value.dtype, value.shape, order, name)

    def lengths(self, shape: Sequence[Any]) -> str:
        """Return the name of an int64 vector with the sizes of a shape, one of which can be the batch size."""
        if all(isinstance(size, int) for size in shape):
            return self.constant(np.array(shape, np.int64))
        parts = [
            self.constant(np.array([size], np.int64)) if isinstance(size, int) else self._rows(size) for size in shape
        ]
        return self.raw("Concat", *parts, axis=0)

    def _rows(self, size: Any) -> str:
        if size != self.batch:
            raise ExportError(
                f"The network has an axis of the size {size}, which depends on the batch size. Expected axes of the "
                "batch size itself, or of a fixed size. Export with dynamic_batch=False."
            )
        shape = self.raw("Shape", self.inputs[0].name)
        zero, one = (self.constant(np.array([i], np.int64)) for i in (0, 1))
        return self.raw("Slice", shape, zero, one)

    def _name(self, stem: str, *, numbered: bool = True) -> str:
        name = f"{stem}_{next(self._numbers)}" if numbered else stem
        while name in self._taken:
            name = f"{stem}_{next(self._numbers)}"
        self._taken.add(name)
        return name
