"""The two blocks of the ResNet papers. Each writes its branch; `Residual` does the rest."""

from typing import Literal

import jax
from flax import nnx

from resfit.nets.layers import Layers
from resfit.nets.residual import Residual

StrideOn = Literal["3x3", "1x1"]


class BasicBranch(nnx.Module):
    """3x3 convolution, norm, ReLU, 3x3 convolution, norm: the branch of `BasicBlock`, whose arguments it shares."""

    def __init__(
        self, in_channels: int, width: int, *, strides: int, zero_init_last: bool, layers: Layers, rngs: nnx.Rngs
    ) -> None:
        self.conv1 = layers.conv(in_channels, width, kernel=3, strides=strides, rngs=rngs)
        self.norm1 = layers.norm(width, rngs=rngs)
        self.conv2 = layers.conv(width, width, kernel=3, rngs=rngs)
        self.norm2 = layers.norm(width, zero_scale=zero_init_last, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool | None = None) -> jax.Array:
        """From (batch, height, width, in_channels) to (batch, ceil(height / strides), ceil(...), width)."""
        evaluating = None if train is None else not train
        x = nnx.relu(self.norm1(self.conv1(x), evaluating))
        return self.norm2(self.conv2(x), evaluating)


class BasicBlock(Residual):
    """The block of ResNet-18 and 34 and of the CIFAR nets (He et al. 2015, arXiv:1512.03385, figure 5 left).

    Args:
        in_channels: channels of the input.
        width: channels of both convolutions and of the output.
        strides: step of the first convolution in pixels (default 1).
        shortcut: as in `Residual` (default `"auto"`).
        zero_init_last: start the last norm's scale at zero, so that a new block passes its shortcut on unchanged
            (Goyal et al. 2017, arXiv:1706.02677, section 5.1; timm's default, and ours).
        layers: dtypes and kind of norm (default float32).
        rngs: where the weights' first values come from.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> block = BasicBlock(4, 8, strides=2, rngs=nnx.Rngs(0))
        >>> block(jnp.ones((1, 7, 7, 4)), train=False).shape
        (1, 4, 4, 8)
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        strides: int = 1,
        shortcut: str | nnx.Module = "auto",
        zero_init_last: bool = True,
        layers: Layers | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        layers = layers or Layers()
        branch = BasicBranch(
            in_channels, width, strides=strides, zero_init_last=zero_init_last, layers=layers, rngs=rngs
        )
        super().__init__(branch, shortcut, in_channels=in_channels, layers=layers, rngs=rngs)


class BottleneckBranch(nnx.Module):
    """1x1, 3x3 and 1x1 convolution, each with a norm: the branch of `BottleneckBlock`, whose arguments it shares."""

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        strides: int,
        stride_on: StrideOn,
        zero_init_last: bool,
        layers: Layers,
        rngs: nnx.Rngs,
    ) -> None:
        strides1, strides2 = (strides, 1) if stride_on == "1x1" else (1, strides)
        out_channels = width * BottleneckBlock.expansion
        self.conv1 = layers.conv(in_channels, width, kernel=1, strides=strides1, rngs=rngs)
        self.norm1 = layers.norm(width, rngs=rngs)
        self.conv2 = layers.conv(width, width, kernel=3, strides=strides2, rngs=rngs)
        self.norm2 = layers.norm(width, rngs=rngs)
        self.conv3 = layers.conv(width, out_channels, kernel=1, rngs=rngs)
        self.norm3 = layers.norm(out_channels, zero_scale=zero_init_last, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool | None = None) -> jax.Array:
        """From (batch, height, width, in_channels) to (batch, ceil(height / strides), ceil(...), 4 * width)."""
        evaluating = None if train is None else not train
        x = nnx.relu(self.norm1(self.conv1(x), evaluating))
        x = nnx.relu(self.norm2(self.conv2(x), evaluating))
        return self.norm3(self.conv3(x), evaluating)


class BottleneckBlock(Residual):
    """The block of ResNet-50 and deeper (He et al. 2015, arXiv:1512.03385, figure 5 right).

    Args:
        in_channels: channels of the input.
        width: channels of the 3x3 convolution; the output has four times as many.
        strides: step of the block in pixels (default 1).
        stride_on: the convolution that steps: `"3x3"` (default) is the "v1.5" of torchvision and timm, `"1x1"` the
            paper's own "v1", which drops three pixels of four before it looks at them.
        shortcut: as in `Residual` (default `"auto"`).
        zero_init_last: as in `BasicBlock` (default True).
        layers: dtypes and kind of norm (default float32).
        rngs: where the weights' first values come from.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> block = BottleneckBlock(8, 2, rngs=nnx.Rngs(0))
        >>> block(jnp.ones((1, 7, 7, 8)), train=False).shape
        (1, 7, 7, 8)
    """

    expansion = 4  # output channels over width

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        strides: int = 1,
        stride_on: StrideOn = "3x3",
        shortcut: str | nnx.Module = "auto",
        zero_init_last: bool = True,
        layers: Layers | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        layers = layers or Layers()
        branch = BottleneckBranch(
            in_channels,
            width,
            strides=strides,
            stride_on=stride_on,
            zero_init_last=zero_init_last,
            layers=layers,
            rngs=rngs,
        )
        super().__init__(branch, shortcut, in_channels=in_channels, layers=layers, rngs=rngs)
