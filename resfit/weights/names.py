"""What resfit's parameters are called in other libraries, and how their axes lie there."""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from resfit.errors import WeightsError


class Rule(NamedTuple):
    """Renames the module part of a path: a pattern over resfit's name, and the other library's name for it."""

    pattern: str
    name: str


# torchvision's and timm's ResNets share these names (torchvision/models/resnet.py).
TORCHVISION = (
    Rule(r"stem\.conv", "conv1"),
    Rule(r"stem\.norm", "bn1"),
    Rule(r"stage(\d+)\.blocks\.(\d+)\.branch\.conv(\d+)", r"layer\1.\2.conv\3"),
    Rule(r"stage(\d+)\.blocks\.(\d+)\.branch\.norm(\d+)", r"layer\1.\2.bn\3"),
    Rule(r"stage(\d+)\.blocks\.(\d+)\.shortcut\.conv", r"layer\1.\2.downsample.0"),
    Rule(r"stage(\d+)\.blocks\.(\d+)\.shortcut\.norm", r"layer\1.\2.downsample.1"),
    Rule(r"head\.dense", "fc"),
)
NAMINGS: Mapping[str, tuple[Rule, ...]] = MappingProxyType({"torchvision": TORCHVISION})

# PyTorch's names of a layer's arrays; a scale and a kernel are both its weight.
LEAVES: Mapping[str, str] = MappingProxyType(
    {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
)

# PyTorch's count of training batches. Only a norm without a momentum reads it, and no ResNet has one.
IGNORED = "num_batches_tracked"

# Axes as einops names them: of a kernel here, and of the same kernel in PyTorch, by rank.
KERNEL_AXES: Mapping[int, tuple[str, str]] = MappingProxyType({4: ("h w i o", "o i h w"), 2: ("i o", "o i")})


def other_name(path: tuple[str, ...], naming: str) -> str:
    """The name of an array in another library, or in PyTorch's state dicts.

    Args:
        path: the array's path in the module, such as `("stem", "conv", "kernel")`.
        naming: the library, a key of `NAMINGS`.

    Raises:
        WeightsError: if the naming is unknown, or has no name for the path.

    Example:
        >>> other_name(("stage2", "blocks", "0", "shortcut", "norm", "var"), "torchvision")
        'layer2.0.downsample.1.running_var'
    """
    if naming not in NAMINGS:
        raise WeightsError(f"Received naming={naming!r}. Expected one of {list(NAMINGS)}.")
    module, leaf = ".".join(path[:-1]), path[-1]
    for rule in NAMINGS[naming]:
        if (match := re.fullmatch(rule.pattern, module)) and leaf in LEAVES:
            return f"{match.expand(rule.name)}.{LEAVES[leaf]}"
    raise WeightsError(
        f"The network holds {'.'.join(path)}, for which the names of {naming} have no counterpart. Expected the "
        "parts of a resfit.nets.ResNet. Networks of your own are saved and loaded with Model.save and resfit.load."
    )
