"""What the optimizer argument of `Model.compile` means."""

import inspect
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from resfit._utils import foreign
from resfit._utils.suggest import did_you_mean
from resfit.errors import CompileError
from resfit.optimizers.injected_learning_rate import LearningRate, index_of_rate, with_rate
from resfit.optimizers.named import adam, adamw, lamb, lars, rmsprop, sgd

_BY_NAME: dict[str, tuple[Callable[..., optax.GradientTransformation], float]] = {
    # name -> (factory, its default learning rate)
    "sgd": (sgd, 0.1),
    "adam": (adam, 1e-3),
    "adamw": (adamw, 1e-3),
    "lamb": (lamb, 5e-3),
    "lars": (lars, 1.0),
    "rmsprop": (rmsprop, 1e-3),
}


def get(
    optimizer: Any, learning_rate: LearningRate | None
) -> tuple[optax.GradientTransformation, Callable[[Any], Any] | None]:
    """The optimizer and learning-rate arguments of `Model.compile` as a transformation and the schedule it follows.

    Returns:
      (transformation, schedule): schedule is None where the learning rate is a number, or the optimizer keeps its own.

    Raises:
      CompileError: for an unknown name, a Keras or PyTorch optimizer, or a learning rate given twice.
    """
    if isinstance(optimizer, optax.GradientTransformation):
        return optimizer, learning_rate if callable(learning_rate) else None
    if isinstance(optimizer, str):
        if optimizer not in _BY_NAME:
            raise CompileError(
                f"Unknown optimizer {optimizer!r}. Expected an optax optimizer, or one of {list(_BY_NAME)}."
                + (
                    f" optax has it: compile(optimizer=optax.{optimizer.lower()}, learning_rate=...)."
                    if optimizer.isidentifier() and hasattr(optax, optimizer.lower())
                    else did_you_mean(optimizer, _BY_NAME)
                )
            )
        factory, default = _BY_NAME[optimizer]
        rate = default if learning_rate is None else learning_rate
        return factory(_first(rate)), rate if callable(rate) else None
    foreign.refuse(optimizer, "optimizer", CompileError)
    if callable(optimizer) and not isinstance(optimizer, type):
        if learning_rate is None:
            name = getattr(optimizer, "__name__", str(optimizer))
            raise CompileError(f"compile got the function {name} as optimizer: expected learning_rate=... beside it.")
        return _of_function(optimizer, _first(learning_rate)), learning_rate if callable(learning_rate) else None
    module = type(optimizer).__module__.split(".")[0]
    remedy = {
        "flax": "resfit keeps the optimizer's state itself: pass the optax transformation that you gave to "
        "nnx.Optimizer.",
    }.get(module, "Expected a name, an optax.GradientTransformation, or a function such as optax.adamw.")
    raise CompileError(
        f"compile got an optimizer of type {type(optimizer).__module__}.{type(optimizer).__name__}. {remedy}"
    )


def default_rate(optimizer: Any) -> float | None:
    """The learning rate of a named optimizer to which `compile` is given none; None for anything but a name.

    Example:
      >>> from resfit.optimizers import adamw
      >>> default_rate("sgd"), default_rate("adamw"), default_rate(adamw)
      (0.1, 0.001, None)
    """
    return _BY_NAME[optimizer][1] if isinstance(optimizer, str) and optimizer in _BY_NAME else None


def _first(rate: LearningRate) -> float:
    # compile's schedules are evaluated by the training step, from its own counter, and written here at every step.
    if isinstance(rate, type):
        raise CompileError(
            f"learning_rate is the class {rate.__name__}. Expected an object of it: learning_rate={rate.__name__}(...)."
        )
    if callable(rate):
        try:
            return float(rate(0))
        except TypeError as error:
            raise CompileError(
                f"learning_rate is a function, and rate(0) failed: {error}. Expected a function of the step alone, as "
                "in optax, that returns one number. A function of (epoch, rate) goes into "
                "callbacks=[resfit.callbacks.LearningRateScheduler(function)]."
            ) from error
    return check_rate(rate, "learning_rate")


def check_rate(rate: Any, name: str) -> float:
    """A learning rate that is a number, if it can be one.

    Raises:
      CompileError: for no number, and for one that is negative or not finite.
    """
    if isinstance(rate, str | bool) or np.ndim(rate) != 0 or rate is None:
        raise CompileError(f"Expected {name} to be a number or a schedule (step -> number), got {rate!r}.")
    if not np.isfinite(rate) or rate < 0:
        raise CompileError(
            f"{name} is {rate}, with which training would leave the minimum instead of looking for it. Expected a "
            "finite number that is not negative, such as 0.1."
        )
    return rate  # type: ignore[no-any-return]


def _of_function(function: Callable[..., Any], rate: float) -> optax.GradientTransformation:
    parameters = inspect.signature(function).parameters
    if "learning_rate" not in parameters:
        name = getattr(function, "__name__", str(function))
        raise CompileError(f"The optimizer function {name} takes no learning_rate. Call it and pass what it returns.")
    built: optax.GradientTransformation = function(learning_rate=rate)
    if index_of_rate(built.init({"kernel": jnp.zeros((1, 1))})) is not None:
        return built  # one of ours: its rate is in its state already
    return with_rate(lambda learning_rate: function(learning_rate=learning_rate), rate)
