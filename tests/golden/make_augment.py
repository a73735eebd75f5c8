"""Writes augment.npz: what torchvision's operations make of uint8 images for given parameters.

    python tests/golden/make_augment.py

Needs torch and torchvision. README.md says what the arrays are.
"""

import json
import math
from pathlib import Path

import numpy as np
import torch
import torchvision
from torchvision.transforms.v2 import (
    AugMix,
    AutoAugment,
    AutoAugmentPolicy,
    InterpolationMode,
    RandAugment,
    TrivialAugmentWide,
)
from torchvision.transforms.v2 import functional as F

SIZE = (13, 18)
AFFINES = [
    (0, (0, 0), 1.0, (0, 0)), (20, (0, 0), 1.0, (0, 0)), (-33.5, (3, -2), 1.0, (0, 0)), (10, (0, 1), 0.8, (12, 0)),
    (-75, (-2, 0), 1.3, (-9, 14)), (180, (0, 0), 1.0, (0, 0)),
]  # fmt: skip
ANGLES = [0.0, 17.3, -42.1, 89.0, 161.0]
SLOPES = {"shear_x": [0.1, 0.29, -0.77], "shear_y": [0.1, -0.31, 0.88]}
STEPS = {"translate_x": [3.7, -6.0], "translate_y": [2.2, -5.9]}
FACTORS = [0.1, 0.73, 1.31, 1.9]
MIXTURES = 12
DEPTH = 2


def image() -> np.ndarray:
    """Return an image with smooth parts, edges, a few extremes, and a channel with a small range."""
    random = np.random.default_rng(7)
    height, width = SIZE
    y, x = np.mgrid[:height, :width]
    planes = [x * 13 + y, (y * 17 + (x > 9) * 60) % 256, 90 + (x * y) % 31]
    made = np.stack(planes, -1) + random.integers(0, 12, (height, width, 3))
    made[random.random((height, width)) < 0.04] = 255
    return np.clip(made, 0, 255).astype(np.uint8)


def results(x: torch.Tensor) -> dict[str, torch.Tensor]:
    made = {"gray": F.rgb_to_grayscale(x, 3)}
    for kind in InterpolationMode.NEAREST, InterpolationMode.BILINEAR:
        name = kind.value
        for number, (angle, translate, scale, shear) in enumerate(AFFINES):
            for fill in (0, 200):
                # With a fill, torchvision weights pixels at the border twice. Without one it fills with zeros.
                moved = F.affine(x.float() - fill, angle, list(translate), scale, list(shear), kind)
                made[f"affine/{name}/{fill}/{number}"] = (moved + fill).round().to(torch.uint8)
        for number, angle in enumerate(ANGLES):
            made[f"rotate/{name}/{number}"] = F.rotate(x, angle, kind)
        for op, slopes in SLOPES.items():
            for number, slope in enumerate(slopes):
                degrees = math.degrees(math.atan(slope))
                shear = [degrees, 0.0] if op == "shear_x" else [0.0, degrees]
                made[f"{op}/{name}/{number}"] = F.affine(x, 0.0, [0, 0], 1.0, shear, kind, center=[0, 0])
        for op, steps in STEPS.items():
            for number, step in enumerate(steps):
                shift = [int(step), 0] if op == "translate_x" else [0, int(step)]
                made[f"{op}/{name}/{number}"] = F.affine(x, 0.0, shift, 1.0, [0.0, 0.0], kind)
    blends = {"brightness": F.adjust_brightness, "color": F.adjust_saturation, "contrast": F.adjust_contrast,
              "sharpness": F.adjust_sharpness}  # fmt: skip
    for op, function in blends.items():
        for number, factor in enumerate(FACTORS):
            made[f"{op}/{number}"] = function(x, factor)
    for bits in range(1, 9):
        made[f"posterize/{bits}"] = F.posterize(x, bits)
    for threshold in (0, 77, 128, 255):
        made[f"solarize/{threshold}"] = F.solarize(x, threshold)
    return made | {"autocontrast": F.autocontrast(x), "equalize": F.equalize(x), "invert": F.invert(x)}


def flat() -> np.ndarray:
    """Return an image of one color in one channel, of two in another, and of few pixels."""
    x = np.full((5, 4, 3), 40, np.uint8)
    x[2:, :, 1] = 200
    x[0, 0, 2] = 0
    return x


def spaces() -> dict[str, dict[str, list[float] | None]]:
    """Return the magnitudes of every operation of three methods, for images of SIZE, and whether they have a sign."""
    found = {}
    for method, bins in ((RandAugment, 31), (TrivialAugmentWide, 31), (AutoAugment, 10), (AugMix, 10)):
        space = {name: (of(bins, *SIZE), signed) for name, (of, signed) in method._AUGMENTATION_SPACE.items()}
        found[method.__name__] = {
            name: [signed, None if values is None else values.tolist()] for name, (values, signed) in space.items()
        }
    return found


class Recorded(AugMix):
    """An AugMix that writes down what it draws."""

    def __init__(self, **arguments: int) -> None:
        super().__init__(**arguments)
        self.weights: list[list[float]] = []
        self.steps: list[tuple[str, float]] = []

    def _sample_dirichlet(self, params: torch.Tensor) -> torch.Tensor:
        drawn = super()._sample_dirichlet(params)
        self.weights.append(drawn[0].tolist())
        return drawn

    def _apply_image_or_video_transform(self, image, name, magnitude, **arguments):  # type: ignore[no-untyped-def]
        self.steps.append((name, magnitude))
        return super()._apply_image_or_video_transform(image, name, magnitude, **arguments)


def aug_mixes(x: torch.Tensor) -> tuple[dict[str, torch.Tensor], list[dict[str, list]]]:
    """Return mixtures, and what was drawn for each."""
    made, drawn = {}, []
    for number in range(MIXTURES):
        torch.manual_seed(number)
        mix = Recorded(severity=10, mixture_width=3, chain_depth=DEPTH)
        made[f"aug_mix/{number}"] = mix(x)
        (share, _), shares = mix.weights
        drawn.append({"share": share, "shares": shares, "steps": mix.steps})
    return made, drawn


if __name__ == "__main__":
    policies = {
        kind.value: AutoAugment(kind)._policies for kind in (AutoAugmentPolicy.CIFAR10, AutoAugmentPolicy.IMAGENET)
    }
    arrays = {
        "versions": np.array([torch.__version__, torchvision.__version__]),
        "policies": np.array(json.dumps(policies)),
        "spaces": np.array(json.dumps(spaces())),
    }
    mixtures, drawn = aug_mixes(torch.from_numpy(image().transpose(2, 0, 1).copy()))
    arrays["aug_mixes"] = np.array(json.dumps(drawn))
    arrays |= {f"image/{name}": mixture.numpy().transpose(1, 2, 0) for name, mixture in mixtures.items()}
    for name, pixels in {"image": image(), "flat": flat()}.items():
        arrays[name] = pixels
        for case, result in results(torch.from_numpy(pixels.transpose(2, 0, 1).copy())).items():
            if name == "image" or case.split("/")[0] in ("autocontrast", "equalize", "sharpness", "contrast"):
                arrays[f"{name}/{case}"] = result.numpy().transpose(1, 2, 0)
    np.savez_compressed(Path(__file__).parent / "augment.npz", **arrays)
