"""The names and layouts of resfit's parameters in other libraries."""

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from resfit.errors import WeightsError
from resfit.weights.layouts import AS_IT_IS, BY_RANK, DENSE_AS_CONVOLUTION, SPACE_TO_DEPTH, AxisLayout


class Rule(NamedTuple):
    """A rule that renames the module part of a path.

    Attributes:
        pattern: a regular expression for resfit's name.
        name: the name in the other library, as a template or a function of the match.
        kernel: the layout of a kernel in the other library; None for the default of its rank.
        bias: the name of a bias, if it differs from the library's usual name.
    """

    pattern: str
    name: str | Callable[[re.Match[str]], str]
    kernel: AxisLayout | None = None
    bias: str | None = None


def _stage_from_zero(template: str) -> Callable[[re.Match[str]], str]:
    """Return a function that fills the template, with the stage (first group) counted from zero."""
    return lambda match: template.format(int(match[1]) - 1, *match.groups()[1:])


def _counted_from_zero(template: str) -> Callable[[re.Match[str]], str]:
    """Return a function that fills the template, with stage and layer (first and last group) counted from zero."""
    return lambda match: template.format(int(match[1]) - 1, match[2], int(match[3]) - 1)


def _counted_from_one(template: str) -> Callable[[re.Match[str]], str]:
    """Return a function that fills the template, with the stem as the first stage and blocks counted from one."""
    return lambda match: template.format(int(match[1]) + 1, int(match[2]) + 1, *match.groups()[2:])


_BLOCK = r"stage(\d+)\.blocks\.(\d+)\."

# torchvision's and timm's ResNets share these names (torchvision/models/resnet.py, timm/models/resnet.py).
TORCHVISION = (
    Rule(r"stem\.conv", "conv1"),
    Rule(r"stem\.conv_of_blocks", "conv1", SPACE_TO_DEPTH),
    Rule(r"stem\.norm", "bn1"),
    Rule(r"stem\.conv1", "conv1.0"),
    Rule(r"stem\.norm1", "conv1.1"),
    Rule(r"stem\.conv2", "conv1.3"),
    Rule(r"stem\.norm2", "conv1.4"),
    Rule(r"stem\.conv3", "conv1.6"),
    Rule(r"stem\.conv4", "maxpool.0"),
    Rule(r"stem\.norm4", "maxpool.1"),
    Rule(_BLOCK + r"branch\.conv(\d+)", r"layer\1.\2.conv\3"),
    Rule(_BLOCK + r"branch\.norm(\d+)", r"layer\1.\2.bn\3"),
    Rule(_BLOCK + r"shortcut\.conv", r"layer\1.\2.downsample.0"),
    Rule(_BLOCK + r"shortcut\.norm", r"layer\1.\2.downsample.1"),
    Rule(_BLOCK + r"shortcut\.projection\.conv", r"layer\1.\2.downsample.1"),
    Rule(_BLOCK + r"shortcut\.projection\.norm", r"layer\1.\2.downsample.2"),
    Rule(_BLOCK + r"squeeze\.fc(\d)", r"layer\1.\2.se.fc\3", DENSE_AS_CONVOLUTION),
    Rule(_BLOCK + r"squeeze\.conv", r"layer\1.\2.se.conv"),
    Rule(r"head\.dense", "fc"),
)

# timm's pre-activation ResNets (timm/models/resnetv2.py).
TIMM_V2 = (
    Rule(r"stem\.(conv|conv[123]|norm[12])", r"stem.\1"),
    Rule(_BLOCK + r"before\.norm", _stage_from_zero("stages.{}.blocks.{}.norm1")),
    Rule(_BLOCK + r"branch\.conv(\d+)", _stage_from_zero("stages.{}.blocks.{}.conv{}")),
    Rule(_BLOCK + r"branch\.norm(\d+)", _stage_from_zero("stages.{}.blocks.{}.norm{}")),
    Rule(_BLOCK + r"shortcut\.(?:projection\.)?conv", _stage_from_zero("stages.{}.blocks.{}.downsample.conv")),
    Rule(r"norm\.norm", "norm"),
    Rule(r"head\.dense", "head.fc", DENSE_AS_CONVOLUTION),
)

# timm's networks of the squeeze-and-excitation paper with Caffe's max pool (timm/models/senet.py).
TIMM_SENET = (
    Rule(r"stem\.conv", "layer0.conv1"),
    Rule(r"stem\.norm", "layer0.bn1"),
    Rule(_BLOCK + r"branch\.conv(\d+)", r"layer\1.\2.conv\3"),
    Rule(_BLOCK + r"branch\.norm(\d+)", r"layer\1.\2.bn\3"),
    Rule(_BLOCK + r"shortcut\.conv", r"layer\1.\2.downsample.0"),
    Rule(_BLOCK + r"shortcut\.norm", r"layer\1.\2.downsample.1"),
    Rule(_BLOCK + r"squeeze\.fc(\d)", r"layer\1.\2.se_module.fc\3", DENSE_AS_CONVOLUTION),
    Rule(r"head\.dense", "last_linear"),
)

# The ResNets of Hugging Face transformers, microsoft/resnet-* (transformers/models/resnet/modeling_resnet.py).
TRANSFORMERS = (
    Rule(r"stem\.conv", "resnet.embedder.embedder.convolution"),
    Rule(r"stem\.norm", "resnet.embedder.embedder.normalization"),
    Rule(_BLOCK + r"branch\.conv(\d+)", _counted_from_zero("resnet.encoder.stages.{}.layers.{}.layer.{}.convolution")),
    Rule(
        _BLOCK + r"branch\.norm(\d+)", _counted_from_zero("resnet.encoder.stages.{}.layers.{}.layer.{}.normalization")
    ),
    Rule(_BLOCK + r"shortcut\.conv", _stage_from_zero("resnet.encoder.stages.{}.layers.{}.shortcut.convolution")),
    Rule(_BLOCK + r"shortcut\.norm", _stage_from_zero("resnet.encoder.stages.{}.layers.{}.shortcut.normalization")),
    Rule(r"head\.dense", "classifier.1"),
)

# keras.applications, ResNet50, 101 and 152 (keras/src/applications/resnet.py). Kernels have resfit's layout.
KERAS = (
    Rule(r"stem\.conv", "conv1_conv", AS_IT_IS),
    Rule(r"stem\.norm", "conv1_bn"),
    Rule(_BLOCK + r"branch\.conv(\d+)", _counted_from_one("conv{}_block{}_{}_conv"), AS_IT_IS),
    Rule(_BLOCK + r"branch\.norm(\d+)", _counted_from_one("conv{}_block{}_{}_bn")),
    Rule(_BLOCK + r"shortcut\.conv", _counted_from_one("conv{}_block{}_0_conv"), AS_IT_IS),
    Rule(_BLOCK + r"shortcut\.norm", _counted_from_one("conv{}_block{}_0_bn")),
    Rule(r"head\.dense", "predictions", AS_IT_IS, bias="bias"),
)


class Naming(NamedTuple):
    """The names of one library.

    Attributes:
        rules: the rules for the module part of a path; the first match counts.
        leaves: resfit's name of an array in a layer -> the library's name.
        separator: the text between the two parts.
        counts_batches: True if each norm has a count of training batches beside its statistics, as in PyTorch.
    """

    rules: tuple[Rule, ...]
    leaves: Mapping[str, str]
    separator: str = "."
    counts_batches: bool = True


# PyTorch calls both a scale and a kernel "weight".
_OF_PYTORCH = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_OF_KERAS = {"kernel": "kernel", "scale": "gamma", "bias": "beta", "mean": "moving_mean", "var": "moving_variance"}

NAMINGS: Mapping[str, Naming] = MappingProxyType(
    {
        "torchvision": Naming(TORCHVISION, _OF_PYTORCH),
        "timm_v2": Naming(TIMM_V2, _OF_PYTORCH),
        "timm_senet": Naming(TIMM_SENET, _OF_PYTORCH),
        "transformers": Naming(TRANSFORMERS, _OF_PYTORCH),
        "keras": Naming(KERAS, _OF_KERAS, "/", counts_batches=False),
    }
)

# PyTorch's counts of batches, which resfit ignores: in each norm (only a norm without momentum reads its count, and
# ResNets have none), and in torch.optim.swa_utils.AveragedModel.
COUNT_OF_NORM = "num_batches_tracked"
IGNORED = frozenset({COUNT_OF_NORM, "n_averaged"})

# Prefixes that training loops, compilers and wrappers add to every name.
PREFIXES = ("module.", "model.", "_orig_mod.")


class Entry(NamedTuple):
    """The name and the layout of an array in another library."""

    name: str
    layout: AxisLayout


def other_name(path: tuple[str, ...], naming: str, rank: int = 1) -> Entry:
    """Return the name and layout of an array in another library.

    Args:
        path: the path of the array in the module, such as `("stem", "conv", "kernel")`.
        naming: the library, a key of `NAMINGS`.
        rank: the number of axes of the array in resfit (default 1).

    Raises:
        WeightsError: if `naming` is unknown, or has no name for the path.

    Example:
        >>> other_name(("stage2", "blocks", "0", "shortcut", "norm", "var"), "torchvision").name
        'layer2.0.downsample.1.running_var'
    """
    if naming not in NAMINGS:
        raise WeightsError(f"Received naming={naming!r}. Expected one of {list(NAMINGS)}.")
    module, leaf = ".".join(path[:-1]), path[-1]
    rules, leaves, separator, _ = NAMINGS[naming]
    for rule in rules:
        if (match := re.fullmatch(rule.pattern, module)) and leaf in leaves:
            name = match.expand(rule.name) if isinstance(rule.name, str) else rule.name(match)
            layout = rule.kernel if leaf == "kernel" and rule.kernel is not None else BY_RANK.get(rank, AS_IT_IS)
            last = rule.bias if leaf == "bias" and rule.bias is not None else leaves[leaf]
            return Entry(f"{name}{separator}{last}", layout)
    raise WeightsError(
        f"The network holds {'.'.join(path)}, which has no name in {naming}. Expected the parts of a "
        "resfit.nets.ResNet. Save and load custom networks with Model.save and resfit.load."
    )
