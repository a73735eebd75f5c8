"""Optimizers: plain optax, with the learning rate kept in the optimizer's state so that changing it never recompiles.

`compile(optimizer=...)` takes a name, one of the functions here, any optax GradientTransformation, or a function such
as `optax.adamw` whose `learning_rate` is filled in by `compile`.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from resfit.errors import CompileError

LearningRate = float | Callable[[Any], Any]  # a number, or a schedule: step -> number


def no_decay_on_norms_and_biases(params: Any) -> Any:
    """The usual mask of weight decay: true for kernels, false for biases and the scales of norms (rank 0 and 1).

    Source: He et al., Bag of Tricks (arXiv 1812.01187), "no bias decay".

    Example:
      >>> no_decay_on_norms_and_biases({"kernel": jnp.ones((3, 3)), "bias": jnp.ones(3)})
      {'bias': False, 'kernel': True}
    """
    return jax.tree.map(lambda p: jnp.ndim(p) > 1, params)


def sgd(
    learning_rate: LearningRate, *, momentum: float = 0.9, nesterov: bool = True, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """SGD with Nesterov momentum, and weight decay (added to the gradient, as in PyTorch) on kernels only.

    Args:
      learning_rate: a number or a schedule (step -> number).
      momentum: of the velocity.
      nesterov: whether to look ahead.
      weight_decay: strength of the decay; norms and biases are left out.

    Example:
      >>> import optax
      >>> optimizer = sgd(optax.linear_schedule(0.0, 0.1, transition_steps=10), weight_decay=5e-4)
      >>> params = {"kernel": jnp.ones((2, 2))}
      >>> state = optimizer.init(params)
      >>> for _ in range(6):
      ...     _, state = optimizer.update(params, state, params)
      >>> state.hyperparams["learning_rate"]  # of the sixth step: a schedule given here is followed
      Array(0.05, dtype=float32)
    """
    return _with_rate(
        lambda learning_rate: optax.chain(
            optax.add_decayed_weights(weight_decay, mask=no_decay_on_norms_and_biases),
            optax.sgd(learning_rate, momentum=momentum, nesterov=nesterov),
        ),
        learning_rate,
    )


def adam(
    learning_rate: LearningRate, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Adam (arXiv 1412.6980) as in optax.

    Example:
      >>> optimizer = adam(1e-3)
    """
    return _with_rate(lambda learning_rate: optax.adam(learning_rate, b1=b1, b2=b2, eps=eps), learning_rate)


def adamw(
    learning_rate: LearningRate, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.05
) -> optax.GradientTransformation:
    """AdamW (arXiv 1711.05101) with decoupled weight decay on kernels only.

    Example:
      >>> optimizer = adamw(1e-3, weight_decay=0.01)
    """
    return _with_rate(
        lambda learning_rate: optax.adamw(
            learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=no_decay_on_norms_and_biases
        ),
        learning_rate,
    )


_BY_NAME: dict[str, tuple[Callable[..., optax.GradientTransformation], float]] = {
    # name -> (factory, its default learning rate)
    "sgd": (sgd, 0.1),
    "adam": (adam, 1e-3),
    "adamw": (adamw, 1e-3),
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
            )
        factory, default = _BY_NAME[optimizer]
        rate = default if learning_rate is None else learning_rate
        return factory(_first(rate)), rate if callable(rate) else None
    if callable(optimizer) and not isinstance(optimizer, type):
        if learning_rate is None:
            name = getattr(optimizer, "__name__", str(optimizer))
            raise CompileError(f"compile got the function {name} as optimizer: expected learning_rate=... beside it.")
        return _of_function(optimizer, _first(learning_rate)), learning_rate if callable(learning_rate) else None
    module = type(optimizer).__module__.split(".")[0]
    remedy = {
        "keras": f"Use compile(optimizer={type(optimizer).__name__.lower()!r}, learning_rate=...) or an optax "
        "optimizer.",
        "torch": "Use the optax optimizer of the same name.",
        "flax": "resfit keeps the optimizer's state itself: pass the optax transformation that you gave to "
        "nnx.Optimizer.",
    }.get(module, "Expected a name, an optax.GradientTransformation, or a function such as optax.adamw.")
    raise CompileError(
        f"compile got an optimizer of type {type(optimizer).__module__}.{type(optimizer).__name__}. {remedy}"
    )


def _first(rate: LearningRate) -> float:
    # compile's schedules are evaluated by the training step, from its own counter, and written here at every step.
    if callable(rate):
        return float(rate(0))
    if isinstance(rate, str | bool) or np.ndim(rate) != 0:
        raise CompileError(f"Expected learning_rate to be a number or a schedule (step -> number), got {rate!r}.")
    return rate


def _with_rate(
    factory: Callable[..., optax.GradientTransformation], rate: LearningRate
) -> optax.GradientTransformation:
    # A schedule given to the optimizer itself is followed by optax, wherever the optimizer stands in a chain.
    inject = optax.inject_hyperparams(factory, hyperparam_dtype=jnp.float32)
    transformation: optax.GradientTransformation = inject(
        learning_rate=rate if callable(rate) else jnp.asarray(rate, jnp.float32)
    )
    return transformation


def _of_function(function: Callable[..., Any], rate: float) -> optax.GradientTransformation:
    parameters = inspect.signature(function).parameters
    if "learning_rate" not in parameters:
        name = getattr(function, "__name__", str(function))
        raise CompileError(f"The optimizer function {name} takes no learning_rate. Call it and pass what it returns.")
    built: optax.GradientTransformation = function(learning_rate=rate)
    if index_of_rate(built.init({"kernel": jnp.zeros((1, 1))})) is not None:
        return built  # one of ours: its rate is in its state already
    return _with_rate(lambda learning_rate: function(learning_rate=learning_rate), rate)


def index_of_rate(state: Any) -> int | None:
    """Which leaf of an optimizer state is an injected learning rate; None unless there is exactly one that can be set.

    One that optax computes from a schedule cannot: optax writes over it at every update.

    Example:
      >>> state = sgd(0.1).init({"kernel": jnp.ones((2, 2))})
      >>> float(jax.tree.leaves(state)[index_of_rate(state)])
      0.10000000149011612
    """
    leaves, tree = jax.tree.flatten(state)
    numbered = jax.tree.unflatten(tree, range(len(leaves)))
    found: list[int] = []

    def injected(node: Any) -> bool:
        return hasattr(node, "hyperparams")

    def visit(node: Any) -> None:
        if injected(node):
            if "learning_rate" in node.hyperparams and "learning_rate" not in getattr(node, "hyperparams_states", ()):
                found.append(node.hyperparams["learning_rate"])
            # A chain inside may hold another one.
            functools.reduce(lambda _, child: visit(child), jax.tree.leaves(node.inner_state, is_leaf=injected), None)

    for node in jax.tree.leaves(numbered, is_leaf=injected):
        visit(node)
    return found[0] if len(found) == 1 else None
