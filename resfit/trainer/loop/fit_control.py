"""The requests that callbacks make of a running `fit`."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from resfit.data.choose import check_form
from resfit.errors import CallbackError, NotCompiledError
from resfit.trainer.checkpoint.manager import CheckpointManager, Rollback
from resfit.trainer.compiled import Compiled
from resfit.trainer.learned.facts import Learned


class FitControl:
    """The `RunControl` of a model, and the facts and steps that its `fit` works with.

    Args:
      learned: facts about the model's data.

    Attributes:
      learned: facts about the model's data.
      compiled: the steps of the last `compile`, or None before it.
      stale: True if the model has to be compiled again: parts of the module were frozen since.
      why_stale: the reason, a sentence; "" if the model was never compiled.
      fitting: True while `fit` runs.
    """

    def __init__(self, learned: Learned) -> None:
        self.learned = learned
        self.compiled: Compiled | None = None
        self.stale = False
        self.why_stale = ""
        self.fitting = False
        self._manager: CheckpointManager | None = None

    @contextlib.contextmanager
    def during(self, manager: CheckpointManager | None) -> Iterator[None]:
        """Mark the model as in a `fit`; at the end, wait until all checkpoints are written."""
        self.fitting = True
        try:
            yield
        finally:
            self.fitting, self._manager = False, None
            if manager is not None:
                manager.close()

    def accept(self, manager: CheckpointManager | None) -> None:
        """Accept requests from now on: the run trains."""
        self._manager = manager

    @property
    def saves_checkpoints(self) -> bool:
        """True if `fit` runs with a `Checkpoint` callback."""
        return self._manager is not None

    @property
    def data_wait(self) -> float:
        """The share of the last epoch's training in which the device waited for data, from 0 to 1 (an upper bound)."""
        return 0.0 if self.compiled is None else self.compiled.trainer.data_wait

    def request_checkpoint(self, *, best: bool = False) -> None:
        """Save the run after all hooks of this batch or epoch.

        Args:
          best: True to keep the checkpoint as the best so far.

        Raises:
          CallbackError: if `fit` runs without a `Checkpoint` callback, which names the folder.
        """
        if self._manager is not None:
            self._manager.wanted = True
            self._manager.wanted_as_best |= best
        elif self.fitting:
            raise CallbackError(
                "A checkpoint was requested in a fit without a Checkpoint callback. Pass one, which names the folder: "
                "callbacks=[resfit.callbacks.Checkpoint(folder), ...]."
            )

    def request_rollback(self, *, bad: tuple[int, int] | None = None, learning_rate_factor: float = 1.0) -> None:
        """Go back to the newest checkpoint in which all values are finite, after all hooks of this batch or epoch.

        Training then continues as if the run had been resumed: the position in the data, metrics, `History` and the
        state of callbacks go back too.

        Args:
          bad: (epoch, batch) of a step that went wrong: the checkpoint is one from before it, if there is one.
          learning_rate_factor: multiplies the present learning rate, or all rates of a schedule.

        Raises:
          CallbackError: if `fit` runs without a `Checkpoint` callback.
          CompileError: if the optimizer has no learning rate that can be set, and the factor is not 1.
        """
        if self._manager is None or self.compiled is None:
            raise CallbackError(
                "A rollback was requested in a fit without a Checkpoint callback, so there is nothing to go back to. "
                "Pass one: callbacks=[resfit.callbacks.Checkpoint(folder), ...]."
            )
        self._manager.rollback = Rollback(bad, self.compiled.rate.scaled(learning_rate_factor))

    def trained_weights(self) -> list[np.ndarray]:
        """Return copies of the arrays with which training continues, to put them back later."""
        return self.require_compiled("trained_weights").context.state.trained()

    def restore_trained_weights(self, weights: Sequence[np.ndarray]) -> None:
        """Continue training with a result of `trained_weights`; the averages stay."""
        self.require_compiled("restore_trained_weights").context.state.restore_trained(weights)

    @property
    def is_compiled(self) -> bool:
        """True if the model can be trained with its present steps."""
        return self.compiled is not None and not self.stale

    def must_compile_again(self, why: str) -> None:
        """Mark the compiled steps, if there are any, as stale.

        Args:
          why: the reason, a sentence.
        """
        self.stale = self.compiled is not None
        self.why_stale = why if self.stale else ""

    def require_compiled(self, method: str, *, stale: bool = False, x: Any = None) -> Compiled:
        """Return the compiled steps.

        Args:
          method: that needs them.
          stale: True to also return stale steps, for a look at the last training.
          x: the argument of the method. A path, which is no data at all, raises first.

        Raises:
          NotCompiledError: before `compile`.
          DataError: before `compile`, for an `x` that is not data.
        """
        if self.compiled is None or (self.stale and not stale):
            if x is not None:
                check_form(x)
            why = self.why_stale or "The model was not compiled."
            again = " again" if self.why_stale else ""
            raise NotCompiledError(f"{why} Call model.compile(...){again} before {method}.")
        return self.compiled
