"""The accepted values of compile(augment=...), and the error for any other value."""

from typing import Any

import pytest

from resfit import augment
from resfit.augment import pipeline as choice
from resfit.errors import CompileError


def own(key: Any, x: Any, y: Any) -> Any:
    return x, y


@pytest.mark.parametrize(
    ("argument", "functions"),
    [
        (None, ()),
        ("none", ()),
        ([], ()),
        ("cifar", (augment.pad_crop(4), augment.flip())),
        ("imagenet", (augment.random_resized_crop(224), augment.flip())),
        (own, (own,)),
        (augment.flip(0.3), (augment.flip(0.3),)),
        (["cifar", own], (augment.pad_crop(4), augment.flip(), own)),
        ((own, "none", augment.mixup(0.2)), (own, augment.mixup(0.2, 7))),
        (augment.mixup(0.2, 3), (augment.mixup(0.2, 3),)),
        (
            [augment.one_of(augment.mixup(0.2), augment.cutmix(1.0, 3))],
            (augment.one_of(augment.mixup(0.2, 7), augment.cutmix(1.0, 3)),),
        ),
    ],
)
def test_names_functions_and_sequences_of_both_are_applied_in_order(argument: Any, functions: tuple[Any, ...]) -> None:
    assert augment.get(argument, num_classes=7) == functions


def test_equal_arguments_make_equal_augmentations_and_different_ones_do_not() -> None:
    makers: list[Any] = [lambda p: augment.flip(p), lambda p: augment.mixup(p), lambda p: augment.random_erasing(p)]
    for make in makers:
        assert make(0.5) == make(0.5)
        assert hash(make(0.5)) == hash(make(0.5))
        assert make(0.5) != make(0.25)
    assert len({make(0.5) for make in makers}) == 3


def layer(name: str, module: str) -> Any:
    return type(name, (), {"__module__": module, "__call__": lambda self, x: x})()


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("flip", r"Unknown augment 'flip'.*'none', 'cifar', 'imagenet'.*resfit.augment.flip\(\)"),
        (["cifar", "mixup"], "Unknown augment 'mixup'"),
        (3, "augment to be functions.*got 3"),
        ([own, 3], "augment to be functions.*got 3"),
        (augment.flip, r"function resfit.augment.flip itself.*resfit.augment.flip\(\.\.\.\)"),
        ([augment.color_jitter], "function resfit.augment.color_jitter itself"),
        (dict, "got <class 'dict'>"),
        (layer("RandomFlip", "keras.src.layers"), r"keras.layers.RandomFlip.*resfit.augment.flip\(\)"),
        ([layer("CutMix", "keras.src.layers")], r"keras.layers.CutMix.*resfit.augment.cutmix\(1.0\)"),
        (layer("RandomSharpness", "keras.src.layers"), "augment to be functions.*RandomSharpness"),
        (layer("RandomCrop", "torchvision.transforms.v2"), "augment to be functions.*RandomCrop"),
    ],
)
def test_any_other_value_raises_with_a_replacement(argument: Any, says: str) -> None:
    with pytest.raises(CompileError, match=says):
        augment.get(argument)


def test_every_replacement_of_a_keras_layer_can_be_created() -> None:
    for expression in choice._KERAS.values():
        assert augment.get(eval(f"augment.{expression}", {"augment": augment}))
