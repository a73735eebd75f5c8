"""What the source of a file says about the network of its weights, where names and shapes do not show it."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from resfit.errors import WeightsError
from resfit.nets import ZOO, ResNetSpec
from resfit.weights.published import TORCHVISION

HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # of a repository of the hub, the better one first
CONFIG = "config.json"

# timm's names of the networks that a spec can describe: names and shapes show the rest of their arithmetic.
_TIMM = re.compile(r"(wide_)?(se)?(resnet|resnext)(?P<pool>aa|blur|rs|v2_)?\d+[dtcs]?(_\d+x\d+d|_2)?(_gn)?")
_ANTIALIAS: Mapping[str | None, str] = MappingProxyType({"aa": "avg", "blur": "blur"})
_OF_SIZE = {"num_classes", "in_chans", "img_size", "drop_rate", "drop_path_rate"}  # arguments of timm's networks
_IN_CACHE = re.compile(r"models--(timm|microsoft)--(.+)")  # a repository in the hub's cache


class Claim(NamedTuple):
    """The network of some weights, according to their source.

    Attributes:
        network: its name there.
        fields: what a spec must have, of the fields that change neither names nor shapes.
        unlike: what it computes that no network of resfit does; empty if there is nothing.
    """

    network: str
    fields: Mapping[str, Any] = MappingProxyType({"antialias": None, "block": "bottleneck"})
    unlike: str = ""


def check(path: Path, spec: ResNetSpec) -> None:
    """Raise if the source of a file says that its weights are of a network with another arithmetic.

    The source is known from a `config.json` of timm or transformers beside the file, from the repository in the cache
    of the Hugging Face hub, and from the names of torchvision's files.

    Raises:
        WeightsError: naming both networks, and the one to create instead.
    """
    claim = _claim(path)
    if claim is None:
        return
    anyway = "To load them all the same: resfit.weights.load_state_dict(net, resfit.weights.read(path))."
    if claim.unlike:
        raise WeightsError(
            f"The weights are of {claim.network}, {claim.unlike}. Expected weights of a network that resfit has; these "
            f"can fit by names and shapes and give other logits. {anyway}"
        )
    wrong = {name: value for name, value in claim.fields.items() if _differs(name, getattr(spec, name), value)}
    if wrong:
        theirs = ", ".join(f"{name}={value!r}" for name, value in wrong.items())
        ours = ", ".join(f"{name}={getattr(spec, name)!r}" for name in wrong)
        name = claim.network.rpartition(" ")[2]
        create = f"create_model({name!r}, ...)" if name in ZOO else f"create_model(..., {theirs})"
        raise WeightsError(
            f"The weights are of {claim.network}, which has {theirs}; the network has {ours}. Expected the same: names "
            f"and shapes fit, but the logits would differ. Use {create}. {anyway}"
        )


def _differs(field: str, ours: Any, theirs: Any) -> bool:
    """Of blocks only the place of the stride is compared: names and shapes show the rest."""
    bottlenecks = {"bottleneck", "bottleneck_v1"}
    return bool(ours != theirs) and (field != "block" or {ours, theirs} == bottlenecks)


def _claim(path: Path) -> Claim | None:
    for network, versions in TORCHVISION.items():
        if path.name in {remote.name for remote in versions.values()}:
            return Claim(f"torchvision's {network}")
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
    """Return what a `config.json` holds; nothing if there is none."""
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise WeightsError(
            f"{path} is damaged: {error}. Expected JSON that describes the network of the weights beside it. Take "
            "another copy, or delete it."
        ) from error
    return config if isinstance(config, dict) else {}


def _of_timm(architecture: str, config: Mapping[str, Any]) -> Claim:
    network = f"timm's {architecture}"
    arguments = config.get("model_args") or {}
    if other := {name: value for name, value in dict(arguments).items() if name not in _OF_SIZE}:
        return Claim(network, unlike=f"built with {other}")
    if config.get("global_pool", "avg") not in ("avg", ""):
        return Claim(network, unlike=f"which pools by {config['global_pool']!r}")
    match = _TIMM.fullmatch(architecture)
    if match is None:
        return Claim(network, unlike="which is not among the networks that a ResNetSpec describes")
    return Claim(network, {"antialias": _ANTIALIAS.get(match["pool"]), "block": "bottleneck"})


def _of_transformers(config: Mapping[str, Any], repository: str) -> Claim:
    network = f"transformers' {repository.replace('resnet-', 'resnet') or 'ResNet'}"
    activation, early = config.get("hidden_act", "relu"), config.get("downsample_in_first_stage", False)
    if activation != "relu":
        return Claim(network, unlike=f"with hidden_act={activation!r}, where resfit's have ReLU")
    if early:
        return Claim(network, unlike="with downsample_in_first_stage=True, where resfit's first stages keep the size")
    if config.get("downsample_in_bottleneck", False):
        return Claim(f"{network}_v1", {"antialias": None, "block": "bottleneck_v1"})
    return Claim(network)
