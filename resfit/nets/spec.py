"""`ResNetSpec`: a ResNet as plain data, and the small registry of blocks that it names."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from types import MappingProxyType
from typing import Any

from resfit.errors import SpecError
from resfit.nets.blocks import BasicBlock, BottleneckBlock
from resfit.nets.layers import Layers
from resfit.nets.recompute import PARTS
from resfit.nets.residual import Residual
from resfit.nets.shortcut import SHORTCUT_OPTIONS
from resfit.nets.stem import STEMS
from resfit.spelling import did_you_mean

BLOCKS: Mapping[str, Callable[..., Residual]] = MappingProxyType(
    {
        "basic": BasicBlock,
        "bottleneck": BottleneckBlock,
        "bottleneck_v1": partial(BottleneckBlock, stride_on="1x1"),
    }
)
COMPUTE_DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class ResNetSpec:
    """Everything that decides a ResNet's shape and arithmetic. Hashable, comparable, and JSON by `to_dict`.

    Attributes:
        depths: blocks in each stage; every stage but the first halves the image.
        widths: base channels of each stage; the first is also the stem's width.
        block: `"basic"`, `"bottleneck"` (stride in the 3x3 convolution, "v1.5") or `"bottleneck_v1"` (in the
            first 1x1).
        stem: `"imagenet"` (7x7/2 and max pool) or `"cifar"` (3x3, no pool).
        shortcut: where a block changes the shape, `"A"` pads with zeros, `"B"` projects (default).
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

    Raises:
        SpecError: if a value is unknown or the stages do not fit together.

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

    def __post_init__(self) -> None:
        for name in ("depths", "widths"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # lists, as JSON has them, are welcome
        for name, known in (
            ("block", tuple(BLOCKS)),
            ("stem", tuple(STEMS)),
            ("shortcut", SHORTCUT_OPTIONS),
            ("dtype", COMPUTE_DTYPES),
            ("param_dtype", COMPUTE_DTYPES),
            ("remat", (None, *PARTS)),
        ):
            if getattr(self, name) not in known:
                raise SpecError(f"ResNetSpec received {name}={getattr(self, name)!r}. Expected one of {list(known)}.")
        if not self.depths or len(self.depths) != len(self.widths):
            raise SpecError(
                f"ResNetSpec received depths={self.depths} and widths={self.widths}. Expected as many widths as "
                "depths, at least one. Give each stage one of both."
            )
        counts: dict[str, object] = {"num_classes": self.num_classes, "in_channels": self.in_channels}
        counts |= {f"{name}[{i}]": n for name in ("depths", "widths") for i, n in enumerate(getattr(self, name))}
        for name, count in counts.items():
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise SpecError(f"ResNetSpec received {name}={count!r}. Expected a positive integer.")

    @property
    def layers(self) -> Layers:
        """What makes this network's convolutions and norms."""
        return Layers(dtype=self.dtype, param_dtype=self.param_dtype, unbiased_variance=self.unbiased_variance)

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
                    " Weights are read into a network by resfit.weights.load_state_dict."
                    if {"pretrained", "weights"} & set(unknown)
                    else did_you_mean(unknown[0], known)
                )
                + " A file with other fields was written by a newer version of resfit."
            )
        if missing := sorted({"depths", "widths"} - set(values)):
            raise SpecError(f"ResNetSpec received no {' and no '.join(missing)}. Expected both. Add them.")
        return cls(**values)
