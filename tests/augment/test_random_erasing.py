"""Erased rectangles: position, size, frequency and fill."""

from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resfit import augment
from resfit.augment.boxes import DRAWS, random_boxes
from resfit.errors import CompileError, DataError
from tests.augment.running import run

ERASING = jax.jit(lambda key, x: augment.random_erasing(0.6, area=(0.1, 0.4), ratio=(0.5, 2.0))(key, x, None)[0])


@given(seed=st.integers(0, 2**32 - 1))
def test_an_image_is_unchanged_or_loses_one_rectangle_within_the_limits(seed: int) -> None:
    x = np.ones((8, 20, 24, 2), np.float32)
    for image in np.asarray(ERASING(jax.random.key(seed), x)):
        erased = image[..., 0] == 0
        np.testing.assert_array_equal(erased, image[..., 1] == 0)
        if not erased.any():
            continue
        rows, columns = (np.flatnonzero(erased.any(axis=axis)) for axis in (1, 0))
        assert erased[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        height, width = len(rows), len(columns)
        assert height * width == erased.sum()
        # Sides are rounded to whole pixels.
        assert (height + 0.5) * (width + 0.5) >= 0.1 * 20 * 24
        assert (height - 0.5) * (width - 0.5) <= 0.4 * 20 * 24
        assert (width + 0.5) / (height - 0.5) >= 0.5
        assert (width - 0.5) / (height + 0.5) <= 2.0


def test_the_number_of_erased_images_matches_the_probability() -> None:
    got = np.asarray(ERASING(jax.random.key(0), np.ones((4000, 20, 24, 1), np.float32)))
    share = (got == 0).any(axis=(1, 2, 3)).mean()
    assert abs(share - 0.6) < 0.03  # four standard deviations
    # Every pixel can be erased, also in the corners.
    assert (got == 0).any(axis=0).all()


def torchvision_box(random: np.random.Generator, image: Any, area: Any, ratio: Any) -> tuple[int, ...] | None:
    """Return (top, left, height, width) by the algorithm of torchvision's and timm's RandomErasing.

    None if no rectangle fits.
    """
    for _ in range(10):
        pixels, aspect = image[0] * image[1] * random.uniform(*area), np.exp(random.uniform(*np.log(ratio)))
        # Their ratio is height / width. The range is symmetric or nearly symmetric in the logarithm.
        w, h = round(np.sqrt(pixels * aspect)), round(np.sqrt(pixels / aspect))
        if 0 < h < image[0] and 0 < w < image[1]:
            return random.integers(image[0] - h + 1), random.integers(image[1] - w + 1), h, w
    return None


def test_rectangles_have_the_same_distribution_as_torchvisions() -> None:
    n, image, area, ratio = 4000, (16, 20), (0.02, 0.7), (0.3, 3.3)
    draw = jax.jit(lambda key: random_boxes(jax.random.uniform(key, (n, DRAWS)), image, (15, 19), area, ratio))
    boxes, found = draw(jax.random.key(0))
    ours = np.stack(boxes, axis=1)[np.asarray(found)]
    random = np.random.default_rng(1)
    theirs = np.array([box for _ in range(n) if (box := torchvision_box(random, image, area, ratio)) is not None])
    assert abs(len(ours) - len(theirs)) < 40
    for mine, other in zip(ours.T, theirs.T, strict=True):
        at = np.unique(np.concatenate([mine, other]))
        ranks = [np.searchsorted(np.sort(kind), at, side="right") / len(kind) for kind in (mine, other)]
        assert abs(ranks[0] - ranks[1]).max() < 0.044


def erased_with(fill: Any, x: np.ndarray) -> np.ndarray:
    """Return the erased pixels of one image, (pixels, channels)."""
    got = run(augment.random_erasing(1.0, area=(0.4, 0.5), fill=fill), x)
    assert got.dtype == x.dtype
    changed = (got != x).any(axis=(0, 3))
    assert 0.3 < changed.mean() < 0.6
    return got[0][changed]


@pytest.mark.representatives(
    "(124, 116, 104)-<class 'numpy.uint8'>-[124, 116, 104]", "-1.5-<class 'numpy.float32'>-[-1.5, -1.5, -1.5]"
)
@pytest.mark.parametrize(
    ("fill", "dtype", "value"),
    [
        (0.0, np.uint8, [0, 0, 0]),
        ((124, 116, 104), np.uint8, [124, 116, 104]),
        (99.6, np.uint8, [100, 100, 100]),
        (-1.5, np.float32, [-1.5, -1.5, -1.5]),
        ((0.5, 0.25, 0.0), np.float32, [0.5, 0.25, 0.0]),
    ],
    ids=str,
)
def test_rectangles_have_the_requested_fill(fill: Any, dtype: Any, value: list[float]) -> None:
    np.testing.assert_array_equal(np.unique(erased_with(fill, np.full((1, 20, 20, 3), 77, dtype)), axis=0), [value])


@pytest.mark.parametrize(
    ("dtype", "largest", "channels"),
    [
        (np.uint8, 255, 1),
        (np.float32, 1, 3),
        *(pytest.param(np.uint8, 255, n, marks=pytest.mark.slow) for n in (3, 5)),
        *(pytest.param(np.float32, 1, n, marks=pytest.mark.slow) for n in (1, 5)),
    ],
)
def test_noise_is_uniform_and_differs_for_every_pixel_and_channel(dtype: Any, largest: int, channels: int) -> None:
    noise = erased_with("noise", np.full((1, 64, 64, channels), 2, dtype)) / largest
    assert noise.min() < 0.02
    assert noise.max() > 0.98
    assert noise.max() <= 1
    assert abs(noise.mean() - 0.5) < 0.04
    assert abs(noise.std() - 12**-0.5) < 0.03
    correlation = np.corrcoef(noise.T) if channels > 1 else np.eye(1)
    assert abs(correlation - np.eye(channels)).max() < 0.15
    assert abs(np.corrcoef(noise[:-1, 0], noise[1:, 0])[0, 1]) < 0.15


def test_an_image_of_one_pixel_does_not_change() -> None:
    x = np.ones((5, 1, 1, 3), np.float32)
    np.testing.assert_array_equal(run(augment.random_erasing(1.0), x), x)


@pytest.mark.parametrize(
    ("fill", "says"),
    [((1.0, 2.0), r"fill=\(1.0, 2.0\).*\(1, 8, 8, 3\).*the 3 channels"), (300, r"fill=300.0 for uint8.*0 to 255")],
    ids=str,
)
def test_a_fill_that_does_not_fit_the_images_raises(fill: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        run(augment.random_erasing(fill=fill), np.zeros((1, 8, 8, 3), np.uint8))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"probability": -0.1}, r"probability=-0.1.*from 0 to 1"),
        ({"area": (0.0, 0.5)}, r"area=\(0.0, 0.5\).*0 < low <= high of at most 1"),
        ({"ratio": (1.0, float("inf"))}, r"ratio=\(1.0, inf\)"),
        ({"fill": "mean"}, r"fill='mean'.*'noise'"),
        ({"fill": ()}, r"fill=\(\)"),
        ({"fill": float("nan")}, "fill=nan"),
    ],
    ids=str,
)
def test_invalid_arguments_raise(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(CompileError, match=f"random_erasing got {says}"):
        augment.random_erasing(**arguments)
