"""One thin network for each variant of the family, for every table of tests."""

from typing import Any

import numpy as np
from flax import nnx

from resfit.nets import STEMS, ResNet, ResNetSpec

CLASSES = 3


_V2: dict[str, Any] = {"block": "preact_basic", "stem": "cifar_conv", "shortcut": "conv"}

# name -> the fields that differ from a ResNet of two blocks for small images
VARIANTS: dict[str, dict[str, Any]] = {
    "basic": {},
    "basic, option A": {"shortcut": "A"},
    "basic, pool after 3x3": {"stem": "cifar_pool"},
    "v1.5": {"block": "bottleneck"},
    "v1": {"block": "bottleneck_v1"},
    "v2, basic": _V2,
    "v2, bottleneck": _V2 | {"block": "preact_bottleneck"},
    "v2, large images": _V2 | {"stem": "imagenet_conv"},
    "v2, D": {"block": "preact_bottleneck", "stem": "deep_conv", "shortcut": "D_conv"},
    "v2, T": {"block": "preact_basic", "stem": "deep_tiered_conv", "shortcut": "D_conv"},
    "BiT": {
        "block": "preact_bottleneck",
        "stem": "bit",
        "shortcut": "conv",
        "norm": "group",
        "weight_standardization": True,
    },
    "large images": {"stem": "imagenet"},
    "Caffe": {"block": "bottleneck_v1", "stem": "caffe", "squeeze": 1 / 16},
    "D": {"stem": "deep", "shortcut": "D"},
    "T": {"stem": "deep_tiered", "shortcut": "D"},
    "RS": {"block": "bottleneck", "stem": "rs", "shortcut": "D", "squeeze": 1 / 4},
    "SE": {"squeeze": 1 / 16},
    "ECA": {"squeeze": "eca"},
    "SENet-154": {"block": "bottleneck_senet", "shortcut": "B3", "groups": 4, "width_per_group": 32},
    "ResNeXt": {"block": "bottleneck", "groups": 4, "width_per_group": 32},
    "wide": {"block": "bottleneck", "width_per_group": 128},
    "wide, dropout": _V2 | {"stem_width": 4, "dropout": 0.3},
    "stochastic depth": {"drop_path": 0.5},
    "dropout before the last layer": {"head_dropout": 0.5},
    "anti-aliased": {"stem": "imagenet", "antialias": "blur"},
    "averaged": {"stem": "imagenet", "antialias": "avg"},
    "dilated": {"output_stride": 1},
    "dilated, D": {"shortcut": "D", "output_stride": 1},
    "group norm": {"norm": "group"},
    "space to depth": {"stem": "space_to_depth"},
}


def spec(variant: str, **fields: Any) -> ResNetSpec:
    """Return a spec of two stages of one block with 8 and 16 channels. No part of a block starts at zero."""
    values = {"depths": (1, 1), "widths": (8, 16), "stem": "cifar", "num_classes": CLASSES, "zero_init_last": False}
    return ResNetSpec(**values | VARIANTS[variant] | fields)


def network(variant: str, **fields: Any) -> ResNet:
    """Return the network of a variant, with new weights."""
    return ResNet(spec(variant, **fields), rngs=nnx.Rngs(0))


def side(variant: str) -> int:
    """Return the side of its images in pixels: 64 if its stem reduces the size, else 16."""
    return 64 if STEMS[spec(variant).stem].strides else 16


def images(variant: str, count: int = 12) -> np.ndarray:
    """Return (count, side, side, 3) float32."""
    shape = (count, side(variant), side(variant), 3)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def labels(count: int = 12) -> np.ndarray:
    """Return (count,) int32, in which every class occurs."""
    return np.arange(count, dtype=np.int32) % CLASSES
