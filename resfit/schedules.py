"""Named learning-rate schedules that span one fit, in epochs.

A schedule is a shape over the run. It does not hold the length of the run or the size of the dataset; both are
arguments of `rate`, as numbers or traced arrays. A longer or shorter run therefore needs no new compilation.
"""

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp

from resfit._utils.keywords import check_constructors, checked
from resfit._utils.suggest import did_you_mean
from resfit._utils.words import no_attribute, use
from resfit.errors import CompileError


@dataclasses.dataclass(frozen=True)
class Schedule(abc.ABC):
    """Base class of schedules: a peak learning rate times a factor that depends on the progress of the run.

    Args:
      peak: the highest learning rate; None for the optimizer's default.
    """

    peak: float | None = None

    _shares: ClassVar[tuple[str, ...]] = ()  # fields that are shares of the peak or of the run

    def __post_init__(self) -> None:
        if self.peak is not None and not (math.isfinite(self.peak) and self.peak > 0):
            raise CompileError(f"{type(self).__name__} got peak={self.peak!r}. Expected a positive learning rate.")
        for name in self._shares:
            _require(0 <= getattr(self, name) <= 1, self, name, "a share, from 0 to 1")

    @abc.abstractmethod
    def factor(self, step: jax.Array, total_steps: jax.Array, steps_per_epoch: jax.Array) -> jax.Array:
        """Return the share of the peak at a step.

        Args:
          step: the number of steps since the fit began, () float32, at most total_steps.
          total_steps: the number of steps of the whole fit.
          steps_per_epoch: the number of updates in an epoch.

        Returns:
          () float32.
        """

    def rate(self, step: Any, total_steps: Any, steps_per_epoch: Any) -> jax.Array:
        """Return the learning rate at a step of a fit. After the end of the fit it keeps its last value.

        Args:
          step: the number of steps since the fit began; a number or a traced array, like the other arguments.
          total_steps: the number of steps of the whole fit.
          steps_per_epoch: the number of updates in an epoch.

        Returns:
          () float32.

        Raises:
          CompileError: if the peak is None; `get` sets it.
        """
        if self.peak is None:
            raise CompileError(
                f"{type(self).__name__}() has no peak learning rate. Expected {type(self).__name__}(peak=0.1), or "
                "schedules.get(schedule, default_peak=0.1)."
            )
        total = jnp.asarray(total_steps, jnp.float32)
        return self.peak * self.factor(
            jnp.minimum(jnp.asarray(step, jnp.float32), total), total, jnp.asarray(steps_per_epoch, jnp.float32)
        )

    def over(self, epochs: int, steps_per_epoch: int) -> Callable[[Any], jax.Array]:
        """Return the schedule of a fit of known length: a function step -> learning rate, as in optax.

        Args:
          epochs: the number of epochs of the fit.
          steps_per_epoch: the number of updates in an epoch.

        Raises:
          CompileError: if the schedule does not fit into the epochs.

        Example:
          >>> rate = Cosine(peak=0.4).over(epochs=10, steps_per_epoch=100)
          >>> [round(float(rate(step)), 4) for step in (0, 500, 1000)]
          [0.4, 0.2, 0.0]
        """
        self.check(epochs)
        return lambda step: self.rate(step, epochs * steps_per_epoch, steps_per_epoch)

    def check(self, epochs: int) -> None:
        """Raise if the schedule does not fit into a number of epochs.

        Raises:
          CompileError: if the schedule needs more epochs.
        """
        if epochs < 1:
            raise CompileError(f"{type(self).__name__} got a run of {epochs} epochs. Expected one or more.")


def _require(condition: bool, schedule: Schedule, name: str, expected: str) -> None:
    if not condition:
        raise CompileError(f"{type(schedule).__name__} got {name}={getattr(schedule, name)!r}. Expected {expected}.")


@dataclasses.dataclass(frozen=True)
class Constant(Schedule):
    """A schedule that keeps the peak.

    Args:
      peak: the learning rate; None for the optimizer's default.

    Example:
      >>> float(Constant(0.5).rate(step=7, total_steps=10, steps_per_epoch=5))
      0.5
    """

    def factor(self, step: jax.Array, total_steps: jax.Array, steps_per_epoch: jax.Array) -> jax.Array:
        return jnp.ones((), jnp.float32)


@dataclasses.dataclass(frozen=True)
class Linear(Schedule):
    """A schedule that falls linearly from the peak to the end.

    Args:
      peak: the first learning rate; None for the optimizer's default.
      end: the last learning rate, as a share of the peak.

    Example:
      >>> float(Linear(1.0, end=0.5).rate(step=5, total_steps=10, steps_per_epoch=5))
      0.75
    """

    end: float = 0.0

    _shares = ("end",)

    def factor(self, step: jax.Array, total_steps: jax.Array, steps_per_epoch: jax.Array) -> jax.Array:
        return self.end + (1 - self.end) * (1 - step / total_steps)


@dataclasses.dataclass(frozen=True)
class Cosine(Schedule):
    """A schedule that falls from the peak to the end in half a cosine wave, without restarts.

    Source: Loshchilov and Hutter, SGDR (arXiv 1608.03983), equation 5.

    Args:
      peak: the first learning rate; None for the optimizer's default.
      end: the last learning rate, as a share of the peak.

    Example:
      >>> float(Cosine(1.0, end=0.5).rate(step=5, total_steps=10, steps_per_epoch=5))
      0.75
    """

    end: float = 0.0

    _shares = ("end",)

    def factor(self, step: jax.Array, total_steps: jax.Array, steps_per_epoch: jax.Array) -> jax.Array:
        return self.end + (1 - self.end) * _half_cosine(step / total_steps)


@dataclasses.dataclass(frozen=True)
class WarmupCosine(Schedule):
    """A schedule that rises linearly from zero to the peak, then falls to the end in half a cosine wave.

    Source: Goyal et al. (arXiv 1706.02677) for the five epochs of warm-up; He et al., Bag of Tricks (arXiv 1812.01187),
    for warm-up and cosine.

    Args:
      peak: the highest learning rate; None for the optimizer's default.
      warmup_epochs: the number of epochs of the rise; None for 5, but at most a tenth of the run.
      end: the last learning rate, as a share of the peak.

    Example:
      >>> schedule = WarmupCosine(1.0, warmup_epochs=2)
      >>> rates = [schedule.rate(step, total_steps=100, steps_per_epoch=10) for step in (0, 10, 20, 60)]
      >>> [round(float(rate), 3) for rate in rates]
      [0.0, 0.5, 1.0, 0.5]
    """

    warmup_epochs: float | None = None
    end: float = 0.0

    _shares = ("end",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup_epochs is not None:
            _require(self.warmup_epochs >= 0, self, "warmup_epochs", "0 or more, or None")

    def factor(self, step: jax.Array, total_steps: jax.Array, steps_per_epoch: jax.Array) -> jax.Array:
        if self.warmup_epochs is None:
            warmup = jnp.minimum(5.0 * steps_per_epoch, total_steps / 10)
        else:
            warmup = self.warmup_epochs * steps_per_epoch
        rising = step / jnp.maximum(warmup, 1e-9)
        falling = (step - warmup) / jnp.maximum(total_steps - warmup, 1e-9)
        return jnp.where(step < warmup, rising, self.end + (1 - self.end) * _half_cosine(falling))

    def check(self, epochs: int) -> None:
        super().check(epochs)
        if self.warmup_epochs is not None and self.warmup_epochs >= epochs:
            raise CompileError(
                f"WarmupCosine got warmup_epochs={self.warmup_epochs} in a run of {epochs} epochs. Expected a shorter "
                "warm-up. Omit warmup_epochs for a tenth of the run."
            )


@dataclasses.dataclass(frozen=True)
class Step(Schedule):
    """A schedule that multiplies the learning rate by a factor after given epochs.

    Source: He et al. (arXiv 1512.03385): a tenth after 30 and 60 of 90 epochs on ImageNet.

    Args:
      peak: the first learning rate; None for the optimizer's default.
      at: the epochs after which the learning rate drops, in rising order; None for a third and two thirds of the run.
      drop: the factor.

    Example:
      >>> schedule = Step(1.0, at=(2, 3), drop=0.5)
      >>> [float(schedule.rate(step, total_steps=40, steps_per_epoch=10)) for step in (19, 20, 30)]
      [1.0, 0.5, 0.25]
    """

    at: tuple[float, ...] | None = None
    drop: float = 0.1

    _shares = ("drop",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.at is not None:
            object.__setattr__(self, "at", tuple(self.at))  # a list would make the schedule unhashable
            rising = all(a < b for a, b in zip((0.0, *self.at), self.at, strict=False))
            _require(bool(self.at) and rising, self, "at", "rising epochs after the first, such as (30, 60)")

    def factor(self, step: jax.Array, total_steps: jax.Array, steps_per_epoch: jax.Array) -> jax.Array:
        if self.at is None:
            boundaries = jnp.array([1 / 3, 2 / 3], jnp.float32) * total_steps
        else:
            boundaries = jnp.array(self.at, jnp.float32) * steps_per_epoch
        # A third of the run is a whole number of steps only up to rounding.
        passed = (step[None] >= jnp.ceil(boundaries - 1e-3)).sum()
        return jnp.power(jnp.float32(self.drop), passed)

    def check(self, epochs: int) -> None:
        super().check(epochs)
        if self.at is not None and self.at[-1] >= epochs:
            raise CompileError(
                f"Step got at={list(self.at)} in a run of {epochs} epochs, which does not reach the last drop. "
                f"Expected epochs below {epochs}. Omit `at` for thirds of the run."
            )


@dataclasses.dataclass(frozen=True)
class OneCycle(Schedule):
    """A schedule that rises to the peak in half a cosine wave, then falls to the end in a longer one.

    Source: Smith and Topin, Super-Convergence (arXiv 1708.07120). The defaults are those of PyTorch and optax.

    Args:
      peak: the highest learning rate; None for the optimizer's default.
      rise: the share of the run in which the learning rate rises.
      start: the first learning rate, as a share of the peak.
      end: the last learning rate, as a share of the peak.

    Example:
      >>> schedule = OneCycle(1.0, rise=0.5, start=0.5, end=0.0)
      >>> rates = [schedule.rate(step, total_steps=20, steps_per_epoch=10) for step in (0, 5, 10, 15, 20)]
      >>> [round(float(rate), 3) for rate in rates]
      [0.5, 0.75, 1.0, 0.5, 0.0]
    """

    rise: float = 0.3
    start: float = 1 / 25
    end: float = 1 / 25e4

    _shares = ("rise", "start", "end")

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(0 < self.rise < 1, self, "rise", "a share between 0 and 1")

    def factor(self, step: jax.Array, total_steps: jax.Array, steps_per_epoch: jax.Array) -> jax.Array:
        top = self.rise * total_steps
        up = self.start + (1 - self.start) * (1 - _half_cosine(step / top))
        down = self.end + (1 - self.end) * _half_cosine((step - top) / (total_steps - top))
        return jnp.where(step < top, up, down)


def _half_cosine(share: jax.Array) -> jax.Array:
    """Return half a cosine wave, which falls from 1 at 0 to 0 at 1."""
    return 0.5 * (1 + jnp.cos(jnp.pi * share))


_BY_NAME: dict[str, type[Schedule]] = {
    "constant": Constant,
    "cosine": Cosine,
    "linear": Linear,
    "one_cycle": OneCycle,
    "step": Step,
    "warmup_cosine": WarmupCosine,
}


def _unquoted(name: str) -> str:
    """Return a hint for a number in quotes, or an empty text for any other name."""
    try:
        return f" Pass a number without quotes: learning_rate={float(name):g}."
    except ValueError:
        return ""


@checked("function arguments")
def get(schedule: str | Schedule, default_peak: float | None = None) -> Schedule:
    """Return the schedule of a name, or a schedule, with its peak.

    Args:
      schedule: "constant", "cosine", "linear", "one_cycle", "step", "warmup_cosine", or a `Schedule`.
      default_peak: the peak of a schedule without one.

    Raises:
      CompileError: for an unknown name, or if there is no peak.

    Example:
      >>> get("cosine", default_peak=0.1)
      Cosine(peak=0.1, end=0.0)
      >>> get(Cosine(0.4), default_peak=0.1)
      Cosine(peak=0.4, end=0.0)
    """
    if isinstance(schedule, str):
        if schedule not in _BY_NAME:
            raise CompileError(
                f"Unknown learning-rate schedule {schedule!r}. Expected a number, a function step -> rate, a "
                f"resfit.schedules object, or one of {list(_BY_NAME)}. {use(schedule, 'schedules')}".rstrip()
                + (_unquoted(schedule) or did_you_mean(schedule, _BY_NAME))
            )
        schedule = _BY_NAME[schedule]()
    if not isinstance(schedule, Schedule):
        raise CompileError(
            f"Expected a schedule's name or a resfit.schedules object, got {type(schedule).__name__}: {schedule!r}."
        )
    if schedule.peak is not None:
        return schedule
    if default_peak is None:
        name = type(schedule).__name__
        raise CompileError(
            f"The schedule {name} has no peak, and this optimizer has no default learning rate. Expected "
            f"learning_rate=resfit.schedules.{name}(peak=0.1)."
        )
    return dataclasses.replace(schedule, peak=default_peak)


check_constructors(__name__)

if not TYPE_CHECKING:  # a type checker would accept every name
    __getattr__ = no_attribute(__name__, "schedules")
