"""The blocks of the second ResNet paper: a norm and a ReLU before each convolution, nothing after the addition.

He et al. 2016, arXiv:1603.05027. An identity shortcut passes x on unchanged; a projection has the same input as the
branch. A network of such blocks ends in a norm and a ReLU.
"""

from typing import Any

import jax
from flax import nnx

from resfit.nets.blocks import BottleneckBlock, inner_width
from resfit.nets.layers import Layers, NormRelu
from resfit.nets.registry import BLOCKS
from resfit.nets.residual import Residual


def _identity(x: jax.Array) -> jax.Array:
    return x


class _PreActivated(Residual):
    """A block with norm and ReLU before the branch, nothing after the addition, and projections without a norm."""

    def __init__(
        self,
        branch: nnx.Module,
        *,
        in_channels: int,
        layers: Layers,
        rngs: nnx.Rngs,
        shortcut: Any = "conv",
        **rest: Any,
    ) -> None:
        before = NormRelu(in_channels, layers=layers, rngs=rngs)
        super().__init__(
            branch, shortcut, _identity, before=before, in_channels=in_channels, layers=layers, rngs=rngs, **rest
        )


class PreActBasicBranch(nnx.Module):
    """3x3 convolution, norm, ReLU, dropout, 3x3 convolution: the branch of `PreActBasicBlock`."""

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        strides: int,
        dilation: int,
        first_dilation: int,
        dropout: float,
        zero_init_last: bool,
        layers: Layers,
        rngs: nnx.Rngs,
    ) -> None:
        self.conv1 = layers.conv(in_channels, width, kernel=3, strides=strides, dilation=first_dilation, rngs=rngs)
        self.norm2 = layers.norm(width, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, deterministic=True, rngs=rngs) if dropout else None
        self.conv2 = layers.conv(width, width, kernel=3, dilation=dilation, zero=zero_init_last, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool | None = None) -> jax.Array:
        """Map (batch, height, width, in_channels) to (batch, ceil(height / strides), ceil(...), width)."""
        evaluating = None if train is None else not train
        x = nnx.relu(self.norm2(self.conv1(x), evaluating))
        if self.dropout is not None:
            x = self.dropout(x, deterministic=evaluating)
        return self.conv2(x)


class PreActBasicBlock(_PreActivated):
    """The pre-activated basic block, and with `dropout` the block of wide ResNets (arXiv:1605.07146).

    Args:
        in_channels: channels of the input.
        width: channels of both convolutions and of the output.
        strides: step of the first convolution in pixels (default 1).
        dilation: distance between the taps of the 3x3 convolutions in pixels (default 1).
        first_dilation: dilation of the first convolution, which follows the previous stage (default: `dilation`).
        dropout: probability of dropout between the convolutions (default 0).
        zero_init_last: start with zeros in the last convolution, so that a new block returns its shortcut (default
            True).
        layers: dtypes and kind of norm (default float32).
        rngs: keys for the initial values.
        **residual: `shortcut`, `squeeze` and `drop_path`, as in `Residual`; the shortcut is `"conv"` by default.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> block = PreActBasicBlock(4, 8, strides=2, rngs=nnx.Rngs(0))
        >>> block(jnp.ones((1, 7, 7, 4)), train=False).shape
        (1, 4, 4, 8)
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        strides: int = 1,
        dilation: int = 1,
        first_dilation: int | None = None,
        dropout: float = 0.0,
        zero_init_last: bool = True,
        layers: Layers | None = None,
        rngs: nnx.Rngs,
        **residual: Any,
    ) -> None:
        layers = layers or Layers()
        branch = PreActBasicBranch(
            in_channels,
            width,
            strides=strides,
            dilation=dilation,
            first_dilation=first_dilation or dilation,
            dropout=dropout,
            zero_init_last=zero_init_last,
            layers=layers,
            rngs=rngs,
        )
        super().__init__(branch, in_channels=in_channels, dilation=dilation, layers=layers, rngs=rngs, **residual)


class PreActBottleneckBranch(nnx.Module):
    """1x1, 3x3 and 1x1 convolution, with norm and ReLU between them: the branch of `PreActBottleneckBlock`."""

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        strides: int,
        first_dilation: int,
        groups: int,
        width_per_group: int,
        zero_init_last: bool,
        layers: Layers,
        rngs: nnx.Rngs,
    ) -> None:
        inner, out_channels = inner_width(width, groups, width_per_group), width * BottleneckBlock.expansion
        self.conv1 = layers.conv(in_channels, inner, kernel=1, rngs=rngs)
        self.norm2 = layers.norm(inner, rngs=rngs)
        self.conv2 = layers.conv(
            inner, inner, kernel=3, strides=strides, dilation=first_dilation, groups=groups, rngs=rngs
        )
        self.norm3 = layers.norm(inner, rngs=rngs)
        self.conv3 = layers.conv(inner, out_channels, kernel=1, zero=zero_init_last, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool | None = None) -> jax.Array:
        """Map (batch, height, width, in_channels) to (batch, ceil(height / strides), ceil(...), 4 * width)."""
        evaluating = None if train is None else not train
        x = nnx.relu(self.norm2(self.conv1(x), evaluating))
        x = nnx.relu(self.norm3(self.conv2(x), evaluating))
        return self.conv3(x)


class PreActBottleneckBlock(_PreActivated):
    """The pre-activated bottleneck block.

    Args:
        in_channels: channels of the input.
        width: a fourth of the output channels. The 3x3 convolution has as many unless `groups` or `width_per_group`
            is set.
        strides: step of the 3x3 convolution in pixels (default 1).
        dilation: of the stage, in pixels (default 1).
        first_dilation: dilation of the 3x3 convolution after the previous stage (default: `dilation`).
        groups: as in `BottleneckBlock` (default 1).
        width_per_group: as in `BottleneckBlock` (default 64).
        zero_init_last: as in `PreActBasicBlock` (default True).
        layers: dtypes and kind of norm (default float32).
        rngs: keys for the initial values.
        **residual: as in `PreActBasicBlock`.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> block = PreActBottleneckBlock(8, 2, rngs=nnx.Rngs(0))
        >>> block(jnp.ones((1, 7, 7, 8)), train=False).shape
        (1, 7, 7, 8)
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        strides: int = 1,
        dilation: int = 1,
        first_dilation: int | None = None,
        groups: int = 1,
        width_per_group: int = 64,
        zero_init_last: bool = True,
        layers: Layers | None = None,
        rngs: nnx.Rngs,
        **residual: Any,
    ) -> None:
        layers = layers or Layers()
        branch = PreActBottleneckBranch(
            in_channels,
            width,
            strides=strides,
            first_dilation=first_dilation or dilation,
            groups=groups,
            width_per_group=width_per_group,
            zero_init_last=zero_init_last,
            layers=layers,
            rngs=rngs,
        )
        super().__init__(branch, in_channels=in_channels, dilation=dilation, layers=layers, rngs=rngs, **residual)


BLOCKS.register("preact_basic", PreActBasicBlock)
BLOCKS.register("preact_bottleneck", PreActBottleneckBlock)
