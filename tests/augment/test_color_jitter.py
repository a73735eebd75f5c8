"""Colors equal the standard library's HSV, PIL's enhancements, and a row-by-row implementation."""

import colorsys
from typing import Any

import jax
import numpy as np
import PIL.Image
import PIL.ImageEnhance
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resfit import augment
from resfit.augment.color_jitter import turn_hue
from resfit.errors import CompileError, DataError
from tests.augment.running import run

GREY = np.array([0.299, 0.587, 0.114])


def pixels(seed: int, n: int = 4, channels: int = 3) -> np.ndarray:
    """Return (n, 6, 7, channels) uint8, including black, white, gray and pure colors."""
    x = np.random.default_rng(seed).integers(0, 256, (n, 6, 7, channels), dtype=np.uint8)
    x[:, 0, 0], x[:, 0, 1], x[:, 0, 2], x[:, 0, 3, :1] = 0, 255, 100, 255
    return x


TURNED = jax.jit(turn_hue)


@given(seed=st.integers(0, 2**32 - 1), turns=st.floats(-1.5, 1.5, width=32))
def test_the_hue_rotation_equals_that_of_the_standard_library(seed: int, turns: float) -> None:
    x = pixels(seed, n=1).astype(np.float32) / 255
    planes = TURNED([x[..., i] for i in range(3)], np.full((1, 1, 1), turns, np.float32))
    for got, (red, green, blue) in zip(np.stack(planes, axis=-1).reshape(-1, 3), x.reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
        np.testing.assert_allclose(got, colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value), atol=2e-5)


def only(name: str, strength: float) -> Any:
    return augment.color_jitter(**{"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, name: strength})


@pytest.mark.representatives("brightness-Brightness-0.4")
@pytest.mark.parametrize(
    ("name", "enhancement", "strength"),
    [
        ("brightness", PIL.ImageEnhance.Brightness, 0.4),
        ("contrast", PIL.ImageEnhance.Contrast, 1.5),
        ("saturation", PIL.ImageEnhance.Color, 0.4),
        pytest.param("brightness", PIL.ImageEnhance.Brightness, 1.5, marks=pytest.mark.slow),
        pytest.param("contrast", PIL.ImageEnhance.Contrast, 0.4, marks=pytest.mark.slow),
        pytest.param("saturation", PIL.ImageEnhance.Color, 1.5, marks=pytest.mark.slow),
    ],
)
def test_each_image_equals_pils_enhancement_by_one_factor_of_the_range(
    name: str, enhancement: Any, strength: float
) -> None:
    x = pixels(0, n=16)
    got = run(only(name, strength), x, seed=1)
    low, high = max(0.0, 1 - strength), 1 + strength
    factors = np.linspace(low, high, 401)
    found = []
    for image, result in zip(x, np.asarray(got, int), strict=True):
        # PIL rounds the gray values, so a pixel differs by up to 0.8 between two candidates.
        errors = [
            abs(np.asarray(enhancement(PIL.Image.fromarray(image)).enhance(f), int) - result).max() for f in factors
        ]
        assert min(errors) <= 3
        found.append(factors[int(np.argmin(errors))])
    assert len(set(found)) > 12  # each image has its own factor
    assert min(found) < low + 0.25 * (high - low)
    assert max(found) > high - 0.25 * (high - low)


def by_rows(key: jax.Array, x: np.ndarray, strengths: dict[str, float]) -> np.ndarray:
    """Apply the same random numbers to one image and one change at a time, in float64. Images are in [0, 1]."""
    names = [name for name, strength in strengths.items() if strength]
    uniform = np.asarray(jax.random.uniform(key, (len(x), 2 * len(names))), np.float64)
    results = []
    for image, row in zip(x.astype(np.float64), uniform, strict=True):
        for i in np.argsort(row[len(names) :]):
            name, strength = names[i], strengths[names[i]]
            low, high = (-strength, strength) if name == "hue" else (max(0, 1 - strength), 1 + strength)
            factor, grey = low + (high - low) * row[i], (image * GREY).sum(axis=-1, keepdims=True)
            if name == "hue":
                hsv = [colorsys.rgb_to_hsv(*pixel) for pixel in image.reshape(-1, 3)]
                turned = [colorsys.hsv_to_rgb((h + factor) % 1, s, v) for h, s, v in hsv]
                image = np.array(turned).reshape(image.shape)
            else:
                other = {"brightness": 0.0, "contrast": grey.mean(), "saturation": grey}[name]
                image = np.clip(other + factor * (image - other), 0, 1)
        results.append(image)
    return np.stack(results)


STRENGTHS = {"brightness": 0.7, "contrast": 0.8, "saturation": 1.4, "hue": 0.3}
ALL_FOUR = jax.jit(lambda key, x: augment.color_jitter(**STRENGTHS)(key, x, None)[0])


@given(seed=st.integers(0, 2**32 - 1))
def test_all_four_changes_are_applied_in_an_order_drawn_for_each_image(seed: int) -> None:
    x, key = pixels(seed, n=8).astype(np.float32) / 255, jax.random.key(seed)
    expected = by_rows(key, x, STRENGTHS)
    got = ALL_FOUR(key, x)
    np.testing.assert_allclose(got, expected, atol=1e-4)
    # The order matters: this would fail for another one.
    swapped = by_rows(key, x, dict(reversed(STRENGTHS.items())))
    assert abs(np.asarray(got) - swapped).max() > 0.01


def test_all_orders_are_equally_likely() -> None:
    uniform = np.asarray(jax.random.uniform(jax.random.key(0), (6000, 6)))
    orders, counts = np.unique(np.argsort(uniform[:, 3:], axis=1), axis=0, return_counts=True)
    assert len(orders) == 6
    assert ((counts - 1000) ** 2 / 1000).sum() < 20.5  # chi-squared with 5 degrees of freedom, 0.999


def test_saturation_and_hue_do_not_change_gray_images() -> None:
    x = pixels(0, channels=1)
    still = run(augment.color_jitter(brightness=0, contrast=0, saturation=0.9, hue=0.5), x)
    np.testing.assert_array_equal(still, x)
    # A color image with equal channels is the same image.
    jitter = augment.color_jitter(0.5, 0.5, 0)
    one, three = run(jitter, x), run(jitter, np.repeat(x, 3, axis=3))
    assert abs(np.repeat(one, 3, axis=3).astype(int) - three.astype(int)).max() <= 1
    assert (one != x).any()


def test_uint8_neither_wraps_around_nor_loses_its_extreme_values() -> None:
    x = np.full((64, 4, 4, 3), 250, np.uint8)
    x[:, 0] = 5
    got = run(only("brightness", 1.0), x).astype(int)
    assert ((got[:, 0] <= 10) & (got[:, 1] >= got[:, 0])).all()
    assert got.max() == 255
    assert got.min() == 0


def test_images_without_one_or_three_channels_raise() -> None:
    with pytest.raises(DataError, match=r"4 channels, shape \(2, 6, 7, 4\).*1 \(gray\) or 3"):
        augment.color_jitter()(jax.random.key(0), pixels(0, 2, 4), None)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"brightness": -0.1}, r"brightness=-0.1.*>= 0\."),
        ({"hue": 0.6}, r"hue=0.6.*at most 0.5"),
        ({"contrast": float("inf")}, "contrast=inf"),
        ({"saturation": float("nan")}, "saturation=nan"),
        ({"brightness": 0, "contrast": 0, "saturation": 0}, "changes nothing"),
    ],
    ids=str,
)
def test_invalid_arguments_raise(arguments: dict[str, float], says: str) -> None:
    with pytest.raises(CompileError, match=f"color_jitter got .*{says}"):
        augment.color_jitter(**arguments)
