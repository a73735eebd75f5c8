"""What an image goes through before the first block."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import jax
from flax import nnx

from resfit.nets.layers import Layers
from resfit.nets.pool import max_pool


class ImageNetStem(nnx.Module):
    """7x7 convolution of stride 2, norm, ReLU, 3x3 max pool of stride 2: for images of 64 pixels and more.

    He et al. 2015 (arXiv:1512.03385), table 1. It leaves one position for every 4x4 pixels.

    Args:
        in_channels: channels of the image.
        width: channels of the output.
        layers: dtypes and kind of norm (default float32).
        rngs: where the weights' first values come from.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> ImageNetStem(3, 4, rngs=nnx.Rngs(0))(jnp.ones((1, 64, 64, 3))).shape
        (1, 16, 16, 4)
    """

    strides: ClassVar[tuple[int, ...]] = (2, 2)
    image_size: ClassVar[int] = 224  # pixels a side that the stem was made for

    def __init__(self, in_channels: int, width: int, *, layers: Layers | None = None, rngs: nnx.Rngs) -> None:
        layers = layers or Layers()
        self.conv = layers.conv(in_channels, width, kernel=7, strides=2, rngs=rngs)
        self.norm = layers.norm(width, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool | None = None) -> jax.Array:
        """From (batch, height, width, in_channels) to (batch, ceil(height / 4), ceil(width / 4), width)."""
        return max_pool(nnx.relu(self.norm(self.conv(x), None if train is None else not train)))


class CifarStem(nnx.Module):
    """3x3 convolution of stride 1, norm, ReLU: for images of 32 pixels and thereabouts, every one of them kept.

    He et al. 2015 (arXiv:1512.03385), section 4.2.

    Args:
        in_channels: channels of the image.
        width: channels of the output.
        layers: dtypes and kind of norm (default float32).
        rngs: where the weights' first values come from.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> CifarStem(3, 4, rngs=nnx.Rngs(0))(jnp.ones((1, 32, 32, 3))).shape
        (1, 32, 32, 4)
    """

    strides: ClassVar[tuple[int, ...]] = ()
    image_size: ClassVar[int] = 32  # pixels a side that the stem was made for

    def __init__(self, in_channels: int, width: int, *, layers: Layers | None = None, rngs: nnx.Rngs) -> None:
        layers = layers or Layers()
        self.conv = layers.conv(in_channels, width, kernel=3, rngs=rngs)
        self.norm = layers.norm(width, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool | None = None) -> jax.Array:
        """From (batch, height, width, in_channels) to (batch, height, width, width)."""
        return nnx.relu(self.norm(self.conv(x), None if train is None else not train))


STEMS: Mapping[str, type[ImageNetStem] | type[CifarStem]] = MappingProxyType(
    {"imagenet": ImageNetStem, "cifar": CifarStem}
)
