"""Gray images, rotations and affine maps are those of torchvision."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resfit import augment
from resfit.augment import warp
from resfit.errors import CompileError, DataError, LabelError
from tests.augment.golden import CASES, GOLDEN, assert_within_a_level
from tests.augment.running import run

X = GOLDEN["image"][None]


def one(value: float) -> jax.Array:
    return jnp.asarray([value], jnp.float32)


def sampled(inverse: jax.Array, interpolation: str, fill: float = 0) -> np.ndarray:
    with jax.numpy_rank_promotion("allow"):  # as augmentations run
        return np.asarray(warp.sample(jnp.asarray(X), inverse, interpolation, fill))


def test_gray_images_are_those_of_torchvision() -> None:
    assert_within_a_level(run(augment.gray(1.0), X), "image/gray")


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_affine_maps_are_those_of_torchvision(interpolation: str) -> None:
    for number, (angle, translate, scale, shear) in enumerate(CASES["AFFINES"]):
        inverse = warp.matrices(
            one(angle), (one(translate[0]), one(translate[1])), one(scale), (one(shear[0]), one(shear[1]))
        )
        for fill in (0, 200):
            found = sampled(inverse, interpolation, fill)
            assert_within_a_level(found, f"image/affine/{interpolation}/{fill}/{number}")


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_rotations_are_those_of_torchvision(interpolation: str) -> None:
    for number, angle in enumerate(CASES["ANGLES"]):
        found = run(augment.rotate((angle, angle), interpolation), X)
        assert_within_a_level(found, f"image/rotate/{interpolation}/{number}")


def test_the_parameters_of_affine_have_the_signs_of_torchvision() -> None:
    """Intervals of one number give one map."""
    angle, _, scale, _ = CASES["AFFINES"][4]
    function = augment.affine((angle, angle), scale=(scale, scale))
    still = (one(0), one(0))
    expected = sampled(warp.matrices(one(angle), still, one(scale), still), "bilinear")
    np.testing.assert_array_equal(run(function, X), expected)
    drawn = np.concatenate([run(augment.affine(shear=(30, 0)), X, seed) for seed in range(8)])
    assert len(np.unique(drawn, axis=0)) == 8
    # A horizontal shear moves rows, and keeps the middle one.
    np.testing.assert_array_equal(drawn[:, 6], np.repeat(X[:, 6], 8, 0))


def test_shifts_are_whole_pixels_up_to_the_share() -> None:
    ramp = np.broadcast_to(np.arange(1, 21, dtype=np.uint8)[:, None, None] * 10, (40, 20, 20, 1))
    moved = run(augment.affine(translate=(0, 0.2)), np.ascontiguousarray(ramp))
    shifts = {int(np.argmax(image[:, 3, 0] > 0)) - int(np.argmax(image[::-1, 3, 0] > 0)) for image in moved}
    assert shifts == set(range(-4, 5))


def test_gray_follows_the_probability_and_keeps_one_channel() -> None:
    x = np.repeat(X, 400, 0)[:, :2, :2]
    grayed = (run(augment.gray(0.3), x).std(-1) == 0).all(axis=(1, 2))
    assert 0.2 < grayed.mean() < 0.4
    np.testing.assert_array_equal(run(augment.gray(1.0), X[..., :1]), X[..., :1])
    with pytest.raises(DataError, match="2 channels"):
        run(augment.gray(), X[..., :2])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: augment.gray(2), "probability=2"),
        (lambda: augment.rotate(-3), r"degrees=-3.*>= 0"),
        (lambda: augment.rotate((3, float("nan"))), "degrees"),
        (lambda: augment.rotate("90"), "degrees='90'"),  # type: ignore[arg-type]
        (lambda: augment.rotate(9, "cubic"), r"interpolation='cubic'.*nearest"),
        (lambda: augment.rotate(9, fill="edge"), "fill='edge'"),  # type: ignore[arg-type]
        (lambda: augment.affine(), "change nothing"),
        (lambda: augment.affine(translate=(0.1, 2)), r"translate=\(0\.1, 2\).*0 to 1"),
        (lambda: augment.affine(translate=0.1), r"translate=0\.1"),  # type: ignore[arg-type]
        (lambda: augment.affine(scale=(0, 1)), r"scale=\(0, 1\)"),
        (lambda: augment.affine(shear=95), r"shear=\(95, 0\).*0 to 89"),
    ],
)
def test_wrong_arguments_raise(make: Any, says: str) -> None:
    with pytest.raises(CompileError, match=says):
        make()


def test_masks_need_a_label_for_the_outside() -> None:
    masks = np.zeros((1, *X.shape[1:3]), np.int32)
    with pytest.raises(LabelError, match=r"augment\.rotate moves masks.*mask_fill=255"):
        augment.rotate(9)(jax.random.key(0), jnp.asarray(X), masks)
