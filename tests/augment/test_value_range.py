"""The range of float images that augmentations need, and fill values in the units of the images."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import resfit
from resfit import augment
from resfit.augment.transform import ImageTransform
from resfit.augment.value_range import CLIPPING, check_range
from resfit.errors import DataError

LEVELS = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)).astype("uint8")
UNIT = LEVELS.astype("float32") / 255
OTHERS = {"levels": LEVELS.astype("float32"), "standardized": (UNIT - 0.5) / 0.25, "symmetric": 2 * UNIT - 1}
MADE: dict[str, Any] = {
    "aug_mix": augment.aug_mix(), "auto_augment": augment.auto_augment(), "color_jitter": augment.color_jitter(),
    "rand_augment": augment.rand_augment(), "trivial_augment": augment.trivial_augment(),
    "affine": augment.affine(10), "alternating_flip": augment.alternating_flip(), "cutmix": augment.cutmix(1.0, 10),
    "flip": augment.flip(), "gray": augment.gray(), "mixup": augment.mixup(0.2, 10), "pad_crop": augment.pad_crop(2),
    "random_erasing": augment.random_erasing(), "random_resized_crop": augment.random_resized_crop(8),
    "rotate": augment.rotate(10),
}  # fmt: skip


@pytest.mark.parametrize("images", OTHERS)
@pytest.mark.parametrize("name", MADE)
def test_exactly_the_augmentations_that_clip_raise_for_other_floats(name: str, images: str) -> None:
    x, one = OTHERS[images], MADE[name]
    if name in CLIPPING:
        with pytest.raises(DataError, match=rf"augment\.{name} got float32 images with values from .*x / 255"):
            check_range([one], x)
    else:
        check_range([one], x)
        if isinstance(one, ImageTransform):  # it keeps values beyond [0, 1]
            found = one(jax.random.key(0), x, None)[0]
            assert found.min() < -0.5 or found.max() > 1.5


@pytest.mark.parametrize("x", [LEVELS, UNIT, UNIT * 1.2 - 0.1, np.zeros((0, 8, 8, 3), "float32")], ids=str)
def test_images_in_range_pass(x: np.ndarray) -> None:
    check_range(list(MADE.values()), x)


def test_augmentations_inside_of_others_are_checked() -> None:
    for one in (augment.one_of(augment.flip(), augment.rand_augment()), augment.aug_mix(consistency=12.0)):
        with pytest.raises(DataError, match="clips floats"):
            check_range([augment.flip(), one], OTHERS["levels"])


def test_a_function_may_change_the_range() -> None:
    check_range([lambda key, x, y: (x / 255, y), augment.rand_augment()], OTHERS["levels"])
    with pytest.raises(DataError, match="clips floats"):
        check_range([augment.rand_augment(), lambda key, x, y: (x / 255, y)], OTHERS["levels"])


@pytest.mark.parametrize(
    "make",
    [
        lambda fill: augment.random_erasing(1.0, fill=fill),
        lambda fill: augment.rotate(10, fill=fill),
        lambda fill: augment.affine(10, fill=fill),
        lambda fill: augment.rand_augment(fill=fill),
        lambda fill: augment.aug_mix(fill=fill),
    ],
)
def test_a_fill_value_of_other_units_raises(make: Callable[[float], Any]) -> None:
    with pytest.raises(DataError, match=r"fill=.*124.*units of the images"):
        check_range([make(124)], UNIT)
    check_range([make(124)], LEVELS)
    check_range([make(1)], UNIT)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize(
    "make", [augment.rand_augment, augment.trivial_augment, augment.auto_augment, augment.aug_mix, augment.rotate]
)
def test_a_fill_value_that_images_cannot_hold_raises(make: Any, interpolation: str) -> None:
    more = {"degrees": 45} if make is augment.rotate else {}
    floats = [] if make is augment.rotate else [(128, UNIT)]  # others clip floats to [0, 1]
    for fill, x in [(300, LEVELS), (-1, LEVELS), *floats]:
        with pytest.raises(DataError, match=rf"fill={float(fill)} for .*units of the images"):
            make(interpolation=interpolation, fill=fill, **more)(jax.random.key(0), x, None)


def test_a_fill_value_is_rounded_by_both_interpolations() -> None:
    for interpolation in ("nearest", "bilinear"):
        turned, _ = augment.rotate((45, 45), interpolation, fill=123.675)(
            jax.random.key(0), np.zeros_like(LEVELS), None
        )
        assert turned[0, 0, 0, 0] == 124


def test_numbers_of_numpy_are_accepted_and_booleans_are_not() -> None:
    made = augment.affine(np.float32(5), translate=(0.1, np.float32(0.1)), fill=np.float32(3))
    assert made == augment.affine(5.0, translate=(0.1, float(np.float32(0.1))), fill=3.0)
    with pytest.raises(resfit.errors.CompileError, match="degrees=True"):
        augment.rotate(True)


class Net(nnx.Module):
    """A network of one layer."""

    def __init__(self, seed: int = 0) -> None:
        self.head = nnx.Linear(3, 2, rngs=nnx.Rngs(seed))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the logits (batch, 2)."""
        return self.head(x.mean((1, 2)))


@pytest.mark.parametrize("method", ["fit", "train_on_batch"])
def test_training_stops_before_the_first_step(method: str) -> None:
    model = resfit.Model(Net())
    model.compile(augment=[augment.flip(), augment.rand_augment()], preprocess=lambda x: x / 255)
    before = model.get_weights()
    arguments: dict[str, Any] = {"verbose": 0} if method == "fit" else {}
    with pytest.raises(DataError, match="rand_augment got float32 images with values from 0"):
        getattr(model, method)(OTHERS["levels"], np.array([0, 1, 0, 1]), **arguments)
    for one, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)
    getattr(model, method)(LEVELS, np.array([0, 1, 0, 1]), **arguments)


def test_a_recipe_that_fills_with_the_mean_raises_for_floats() -> None:
    model = resfit.Model(Net())
    arguments = resfit.recipes.get("torchvision-v2").replace(epochs=5).compile_arguments()
    model.compile(**arguments | {"augment": [one for one in arguments["augment"] if "erasing" in repr(one)]})
    with pytest.raises(DataError, match=r"random_erasing got fill=.*uint8"):
        model.fit(UNIT, np.array([0, 1, 0, 1]), epochs=5, verbose=0)
    model.fit(LEVELS, np.array([0, 1, 0, 1]), epochs=5, verbose=0)
