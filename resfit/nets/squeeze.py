"""Squeeze and excitation: a learned factor for each channel, computed from the means of all channels."""

import jax
import jax.numpy as jnp
from flax import nnx

from resfit.nets.init import ZEROS, kaiming_normal
from resfit.nets.layers import Layers
from resfit.nets.pool import global_average_pool


class SqueezeExcite(nnx.Module):
    """x * sigmoid(fc2(relu(fc1(mean of x)))), one factor for each image and channel (Hu et al. 2017, arXiv:1709.01507).

    Args:
        channels: of the input.
        ratio: width between the two layers divided by `channels`; the width is rounded to a multiple of 8, as in timm.
        layers: dtypes (default float32).
        rngs: keys for the initial values.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> squeeze = SqueezeExcite(32, 1 / 16, rngs=nnx.Rngs(0))
        >>> squeeze.fc1.out_features, squeeze(jnp.ones((2, 5, 5, 32))).shape
        (8, (2, 5, 5, 32))
    """

    def __init__(self, channels: int, ratio: float, *, layers: Layers | None = None, rngs: nnx.Rngs) -> None:
        layers = layers or Layers()
        inner = max(8, int(channels * ratio + 4) // 8 * 8)

        def dense(n_in: int, n_out: int) -> nnx.Linear:
            return nnx.Linear(
                n_in,
                n_out,
                kernel_init=kaiming_normal,
                bias_init=ZEROS,
                dtype=jnp.dtype(layers.dtype),
                param_dtype=jnp.dtype(layers.param_dtype),
                rngs=rngs,
            )

        self.fc1, self.fc2 = dense(channels, inner), dense(inner, channels)

    def __call__(self, x: jax.Array, *, train: bool | None = None) -> jax.Array:
        """Map x (batch, height, width, channels) to the same shape."""
        factors = jax.nn.sigmoid(self.fc2(nnx.relu(self.fc1(global_average_pool(x)))))
        return x * factors[:, None, None, :].astype(x.dtype)
