"""Summarize a network part by part: `summarize` returns plain data that prints as a table."""

import io
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
from flax import nnx
from rich.console import Console

from resfit._utils.jax_switches import suspending
from resfit.errors import InputShapeError
from resfit.nets.count import Operation, count_params, dense_operations
from resfit.nets.intercept import intercept
from resfit.nets.resnet import ResNet
from resfit.trainer.arguments import one_batch, unpacked
from resfit.trainer.devices.memory import StepMemory
from resfit.trainer.learned.input_format import InputFormat
from resfit.trainer.loop.trainer import Trainer

if TYPE_CHECKING:
    from rich.table import Table

OUTSIDE = "(itself)"  # the row of the parameters and operations outside all parts


@dataclass(frozen=True)
class SummaryRow:
    """One part of a network.

    Attributes:
        name: attribute path of the part, such as `"stage1"` or `"layers.0"`.
        type: its class.
        output_shapes: shape of each array that it returns for one example, without the batch axis; empty if the part
            was not called as a whole.
        parameters: its trained scalars; those shared with an earlier part count there.
        multiply_adds: of its convolutions and matrix products, for one example.
        activation_bytes: see `Summary`.
    """

    name: str
    type: str
    output_shapes: tuple[tuple[int, ...], ...]
    parameters: int
    multiply_adds: int
    activation_bytes: int


@dataclass(frozen=True)
class Summary:
    """A network's parts and totals. `print(summary)` shows them as a table.

    Attributes:
        name: class of the network.
        input_shape: shape of one example, without the batch axis.
        rows: the parts, in the order in which the network calls them.
        parameters: trained scalars.
        statistics: running statistics (`nnx.BatchStat`), which are not trained by gradients.
        parameter_bytes: memory of the trained scalars.
        multiply_adds: of all convolutions and matrix products, for one example.
        activation_bytes: memory of the distinct arrays that convolutions and matrix products read and write, for one
            example: the least that a backward pass needs of the forward pass. Pooling and compilers add to it.
    """

    name: str
    input_shape: tuple[int, ...]
    rows: tuple[SummaryRow, ...]
    parameters: int
    statistics: int
    parameter_bytes: int
    multiply_adds: int
    activation_bytes: int

    def render(self, width: int = 100) -> str:
        """Return the table as text.

        Args:
            width: columns of the terminal (default 100).
        """
        from rich.console import Console

        text = io.StringIO()
        console = Console(file=text, width=width, color_system=None, legacy_windows=False)
        console.print(self._table())
        console.print(
            f"{self.parameters:,} parameters ({memory_text(self.parameter_bytes)}) and {self.statistics:,} running "
            "statistics. Multiply-adds and activation memory are for one example.",
            soft_wrap=False,
        )
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())

    def _table(self) -> "Table":
        from rich import box
        from rich.table import Table

        shape = " x ".join(map(str, self.input_shape))
        table = Table(
            title=f"{self.name} on {shape}", title_justify="left", box=box.SIMPLE_HEAD, show_footer=True, pad_edge=False
        )
        table.add_column("part", "total")
        table.add_column("type")
        table.add_column("output", no_wrap=True)
        table.add_column("parameters", f"{self.parameters:,}", justify="right", no_wrap=True)
        table.add_column("multiply-adds", _amount(self.multiply_adds), justify="right", no_wrap=True)
        table.add_column("activations", memory_text(self.activation_bytes), justify="right", no_wrap=True)
        for row in self.rows:
            outputs = ", ".join(" x ".join(map(str, shape)) or "scalar" for shape in row.output_shapes)
            costs = (f"{row.parameters:,}", _amount(row.multiply_adds), memory_text(row.activation_bytes))
            table.add_row(row.name, row.type, outputs, *costs)
        return table

    def __str__(self) -> str:
        return self.render()


@suspending
def summarize(module: nnx.Module, input_shape: tuple[int, ...] | None = None, *, dtype: str = "float32") -> Summary:
    """Return a summary of a module, part by part.

    The module is evaluated abstractly on one example, in evaluation mode. Nothing is computed or changed.

    Args:
        module: any module from a batch to anything, also an abstract one from `nnx.eval_shape`.
        input_shape: shape of one example, without the batch axis. The default of a `ResNet` is 224 x 224 pixels for an
            ImageNet stem and 32 x 32 for a CIFAR stem.
        dtype: dtype of the example (default `"float32"`).

    Raises:
        InputShapeError: if no shape is given for a module that is not a `ResNet`.

    Example:
        >>> from flax import nnx
        >>> from resfit.nets import create_model
        >>> summary = summarize(nnx.eval_shape(lambda: create_model("resnet50", num_classes=1000)))
        >>> [row.name for row in summary.rows]
        ['stem', 'stage1', 'stage2', 'stage3', 'stage4', 'head']
        >>> f"{summary.parameters:,} parameters, {summary.multiply_adds:,} multiply-adds"
        '25,557,032 parameters, 4,089,184,256 multiply-adds'
    """
    input_shape = _default_shape(module) if input_shape is None else input_shape
    rows = _rows(module, input_shape, dtype)
    parameters = jax.tree.leaves(nnx.state(module, nnx.Param))
    return Summary(
        name=type(module).__name__,
        input_shape=tuple(input_shape),
        rows=rows,
        parameters=count_params(module),
        statistics=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(module, nnx.BatchStat))),
        parameter_bytes=sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in parameters),
        multiply_adds=sum(row.multiply_adds for row in rows),
        activation_bytes=sum(row.activation_bytes for row in rows),
    )


def _default_shape(module: nnx.Module) -> tuple[int, ...]:
    if not isinstance(module, ResNet):
        raise InputShapeError(
            f"summarize received a {type(module).__name__} and no input_shape. Expected the shape of one example. "
            "Pass it without the batch axis, for example input_shape=(32, 32, 3)."
        )
    return (module.stem.image_size, module.stem.image_size, module.spec.in_channels)


def _rows(module: nnx.Module, input_shape: tuple[int, ...], dtype: str) -> tuple[SummaryRow, ...]:
    """Return a row for each part, in the order of the calls, and one for the rest of the module if it has any."""
    outputs: dict[str, tuple[tuple[int, ...], ...]] = {}
    operations = dense_operations(module, input_shape, dtype=dtype, watch=lambda copy: _watch(copy, outputs))
    called = {name: position for position, name in enumerate(outputs)}
    parts = sorted(_parts(module), key=lambda part: called.get(part.name, len(called)))
    costs = _costs_by_part(operations, {part.name for part in parts})
    held = _parameters_by_part(parts)
    rows = [
        SummaryRow(
            part.name, type(part.module).__name__, outputs.get(part.name, ()), held[part.name], *costs[part.name]
        )
        for part in parts
    ]
    own = count_params(module) - sum(held.values())
    if own or any(costs[OUTSIDE]) or not rows:
        rows.append(SummaryRow(OUTSIDE, type(module).__name__, outputs[OUTSIDE], own, *costs[OUTSIDE]))
    return tuple(rows)


def table_of_parts(module: nnx.Module, x: Any, width: int = 100) -> str:
    """Return the table of a module for inputs like these, or the reason why it has none.

    Args:
        module: any module.
        x: a batch of the module's inputs, arrays or their shapes.
        width: columns of the terminal (default 100).
    """
    if not hasattr(x, "shape"):
        return f"There is no table of the parts: the input is {jax.tree.structure(x)}, expected one array."
    try:
        return summarize(module, tuple(x.shape[1:]), dtype=str(x.dtype)).render(width)
    except Exception as error:  # noqa: BLE001  # a custom module may need another call than module(x)
        return f"There is no table of the parts: the module raised on a batch of one example. {error}"


def memory_of_a_step(memory: StepMemory, examples: int, devices: int) -> str:
    """Return the memory of a training step as text.

    Args:
        memory: of the step.
        examples: in its batch.
        devices: their number.
    """
    rows = (
        ("arguments", memory.arguments, "the state, metric sums and the batch"),
        (
            "outputs",
            memory.outputs,
            f"the new state; {memory_text(memory.aliased)} of it reuse the memory of the old one",
        ),
        ("temporary", memory.temporary, "activations kept for the gradient, gradients, scratch space"),
        ("peak", memory.peak, "all of these, reused memory once"),
    )
    where = f"each of {devices} devices" if devices > 1 else "the device"
    lines = [f"  {name:<10} {memory_text(size):>9}  {words}" for name, size, words in rows]
    return "\n".join([f"Memory of a training step on {examples} examples, on {where}:", *lines])


def _watch(module: Any, outputs: dict[str, tuple[tuple[int, ...], ...]]) -> None:
    """Name the operations of a module and of each of its parts, and note the shapes of their outputs.

    Args:
        module: a private copy.
        outputs: gets the shapes by name, in the order of the calls.
    """
    seen: set[int] = set()
    for holder, key, name, part in tuple(_parts(module)):
        if id(part) in seen:  # a part that is held twice has a row for each of its names
            part = vars(holder)[key] = nnx.clone(part)
        seen.add(id(part))
        if callable(part):
            _watch_one(part, name, outputs)
    _watch_one(module, OUTSIDE, outputs)


def _watch_one(part: nnx.Module, name: str, outputs: dict[str, tuple[tuple[int, ...], ...]]) -> None:
    def around(_: Any, call: Any, *args: Any, **kwargs: Any) -> Any:
        with jax.named_scope(name):
            output = call(*args, **kwargs)
        outputs[name] = tuple(tuple(leaf.shape[1:]) for leaf in jax.tree.leaves(output))
        return output

    intercept(part, around)


class _Part(NamedTuple):
    holder: nnx.Module
    key: str
    name: str
    module: nnx.Module


def _parts(module: nnx.Module, prefix: str = "") -> Iterator[_Part]:
    """Yield the modules that a module holds as attributes, or as elements of an nnx.List or nnx.Dict."""
    for key, value in vars(module).items():
        if isinstance(value, nnx.List | nnx.Dict):
            yield from _parts(value, f"{prefix}{key}.")
        elif isinstance(value, nnx.Module):
            yield _Part(module, key, f"{prefix}{key}", value)


def _parameters_by_part(parts: list[_Part]) -> dict[str, int]:
    """Return the number of trained scalars of each part; a shared scalar counts once."""
    seen: set[int] = set()
    held: dict[str, int] = {}
    for part in parts:
        variables = [node for _, node in nnx.iter_graph(part.module) if isinstance(node, nnx.Param)]
        held[part.name] = sum(math.prod(v.get_value().shape) for v in variables if id(v) not in seen)
        seen |= {id(variable) for variable in variables}
    return held


def _costs_by_part(operations: list[Operation], names: set[str]) -> dict[str, tuple[int, int]]:
    """Return multiply-adds and activation bytes of each part; an array counts in the first part that uses it."""
    multiply_adds, activation_bytes = Counter[str](), Counter[str]()
    seen: set[int] = set()
    for operation in operations:
        scopes = map(_without_transformations, operation.scope.split("/"))
        part = next((scope for scope in scopes if scope in names), OUTSIDE)
        multiply_adds[part] += operation.multiply_adds
        activation_bytes[part] += sum(size for name, size in operation.activations.items() if name not in seen)
        seen |= operation.activations.keys()
    return {name: (multiply_adds[name], activation_bytes[name]) for name in (*names, OUTSIDE)}


def _without_transformations(scope: str) -> str:
    """Return the name of a scope: JAX calls it vmap(name) inside a `jax.vmap`."""
    while match := re.fullmatch(r"\w+\((.*)\)", scope):
        scope = match[1]
    return scope


def _amount(count: int) -> str:
    """Return a count in three digits: 40.6 M."""
    return _scaled(count, 1000, ("", " k", " M", " G", " T"))


def memory_text(size: int) -> str:
    """Return bytes in three digits: 1.2 MiB."""
    return _scaled(size, 1024, (" B", " KiB", " MiB", " GiB", " TiB"))


def _scaled(value: float, base: int, units: tuple[str, ...]) -> str:
    for unit in units[:-1]:
        if value < base:
            return f"{value:.3g}{unit}" if value < 1000 else f"{value:.0f}{unit}"
        value /= base
    return f"{value:.1f}{units[-1]}"


def show(
    module: nnx.Module,
    batch: Any,
    input_shape: tuple[int, ...] | None,
    inputs: InputFormat,
    trainer: Callable[[], Trainer],
) -> None:
    """Print the table of `Model.summary`.

    Args:
      module: the network.
      batch: (x, y) or (x, y, sample_weight), an input shape, or None.
      input_shape: of one image, if `batch` is None; by default that of the inputs of a network without one.
      inputs: of the model.
      trainer: returns the compiled trainer, or raises; called for a batch of arrays.
    """
    console = Console()
    if isinstance(batch, tuple | list) and 1 <= len(batch) <= 3 and all(isinstance(side, int) for side in batch):
        batch, input_shape = None, tuple(batch)
    if batch is None and input_shape is None and not isinstance(module, ResNet) and inputs.example is not None:
        one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype), inputs.example)
        text = table_of_parts(module, _preprocessed(inputs, one), console.width)
    elif batch is None:
        text = summarize(module, input_shape).render(console.width)
    else:
        compiled = trainer()
        one = one_batch(*unpacked(batch, "a batch"), None)
        memory, examples = compiled.memory(one)
        step = memory_of_a_step(memory, examples, compiled.devices)
        text = f"{table_of_parts(module, _preprocessed(inputs, one.x), console.width)}\n\n{step}"
    console.print(text, soft_wrap=True, highlight=False)


def _preprocessed(inputs: InputFormat, x: Any) -> Any:
    return x if inputs.preprocess is None else jax.eval_shape(inputs.preprocess, x)
