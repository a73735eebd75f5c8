"""The shortcuts of a residual block: identity, zeros, and projections."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from resfit.errors import ShortcutShapeError
from resfit.nets.layers import Layers
from resfit.nets.pool import average_pool
from resfit.nets.registry import SHORTCUTS


class IdentityShortcut(nnx.Module):
    """The identity, for branches that keep the shape.

    Example:
        >>> import jax.numpy as jnp
        >>> IdentityShortcut()(jnp.ones((1, 4, 4, 2))).shape
        (1, 4, 4, 2)
    """

    def __call__(self, x: jax.Array, *, train: bool | None = None) -> jax.Array:
        """Return x (batch, height, width, channels)."""
        return x


class ProjectionShortcut(nnx.Module):
    """Option B: a strided 1x1 convolution and a norm, as in torchvision and timm.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        strides: step in pixels along height and width.
        dilation: not used.
        layers: dtypes and kind of norm (default float32).
        rngs: keys for the initial values.

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
        dilation: int = 1,
        layers: Layers | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        layers = layers or Layers()
        self.conv = layers.conv(in_channels, out_channels, kernel=1, strides=strides, rngs=rngs)
        self.norm = layers.norm(out_channels, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool | None = None) -> jax.Array:
        """Project x (batch, height, width, in_channels) to the branch's shape. `train` sets the mode of the norm."""
        return self.norm(self.conv(x), None if train is None else not train)


class ConvShortcut(nnx.Module):
    """A strided 1x1 convolution without a norm: the projection of pre-activated blocks.

    He et al. 2016, arXiv:1603.05027.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        strides: step in pixels along height and width.
        dilation: not used.
        layers: dtypes (default float32).
        rngs: keys for the initial values.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> ConvShortcut(2, 8, strides=(2, 2), rngs=nnx.Rngs(0))(jnp.ones((1, 5, 5, 2))).shape
        (1, 3, 3, 8)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        strides: tuple[int, int] = (1, 1),
        dilation: int = 1,
        layers: Layers | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        self.conv = (layers or Layers()).conv(in_channels, out_channels, kernel=1, strides=strides, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool | None = None) -> jax.Array:
        """Project x (batch, height, width, in_channels) to the shape of the branch."""
        return self.conv(x)


class PooledShortcut(nnx.Module):
    """Option D: average pooling if the branch steps, then a 1x1 convolution and a norm, as in ResNet-D.

    The shortcut uses every pixel; option B uses one in four (He et al. 2018, arXiv:1812.01187, figure 2c).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        strides: step in pixels along height and width, 1 or 2 each.
        dilation: dilation of the branch. If it is larger than 1, the pooling has a stride of 1, as in timm.
        layers: dtypes and kind of norm (default float32).
        rngs: keys for the initial values.

    Raises:
        ShortcutShapeError: for other strides.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> PooledShortcut(2, 8, strides=(2, 2), rngs=nnx.Rngs(0))(jnp.ones((1, 5, 5, 2))).shape
        (1, 3, 3, 8)
    """

    make_projection: ClassVar[type[ProjectionShortcut | ConvShortcut]] = ProjectionShortcut

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        strides: tuple[int, int] = (1, 1),
        dilation: int = 1,
        layers: Layers | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        if not set(strides) <= {1, 2}:
            raise ShortcutShapeError(
                f"The average-pooled shortcut received strides={strides}. Expected 1 or 2 along each axis. Use the "
                "projection (shortcut='B') for a branch that steps further."
            )
        self.strides = strides
        self.pools = strides != (1, 1) or dilation > 1
        self.projection = self.make_projection(in_channels, out_channels, layers=layers, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool | None = None) -> jax.Array:
        """Project x (batch, height, width, in_channels) to the branch's shape. `train` sets the mode of the norm."""
        return self.projection(average_pool(x, strides=self.strides) if self.pools else x, train=train)


class PooledConvShortcut(PooledShortcut):
    """`PooledShortcut` without the norm, for pre-activated blocks, as in timm's ResNetV2-D. The arguments are the same.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> shortcut = PooledConvShortcut(2, 8, strides=(2, 2), rngs=nnx.Rngs(0))
        >>> shortcut(jnp.ones((1, 5, 5, 2))).shape
        (1, 3, 3, 8)
    """

    make_projection: ClassVar[type[ProjectionShortcut | ConvShortcut]] = ConvShortcut


class WideProjectionShortcut(ProjectionShortcut):
    """`ProjectionShortcut` with a 3x3 convolution where the branch steps over pixels, as in SENet-154.

    Hu et al. 2017, arXiv:1709.01507. Arguments as for `ProjectionShortcut`. If the branch has a dilation instead of
    strides, the convolution has half of it, which is the dilation of the previous stage, as in timm.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> shortcut = WideProjectionShortcut(2, 8, strides=(2, 2), rngs=nnx.Rngs(0))
        >>> shortcut(jnp.ones((1, 5, 5, 2))).shape
        (1, 3, 3, 8)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        strides: tuple[int, int] = (1, 1),
        dilation: int = 1,
        layers: Layers | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        layers = layers or Layers()
        kernel, before = (1, 1) if strides == (1, 1) and dilation == 1 else (3, max(dilation // 2, 1))
        self.conv = layers.conv(in_channels, out_channels, kernel=kernel, strides=strides, dilation=before, rngs=rngs)
        self.norm = layers.norm(out_channels, rngs=rngs)


class PadShortcut(nnx.Module):
    """Option A, without parameters: every stride-th pixel, with channels of zeros appended.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output, at least `in_channels`.
        strides: step in pixels along height and width.
        dilation: not used.
        layers: not used.
        rngs: not used.

    Raises:
        ShortcutShapeError: if `out_channels` is smaller than `in_channels`.

    Example:
        >>> import jax.numpy as jnp
        >>> shortcut = PadShortcut(2, 3, strides=(2, 2))
        >>> shortcut(jnp.ones((1, 2, 2, 2))).tolist()
        [[[[1.0, 1.0, 0.0]]]]
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        strides: tuple[int, int] = (1, 1),
        dilation: int = 1,
        layers: Layers | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> None:
        if out_channels < in_channels:
            raise ShortcutShapeError(
                f"The option-A shortcut received {in_channels} input and {out_channels} output channels. Expected at "
                "least as many output channels. Use the projection (shortcut='auto' or 'B')."
            )
        self.extra_channels = out_channels - in_channels
        self.strides = strides

    def __call__(self, x: jax.Array, *, train: bool | None = None) -> jax.Array:
        """Take every stride-th pixel of x (batch, height, width, in_channels) and append channels of zeros."""
        sampled = x[:, :: self.strides[0], :: self.strides[1], :]
        return jnp.pad(sampled, ((0, 0), (0, 0), (0, 0), (0, self.extra_channels)))


# A and B are the first paper's names (He et al. 2015, arXiv:1512.03385, section 3.3). D is the name of ResNet-D.
SHORTCUTS.register("A", PadShortcut)
SHORTCUTS.register("B", ProjectionShortcut)
SHORTCUTS.register("D", PooledShortcut)
SHORTCUTS.register("conv", ConvShortcut)
SHORTCUTS.register("D_conv", PooledConvShortcut)
SHORTCUTS.register("B3", WideProjectionShortcut)
