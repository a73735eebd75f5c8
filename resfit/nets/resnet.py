"""`ResNet`: a stem, stages of residual blocks and a head, built from a `ResNetSpec`."""

import dataclasses
import itertools
import warnings
from collections.abc import Iterator, Sequence

import jax
from flax import nnx

from resfit._utils.pickling import Pickled
from resfit.errors import ChannelError, ImageTooSmallError, LayoutError, SpecError, StemWarning
from resfit.nets.head import ClassifierHead
from resfit.nets.init import LayerKeys
from resfit.nets.input_checks import check_rank
from resfit.nets.layers import NormRelu
from resfit.nets.recompute import recomputed
from resfit.nets.registry import BLOCKS, STEMS
from resfit.nets.residual import Residual
from resfit.nets.spec import ResNetSpec

SMALL_IMAGE = 64  # pixels; smaller images leave the ImageNet stem with fewer than 16x16 positions, stage 4 with one


class Stage(nnx.Module):
    """Residual blocks of one width. The first block can halve the image.

    Args:
        spec: the spec of the network.
        index: the number of the stage, from 0.
        in_channels: channels of the input.
        rngs: keys for the initial values.
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
            built: Residual = build(in_channels, width, strides=strides, layers=spec.layers, rngs=rngs, **arguments)
            return built

        first = block(in_channels, geometry.strides, geometry.first_dilation, drop_rates[0])
        self.out_channels = first.out_channels
        others = [block(self.out_channels, 1, geometry.dilation, rate) for rate in drop_rates[1:]]
        self.blocks = nnx.List([first, *others])

    def __call__(self, x: jax.Array, *, train: bool | None = None) -> jax.Array:
        """Map (batch, height, width, in_channels) to (batch, ceil(height / strides), ceil(...), out_channels)."""
        if self.remat == "stage":
            return recomputed(lambda stage, x: stage._through_blocks(x, train), self, x)
        return self._through_blocks(x, train)

    def keep_activations(self) -> None:
        """End rematerialization, see `nets.probe.Recomputing`."""
        self.remat = None

    def _through_blocks(self, x: jax.Array, train: bool | None) -> jax.Array:
        for block in self.blocks:
            if self.remat == "block":
                x = recomputed(lambda block, x: block(x, train=train), block, x)
            else:
                x = block(x, train=train)
        return x


def _drop_rates(spec: ResNetSpec) -> list[list[float]]:
    """Return each block's probability of stochastic depth, by stage: from 0 in the first block, in equal steps."""
    total = sum(spec.depths)
    rates = iter([spec.drop_path * i / max(total - 1, 1) for i in range(total)])
    return [list(itertools.islice(rates, depth)) for depth in spec.depths]


class ResNet(nnx.Module, Pickled):
    """A residual network (He et al. 2015, arXiv:1512.03385), from images to logits.

    The parts are `stem`, `stage1`, `stage2`, ..., `norm` (None unless the blocks are pre-activated) and `head`. A new
    network is in evaluation mode.

    Attributes:
        spec: the architecture.
        published_weights: `weights` and `name` of `create_model`, or None for initial values. A `resfit.Model` takes
            their normalization and transforms.

    Args:
        spec: the architecture.
        rngs: keys for the initial values. Equal seeds build equal networks.

    Raises:
        SpecError, ShortcutShapeError: if the parts that the spec names do not fit together.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> spec = ResNetSpec(depths=(1, 1), widths=(4, 8), stem="cifar", num_classes=10)
        >>> net = ResNet(spec, rngs=nnx.Rngs(0))
        >>> net(jnp.ones((2, 8, 8, 3))).shape
        (2, 10)
    """

    published_weights: tuple[str, str] | None = None

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
        """The names of the parts, from the image to the logits, for `freeze` and `optimizers.by_depth`.

        Example:
            >>> ResNet(ResNetSpec(depths=(1, 1), widths=(4, 8)), rngs=nnx.Rngs(0)).parts
            ('stem', 'stage1', 'stage2', 'head')
        """
        stages = (f"stage{index + 1}" for index in range(len(self.spec.depths)))
        return ("stem", *stages, *(("norm",) if self.norm is not None else ()), "head")

    def __call__(self, x: jax.Array, *, train: bool | None = None) -> jax.Array:
        """Classify images.

        Args:
            x: images (batch, height, width, in_channels), channels last, of any real dtype.
            train: True normalizes by the batch statistics and updates the running ones; False normalizes by the
                running statistics; None (default) leaves every norm in its own mode, which `net.train()`, `net.eval()`
                and `nnx.view` set. A new network is in evaluation mode.

        Returns:
            Logits (batch, num_classes), float32 or wider.

        Raises:
            RankError: if x does not have four axes.
            ChannelError: if the last axis does not have `in_channels` entries; LayoutError if the second axis has.
            ImageTooSmallError: if a layer would step over a single pixel.
        """
        *_, last = self._through_stages(x, train)
        return self.head(self._normed(last, train), train=train)

    def features(
        self, x: jax.Array, *, stages: Sequence[int] | None = None, train: bool | None = None
    ) -> tuple[jax.Array, ...]:
        """Return the feature maps of some stages.

        Args:
            x: images, as for a call.
            stages: the numbers of the stages, from 1 (default: all; an ImageNet network has four).
            train: as for a call.

        Returns:
            For each stage, in the order of `stages`, (batch, height / stride, width / stride, channels).

        Raises:
            SpecError: if a stage does not exist.

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
        """Return the input of the last layer: the mean of the last features over all pixels.

        Args:
            x: images, as for a call.
            train: as for a call.

        Returns:
            (batch, channels), float32 or wider.
        """
        *_, last = self._through_stages(x, train)
        return self.head.pooled(self._normed(last, train))

    def replace_head(self, num_classes: int, *, rngs: nnx.Rngs | int = 0) -> None:
        """Replace the last layer by a new one for other classes, and keep all other layers.

        An existing `resfit.Model` of this network raises until you compile it again.

        Args:
            num_classes: the new number of logits, which `spec` then also holds.
            rngs: keys for the new weights: an `nnx.Rngs` or a seed (default 0).

        Raises:
            SpecError: if num_classes is not a positive integer. The network is then unchanged.

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
        """Raise if x is not a batch of images for this network. Shapes are static: under jit this costs nothing."""
        check_rank(x, self.spec.in_channels)
        _check_channels(x.shape, self.spec.in_channels)
        self._check_size(x.shape)

    def _check_size(self, shape: tuple[int, ...]) -> None:
        """Raise if the images are too small for the strides; warn once if they are small for the stem."""
        size = min(shape[1:3])
        if not self._fits(size):
            smallest = next(n for n in itertools.count(1) if self._fits(n))
            raise ImageTooSmallError(
                f"ResNet received an input of shape {shape}; its {self.spec.stem} stem and {len(self.stages)} stages "
                f"halve a side of {size} pixels too often. Expected at least {smallest} pixels. "
                f"{'Use stem=' + repr('cifar') if self.stem.strides else 'Use fewer stages'}, or enlarge the images."
            )
        for_large = self.stem.strides and self.stem.image_size >= SMALL_IMAGE
        if size < SMALL_IMAGE and for_large and not self.small_image_notice.given:
            self.small_image_notice.given = True
            warnings.warn(
                f"ResNet received images of {shape[1]}x{shape[2]} pixels through the {self.spec.stem} stem, which "
                f"keeps one in 4x4. Expected at least {SMALL_IMAGE} pixels. Build the network with stem='cifar'.",
                StemWarning,
                stacklevel=4,
            )

    def _fits(self, size: int) -> bool:
        """Return True if at least two pixels of a side are left wherever a layer steps over pixels."""
        for strides in (*self.stem.strides, *(stage.strides for stage in self.stages)):
            if size < min(strides, 2):
                return False
            size = -(-size // strides)
        return True


def _check_channels(shape: tuple[int, ...], channels: int) -> None:
    """Raise if the last axis does not hold the channels."""
    if shape[3] == channels:
        return
    if shape[1] == channels:
        raise LayoutError(
            f"ResNet received an input of shape {shape}, which looks like (batch, channels, height, width). "
            f"Expected (batch, height, width, {channels}). Move the channels last: x.transpose(0, 2, 3, 1)."
        )
    raise ChannelError(
        f"ResNet received an input of shape {shape}, with {shape[3]} channels. Expected {channels}. "
        f"Convert the images, or build the network with in_channels={shape[3]}."
    )


class _Notice:
    """A flag that a network has warned already.

    All copies that NNX makes of a network share the flag, so the warning comes once, not once per compilation. All
    flags are equal, so networks of one spec have equal graphs.
    """

    def __init__(self) -> None:
        self.given = False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Notice)

    def __hash__(self) -> int:
        return hash(_Notice)
