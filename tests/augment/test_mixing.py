"""Mixup, CutMix and one_of mix images and labels by the same share."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resfit import augment
from resfit.augment.mixing import share_of
from resfit.errors import CompileError, LabelError, RankError

CLASSES = 4
MIXUP, CUTMIX = augment.mixup(1.0, CLASSES), augment.cutmix(1.0, CLASSES)
RUN = {"mixup": jax.jit(MIXUP), "cutmix": jax.jit(CUTMIX), "one_of": jax.jit(augment.one_of(MIXUP, CUTMIX))}

seeds = st.integers(0, 2**32 - 1)


def batch(seed: int, dtype: Any = np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Return five images of 8 x 11, each the number of its row plus noise, and their classes."""
    random = np.random.default_rng(seed)
    x = (
        random.integers(0, 256, (5, 8, 11, 2), dtype=np.uint8)
        if dtype == np.uint8
        else random.normal(size=(5, 8, 11, 2))
    )
    return x.astype(dtype), random.integers(0, CLASSES, 5)


def shares(y: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the share of its own class in each row whose partner has another class."""
    partner = np.roll(y, 1)
    own = targets[np.arange(len(y)), y]
    return own[y != partner]


@pytest.mark.representatives("one_of")
@pytest.mark.parametrize("name", RUN)
@given(seed=seeds)
def test_soft_labels_sum_to_one_and_their_mean_over_the_batch_is_kept(name: str, seed: int) -> None:
    x, y = batch(seed)
    _, targets = RUN[name](jax.random.key(seed), x, y)
    assert targets.dtype == jnp.float32
    assert np.asarray(targets).min() >= 0
    np.testing.assert_allclose(targets.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(targets.mean(axis=0), np.eye(CLASSES)[y].mean(axis=0), atol=1e-6)


@given(seed=seeds, dtype=st.sampled_from([np.uint8, np.float32]))
def test_mixup_blends_images_and_labels_by_the_same_share(seed: int, dtype: Any) -> None:
    x, y = batch(seed, dtype)
    y[:2] = 0, 1  # at least one pair has two classes
    mixed, targets = RUN["mixup"](jax.random.key(seed), x, y)
    own = shares(y, np.asarray(targets))
    share = own[0]
    np.testing.assert_allclose(own, share, atol=1e-6)
    blend = share * x.astype(np.float64) + (1 - share) * np.roll(x, 1, axis=0)
    np.testing.assert_allclose(mixed, blend, atol=0.501 if dtype == np.uint8 else 1e-5)
    assert mixed.dtype == dtype


@given(seed=seeds, dtype=st.sampled_from([np.uint8, np.float32]))
def test_cutmix_pastes_one_rectangle_and_its_share_is_the_remaining_area(seed: int, dtype: Any) -> None:
    _, y = batch(seed)
    y[:2] = 0, 1
    x = np.broadcast_to(
        np.arange(5, dtype=dtype)[:, None, None, None], (5, 8, 11, 2)
    )  # identifies the source of the pixel
    mixed, targets = jax.tree.map(np.asarray, RUN["cutmix"](jax.random.key(seed), x, y))
    kept = mixed == x
    np.testing.assert_array_equal(mixed[~kept], np.roll(x, 1, axis=0)[~kept])
    np.testing.assert_array_equal(kept, np.broadcast_to(kept[:1, :, :, :1], kept.shape))  # the same for all images
    pasted = ~kept[0, :, :, 0]
    if pasted.any():
        rows, columns = (np.flatnonzero(pasted.any(axis=axis)) for axis in (1, 0))
        assert pasted[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    np.testing.assert_allclose(shares(y, targets), kept[0].mean(), atol=1e-6)


def shares_of(uniform: np.ndarray, alpha: float) -> np.ndarray:
    """Return the share of each pair of uniform numbers, (n,) float64."""
    return np.asarray(jax.jit(jax.vmap(lambda pair: share_of(pair, alpha)))(uniform), np.float64)


@pytest.mark.representatives("1.0")
@pytest.mark.parametrize(
    "alpha", [0.2, 1.0, 50.0, *(pytest.param(a, marks=pytest.mark.slow) for a in (0.05, 0.5, 3.0))]
)
def test_the_share_is_beta_distributed(alpha: float) -> None:
    import scipy.stats

    drawn = shares_of(np.random.default_rng(1).random((20_000, 2), np.float32), alpha)
    assert np.isfinite(drawn).all()
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    # Closer to the ends than 1e-6, float32 cannot distinguish a share from 0 or 1.
    for at in np.concatenate([[1e-6, 1 - 1e-6], np.linspace(0.01, 0.99, 50)]):
        expected = scipy.stats.beta.cdf(at, alpha, alpha)
        assert abs((drawn <= at).mean() - expected) < 0.014, at  # 0.999 of a Kolmogorov-Smirnov test


@pytest.mark.parametrize("alpha", [0.01, 0.2, 1.0, 1000.0])
def test_the_share_is_finite_for_every_possible_random_number(alpha: float) -> None:
    ends = [0.0, 2.0**-23, 0.25, 0.5, 0.75, 1 - 2.0**-23]
    pairs = np.array(list(itertools.product(ends, ends)), np.float32)
    drawn = shares_of(pairs, alpha)
    assert ((drawn >= 0) & (drawn <= 1)).all(), pairs[~((drawn >= 0) & (drawn <= 1))]


@pytest.mark.representatives("mixup-classes", "mixup-soft", "mixup-several labels", "cutmix-one-hot", "cutmix-binary")
@pytest.mark.parametrize(
    ("y", "num_classes", "targets"),
    [
        (np.array([2, 0], np.int64), 3, [[0, 0, 1], [1, 0, 0]]),
        (np.array([[2], [0]], np.uint8), 3, [[0, 0, 1], [1, 0, 0]]),
        (np.array([[0, 0, 1], [1, 0, 0]], np.int32), 3, [[0, 0, 1], [1, 0, 0]]),
        (np.array([[0.1, 0.9], [0.5, 0.5]], np.float32), None, [[0.1, 0.9], [0.5, 0.5]]),
        (np.array([[True, True], [False, True]]), None, [[1, 1], [0, 1]]),
        (np.array([1, 0]), 1, [1, 0]),
        (np.array([[1], [0]]), 1, [[1], [0]]),
        (np.array([True, False]), None, [1, 0]),
        (np.array([0.25, 3.5], np.float32), None, [0.25, 3.5]),
    ],
    ids=["classes", "column", "one-hot", "soft", "several labels", "binary", "binary column", "booleans", "numbers"],
)
@pytest.mark.parametrize("make", [augment.mixup, augment.cutmix], ids=["mixup", "cutmix"])
def test_every_kind_of_label_is_mixed(make: Any, y: Any, num_classes: int | None, targets: Any) -> None:
    x = np.stack([np.zeros((6, 6, 1)), np.ones((6, 6, 1))]).astype(np.float32)
    mixed, got = make(1.0, num_classes)(jax.random.key(0), x, y)
    share = 1 - np.asarray(mixed)[0].mean()
    assert 0.01 < share < 0.99
    expected = np.asarray(targets, np.float64)
    np.testing.assert_allclose(got, share * expected + (1 - share) * expected[::-1], atol=1e-6)


@pytest.mark.parametrize("label", [-1, CLASSES])
def test_an_invalid_class_never_becomes_a_target(label: int) -> None:
    x, y = batch(0)
    y[3] = label
    _, targets = RUN["mixup"](jax.random.key(0), x, y)
    assert np.isnan(np.asarray(targets)[[3, 4]]).all()
    assert np.isfinite(np.asarray(targets)[:3]).all()


@pytest.mark.representatives("mixup")
@pytest.mark.parametrize("name", RUN)
def test_a_batch_of_one_keeps_its_image_and_its_class(name: str) -> None:
    x, _ = batch(0, np.uint8)
    mixed, targets = RUN[name](jax.random.key(0), x[:1], np.array([2]))
    np.testing.assert_array_equal(mixed, x[:1])
    np.testing.assert_allclose(targets, [[0, 0, 1, 0]], atol=1e-6)


@pytest.mark.parametrize(
    ("y", "error", "says"),
    [
        (None, LabelError, "mixes labels and got none"),
        ({"a": np.arange(2)}, LabelError, "got a dict.*one array"),
        (np.arange(2), LabelError, r"class numbers, labels of shape \(2,\), int.*mixup\(num_classes=10\)"),
    ],
    ids=["none", "dict", "unknown classes"],
)
def test_labels_that_cannot_be_mixed_raise(y: Any, error: Any, says: str) -> None:
    with pytest.raises(error, match=says):
        augment.mixup()(jax.random.key(0), np.zeros((2, 4, 4, 1), np.float32), y)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: augment.mixup(0.0), r"mixup got alpha=0.0.*positive"),
        (lambda: augment.cutmix(float("inf")), r"cutmix got alpha=inf"),
        (lambda: augment.mixup(0.2, 0), r"mixup got num_classes=0.*or None"),
        (lambda: augment.cutmix(1.0, 2.5), r"cutmix got num_classes=2.5"),
        (lambda: augment.one_of(MIXUP), r"one_of got \(mixup\(alpha=1.0, num_classes=4\),\).*two or more"),
        (lambda: augment.one_of(MIXUP, "cutmix"), r"one_of got .*two or more"),
    ],
    ids=["alpha 0", "alpha inf", "no class", "half a class", "one alone", "a name"],
)
def test_invalid_arguments_raise(make: Any, says: str) -> None:
    with pytest.raises(CompileError, match=says):
        make()


# --- one_of -----------------------------------------------------------------------------------------------------------


def test_each_augmentation_is_drawn_equally_often_and_for_the_whole_batch() -> None:
    x, y = batch(0)
    cut = []
    for seed in range(80):
        mixed = np.asarray(RUN["one_of"](jax.random.key(seed), x, y)[0])
        rows = ((mixed == x) | (mixed == np.roll(x, 1, axis=0))).all(axis=(1, 2, 3))
        assert rows.all() or not rows.any()
        cut.append(rows.all())
    assert 24 < sum(cut) < 56  # 40 expected, 3.5 standard deviations


def test_one_of_with_results_of_different_forms_raises() -> None:
    arguments = jax.eval_shape(jax.random.key, 0), np.zeros((2, 8, 8, 3), np.uint8), np.arange(2)
    with pytest.raises(CompileError, match=r"\(\(2, 8, 8, 3\), 'uint8'\), \(\(2,\), 'int.*same shapes and dtypes"):
        jax.eval_shape(augment.one_of(augment.flip(), MIXUP), *arguments)
    with pytest.raises(CompileError, match=r"\(2, 4, 4, 3\)"):
        jax.eval_shape(augment.one_of(augment.flip(), augment.random_resized_crop(4)), *arguments)


def test_errors_of_the_augmentations_propagate() -> None:
    with pytest.raises(RankError, match="mixup"):
        augment.one_of(MIXUP, CUTMIX)(jax.random.key(0), np.zeros((2, 4, 4), np.float32), np.arange(2))
