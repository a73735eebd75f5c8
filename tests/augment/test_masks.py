"""Masks move with the pixels of their images, and are otherwise unchanged."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resfit import augment
from resfit.augment import Augment
from resfit.augment.random_resized_crop import nearest
from resfit.errors import CompileError, LabelError
from tests.levels import only

FILL = 99
# Augmentations that move or fill pixels, the value of filled image pixels, and the label of filled mask pixels.
MOVING: dict[str, Augment] = {
    "flip": augment.flip(),
    "pad_crop": augment.pad_crop(3, mask_fill=FILL),
    "pad_crop, reflected": augment.pad_crop(2, mode="reflect"),
    "affine": augment.affine(40, (0.2, 0.2), interpolation="nearest", mask_fill=FILL),
    "random_erasing": augment.random_erasing(0.7, fill=FILL, mask_fill=FILL),
    "random_erasing with noise": augment.random_erasing(0.7, fill="noise", mask_fill=FILL),
    "cutmix": augment.cutmix(1.0),
    "one_of": augment.one_of(augment.flip(1.0), augment.cutmix(1.0)),
}


def pair(dtype: Any = np.uint8, shape: tuple[int, ...] = (6, 7, 9)) -> tuple[np.ndarray, np.ndarray]:
    """Return images whose pixels are their labels plus one, so that zero is padding."""
    y = np.random.default_rng(0).integers(0, 90, shape).astype(dtype)
    return (y.astype(np.uint8) + 1)[..., None], y


def run(function: Augment, x: Any, y: Any, seed: int = 0) -> Any:
    return jax.tree.map(np.asarray, jax.jit(function)(jax.random.key(seed), x, y))


@pytest.mark.parametrize("name", only(("flip", "pad_crop", "random_erasing", "cutmix"), MOVING))
def test_every_pixel_of_a_mask_moves_like_the_pixel_of_its_image(name: str) -> None:
    x, y = pair(np.int32)
    moved_x, moved_y = run(MOVING[name], x, y, seed=1)
    assert (moved_y.dtype, moved_y.shape) == (y.dtype, y.shape)
    assert (moved_y != y).any()
    filled = moved_y == FILL
    np.testing.assert_array_equal(moved_y[~filled] + 1, moved_x[..., 0][~filled])
    assert filled.any() == (name in ("pad_crop", "affine", "random_erasing", "random_erasing with noise"))
    if name in ("pad_crop", "affine", "random_erasing"):
        np.testing.assert_array_equal(filled, np.isin(moved_x[..., 0], (0, FILL)))


@pytest.mark.parametrize("dtype", only((np.uint8,), (np.uint8, np.int32, np.float32, bool)))
@pytest.mark.parametrize("axis", only((True,), (True, False)))
def test_masks_of_any_dtype_with_and_without_a_channel_move_alike(dtype: Any, axis: bool) -> None:
    x, y = pair()
    y = (y % 2).astype(dtype)
    moved = run(augment.flip(), x, y[..., None] if axis else y)[1]
    np.testing.assert_array_equal(moved[..., 0] if axis else moved, run(augment.flip(), x, y)[1])
    assert moved.dtype == dtype


@pytest.mark.parametrize(("height", "width"), only([(5, 4)], [(5, 4), (7, 9), (16, 20)]))
def test_a_random_resized_crop_gives_masks_the_nearest_pixel(height: int, width: int) -> None:
    size = height, width
    x, y = pair(shape=(12, 7, 9))
    index = np.arange(y.size).reshape(y.shape)  # tells the pixel that was taken
    crop = augment.random_resized_crop(size, scale=(0.2, 1.0))
    taken = run(crop, x, index)[1]
    assert taken.shape == (12, *size)
    np.testing.assert_array_equal(run(crop, x, y)[1], y.reshape(-1)[taken])
    # A ramp of floats, which the bilinear images follow: inside, its value at the center is that of the nearest pixel.
    rows = np.broadcast_to(np.arange(7, dtype=np.float32)[None, :, None, None], (12, 7, 9, 1))
    images = run(crop, np.ascontiguousarray(rows), None)[0][..., 0]
    np.testing.assert_allclose(taken // 9 % 7, images, atol=1.01)


def test_the_nearest_pixel_is_that_of_pillow() -> None:
    import PIL.Image

    for start, length, size in ((0, 9, 4), (2, 5, 5), (1, 3, 8), (0, 1, 3)):
        row = PIL.Image.fromarray(np.arange(9, dtype=np.uint8)[None])
        box = (start, 0, start + length, 1)
        expected = np.asarray(row.resize((size, 1), PIL.Image.Resampling.NEAREST, box=box))[0]
        np.testing.assert_array_equal(nearest(jnp.array([start]), jnp.array([length]), size)[0], expected)


@pytest.mark.parametrize("function", [augment.color_jitter(), augment.random_erasing(1.0)], ids=repr)
def test_augmentations_that_only_change_colors_keep_masks(function: Augment) -> None:
    x, y = pair()
    seen: list[Any] = []
    jax.eval_shape(lambda key: seen.append(function(key, x, y)[1]), jax.eval_shape(jax.random.key, 0))
    assert seen[0] is y


def test_masks_in_a_dict_of_labels_move_and_other_labels_do_not() -> None:
    x, y = pair()
    moved = run(augment.flip(1.0), x, {"mask": y, "class": np.arange(6)})[1]
    np.testing.assert_array_equal(moved["mask"], y[:, :, ::-1])
    np.testing.assert_array_equal(moved["class"], np.arange(6))


def test_targets_of_pixels_move_too() -> None:
    x, y = pair()
    targets = np.eye(90, dtype=np.float32)[y]
    np.testing.assert_array_equal(run(augment.flip(1.0), x, targets)[1], targets[:, :, ::-1])


def mask(*shape: int, dtype: Any = jnp.uint8) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.parametrize(
    ("function", "y", "says"),
    [
        (augment.flip(), mask(4, 8, 6), r"\(4, 16, 12, 3\).*\(4, 8, 6\).*Resize the masks"),
        (augment.pad_crop(4), mask(4, 16, 12), r"mask_fill=255.*ignore_index=255.*reflect"),
        (augment.pad_crop(4, mask_fill=255), mask(4, 16, 12, dtype=jnp.int8), "int8.*dtype that holds"),
        (augment.pad_crop(4, mask_fill=255), mask(4, 16, 12, 5, dtype=jnp.float32), "class numbers"),
        (augment.mixup(0.2, 5), mask(4, 16, 12), r"mixup blends.*\(4, 16, 12\), uint8.*cutmix"),
        (augment.mixup(0.2, 1), mask(4, 16, 12, 1), "cutmix"),
        (augment.cutmix(1.0), mask(4, 8, 6), "cutmix moves pixels.*Resize the masks"),
    ],
    ids=repr,
)
def test_masks_that_cannot_be_moved_exactly_raise(function: Augment, y: Any, says: str) -> None:
    with pytest.raises(LabelError, match=says):
        jax.eval_shape(function, jax.eval_shape(jax.random.key, 0), mask(4, 16, 12, 3), y)


def test_mask_fill_is_an_integer_and_appears_in_the_text_only_if_it_is_given() -> None:
    assert repr(augment.pad_crop(4)) == "pad_crop(pixels=4, mode='zeros')"
    assert repr(augment.pad_crop(4, mask_fill=255)) == "pad_crop(pixels=4, mode='zeros', mask_fill=255)"
    assert augment.pad_crop(4, mask_fill=255) == augment.pad_crop(4, mask_fill=255) != augment.pad_crop(4)
    with pytest.raises(CompileError, match=r"mask_fill=0\.5.*255"):
        augment.random_erasing(mask_fill=0.5)  # type: ignore[arg-type]
