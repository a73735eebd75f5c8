"""Batch and group normalization with the constants of the ResNet papers, in float32, with an explicit mode."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from resfit._utils.dtypes import at_least_float32
from resfit.errors import InputShapeError, SpecError
from resfit.nets.init import ONES, ZEROS
from resfit.nets.moments import from_powers

MOMENTUM = 0.9  # weight of the old statistic; flax has 0.99, which after 100 steps keeps 37 % of the initial value
EPSILON = 1e-5
_NO_KEYS: Any = SimpleNamespace(params=lambda: None)  # for flax's constructors, which draw keys for constants too


class BatchNorm(nnx.BatchNorm):
    """Batch norm (Ioffe & Szegedy 2015, arXiv:1502.03167): `(x - mean) / sqrt(var + 1e-5) * scale + bias`.

    The layer differs from flax's in four ways. The momentum is 0.9, as in torchvision, timm and the flax ImageNet
    example. A new norm is in evaluation mode, so that a call without a mode never changes a statistic. Arithmetic and
    statistics are float32 or wider for every `dtype`, and only the output is cast; flax rounds the running statistics
    to `dtype`. The running variance can follow PyTorch.

    Args:
        num_features: channels, the size of the last axis of the input.
        unbiased: update the running variance with the unbiased form, n / (n - 1), as PyTorch does. The default False
            uses the biased form of flax, Keras and Haiku. Both normalize the batch by the biased form, so the choice
            matters only if training has to match PyTorch exactly.
        zero_scale: start with a `scale` of zero instead of one (default False).
        dtype: dtype of the output (default `"float32"`).
        param_dtype: dtype of `scale` and `bias` (default `"float32"`).
        rngs: not used; every flax layer takes it.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> norm = BatchNorm(3, rngs=nnx.Rngs(0))
        >>> x = jnp.ones((4, 2, 2, 3))
        >>> y = norm(x)                              # evaluation: no statistic changes
        >>> norm.mean[...].tolist()
        [0.0, 0.0, 0.0]
        >>> y = norm(x, use_running_average=False)   # training: a tenth of the batch mean
        >>> norm.mean[...].round(6).tolist()
        [0.10000000149011612, 0.10000000149011612, 0.10000000149011612]
    """

    scale: nnx.Param[jax.Array]
    bias: nnx.Param[jax.Array]
    # A faster function for training, which a step sets in its copy: (x, scale, bias, *, epsilon) -> (y, mean, biased
    # variance), or None for arrays that it does not take.
    normalize: Callable[..., tuple[jax.Array, jax.Array, jax.Array] | None] | None = None

    def __init__(
        self,
        num_features: int,
        *,
        unbiased: bool = False,
        zero_scale: bool = False,
        dtype: str = "float32",
        param_dtype: str = "float32",
        rngs: nnx.Rngs,
    ) -> None:
        # One channel, because flax compiles two small programs for each width. The values below replace its own.
        super().__init__(
            1,
            use_running_average=True,
            momentum=MOMENTUM,
            epsilon=EPSILON,
            param_dtype=jnp.dtype(param_dtype),
            scale_init=ZEROS,
            bias_init=ZEROS,
            rngs=_NO_KEYS,
        )
        self.num_features = num_features
        self.mean = nnx.BatchStat(ZEROS(None, (num_features,), "float32"))
        self.var = nnx.BatchStat(ONES(None, (num_features,), "float32"))
        self.scale = nnx.Param((ZEROS if zero_scale else ONES)(None, (num_features,), param_dtype))
        self.bias = nnx.Param(ZEROS(None, (num_features,), param_dtype))
        self.unbiased = unbiased
        self.output_dtype = dtype

    def __call__(
        self, x: jax.Array, use_running_average: bool | None = None, *, mask: jax.Array | None = None
    ) -> jax.Array:
        """Normalize x (batch, ..., channels). In training mode, also update the running statistics.

        Args:
            x: the input, channels last.
            use_running_average: True normalizes by the running statistics, False by the batch statistics; None
                (default) follows the mode of the layer.
            mask: (batch, ..., 1 or channels) or None. The batch statistics ignore entries where the mask is False.

        Raises:
            InputShapeError: with `unbiased=True`, if a batch has a single value per channel: the unbiased variance
                does not exist.
        """
        evaluating = self.use_running_average if use_running_average is None else use_running_average
        found = None if evaluating or mask is not None else self._normalized(x)
        if found is not None:
            return found
        x = jnp.asarray(x, at_least_float32(x.dtype))
        if evaluating:
            mean, var = self.mean[...], self.var[...]
        else:
            mean, var, n = self._batch_statistics(x, mask)
            self._move_both(mean, var, n)
        # x * gain + shift, as in PyTorch: the gradient needs only x; for (x - mean) * gain it also needs x - mean. On a
        # CPU this saves a third of the memory of a ResNet-20 step and 7 % of its time.
        gain = lax.rsqrt(var + self.epsilon) * self.scale[...]
        y = x * _channels_last(gain, x) + _channels_last(self.bias[...] - mean * gain, x)
        return jnp.asarray(y, self.output_dtype)

    def _normalized(self, x: jax.Array) -> jax.Array | None:
        """Return the output of `normalize`, and update the running statistics; None if it does not apply."""
        if self.normalize is None or self.axis_name is not None or str(x.dtype) != self.output_dtype:
            return None
        found = self.normalize(x, self.scale[...], self.bias[...], epsilon=self.epsilon)
        if found is None:
            return None
        y, mean, var = found
        self._move_both(mean, var, math.prod(x.shape[:-1]))
        return y

    def _batch_statistics(self, x: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, jax.Array, jax.Array | int]:
        """Return mean and biased variance per channel over all devices of the axis, and the number of values.

        The variance is E[x^2] - E[x]^2, one pass over memory, as in flax.
        """
        axes = tuple(range(x.ndim - 1))
        moments = jnp.mean(x, axes, where=mask), jnp.mean(jnp.square(x), axes, where=mask)
        n: jax.Array | int = math.prod(x.shape[:-1])
        if mask is not None:
            n = jnp.sum(jnp.broadcast_to(mask, x.shape), axes, dtype=x.dtype)
        if self.axis_name is not None:
            moments = lax.pmean(moments, self.axis_name, axis_index_groups=self.axis_index_groups)
            n = lax.psum(n, self.axis_name, axis_index_groups=self.axis_index_groups)
        if self.unbiased and isinstance(n, int) and n < 2:
            raise InputShapeError(
                f"BatchNorm in training received an input of shape {x.shape}: one value per channel has no unbiased "
                "variance. Expected at least two. Use a larger batch or image, or build the norm with unbiased=False."
            )
        return *from_powers(*moments), n

    def _move_both(self, mean: jax.Array, var: jax.Array, n: jax.Array | int) -> None:
        self._move(self.mean, mean)
        self._move(self.var, var * (n / (n - 1)) if self.unbiased else var)

    def _move(self, statistic: nnx.Variable[jax.Array], batch: jax.Array) -> None:
        # set_value, not statistic[...] = ...: the latter asks a tracer for its sharding, and JAX's error for that takes
        # half of the time of tracing a deep network.
        moved = self.momentum * statistic[...] + (1.0 - self.momentum) * batch
        statistic.set_value(lax.stop_gradient(moved).astype(statistic[...].dtype))


def _channels_last(values: jax.Array, x: jax.Array) -> jax.Array:
    """Return values (channels,) with as many axes as x."""
    return values.reshape((1,) * (x.ndim - 1) + values.shape)


class GroupNorm(nnx.GroupNorm):
    """Group norm (Wu & He 2018, arXiv:1803.08494): normalizes each image separately, over groups of channels.

    Training and evaluation are the same, and the batch does not matter. The norm has 32 groups, as in the paper and in
    timm, or one group for each channel if there are fewer than 32. The arithmetic is float32 or wider. The variance is
    the mean of (x - mean)^2, as in PyTorch; flax's default, E[x^2] - E[x]^2, loses digits where the mean is large.

    Args:
        num_features: channels, the size of the last axis of the input.
        zero_scale: start with a `scale` of zero instead of one (default False).
        dtype: dtype of the output (default `"float32"`).
        param_dtype: dtype of `scale` and `bias` (default `"float32"`).
        rngs: not used; every flax layer takes it.

    Raises:
        SpecError: if there are more than 32 channels and 32 does not divide them.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> GroupNorm(64, rngs=nnx.Rngs(0))(jnp.ones((1, 2, 2, 64))).shape
        (1, 2, 2, 64)
    """

    scale: nnx.Param[jax.Array]
    bias: nnx.Param[jax.Array]

    def __init__(
        self,
        num_features: int,
        *,
        zero_scale: bool = False,
        dtype: str = "float32",
        param_dtype: str = "float32",
        rngs: nnx.Rngs,
    ) -> None:
        groups = min(32, num_features)
        if num_features % groups:
            raise SpecError(
                f"A group norm received {num_features} channels. Expected fewer than 32, or a multiple of 32. Choose "
                "other widths, or norm='batch'."
            )
        super().__init__(
            1,
            num_groups=1,
            use_fast_variance=False,
            epsilon=EPSILON,
            param_dtype=jnp.dtype(param_dtype),
            scale_init=ZEROS,
            bias_init=ZEROS,
            rngs=_NO_KEYS,
        )
        self.num_groups, self.group_size = groups, num_features // groups
        self.scale = nnx.Param((ZEROS if zero_scale else ONES)(None, (num_features,), param_dtype))
        self.bias = nnx.Param(ZEROS(None, (num_features,), param_dtype))
        self.output_dtype = dtype

    def __call__(
        self, x: jax.Array, use_running_average: bool | None = None, *, mask: jax.Array | None = None
    ) -> jax.Array:
        """Normalize x (batch, ..., channels). `use_running_average` is not used; batch norms have it."""
        wide = jnp.asarray(x, at_least_float32(x.dtype))
        return jnp.asarray(super().__call__(wide, mask=mask), self.output_dtype)
