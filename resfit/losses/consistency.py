"""The consistency of the predictions for several versions of one image."""

import jax
import jax.numpy as jnp

from resfit._utils.keywords import checked
from resfit.errors import LossError
from resfit.losses.labels import described


@checked("loss arguments")
def jensen_shannon(logits: jax.Array, copies: int = 3) -> jax.Array:
    """Return the Jensen-Shannon divergence of the predictions for the copies of each example, (examples,).

    It is the mean Kullback-Leibler divergence of the probabilities of each copy from the mean of all copies: 0 for
    equal predictions, and log(copies) at most. `augment.aug_mix(consistency=...)` adds it to the loss.

    Source: Hendrycks et al. (arXiv 1912.02781), section 3.

    Args:
      logits: (examples * copies, ..., classes); the copies of an example follow one another. A last axis of 1, or none,
        is a single binary logit. Over other axes, such as those of pixels, the result is the mean.
      copies: the number of copies of each example.

    Raises:
      LossError: if the logits are not one array of rows in groups of `copies`.

    Example:
      >>> jensen_shannon(jnp.array([[5.0, 0.0], [5.0, 0.0], [1.0, 2.0], [1.0, 2.0]]), copies=2).round(4)
      Array([0., 0.], dtype=float32)
    """
    if getattr(logits, "ndim", 0) < 1 or len(logits) % copies:
        raise LossError(
            f"jensen_shannon got {described(logits)} for {copies} copies of each example. Expected one array of "
            "logits, (examples * copies, classes)."
        )
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    logits = logits[:, None] if logits.ndim == 1 else logits
    if logits.shape[-1] == 1:
        logits = jnp.concatenate([jnp.zeros_like(logits), logits], axis=-1)
    of_copies = jax.nn.log_softmax(logits, axis=-1).reshape(-1, copies, *logits.shape[1:])
    of_mean = jax.nn.logsumexp(of_copies, axis=1, keepdims=True) - jnp.log(jnp.float32(copies))
    divergence = (jnp.exp(of_copies) * (of_copies - of_mean)).sum(axis=-1)
    return divergence.reshape(len(divergence), -1).mean(axis=1)
