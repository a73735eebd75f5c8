"""The learning-rate range test: find a learning rate to start with."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit import plots
from resfit._utils.jax_switches import suspending
from resfit._utils.keywords import checked
from resfit.callbacks import Callback
from resfit.errors import DataError
from resfit.model import Model

if TYPE_CHECKING:
    import matplotlib.figure

SMOOTHING = 0.9  # share of the earlier losses in the running mean
DIVERGED = 4.0  # times the smallest loss so far


@dataclass(frozen=True)
class LearningRateSearch:
    """The result of `find_learning_rate`.

    Attributes:
      learning_rates: of each step.
      losses: the loss of each step's batch, before the update.
      smoothed: their running mean with bias correction.
      suggestion: a learning rate to start with.
    """

    learning_rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    suggestion: float

    def plot(self) -> "matplotlib.figure.Figure":
        """Draw the loss over the learning rate, with the suggestion. Needs `resfit[plot]`."""
        return plots.learning_rate_search(self.learning_rates, self.losses, self.smoothed, self.suggestion)


@checked("function arguments")
@suspending
def find_learning_rate(
    model: Model,
    x: Any,
    y: Any = None,
    *,
    batch_size: int = 32,
    lowest: float = 1e-6,
    highest: float = 10.0,
    steps: int = 100,
) -> LearningRateSearch:
    """Train with a learning rate that grows in every step until the loss explodes, then restore the model.

    The suggestion is a tenth of the learning rate with the smallest smoothed loss: the loss still falls there, an order
    of magnitude before training becomes unstable. The model is restored bit for bit: parameters, statistics, optimizer,
    counters, learning rate, history.

    Source: Smith, "Cyclical Learning Rates for Training Neural Networks" (arXiv 1506.01186), section 3.3; with
    exponential growth and smoothing.

    Args:
      model: compiled with a learning rate that can be set: a number, not a schedule.
      x: training images, as in `Model.fit`, or an iterable of batches.
      y: labels, as in `Model.fit`.
      batch_size: the one that you will train with; the best learning rate grows with it.
      lowest: the first learning rate.
      highest: the last learning rate. The search stops earlier if the loss is not finite, or exceeds four times its
        minimum.
      steps: their number from lowest to highest.

    Raises:
      NotCompiledError: before `compile`.
      CompileError: if the learning rate cannot be set.
      DataError: for an empty range, or a loss that is not finite at the lowest learning rate.

    Example:
      >>> import numpy as np, resfit
      >>> net = resfit.create_model("resnet20", num_classes=2, depths=(1,), widths=(4,), in_channels=1)
      >>> model = resfit.Model(net)
      >>> model.compile("sgd", learning_rate=0.1)
      >>> x = np.random.default_rng(0).normal(size=(64, 8, 8, 1)).astype("float32")
      >>> found = find_learning_rate(model, x, (x.mean(axis=(1, 2, 3)) > 0).astype("int32"), steps=20)
      >>> found.learning_rates[0] <= found.suggestion < found.learning_rates[-1], model.learning_rate
      (True, 0.10000000149011612)
    """
    if not 0 < lowest < highest < math.inf or steps < 3:
        raise DataError(
            f"Got lowest={lowest}, highest={highest}, steps={steps}. Expected 0 < lowest < highest, and at least 3 "
            "steps."
        )
    ramp = _Ramp(np.geomspace(lowest, highest, steps))
    with model.snapshot().training("find_learning_rate"):
        before, history = model.snapshot(), model.history
        before.require_compiled("find_learning_rate")
        model.learning_rate = model.learning_rate  # raises if it cannot be set
        try:
            model.fit(x, y, batch_size=batch_size, epochs=1, steps_per_epoch=steps, callbacks=[ramp], verbose=0)
        finally:
            before.restore()
            model.history, model.stop_training = history, False
    if not math.isfinite(ramp.losses[0]):
        raise DataError(
            f"The loss is {ramp.losses[0]} at the lowest learning rate, {lowest}. Expected a finite loss at "
            "the start. Check the inputs and labels with resfit.doctor(model, x, y)."
        )
    rates = [float(rate) for rate in ramp.rates[: len(ramp.losses)]]
    return LearningRateSearch(tuple(rates), tuple(ramp.losses), tuple(ramp.smoothed), suggest(rates, ramp.smoothed))


def suggest(learning_rates: Sequence[float], smoothed: Sequence[float]) -> float:
    """Return a tenth of the learning rate with the smallest smoothed loss, but at least the first.

    Example:
      >>> suggest([0.01, 0.1, 1.0, 10.0], [2.0, 1.5, 1.0, 9.0])
      0.1
    """
    best = int(np.nanargmin([loss if math.isfinite(loss) else math.nan for loss in smoothed]))
    return max(learning_rates[best] / 10, learning_rates[0])


class _Ramp(Callback):
    """A callback that sets the learning rate of each step, and stops the training once the loss has exploded."""

    def __init__(self, rates: np.ndarray) -> None:
        self.rates = rates
        self.losses: list[float] = []
        self.smoothed: list[float] = []
        self._mean = 0.0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.model.learning_rate = float(self.rates[batch])

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        loss = logs.batch_loss  # read in every step: the test must stop right after an explosion
        self._mean = SMOOTHING * self._mean + (1 - SMOOTHING) * loss
        smooth = self._mean / (1 - SMOOTHING ** (batch + 1))
        self.losses.append(loss)
        self.smoothed.append(smooth)
        if not math.isfinite(loss) or smooth > DIVERGED * min(self.smoothed):
            self.model.stop_training = True
