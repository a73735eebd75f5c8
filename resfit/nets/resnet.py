"""`ResNet`: a stem, stages of residual blocks, and a head, as one spec says."""

import dataclasses
import itertools
import warnings
from collections.abc import Iterator, Sequence

import jax
from flax import nnx

from resfit.errors import ChannelError, ImageTooSmallError, LayoutError, RankError, SpecError, StemWarning
from resfit.nets.head import ClassifierHead
from resfit.nets.init import LayerKeys
from resfit.nets.layers import NormRelu
from resfit.nets.recompute import recomputed
from resfit.nets.registry import BLOCKS, STEMS
from resfit.nets.residual import Residual
from resfit.nets.spec import ResNetSpec

SMALL_IMAGE = 64  # pixels; below this the ImageNet stem leaves less than 16x16 positions, and stage 4 less than 2x2


class Stage(nnx.Module):
    """Residual blocks of one width, the first of which may halve the image.

    Args:
        spec: the network that the stage belongs to.
        index: which stage of it, from 0.
        in_channels: channels of the input.
        rngs: where the weights' first values come from.
    """

    def __init__(self, spec: ResNetSpec, index: int, in_channels: int, *, rngs: nnx.Rngs) -> None:
        build, width = BLOCKS[spec.block], spec.widths[index]
        geometry = spec.geometry[index]
        self.strides = geometry.strides
        self.remat = spec.remat
        drop_rates = _drop_rates(spec)[index]

        def block(in_channels: int, strides: int, first_dilation: int, drop_path: float) -> Residual:
            arguments = spec.of_blocks
            if geometry.dilation > 1:
                arguments |= {"dilation": geometry.dilation, "first_dilation": first_dilation}
            if drop_path:
                arguments["drop_path"] = drop_path
            return build(in_channels, width, strides=strides, layers=spec.layers, rngs=rngs, **arguments)

        first = block(in_channels, geometry.strides, geometry.first_dilation, drop_rates[0])
        self.out_channels = first.out_channels
        others = [block(self.out_channels, 1, geometry.dilation, rate) for rate in drop_rates[1:]]
        self.blocks = nnx.List([first, *others])

    def __call__(self, x: jax.Array, *, train: bool | None = None) -> jax.Array:
        """From (batch, height, width, in_channels) to (batch, ceil(height / strides), ceil(...), out_channels)."""
        if self.remat == "stage":
            return recomputed(lambda stage, x: stage._through_blocks(x, train), self, x)
        return self._through_blocks(x, train)

    def _through_blocks(self, x: jax.Array, train: bool | None) -> jax.Array:
        for block in self.blocks:
            if self.remat == "block":
                x = recomputed(lambda block, x: block(x, train=train), block, x)
            else:
                x = block(x, train=train)
        return x


def _drop_rates(spec: ResNetSpec) -> list[list[float]]:
    """Each block's probability of being passed by, by stage: from 0 in the first block, in equal steps."""
    total = sum(spec.depths)
    rates = iter([spec.drop_path * i / max(total - 1, 1) for i in range(total)])
    return [list(itertools.islice(rates, depth)) for depth in spec.depths]


class ResNet(nnx.Module):
    """A residual network (He et al. 2015, arXiv:1512.03385), from images to logits.

    Its parts are `stem`, `stage1`, `stage2`, ..., `norm` (None but behind pre-activated blocks) and `head`. A new
    network is in evaluation mode.

    Args:
        spec: what to build.
        rngs: where the weights' first values come from.

    Raises:
        SpecError, ShortcutShapeError: when built, if the spec cannot be.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> spec = ResNetSpec(depths=(1, 1), widths=(4, 8), stem="cifar", num_classes=10)
        >>> net = ResNet(spec, rngs=nnx.Rngs(0))
        >>> net(jnp.ones((2, 8, 8, 3))).shape
        (2, 10)
    """

    def __init__(self, spec: ResNetSpec, *, rngs: nnx.Rngs) -> None:
        rngs = LayerKeys(rngs)
        self.spec = spec
        self.small_image_notice = _Notice()
        channels = spec.widths[0] if spec.stem_width is None else spec.stem_width
        self.stem = STEMS[spec.stem](spec.in_channels, channels, layers=spec.layers, rngs=rngs, **spec.of_stem)
        for index in range(len(spec.depths)):
            stage = Stage(spec, index, channels, rngs=rngs)
            setattr(self, f"stage{index + 1}", stage)
            channels = stage.out_channels
        preactivated = self.stages[-1].blocks[-1].before is not None
        self.norm = NormRelu(channels, layers=spec.layers, rngs=rngs) if preactivated else None
        self.head = ClassifierHead(channels, spec.num_classes, dropout=spec.head_dropout, layers=spec.layers, rngs=rngs)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages, first to last."""
        return tuple(getattr(self, f"stage{index + 1}") for index in range(len(self.spec.depths)))

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of its parts, from the image to the logits: what `freeze` and `optimizers.by_depth` take.

        Example:
            >>> ResNet(ResNetSpec(depths=(1, 1), widths=(4, 8)), rngs=nnx.Rngs(0)).parts
            ('stem', 'stage1', 'stage2', 'head')
        """
        stages = (f"stage{index + 1}" for index in range(len(self.spec.depths)))
        return ("stem", *stages, *(("norm",) if self.norm is not None else ()), "head")

    def __call__(self, x: jax.Array, *, train: bool | None = None) -> jax.Array:
        """Classifies images.

        Args:
            x: images (batch, height, width, in_channels), channels last, of any real dtype.
            train: True normalises by the batch and moves the running statistics, False normalises by the running
                statistics; None (default) leaves every norm in its own mode, as `net.train()`, `net.eval()` and
                `nnx.view` set it. A new network is in evaluation mode.

        Returns:
            Logits (batch, num_classes), float32 or wider.

        Raises:
            RankError: if x has no four axes.
            ChannelError: if the last axis is not `in_channels` long; LayoutError if the second axis is.
            ImageTooSmallError: if a stride would act on a single pixel, or there is none.
        """
        *_, last = self._through_stages(x, train)
        return self.head(self._normed(last, train), train=train)

    def features(
        self, x: jax.Array, *, stages: Sequence[int] | None = None, train: bool | None = None
    ) -> tuple[jax.Array, ...]:
        """What some of the stages return: feature maps, finest first.

        Args:
            x: images, as for a call.
            stages: their numbers, from 1 (default: all, four of an ImageNet network).
            train: as for a call.

        Returns:
            For each stage in turn, (batch, height / stride, width / stride, channels).

        Raises:
            SpecError: if there is no such stage.

        Example:
            >>> import jax.numpy as jnp
            >>> from flax import nnx
            >>> net = ResNet(ResNetSpec(depths=(1, 1), widths=(4, 8), stem="cifar"), rngs=nnx.Rngs(0))
            >>> [f.shape for f in net.features(jnp.ones((2, 8, 8, 3)))]
            [(2, 8, 8, 4), (2, 4, 4, 8)]
        """
        known = tuple(range(1, len(self.stages) + 1))
        stages = known if stages is None else tuple(stages)
        if not stages or not set(stages) <= set(known):
            raise SpecError(f"features received stages={stages}. Expected some of {known}.")
        maps = list(itertools.islice(self._through_stages(x, train), max(stages)))
        return tuple(maps[stage - 1] for stage in stages)

    def embed(self, x: jax.Array, *, train: bool | None = None) -> jax.Array:
        """What the last layer sees: the mean of the last features over all pixels, (batch, channels), float32 or wider.

        Args:
            x: images, as for a call.
            train: as for a call.
        """
        *_, last = self._through_stages(x, train)
        return self.head.pooled(self._normed(last, train))

    def replace_head(self, num_classes: int, *, rngs: nnx.Rngs | int = 0) -> None:
        """Puts a new last layer in the place of the old one, for other classes; everything before it stays.

        A `resfit.Model` that was made before says so until it is compiled again.

        Args:
            num_classes: number of logits from now on, also in `spec`.
            rngs: where the new weights come from: an `nnx.Rngs`, or a seed (default 0).

        Raises:
            SpecError: if num_classes is no positive integer. Nothing has changed then.

        Example:
            >>> import jax.numpy as jnp
            >>> from flax import nnx
            >>> net = ResNet(ResNetSpec(depths=(1, 1), widths=(4, 8), stem="cifar"), rngs=nnx.Rngs(0))
            >>> net.replace_head(3)
            >>> net(jnp.ones((2, 8, 8, 3))).shape, net.spec.num_classes
            ((2, 3), 3)
        """
        spec = dataclasses.replace(self.spec, num_classes=num_classes)
        keys = LayerKeys(nnx.Rngs(rngs) if isinstance(rngs, int) else rngs)
        channels, old = self.head.dense.in_features, self.head
        self.head = ClassifierHead(channels, num_classes, dropout=spec.head_dropout, layers=spec.layers, rngs=keys)
        if self.head.dropout is not None and old.dropout is not None:
            self.head.dropout.deterministic = old.dropout.deterministic
        self.spec = spec

    def _through_stages(self, x: jax.Array, train: bool | None) -> Iterator[jax.Array]:
        self._check(x)
        x = self.stem(x, train=train)
        for stage in self.stages:
            x = stage(x, train=train)
            yield x

    def _normed(self, x: jax.Array, train: bool | None) -> jax.Array:
        return x if self.norm is None else self.norm(x, train=train)

    def _check(self, x: jax.Array) -> None:
        """Refuses what is no batch of images for this network. Shapes are static: under jit this costs nothing."""
        channels = self.spec.in_channels
        if not hasattr(x, "ndim"):
            raise RankError(
                f"ResNet received a {type(x).__name__} of {len(x) if hasattr(x, '__len__') else 1} entries as its "
                f"input. Expected one array of images, (batch, height, width, {channels}). Labels go into y; a network "
                "of several inputs is a module of your own."
            )
        if x.ndim != 4:
            hint = "Reshape the input."
            if x.ndim == 3 and x.shape[-1] == channels:
                hint = f"Add the batch axis: x[None], of shape {(1, *x.shape)}."
            elif x.ndim == 3:
                hint = f"Grey images need the axis of their one channel: x[..., None], of shape {(*x.shape, 1)}" + (
                    "." if channels == 1 else ", and a network built with in_channels=1."
                )
            elif x.ndim == 2:
                hint = f"Flat pixels need their image's shape: x.reshape(-1, height, width, {channels})."
            raise RankError(
                f"ResNet received an input of {x.ndim} axes, of shape {x.shape}. Expected (batch, height, width, "
                f"{channels}). {hint}"
            )
        if x.shape[3] != channels and x.shape[1] == channels:
            raise LayoutError(
                f"ResNet received an input of shape {x.shape}, which looks like (batch, channels, height, width). "
                f"Expected (batch, height, width, {channels}). Move the channels last: x.transpose(0, 2, 3, 1)."
            )
        if x.shape[3] != channels:
            raise ChannelError(
                f"ResNet received an input of shape {x.shape}, with {x.shape[3]} channels. Expected {channels}. "
                f"Convert the images, or build the network with in_channels={x.shape[3]}."
            )
        size = min(x.shape[1:3])
        if not self._fits(size):
            smallest = next(n for n in itertools.count(1) if self._fits(n))
            raise ImageTooSmallError(
                f"ResNet received an input of shape {x.shape}; its {self.spec.stem} stem and {len(self.stages)} stages "
                f"would halve a side of {size} pixels more often than it can be. Expected at least {smallest} pixels. "
                f"{'Use stem=' + repr('cifar') if self.stem.strides else 'Use fewer stages'}, or enlarge the images."
            )
        if size < SMALL_IMAGE and self.stem.strides and not self.small_image_notice.given:
            self.small_image_notice.given = True
            warnings.warn(
                f"ResNet received images of {x.shape[1]}x{x.shape[2]} pixels through the {self.spec.stem} stem, which "
                f"keeps one in 4x4. Expected at least {SMALL_IMAGE} pixels. Build the network with stem='cifar'.",
                StemWarning,
                stacklevel=3,
            )

    def _fits(self, size: int) -> bool:
        """Whether a side of so many pixels has at least two left wherever a layer steps over pixels."""
        for strides in (*self.stem.strides, *(stage.strides for stage in self.stages)):
            if size < min(strides, 2):
                return False
            size = -(-size // strides)
        return True


class _Notice:
    """Whether a network has given a warning already.

    All copies that NNX makes of a network share it, so the warning comes once and not once per compilation; and all are
    equal, so that it never makes two networks of one spec differ.
    """

    def __init__(self) -> None:
        self.given = False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Notice)

    def __hash__(self) -> int:
        return hash(_Notice)
