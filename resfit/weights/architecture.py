"""Architecture checks by the source of a weights file, for differences that names and shapes do not show."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from resfit.errors import WeightsError
from resfit.nets import ZOO, ResNetSpec
from resfit.weights.published import TORCHVISION

HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # files of a hub repository, the preferred one first
CONFIG = "config.json"

# The spec fields that names and shapes of arrays do not determine, for a network of torchvision.
_PLAIN: Mapping[str, Any] = MappingProxyType(
    {"antialias": None, "block": "bottleneck", "stem": "imagenet", "shortcut": "B", "weight_standardization": False}
)
# Parts whose arrays have the same names and shapes, and that compute something else.
_ALIKE = (
    {"bottleneck", "bottleneck_v1"},
    {"imagenet", "caffe"},
    {"space_to_depth", "caffe"},
    {"imagenet_conv", "bit"},
    {"conv", "D_conv"},
)
# Arguments of timm's networks that do not change what the blocks compute.
_OF_SIZE = {"num_classes", "in_chans", "img_size", "drop_rate", "drop_path_rate"}
# Files of pytorchcv: the network, its error on the validation data, the beginning of its checksum.
_PYTORCHCV = re.compile(r"(?P<network>(?P<pre>pre)?(se)?resnet(bc)?\d+(?P<b>b?)\w*)-\d{4}-[0-9a-f]{8}\.pth")
_IN_CACHE = re.compile(r"models--(timm|microsoft)--(.+)")  # a repository in the hub's cache


class Claim(NamedTuple):
    """The network of some weights according to their source.

    Attributes:
        network: the name of the network at the source.
        fields: the required values of spec fields that change neither names nor shapes.
        unlike: the difference from every network of resfit; empty if the file fits one.
    """

    network: str
    fields: Mapping[str, Any] = _PLAIN
    unlike: str = ""


def check(path: Path, spec: ResNetSpec) -> bool:
    """Raise if the weights belong to a network that computes something else, according to the source of the file.

    The source is a `config.json` of timm or transformers beside the file, the repository in the cache of the Hugging
    Face hub, or the name of a file of torchvision or pytorchcv.

    Returns:
        True if the source is known.

    Raises:
        WeightsError: if the networks differ; the message names both, and the network to create instead.
    """
    claim = _claim(path)
    if claim is None:
        return False
    anyway = "To load the weights anyway: resfit.weights.load_state_dict(net, resfit.weights.read(path))."
    if claim.unlike:
        raise WeightsError(
            f"The weights are of {claim.network}, {claim.unlike}. Expected weights of a network that resfit has. Names "
            f"and shapes may fit, but the logits would differ. {anyway}"
        )
    wrong = {name: value for name, value in claim.fields.items() if _differs(name, getattr(spec, name), value)}
    if wrong:
        theirs = ", ".join(f"{name}={value!r}" for name, value in wrong.items())
        ours = ", ".join(f"{name}={getattr(spec, name)!r}" for name in wrong)
        name = claim.network.rpartition(" ")[2]
        create = f"create_model({name!r}, ...)" if name in ZOO else f"create_model(..., {theirs})"
        raise WeightsError(
            f"The weights are of {claim.network}, which has {theirs}; the network has {ours}. Expected equal values: "
            f"names and shapes fit, but the logits would differ. Use {create}. {anyway}"
        )
    return True


def _differs(field: str, ours: Any, theirs: Any) -> bool:
    """Return True if a field differs; other names and shapes show most differences of parts."""
    return bool(ours != theirs) and (field not in ("block", "stem", "shortcut") or {ours, theirs} in _ALIKE)


def _claim(path: Path) -> Claim | None:
    for network, versions in TORCHVISION.items():
        if path.name in {remote.name for remote in versions.values()}:
            return Claim(f"torchvision's {network}")
    if match := _PYTORCHCV.fullmatch(path.name):
        return _of_pytorchcv(**match.groupdict())
    if path.name not in HUB_FILES:
        return None
    config = _config(path.parent / CONFIG)
    found = _IN_CACHE.fullmatch("".join(path.absolute().parts[-4:-3]))
    owner, repository = found.groups() if found else (None, "")
    if "architecture" in config and (owner == "timm" or "pretrained_cfg" in config):
        return _of_timm(str(config["architecture"]), config)
    if config.get("model_type") == "resnet":
        return _of_transformers(config, repository)
    if owner == "timm":
        return _of_timm(repository.partition(".")[0], config)
    return _of_transformers({}, repository) if re.fullmatch(r"resnet-\d+", repository) else None


def _config(path: Path) -> dict[str, Any]:
    """Return the content of a `config.json`, or an empty dict if the file does not exist."""
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise WeightsError(
            f"{path} is damaged: {error}. Expected JSON that describes the network of the weights beside it. Download "
            "it again, or delete it."
        ) from error
    return config if isinstance(config, dict) else {}


def _of_timm(architecture: str, config: Mapping[str, Any]) -> Claim:
    network = f"timm's {architecture}"
    arguments = config.get("model_args") or {}
    if other := {name: value for name, value in dict(arguments).items() if name not in _OF_SIZE}:
        return Claim(network, unlike=f"built with {other}")
    if config.get("global_pool", "avg") not in ("avg", ""):
        return Claim(network, unlike=f"which pools by {config['global_pool']!r}")
    if architecture not in ZOO:
        return Claim(network, unlike="which is not in resfit's zoo")
    return Claim(network, {name: getattr(ZOO[architecture].spec, name) for name in _PLAIN})


def _of_pytorchcv(network: str, pre: str | None, b: str) -> Claim:
    """Return the claim of a network of pytorchcv; a `b` after the depth moves the stride to the 3x3 convolution."""
    late = bool(b) or "cifar" in network or "svhn" in network
    deep = int(re.findall(r"\d+", network)[0]) >= 50
    if pre and deep and not late:
        return Claim(f"pytorchcv's {network}", unlike="whose blocks have the stride in their first convolution")
    ours = network.rstrip("b") + ("_v1" if deep and not late else "")
    block = "bottleneck" if late or not deep else "bottleneck_v1"
    return Claim(f"pytorchcv's {network}, here {ours}", {"antialias": None, "block": block})


def _of_transformers(config: Mapping[str, Any], repository: str) -> Claim:
    network = f"transformers' {repository.replace('resnet-', 'resnet') or 'ResNet'}"
    activation, early = config.get("hidden_act", "relu"), config.get("downsample_in_first_stage", False)
    if activation != "relu":
        return Claim(network, unlike=f"with hidden_act={activation!r}, while networks of resfit have ReLU")
    if early:
        return Claim(network, unlike="with downsample_in_first_stage=True, while first stages of resfit keep the size")
    if config.get("downsample_in_bottleneck", False):
        return Claim(f"{network}_v1", {**_PLAIN, "block": "bottleneck_v1"})
    return Claim(network)
