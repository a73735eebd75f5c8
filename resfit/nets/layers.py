"""Convolutions and norms of all networks. The choices that are easy to get wrong are made once, here."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from jax import lax

from resfit._utils.dtypes import at_least_float32
from resfit.errors import SpecError
from resfit.nets.init import ZEROS, kaiming_normal
from resfit.nets.norm import BatchNorm, GroupNorm
from resfit.nets.registry import NORMS, Norm


def _batch_norm(channels: int, *, zero_scale: bool, layers: "Layers", rngs: nnx.Rngs) -> Norm:
    return BatchNorm(
        channels,
        unbiased=layers.unbiased_variance,
        zero_scale=zero_scale,
        dtype=layers.dtype,
        param_dtype=layers.param_dtype,
        rngs=rngs,
    )


def _group_norm(channels: int, *, zero_scale: bool, layers: "Layers", rngs: nnx.Rngs) -> Norm:
    return GroupNorm(channels, zero_scale=zero_scale, dtype=layers.dtype, param_dtype=layers.param_dtype, rngs=rngs)


NORMS.register("batch", _batch_norm)
NORMS.register("group", _group_norm)


_EPSILON_OF_KERNELS = 1e-8  # as in timm's networks of Big Transfer


def _standardize(arrays: Any, /, *, dtype: Any = None, inexact: bool = True) -> Any:
    """Standardize the kernel, in float32 or wider, and promote (inputs, kernel, bias) as flax does.

    A function of `nnx.Conv`, not a subclass: code that looks for convolutions finds them, in every precision.
    """
    inputs, kernel, bias = arrays
    kernel = jnp.asarray(kernel, at_least_float32(kernel.dtype))
    centered = kernel - kernel.mean((0, 1, 2), keepdims=True)
    variance = jnp.square(centered).mean((0, 1, 2), keepdims=True)
    kernel = centered * lax.rsqrt(variance + _EPSILON_OF_KERNELS)
    return promote_dtype((inputs, kernel, bias), dtype=dtype, inexact=inexact)


@dataclass(frozen=True)
class Layers:
    """A factory of convolutions and norms of one dtype and one kind of norm.

    Attributes:
        dtype: dtype of the arithmetic and of the activations, `"float32"` or `"bfloat16"`.
        param_dtype: dtype of the kernels, scales and biases.
        unbiased_variance: update the running variance as PyTorch does (see `BatchNorm`).
        kind_of_norm: a name in `NORMS`: `"batch"` or `"group"`.
        weight_standardization: convolve with kernels whose mean is 0 and whose variance is 1 for each output channel
            (Qiao et al. 2019, arXiv:1903.10520). The parameters keep their own scale.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> conv = Layers().conv(3, 8, kernel=3, strides=2, rngs=nnx.Rngs(0))
        >>> conv(jnp.ones((1, 7, 7, 3))).shape
        (1, 4, 4, 8)
    """

    dtype: str = "float32"
    param_dtype: str = "float32"
    unbiased_variance: bool = False
    kind_of_norm: str = "batch"
    weight_standardization: bool = False

    def conv(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: int,
        strides: int | tuple[int, int] = 1,
        dilation: int = 1,
        groups: int = 1,
        zero: bool = False,
        rngs: nnx.Rngs,
    ) -> nnx.Conv:
        """Return a square convolution without a bias. Output pixel i is centered on input pixel i * stride.

        The padding is `dilation * (kernel // 2)` on both sides. Padding 'SAME' would put the odd pixel on the right
        only and shift a strided convolution by one pixel against its 1x1 shortcut.

        Args:
            in_channels: channels of the input (batch, height, width, in_channels).
            out_channels: channels of the output (batch, ceil(height / stride), ceil(width / stride), out_channels).
            kernel: side of the kernel in pixels, odd.
            strides: step in pixels, for both axes or for each (default 1).
            dilation: distance between the taps of the kernel in pixels (default 1).
            groups: number of groups of channels; each group is convolved separately (default 1).
            zero: start with a kernel of zeros (default False).
            rngs: keys for the initial values.

        Raises:
            SpecError: if `groups` does not divide the channels, or if `zero` is True with weight standardization.
        """
        if in_channels % groups or out_channels % groups:
            raise SpecError(
                f"A convolution from {in_channels} to {out_channels} channels received groups={groups}. Expected a "
                "number that divides both."
            )
        if zero and self.weight_standardization:
            raise SpecError(
                "A convolution received a kernel of zeros and weight_standardization=True, which divides by the "
                "deviation of the kernel. Expected other initial values. Use zero_init_last=False."
            )
        pad = dilation * (kernel // 2)
        return nnx.Conv(
            in_channels,
            out_channels,
            kernel_size=(kernel, kernel),
            strides=strides,
            padding=((pad, pad), (pad, pad)),
            kernel_dilation=dilation,
            feature_group_count=groups,
            use_bias=False,
            kernel_init=ZEROS if zero else kaiming_normal,
            dtype=jnp.dtype(self.dtype),
            param_dtype=jnp.dtype(self.param_dtype),
            promote_dtype=_standardize if self.weight_standardization else promote_dtype,
            rngs=rngs,
        )

    def norm(self, channels: int, *, zero_scale: bool = False, rngs: nnx.Rngs) -> Norm:
        """Return a norm of the kind `kind_of_norm`.

        Args:
            channels: size of the last axis of the input.
            zero_scale: start with a scale of zero, so that the output is the bias (default False).
            rngs: passed on to the norm. `"batch"` and `"group"` start with constants.
        """
        return NORMS[self.kind_of_norm](channels, zero_scale=zero_scale, layers=self, rngs=rngs)


class NormRelu(nnx.Module):
    """A norm and a ReLU, for pre-activated blocks and after the last of them.

    Args:
        channels: of the input.
        layers: dtypes and kind of norm.
        rngs: not used.
    """

    def __init__(self, channels: int, *, layers: Layers, rngs: nnx.Rngs) -> None:
        self.norm = layers.norm(channels, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool | None = None) -> jax.Array:
        """Map x (batch, height, width, channels) to the same shape."""
        return nnx.relu(self.norm(x, None if train is None else not train))
