"""The names of arrays in the files of public repositories, as one table.

Each entry of `NAMINGS` names its source in a comment. `resfit.weights.arithmetic` lists what a source computes
differently from other networks with the same names.
"""

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

from resfit.errors import WeightsError
from resfit.weights.layouts import AS_IT_IS, DENSE_AS_CONVOLUTION, AxisLayout
from resfit.weights.names import (
    BLOCK,
    KERAS,
    OF_FLAX,
    OF_KERAS,
    OF_PYTORCH,
    TIMM_SENET,
    TIMM_V2,
    TORCHVISION,
    TRANSFORMERS,
    Entry,
    Naming,
    Rule,
    entry,
)


def _filled(template: str) -> Callable[[re.Match[str]], str]:
    """Return a function of a match (stage, block, and in a branch the number of the layer) that fills a template.

    `{s}` is the stage from 1, `{s0}`, `{s1}` and `{s3}` the stage from 0, 2 and 4; `{b}` is the block from 0, `{b1}`
    from 1; `{i}` is the layer from 1, `{i0}` from 0. `{conv}` and `{norm}` are the places of the layer in a sequence of
    convolution, norm and ReLU.
    """

    def name(match: re.Match[str]) -> str:
        stage, block, *rest = map(int, match.groups())
        i = rest[0] if rest else 1
        return template.format(
            s=stage, s0=stage - 1, s1=stage + 1, s3=stage + 3, b=block, b1=block + 1, i=i, i0=i - 1, conv=3 * i - 3,
            norm=3 * i - 2,
        )  # fmt: skip

    return name


def _rules(
    *,
    stem: str,
    conv: str,
    norm: str,
    head: str,
    stem_norm: str | None = None,
    shortcut: str | None = None,
    shortcut_norm: str | None = None,
    last_norm: str | None = None,
    squeeze: str | None = None,
    kernel: AxisLayout | None = None,
) -> tuple[Rule, ...]:
    """Return the rules of a library by the names of its layers; a layer without a name is not in its networks."""
    plain = {r"stem\.conv": stem, r"stem\.norm": stem_norm, r"norm\.norm": last_norm, r"head\.dense": head}
    in_blocks = {
        r"branch\.conv(\d+)": conv,
        r"branch\.norm(\d+)": norm,
        r"before\.norm": norm,  # the first layer of a pre-activated block
        r"shortcut\.conv": shortcut,
        r"shortcut\.norm": shortcut_norm,
    }
    rules = [Rule(pattern, name, kernel) for pattern, name in plain.items() if name is not None]
    rules += [Rule(BLOCK + pattern, _filled(name), kernel) for pattern, name in in_blocks.items() if name is not None]
    if squeeze is not None:
        rules.append(Rule(BLOCK + r"squeeze\.fc(\d)", _filled(squeeze), DENSE_AS_CONVOLUTION))
    return tuple(rules)


# kuangliu/pytorch-cifar, and option B of akamaster/pytorch_resnet_cifar10.
_KUANGLIU = _rules(
    stem="conv1",
    stem_norm="bn1",
    conv="layer{s}.{b}.conv{i}",
    norm="layer{s}.{b}.bn{i}",
    shortcut="layer{s}.{b}.shortcut.0",
    shortcut_norm="layer{s}.{b}.shortcut.1",
    head="linear",
)
# akamaster/pytorch_resnet_cifar10, option A.
_AKAMASTER = _rules(
    stem="conv1", stem_norm="bn1", conv="layer{s}.{b}.conv{i}", norm="layer{s}.{b}.bn{i}", head="linear"
)
# weiaicunzai/pytorch-cifar100.
_WEIAICUNZAI = _rules(
    stem="conv1.0",
    stem_norm="conv1.1",
    conv="conv{s1}_x.{b}.residual_function.{conv}",
    norm="conv{s1}_x.{b}.residual_function.{norm}",
    shortcut="conv{s1}_x.{b}.shortcut.0",
    shortcut_norm="conv{s1}_x.{b}.shortcut.1",
    head="fc",
)


def _pytorchcv(stem: str, stem_norm: str | None, *, preactivated: bool) -> tuple[Rule, ...]:
    """Return the rules of pytorchcv (osmr/imgclsmob), whose stems differ between its networks."""
    unit = "features.stage{s}.unit{b1}"
    return _rules(
        stem=f"features.init_block{stem}",
        stem_norm=stem_norm and f"features.init_block{stem_norm}",
        conv=unit + ".body.conv{i}.conv",
        norm=unit + ".body.conv{i}.bn",
        shortcut=unit + (".identity_conv" if preactivated else ".identity_conv.conv"),
        shortcut_norm=None if preactivated else unit + ".identity_conv.bn",
        last_norm="features.post_activ.bn" if preactivated else None,
        squeeze=unit + ".se.conv{i}",
        head="output",
    )


# xternalz/WideResNet-pytorch and the wide ResNets of bearpaw/pytorch-classification.
_WRN = _rules(
    stem="conv1",
    conv="block{s}.layer.{b}.conv{i}",
    norm="block{s}.layer.{b}.bn{i}",
    shortcut="block{s}.layer.{b}.convShortcut",
    last_norm="bn1",
    head="fc",
)
# facebookresearch/detectron2, modeling/backbone/resnet.py.
_DETECTRON2 = _rules(
    stem="stem.conv1",
    stem_norm="stem.conv1.norm",
    conv="res{s1}.{b}.conv{i}",
    norm="res{s1}.{b}.conv{i}.norm",
    shortcut="res{s1}.{b}.shortcut",
    shortcut_norm="res{s1}.{b}.shortcut.norm",
    head="linear",
)
# NVIDIA/DeepLearningExamples, PyTorch/Classification/ConvNets.
_NVIDIA = _rules(
    stem="conv1",
    stem_norm="bn1",
    conv="layers.{s0}.{b}.conv{i}",
    norm="layers.{s0}.{b}.bn{i}",
    shortcut="layers.{s0}.{b}.downsample.0",
    shortcut_norm="layers.{s0}.{b}.downsample.1",
    head="fc",
)
# The children of torchvision's network in an nn.Sequential, as in the bodies of fastai's learners.
_CHILDREN = _rules(
    stem="0",
    stem_norm="1",
    conv="{s3}.{b}.conv{i}",
    norm="{s3}.{b}.bn{i}",
    shortcut="{s3}.{b}.downsample.0",
    shortcut_norm="{s3}.{b}.downsample.1",
    head="9",
)


def _transformers(before: str, separator: str, kernel: AxisLayout | None = None) -> tuple[Rule, ...]:
    """Return the rules of transformers' ResNetModel, with another text before each name or another separator."""
    layer = f"{before}encoder.stages.{{s0}}.layers.{{b}}"
    names = {
        "stem": f"{before}embedder.embedder.convolution",
        "stem_norm": f"{before}embedder.embedder.normalization",
        "conv": layer + ".layer.{i0}.convolution",
        "norm": layer + ".layer.{i0}.normalization",
        "shortcut": layer + ".shortcut.convolution",
        "shortcut_norm": layer + ".shortcut.normalization",
        "head": "classifier.1",
    }
    return _rules(**{key: name.replace(".", separator) for key, name in names.items()}, kernel=kernel)


# open-mmlab/mmpretrain, ResNetV1d: the three convolutions of its stem are modules of their own.
_MMPRETRAIN_DEEP = (
    Rule(r"stem\.conv(\d)", lambda match: f"stem.{int(match[1]) - 1}.conv"),
    Rule(r"stem\.norm(\d)", lambda match: f"stem.{int(match[1]) - 1}.bn"),
    Rule(r"stem\.norm", "stem.2.bn"),
    *TORCHVISION,
)

# Of two namings that fit a file equally well, the first counts.
NAMINGS: Mapping[str, Naming] = MappingProxyType(
    {
        # The other heads are those of torchreid and solo-learn, of Cadene's pretrained-models, and of mmpretrain.
        "torchvision": Naming(TORCHVISION, OF_PYTORCH, heads=("classifier", "last_linear", "head.fc"), writes=True),
        "timm_v2": Naming(TIMM_V2, OF_PYTORCH, writes=True),
        "timm_senet": Naming(TIMM_SENET, OF_PYTORCH, writes=True),
        "transformers": Naming(TRANSFORMERS, OF_PYTORCH, writes=True),
        "transformers_model": Naming(_transformers("", "."), OF_PYTORCH),  # without the class for classification
        "transformers_flax": Naming(_transformers("resnet.", "/", AS_IT_IS), OF_FLAX, "/", counts_batches=False),
        "keras": Naming(KERAS, OF_KERAS, "/", counts_batches=False),
        "kuangliu": Naming(_KUANGLIU, OF_PYTORCH, heads=("fc", "classifier")),
        "akamaster": Naming(_AKAMASTER, OF_PYTORCH, heads=("fc",)),
        "weiaicunzai": Naming(_WEIAICUNZAI, OF_PYTORCH),
        "pytorchcv": Naming(_pytorchcv(".conv.conv", ".conv.bn", preactivated=False), OF_PYTORCH),
        "pytorchcv_cifar": Naming(_pytorchcv(".conv", ".bn", preactivated=False), OF_PYTORCH),
        "pytorchcv_v2": Naming(_pytorchcv(".conv", ".bn", preactivated=True), OF_PYTORCH),
        "pytorchcv_cifar_v2": Naming(_pytorchcv("", None, preactivated=True), OF_PYTORCH),
        "wrn": Naming(_WRN, OF_PYTORCH),
        "detectron2": Naming(_DETECTRON2, OF_PYTORCH),
        "nvidia": Naming(_NVIDIA, OF_PYTORCH),
        "children": Naming(_CHILDREN, OF_PYTORCH),
        "mmpretrain_deep": Naming(_MMPRETRAIN_DEEP, OF_PYTORCH, heads=("head.fc",)),
    }
)
WRITTEN = tuple(name for name, naming in NAMINGS.items() if naming.writes)


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
    if not isinstance(naming, str) or naming not in NAMINGS:
        raise WeightsError(f"Received naming={naming!r}. Expected one of {list(NAMINGS)}.")
    found = entry(path, NAMINGS[naming], rank)
    if found is None:
        raise WeightsError(
            f"The network holds {'.'.join(path)}, which has no name in {naming}. Expected the parts of a "
            "resfit.nets.ResNet. Save and load custom networks with Model.save and resfit.load."
        )
    return found
