"""Shifts and resized crops equal NumPy, PIL and torchvision's algorithm."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resfit import augment
from resfit.augment.boxes import DRAWS, Boxes
from resfit.augment.random_resized_crop import crops_of, resized
from resfit.errors import CompileError, ImageTooSmallError
from tests.augment.running import run

# --- pad_crop ---------------------------------------------------------------------------------------------------------


def windows(image: np.ndarray, pixels: int, mode: str) -> dict[tuple[int, int], np.ndarray]:
    padded = np.pad(image, ((pixels, pixels), (pixels, pixels), (0, 0)), mode={"zeros": "constant"}.get(mode, mode))
    height, width = image.shape[:2]
    places = [(top, left) for top in range(2 * pixels + 1) for left in range(2 * pixels + 1)]
    return {(top, left): padded[top : top + height, left : left + width] for top, left in places}


@functools.cache
def shifted(pixels: int, mode: str) -> Any:
    return jax.jit(lambda key, x: augment.pad_crop(pixels, mode)(key, x, None)[0])


@pytest.mark.parametrize(("pixels", "mode"), [(1, "zeros"), (3, "zeros"), (4, "reflect")])
@given(seed=st.integers(0, 2**32 - 1))
def test_a_shifted_image_is_a_window_of_the_padded_one(pixels: int, mode: str, seed: int) -> None:
    x = np.random.default_rng(seed).integers(1, 256, (5, 6, 9, 1), dtype=np.uint8)
    got = np.asarray(shifted(pixels, mode)(jax.random.key(seed), x))
    for before, after in zip(x, got, strict=True):
        assert any(np.array_equal(after, window) for window in windows(before, pixels, mode).values())


def test_all_shifts_are_equally_likely() -> None:
    image = np.arange(1, 31, dtype=np.float32).reshape(5, 6, 1)
    n, places = 4900, windows(image, 3, "zeros")
    got = np.asarray(shifted(3, "zeros")(jax.random.key(0), np.repeat(image[None], n, axis=0)))
    counts = np.array([(got == window).all(axis=(1, 2, 3)).sum() for window in places.values()])
    assert counts.sum() == n
    # 49 positions, 100 each. Chi-squared with 48 degrees of freedom is below 85 with probability 0.999.
    assert ((counts - 100) ** 2 / 100).sum() < 85


def test_an_image_smaller_than_the_mirrored_border_raises_and_zero_padding_accepts_it() -> None:
    x = np.ones((1, 4, 9, 1), np.float32)
    with pytest.raises(ImageTooSmallError, match=r"pixels=4, mode='reflect'.*4 x 9 pixels.*mode='zeros'"):
        augment.pad_crop(4, "reflect")(jax.random.key(0), x, None)
    assert run(augment.pad_crop(4), x).shape == x.shape


# --- random_resized_crop ----------------------------------------------------------------------------------------------

IMAGE = (17, 23)


@st.composite
def boxes(draw: st.DrawFn) -> list[tuple[int, int, int, int]]:
    def one() -> tuple[int, int, int, int]:
        top, left = draw(st.integers(0, IMAGE[0] - 1)), draw(st.integers(0, IMAGE[1] - 1))
        return top, left, draw(st.integers(1, IMAGE[0] - top)), draw(st.integers(1, IMAGE[1] - left))

    return [one() for _ in range(3)]


@functools.cache
def scaled(size: tuple[int, int]) -> Any:
    return jax.jit(lambda x, boxes: resized(x, boxes, size))


@pytest.mark.representatives("(17, 23)")
@pytest.mark.parametrize("size", [(9, 8), (20, 31), IMAGE], ids=str)
@given(drawn=boxes(), seed=st.integers(0, 2**32 - 1))
def test_a_scaled_crop_equals_pil_bilinear_of_that_crop_alone(size: Any, drawn: Any, seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(3, *IMAGE, 2)).astype(np.float32)
    got = scaled(size)(x, Boxes(*jnp.asarray(drawn, jnp.int32).T))
    for image, (top, left, height, width), result in zip(x, drawn, got, strict=True):
        crop = image[top : top + height, left : left + width]
        for channel in range(2):
            pil = PIL.Image.fromarray(crop[..., channel]).resize(size[::-1], PIL.Image.Resampling.BILINEAR)
            np.testing.assert_allclose(result[..., channel], np.asarray(pil), atol=2e-5)


def test_uint8_is_rounded_not_truncated() -> None:
    x = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    crop = augment.random_resized_crop(8, scale=(1, 1), ratio=(1, 1))
    got = run(crop, x)
    for image, result in zip(x, got, strict=True):
        pil = PIL.Image.fromarray(image).resize((8, 8), PIL.Image.Resampling.BILINEAR)
        difference = np.asarray(result, int) - np.asarray(pil, int)
        assert abs(difference).max() <= 1  # PIL also rounds between the two directions
        assert abs(difference.mean()) < 0.1  # truncation would be 0.5 too dark


def test_the_whole_image_at_its_original_size_does_not_change() -> None:
    x = np.random.default_rng(0).integers(0, 256, (2, 12, 12, 3), dtype=np.uint8)
    whole = augment.random_resized_crop(12, scale=(1, 1), ratio=(1, 1))
    np.testing.assert_array_equal(run(whole, x), x)


def crops(n: int, *arguments: Any) -> np.ndarray:
    """Return the crops of n images, (n, 4)."""
    drawn = jax.jit(lambda key: crops_of(jax.random.uniform(key, (n, DRAWS)), *arguments))(jax.random.key(0))
    return np.stack(drawn, axis=1)


def torchvision_crop(
    random: np.random.Generator, image: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Return (top, left, height, width) by the algorithm of torchvision's RandomResizedCrop, for one image."""
    height, width = image
    for _ in range(10):
        area = height * width * random.uniform(*scale)
        aspect = np.exp(random.uniform(*np.log(ratio)))
        w, h = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return random.integers(height - h + 1), random.integers(width - w + 1), h, w
    if width / height < ratio[0]:
        w, h = width, round(width / ratio[0])
    elif width / height > ratio[1]:
        w, h = round(height * ratio[1]), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize(
    ("image", "scale", "ratio"),
    [
        ((40, 40), (0.08, 1.0), (3 / 4, 4 / 3)),
        pytest.param((30, 50), (0.3, 0.9), (0.5, 2.0), marks=pytest.mark.slow),
        ((12, 40), (0.3, 1.0), (3 / 4, 4 / 3)),  # often no crop fits
    ],
    ids=str,
)
def test_crops_have_the_same_distribution_as_torchvisions(image: Any, scale: Any, ratio: Any) -> None:
    n = 4000
    ours = crops(n, image, scale, ratio)
    random = np.random.default_rng(0)
    theirs = np.array([torchvision_crop(random, image, scale, ratio) for _ in range(n)])
    for kind in (ours, theirs):
        top, left, height, width = kind.T
        assert (top >= 0).all()
        assert (left >= 0).all()
        assert (height >= 1).all()
        assert (top + height <= image[0]).all()
        assert (left + width <= image[1]).all()
    # The largest distance between the two empirical distributions exceeds 0.044 with probability 0.001.
    for mine, other in zip(
        (*ours.T, ours[:, 2] * ours[:, 3], ours[:, 3] / ours[:, 2]),
        (*theirs.T, theirs[:, 2] * theirs[:, 3], theirs[:, 3] / theirs[:, 2]),
        strict=True,
    ):
        at = np.unique(np.concatenate([mine, other]))
        ranks = [np.searchsorted(np.sort(kind), at, side="right") / n for kind in (mine, other)]
        assert abs(ranks[0] - ranks[1]).max() < 0.044


@pytest.mark.parametrize(
    ("image", "middle"),
    [((4, 100), (0, 47, 4, 5)), ((100, 4), (47, 0, 5, 4)), ((1, 30), (0, 14, 1, 1))],
    ids=str,
)
def test_if_nothing_fits_the_crop_is_the_largest_central_one(image: Any, middle: Any) -> None:
    assert set(map(tuple, crops(50, image, (0.9, 1.0), (3 / 4, 4 / 3)).tolist())) == {middle}


# --- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: augment.pad_crop(0), r"pad_crop got pixels=0.*positive integer"),
        (lambda: augment.pad_crop(1.5), "pixels=1.5"),
        (lambda: augment.pad_crop(2, mode="edge"), r"mode='edge'.*'zeros', 'reflect'"),
        (lambda: augment.flip(1.5), r"flip got probability=1.5.*from 0 to 1"),
        (lambda: augment.flip(float("nan")), "probability=nan"),
        (lambda: augment.random_resized_crop(0), r"random_resized_crop got size=0.*\(height, width\)"),
        (lambda: augment.random_resized_crop((8, 1.5)), r"size=\(8, 1.5\)"),
        (lambda: augment.random_resized_crop((8, 8, 3)), r"size=\(8, 8, 3\)"),
        (lambda: augment.random_resized_crop(8, scale=(0, 1)), r"scale=\(0, 1\).*of at most 1"),
        (lambda: augment.random_resized_crop(8, scale=(0.5, 1.5)), r"scale=\(0.5, 1.5\)"),
        (lambda: augment.random_resized_crop(8, ratio=(2.0, 0.5)), r"ratio=\(2.0, 0.5\).*low <= high\."),
        (lambda: augment.random_resized_crop(8, ratio=0.5), "ratio=0.5"),
    ],
)
def test_invalid_arguments_raise(make: Any, says: str) -> None:
    with pytest.raises(CompileError, match=says):
        make()
