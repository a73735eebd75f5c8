"""Writes transforms.json: what timm and torchvision do to photographs before the networks of the zoo see them.

    python tests/golden/make_transforms.py

Needs torch, torchvision, timm and scikit-learn. README.md says what the numbers are.
"""

import json
from pathlib import Path

import numpy as np
import timm
import torchvision
from PIL import Image
from sklearn.datasets import load_sample_image
from timm.data import create_transform, resolve_data_config
from timm.models import get_pretrained_cfg, list_pretrained

MEMBERS = [
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d",
    "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2", "resnet26", "resnet200", "resnet50c", "resnet101c",
    "resnet152c", "resnet50s", "resnet101s", "resnet152s", "resnetv2_18", "resnetv2_34", "resnetv2_50", "resnetv2_101",
    "resnetv2_152", "resnetv2_18d", "resnetv2_34d", "resnetv2_50d", "resnetv2_101d", "resnetv2_152d", "resnetv2_50t",
    "resnetv2_50d_gn", "resnetv2_50x1_bit", "resnetv2_50x3_bit", "resnetv2_101x1_bit", "resnetv2_101x3_bit",
    "resnetv2_152x2_bit", "resnetv2_152x4_bit", "resnext101_32x4d", "resnext101_32x16d", "resnext101_32x32d",
    "resnext50d_32x4d", "resnet18d", "resnet34d", "resnet26d", "resnet50d", "resnet101d", "resnet152d", "resnet200d",
    "resnet10t", "resnet14t", "resnet26t", "resnet50t", "seresnet18", "seresnet34", "seresnet50", "seresnet101",
    "seresnet152", "seresnet50t", "seresnet152d", "seresnet200d", "seresnet269d", "seresnext26d_32x4d",
    "seresnext26t_32x4d", "seresnext50_32x4d", "seresnext101_32x4d", "seresnext101_32x8d", "seresnext101_64x4d",
    "seresnext101d_32x8d", "senet154", "legacy_seresnet50", "legacy_seresnet101", "legacy_seresnet152",
    "legacy_seresnext26_32x4d", "legacy_seresnext50_32x4d", "legacy_seresnext101_32x4d", "ecaresnetlight",
    "ecaresnet26t", "ecaresnet50t", "ecaresnet50d", "ecaresnet101d", "ecaresnet200d", "ecaresnet269d",
    "ecaresnext26t_32x4d", "ecaresnext50t_32x4d", "resnetrs50", "resnetrs101", "resnetrs152", "resnetrs200",
    "resnetrs270", "resnetrs350", "resnetrs420", "resnetaa34d", "resnetaa50", "resnetaa50d", "resnetaa101d",
    "seresnetaa50d", "seresnextaa101d_32x8d", "seresnextaa201d_32x8d", "resnetblur18", "resnetblur50", "resnetblur50d",
    "resnetblur101d", "resnet50_gn",
]  # fmt: skip
SEEN = ["timm/resnet50.a1_in1k", "timm/resnetrs50.tf_in1k", "timm/resnet18.a3_in1k", "timm/resnet50.tv2_in1k"]
SEEN += ["torchvision/resnet50.IMAGENET1K_V1", "torchvision/resnet50.IMAGENET1K_V2"]
STEP = 32


def of_timm(name, use_test_size):
    config = resolve_data_config({}, pretrained_cfg=get_pretrained_cfg(name).to_dict(), use_test_size=use_test_size)
    return create_transform(**config).transforms


def described(transforms):
    resize, crop, *_, normalize = transforms
    return {
        "resize": resize.size,
        "crop": crop.size[0],
        "interpolation": resize.interpolation.value,
        "mean": np.round(np.asarray(normalize.mean, float), 6).tolist(),
        "std": np.round(np.asarray(normalize.std, float), 6).tolist(),
    }


def of_torchvision(name, weights):
    preset = torchvision.models.get_model_weights(name)[weights].transforms()
    return [
        torchvision.transforms.Resize(preset.resize_size[0], preset.interpolation),
        torchvision.transforms.CenterCrop(preset.crop_size[0]),
        torchvision.transforms.Normalize(preset.mean, preset.std),
    ]


def photographs():
    """Of both orientations."""
    found = {name: load_sample_image(name) for name in ("china.jpg", "flower.jpg")}
    return found | {"flower.jpg, on its side": np.ascontiguousarray(found["flower.jpg"].transpose(1, 0, 2))}


def seen(transforms, photograph):
    resize, crop, *_ = transforms
    return np.asarray(crop(resize(Image.fromarray(photograph))))[STEP // 2 :: STEP, STEP // 2 :: STEP].tolist()


def main():
    both = {
        f"timm/{name}": (of_timm(name, False), of_timm(name, True))
        for member in MEMBERS
        for name in list_pretrained(f"{member}.*")
    }
    for member in MEMBERS:
        if hasattr(torchvision.models, member):
            for weights in torchvision.models.get_model_weights(member).__members__:
                if weights != "DEFAULT":
                    both[f"torchvision/{member}.{weights}"] = (of_torchvision(member, weights),) * 2
    found = {
        "versions": {"torchvision": torchvision.__version__, "timm": timm.__version__},
        "files": {name: [described(one) for one in ways] for name, ways in both.items()},
        "pixels": {
            photo: {name: seen(both[name][0], pixels) for name in SEEN} for photo, pixels in photographs().items()
        },
    }
    text = json.dumps(found).replace('"timm/', '\n"timm/').replace('"torchvision/', '\n"torchvision/')
    (Path(__file__).parent / "transforms.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
