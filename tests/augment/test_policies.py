"""RandAugment, TrivialAugment and AutoAugment: operations, magnitudes and policies of torchvision."""

import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resfit import augment
from resfit.augment import policies
from resfit.augment.aug_mix import SPACE
from resfit.augment.operations import OPERATIONS, apply
from resfit.errors import CompileError, DataError, LabelError
from tests.augment.golden import CASES, GOLDEN, assert_within_a_level
from tests.augment.running import run

SIZE = GOLDEN["image"].shape[:2]


@functools.cache
def compiled(interpolation: str) -> Any:
    return jax.jit(lambda x, operation, magnitude: apply(x, operation, magnitude, interpolation, 0))


def applied(x: np.ndarray, names: list[str], values: list[float], interpolation: str = "nearest") -> np.ndarray:
    """Return copies of one image, each after its operation."""
    numbers = jnp.asarray([OPERATIONS.index(name) for name in names])
    batch = jnp.broadcast_to(x, (len(names), *x.shape))
    with jax.numpy_rank_promotion("allow"):  # as augmentations run
        return np.asarray(compiled(interpolation)(batch, numbers, jnp.asarray(values, jnp.float32)))


def golden_cases(image: str) -> list[tuple[str, str, float]]:
    """Return (name of the result, operation, magnitude) of the golden images of operations on colors."""
    found = [(f"{image}/{name}", name, 0.0) for name in ("autocontrast", "equalize", "invert")]
    for name in ("brightness", "color", "contrast", "sharpness"):
        found += [(f"{image}/{name}/{number}", name, factor - 1) for number, factor in enumerate(CASES["FACTORS"])]
    found += [(f"{image}/posterize/{bits}", "posterize", bits) for bits in range(1, 9)]
    found += [(f"{image}/solarize/{level}", "solarize", level) for level in (0, 77, 128, 255)]
    return [case for case in found if case[0] in GOLDEN]


@pytest.mark.parametrize("image", ["image", "flat"])
def test_operations_on_colors_are_those_of_torchvision_side_by_side_in_one_batch(image: str) -> None:
    cases = golden_cases(image)
    assert len(cases) >= 10
    found = applied(GOLDEN[image], [case[1] for case in cases], [case[2] for case in cases])
    for one, (name, _, _) in zip(found, cases, strict=True):
        assert_within_a_level(one[None], name)
    unchanged = applied(GOLDEN[image], ["identity"] * len(cases), [1.0] * len(cases))
    np.testing.assert_array_equal(unchanged, np.broadcast_to(GOLDEN[image], unchanged.shape))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_operations_that_move_pixels_are_those_of_torchvision(interpolation: str) -> None:
    values = CASES["SLOPES"] | CASES["STEPS"] | {"rotate": CASES["ANGLES"]}
    cases = [(name, number, value) for name, all_of in values.items() for number, value in enumerate(all_of)]
    found = applied(GOLDEN["image"], [name for name, _, _ in cases], [value for _, _, value in cases], interpolation)
    for one, (name, number, _) in zip(found, cases, strict=True):
        assert_within_a_level(one[None], f"image/{name}/{interpolation}/{number}")


def snake(name: str) -> str:
    """Return our name of an operation of torchvision."""
    return {"AutoContrast": "autocontrast"}.get(name) or name.replace("X", "_x").replace("Y", "_y").lower()


@pytest.mark.parametrize(
    ("method", "space", "bins"),
    [
        ("RandAugment", policies.NARROW, 31),
        ("TrivialAugmentWide", policies.WIDE, 31),
        ("AutoAugment", policies.NARROW, 10),
        ("AugMix", SPACE, 10),
    ],
)
def test_magnitudes_are_those_of_torchvision(method: str, space: policies.Space, bins: int) -> None:
    table = policies.magnitudes(space, bins, *SIZE)
    theirs = json.loads(str(GOLDEN["spaces"]))[method]
    drawn = OPERATIONS[method in ("AutoAugment", "AugMix") : len(OPERATIONS) - (method != "AutoAugment")]
    assert {snake(name) for name in theirs} == set(drawn)
    for name, (signed, values) in theirs.items():
        ours = table[OPERATIONS.index(snake(name))]
        expected = np.zeros(bins) if values is None else np.asarray(values) * (255 if name == "Solarize" else 1)
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-4, err_msg=name)
        assert signed == (snake(name) in policies._SIGNED)


def test_policies_are_those_of_torchvision() -> None:
    theirs = json.loads(str(GOLDEN["policies"]))
    assert {
        name: tuple(tuple((snake(one), p, number or 0) for one, p, number in pair) for pair in pairs)
        for name, pairs in theirs.items()
    } == policies.POLICIES


def steps_of(kind: str) -> policies.Steps:
    key, shape = jax.random.key(0), (20_000, 32, 32, 3)
    made = {
        "rand": lambda: policies._of_rand(key, shape, 2, 9),
        "trivial": lambda: policies._of_trivial(key, shape),
        "auto": lambda: policies._of_auto(key, shape, "imagenet"),
    }[kind]()
    return policies.Steps(*map(np.asarray, made))


@pytest.mark.parametrize("kind", ["rand", "trivial"])
def test_operations_and_signs_are_drawn_uniformly(kind: str) -> None:
    steps = steps_of(kind)
    for operation, magnitude in zip(*steps, strict=True):
        shares = np.bincount(operation, minlength=15) / len(operation)
        np.testing.assert_allclose(shares[:14], 1 / 14, atol=0.01)
        assert shares[14] == 0
        turns = magnitude[operation == OPERATIONS.index("rotate")]
        assert (turns < 0).mean() == pytest.approx(0.5, abs=0.05)
        assert set(np.unique(np.abs(turns)).round(2)) == (
            {9.0} if kind == "rand" else set((4.5 * np.arange(31)).round(2))
        )
    if kind == "rand":
        first, second = steps.operation
        assert (first == second).mean() == pytest.approx(1 / 14, abs=0.01)


def test_auto_augment_draws_pairs_and_follows_their_probabilities() -> None:
    steps = steps_of("auto")
    expected = np.zeros((2, 15))
    for pair in policies.POLICIES["imagenet"]:
        for place, (name, probability, _) in enumerate(pair):
            expected[place, OPERATIONS.index(name)] += probability / 25
            expected[place, 0] += (1 - probability) / 25
    for place in (0, 1):
        np.testing.assert_allclose(
            np.bincount(steps.operation[place], minlength=15) / 20_000, expected[place], atol=0.012
        )


def test_masks_move_with_the_images() -> None:
    """A mask that is an image of one channel moves as the image does under operations that keep colors."""
    for function in (augment.trivial_augment(mask_fill=99), augment.rand_augment(2, 15, mask_fill=99)):
        y = np.broadcast_to(np.arange(1, 64).reshape(1, 7, 9), (64, 7, 9)).astype(np.int32)
        x, moved = jax.jit(function)(jax.random.key(0), np.asarray(y[..., None], np.uint8), y)
        moved = np.asarray(moved)
        assert 10 < (moved != y).any(axis=(1, 2)).sum() < 60
        outside = moved == 99
        # Solarize and equalize change black, so only some images tell the pixels from outside.
        told = np.asarray([((image[..., 0] == 0) == gone).all() for image, gone in zip(x, outside, strict=True)])
        assert told.sum() > 20
        np.testing.assert_array_equal(np.isin(moved, [*range(1, 64), 99]), True)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: augment.rand_augment(0), r"n=0\. Expected a positive number"),
        (lambda: augment.rand_augment(m=31), "m=31.*0 to 30"),
        (lambda: augment.rand_augment(2, 9.5), r"m=9\.5"),  # type: ignore[arg-type]
        (lambda: augment.rand_augment(interpolation="area"), "rand_augment got interpolation='area'"),
        (lambda: augment.auto_augment("svhn"), r"policy='svhn'.*\['cifar10', 'imagenet'\]"),
        (lambda: augment.trivial_augment(fill="mean"), "trivial_augment got fill='mean'"),  # type: ignore[arg-type]
        (lambda: augment.trivial_augment(mask_fill=0.5), r"mask_fill=0\.5"),  # type: ignore[arg-type]
    ],
)
def test_wrong_arguments_raise(make: Any, says: str) -> None:
    with pytest.raises(CompileError, match=says):
        make()


def test_images_of_two_channels_and_masks_without_a_label_raise() -> None:
    x = np.zeros((2, 8, 8, 2), np.uint8)
    with pytest.raises(DataError, match=r"augment\.auto_augment got images of 2 channels"):
        run(augment.auto_augment(), x)
    with pytest.raises(LabelError, match=r"augment\.rand_augment moves masks"):
        jax.eval_shape(augment.rand_augment(), jax.random.key(0), jnp.asarray(x[..., :1]), jnp.zeros((2, 8, 8), int))


def test_floats_are_filled_in_their_own_units() -> None:
    x = np.full((64, 8, 8, 3), 0.4, np.float32)
    filled = run(augment.trivial_augment(fill=0.2), x)
    assert np.isclose(filled, 51 / 255).any(axis=(1, 2, 3)).sum() > 5
