"""`ResNetSpec`: a ResNet as plain data, and the blocks that it may name."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any, NamedTuple

from resfit._utils.checks import is_int
from resfit._utils.suggest import did_you_mean
from resfit.errors import SpecError
from resfit.nets.blocks import BasicBlock, BottleneckBlock
from resfit.nets.layers import NORMS, Layers
from resfit.nets.pool import antialias_kind
from resfit.nets.preact_blocks import PreActBasicBlock, PreActBottleneckBlock
from resfit.nets.recompute import PARTS
from resfit.nets.registry import Registry
from resfit.nets.residual import Residual
from resfit.nets.shortcut import SHORTCUTS
from resfit.nets.stem import STEMS

MakeBlock = Callable[..., Residual]
"""(in_channels, width, *, strides, layers, rngs, and what else a spec asks for) -> a block; see `ResNetSpec`."""

BLOCKS: Registry[MakeBlock] = Registry(
    "block",
    {
        "basic": BasicBlock,
        "bottleneck": BottleneckBlock,
        "bottleneck_v1": partial(BottleneckBlock, stride_on="1x1"),
        "preact_basic": PreActBasicBlock,
        "preact_bottleneck": PreActBottleneckBlock,
    },
)
COMPUTE_DTYPES = ("float32", "bfloat16", "float16", "float64")

# What a spec asks of blocks and of the stem beyond their shapes: field -> the name of the argument. An argument is only
# passed where the field is not at its default, so a block need only know what it can do.
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
    """How a stage steps over its input.

    Attributes:
        strides: of its first block.
        dilation: of its convolutions.
        first_dilation: of the first 3x3 convolution of its first block: that of the stage before.
    """

    strides: int
    dilation: int
    first_dilation: int


@dataclass(frozen=True)
class ResNetSpec:
    """Everything that decides a ResNet's shape and arithmetic. Hashable, comparable, and JSON by `to_dict`.

    Attributes:
        depths: blocks in each stage; every stage but the first halves the image.
        widths: base channels of each stage.
        block: `"basic"`, `"bottleneck"` (stride in the 3x3 convolution, "v1.5"), `"bottleneck_v1"` (in the first 1x1),
            `"preact_basic"` or `"preact_bottleneck"` ("v2"), or one of your own in `BLOCKS`.
        stem: `"imagenet"` (7x7/2 and max pool), `"cifar"` (3x3, no pool), `"deep"` (ResNet-D), `"deep_tiered"`
            (ResNet-T), `"rs"` (ResNet-RS), `"space_to_depth"`, `"imagenet_conv"` and `"cifar_conv"` (for pre-activated
            blocks), or one of your own in `STEMS`.
        shortcut: where a block changes the shape, `"A"` pads with zeros, `"B"` projects (default), `"D"` averages and
            projects, `"conv"` projects without a norm (pre-activated blocks).
        zero_init_last: start every block as its shortcut alone (default True).
        num_classes: number of logits (default 1000).
        in_channels: channels of the image (default 3).
        dtype: of convolutions and activations (default `"float32"`); statistics and logits are never narrower than
            float32.
        param_dtype: of the parameters (default `"float32"`).
        unbiased_variance: keep running variances as PyTorch does (default False; see `BatchNorm`).
        remat: `"block"` or `"stage"`: of each of these a training step keeps the input alone, and computes the rest
            again for the gradient: less memory, about a third more arithmetic, the same result. None (default) keeps
            everything.
        stem_width: channels after the stem (default: the first of `widths`).
        groups: parts of a bottleneck's 3x3 convolution (ResNeXt; default 1).
        width_per_group: channels of each part, where `widths` has 64 (ResNeXt, wide ResNets; default 64).
        squeeze: ratio of squeeze and excitation after every branch (default None: there is none).
        norm: `"batch"` (default) or `"group"`, or one of your own in `NORMS`.
        antialias: step over pixels by pooling, in the stem and in branches but not in shortcuts, as timm's `aa_layer`:
            `"avg"` by averages of 2x2 pixels, `"blur"` by `blur_pool`. None (default) steps in convolutions. True and
            False, which files of earlier versions hold, mean `"blur"` and None.
        output_stride: pixels of the image for one of the last features; stages beyond it dilate their convolutions
            instead of stepping (default None: every stage steps).
        dropout: probability of dropout inside pre-activated basic blocks (wide ResNets; default 0).
        head_dropout: probability of dropout before the last layer (default 0).
        drop_path: probability of stochastic depth in the last block, falling to 0 in the first (default 0).

    Raises:
        SpecError: if a value is unknown, the stages do not fit together, or a part cannot do what is asked of it.

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
    squeeze: float | None = None
    norm: str = "batch"
    antialias: str | None = None
    output_stride: int | None = None
    dropout: float = 0.0
    head_dropout: float = 0.0
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        for name in ("depths", "widths"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # lists, as JSON has them, are welcome
        object.__setattr__(self, "antialias", antialias_kind(self.antialias))
        for name, known in (
            ("block", BLOCKS),
            ("stem", STEMS),
            ("shortcut", SHORTCUTS),
            ("norm", NORMS),
            ("dtype", COMPUTE_DTYPES),
            ("param_dtype", COMPUTE_DTYPES),
            ("remat", (None, *PARTS)),
        ):
            if getattr(self, name) not in tuple(known):
                raise SpecError(
                    f"ResNetSpec received {name}={getattr(self, name)!r}. Expected one of {list(known)}."
                    + (
                        f" One of your own is known once its code has called resfit.nets.{name.upper()}S.register."
                        if isinstance(known, Registry)
                        else ""
                    )
                )
        if not self.depths or len(self.depths) != len(self.widths):
            raise SpecError(
                f"ResNetSpec received depths={self.depths} and widths={self.widths}. Expected as many widths as "
                "depths, at least one. Give each stage one of both."
            )
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
        if self.squeeze is not None and not 0 < self.squeeze <= 1:
            raise SpecError(f"ResNetSpec received squeeze={self.squeeze!r}. Expected a ratio between 0 and 1, or None.")
        _check_able("block", self.block, BLOCKS[self.block], self.of_blocks)
        _check_able("stem", self.stem, STEMS[self.stem], self.of_stem)
        if any(stage.dilation > 1 for stage in self.geometry):
            _check_able("block", self.block, BLOCKS[self.block], {"dilation": 2, "first_dilation": 1})

    @property
    def layers(self) -> Layers:
        """What makes this network's convolutions and norms."""
        return Layers(self.dtype, self.param_dtype, self.unbiased_variance, self.norm)

    @property
    def of_blocks(self) -> dict[str, Any]:
        """The arguments that its blocks are built with, beyond their shape."""
        return self._asked(_OF_BLOCKS)

    @property
    def of_stem(self) -> dict[str, Any]:
        """The arguments that its stem is built with, beyond its shape."""
        return self._asked(_OF_STEMS) if getattr(STEMS[self.stem], "strides", ()) else {}  # nothing to blur

    def _asked(self, names: Mapping[str, str]) -> dict[str, Any]:
        defaults = {field.name: field.default for field in fields(self)}
        return {names[name]: getattr(self, name) for name in names if getattr(self, name) != defaults[name]}

    @property
    def geometry(self) -> tuple[StageGeometry, ...]:
        """How each stage steps, given `output_stride`."""
        stride = 1
        for step in getattr(STEMS[self.stem], "strides", ()):
            stride *= step
        if self.output_stride is not None and self.output_stride < stride:
            raise SpecError(
                f"ResNetSpec received output_stride={self.output_stride}; its {self.stem} stem alone steps {stride} "
                "pixels. Expected at least as many."
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
                f"ResNetSpec received output_stride={self.output_stride}; its {len(self.depths)} stages step to "
                f"{stride}. Expected a stride that they reach, a power of two times the stem's."
            )
        return tuple(stages)

    def to_dict(self) -> dict[str, Any]:
        """The spec as JSON holds it: strings, numbers, booleans and lists."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ResNetSpec":
        """The spec that `to_dict` came from.

        Args:
            values: field names and values; fields with a default may be absent.

        Raises:
            SpecError: if a name is unknown, a required one is absent, or a value is not allowed.
        """
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise SpecError(
                f"ResNetSpec received the unknown fields {unknown}. Expected some of {sorted(known)}."
                + (
                    " Weights are read by resfit.create_model(..., weights=...), and by resfit.weights.load."
                    if {"pretrained", "weights"} & set(unknown)
                    else did_you_mean(unknown[0], known)
                )
                + " A file with other fields was written by a newer version of resfit."
            )
        if missing := sorted({"depths", "widths"} - set(values)):
            raise SpecError(f"ResNetSpec received no {' and no '.join(missing)}. Expected both. Add them.")
        return cls(**values)


_NOT_ASKED = {"self", "rngs", "layers", "branch", "activation", "before", "in_channels", "width", "residual"}
_COUNTS = ("num_classes", "in_channels", "stem_width", "groups", "width_per_group", "output_stride")


def _check_able(kind: str, name: str, build: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Refuses to ask a part for what its constructor does not know."""
    parameters = _parameters(build)
    known = set(parameters)
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        known |= set(_parameters(Residual))
    if unable := sorted(set(arguments) - known):
        raise SpecError(
            f"ResNetSpec received {kind}={name!r} and asks it for {', '.join(unable)}, which it does not know. "
            f"Expected what its constructor takes: {sorted(known - _NOT_ASKED)}. Choose another {kind}, or leave that "
            "at its default."
        )


def _parameters(build: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    if isinstance(build, partial):
        build = build.func
    # What the signature of a flax class tells is that of its metaclass.
    constructor: Any = build.__init__ if isinstance(build, type) else build  # type: ignore[misc]
    return inspect.signature(constructor).parameters
