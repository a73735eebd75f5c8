"""The blocks of the ResNet papers. Each block defines its branch; `Residual` adds the shortcut."""

from functools import partial
from typing import Any, Literal

import jax
from flax import nnx

from resfit.errors import SpecError
from resfit.nets.layers import Layers
from resfit.nets.pool import ANTIALIAS, antialias_kind
from resfit.nets.registry import BLOCKS
from resfit.nets.residual import Residual

StrideOn = Literal["3x3", "1x1"]


class _AntiAlias(nnx.Module):
    """The pooling that steps over pixels in an anti-aliased block; the identity if `kind` is None."""

    def __init__(self, kind: str | None, strides: int) -> None:
        self.kind = kind
        self.strides = strides

    def __call__(self, x: jax.Array) -> jax.Array:
        return x if self.kind is None else ANTIALIAS[self.kind](x, strides=self.strides)


def _stepping(
    strides: int, first_dilation: int, dilation: int, *, antialias: str | bool | None
) -> tuple[int, _AntiAlias]:
    """Return the strides of the convolution, and the pooling that steps after it in an anti-aliased block.

    As in timm, a blurred block also blurs where a dilation replaces its step.
    """
    kind = antialias_kind(antialias)
    if kind == "avg" and strides > 2:
        raise SpecError(
            f"A block received antialias='avg' and strides={strides}. Expected strides of 1 or 2, as averages are of "
            "2x2 pixels. Use antialias='blur' for other strides."
        )
    if strides > 1 or (kind == "blur" and first_dilation != dilation):
        return 1 if kind else strides, _AntiAlias(kind, strides)
    return strides, _AntiAlias(None, strides)


class BasicBranch(nnx.Module):
    """3x3 convolution, norm, ReLU, 3x3 convolution, norm: the branch of `BasicBlock`, with the same arguments."""

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        strides: int,
        dilation: int,
        first_dilation: int,
        antialias: str | bool | None,
        zero_init_last: bool,
        layers: Layers,
        rngs: nnx.Rngs,
    ) -> None:
        strides, self.antialias = _stepping(strides, first_dilation, dilation, antialias=antialias)
        self.conv1 = layers.conv(in_channels, width, kernel=3, strides=strides, dilation=first_dilation, rngs=rngs)
        self.norm1 = layers.norm(width, rngs=rngs)
        self.conv2 = layers.conv(width, width, kernel=3, dilation=dilation, rngs=rngs)
        self.norm2 = layers.norm(width, zero_scale=zero_init_last, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool | None = None) -> jax.Array:
        """Map (batch, height, width, in_channels) to (batch, ceil(height / strides), ceil(...), width)."""
        evaluating = None if train is None else not train
        x = self.antialias(nnx.relu(self.norm1(self.conv1(x), evaluating)))
        return self.norm2(self.conv2(x), evaluating)


class BasicBlock(Residual):
    """The block of ResNet-18 and 34 and of the CIFAR nets (He et al. 2015, arXiv:1512.03385, figure 5 left).

    Args:
        in_channels: channels of the input.
        width: channels of both convolutions and of the output.
        strides: step of the first convolution in pixels (default 1).
        dilation: distance between the taps of the 3x3 convolutions in pixels (default 1).
        first_dilation: dilation of the first convolution, which follows the previous stage (default: `dilation`).
        antialias: the pooling that steps over pixels after the convolution: `"avg"` (`average_pool`) or `"blur"`
            (`blur_pool`). None (default) steps in the convolution.
        zero_init_last: start with a scale of zero in the last norm, so that a new block returns its shortcut
            (Goyal et al. 2017, arXiv:1706.02677, section 5.1; timm's default too). Default True.
        layers: dtypes and kind of norm (default float32).
        rngs: keys for the initial values.
        **residual: `shortcut`, `squeeze` and `drop_path`, as in `Residual`.

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
        dilation: int = 1,
        first_dilation: int | None = None,
        antialias: str | None = None,
        zero_init_last: bool = True,
        layers: Layers | None = None,
        rngs: nnx.Rngs,
        **residual: Any,
    ) -> None:
        layers = layers or Layers()
        branch = BasicBranch(
            in_channels,
            width,
            strides=strides,
            dilation=dilation,
            first_dilation=first_dilation or dilation,
            antialias=antialias,
            zero_init_last=zero_init_last,
            layers=layers,
            rngs=rngs,
        )
        super().__init__(branch, in_channels=in_channels, dilation=dilation, layers=layers, rngs=rngs, **residual)


class BottleneckBranch(nnx.Module):
    """1x1, 3x3 and 1x1 convolution, each with a norm: the branch of `BottleneckBlock`, with the same arguments."""

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        strides: int,
        dilation: int,
        first_dilation: int,
        stride_on: StrideOn,
        groups: int,
        width_per_group: int,
        reduce_first: int,
        antialias: str | bool | None,
        zero_init_last: bool,
        layers: Layers,
        rngs: nnx.Rngs,
    ) -> None:
        if antialias and stride_on == "1x1":
            raise SpecError(
                f"A bottleneck block received antialias={antialias!r} and stride_on='1x1'. Expected the stride in the "
                "3x3 convolution, after which the pooling steps. Use block='bottleneck', or antialias=None."
            )
        strides1, strides2 = (strides, 1) if stride_on == "1x1" else (1, strides)
        strides2, self.antialias = _stepping(strides2, first_dilation, dilation, antialias=antialias)
        inner, out_channels = inner_width(width, groups, width_per_group), width * BottleneckBlock.expansion
        first = -(-inner // reduce_first)
        self.conv1 = layers.conv(in_channels, first, kernel=1, strides=strides1, rngs=rngs)
        self.norm1 = layers.norm(first, rngs=rngs)
        self.conv2 = layers.conv(
            first, inner, kernel=3, strides=strides2, dilation=first_dilation, groups=groups, rngs=rngs
        )
        self.norm2 = layers.norm(inner, rngs=rngs)
        self.conv3 = layers.conv(inner, out_channels, kernel=1, rngs=rngs)
        self.norm3 = layers.norm(out_channels, zero_scale=zero_init_last, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool | None = None) -> jax.Array:
        """Map (batch, height, width, in_channels) to (batch, ceil(height / strides), ceil(...), 4 * width)."""
        evaluating = None if train is None else not train
        x = nnx.relu(self.norm1(self.conv1(x), evaluating))
        x = self.antialias(nnx.relu(self.norm2(self.conv2(x), evaluating)))
        return self.norm3(self.conv3(x), evaluating)


class BottleneckBlock(Residual):
    """The block of ResNet-50 and deeper (He et al. 2015, arXiv:1512.03385, figure 5 right), of ResNeXt and wide nets.

    Args:
        in_channels: channels of the input.
        width: a fourth of the output channels. The 3x3 convolution has as many unless `groups` or `width_per_group`
            is set.
        strides: step of the block in pixels (default 1).
        dilation: of the stage, in pixels (default 1).
        first_dilation: dilation of the 3x3 convolution after the previous stage (default: `dilation`).
        stride_on: the convolution that steps: `"3x3"` (default) is the "v1.5" of torchvision and timm; `"1x1"` is the
            "v1" of the paper, which ignores three of four pixels.
        groups: number of groups of the 3x3 convolution (Xie et al. 2016, arXiv:1611.05431; default 1).
        width_per_group: channels of each group for a `width` of 64, and in proportion for others (default 64). 128
            gives "wide ResNet-50-2" (Zagoruyko & Komodakis 2016, arXiv:1605.07146).
        reduce_first: the 3x3 convolution has so many times the channels of its input, rounded up; 2 in SENet-154 (Hu
            et al. 2017, arXiv:1709.01507; default 1).
        antialias: the pooling that steps over pixels after the convolution: `"avg"` (`average_pool`) or `"blur"`
            (`blur_pool`). None (default) steps in the convolution.
        zero_init_last: as in `BasicBlock` (default True).
        layers: dtypes and kind of norm (default float32).
        rngs: keys for the initial values.
        **residual: `shortcut`, `squeeze` and `drop_path`, as in `Residual`.

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
        dilation: int = 1,
        first_dilation: int | None = None,
        stride_on: StrideOn = "3x3",
        groups: int = 1,
        width_per_group: int = 64,
        reduce_first: int = 1,
        antialias: str | None = None,
        zero_init_last: bool = True,
        layers: Layers | None = None,
        rngs: nnx.Rngs,
        **residual: Any,
    ) -> None:
        layers = layers or Layers()
        branch = BottleneckBranch(
            in_channels,
            width,
            strides=strides,
            dilation=dilation,
            first_dilation=first_dilation or dilation,
            stride_on=stride_on,
            groups=groups,
            width_per_group=width_per_group,
            reduce_first=reduce_first,
            antialias=antialias,
            zero_init_last=zero_init_last,
            layers=layers,
            rngs=rngs,
        )
        super().__init__(branch, in_channels=in_channels, dilation=dilation, layers=layers, rngs=rngs, **residual)


def inner_width(width: int, groups: int, width_per_group: int) -> int:
    """Return the channels of a bottleneck's 3x3 convolution.

    Raises:
        SpecError: if the result is zero.
    """
    inner = int(width * width_per_group / 64) * groups
    if not inner:
        raise SpecError(
            f"A bottleneck block received width={width} and width_per_group={width_per_group}, which give its 3x3 "
            f"convolution {width * width_per_group / 64:g} channels. Expected at least one channel. Use a width of "
            f"{-(-64 // width_per_group)} or more."
        )
    return inner


BLOCKS.register("basic", BasicBlock)
BLOCKS.register("bottleneck", BottleneckBlock)
BLOCKS.register("bottleneck_v1", partial(BottleneckBlock, stride_on="1x1"))
BLOCKS.register("bottleneck_senet", partial(BottleneckBlock, reduce_first=2))
