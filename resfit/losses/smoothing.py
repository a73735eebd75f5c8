"""Label smoothing: a number, or a function of the training step."""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resfit.errors import CompileError

Smoothing = float | Callable[[Any], Any]
"""The probability that labels give to all classes together: a number, or a function step -> number."""

_STEP: ContextVar[jax.Array | None] = ContextVar("_STEP", default=None)


@contextlib.contextmanager
def at_step(step: jax.Array) -> Iterator[None]:
    """Let losses see the number of the training step that is traced.

    Args:
      step: the updates since `compile`, () int32.
    """
    token = _STEP.set(step)
    try:
        yield
    finally:
        _STEP.reset(token)


def smoothing_now(label_smoothing: Smoothing) -> Any:
    """Return the label smoothing of the training step that is traced; outside of a step, a function gives 0.

    Example:
      >>> smoothing_now(0.1), smoothing_now(lambda step: 0.2 / (1 + step))
      (0.1, 0.0)
      >>> with at_step(jnp.int32(3)):
      ...     smoothing_now(lambda step: 0.2 / (1 + step))
      Array(0.05, dtype=float32)
    """
    if not callable(label_smoothing):
        return label_smoothing
    step = _STEP.get()
    return 0.0 if step is None else jnp.asarray(label_smoothing(step), jnp.float32)


def check_smoothing(label_smoothing: Smoothing) -> None:
    """Raise if a label smoothing, or that of the first step, is not in [0, 1)."""
    expected = "Expected a number of 0 or more, below 1, or a function step -> number."
    if hasattr(label_smoothing, "over"):  # a resfit.schedules.Schedule
        raise CompileError(
            f"Got label_smoothing={label_smoothing!r}, whose length is unknown. Expected that of a fit of known "
            "length: schedule.over(epochs, steps_per_epoch)."
        )
    changes = callable(label_smoothing)
    try:
        first: Any = float(label_smoothing(0)) if callable(label_smoothing) else label_smoothing
        fits = not isinstance(first, str) and not np.ndim(first) and bool(0 <= first < 1)
    except (TypeError, ValueError) as error:
        raises = f", which raises for step 0: {error}" if changes else ""
        raise CompileError(f"Got label_smoothing={label_smoothing!r}{raises}. {expected}") from error
    if not fits:
        at = f", which is {first:g} at step 0" if changes else ""
        raise CompileError(f"Got label_smoothing={label_smoothing!r}{at}. {expected}")


def check_smoothing_of_steps(label_smoothing: Callable[[Any], Any], first: int, count: int) -> None:
    """Raise if a function for label smoothing leaves [0, 1) at one of up to 65 steps, evenly spaced.

    Args:
      label_smoothing: a function step -> number.
      first: the first step.
      count: the number of steps.
    """
    last = first + max(count, 1) - 1
    for step in np.unique(np.linspace(first, last, 65).astype(int)).tolist():
        value = float(label_smoothing(step))
        if not 0 <= value < 1:
            raise CompileError(
                f"label_smoothing={label_smoothing!r} is {value:g} at step {step}, and fit takes the steps {first} to "
                f"{last}. Expected 0 or more, below 1, at each step. Change the function, or limit its values with "
                "jnp.clip."
            )
