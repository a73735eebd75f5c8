"""The mask of parameters with weight decay."""

from typing import Any

import jax
import jax.numpy as jnp

from resfit._utils.keywords import checked


@checked("function arguments")
def no_decay_on_norms_and_biases(params: Any) -> Any:
    """Return the usual mask of weight decay: True for kernels, False for biases and norms (rank 0 and 1).

    Source: He et al., Bag of Tricks (arXiv 1812.01187), "no bias decay".

    Example:
      >>> no_decay_on_norms_and_biases({"kernel": jnp.ones((3, 3)), "bias": jnp.ones(3)})
      {'bias': False, 'kernel': True}
    """
    return jax.tree.map(lambda p: jnp.ndim(p) > 1, params)
