"""The two layers that every network here is made of, with the choices that are easy to get wrong made once."""

import math
from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers

from resfit.nets.first_values import Initializer, normal
from resfit.nets.norm import BatchNorm

# He et al. 2015 (arXiv:1502.01852) for ReLU nets, counted over the outputs as in torchvision and timm.
KAIMING_NORMAL = Initializer(
    initializers.variance_scaling(2.0, "fan_out", "normal"),
    lambda shape: normal(2.0 / (math.prod(shape[:-2]) * shape[-1])),
)


@dataclass(frozen=True)
class Layers:
    """Makes convolutions and norms that agree in their dtypes and in their kind of running variance.

    Attributes:
        dtype: the dtype in which convolutions compute and activations are kept, `"float32"` or `"bfloat16"`.
        param_dtype: the dtype in which kernels, scales and biases are stored.
        unbiased_variance: keep the running variance as PyTorch does (see `BatchNorm`).

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

    def conv(
        self, in_channels: int, out_channels: int, *, kernel: int, strides: int | tuple[int, int] = 1, rngs: nnx.Rngs
    ) -> nnx.Conv:
        """A square convolution whose output pixel i is centred on input pixel i * stride; no bias: a norm follows.

        The padding is `kernel // 2` on both sides. Padding 'SAME' would put the odd pixel on the right only, and move
        the centres of every strided convolution by one pixel against its 1x1 shortcut.

        Args:
            in_channels: channels of the input (batch, height, width, in_channels).
            out_channels: channels of the output (batch, ceil(height / stride), ceil(width / stride), out_channels).
            kernel: side of the square kernel in pixels, odd.
            strides: step in pixels, for both axes or for each (default 1).
            rngs: where the kernel's first values come from.
        """
        pad = kernel // 2
        return nnx.Conv(
            in_channels,
            out_channels,
            kernel_size=(kernel, kernel),
            strides=strides,
            padding=((pad, pad), (pad, pad)),
            use_bias=False,
            kernel_init=KAIMING_NORMAL,
            dtype=jnp.dtype(self.dtype),
            param_dtype=jnp.dtype(self.param_dtype),
            rngs=rngs,
        )

    def norm(self, channels: int, *, zero_scale: bool = False, rngs: nnx.Rngs) -> BatchNorm:
        """A batch norm over `channels` channels.

        Args:
            channels: size of the last axis of the input.
            zero_scale: start with the scale at zero, so that the norm's output is its bias alone (default False).
            rngs: not drawn from; the norms start at constants.
        """
        return BatchNorm(
            channels,
            unbiased=self.unbiased_variance,
            zero_scale=zero_scale,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            rngs=rngs,
        )
