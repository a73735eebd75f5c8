"""Every variant of the family as a network with few channels and the weights of its oracle."""

import json
from pathlib import Path
from typing import Any

from flax import nnx

from resfit import weights
from resfit.nets import ResNet, ResNetSpec
from tests.weights.test_torch_oracle import drawn

_GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "variants.json").read_text())["variants"]

# In addition to those of timm and torchvision.
_OTHERS: dict[str, dict[str, Any]] = {
    "v1": {"block": "bottleneck_v1"},
    "CIFAR, option A": {"stem": "cifar", "shortcut": "A"},
    "wide ResNet with dropout": {
        "block": "preact_basic", "stem": "cifar_conv", "shortcut": "conv", "dropout": 0.3, "head_dropout": 0.1,
    },
    "stochastic depth": {"drop_path": 0.2},
    "recomputed by block": {"remat": "block"},
    "recomputed by stage": {"remat": "stage"},
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {name: golden["spec"] for name, golden in _GOLDEN.items()} | _OTHERS


def thin(variant: str) -> ResNet:
    """Return a network of two stages of one block and 10 classes, for images of 64 x 64 pixels."""
    fields = dict(VARIANTS[variant])
    if "output_stride" in fields:
        fields["output_stride"] = 4  # the only output stride that uses dilation with two stages
    wide = fields.get("groups", 1) > 1 or fields.get("norm") == "group"
    spec = ResNetSpec(depths=(1, 1), widths=(32, 64) if wide else (8, 16), num_classes=10, **fields)
    net = ResNet(spec, rngs=nnx.Rngs(0))
    weights.load_state_dict(net, {key: drawn(key, value.shape) for key, value in weights.state_dict(net).items()})
    return net
