"""The learning rate of a compiled model: a number that can be set, or a schedule that spans the epochs of a `fit`."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from resfit import optimizers, schedules
from resfit.callbacks.logs import read
from resfit.data import Epochs
from resfit.errors import CompileError, DataError
from resfit.optimizers.resolve import check_rate, first_rate, with_weight_decay
from resfit.trainer.state.run_state import RunState

_log = logging.getLogger("resfit")


class LearningRate:
    """The learning rate of a run.

    Args:
      state: of the run; its optimizer holds the rate.
      given: the argument of `compile`: a number, or None for the optimizer's own rate.
      named: a schedule from `resfit.schedules`, or None.
      function: step -> rate, or None.

    Attributes:
      index: the index of the learning rate among the leaves of the optimizer state; None without a single one that can
        be set.
      scheduled: True if a schedule decides the rate.
      asked: the rate as the user would write it, the schedule as text, or None if the optimizer decides.

    Raises:
      CompileError: for a rate together with an optimizer that was built with its own.
    """

    def __init__(
        self, state: RunState, given: Any, named: schedules.Schedule | None, function: Callable[[Any], Any] | None
    ) -> None:
        self._state, self._named, self._function = state, named, function
        self.index = state.rate_index()
        self._computed = state.layout.scheduled_rate_index if self.index is None else None
        self.scheduled = named is not None or function is not None
        if given is not None and self.index is None:
            raise CompileError(
                "compile got learning_rate and an optimizer that was built with its own rate. Leave learning_rate out, "
                "or pass the function instead (optimizer=optax.adamw, learning_rate=...)."
            )
        if given is not None and self.index is not None:
            state.set_leaf(self.index, float(first_rate(given)))
        self.asked: float | str | None = repr(named) if named is not None else self._written()

    def get(self) -> float:
        """Return the rate of the last step, or of the next one."""
        return float(self._state.leaf(self._settable("read") if self._computed is None else self._computed))

    def set(self, value: float, *, by_callback: bool) -> None:
        """Set the rate; nothing is compiled again.

        Args:
          value: the rate.
          by_callback: True during a `fit`: the change is then part of the run.

        Raises:
          CompileError: if the optimizer has no single rate that can be set, or a schedule decides it.
        """
        index = self._settable("set")
        if self.scheduled:
            raise CompileError("The learning rate follows a schedule. Compile with a number to set it yourself.")
        self._state.set_leaf(index, float(check_rate(value, "model.learning_rate")))
        if not by_callback:
            self.asked = self._written()

    def restored(self, asked: float | str | None) -> None:
        """Take over the rate of a state that was restored, and the value of `asked` at that time."""
        if self.index is not None and not self.scheduled:
            self._state.set_leaf(self.index, self.get())
        self.asked = asked

    def scaled(self, factor: float) -> Callable[[], None]:
        """Return a function that multiplies the present rate, or all rates of the schedule, by a factor.

        Raises:
          CompileError: if the optimizer has no rate that can be set, and the factor is not 1.
        """
        if self.scheduled:
            whole = self._state.rate_factor * factor
            return lambda: setattr(self._state, "rate_factor", whole)
        if factor == 1:
            return lambda: None
        rate = self.get() * factor
        return lambda: self.set(rate, by_callback=True)

    def in_logs(self) -> dict[str, float]:
        """Return the entry of an epoch's log: the rate of a schedule; {} for a rate that the user sets."""
        index = self.index if self.scheduled else self._computed
        return {} if index is None else {"learning_rate": float(read(self._state.leaf(index)))}

    @property
    def in_step(self) -> Callable[[Any, Any], Any] | None:
        """The schedule as a step asks for it: (step, span of this fit) -> rate; None without a schedule."""
        named, function = self._named, self._function
        if named is not None:
            return lambda step, span: named.rate(step - span[0], span[1], span[2])
        if function is not None:
            return lambda step, span: function(step - span[0])
        return None

    @property
    def spans_epochs(self) -> bool:
        """True for a named schedule, whose rates depend on the number of epochs."""
        return self._named is not None

    def check_single_step(self) -> None:
        """Raise if a named schedule has no epochs to span: for `train_on_batch` before any `fit`."""
        if self._named is not None and not self._state.steps():
            raise CompileError(
                "A named schedule spans the epochs of a fit, and train_on_batch has none. Compile with a number or "
                "with a function step -> rate."
            )

    def check_span(self, stream: Epochs, epochs: range) -> None:
        """Raise if a named schedule cannot span these epochs."""
        if self._named is None or not epochs:
            return
        self._named.check(epochs.stop)
        if stream.steps is None:
            raise DataError(
                "A named learning-rate schedule needs the number of steps in an epoch, which this data does not know. "
                "Pass steps_per_epoch."
            )

    @contextlib.contextmanager
    def spanning(self, stream: Epochs, epochs: range) -> Iterator[None]:
        """Let the schedule span these epochs; a fit that fails before its first step leaves it as it was."""
        if not self.scheduled or not epochs:
            yield
            return
        done, before = self._state.steps(), self._state.span()
        if self._named is None:
            self._begin_function(stream, epochs.start, done)
        elif stream.steps is not None:
            name, begins = type(self._named).__name__, "starts again" if done else "begins"
            _log.info("The schedule %s %s and spans %d epochs.", name, begins, epochs.stop)
            self._state.set_span(done - epochs.start * stream.steps, epochs.stop * stream.steps, stream.steps)
        try:
            yield
        except BaseException:
            if self._state.steps() == done:
                self._state.put_span(before)
            raise

    def _begin_function(self, stream: Epochs, initial_epoch: int, done: int) -> None:
        """Start a schedule function at `initial_epoch`; a model that has trained continues its count."""
        if done or not initial_epoch:
            return
        if stream.steps is None:
            _log.warning(
                "The learning rate's schedule begins at step 0, though initial_epoch is %d: this data does not know "
                "how many steps an epoch has. Pass steps_per_epoch, or a function that adds the steps before.",
                initial_epoch,
            )
            return
        self._state.set_span(-initial_epoch * stream.steps, 0, stream.steps)

    def _written(self) -> float | None:
        """Return the rate as a user would write it: 0.1, and not the nearest float32."""
        return None if self.index is None else float(str(np.asarray(self._state.leaf(self.index))))

    def _settable(self, verb: str) -> int:
        if self._computed is not None:
            raise CompileError(
                f"Cannot {verb} the learning rate: optax.inject_hyperparams computes it from a schedule at every step. "
                "Pass a number to inject_hyperparams, and the schedule to compile(learning_rate=...)."
            )
        if self.index is None:
            raise CompileError(
                f"Cannot {verb} the learning rate: it is built into this optax object, or the object has several. "
                "Compile with a name or with a function (optimizer=optax.adamw, learning_rate=...), or wrap "
                "one optimizer in optax.inject_hyperparams with a number as learning_rate."
            )
        return self.index


def resolve(
    optimizer: Any, learning_rate: Any, weight_decay: float | None = None
) -> tuple[Any, Any, schedules.Schedule | None, Callable[[Any], Any] | None]:
    """Return (optax transformation, rate or None, named schedule or None, function step -> rate or None).

    Args:
      optimizer: as in `Model.compile`.
      learning_rate: as in `Model.compile`.
      weight_decay: as in `Model.compile`. The state gets the value later, so that one program makes it for every value.
    """
    named = None
    if isinstance(learning_rate, str | schedules.Schedule):
        named = schedules.get(learning_rate, default_peak=optimizers.default_rate(optimizer))
        learning_rate = named.peak
    # `LearningRate` puts the number into the state. Without it, one program makes the state for every number.
    number = isinstance(optimizer, str) and not callable(learning_rate)
    if weight_decay is not None:
        optimizer = with_weight_decay(optimizer)
    transformation, function = optimizers.get(optimizer, None if number else learning_rate)
    return transformation, learning_rate, named, function
