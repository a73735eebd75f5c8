"""Optimizers of optax that need another call than `update(gradients, state, params, value=loss)`."""

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from resfit.errors import CompileError, ResfitError


class Lookahead(NamedTuple):
    """The state of `optax.lookahead` and the slow parameters, which optax leaves to the training loop.

    Attributes:
      inner: the state of optax.
      slow: the parameters to evaluate with.
    """

    inner: Any
    slow: Any


def adapted(optimizer: Any) -> Any:
    """Return an optimizer with the usual call; any other object stays as it is.

    Args:
      optimizer: such as an `optax.MultiSteps`, the result of `optax.lookahead` or of `optax.contrib.sam`.

    Example:
      >>> optimizer = adapted(optax.lookahead(optax.sgd(1.0), sync_period=2, slow_step_size=0.5))
      >>> params = {"kernel": jnp.ones(1)}
      >>> optimizer.init(params).slow
      {'kernel': Array([1.], dtype=float32)}
    """
    if isinstance(optimizer, optax.MultiSteps):
        return optimizer.gradient_transformation()
    if not isinstance(optimizer, optax.GradientTransformation):
        return optimizer
    if getattr(optimizer.update, "__qualname__", "") == "lookahead.<locals>.update_fn":
        return _with_slow_params(optimizer)
    if getattr(optimizer.update, "__qualname__", "") == "sam.<locals>.opaque_update_fn":
        return _with_gradients(optimizer)
    if isinstance(optimizer, optax.GradientTransformationExtraArgs) and not _takes_value(optimizer.update):
        return optax.GradientTransformation(optimizer.init, optimizer.update)
    return optimizer


def _with_slow_params(lookahead: optax.GradientTransformation) -> optax.GradientTransformation:
    def init(params: Any) -> Lookahead:
        return Lookahead(lookahead.init(optax.LookaheadParams.init_synced(params)), jax.tree.map(jnp.copy, params))

    def update(gradients: Any, state: Lookahead, params: Any = None) -> tuple[Any, Lookahead]:
        both = optax.LookaheadParams(fast=params, slow=state.slow)
        updates, inner = lookahead.update(gradients, state.inner, both)
        return updates.fast, Lookahead(inner, optax.apply_updates(state.slow, updates.slow))

    return optax.GradientTransformation(init, update)


def _with_gradients(sam: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    def update(gradients: Any, state: Any, params: Any = None, *, grad_fn: Any = None, **_: Any) -> tuple[Any, Any]:
        updates: tuple[Any, Any] = sam.update(gradients, state, params, grad_fn=grad_fn)
        return updates

    return optax.GradientTransformationExtraArgs(sam.init, update)


def _takes_value(update: Any) -> bool:
    parameters = inspect.signature(update).parameters
    return "value" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


_STEP = "The step of resfit gives an optimizer the gradients of the batch, the parameters and value=loss. "
_REMEDIES = {
    # part of the message of optax -> explanation
    "value_fn": "The line search also needs the loss as a function of the parameters. Pass an optimizer without a line "
    "search, such as optax.lbfgs(0.1, linesearch=None).",
    "obj_fn": "This optimizer also needs the loss as a function of the parameters, for second derivatives. Pass one "
    "that reads gradients alone, such as optax.adamw or optax.contrib.muon.",
    "grad_fn": "The optimizer around sam does not pass on the function that returns gradients. Put that optimizer "
    "inside, as in resfit.optimizers.sam(optimizer).",
    "to have a batch dimension": "Differential privacy needs the gradients of each example. Expected an optimizer that "
    "reads the gradients of the batch.",
    "has no attribute 'fast'": "optax.lookahead has to be outermost, because it needs a second copy of the parameters: "
    "optax.lookahead(optax.chain(...), sync_period=5, slow_step_size=0.5).",
    "<class 'NoneType'>": "Parameters lack a mask, a label or dimension numbers. Pass a function of all parameters; in "
    "place of scale_by_muon, pass optax.contrib.muon.",
    "unexpected keyword argument 'value'": "A transformation inside the optimizer does not accept value. Wrap it, as "
    "in optax.GradientTransformation(inner.init, inner.update).",
}


@contextlib.contextmanager
def explained(params: Any) -> Iterator[None]:
    """Turn errors of optax about the form of an optimizer or of its masks into `CompileError`.

    Args:
      params: the parameters as the optimizer sees them.
    """
    try:
        yield
    except ResfitError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        text = str(error)
        for part, remedy in _REMEDIES.items():
            if part in text:
                raise CompileError(f"The optimizer raised {type(error).__name__}: {text}. {_STEP}{remedy}") from error
        if any(word in text for word in ("pytree", "tree structure", "Expected dict", "Dict key mismatch")):
            name = jax.tree_util.keystr(jax.tree_util.tree_leaves_with_path(params)[0][0])
            raise CompileError(
                "The optimizer got a mask or labels of another structure than the parameters. Parameters are nested "
                f"dicts with text as keys, such as params{name}. Pass a function of them, such as "
                "mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params)."
            ) from error
        raise
