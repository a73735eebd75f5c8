"""`ResNetSpec`: the architecture of a ResNet as plain data."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any, NamedTuple

from resfit._utils.checks import is_int
from resfit._utils.suggest import did_you_mean
from resfit._utils.words import use
from resfit.errors import SpecError
from resfit.nets.layers import Layers
from resfit.nets.pool import antialias_kind
from resfit.nets.recompute import PARTS
from resfit.nets.registry import BLOCKS, NORMS, SHORTCUTS, STEMS, Registry
from resfit.nets.residual import Residual
from resfit.nets.squeeze import check_squeeze

COMPUTE_DTYPES = ("float32", "bfloat16", "float16", "float64")

# Fields that become arguments of the blocks and of the stem: field -> name of the argument. A field at its default is
# not passed, so a block only needs the arguments that it supports.
_OF_BLOCKS = {
    "shortcut": "shortcut",
    "zero_init_last": "zero_init_last",
    "groups": "groups",
    "width_per_group": "width_per_group",
    "squeeze": "squeeze",
    "dropout": "dropout",
    "antialias": "antialias",
}
_OF_STEMS = {"antialias": "antialias"}


class StageGeometry(NamedTuple):
    """Strides and dilations of a stage.

    Attributes:
        strides: strides of the first block.
        dilation: dilation of the convolutions.
        first_dilation: dilation of the first 3x3 convolution of the first block, that of the previous stage.
    """

    strides: int
    dilation: int
    first_dilation: int


@dataclass(frozen=True)
class ResNetSpec:
    """The architecture and the arithmetic of a ResNet. Hashable and comparable; `to_dict` gives JSON.

    Attributes:
        depths: blocks in each stage. Every stage except the first halves the image.
        widths: base channels of each stage.
        block: `"basic"`, `"bottleneck"` (stride in the 3x3 convolution, "v1.5"), `"bottleneck_v1"` (in the first 1x1),
            `"bottleneck_senet"` (with a narrower first convolution), `"preact_basic"` or `"preact_bottleneck"` ("v2"),
            or a custom name in `BLOCKS`.
        stem: `"imagenet"` (7x7/2 and max pool), `"caffe"` (with Caffe's max pool), `"cifar"` (3x3, no pool),
            `"cifar_pool"` (3x3 and max pool), `"deep"` (ResNet-D), `"deep_tiered"` (ResNet-T), `"rs"` (ResNet-RS),
            `"space_to_depth"`; for pre-activated blocks `"imagenet_conv"`, `"cifar_conv"`, `"deep_conv"`,
            `"deep_tiered_conv"` and `"bit"` (Big Transfer); or a custom name in `STEMS`.
        shortcut: the shortcut of blocks that change the shape: `"A"` pads with zeros, `"B"` projects (default),
            `"B3"` projects by 3x3 pixels, `"D"` averages and projects, `"conv"` and `"D_conv"` are `"B"` and `"D"`
            without a norm (pre-activated blocks).
        zero_init_last: start with blocks that return their shortcut (default True).
        num_classes: number of logits (default 1000).
        in_channels: channels of the image (default 3).
        dtype: dtype of convolutions and activations (default `"float32"`). Statistics and logits are float32 or wider.
        param_dtype: dtype of the parameters (default `"float32"`).
        unbiased_variance: update running variances as PyTorch does (default False; see `BatchNorm`).
        remat: `"block"` or `"stage"`: a training step keeps only the input of each block or stage, and computes the
            rest again for the gradient. This needs less memory and about a third more arithmetic, and gives the same
            result. None (default) keeps all activations.
        stem_width: channels after the stem (default: the first of `widths`).
        groups: groups of a bottleneck's 3x3 convolution (ResNeXt; default 1).
        width_per_group: channels of each group in a stage of width 64 (ResNeXt, wide ResNets; default 64).
        squeeze: ratio of squeeze and excitation after every branch, or `"eca"` for efficient channel attention
            (default None: neither).
        norm: `"batch"` (default) or `"group"`, or a custom name in `NORMS`.
        antialias: step over pixels by pooling in the stem and in branches, but not in shortcuts, as timm's `aa_layer`
            does: `"avg"` averages 2x2 pixels, `"blur"` uses `blur_pool`. None (default) steps in convolutions. True and
            False, in files of earlier versions, mean `"blur"` and None.
        weight_standardization: standardize the kernels of all convolutions (see `Layers`; default False). Blocks that
            start with a kernel of zeros need `zero_init_last=False`.
        output_stride: pixels of the image for one position of the last features. Further stages dilate their
            convolutions instead of stepping (default None: every stage steps).
        dropout: probability of dropout inside pre-activated basic blocks (wide ResNets; default 0).
        head_dropout: probability of dropout before the last layer (default 0).
        drop_path: probability of stochastic depth in the last block; it falls to 0 in the first block (default 0).

    Raises:
        SpecError: if a value is unknown, if the stages do not fit together, or if a part does not support a field.

    Example:
        >>> spec = ResNetSpec(depths=(3, 3, 3), widths=(16, 32, 64), stem="cifar", num_classes=10)
        >>> ResNetSpec.from_dict(spec.to_dict()) == spec
        True
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    block: str = "basic"
    stem: str = "imagenet"
    shortcut: str = "B"
    zero_init_last: bool = True
    num_classes: int = 1000
    in_channels: int = 3
    dtype: str = "float32"
    param_dtype: str = "float32"
    unbiased_variance: bool = False
    remat: str | None = None
    stem_width: int | None = None
    groups: int = 1
    width_per_group: int = 64
    squeeze: float | str | None = None
    norm: str = "batch"
    antialias: str | None = None
    weight_standardization: bool = False
    output_stride: int | None = None
    dropout: float = 0.0
    head_dropout: float = 0.0
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        for name in ("depths", "widths"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON has lists
        object.__setattr__(self, "antialias", antialias_kind(self.antialias))
        self._check_names()
        self._check_stages()
        self._check_numbers()
        self._check_parts()

    def _check_names(self) -> None:
        """Raise if a field names a part or a dtype that does not exist."""
        for name, known in _KNOWN.items():
            if getattr(self, name) not in tuple(known):
                custom = f" Call resfit.nets.{name.upper()}S.register first to use a custom one."
                raise SpecError(
                    f"ResNetSpec received {name}={getattr(self, name)!r}. Expected one of {list(known)}."
                    + (custom if isinstance(known, Registry) else "")
                )

    def _check_stages(self) -> None:
        """Raise if there is no stage, or if the numbers of depths and widths differ."""
        if not self.depths or len(self.depths) != len(self.widths):
            raise SpecError(
                f"ResNetSpec received depths={self.depths} and widths={self.widths}. Expected at least one stage, and "
                "one depth and one width for each stage."
            )

    def _check_numbers(self) -> None:
        """Raise if a count is not a positive integer, or if a probability or a ratio is out of range."""
        counts: dict[str, object] = {name: getattr(self, name) for name in _COUNTS if getattr(self, name) is not None}
        counts |= {f"{name}[{i}]": n for name in ("depths", "widths") for i, n in enumerate(getattr(self, name))}
        for name, count in counts.items():
            if not is_int(count, 1):
                raise SpecError(f"ResNetSpec received {name}={count!r}. Expected a positive integer.")
        for name in ("depths", "widths"):
            object.__setattr__(self, name, tuple(map(int, getattr(self, name))))  # JSON has no NumPy integers
        for name in set(counts) & set(_COUNTS):
            object.__setattr__(self, name, int(getattr(self, name)))
        for name in ("dropout", "head_dropout", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise SpecError(f"ResNetSpec received {name}={getattr(self, name)!r}. Expected a probability below 1.")
        check_squeeze(self.squeeze, "ResNetSpec")

    def _check_parts(self) -> None:
        """Raise if the block or the stem does not support a field that this spec sets."""
        _check_able("block", self.block, BLOCKS[self.block], self.of_blocks)
        _check_able("stem", self.stem, STEMS[self.stem], self.of_stem)
        if any(stage.dilation > 1 for stage in self.geometry):
            _check_able("block", self.block, BLOCKS[self.block], {"dilation": 2, "first_dilation": 1})

    @property
    def layers(self) -> Layers:
        """The factory of this network's convolutions and norms."""
        return Layers(self.dtype, self.param_dtype, self.unbiased_variance, self.norm, self.weight_standardization)

    @property
    def of_blocks(self) -> dict[str, Any]:
        """The arguments of the blocks in addition to their shape."""
        return self._asked(_OF_BLOCKS)

    @property
    def of_stem(self) -> dict[str, Any]:
        """The arguments of the stem in addition to its shape."""
        return self._asked(_OF_STEMS) if getattr(STEMS[self.stem], "strides", ()) else {}  # nothing to blur

    def _asked(self, names: Mapping[str, str]) -> dict[str, Any]:
        defaults = {field.name: field.default for field in fields(self)}
        return {names[name]: getattr(self, name) for name in names if getattr(self, name) != defaults[name]}

    @property
    def geometry(self) -> tuple[StageGeometry, ...]:
        """Strides and dilations of each stage, with respect to `output_stride`."""
        stride = 1
        for step in getattr(STEMS[self.stem], "strides", ()):
            stride *= step
        if self.output_stride is not None and self.output_stride < stride:
            raise SpecError(
                f"ResNetSpec received output_stride={self.output_stride}; the {self.stem} stem steps {stride} pixels. "
                f"Expected at least {stride}. Choose a larger output_stride or another stem."
            )
        stages, dilation = [], 1
        for index in range(len(self.depths)):
            strides = 1 if index == 0 else 2
            before = dilation
            if self.output_stride is not None and stride * strides > self.output_stride:
                strides, dilation = 1, dilation * strides
            stride *= strides
            stages.append(StageGeometry(strides, dilation, before))
        if self.output_stride is not None and stride != self.output_stride:
            raise SpecError(
                f"ResNetSpec received output_stride={self.output_stride}; its {len(self.depths)} stages reach a stride "
                f"of {stride}. Expected the stride of the stem times a power of two, up to that of all stages."
            )
        return tuple(stages)

    def to_dict(self) -> dict[str, Any]:
        """Return the spec as strings, numbers, booleans and lists, for JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ResNetSpec":
        """Return the spec of a dictionary that `to_dict` made.

        Args:
            values: field names and values. Fields with a default can be absent.

        Raises:
            SpecError: if a name is unknown, a required field is absent, or a value is not allowed.
        """
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise SpecError(
                f"ResNetSpec received the unknown fields {unknown}."
                + (f" {use(unknown[0], 'network')}".rstrip() or did_you_mean(unknown[0], known))
                + f" Expected some of {sorted(known)}. A file with other fields is from a newer version of resfit."
            )
        if missing := sorted({"depths", "widths"} - set(values)):
            raise SpecError(f"ResNetSpec received no {' and no '.join(missing)}. Expected both. Add them.")
        return cls(**values)


# The values that a field may have.
_KNOWN: dict[str, Iterable[Any]] = {
    "block": BLOCKS,
    "stem": STEMS,
    "shortcut": SHORTCUTS,
    "norm": NORMS,
    "dtype": COMPUTE_DTYPES,
    "param_dtype": COMPUTE_DTYPES,
    "remat": (None, *PARTS),
}
_NOT_ASKED = {"self", "rngs", "layers", "branch", "activation", "before", "in_channels", "width", "residual"}
_COUNTS = ("num_classes", "in_channels", "stem_width", "groups", "width_per_group", "output_stride")


def _check_able(kind: str, name: str, build: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Raise if the constructor of a part does not have these arguments."""
    parameters = _parameters(build)
    known = set(parameters)
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        known |= set(_parameters(Residual))
    if unable := sorted(set(arguments) - known):
        raise SpecError(
            f"ResNetSpec received {', '.join(unable)} for {kind}={name!r}, which does not support it. Expected some of "
            f"{sorted(known - _NOT_ASKED)}. Choose another {kind}, or leave that field at its default."
        )


def _parameters(build: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    if isinstance(build, partial):
        build = build.func
    # inspect.signature of a flax class gives the signature of its metaclass.
    constructor: Any = build.__init__ if isinstance(build, type) else build  # type: ignore[misc]
    return inspect.signature(constructor).parameters
