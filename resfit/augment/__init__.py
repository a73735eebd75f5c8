"""Augmentation: random changes of training batches, on the device, inside the compiled step.

An augmentation is a function (key, x, y) -> (x, y) of one batch. It runs before `preprocess`, and only in training. All
randomness comes from the key, which depends only on the seed and the step. `compile(augment=...)` takes a function, a
sequence of functions, or the name of a preset. The augmentations of this subpackage keep the dtype of the images, uint8
or float, move masks (batch, height, width) like the images, and draw random numbers for each image; `mixup` and
`cutmix` draw one share for the whole batch.
"""

from typing import TYPE_CHECKING

from resfit._utils.words import no_attribute
from resfit.augment.affine import affine, rotate
from resfit.augment.alternating_flip import alternating_flip
from resfit.augment.aug_mix import aug_mix
from resfit.augment.color_jitter import color_jitter
from resfit.augment.copies import repeated_augmentation
from resfit.augment.cutmix import cutmix
from resfit.augment.flip import flip
from resfit.augment.gray import gray
from resfit.augment.mixup import mixup
from resfit.augment.one_of import one_of
from resfit.augment.pad_crop import pad_crop
from resfit.augment.pipeline import AugmentArgument, get
from resfit.augment.policies import auto_augment, rand_augment, trivial_augment
from resfit.augment.presets import PRESETS
from resfit.augment.random_erasing import random_erasing
from resfit.augment.random_resized_crop import random_resized_crop
from resfit.augment.transform import Augment

__all__ = [
    "PRESETS",
    "Augment",
    "AugmentArgument",
    "affine",
    "alternating_flip",
    "aug_mix",
    "auto_augment",
    "color_jitter",
    "cutmix",
    "flip",
    "get",
    "gray",
    "mixup",
    "one_of",
    "pad_crop",
    "rand_augment",
    "random_erasing",
    "random_resized_crop",
    "repeated_augmentation",
    "rotate",
    "trivial_augment",
]

if not TYPE_CHECKING:  # a type checker would accept every name
    __getattr__ = no_attribute(__name__, "augment")
