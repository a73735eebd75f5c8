"""Gates: a learned factor for each channel, computed from the means of the channels."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from resfit.errors import SpecError
from resfit.nets.init import ZEROS, kaiming_normal, uniform
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


class EfficientChannelAttention(nnx.Module):
    """x * sigmoid(convolution of the means over neighboring channels), without a bias (Wang et al. 2019).

    arXiv:1910.03151 (ECA-Net). The kernel has k channels, where k is the odd number at or above
    (log2(channels) + 1) / 2, at least 3.

    Args:
        channels: of the input.
        layers: dtypes (default float32).
        rngs: keys for the initial values.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> attention = EfficientChannelAttention(512, rngs=nnx.Rngs(0))
        >>> attention.conv.kernel_size, attention(jnp.ones((2, 5, 5, 512))).shape
        ((5,), (2, 5, 5, 512))
    """

    def __init__(self, channels: int, *, layers: Layers | None = None, rngs: nnx.Rngs) -> None:
        layers = layers or Layers()
        half = int((math.log2(channels) + 1) / 2)
        size = max(half if half % 2 else half + 1, 3)
        self.conv = nnx.Conv(
            1,
            1,
            kernel_size=(size,),
            padding=size // 2,
            use_bias=False,
            kernel_init=uniform(1 / math.sqrt(size)),
            dtype=jnp.dtype(layers.dtype),
            param_dtype=jnp.dtype(layers.param_dtype),
            rngs=rngs,
        )

    def __call__(self, x: jax.Array, *, train: bool | None = None) -> jax.Array:
        """Map x (batch, height, width, channels) to the same shape."""
        factors = jax.nn.sigmoid(self.conv(global_average_pool(x)[..., None])[..., 0])
        return x * factors[:, None, None, :].astype(x.dtype)


def make_gate(channels: int, squeeze: float | str, *, layers: Layers | None, rngs: nnx.Rngs) -> nnx.Module:
    """Return the gate of a block.

    Args:
        channels: of the input.
        squeeze: `"eca"` for `EfficientChannelAttention`, or the ratio of a `SqueezeExcite`.
        layers: dtypes (default float32).
        rngs: keys for the initial values.

    Raises:
        SpecError: for any other value.
    """
    check_squeeze(squeeze, "A block")
    if isinstance(squeeze, str):
        return EfficientChannelAttention(channels, layers=layers, rngs=rngs)
    return SqueezeExcite(channels, squeeze, layers=layers, rngs=rngs)


def check_squeeze(squeeze: object, receiver: str) -> None:
    """Raise SpecError if a value is neither None, nor "eca", nor a ratio."""
    ratio = isinstance(squeeze, int | float | np.floating) and 0 < squeeze <= 1
    if squeeze is not None and squeeze != "eca" and not ratio:
        raise SpecError(
            f"{receiver} received squeeze={squeeze!r}. Expected a ratio between 0 and 1, 'eca' for efficient channel "
            "attention, or None."
        )
