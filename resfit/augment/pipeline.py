"""The `augment` argument of `Model.compile`."""

import inspect
from collections.abc import Sequence
from typing import Any

from resfit._utils.suggest import did_you_mean
from resfit.augment.one_of import for_classes
from resfit.augment.presets import PRESETS
from resfit.augment.transform import Augment
from resfit.errors import CompileError

AugmentArgument = str | Augment | Sequence[str | Augment] | None

# Preprocessing layers of Keras -> their counterparts. Layers that are not in the table have none.
_KERAS = {
    "RandomFlip": "flip()",
    "RandomTranslation": "pad_crop(4)",
    "RandomCrop": "pad_crop(4)",
    "RandomRotation": "rotate(30)",
    "RandomShear": "affine(shear=(10, 10))",
    "RandomGrayscale": "gray()",
    "RandomBrightness": "color_jitter(brightness=0.2, contrast=0, saturation=0)",
    "RandomContrast": "color_jitter(brightness=0, contrast=0.2, saturation=0)",
    "RandomSaturation": "color_jitter(brightness=0, contrast=0, saturation=0.2)",
    "RandomHue": "color_jitter(brightness=0, contrast=0, saturation=0, hue=0.1)",
    "RandomColorJitter": "color_jitter()",
    "RandomErasing": "random_erasing()",
    "RandAugment": "rand_augment(n=2, m=9)",
    "MixUp": "mixup(0.2)",
    "CutMix": "cutmix(1.0)",
}


def get(augment: AugmentArgument, num_classes: int | None = None) -> tuple[Augment, ...]:
    """Return the functions of an `augment` argument, in the order of their application.

    Args:
      augment: the name of a preset ("cifar": shifts of up to four pixels and flips; "imagenet": random crops, resized
        to 224 x 224, and flips; "none"), a function (key, x, y) -> (x, y), a sequence of names and functions, or None.
      num_classes: the number of classes, for augmentations that mix labels; None if it is unknown.

    Raises:
      CompileError: for an unknown name, or a value that is not an augmentation.

    Example:
      >>> from resfit.augment import mixup
      >>> get(["cifar", mixup(0.2)], num_classes=10)
      (pad_crop(pixels=4, mode='zeros'), flip(probability=0.5), mixup(alpha=0.2, num_classes=10))
    """
    parts = [augment] if isinstance(augment, str) or callable(augment) else [] if augment is None else augment
    if not isinstance(parts, Sequence):
        raise _unknown(augment)
    functions: list[Augment] = []
    for part in parts:
        if isinstance(part, str):
            if part not in PRESETS:
                raise CompileError(
                    f"Unknown augment {part!r}. Expected one of {list(PRESETS)}, or functions (key, x, y) -> (x, y) "
                    "such as resfit.augment.flip()." + did_you_mean(part, PRESETS)
                )
            functions += PRESETS[part]
        elif (
            not callable(part)
            or isinstance(part, type)
            or _is_maker(part)
            or _package(part) in ("keras", "torchvision")
        ):
            raise _unknown(part)
        else:
            functions.append(for_classes(part, num_classes))
    return tuple(functions)


def _unknown(part: Any) -> CompileError:
    name = type(part).__name__
    if _is_maker(part):
        return CompileError(
            f"compile got the function resfit.augment.{part.__name__} itself as augment. Expected its result: "
            f"resfit.augment.{part.__name__}(...)."
        )
    if _package(part) == "keras" and name in _KERAS:
        return CompileError(f"compile got augment=keras.layers.{name}. Expected resfit.augment.{_KERAS[name]}.")
    return CompileError(
        f"Expected augment to be functions (key, x, y) -> (x, y), or names out of {list(PRESETS)}, got {part!r}."
    )


def _is_maker(part: Any) -> bool:
    return inspect.isfunction(part) and part.__module__.startswith("resfit.augment.")


def _package(part: Any) -> str:
    return type(part).__module__.split(".")[0]
