"""Stems: the layers before the first block."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from resfit.errors import SpecError
from resfit.nets.init import kaiming_normal
from resfit.nets.layers import Layers
from resfit.nets.pool import antialias_kind, average_pool, blur_pool, max_pool
from resfit.nets.registry import STEMS


class ImageNetStem(nnx.Module):
    """7x7 convolution of stride 2, norm, ReLU, 3x3 max pool of stride 2: for images of at least 64 pixels.

    He et al. 2015 (arXiv:1512.03385), table 1. The output has one position for 4x4 pixels.

    Args:
        in_channels: channels of the image.
        width: channels of the output.
        antialias: `"avg"` averages 2x2 pixels instead of taking the maximum, and drops the last row or column of an
            odd size, as timm does; `"blur"` takes the maximum with a stride of 1 and then steps by `blur_pool`. None
            (default) is the plain max pool.
        layers: dtypes and kind of norm (default float32).
        rngs: keys for the initial values.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> ImageNetStem(3, 4, rngs=nnx.Rngs(0))(jnp.ones((1, 64, 64, 3))).shape
        (1, 16, 16, 4)
    """

    strides: ClassVar[tuple[int, ...]] = (2, 2)
    image_size: ClassVar[int] = 224  # side in pixels

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        antialias: str | None = None,
        layers: Layers | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        layers = layers or Layers()
        self.conv = layers.conv(in_channels, width, kernel=7, strides=2, rngs=rngs)
        self.norm = layers.norm(width, rngs=rngs)
        self.antialias = antialias_kind(antialias)

    def __call__(self, x: jax.Array, *, train: bool | None = None) -> jax.Array:
        """Map (batch, height, width, in_channels) to (batch, ceil(height / 4), ceil(width / 4), width)."""
        x = nnx.relu(self.norm(self.conv(x), None if train is None else not train))
        return _pooled(x, self.antialias)


def _pooled(x: jax.Array, antialias: str | None) -> jax.Array:
    """Return every second pixel of the features of a stem by the given kind of pooling, as in timm."""
    if antialias == "avg":
        height, width = (size // 2 * 2 for size in x.shape[1:3])
        return average_pool(x[:, :height, :width])
    return blur_pool(max_pool(x, strides=1)) if antialias == "blur" else max_pool(x)


class CaffeStem(nnx.Module):
    """`ImageNetStem` with Caffe's max pool, which pads only at the right and lower edge.

    The first windows start at the first pixel, so the pool is one pixel off that of `ImageNetStem`. The networks that
    Hu et al. released for Caffe have it (arXiv:1709.01507), and so have timm's legacy_seresnet50 and its siblings.

    Args:
        in_channels: channels of the image.
        width: channels of the output.
        layers: dtypes and kind of norm (default float32).
        rngs: keys for the initial values.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> CaffeStem(3, 4, rngs=nnx.Rngs(0))(jnp.ones((1, 64, 64, 3))).shape
        (1, 16, 16, 4)
    """

    strides: ClassVar[tuple[int, ...]] = (2, 2)
    image_size: ClassVar[int] = 224

    def __init__(self, in_channels: int, width: int, *, layers: Layers | None = None, rngs: nnx.Rngs) -> None:
        layers = layers or Layers()
        self.conv = layers.conv(in_channels, width, kernel=7, strides=2, rngs=rngs)
        self.norm = layers.norm(width, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool | None = None) -> jax.Array:
        """Map (batch, height, width, in_channels) to (batch, ceil(height / 2) // 2, ceil(width / 2) // 2, width)."""
        x = nnx.relu(self.norm(self.conv(x), None if train is None else not train))
        return max_pool(x, padding=(0, 1))


def _of_blocks(key: Any, shape: tuple[int, ...], dtype: Any, *_: Any) -> jax.Array:
    """Return a 7x7 kernel with initial values, as a kernel over blocks of 2x2 pixels."""
    channels, width = shape[2:]
    pixels = kaiming_normal(key, (7, 7, channels // 4, width), dtype)
    padded = jnp.pad(pixels, ((1, 0), (1, 0), (0, 0), (0, 0)))
    return rearrange(padded, "(h i) (w j) c o -> h w (i j c) o", i=2, j=2)


class SpaceToDepthStem(nnx.Module):
    """`ImageNetStem` as a convolution over blocks of 2x2 pixels with four times as many channels: faster on TPUs.

    A 7x7 convolution of stride 2 equals a 4x4 convolution of stride 1 on such blocks, after a row and a column of zeros
    is added to the kernel. `resfit.weights` converts kernels both ways, exactly.

    Args:
        in_channels: channels of the image.
        width: channels of the output.
        layers: dtypes and kind of norm (default float32).
        rngs: keys for the initial values.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> SpaceToDepthStem(3, 4, rngs=nnx.Rngs(0))(jnp.ones((1, 64, 64, 3))).shape
        (1, 16, 16, 4)
    """

    strides: ClassVar[tuple[int, ...]] = (2, 2)
    image_size: ClassVar[int] = 224

    def __init__(self, in_channels: int, width: int, *, layers: Layers | None = None, rngs: nnx.Rngs) -> None:
        layers = layers or Layers()
        if layers.weight_standardization:
            raise SpecError(
                "SpaceToDepthStem received weight_standardization=True. Expected False: its kernel has a row and a "
                "column of zeros, which would change the standardized values. Use stem='imagenet'."
            )
        self.conv_of_blocks = nnx.Conv(
            4 * in_channels,
            width,
            kernel_size=(4, 4),
            padding=((2, 1), (2, 1)),
            use_bias=False,
            kernel_init=_of_blocks,
            dtype=jnp.dtype(layers.dtype),
            param_dtype=jnp.dtype(layers.param_dtype),
            rngs=rngs,
        )
        self.norm = layers.norm(width, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool | None = None) -> jax.Array:
        """Map (batch, height, width, in_channels) to (batch, ceil(height / 4), ceil(width / 4), width)."""
        even = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
        blocks = rearrange(even, "n (h i) (w j) c -> n h w (i j c)", i=2, j=2)
        return max_pool(nnx.relu(self.norm(self.conv_of_blocks(blocks), None if train is None else not train)))


class DeepConvStem(nnx.Module):
    """`DeepStem` without the last norm and ReLU, for blocks that start with norm and ReLU, as in timm's ResNetV2-D.

    Args:
        in_channels: channels of the image.
        width: channels of the output. The first two convolutions have half as many.
        layers: dtypes and kind of norm (default float32).
        rngs: keys for the initial values.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> DeepConvStem(3, 4, rngs=nnx.Rngs(0))(jnp.ones((1, 64, 64, 3))).shape
        (1, 16, 16, 4)
    """

    strides: ClassVar[tuple[int, ...]] = (2, 2)
    image_size: ClassVar[int] = 224
    first_width: ClassVar[float] = 0.5  # channels of the first convolution / channels of the stem

    def __init__(self, in_channels: int, width: int, *, layers: Layers | None = None, rngs: nnx.Rngs) -> None:
        layers = layers or Layers()
        first, second = int(width * self.first_width), width // 2
        self.conv1 = layers.conv(in_channels, first, kernel=3, strides=2, rngs=rngs)
        self.norm1 = layers.norm(first, rngs=rngs)
        self.conv2 = layers.conv(first, second, kernel=3, rngs=rngs)
        self.norm2 = layers.norm(second, rngs=rngs)
        self.conv3 = layers.conv(second, width, kernel=3, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool | None = None) -> jax.Array:
        """Map (batch, height, width, in_channels) to (batch, ceil(height / 4), ceil(width / 4), width)."""
        return max_pool(self.convolved(x, train))

    def convolved(self, x: jax.Array, train: bool | None) -> jax.Array:
        """Return the input of the pooling, (batch, ceil(height / 2), ceil(width / 2), width)."""
        evaluating = None if train is None else not train
        x = nnx.relu(self.norm1(self.conv1(x), evaluating))
        return self.conv3(nnx.relu(self.norm2(self.conv2(x), evaluating)))


class DeepTieredConvStem(DeepConvStem):
    """`DeepConvStem` with a narrower first convolution: 24, 32 and 64 channels, as in timm's ResNetV2-T."""

    first_width: ClassVar[float] = 0.375


class DeepStem(DeepConvStem):
    """Three 3x3 convolutions with norm and ReLU, the first of stride 2, and a max pool: the stem of ResNet-D.

    He et al. 2018 (arXiv:1812.01187), figure 2b.

    Args:
        in_channels: channels of the image.
        width: channels of the output. The first two convolutions have half as many.
        antialias: `"avg"` averages 2x2 pixels instead of taking the maximum, and drops the last row or column of an
            odd size, as timm does; `"blur"` takes the maximum with a stride of 1 and then steps by `blur_pool`. None
            (default) is the plain max pool.
        layers: dtypes and kind of norm (default float32).
        rngs: keys for the initial values.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> DeepStem(3, 4, rngs=nnx.Rngs(0))(jnp.ones((1, 64, 64, 3))).shape
        (1, 16, 16, 4)
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        antialias: str | None = None,
        layers: Layers | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        layers = layers or Layers()
        super().__init__(in_channels, width, layers=layers, rngs=rngs)
        self.norm = layers.norm(width, rngs=rngs)
        self.antialias = antialias_kind(antialias)

    def __call__(self, x: jax.Array, *, train: bool | None = None) -> jax.Array:
        """Map (batch, height, width, in_channels) to (batch, ceil(height / 4), ceil(width / 4), width)."""
        x = self.convolved(x, train)
        return _pooled(x, self.antialias)

    def convolved(self, x: jax.Array, train: bool | None) -> jax.Array:
        """Return the input of the pooling, (batch, ceil(height / 2), ceil(width / 2), width)."""
        return nnx.relu(self.norm(super().convolved(x, train), None if train is None else not train))


class DeepTieredStem(DeepStem):
    """`DeepStem` with a narrower first convolution: 24, 32 and 64 channels, as in timm's ResNet-T."""

    first_width: ClassVar[float] = 0.375


class ResNetRSStem(DeepStem):
    """`DeepStem` with a 3x3 convolution of stride 2, norm and ReLU instead of the max pool.

    Bello et al. 2021 (arXiv:2103.07579), ResNet-RS. Arguments as for `DeepStem`, without `antialias`.
    """

    def __init__(self, in_channels: int, width: int, *, layers: Layers | None = None, rngs: nnx.Rngs) -> None:
        layers = layers or Layers()
        super().__init__(in_channels, width, layers=layers, rngs=rngs)
        self.conv4 = layers.conv(width, width, kernel=3, strides=2, rngs=rngs)
        self.norm4 = layers.norm(width, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool | None = None) -> jax.Array:
        """Map (batch, height, width, in_channels) to (batch, ceil(height / 4), ceil(width / 4), width)."""
        x = self.conv4(self.convolved(x, train))
        return nnx.relu(self.norm4(x, None if train is None else not train))


class CifarStem(nnx.Module):
    """3x3 convolution of stride 1, norm, ReLU: for images of about 32 pixels.

    He et al. 2015 (arXiv:1512.03385), section 4.2.

    Args:
        in_channels: channels of the image.
        width: channels of the output.
        layers: dtypes and kind of norm (default float32).
        rngs: keys for the initial values.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> CifarStem(3, 4, rngs=nnx.Rngs(0))(jnp.ones((1, 32, 32, 3))).shape
        (1, 32, 32, 4)
    """

    strides: ClassVar[tuple[int, ...]] = ()
    image_size: ClassVar[int] = 32  # side in pixels

    def __init__(self, in_channels: int, width: int, *, layers: Layers | None = None, rngs: nnx.Rngs) -> None:
        layers = layers or Layers()
        self.conv = layers.conv(in_channels, width, kernel=3, rngs=rngs)
        self.norm = layers.norm(width, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool | None = None) -> jax.Array:
        """Map (batch, height, width, in_channels) to (batch, height, width, width)."""
        return nnx.relu(self.norm(self.conv(x), None if train is None else not train))


class CifarPoolStem(CifarStem):
    """`CifarStem` and the max pool of `ImageNetStem`: the stem of torchvision's networks with a 3x3 kernel."""

    strides: ClassVar[tuple[int, ...]] = (2,)

    def __call__(self, x: jax.Array, *, train: bool | None = None) -> jax.Array:
        """Map (batch, height, width, in_channels) to (batch, ceil(height / 2), ceil(width / 2), width)."""
        return max_pool(super().__call__(x, train=train))


class ImageNetConvStem(nnx.Module):
    """7x7 convolution of stride 2 and max pool: `ImageNetStem` for blocks that start with norm and ReLU."""

    strides: ClassVar[tuple[int, ...]] = (2, 2)
    image_size: ClassVar[int] = 224

    def __init__(self, in_channels: int, width: int, *, layers: Layers | None = None, rngs: nnx.Rngs) -> None:
        self.conv = (layers or Layers()).conv(in_channels, width, kernel=7, strides=2, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool | None = None) -> jax.Array:
        """Map (batch, height, width, in_channels) to (batch, ceil(height / 4), ceil(width / 4), width)."""
        return max_pool(self.conv(x))


class BiTStem(ImageNetConvStem):
    """`ImageNetConvStem` whose max pool is padded with zeros, as in Big Transfer (Kolesnikov et al. 2019).

    arXiv:1912.11370. The zeros are larger than negative features at the edge. Arguments as for `ImageNetConvStem`.
    """

    def __call__(self, x: jax.Array, *, train: bool | None = None) -> jax.Array:
        """Map (batch, height, width, in_channels) to (batch, ceil(height / 4), ceil(width / 4), width)."""
        return max_pool(jnp.pad(self.conv(x), ((0, 0), (1, 1), (1, 1), (0, 0))), padding=(0, 0))


class CifarConvStem(nnx.Module):
    """3x3 convolution of stride 1: `CifarStem` for blocks that start with norm and ReLU."""

    strides: ClassVar[tuple[int, ...]] = ()
    image_size: ClassVar[int] = 32

    def __init__(self, in_channels: int, width: int, *, layers: Layers | None = None, rngs: nnx.Rngs) -> None:
        self.conv = (layers or Layers()).conv(in_channels, width, kernel=3, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool | None = None) -> jax.Array:
        """Map (batch, height, width, in_channels) to (batch, height, width, width)."""
        return self.conv(x)


STEMS.register("imagenet", ImageNetStem)
STEMS.register("cifar", CifarStem)
STEMS.register("caffe", CaffeStem)
STEMS.register("cifar_pool", CifarPoolStem)
STEMS.register("deep", DeepStem)
STEMS.register("deep_tiered", DeepTieredStem)
STEMS.register("rs", ResNetRSStem)
STEMS.register("space_to_depth", SpaceToDepthStem)
STEMS.register("imagenet_conv", ImageNetConvStem)
STEMS.register("deep_conv", DeepConvStem)
STEMS.register("deep_tiered_conv", DeepTieredConvStem)
STEMS.register("bit", BiTStem)
STEMS.register("cifar_conv", CifarConvStem)
