"""The `optimizer` and `learning_rate` arguments of `Model.compile`."""

import inspect
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from resfit._utils import foreign
from resfit._utils.keywords import checked
from resfit._utils.suggest import did_you_mean
from resfit._utils.words import same_word, use
from resfit.errors import CompileError
from resfit.optimizers.adapted import adapted
from resfit.optimizers.injected_learning_rate import LearningRate, index_of_rate, with_rate
from resfit.optimizers.named import adam, adamw, lamb, lars, muon, rmsprop, sgd

_BY_NAME: dict[str, tuple[Callable[..., optax.GradientTransformation], float]] = {
    # name -> (factory, default learning rate)
    "sgd": (sgd, 0.1),
    "adam": (adam, 1e-3),
    "adamw": (adamw, 1e-3),
    "lamb": (lamb, 5e-3),
    "lars": (lars, 1.0),
    "muon": (muon, 1e-3),
    "rmsprop": (rmsprop, 1e-3),
}


@checked("function arguments")
def get(
    optimizer: Any, learning_rate: LearningRate | None
) -> tuple[optax.GradientTransformation, Callable[[Any], Any] | None]:
    """Return the transformation of an `optimizer` argument, and the schedule of a `learning_rate` argument.

    Returns:
      (transformation, schedule): schedule is None if the learning rate is a number, or part of the optimizer.

    Raises:
      CompileError: for an unknown name, a Keras or PyTorch optimizer, or a learning rate given twice.
    """
    optimizer = adapted(optimizer)
    if isinstance(optimizer, optax.GradientTransformation):
        return optimizer, learning_rate if callable(learning_rate) else None
    if isinstance(optimizer, str):
        name = same_word(optimizer, _BY_NAME)
        if name not in _BY_NAME:
            raise CompileError(
                f"Unknown optimizer {optimizer!r}. Expected an optax optimizer, or one of {list(_BY_NAME)}."
                + _hint(optimizer)
            )
        factory, default = _BY_NAME[name]
        rate = default if learning_rate is None else learning_rate
        return factory(first_rate(rate)), rate if callable(rate) else None
    foreign.refuse(optimizer, "optimizer", CompileError)
    if callable(optimizer) and not isinstance(optimizer, type):
        if learning_rate is None:
            name = getattr(optimizer, "__name__", str(optimizer))
            raise CompileError(
                f"compile got the function {name} as optimizer without a learning rate. Expected learning_rate=... too."
            )
        return _of_function(optimizer, first_rate(learning_rate)), learning_rate if callable(learning_rate) else None
    module = type(optimizer).__module__.split(".")[0]
    remedy = {
        "flax": "Expected the optax transformation: resfit keeps the state of the optimizer. Pass the transformation "
        "of the nnx.Optimizer.",
    }.get(module, "Expected a name, an optax.GradientTransformation, or a function such as optax.adamw.")
    raise CompileError(
        f"compile got an optimizer of type {type(optimizer).__module__}.{type(optimizer).__name__}. {remedy}"
    )


def _hint(name: str) -> str:
    """Return the end of the message about an unknown name: an optimizer of optax, a substitute, or a similar name."""
    function = getattr(optax, name.lower(), None) if name.isidentifier() else None
    if callable(function) and "learning_rate" in inspect.signature(function).parameters:
        return f" For the optimizer of optax pass compile(optimizer=optax.{name.lower()}, learning_rate=...)."
    return f" {use(name, 'optimizer')}".rstrip() or did_you_mean(name, _BY_NAME)


@checked("function arguments")
def default_rate(optimizer: Any) -> float | None:
    """Return the default learning rate of a named optimizer, or None for any other optimizer.

    Example:
      >>> from resfit.optimizers import adamw
      >>> default_rate("sgd"), default_rate("adamw"), default_rate(adamw)
      (0.1, 0.001, None)
    """
    name = same_word(optimizer, _BY_NAME) if isinstance(optimizer, str) else ""
    return _BY_NAME[name][1] if name in _BY_NAME else None


def with_weight_decay(optimizer: Any) -> optax.GradientTransformation:
    """Return a named optimizer with the weight decay in its state, so that another one does not recompile; it is 0.

    Args:
      optimizer: the name, such as "adamw".

    Raises:
      CompileError: for an optimizer without a name, or a named one without weight decay.

    Example:
      >>> optimizer = with_weight_decay("sgd")
      >>> optimizer.init({"kernel": jnp.ones((2, 2))}).hyperparams["weight_decay"]
      Array(0., dtype=float32)
    """
    name = same_word(optimizer, _BY_NAME) if isinstance(optimizer, str) else ""
    decaying = [name for name, (of, _) in _BY_NAME.items() if "weight_decay" in inspect.signature(of).parameters]
    if name not in decaying:
        given = repr(optimizer) if isinstance(optimizer, str) else f"of type {type(optimizer).__name__}"
        raise CompileError(
            f"compile got weight_decay and an optimizer {given}. Expected one of {decaying}, by name. For "
            "another optimizer pass one that was made with its weight decay, and leave weight_decay out."
            + (did_you_mean(optimizer, decaying) if isinstance(optimizer, str) else "")
        )
    factory, rate = _BY_NAME[name]
    inject = optax.inject_hyperparams(
        lambda weight_decay: factory(rate, weight_decay=weight_decay), hyperparam_dtype=jnp.float32
    )
    transformation: optax.GradientTransformation = inject(weight_decay=jnp.zeros((), jnp.float32))
    return transformation


def first_rate(rate: LearningRate) -> float:
    """Return the learning rate of the first step. The training step evaluates schedules from its own counter.

    Raises:
      CompileError: for a class, a function that raises for step 0, or a number that is not valid.
    """
    if isinstance(rate, type):
        raise CompileError(
            f"learning_rate is the class {rate.__name__}. Expected an object of it: learning_rate={rate.__name__}(...)."
        )
    if callable(rate):
        try:
            return float(rate(0))
        except (TypeError, ValueError) as error:
            raise CompileError(
                f"learning_rate is a function that raises for step 0: {error}. Expected a function step -> number, as "
                "in optax. For a function of (epoch, learning rate) pass "
                "callbacks=[resfit.callbacks.LearningRateScheduler(function)] to fit."
            ) from error
    return check_rate(rate, "learning_rate")


def check_rate(rate: Any, name: str) -> float:
    """Return a learning rate that is a valid number.

    Raises:
      CompileError: if the learning rate is not a number, is negative, or is not finite.
    """
    if isinstance(rate, str | bool) or np.ndim(rate) != 0 or not hasattr(rate, "__float__"):
        raise CompileError(f"Expected {name} to be a number or a schedule (step -> number), got {rate!r}.")
    if not np.isfinite(rate) or rate < 0:
        raise CompileError(f"{name} is {rate}. Expected a finite number of 0 or more, such as 0.1.")
    return rate  # type: ignore[no-any-return]


def _of_function(function: Callable[..., Any], rate: float) -> optax.GradientTransformation:
    parameters = inspect.signature(function).parameters
    if "learning_rate" not in parameters:
        name = getattr(function, "__name__", str(function))
        raise CompileError(
            f"The optimizer function {name} has no parameter learning_rate. Expected one. Call it and pass the result."
        )
    built: optax.GradientTransformation = adapted(function(learning_rate=rate))
    if index_of_rate(built.init({"kernel": jnp.zeros((1, 1))})) is not None:
        return built  # an optimizer of resfit, with its learning rate in the state
    return with_rate(lambda learning_rate: adapted(function(learning_rate=learning_rate)), rate)
