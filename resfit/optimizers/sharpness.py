"""Sharpness-aware minimization (SAM): an update by the gradients at parameters nearby."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from resfit._utils.checks import is_number
from resfit._utils.keywords import checked
from resfit.errors import CompileError
from resfit.optimizers.adapted import adapted

_TINY = 1e-12  # as in the authors' code; no gradient then means no step instead of NaN


@checked("function arguments")
def sam(optimizer: optax.GradientTransformation, *, rho: float = 0.05) -> optax.GradientTransformationExtraArgs:
    """Return SAM (Foret et al., arXiv 2010.01412) around an optimizer, for flat minima that generalize better.

    Each step computes the gradients g of the batch, and a second time at params + rho * g / |g|. The optimizer gets the
    latter. A step therefore takes twice the time. Both passes see the same images, after augmentation, and the same
    random numbers. Loss, metrics and BatchNorm statistics are those of the first pass. It is
    `optax.contrib.sam(opaque_mode=True)`, for which `Model` supplies the gradients.

    Args:
      optimizer: any optax transformation. Its learning rate stays settable. Clipping and skipping go inside:
        `sam(clip(sgd(0.1), norm=1.0))`.
      rho: the distance to the parameters of the second pass, the 2-norm over all parameters.

    Raises:
      CompileError: if `rho` is not positive, or `optimizer` is not an optax transformation.

    Example:
      >>> from resfit import optimizers
      >>> optimizer = sam(optimizers.sgd(0.5, momentum=0.0), rho=0.1)
      >>> params = {"w": jnp.array([3.0, 4.0])}
      >>> gradients = lambda params, _: jax.tree.map(lambda w: w, params)  # of the loss w * w / 2
      >>> state = optimizer.init(params)
      >>> updates, _ = optimizer.update(gradients(params, 0), state, params, grad_fn=gradients)
      >>> updates["w"]  # -0.5 * (w + 0.1 * w / 5)
      Array([-1.53, -2.04], dtype=float32)
    """
    if not isinstance(optimizer, optax.GradientTransformation):
        raise CompileError(
            f"sam got {optimizer!r}. Expected an optax.GradientTransformation, such as resfit.optimizers.sgd(0.1)."
        )
    if not (is_number(rho) and math.isfinite(rho) and rho > 0):
        raise CompileError(f"sam got rho={rho!r}. Expected a positive number, such as 0.05.")

    def away(gradients: Any, state: optax.EmptyState, params: Any = None) -> tuple[Any, optax.EmptyState]:
        del params
        norm = jnp.sqrt(sum(jnp.vdot(g, g) for g in jax.tree.leaves(gradients)))
        # optax subtracts the steps of the inner optimizer.
        return jax.tree.map(lambda g: -float(rho) * g / (norm + _TINY), gradients), state

    inner = optax.GradientTransformation(lambda params: optax.EmptyState(), away)
    wrapped: optax.GradientTransformationExtraArgs = adapted(optax.contrib.sam(optimizer, inner, opaque_mode=True))
    return wrapped
