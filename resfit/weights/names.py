"""The names and layouts of resfit's parameters in other libraries."""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

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


BLOCK = r"stage(\d+)\.blocks\.(\d+)\."

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
    Rule(BLOCK + r"branch\.conv(\d+)", r"layer\1.\2.conv\3"),
    Rule(BLOCK + r"branch\.norm(\d+)", r"layer\1.\2.bn\3"),
    Rule(BLOCK + r"shortcut\.conv", r"layer\1.\2.downsample.0"),
    Rule(BLOCK + r"shortcut\.norm", r"layer\1.\2.downsample.1"),
    Rule(BLOCK + r"shortcut\.projection\.conv", r"layer\1.\2.downsample.1"),
    Rule(BLOCK + r"shortcut\.projection\.norm", r"layer\1.\2.downsample.2"),
    Rule(BLOCK + r"squeeze\.fc(\d)", r"layer\1.\2.se.fc\3", DENSE_AS_CONVOLUTION),
    Rule(BLOCK + r"squeeze\.conv", r"layer\1.\2.se.conv"),
    Rule(r"head\.dense", "fc"),
)

# timm's pre-activation ResNets (timm/models/resnetv2.py).
TIMM_V2 = (
    Rule(r"stem\.(conv|conv[123]|norm[12])", r"stem.\1"),
    Rule(BLOCK + r"before\.norm", _stage_from_zero("stages.{}.blocks.{}.norm1")),
    Rule(BLOCK + r"branch\.conv(\d+)", _stage_from_zero("stages.{}.blocks.{}.conv{}")),
    Rule(BLOCK + r"branch\.norm(\d+)", _stage_from_zero("stages.{}.blocks.{}.norm{}")),
    Rule(BLOCK + r"shortcut\.(?:projection\.)?conv", _stage_from_zero("stages.{}.blocks.{}.downsample.conv")),
    Rule(r"norm\.norm", "norm"),
    Rule(r"head\.dense", "head.fc", DENSE_AS_CONVOLUTION),
)

# timm's networks of the squeeze-and-excitation paper with Caffe's max pool (timm/models/senet.py).
TIMM_SENET = (
    Rule(r"stem\.conv", "layer0.conv1"),
    Rule(r"stem\.norm", "layer0.bn1"),
    Rule(BLOCK + r"branch\.conv(\d+)", r"layer\1.\2.conv\3"),
    Rule(BLOCK + r"branch\.norm(\d+)", r"layer\1.\2.bn\3"),
    Rule(BLOCK + r"shortcut\.conv", r"layer\1.\2.downsample.0"),
    Rule(BLOCK + r"shortcut\.norm", r"layer\1.\2.downsample.1"),
    Rule(BLOCK + r"squeeze\.fc(\d)", r"layer\1.\2.se_module.fc\3", DENSE_AS_CONVOLUTION),
    Rule(r"head\.dense", "last_linear"),
)

# The ResNets of Hugging Face transformers, microsoft/resnet-* (transformers/models/resnet/modeling_resnet.py).
TRANSFORMERS = (
    Rule(r"stem\.conv", "resnet.embedder.embedder.convolution"),
    Rule(r"stem\.norm", "resnet.embedder.embedder.normalization"),
    Rule(BLOCK + r"branch\.conv(\d+)", _counted_from_zero("resnet.encoder.stages.{}.layers.{}.layer.{}.convolution")),
    Rule(BLOCK + r"branch\.norm(\d+)", _counted_from_zero("resnet.encoder.stages.{}.layers.{}.layer.{}.normalization")),
    Rule(BLOCK + r"shortcut\.conv", _stage_from_zero("resnet.encoder.stages.{}.layers.{}.shortcut.convolution")),
    Rule(BLOCK + r"shortcut\.norm", _stage_from_zero("resnet.encoder.stages.{}.layers.{}.shortcut.normalization")),
    Rule(r"head\.dense", "classifier.1"),
)

# keras.applications, ResNet50, 101 and 152 (keras/src/applications/resnet.py). Kernels have resfit's layout.
KERAS = (
    Rule(r"stem\.conv", "conv1_conv", AS_IT_IS),
    Rule(r"stem\.norm", "conv1_bn"),
    Rule(BLOCK + r"branch\.conv(\d+)", _counted_from_one("conv{}_block{}_{}_conv"), AS_IT_IS),
    Rule(BLOCK + r"branch\.norm(\d+)", _counted_from_one("conv{}_block{}_{}_bn")),
    Rule(BLOCK + r"shortcut\.conv", _counted_from_one("conv{}_block{}_0_conv"), AS_IT_IS),
    Rule(BLOCK + r"shortcut\.norm", _counted_from_one("conv{}_block{}_0_bn")),
    Rule(r"head\.dense", "predictions", AS_IT_IS, bias="bias"),
)


class Naming(NamedTuple):
    """The names of one library.

    Attributes:
        rules: the rules for the module part of a path; the first match counts.
        leaves: resfit's name of an array in a layer -> the library's name.
        separator: the text between the two parts.
        counts_batches: True if each norm has a count of training batches beside its statistics, as in PyTorch.
        heads: other names of the last layer in files with the same names of blocks.
        writes: True if resfit also saves networks with these names.
    """

    rules: tuple[Rule, ...]
    leaves: Mapping[str, str]
    separator: str = "."
    counts_batches: bool = True
    heads: tuple[str, ...] = ()
    writes: bool = False


# PyTorch calls both a scale and a kernel "weight".
OF_PYTORCH = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
OF_KERAS = {"kernel": "kernel", "scale": "gamma", "bias": "beta", "mean": "moving_mean", "var": "moving_variance"}
OF_FLAX = {name: name for name in OF_PYTORCH}


# PyTorch's counts of batches, which resfit ignores: in each norm (only a norm without momentum reads its count, and
# ResNets have none), and in torch.optim.swa_utils.AveragedModel.
COUNT_OF_NORM = "num_batches_tracked"
IGNORED = frozenset({COUNT_OF_NORM, "n_averaged"})


class Entry(NamedTuple):
    """The name and the layout of an array in another library."""

    name: str
    layout: AxisLayout


def entry(path: tuple[str, ...], naming: Naming, rank: int = 1) -> Entry | None:
    """Return the name and layout of an array in another library, or None if the library has no name for the array.

    Args:
        path: the path of the array in the module, such as `("stem", "conv", "kernel")`.
        naming: the names of the library.
        rank: the number of axes of the array in resfit (default 1).
    """
    module, leaf = ".".join(path[:-1]), path[-1]
    for rule in naming.rules:
        if (match := re.fullmatch(rule.pattern, module)) and leaf in naming.leaves:
            name = match.expand(rule.name) if isinstance(rule.name, str) else rule.name(match)
            layout = rule.kernel if leaf == "kernel" and rule.kernel is not None else BY_RANK.get(rank, AS_IT_IS)
            last = rule.bias if leaf == "bias" and rule.bias is not None else naming.leaves[leaf]
            return Entry(f"{name}{naming.separator}{last}", layout)
    return None
