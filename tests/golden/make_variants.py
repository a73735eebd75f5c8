"""Writes variants.json: what timm and torchvision compute for small nets of every variant, and how large their own are.

    python tests/golden/make_variants.py

Needs torch, torchvision and timm, which nothing else here does. README.md says how weights and images are made.
"""

import hashlib
import json
import zlib
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import timm
import torch
import torchvision
from timm.layers import BatchNormAct2d, BlurPool2d, GroupNormAct, StdConv2d, create_conv2d, get_attn
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.models.resnetv2 import ResNetV2
from timm.models.senet import SENet, SEResNetBottleneck

SIZES = (64, 75)
# Of norm scales in whole networks with squeeze and excitation, whose gates multiply rounding errors block by block:
# at 1, timm's float32 logits of a seresnet101 differ from its float64 ones by half of the largest.
SCALE_OF_GATED = 0.7
SCALE_OF_DEEP_ECA = 0.5  # of the two with 200 layers and more
SIZES_OF_AVERAGES = (64, 65)  # at others timm's own network raises: its branches and shortcuts differ in shape
# Whole networks get all of their values from their names; drawing others first takes half of the time.
WITHOUT_INITIAL_VALUES = patch.multiple(
    torch.nn.init, **dict.fromkeys(["kaiming_normal_", "kaiming_uniform_", "normal_"], lambda tensor, *_, **__: tensor)
)
LABELS = torch.tensor([0, 3, 1, 7])


def thin(block, **arguments):
    return ResNet(block, layers=(1, 2, 1, 1), num_classes=10, **arguments)


def thin_v2(conv_layer=create_conv2d, norm_layer=BatchNormAct2d, **arguments):
    return ResNetV2(layers=(1, 2, 1, 1), num_classes=10, conv_layer=conv_layer, norm_layer=norm_layer, **arguments)


def se(ratio):
    return {"attn_layer": partial(get_attn("se"), rd_ratio=ratio)}


D = {"stem_type": "deep", "stem_width": 32, "avg_down": True}
SPEC_D = {"stem": "deep", "shortcut": "D"}
V2 = {"block": "preact_bottleneck", "stem": "imagenet_conv", "shortcut": "conv"}
V2_D = {"block": "preact_bottleneck", "stem": "deep_conv", "shortcut": "D_conv"}
SENET = {"cardinality": 64, "base_width": 4, "block_reduce_first": 2, "down_kernel_size": 3}
SPEC_SENET = {"block": "bottleneck_senet", "groups": 64, "width_per_group": 4, "shortcut": "B3"}
BIT = {"norm": "group", "weight_standardization": True, "zero_init_last": False}

# name -> (the network in PyTorch, and the fields of its spec)
VARIANTS = {
    "D, basic": (lambda: thin(BasicBlock, **D), {"block": "basic", **SPEC_D}),
    "D, bottleneck": (lambda: thin(Bottleneck, **D), {"block": "bottleneck", **SPEC_D}),
    "T": (
        lambda: thin(Bottleneck, stem_type="deep_tiered", stem_width=32, avg_down=True),
        {"block": "bottleneck", "stem": "deep_tiered", "shortcut": "D"},
    ),
    "SE, basic": (lambda: thin(BasicBlock, block_args=se(1 / 16)), {"block": "basic", "squeeze": 1 / 16}),
    "SE, bottleneck": (lambda: thin(Bottleneck, block_args=se(1 / 16)), {"block": "bottleneck", "squeeze": 1 / 16}),
    "RS": (
        lambda: thin(Bottleneck, replace_stem_pool=True, block_args=se(0.25), **D),
        {"block": "bottleneck", "stem": "rs", "shortcut": "D", "squeeze": 0.25},
    ),
    "ResNeXt": (
        lambda: thin(Bottleneck, cardinality=32, base_width=4),
        {"block": "bottleneck", "groups": 32, "width_per_group": 4},
    ),
    "wide": (lambda: thin(Bottleneck, base_width=128), {"block": "bottleneck", "width_per_group": 128}),
    "anti-aliased, basic": (lambda: thin(BasicBlock, aa_layer=BlurPool2d), {"block": "basic", "antialias": "blur"}),
    "anti-aliased, bottleneck": (
        lambda: thin(Bottleneck, aa_layer=BlurPool2d),
        {"block": "bottleneck", "antialias": "blur"},
    ),
    "anti-aliased, D": (
        lambda: thin(Bottleneck, aa_layer=BlurPool2d, **D),
        {"block": "bottleneck", "antialias": "blur", **SPEC_D},
    ),
    "output stride 8, basic": (lambda: thin(BasicBlock, output_stride=8), {"block": "basic", "output_stride": 8}),
    "output stride 16, basic": (lambda: thin(BasicBlock, output_stride=16), {"block": "basic", "output_stride": 16}),
    "output stride 8, bottleneck": (
        lambda: thin(Bottleneck, output_stride=8),
        {"block": "bottleneck", "output_stride": 8},
    ),
    "output stride 8, D": (
        lambda: thin(Bottleneck, output_stride=8, **D),
        {"block": "bottleneck", "output_stride": 8, **SPEC_D},
    ),
    "output stride 8, anti-aliased": (
        lambda: thin(Bottleneck, output_stride=8, aa_layer=BlurPool2d),
        {"block": "bottleneck", "output_stride": 8, "antialias": "blur"},
    ),
    "averaged, bottleneck": (
        lambda: thin(Bottleneck, aa_layer=torch.nn.AvgPool2d),
        {"block": "bottleneck", "antialias": "avg"},
    ),
    "averaged, D": (
        lambda: thin(BasicBlock, aa_layer=torch.nn.AvgPool2d, **D),
        {"block": "basic", "antialias": "avg", **SPEC_D},
    ),
    "output stride 8, averaged": (
        lambda: thin(Bottleneck, output_stride=8, aa_layer=torch.nn.AvgPool2d),
        {"block": "bottleneck", "output_stride": 8, "antialias": "avg"},
    ),
    "torchvision, stride replaced by dilation": (
        lambda: torchvision.models.ResNet(
            torchvision.models.resnet.Bottleneck,
            [1, 2, 1, 1],
            num_classes=10,
            replace_stride_with_dilation=[False, True, True],
        ),
        {"block": "bottleneck", "output_stride": 8},
    ),
    "group norm": (lambda: thin(Bottleneck, norm_layer="groupnorm"), {"block": "bottleneck", "norm": "group"}),
    "v2, bottleneck": (thin_v2, V2),
    "v2, basic": (
        lambda: thin_v2(basic=True, bottle_ratio=1.0, channels=(64, 128, 256, 512)),
        {**V2, "block": "preact_basic"},
    ),
    "v2, output stride 8": (lambda: thin_v2(output_stride=8), {**V2, "output_stride": 8}),
    "v2, D": (lambda: thin_v2(stem_type="deep", avg_down=True), V2_D),
    "v2, T, basic": (
        lambda: thin_v2(stem_type="tiered", avg_down=True, basic=True, bottle_ratio=1.0, channels=(64, 128, 256, 512)),
        {**V2_D, "block": "preact_basic", "stem": "deep_tiered_conv"},
    ),
    "v2, D, group norm": (
        lambda: thin_v2(norm_layer=GroupNormAct, stem_type="deep", avg_down=True),
        {**V2_D, "norm": "group"},
    ),
    "v2, D, output stride 8": (
        lambda: thin_v2(stem_type="deep", avg_down=True, output_stride=8),
        {**V2_D, "output_stride": 8},
    ),
    "BiT": (
        lambda: thin_v2(
            conv_layer=partial(StdConv2d, eps=1e-8), norm_layer=partial(GroupNormAct, num_groups=32), stem_type="fixed"
        ),
        {**V2, **BIT, "stem": "bit"},
    ),
    "ECA": (
        lambda: thin(Bottleneck, block_args={"attn_layer": "eca"}, **D),
        {"block": "bottleneck", "squeeze": "eca", **SPEC_D},
    ),
    "SENet-154": (lambda: thin(Bottleneck, **SENET), SPEC_SENET),
    "SENet-154, output stride 8": (
        lambda: thin(Bottleneck, output_stride=8, **SENET),
        {**SPEC_SENET, "output_stride": 8},
    ),
    "SE, Caffe": (
        lambda: SENet(SEResNetBottleneck, layers=(1, 2, 1, 1), groups=1, reduction=16, num_classes=10, drop_rate=0.0),
        {"block": "bottleneck_v1", "stem": "caffe", "squeeze": 1 / 16},
    ),
    "space to depth": (lambda: thin(BasicBlock), {"block": "basic", "stem": "space_to_depth"}),
}

# The zoo's names of networks that one of the two has, under the same name.
MEMBERS = {
    torchvision: [
        "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d",
        "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2",
    ],
    timm: [
        "resnet26", "resnet200", "resnet50c", "resnet101c", "resnet152c", "resnet50s", "resnet101s", "resnet152s",
        "resnetv2_18", "resnetv2_34", "resnetv2_50", "resnetv2_101", "resnetv2_152", "resnetv2_18d", "resnetv2_34d",
        "resnetv2_50d", "resnetv2_101d", "resnetv2_152d", "resnetv2_50t", "resnetv2_50d_gn", "resnetv2_50x1_bit",
        "resnetv2_50x3_bit", "resnetv2_101x1_bit", "resnetv2_101x3_bit", "resnetv2_152x2_bit", "resnetv2_152x4_bit",
        "resnext101_32x4d", "resnext101_32x16d", "resnext101_32x32d", "resnext50d_32x4d", "resnet18d", "resnet34d",
        "resnet26d", "resnet50d", "resnet101d", "resnet152d", "resnet200d", "resnet10t", "resnet14t", "resnet26t",
        "resnet50t", "seresnet18", "seresnet34", "seresnet50", "seresnet101", "seresnet152", "seresnet50t",
        "seresnet152d", "seresnet200d", "seresnet269d", "seresnext26d_32x4d", "seresnext26t_32x4d", "seresnext50_32x4d",
        "seresnext101_32x4d", "seresnext101_32x8d", "seresnext101_64x4d", "seresnext101d_32x8d", "senet154",
        "legacy_seresnet50", "legacy_seresnet101", "legacy_seresnet152", "legacy_seresnext26_32x4d",
        "legacy_seresnext50_32x4d", "legacy_seresnext101_32x4d", "ecaresnetlight", "ecaresnet26t", "ecaresnet50t",
        "ecaresnet50d", "ecaresnet101d", "ecaresnet200d", "ecaresnet269d", "ecaresnext26t_32x4d", "ecaresnext50t_32x4d",
        "resnetrs50", "resnetrs101", "resnetrs152", "resnetrs200", "resnetrs270", "resnetrs350", "resnetrs420",
        "resnetaa34d", "resnetaa50", "resnetaa50d", "resnetaa101d", "seresnetaa50d", "seresnextaa101d_32x8d",
        "seresnextaa201d_32x8d", "resnetblur18", "resnetblur50", "resnetblur50d", "resnetblur101d", "resnet50_gn",
    ],
}  # fmt: skip


def drawn(name, shape):
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("running_var"):
        value = generator.uniform(0.5, 1.5, shape)
    elif name.endswith("running_mean"):
        value = generator.normal(size=shape) * 0.1
    elif len(shape) == 4:
        value = generator.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))
    elif len(shape) == 2:
        value = generator.normal(size=shape) * np.sqrt(1 / shape[1])
    elif name.endswith(".bias"):
        value = generator.normal(size=shape) * 0.1
    else:
        value = generator.uniform(0.5, 1.5, shape)
    return torch.tensor(np.asarray(value, np.float32))


def images(count, size):
    return torch.tensor(np.random.default_rng(size).normal(size=(count, 3, size, size)).astype(np.float32))


def filled(net, scale=1.0):
    state = net.state_dict()
    named = {key: drawn(key, tuple(value.shape)) for key, value in state.items() if "num_batches" not in key}
    named = {key: value * scale if is_scale(key, value) else value for key, value in named.items()}
    net.load_state_dict({**state, **named}, strict=True)
    return net


def is_scale(key, value):
    return value.ndim == 1 and key.endswith(".weight")


def run(make, size):
    net = filled(make())
    with torch.no_grad():
        logits = net.eval()(images(2, size))
    loss = torch.nn.functional.cross_entropy(net.train()(images(4, size)), LABELS)
    loss.backward()
    first = next(p for p in net.parameters() if p.ndim == 4)
    return {
        "size": size,
        "eval_logits": [[round(v, 7) for v in row] for row in logits.double().tolist()],
        "train_loss": float(loss.detach()),
        "head_gradient_norm": float(list(net.parameters())[-2].grad.double().norm()),
        "stem_gradient_norm": float(first.grad.double().norm()),
    }


def variant(name):
    make, spec = VARIANTS[name]
    return {
        "spec": spec,
        "names_and_shapes_sha256": digest(make()),
        "runs": [run(make, size) for size in (SIZES_OF_AVERAGES if "averaged" in name else SIZES)],
    }


def digest(net):
    state = {key: tuple(value.shape) for key, value in net.state_dict().items() if "num_batches_tracked" not in key}
    return hashlib.sha256("\n".join(sorted(f"{k} {s}" for k, s in state.items())).encode()).hexdigest()


def multiply_adds(net):
    """Return the number for one image of 224 pixels per side, by shapes only; the blur has no kernel to count."""
    total = [0]

    def count(module, _, output):
        total[0] += module.weight[0].numel() * output[0].numel()

    for module in net.modules():
        if isinstance(module, torch.nn.Conv1d | torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(count)
    net(torch.zeros(1, 3, 224, 224, device="meta"))
    return total[0]


@torch.no_grad()
def member(library, name):
    """Return arrays and outputs of the library's network of that name, built without arguments."""
    create = partial(timm.create_model, name) if library is timm else getattr(torchvision.models, name)
    with torch.device("meta"):
        counted = multiply_adds(create().eval())
    with WITHOUT_INITIAL_VALUES:
        net = create().eval()
    scale = SCALE_OF_GATED if any(".se" in key for key in net.state_dict()) else 1.0
    scale = SCALE_OF_DEEP_ECA if name in ("ecaresnet200d", "ecaresnet269d") else scale
    logits = filled(net, scale)(images(2, SIZES[0])).double()
    if library is torchvision:  # timm has the same network by the same name
        assert torch.equal(filled(timm.create_model(name).eval())(images(2, SIZES[0])).double(), logits), name
    return {
        "source": f"{library.__name__} {library.__version__}",
        "parameters": sum(p.numel() for p in net.parameters()),
        "multiply_adds": counted,
        "entries": len(net.state_dict()),
        "names_and_shapes_sha256": digest(net),
        "size": SIZES[0],
        "norm_scale": scale,
        "first_eval_logits": [[float(f"{v:.7g}") for v in row] for row in logits[:, :8].tolist()],
        "largest_eval_logit": float(logits.abs().max()),
    }


def main():
    """Add the entries that the file lacks, and write it after each one. Delete an entry to compute it again."""
    path = Path(__file__).parent / "variants.json"
    found = json.loads(path.read_text())
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__, "timm": timm.__version__}
    assert found["versions"] == versions, "one version of each library: delete all members"
    jobs = [("variants", name, partial(variant, name)) for name in VARIANTS]
    jobs += [("members", name, partial(member, library, name)) for library in MEMBERS for name in MEMBERS[library]]
    for kind, name, compute in jobs:
        if name not in found[kind]:
            torch.manual_seed(0)
            found[kind][name] = compute()
            path.write_text(json.dumps(found, indent=1) + "\n")
            print(name, flush=True)


if __name__ == "__main__":
    main()
