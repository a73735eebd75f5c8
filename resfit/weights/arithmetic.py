"""What the networks of other libraries compute differently: raise for it, or convert the arrays to an equal network."""

import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from resfit.errors import WeightsError
from resfit.nets import ResNetSpec
from resfit.weights.layouts import Array

EPSILON = 1.001e-5  # of Keras's ResNets
_OURS = 1e-5


class Need(NamedTuple):
    """A requirement of a library's networks on the spec, where names and shapes also fit other specs.

    Attributes:
        fits: a function of the spec that is False if the network computes something else.
        why: the arithmetic of the library, as the end of a sentence.
        remedy: the network to create.
        unless_named: True if files of both kinds exist, so that `naming=` loads the file anyway.
    """

    fits: Callable[[ResNetSpec], bool]
    why: str
    remedy: str
    unless_named: bool = False


def _is(field: str, *values: object) -> Callable[[ResNetSpec], bool]:
    return lambda spec: getattr(spec, field) in values


def _steps_differ(spec: ResNetSpec) -> bool:
    """Return True for bottleneck blocks without groups, of which some libraries have two kinds."""
    return spec.block in ("bottleneck", "bottleneck_v1", "preact_bottleneck") and spec.groups == 1


_NO_POOL = Need(_is("stem", "cifar"), "have a 3x3 convolution without a pool as their stem", "stem='cifar'")
_STRIDE_3X3 = Need(
    lambda spec: spec.block != "bottleneck_v1", "have the stride in the 3x3 convolution", "block='bottleneck'"
)
_EITHER = Need(
    lambda spec: not _steps_differ(spec),
    "have the stride in the first 1x1 convolution (resnet50, preresnet50) or, with names that end in b, in the 3x3 "
    "convolution (resnet50b); names and shapes are equal",
    "block='bottleneck_v1' for resnet50 and block='bottleneck' for resnet50b, keep the published name of the file",
    unless_named=True,
)
_PLAIN = Need(_is("antialias", None), "have no anti-aliasing", "antialias=None")
_POOL = Need(lambda spec: spec.stem != "caffe", "have the max pool of PyTorch", "stem='imagenet'")
_AS_THEY_ARE = Need(
    _is("weight_standardization", False), "do not standardize their kernels", "weight_standardization=False"
)
_LEGACY = Need(
    lambda spec: spec.stem != "caffe" or not isinstance(spec.squeeze, float),
    "have the max pool of PyTorch if they have squeeze and excitation; those with Caffe's have the names of timm_senet",
    "stem='imagenet', as in 'seresnet50'",
)
# Namings of networks with the parts of any spec; all others have none of timm's special parts.
_GENERAL = ("torchvision", "timm_v2", "timm_senet", "children")

NEEDS: Mapping[str, tuple[Need, ...]] = MappingProxyType(
    {
        "torchvision": (_LEGACY,),
        "children": (_LEGACY,),
        "timm_senet": (
            Need(_is("stem", "caffe"), "have Caffe's max pool", "stem='caffe', as in 'legacy_seresnet50'"),
            Need(
                lambda spec: spec.block != "bottleneck" or spec.groups > 1,
                "have the stride in the first 1x1 convolution",
                "block='bottleneck_v1', as in 'legacy_seresnet50'",
            ),
        ),
        "transformers": (_PLAIN,),
        "transformers_model": (_PLAIN,),
        "transformers_flax": (_PLAIN, _STRIDE_3X3),
        "keras": (
            Need(
                _is("block", "bottleneck_v1"),
                "have the stride in the first 1x1 convolution of a block",
                "block='bottleneck_v1', such as 'resnet50_v1'",
            ),
        ),
        "kuangliu": (_NO_POOL, _STRIDE_3X3, Need(_is("shortcut", "B"), "project in shortcuts", "shortcut='B'")),
        "akamaster": (
            _NO_POOL,
            Need(_is("shortcut", "A"), "have shortcuts without parameters", "shortcut='A'"),
            Need(_is("block", "basic"), "have basic blocks", "block='basic'"),
        ),
        "weiaicunzai": (_NO_POOL, _STRIDE_3X3),
        "pytorchcv": (_PLAIN, _EITHER),
        "pytorchcv_cifar": (_NO_POOL, _STRIDE_3X3),
        "pytorchcv_v2": (Need(_is("stem", "imagenet"), "have a norm in their stem", "stem='imagenet'"), _EITHER),
        "detectron2": (
            _PLAIN,
            Need(
                lambda spec: spec.block != "bottleneck" or spec.groups > 1,
                "have the stride in the first 1x1 convolution (STRIDE_IN_1X1, True by default)",
                "block='bottleneck_v1', such as 'resnet50_v1'",
                unless_named=True,
            ),
        ),
        "nvidia": (_PLAIN, _STRIDE_3X3),
        "mmpretrain_deep": (_PLAIN, _STRIDE_3X3),
    }
)

# Names that only networks with another computation have -> the network.
UNLIKE: Mapping[str, str] = MappingProxyType(
    {
        r"standardized_conv2d": "Big Transfer's own files; resfit reads those of timm, such as "
        "weights='timm/resnetv2_50x1_bit.goog_in21k_ft_in1k'",
        r"ResNetBlock_\d+/|(^|/)conv_init/": "the ResNet example of Flax, which pads strided convolutions by 'SAME'; "
        "no network of resfit does",
        r"res_?net\w*/~/": "the ResNets of Haiku, which pad strided convolutions by 'SAME'; no network of resfit does",
        r"attnpool\.": "CLIP, whose last features go through an attention layer; no network of resfit does",
        r"layer0\.conv3\.": "SENet-154, whose deep stem has Caffe's max pool; no network of resfit does",
        r"\.convpath\.|\.convs\.\d+\.0\.weight$": "an XResNet of fastai, whose stem and shortcuts differ",
        r"(^|\.)layer\d+\.\d+\.(conv\d+\.scale|conv\d+\._packed)": "a quantized network, unlike any of resfit",
    }
)
_SEGMENTATION = r"(^|\.)(aux_classifier|classifier\.0\.convs|classifier\.4)\."  # of torchvision, around its backbone


def _needs(naming: str) -> tuple[Need, ...]:
    return NEEDS.get(naming, ()) + (() if naming in _GENERAL else (_POOL, _AS_THEY_ARE))


def fits(naming: str, spec: ResNetSpec) -> bool:
    """Return True if a network of the spec computes what the networks of a library compute."""
    return all(need.fits(spec) for need in _needs(naming))


def check(naming: str, spec: ResNetSpec, names: Iterable[str], *, known: bool) -> None:
    """Raise if a file's names fit, but its network computes something else than a network of the spec.

    Args:
        naming: the library's names, a key of `NAMINGS`.
        spec: of the network.
        names: all names in the file.
        known: True if the user passed the naming, or the source of the file was checked.

    Raises:
        WeightsError: with the difference and the network to create.
    """
    for need in _needs(naming):
        if need.fits(spec) or (known and need.unless_named):
            continue
        anyway = f" If the weights are of such a network, pass naming={naming!r}." if need.unless_named else ""
        fields = [
            field
            for field in ("block", "stem", "shortcut", "antialias", "weight_standardization")
            if f"{field}=" in need.remedy
        ]
        ours = ", ".join(f"{field}={getattr(spec, field)!r}" for field in fields)
        raise WeightsError(
            f"The names are those of {naming}, whose networks {need.why}. The network has {ours}, so the logits would "
            f"differ. Expected {need.remedy}. Create such a network.{anyway}"
        )
    if spec.output_stride != 8 and any(re.search(_SEGMENTATION, name) for name in names):
        raise WeightsError(
            "The names are those of a segmentation network of torchvision, whose backbone dilates its last two stages. "
            f"The network has output_stride={spec.output_stride}. Expected output_stride=8. Create such a network: "
            "resfit.create_model(..., output_stride=8)."
        )


def hidden(naming: str, spec: ResNetSpec) -> str:
    """Return the end of a sentence about arithmetic that torchvision's names do not show, or an empty text.

    Most files with these names are of networks without the special fields of the spec.
    """
    if naming not in ("torchvision", "children"):
        return ""
    if spec.block == "bottleneck_v1":
        shown = "the position of the stride; this network has the stride in the first 1x1 convolution, and those of "
        shown += "torchvision and timm in the 3x3 convolution, as block='bottleneck'"
    elif spec.antialias is not None:
        shown = f"anti-aliasing; this network has antialias={spec.antialias!r}, and those of torchvision have none"
    elif spec.shortcut == "A":
        shown = "the channels of zeros in shortcuts without parameters; this network appends them after the others, "
        shown += "and those of pytorch_resnet_cifar10 append half of them before, as naming='akamaster'"
    elif spec.stem in ("caffe", "bit"):
        shown = f"the padding of the first layers; this network has stem={spec.stem!r}, and those of torchvision "
        shown += "stem='imagenet'"
    elif spec.weight_standardization:
        shown = "the standardization of kernels; this network has it, and those of torchvision have none"
    elif spec.stem == "cifar" and len(spec.depths) == 4:
        shown = "a pool after a 3x3 stem; this network has no such pool, and those of PyTorch_CIFAR10 have one, as "
        shown += "stem='cifar_pool'"
    else:
        return ""
    return f"do not show {shown}. Compare the source of the weights. naming={naming!r} turns this message off."


def difference(names: Iterable[str]) -> str:
    """Return a sentence about a network that resfit does not have, or an empty text if the names show none."""
    names = list(names)
    for pattern, network in UNLIKE.items():
        if any(re.search(pattern, name) for name in names):
            return f"The names are those of {network}."
    before = any(re.search(r"(^|\.)layer1\.0\.bn1\.weight$", name) for name in names)
    projections = [name for name in names if re.search(r"\.(shortcut|downsample)\.[01]\.weight$", name)]
    if before and projections and not any(name.endswith(".1.weight") for name in projections):
        if any(re.search(r"(^|\.)bn\.weight$", name) for name in names):
            return (
                "The names are those of the PreResNet of pytorch-classification, whose shortcuts project the input "
                "before its norm; no network of resfit does."
            )
        return "The names are those of a PreActResNet of pytorch-cifar, which has no norm after its last block."
    return ""


def in_order(naming: str, path: tuple[str, ...], value: Array, spec: ResNetSpec) -> Array:
    """Return an array in resfit's layout, with its channels in the order of a network of the spec.

    The shortcuts of akamaster's option A append half of the zeros before the channels, and resfit's append all of them
    after the channels. The two networks are equal for another order of the channels between blocks.

    Args:
        naming: the library's names, a key of `NAMINGS`.
        path: of the array in the network.
        value: the array in resfit's layout.
        spec: of the network.
    """
    if naming != "akamaster":
        return value
    orders = _orders(spec.widths)
    if path == ("head", "dense", "kernel"):
        return value[orders[-1]]
    if not path[0].startswith("stage"):
        return value
    stage, first = int(path[0].removeprefix("stage")) - 1, path[2] == "0"
    if path[-2] == "conv1":
        return value[:, :, orders[max(stage - 1, 0) if first else stage]]
    return value[..., orders[stage]] if path[-2] in ("conv2", "norm2") else value


def _orders(widths: Iterable[int]) -> list[Array]:
    """Return for each stage the other network's channel at each place of resfit's channels."""
    first, *others = widths
    orders = [np.arange(first)]
    for width in others:
        before = width // 4  # channels of zeros before the channels of the previous stage
        kept = before + orders[-1]
        orders.append(np.concatenate([kept, np.setdiff1d(np.arange(width), kept)]))
    return orders


def folded(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Return equivalent arrays without biases of convolutions, for norms with epsilon 1e-5.

    The bias of a convolution is subtracted from the mean of the norm that follows. The difference of the epsilons is
    added to the variance.

    Raises:
        WeightsError: if the arrays are those of a ResNetV2.
    """
    layers = {name.partition("/")[0] for name in arrays}
    if any(layer == "post_bn" or "_preact_" in layer for layer in layers):
        raise WeightsError(
            "The weights are those of a ResNetV2 of Keras, whose blocks have another stride position and biases "
            "without a norm, which no network of resfit has. Expected ResNet50, ResNet101 or ResNet152. For a "
            "pre-activation network, use timm's weights, such as weights='timm/resnetv2_50.a1h_in1k'."
        )
    result = dict(arrays)
    for layer in layers:
        norm = f"{layer.removesuffix('_conv')}_bn/moving_mean"
        if layer.endswith("_conv") and f"{layer}/bias" in result and norm in result:
            bias = result.pop(f"{layer}/bias")
            result[norm] = (result[norm].astype("f8") - bias).astype(result[norm].dtype)
    for name, value in result.items():
        if name.endswith("_bn/moving_variance"):
            result[name] = (value.astype("f8") + (EPSILON - _OURS)).astype(value.dtype)
    return result
