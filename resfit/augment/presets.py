"""Augmentations by name, as in the reference papers."""

from resfit.augment.flip import flip
from resfit.augment.pad_crop import pad_crop
from resfit.augment.random_resized_crop import random_resized_crop
from resfit.augment.transform import Augment

PRESETS: dict[str, tuple[Augment, ...]] = {
    "none": (),
    # He et al. (arXiv 1512.03385), section 4.2.
    "cifar": (pad_crop(4), flip()),
    # torchvision's and timm's plain recipe; Goyal et al. (arXiv 1706.02677), section 5.
    "imagenet": (random_resized_crop(224), flip()),
}
"""Augmentations of `compile(augment="...")` by name."""
