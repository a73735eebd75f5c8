"""A custom block, stem and norm, as in docs/how-to/own_block.md. They are registered while a test runs."""

import contextlib
from collections.abc import Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from resfit.nets import BLOCKS, NORMS, STEMS, ZOO, Layers, Residual, ResNetSpec, ZooRow


class InvertedBranch(nnx.Module):
    """A depthwise 5x5 convolution, norm, and two 1x1 convolutions with a GELU, four times as wide between them."""

    def __init__(
        self, in_channels: int, width: int, *, strides: int, dropout: float, layers: Layers, rngs: nnx.Rngs
    ) -> None:
        self.conv1 = layers.conv(in_channels, in_channels, kernel=5, strides=strides, groups=in_channels, rngs=rngs)
        self.norm = layers.norm(in_channels, rngs=rngs)
        # Layers of flax also work: they draw from the same keys.
        self.conv2 = nnx.Conv(in_channels, 4 * width, (1, 1), dtype=layers.dtype, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, deterministic=True, rngs=rngs) if dropout else None
        self.conv3 = nnx.Conv(4 * width, width, (1, 1), dtype=layers.dtype, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool | None = None) -> jax.Array:
        x = nnx.gelu(self.conv2(self.norm(self.conv1(x), None if train is None else not train)))
        if self.dropout is not None:
            x = self.dropout(x, deterministic=None if train is None else not train)
        return self.conv3(x)


class InvertedBlock(Residual):
    """After Liu et al. 2022, arXiv:2201.03545."""

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        strides: int = 1,
        dropout: float = 0.0,
        layers: Layers | None = None,
        rngs: nnx.Rngs,
        **residual: Any,
    ) -> None:
        layers = layers or Layers()
        branch = InvertedBranch(in_channels, width, strides=strides, dropout=dropout, layers=layers, rngs=rngs)
        super().__init__(branch, in_channels=in_channels, layers=layers, rngs=rngs, **residual)


class HalvingStem(nnx.Module):
    """A 3x3 convolution of stride 2, and a norm: one position for every 2x2 pixels."""

    strides: ClassVar[tuple[int, ...]] = (2,)
    image_size: ClassVar[int] = 64

    def __init__(self, in_channels: int, width: int, *, layers: Layers | None = None, rngs: nnx.Rngs) -> None:
        layers = layers or Layers()
        self.conv = layers.conv(in_channels, width, kernel=3, strides=2, rngs=rngs)
        self.norm = layers.norm(width, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool | None = None) -> jax.Array:
        return self.norm(self.conv(x), None if train is None else not train)


class ChannelNorm(nnx.Module):
    """A norm of each pixel over its channels."""

    def __init__(self, channels: int, *, zero_scale: bool, layers: Layers) -> None:
        self.scale = nnx.Param(jnp.full(channels, 0.0 if zero_scale else 1.0, layers.param_dtype))
        self.bias = nnx.Param(jnp.zeros(channels, layers.param_dtype))
        self.dtype = layers.dtype

    def __call__(self, x: jax.Array, evaluating: bool | None = None) -> jax.Array:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        centred = wide - wide.mean(-1, keepdims=True)
        unit = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-6)
        shape = (1,) * (x.ndim - 1) + (-1,)
        return (unit * self.scale[...].reshape(shape) + self.bias[...].reshape(shape)).astype(self.dtype)


def channel_norm(channels: int, *, zero_scale: bool, layers: Layers, rngs: nnx.Rngs) -> ChannelNorm:
    return ChannelNorm(channels, zero_scale=zero_scale, layers=layers)


def parameters(widths: tuple[int, ...], classes: int) -> int:
    """Return the number of parameters of a network with one block per stage, by arithmetic."""
    total, channels = 3 * 9 * widths[0] + 2 * widths[0], widths[0]
    for stage, width in enumerate(widths):
        total += 25 * channels + 2 * channels + channels * 4 * width + 4 * width + 4 * width * width + width
        total += (channels * width + 2 * width) * (stage > 0)
        channels = width
    return total + channels * classes + classes


SPEC = {
    "depths": (1, 1),
    "widths": (8, 16),
    "block": "inverted",
    "stem": "halving",
    "norm": "channel",
    "num_classes": 3,
}


@contextlib.contextmanager
def registered() -> Iterator[None]:
    """Register the parts and a zoo row of them inside the context."""
    BLOCKS.register("inverted", InvertedBlock)
    STEMS.register("halving", HalvingStem)
    NORMS.register("channel", channel_norm)
    spec = ResNetSpec(**SPEC)  # type: ignore[arg-type]
    depthwise = 25 * (8 * 32 * 32 + 8 * 16 * 16)
    dense = (8 * 32 + 32 * 8) * 32 * 32 + (8 * 64 + 64 * 16 + 8 * 16) * 16 * 16
    macs = 27 * 8 * 32 * 32 + depthwise + dense + 16 * 3
    ZOO.register("inverted8", ZooRow(spec, 64, parameters((8, 16), 3), macs, "ours; arXiv:2201.03545"))
    try:
        yield
    finally:
        for registry, name in ((BLOCKS, "inverted"), (STEMS, "halving"), (NORMS, "channel"), (ZOO, "inverted8")):
            del registry._parts[name]  # type: ignore[attr-defined]  # only tests remove parts
