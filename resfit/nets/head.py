"""The classifier head: from features to logits."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from resfit._utils.dtypes import at_least_float32
from resfit.nets.init import uniform
from resfit.nets.layers import Layers
from resfit.nets.pool import global_average_pool


class _Logits(nnx.Linear):
    """A dense layer that keeps its own dtype when the trainer changes the dtype of other layers."""


class ClassifierHead(nnx.Module):
    """Global average pooling and one dense layer, computed in float32 so that losses are exact in any precision.

    The initial weights and biases are uniform in ±1 / sqrt(in_channels), as in torch.nn.Linear.

    Args:
        in_channels: channels of the features.
        num_classes: number of logits.
        dropout: probability of dropout between pooling and dense layer (default 0).
        layers: dtype of the parameters (default float32).
        rngs: keys for the initial values.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> ClassifierHead(8, 10, rngs=nnx.Rngs(0))(jnp.ones((2, 4, 4, 8))).shape
        (2, 10)
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        dropout: float = 0.0,
        layers: Layers | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        layers = layers or Layers()
        self.dropout = nnx.Dropout(dropout, deterministic=True, rngs=rngs) if dropout else None
        initial = uniform(1.0 / math.sqrt(in_channels))
        self.dense = _Logits(
            in_channels,
            num_classes,
            kernel_init=initial,
            bias_init=initial,
            dtype=at_least_float32(layers.dtype),
            param_dtype=jnp.dtype(layers.param_dtype),
            rngs=rngs,
        )

    def __call__(self, x: jax.Array, *, train: bool | None = None) -> jax.Array:
        """Map features (batch, height, width, in_channels) to logits (batch, num_classes), float32 or wider."""
        x = self.pooled(x)
        if self.dropout is not None:
            x = self.dropout(x, deterministic=None if train is None else not train)
        return self.dense(x)

    def pooled(self, x: jax.Array) -> jax.Array:
        """Return the mean over all pixels, (batch, in_channels), float32 or wider."""
        return global_average_pool(jnp.asarray(x, self.dense.dtype))
