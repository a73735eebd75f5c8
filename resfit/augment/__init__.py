"""Augmentation: what happens to training batches only, on the device, inside the compiled step.

An augmentation is a function (key, x, y) -> (x, y) of one batch, before `preprocess`. All its randomness comes from the
key, which follows from the seed and the step alone. `compile(augment=...)` takes any such function, several in order,
or a preset's name; those made here keep the images' dtype, uint8 or float, and draw for each image on its own. Only
`mixup` and `cutmix`, which mix the images of a batch, draw one share for all.
"""

from resfit.augment.color_jitter import color_jitter
from resfit.augment.cutmix import cutmix
from resfit.augment.flip import flip
from resfit.augment.mixup import mixup
from resfit.augment.one_of import one_of
from resfit.augment.pad_crop import pad_crop
from resfit.augment.pipeline import AugmentArgument, get
from resfit.augment.presets import PRESETS
from resfit.augment.random_erasing import random_erasing
from resfit.augment.random_resized_crop import random_resized_crop
from resfit.augment.transform import Augment

__all__ = [
    "PRESETS",
    "Augment",
    "AugmentArgument",
    "color_jitter",
    "cutmix",
    "flip",
    "get",
    "mixup",
    "one_of",
    "pad_crop",
    "random_erasing",
    "random_resized_crop",
]
