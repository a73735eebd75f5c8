"""Weights whose names and shapes fit a network with another computation raise, and the error names both."""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx

import resfit
from resfit import weights
from resfit.errors import WeightsError
from resfit.nets import ResNet, ResNetSpec

THIN: dict[str, Any] = {"depths": (1, 1), "widths": (4, 8), "num_classes": 3}
PLAIN: dict[str, Any] = {"block": "bottleneck"}
V1 = {"block": "bottleneck_v1"}
BLUR, AVG = PLAIN | {"antialias": "blur"}, PLAIN | {"antialias": "avg"}
V2 = {"block": "preact_bottleneck", "stem": "imagenet_conv", "shortcut": "conv", "norm": "group", "widths": (32, 64)}
BIT = V2 | {"stem": "bit", "weight_standardization": True, "zero_init_last": False}
TIMM = {"pretrained_cfg": {}}
TRANSFORMERS = {"model_type": "resnet", "hidden_act": "relu", "downsample_in_bottleneck": False}


def network(fields: dict[str, Any]) -> ResNet:
    return nnx.clone(_built(tuple((THIN | fields).items())))


@functools.cache
def _built(fields: tuple[tuple[str, Any], ...]) -> ResNet:
    return ResNet(ResNetSpec(**dict(fields)), rngs=nnx.Rngs(0))


def file(folder: Path, config: dict[str, Any] | None, repository: str, fields: dict[str, Any]) -> Path:
    """Write weights as in the hub's cache of a repository, or in a plain folder."""
    place = folder / f"models--{repository.replace('/', '--')}" / "snapshots" / "abc" if repository else folder
    place.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (place / "config.json").write_text(json.dumps(config))
    path = place / "model.safetensors"
    naming = "transformers" if config is not None and config.get("model_type") == "resnet" else None
    weights.save(network(PLAIN if naming else fields), path, naming=naming)
    return path


# (content of the file, its origin, network) -> pattern of the error
REFUSED: dict[str, tuple[dict[str, Any] | None, str, dict[str, Any], str]] = {
    "blurred, by the repository": (None, "timm/resnetblur50.bt_in1k", PLAIN, "resnetblur50.*antialias='blur'.*None"),
    "blurred, by the description": ({"architecture": "resnetblur50"} | TIMM, "", PLAIN, "create_model.'resnetblur50'"),
    "averaged": ({"architecture": "resnetaa50"}, "timm/x", PLAIN, "has antialias='avg'; the network has .*None"),
    "averaged, into the blurred one": (None, "timm/resnetaa50.a1h_in1k", BLUR, "create_model.'resnetaa50', "),
    "averaged, another depth": (None, "timm/resnetaa101d.sw_in12k", PLAIN, "create_model.'resnetaa101d', "),
    "plain, into the averaged one": ({"architecture": "resnet50"} | TIMM, "", AVG, "create_model.'resnet50', "),
    "v1.5 of timm": (None, "timm/resnet50.a1_in1k", V1, "block='bottleneck'; .*block='bottleneck_v1'.*'resnet50', "),
    "v1.5 of transformers": (TRANSFORMERS, "microsoft/resnet-50", V1, "transformers' resnet50.*block='bottleneck'"),
    "v1.5 of transformers, undescribed": (None, "microsoft/resnet-50", V1, "create_model.'resnet50', "),
    "v1 of transformers": (
        TRANSFORMERS | {"downsample_in_bottleneck": True}, "microsoft/resnet-50", PLAIN, "create_model.'resnet50_v1', ",
    ),
    "SiLU": (TRANSFORMERS | {"hidden_act": "silu"}, "", PLAIN, "hidden_act='silu', while networks of resfit have ReLU"),
    "an early step": (TRANSFORMERS | {"downsample_in_first_stage": True}, "", PLAIN, "downsample_in_first_stage=True"),
    "BiT": (
        None, "timm/resnetv2_50x1_bit.goog_in21k_ft_in1k", V2,
        "has stem='bit', weight_standardization=True; the network has stem='imagenet_conv', weight_standardization=F",
    ),
    "BiT, by the description": ({"architecture": "resnetv2_50x1_bit"} | TIMM, "", V2, "create_model.'resnetv2_50x1_b"),
    "a v2 network, into that of BiT": (None, "timm/resnetv2_50.x", BIT, "has stem='imagenet_conv', weight_stand"),
    "a v2 network, into D": (None, "timm/resnetv2_50.x", V2 | {"shortcut": "D_conv"}, "has shortcut='conv'; the netw"),
    "a plain pool, into Caffe's": (None, "timm/seresnet50.x", PLAIN | {"stem": "caffe"}, "has stem='imagenet'; the ne"),
    "unknown": ({"architecture": "nf_resnet50"} | TIMM, "", PLAIN, "load_state_dict.net, resfit.weights.read.path"),
    "built otherwise": (
        {"architecture": "resnet50", "model_args": {"act_layer": "silu", "in_chans": 3}} | TIMM, "", PLAIN,
        "timm's resnet50, built with {'act_layer': 'silu'}",
    ),
    "another pool": ({"architecture": "resnet50", "global_pool": "max"} | TIMM, "", PLAIN, "pools by 'max'"),
}  # fmt: skip


@pytest.mark.representatives(
    "blurred, by the description",
    "plain, into the averaged one",
    "v1.5 of timm",
    "v1 of transformers",
    "BiT",
    "unknown",
)
@pytest.mark.parametrize("case", REFUSED)
def test_weights_of_a_network_with_another_computation_raise(case: str, tmp_path: Path) -> None:
    config, repository, fields, said = REFUSED[case]
    path = file(tmp_path, config, repository, fields)
    net = network(fields)
    before = np.asarray(net.head.dense.kernel[...]).copy()
    with pytest.raises(WeightsError, match=said):
        weights.load(net, path)
    name = "resnetv2_50" if "preact" in fields["block"] else "resnet50"
    with pytest.raises(WeightsError, match=said):
        resfit.create_model(name, weights=path, **THIN | fields)
    np.testing.assert_array_equal(net.head.dense.kernel[...], before)
    weights.load_state_dict(net, weights.read(path))  # negative control: names and shapes fit


ACCEPTED: dict[str, tuple[dict[str, Any] | None, str, dict[str, Any]]] = {
    "blurred": (None, "timm/resnetblur50.bt_in1k", BLUR),
    "averaged": ({"architecture": "resnetaa50"} | TIMM, "", AVG),
    "v1.5": (None, "timm/resnet50.a1_in1k", PLAIN),
    "of other sizes": ({"architecture": "resnet50", "model_args": {"num_classes": 3}} | TIMM, "", PLAIN),
    "transformers": (TRANSFORMERS, "microsoft/resnet-50", PLAIN),
    "v1 of transformers": (TRANSFORMERS | {"downsample_in_bottleneck": True}, "", V1),
    "pre-activated": (None, "timm/resnetv2_50.a1h_in1k", V2 | {"norm": "batch"}),
    "space to depth": (None, "timm/resnet50.a1_in1k", PLAIN | {"stem": "space_to_depth"}),
    "BiT": (None, "timm/resnetv2_50x1_bit.goog_in21k", BIT),
    "without a description": (None, "", V1),
    "beside the description of something else": ({"architecture": "not timm's", "name": "x"}, "", PLAIN),
}


@pytest.mark.representatives("averaged", "v1.5", "transformers", "pre-activated")
@pytest.mark.parametrize("case", ACCEPTED)
def test_weights_of_the_same_computation_are_loaded(case: str, tmp_path: Path) -> None:
    config, repository, fields = ACCEPTED[case]
    weights.load(network(fields), file(tmp_path, config, repository, fields))


def test_a_file_of_torchvision_is_recognized_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "resnet50-0676ba61.pth"
    weights.save(network(PLAIN), tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").rename(path)
    weights.load(network(PLAIN), path)
    with pytest.raises(WeightsError, match=r"torchvision's resnet50, which has block='bottleneck'.*'bottleneck_v1'"):
        weights.load(network(V1), path)


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[" * 100_000])
def test_a_damaged_description_is_named(content: bytes, tmp_path: Path) -> None:
    path = file(tmp_path, {}, "", PLAIN)
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(WeightsError, match=r"config\.json is damaged"):
        weights.load(network(PLAIN), path)


@pytest.mark.parametrize("antialias", ["avg", "blur"])
def test_anti_aliased_networks_have_no_names_of_transformers(antialias: str) -> None:
    net = network(PLAIN | {"antialias": antialias})
    held = weights.state_dict(network(PLAIN), naming="transformers")
    for call in (lambda: weights.load_state_dict(net, held), lambda: weights.state_dict(net, naming="transformers")):
        with pytest.raises(WeightsError, match=f"transformers, whose networks have no anti-.*antialias='{antialias}'"):
            call()
