"""`dry_run`: the memory and the time of a run, estimated from a few measured steps."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax

from resfit._utils.checks import positive_int
from resfit._utils.jax_switches import suspending
from resfit._utils.keywords import checked
from resfit.callbacks import Callback
from resfit.callbacks.logs import LazyLogs, Logs
from resfit.callbacks.stopwatch import Stopwatch
from resfit.data import Geometry, as_batches
from resfit.data.batches import Batch
from resfit.diagnostics.summary import memory_text
from resfit.errors import CompileError, DataError
from resfit.model import Model
from resfit.nets.count import count_params
from resfit.trainer.state.snapshot import Snapshot

_WARM_UP = 2  # steps before the measurement


@dataclass(frozen=True)
class DryRun:
    """The result of `dry_run`. `print(result)` shows it as a table.

    Attributes:
      network: the class of the network.
      parameters: its trained scalars.
      input_shapes: the shape of each input array of one example.
      batch_size: examples in a step, over all devices together, as the data have them.
      devices: that share the batch.
      memory: bytes on each device at the peak of a step; None if the compiler does not plan memory.
      steps_per_epoch: None if the data do not know their number.
      epochs: of the run.
      measured_steps: the number of measured steps.
      seconds_per_step: their mean time, data included.
      examples_per_second: their speed.
      data_wait: the share of the time in which the device waited for data, from 0 to 1.
    """

    network: str
    parameters: int
    input_shapes: tuple[tuple[int, ...], ...]
    batch_size: int
    devices: int
    memory: int | None
    steps_per_epoch: int | None
    epochs: int
    measured_steps: int
    seconds_per_step: float
    examples_per_second: float
    data_wait: float

    @property
    def seconds(self) -> float | None:
        """The estimated time of the run, without validation, compilation and checkpoints; None without a length."""
        return None if self.steps_per_epoch is None else self.epochs * self.steps_per_epoch * self.seconds_per_step

    def __str__(self) -> str:
        shapes = ", ".join(" x ".join(map(str, shape)) for shape in self.input_shapes)
        steps, seconds = self.steps_per_epoch, self.seconds
        epochs = f"{self.epochs:,} epoch{'s' * (self.epochs != 1)}"
        rows = {
            "network": f"{self.network}, {self.parameters:,} parameters",
            "batch": f"{self.batch_size:,} examples of {shapes}",
            "memory": f"{'unknown' if self.memory is None else memory_text(self.memory)} on "
            f"{'the device' if self.devices == 1 else f'each of {self.devices} devices'}, at the peak of a step",
            "steps": f"{'unknown' if steps is None else f'{steps:,}'} in an epoch"
            + ("" if steps is None else f", {self.epochs * steps:,} in {epochs}"),
            "measured": f"{self.seconds_per_step:.3g} s a step, {self.examples_per_second:,.4g} examples/s, over "
            f"{self.measured_steps} steps; the device waited for data in {self.data_wait:.0%} of the time",
            "estimated": f"{'unknown' if seconds is None else _duration(seconds)} for {epochs}, without "
            "validation, compilation and checkpoints",
        }
        return "\n".join(f"{name:<9}  {text}" for name, text in rows.items())


@checked("function arguments")
@suspending
def dry_run(
    model: Model,
    x: Any,
    y: Any = None,
    *,
    batch_size: int = 32,
    epochs: int = 1,
    steps_per_epoch: int | None = None,
    drop_remainder: bool = False,
    steps: int = 10,
) -> DryRun:
    """Train for a few steps, estimate the memory and the time of the whole run, then restore the model.

    Two steps warm up, and the next `steps` are measured. The batches come from the data as in `fit`, so a slow input
    pipeline shows, except that the first batches may have been prepared during the compilation. The model is restored
    bit for bit, as by `find_learning_rate`. `fit` then runs the program that was compiled here.

    Args:
      model: compiled as for the run.
      x: training data, as in `Model.fit`, but not an iterator, which can be read only once.
      y: labels, as in `Model.fit`.
      batch_size: as in `Model.fit`.
      epochs: as in `Model.fit`.
      steps_per_epoch: as in `Model.fit`.
      drop_remainder: as in `Model.fit`.
      steps: the number of measured steps; fewer if the run has fewer.

    Raises:
      CompileError: if `model` is not a `Model`.
      NotCompiledError: before `compile`.
      DataError: for an iterator, or if the run has fewer than 3 steps.

    Example:
      >>> import numpy as np, resfit
      >>> x, y = np.zeros((64, 8, 8, 3), np.uint8), np.arange(64) % 2
      >>> model = resfit.Model(resfit.create_model("resnet20", num_classes=2, depths=(1,), widths=(4,)))
      >>> model.compile("sgd", learning_rate=0.1)
      >>> result = dry_run(model, x, y, batch_size=8, epochs=90)
      >>> result.parameters, result.steps_per_epoch, result.measured_steps
      (430, 8, 10)
    """
    if not isinstance(model, Model):
        raise CompileError(f"dry_run got a {type(model).__name__}. Expected a resfit.Model, compiled as for the run.")
    if isinstance(x, Iterator):
        raise DataError(
            f"dry_run got an iterator, a {type(x).__name__}, whose batches would be missing from the training. "
            "Expected data that can be read again: arrays, a dataset, or a function that returns a fresh iterator."
        )
    measured = _Measured(positive_int("steps", steps, DataError))
    with model.snapshot().training("dry_run"):
        before, history = model.snapshot(), model.history
        before.require_compiled("dry_run")
        try:
            geometry = Geometry(batch_size, seed=0, shard=before.shard)
            batch = next(iter(as_batches(x, y, geometry=geometry).epoch(0)))
            memory = _memory(before, batch)
            model.fit(
                x, y, batch_size, epochs, steps_per_epoch=steps_per_epoch, drop_remainder=drop_remainder,
                callbacks=[measured], verbose=0,
            )  # fmt: skip
        finally:
            before.restore()
            model.history, model.stop_training = history, False
    if measured.steps == 0:
        raise DataError(
            f"dry_run got a run of {measured.seen} step{'s' * (measured.seen != 1)}. Expected at least {_WARM_UP + 1}: "
            f"{_WARM_UP} warm up, and the others are measured. Pass more data or epochs, or a smaller batch_size."
        )
    return DryRun(
        network=type(model.module).__name__,
        parameters=count_params(model.module),
        input_shapes=tuple(tuple(leaf.shape[1:]) for leaf in jax.tree.leaves(batch.x)),
        batch_size=measured.batch_size,
        devices=len(before.devices),
        memory=memory,
        steps_per_epoch=measured.params["steps"],
        epochs=epochs,
        measured_steps=measured.steps,
        seconds_per_step=measured.seconds / measured.steps,
        examples_per_second=measured.examples / measured.seconds,
        data_wait=measured.data_wait,
    )


def _memory(snapshot: Snapshot, batch: Batch) -> int | None:
    """Return the bytes at the peak of a step on each device."""
    try:
        return snapshot.step_memory(batch).peak
    except CompileError:  # dispatch="eager", or a compiler that does not plan memory
        return None


class _Measured(Callback):
    """A callback that measures some steps after the first ones, and stops the run."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._watch = Stopwatch()
        self.seen = self.steps = self.examples = self.batch_size = 0
        self.seconds = self.data_wait = 0.0

    def on_compile_begin(self, what: str) -> None:
        self._watch.hold()

    def on_compile_end(self, what: str) -> None:
        self._watch.release()

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        self.seen += 1
        examples = logs.examples if isinstance(logs, LazyLogs) else 0
        self.batch_size = max(self.batch_size, examples)
        if self.seen == _WARM_UP:
            _wait(logs)
            self._watch.start()
        elif self.seen > _WARM_UP:
            self.examples += examples
        if self.seen == _WARM_UP + self._most:
            self._finish(logs)
            self.model.stop_training = True

    def on_train_end(self, logs: Logs | None = None) -> None:
        if self.seen > _WARM_UP and not self.steps:
            self._finish(None)  # the log of the epoch was read already

    def _finish(self, logs: Logs | None) -> None:
        _wait(logs)
        self.seconds, self.steps = self._watch.seconds, self.seen - _WARM_UP
        self.data_wait = self.model.control.data_wait


def _wait(logs: Any) -> None:
    """Wait for the step of these logs: the device runs behind the host."""
    if logs is not None:
        float(logs.batch_loss)


def _duration(seconds: float) -> str:
    """Return a time in its unit: 5.2 hours."""
    for unit, length in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.3g} seconds"
