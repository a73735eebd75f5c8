"""The networks by name: a table of specs, each with the numbers that it must have and where they come from."""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any

from flax import nnx

from resfit.errors import SpecError
from resfit.nets.resnet import ResNet
from resfit.nets.spec import ResNetSpec
from resfit.spelling import did_you_mean


@dataclass(frozen=True)
class ZooRow:
    """One network of the zoo.

    Attributes:
        spec: what to build, with the source's number of classes.
        image_size: side in pixels of the square images that `multiply_adds` is for.
        parameters: trained scalars, exactly; batch statistics are not among them.
        multiply_adds: of the convolutions and the dense layer for one image, exactly.
        source: where the network and its numbers come from.
    """

    spec: ResNetSpec
    image_size: int
    parameters: int
    multiply_adds: int
    source: str


_IMAGENET_WIDTHS = (64, 128, 256, 512)
_TORCHVISION = "He et al. 2015, arXiv:1512.03385, table 1; numbers as torchvision 0.29.1"
_TIMM = "He et al. 2016, arXiv:1603.05027; parameters as timm 1.0.31"
_CIFAR = "He et al. 2015, arXiv:1512.03385, section 4.2, option A"


def _imagenet(block: str, depths: tuple[int, ...], parameters: int, multiply_adds: int, source: str) -> ZooRow:
    spec = ResNetSpec(depths=depths, widths=_IMAGENET_WIDTHS, block=block)
    return ZooRow(spec, 224, parameters, multiply_adds, source)


def _cifar(blocks_per_stage: int, parameters: int, multiply_adds: int) -> ZooRow:
    spec = ResNetSpec(depths=(blocks_per_stage,) * 3, widths=(16, 32, 64), stem="cifar", shortcut="A", num_classes=10)
    return ZooRow(spec, 32, parameters, multiply_adds, _CIFAR)


ZOO: Mapping[str, ZooRow] = MappingProxyType(
    {
        "resnet18": _imagenet("basic", (2, 2, 2, 2), 11_689_512, 1_814_073_344, _TORCHVISION),
        "resnet34": _imagenet("basic", (3, 4, 6, 3), 21_797_672, 3_663_761_408, _TORCHVISION),
        "resnet50": _imagenet("bottleneck", (3, 4, 6, 3), 25_557_032, 4_089_184_256, _TORCHVISION),
        "resnet101": _imagenet("bottleneck", (3, 4, 23, 3), 44_549_160, 7_801_405_440, _TORCHVISION),
        "resnet152": _imagenet("bottleneck", (3, 8, 36, 3), 60_192_808, 11_513_626_624, _TORCHVISION),
        "resnet200": _imagenet("bottleneck", (3, 24, 36, 3), 64_673_832, 15_007_481_856, _TIMM),
        "resnet20": _cifar(3, 269_722, 40_551_040),
        "resnet32": _cifar(5, 464_154, 68_862_592),
        "resnet44": _cifar(7, 658_586, 97_174_144),
        "resnet56": _cifar(9, 853_018, 125_485_696),
        "resnet110": _cifar(18, 1_727_962, 252_887_680),
        "resnet1202": _cifar(200, 19_421_274, 2_829_238_912),
    }
)


def list_models(pattern: str = "*") -> list[str]:
    """The names of the zoo's networks, shallowest first within each family.

    Args:
        pattern: a shell pattern, such as `"resnet1*"` (default: all).

    Example:
        >>> list_models("resnet??")[:3]
        ['resnet18', 'resnet34', 'resnet50']
    """
    return [name for name in ZOO if fnmatchcase(name, pattern)]


def create_model(
    name: str, *, num_classes: int, in_channels: int = 3, rngs: nnx.Rngs | int = 0, **spec_overrides: Any
) -> ResNet:
    """Builds a network of the zoo with new weights.

    Args:
        name: one of `list_models()`.
        num_classes: number of logits.
        in_channels: channels of the images (default 3).
        rngs: where the first weights come from: an `nnx.Rngs`, or a seed (default 0).
        **spec_overrides: any other field of `ResNetSpec`, such as `stem="cifar"`, `shortcut="B"` or
            `dtype="bfloat16"`.

    Raises:
        SpecError: if the name or a field is unknown, or a value is not allowed.

    Example:
        >>> import jax.numpy as jnp
        >>> net = create_model("resnet20", num_classes=10)
        >>> net(jnp.ones((1, 32, 32, 3))).shape
        (1, 10)
    """
    if name not in ZOO:
        raise SpecError(
            f"create_model received the unknown name {name!r}. Expected one of {list(ZOO)}." + did_you_mean(name, ZOO)
        )
    values = ZOO[name].spec.to_dict() | spec_overrides | {"num_classes": num_classes, "in_channels": in_channels}
    return ResNet(ResNetSpec.from_dict(values), rngs=nnx.Rngs(rngs) if isinstance(rngs, int) else rngs)
