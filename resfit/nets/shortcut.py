"""The three shortcuts of a residual block (He et al. 2015, arXiv:1512.03385, section 3.3)."""

import jax
import jax.numpy as jnp
from flax import nnx

from resfit.errors import ShortcutShapeError
from resfit.nets.layers import Layers

# The paper's names for what joins a branch of another shape: A pads with zeros, B projects.
SHORTCUT_OPTIONS = ("A", "B")


class IdentityShortcut(nnx.Module):
    """Returns its input: the shortcut wherever the branch keeps the shape.

    Example:
        >>> import jax.numpy as jnp
        >>> IdentityShortcut()(jnp.ones((1, 4, 4, 2))).shape
        (1, 4, 4, 2)
    """

    def __call__(self, x: jax.Array, *, train: bool | None = None) -> jax.Array:
        """Returns x (batch, height, width, channels) itself."""
        return x


class ProjectionShortcut(nnx.Module):
    """Option B: a strided 1x1 convolution and a norm, as in torchvision and timm.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        strides: step in pixels along height and width.
        layers: dtypes and kind of norm (default float32).
        rngs: where the convolution's first values come from.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> shortcut = ProjectionShortcut(2, 8, strides=(2, 2), rngs=nnx.Rngs(0))
        >>> shortcut(jnp.ones((1, 5, 5, 2))).shape
        (1, 3, 3, 8)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        strides: tuple[int, int] = (1, 1),
        layers: Layers | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        layers = layers or Layers()
        self.conv = layers.conv(in_channels, out_channels, kernel=1, strides=strides, rngs=rngs)
        self.norm = layers.norm(out_channels, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool | None = None) -> jax.Array:
        """Projects x (batch, height, width, in_channels) onto the branch's shape; `train` reaches the norm."""
        return self.norm(self.conv(x), None if train is None else not train)


class PadShortcut(nnx.Module):
    """Option A, the one without parameters: every stride-th pixel, and zeros for the channels that are missing.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output, at least `in_channels`.
        strides: step in pixels along height and width.

    Raises:
        ShortcutShapeError: if `out_channels` is smaller than `in_channels`: zeros cannot take channels away.

    Example:
        >>> import jax.numpy as jnp
        >>> shortcut = PadShortcut(2, 3, strides=(2, 2))
        >>> shortcut(jnp.ones((1, 2, 2, 2))).tolist()
        [[[[1.0, 1.0, 0.0]]]]
    """

    def __init__(self, in_channels: int, out_channels: int, *, strides: tuple[int, int] = (1, 1)) -> None:
        if out_channels < in_channels:
            raise ShortcutShapeError(
                f"The option-A shortcut received {in_channels} channels in and {out_channels} out, and cannot take "
                "channels away. Expected at least as many out as in. Use the projection (shortcut='auto' or 'B')."
            )
        self.extra_channels = out_channels - in_channels
        self.strides = strides

    def __call__(self, x: jax.Array, *, train: bool | None = None) -> jax.Array:
        """Samples x (batch, height, width, in_channels) and appends channels of zeros."""
        sampled = x[:, :: self.strides[0], :: self.strides[1], :]
        return jnp.pad(sampled, ((0, 0), (0, 0), (0, 0), (0, self.extra_channels)))
