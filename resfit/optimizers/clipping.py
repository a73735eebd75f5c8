"""Gradient clipping for any optimizer."""

import math

import optax

from resfit._utils.keywords import checked
from resfit.errors import CompileError
from resfit.optimizers.masks import no_decay_on_norms_and_biases


@checked("function arguments")
def clip(
    optimizer: optax.GradientTransformation, *, norm: float | None = None, adaptive: float | None = None
) -> optax.GradientTransformation:
    """Return an optimizer that receives clipped gradients. Its learning rate stays settable.

    Args:
      optimizer: any optax transformation.
      norm: the largest global norm of the gradients. Larger gradients are scaled down and keep their direction (Pascanu
        et al., arXiv 1211.5063). Keras calls it global_clipnorm.
      adaptive: the largest norm of an output unit's gradient, as a share of the norm of its weights (Brock et al.,
        NFNets, arXiv 2102.06171; 0.01 there). It does not apply to norms and biases. If both are given, it applies
        before `norm`.

    Raises:
      CompileError: if neither argument is given, or if one is not positive.

    Example:
      >>> from resfit import optimizers
      >>> optimizer = clip(optimizers.sgd(0.1, momentum=0.0), norm=1.0)
      >>> params = {"kernel": jnp.zeros((1, 2))}
      >>> updates, _ = optimizer.update({"kernel": jnp.array([[30.0, 40.0]])}, optimizer.init(params), params)
      >>> updates["kernel"]
      Array([[-0.06, -0.08]], dtype=float32)
    """
    for name, value in (("norm", norm), ("adaptive", adaptive)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise CompileError(f"clip got {name}={value!r}. Expected a positive number, or None.")
    if not isinstance(optimizer, optax.GradientTransformation):
        raise CompileError(
            f"clip got {optimizer!r}. Expected an optax.GradientTransformation, such as resfit.optimizers.sgd(0.1)."
        )
    parts = []
    if adaptive is not None:
        parts.append(optax.masked(optax.adaptive_grad_clip(adaptive), no_decay_on_norms_and_biases))
    if norm is not None:
        parts.append(optax.clip_by_global_norm(norm))
    if not parts:
        raise CompileError("clip got neither norm nor adaptive. Expected at least one, such as norm=1.0.")
    clipped: optax.GradientTransformation = optax.chain(*parts, optimizer)
    return clipped
