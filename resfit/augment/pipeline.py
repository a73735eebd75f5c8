"""The `augment` argument of `Model.compile`."""

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

import jax

from resfit._utils.keywords import checked
from resfit._utils.suggest import did_you_mean
from resfit.augment.alternating_flip import AlternatingFlip
from resfit.augment.aug_mix import Consistent
from resfit.augment.copies import Copying, copies_of
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
    "RandomZoom": "affine(scale=(0.8, 1.2))",
    "RandomGrayscale": "gray()",
    "RandomBrightness": "color_jitter(brightness=0.2, contrast=0, saturation=0)",
    "RandomContrast": "color_jitter(brightness=0, contrast=0.2, saturation=0)",
    "RandomSaturation": "color_jitter(brightness=0, contrast=0, saturation=0.2)",
    "RandomHue": "color_jitter(brightness=0, contrast=0, saturation=0, hue=0.1)",
    "RandomColorJitter": "color_jitter()",
    "RandomErasing": "random_erasing()",
    "RandAugment": "rand_augment(n=2, m=9)",
    "AugMix": "aug_mix()",
    "MixUp": "mixup(0.2)",
    "CutMix": "cutmix(1.0)",
}


@checked("function arguments")
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
            _check_order(part, functions)
            functions.append(for_classes(part, num_classes, copies_of(functions)))
    return tuple(functions)


def applied(augment: Augment, key: jax.Array, x: Any, y: Any, origin: Any) -> tuple[Any, Any]:
    """Return (x, y) after an augmentation.

    Args:
      augment: a result of `get`.
      key: of the augmentation in this step.
      x: inputs of the batch.
      y: labels.
      origin: (batch, 3) int32, see `data.Batch`; or None.
    """
    return augment.by_origin(x, y, origin) if isinstance(augment, AlternatingFlip) else augment(key, x, y)


def reads_origin(augments: Iterable[Augment]) -> bool:
    """Return True if an augmentation depends on which examples a batch has."""
    return any(isinstance(augment, AlternatingFlip) for augment in augments)


def consistency_of(augments: Iterable[Augment]) -> float:
    """Return the weight of the divergence between the predictions for the copies of an example; 0 for none."""
    return next((augment.consistency for augment in augments if isinstance(augment, Consistent)), 0.0)


def _check_order(part: Any, before: Sequence[Augment]) -> None:
    if isinstance(part, Copying) and consistency_of(before):
        raise CompileError(
            f"compile got {part!r} after aug_mix(consistency=...), whose copies of an example must stay together. "
            "Expected it before, or aug_mix once."
        )


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
