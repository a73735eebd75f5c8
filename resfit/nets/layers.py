"""The layers that every network here is made of, with the choices that are easy to get wrong made once."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

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


@dataclass(frozen=True)
class Layers:
    """Makes convolutions and norms that agree in their dtypes and in their kind of norm.

    Attributes:
        dtype: the dtype in which convolutions compute and activations are kept, `"float32"` or `"bfloat16"`.
        param_dtype: the dtype in which kernels, scales and biases are stored.
        unbiased_variance: keep the running variance as PyTorch does (see `BatchNorm`).
        kind_of_norm: a name in `NORMS`: `"batch"` or `"group"`.

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
        """A square convolution whose output pixel i is centred on input pixel i * stride; no bias: a norm follows.

        The padding is `dilation * (kernel // 2)` on both sides. Padding 'SAME' would put the odd pixel on the right
        only, and move the centres of every strided convolution by one pixel against its 1x1 shortcut.

        Args:
            in_channels: channels of the input (batch, height, width, in_channels).
            out_channels: channels of the output (batch, ceil(height / stride), ceil(width / stride), out_channels).
            kernel: side of the square kernel in pixels, odd.
            strides: step in pixels, for both axes or for each (default 1).
            dilation: distance in pixels between the kernel's taps (default 1).
            groups: into how many parts the channels are cut, each of which sees only itself (default 1).
            zero: start with a kernel of zeros (default False).
            rngs: where the kernel's first values come from.

        Raises:
            SpecError: if the groups do not divide the channels.
        """
        if in_channels % groups or out_channels % groups:
            raise SpecError(
                f"A convolution from {in_channels} to {out_channels} channels received groups={groups}. Expected a "
                "number that divides both."
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
            rngs=rngs,
        )

    def norm(self, channels: int, *, zero_scale: bool = False, rngs: nnx.Rngs) -> Norm:
        """A norm over `channels` channels.

        Args:
            channels: size of the last axis of the input.
            zero_scale: start with the scale at zero, so that the norm's output is its bias alone (default False).
            rngs: not drawn from; the norms start at constants.
        """
        return NORMS[self.kind_of_norm](channels, zero_scale=zero_scale, layers=self, rngs=rngs)


class NormRelu(nnx.Module):
    """A norm and a ReLU, as they stand before the convolutions of pre-activated blocks and after the last of them.

    Args:
        channels: of the input.
        layers: dtypes and kind of norm.
        rngs: not drawn from.
    """

    def __init__(self, channels: int, *, layers: Layers, rngs: nnx.Rngs) -> None:
        self.norm = layers.norm(channels, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool | None = None) -> jax.Array:
        """Of the shape of x (batch, height, width, channels)."""
        return nnx.relu(self.norm(x, None if train is None else not train))
