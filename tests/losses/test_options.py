"""Losses with options equal their definitions in NumPy and float64."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy
from hypothesis import given
from hypothesis import strategies as st

from resfit import losses, metrics
from resfit.errors import CompileError, LabelError
from resfit.losses import BinaryCrossEntropy, CrossEntropy, Focal
from resfit.schedules import Linear

ROWS, CLASSES = 6, 4  # one shape, so that every loss is compiled once
ROUNDING = 5e-5  # of float32 logits as large as the largest drawn here

Drawn = tuple[np.ndarray, np.ndarray]


@st.composite
def classes(draw: st.DrawFn) -> Drawn:
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logits = draw(st.sampled_from([0.1, 2.0, 30.0])) * random.normal(size=(ROWS, CLASSES))
    return logits.astype(np.float32), random.integers(0, CLASSES, ROWS).astype(np.int32)


@st.composite
def soft(draw: st.DrawFn) -> Drawn:
    logits, _ = draw(classes())
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return logits, random.dirichlet(np.ones(CLASSES), ROWS).astype(np.float32)


@st.composite
def binary(draw: st.DrawFn) -> Drawn:
    logits, labels = draw(classes())
    return logits[:, :1], (labels % 2).astype(np.int32)


KINDS: dict[str, Callable[[], st.SearchStrategy[Drawn]]] = {"classes": classes, "soft": soft, "binary": binary}


def targets_of(labels: np.ndarray) -> np.ndarray:
    return np.eye(CLASSES)[labels] if labels.ndim == 1 else labels.astype(np.float64)


def smoothed(targets: np.ndarray, share: float, sides: int) -> np.ndarray:
    return (1 - share) * targets + share / sides


def cross_entropy(smoothing: float) -> Callable[..., np.ndarray]:
    def oracle(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
        if logits.shape[1] == 1:
            logits, labels = np.concatenate([np.zeros_like(logits), logits], axis=1), np.eye(2)[labels]
        targets = targets_of(labels)
        log_p = scipy.special.log_softmax(logits, axis=1)
        return -(smoothed(targets, smoothing, targets.shape[1]) * log_p).sum(axis=1)

    return oracle


def binary_cross_entropy(smoothing: float, threshold: float | None, reduction: str) -> Callable[..., np.ndarray]:
    def oracle(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
        targets = labels[:, None] if logits.shape[1] == 1 else targets_of(labels)
        if threshold is not None:
            targets = (targets > threshold).astype(np.float64)
        targets = smoothed(targets, smoothing, max(logits.shape[1], 2))
        each = -targets * scipy.special.log_expit(logits) - (1 - targets) * scipy.special.log_expit(-logits)
        return each.mean(axis=1) if reduction == "mean" else each.sum(axis=1)

    return oracle


def focal(gamma: float, alpha: float | None) -> Callable[..., np.ndarray]:
    def oracle(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
        if logits.shape[1] == 1:
            z = np.where(labels == 1, 1, -1) * logits[:, 0]
            weight = 1.0 if alpha is None else np.where(labels == 1, alpha, 1 - alpha)
            return -weight * scipy.special.expit(-z) ** gamma * scipy.special.log_expit(z)
        log_p = scipy.special.log_softmax(logits, axis=1)
        log_not_p = np.stack(
            [scipy.special.logsumexp(np.delete(log_p, k, axis=1), axis=1) for k in range(CLASSES)], axis=1
        )
        return -(targets_of(labels) * np.exp(gamma * log_not_p) * log_p).sum(axis=1)

    return oracle


LOSSES: dict[str, tuple[losses.Loss, Callable[..., np.ndarray], tuple[str, ...]]] = {
    "cross-entropy": (CrossEntropy(), cross_entropy(0.0), tuple(KINDS)),
    "smoothed cross-entropy": (CrossEntropy(label_smoothing=0.1), cross_entropy(0.1), tuple(KINDS)),
    "binary cross-entropy": (BinaryCrossEntropy(), binary_cross_entropy(0.0, None, "mean"), tuple(KINDS)),
    "summed": (BinaryCrossEntropy(reduction="sum"), binary_cross_entropy(0.0, None, "sum"), tuple(KINDS)),
    "recipe A1": (
        BinaryCrossEntropy(label_smoothing=0.1, target_threshold=0.2),
        binary_cross_entropy(0.1, 0.2, "mean"),
        tuple(KINDS),
    ),
    "focal": (Focal(), focal(2.0, None), tuple(KINDS)),
    "focal, half": (Focal(gamma=0.5), focal(0.5, None), tuple(KINDS)),
    "focal, weighted": (Focal(alpha=0.25), focal(2.0, 0.25), ("binary",)),
}
CASES = [(name, kind) for name, (_, _, kinds) in LOSSES.items() for kind in kinds]
COMPILED = {name: jax.jit(loss) for name, (loss, _, _) in LOSSES.items()}
SLOPES = {name: jax.jit(jax.grad(lambda x, y, loss=loss: loss(x, y).sum())) for name, (loss, _, _) in LOSSES.items()}


@pytest.mark.representatives(
    "cross-entropy-classes",
    "cross-entropy-binary",
    "smoothed cross-entropy-classes",
    "binary cross-entropy-soft",
    "summed-soft",
    "recipe A1-classes",
    "focal-classes",
    "focal-binary",
    "focal, weighted-binary",
)
@pytest.mark.parametrize(("name", "kind"), CASES)
@given(data=st.data())
def test_a_loss_equals_its_definition(name: str, kind: str, data: st.DataObject) -> None:
    logits, labels = data.draw(KINDS[kind]())
    expected = LOSSES[name][1](logits.astype(np.float64), labels)
    found = COMPILED[name](logits, labels)
    assert found.shape == (ROWS,)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=3e-5, atol=ROUNDING)


@pytest.mark.representatives("cross-entropy-classes", "focal-classes")
@pytest.mark.parametrize(
    ("name", "kind"),
    # Each case compiles a gradient. The short suite runs every loss with one kind of labels.
    [pytest.param(name, kind, marks=[pytest.mark.slow] * (kind != LOSSES[name][2][0])) for name, kind in CASES],
)
@given(data=st.data(), scale=st.sampled_from([0.0, 1.0, 100.0, 1e4]))
def test_a_gradient_is_finite_for_every_confidence_of_the_network(
    name: str, kind: str, data: st.DataObject, scale: float
) -> None:
    logits, labels = data.draw(KINDS[kind]())
    assert np.isfinite(SLOPES[name](logits * np.float32(scale), labels)).all()


@given(drawn=classes())
def test_without_its_option_a_loss_is_plain_cross_entropy(drawn: Drawn) -> None:
    logits, labels = drawn
    plain, same, focal, smooth = (np.asarray(loss) for loss in without_option(logits, labels))
    np.testing.assert_array_equal(same, plain)
    np.testing.assert_allclose(focal, plain, rtol=1e-6, atol=ROUNDING)
    assert np.abs(smooth - plain).max() > 1e-6


@jax.jit
def without_option(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, ...]:
    made = (losses.cross_entropy, CrossEntropy(), Focal(gamma=0.0), CrossEntropy(label_smoothing=0.1))
    return tuple(loss(logits, labels) for loss in made)


def test_smoothing_equals_that_of_optax() -> None:

    @jax.jit
    def found_and_expected(logits: jax.Array, labels: jax.Array) -> Any:
        targets = optax.smooth_labels(jax.nn.one_hot(labels, 7), 0.2)
        return (
            (CrossEntropy(label_smoothing=0.2)(logits, labels), optax.softmax_cross_entropy(logits, targets)),
            (
                BinaryCrossEntropy(label_smoothing=0.2)(logits, labels),
                optax.sigmoid_binary_cross_entropy(logits, targets).mean(axis=1),
            ),
        )

    logits = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    for found, expected in found_and_expected(logits, np.arange(5)):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_binary_focal_equals_that_of_optax() -> None:
    logits, labels = np.linspace(-5, 5, 10, dtype=np.float32)[:, None], np.arange(10, dtype=np.int32) % 2
    theirs = jax.jit(lambda logits, labels: optax.sigmoid_focal_loss(logits, labels, alpha=0.25, gamma=2.0))
    expected = theirs(logits[:, 0], labels.astype(np.float32))
    np.testing.assert_allclose(jax.jit(Focal(alpha=0.25))(logits, labels), expected, rtol=1e-5)


def test_the_threshold_gives_a_mixed_image_both_of_its_classes() -> None:
    logits, mixed = np.ones((1, 4), np.float32), np.float32([[0.7, 0.3, 0.0, 0.0]])
    both = jax.jit(losses.binary_cross_entropy)(logits, np.int32([[1, 1, 0, 0]]))
    np.testing.assert_allclose(jax.jit(BinaryCrossEntropy(target_threshold=0.2))(logits, mixed), both, rtol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_equal_losses_have_equal_keys_and_different_losses_do_not(name: str) -> None:
    loss: Any = LOSSES[name][0]
    assert {loss: 1}[dataclasses.replace(loss)] == 1
    field = dataclasses.fields(loss)[0].name
    assert dataclasses.replace(loss, **{field: 0.3}) != loss


def test_a_class_number_out_of_range_makes_the_loss_nan() -> None:
    found = jax.jit(BinaryCrossEntropy(target_threshold=0.2))(np.zeros((3, 4), np.float32), np.int32([3, 4, -1]))
    np.testing.assert_array_equal(np.isnan(found), [False, True, True])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: CrossEntropy(label_smoothing=1.0), "label_smoothing=1.0"),
        (lambda: CrossEntropy(label_smoothing=-0.1), "label_smoothing=-0.1"),
        (lambda: CrossEntropy(label_smoothing=float("nan")), "label_smoothing=nan"),
        (lambda: BinaryCrossEntropy(label_smoothing=2), "label_smoothing=2"),
        (lambda: CrossEntropy(label_smoothing="0.1"), "label_smoothing='0.1'.*or a function step"),  # type: ignore[arg-type]
        (lambda: CrossEntropy(label_smoothing=None), "label_smoothing=None. Expected"),  # type: ignore[arg-type]
        (lambda: BinaryCrossEntropy(label_smoothing=Linear(0.2)), r"Linear.*schedule\.over"),  # type: ignore[arg-type]
        (lambda: CrossEntropy(label_smoothing=lambda step: 1 + step), "which is 1 at step 0"),
        (lambda: BinaryCrossEntropy(label_smoothing=lambda: 0.1), r"raises for step 0: .*takes 0 positional"),  # type: ignore[arg-type]
        (lambda: CrossEntropy(label_smoothing=lambda step: "a"), "raises for step 0: could not convert"),
        (lambda: BinaryCrossEntropy(target_threshold=1.0), "target_threshold=1.0"),
        (lambda: BinaryCrossEntropy(reduction="none"), "reduction='none'"),
        (lambda: Focal(gamma=-1.0), "gamma=-1.0"),
        (lambda: Focal(gamma=float("inf")), "gamma=inf"),
        (lambda: Focal(alpha=1.0), "alpha=1.0"),
    ],
)
def test_invalid_options_raise(make: Any, words: str) -> None:
    with pytest.raises(CompileError, match=words):
        make()


def test_alpha_requires_two_classes() -> None:
    with pytest.raises(LabelError, match=r"alpha=0.25 and 4 classes.*class_weight"):
        Focal(alpha=0.25)(np.zeros((2, 4), np.float32), np.int32([0, 1]))


def test_a_loss_on_class_labels_adds_accuracy_and_checks_its_labels() -> None:
    for loss in (losses.cross_entropy, CrossEntropy(label_smoothing=0.1), Focal(), losses.get("focal")):
        assert losses.takes_labels(loss)
        assert metrics.automatic(loss) == {"accuracy": metrics.Accuracy}
        with pytest.raises(LabelError, match="run from 0 to 4"):
            losses.check(loss, np.array([0, 4]), (2, 4))
        with pytest.raises(LabelError, match="Row 0 of the targets sums to 2"):
            losses.check(loss, np.array([[1, 1, 0, 0]]), (1, 4))


def test_a_loss_per_output_accepts_any_sum_of_values_between_zero_and_one() -> None:
    for loss in (losses.binary_cross_entropy, BinaryCrossEntropy()):
        assert not losses.takes_labels(loss)
        assert metrics.automatic(loss) == {}
        losses.check(loss, np.array([[1, 1, 0, 0]]), (1, 4))
        losses.check(loss, np.array([0.0, 1.0]), (2, 1))
        losses.check(loss, np.zeros((0, 4)), (0, 4))
        with pytest.raises(LabelError, match="run from 0 to 2, and each output"):
            losses.check(loss, np.array([[0, 2, 1, 0]]), (1, 4))
        with pytest.raises(LabelError, match="run from 1 to 2, and each output"):
            losses.check(loss, np.array([1, 2]), (2, 1))
        with pytest.raises(LabelError, match="NaN"):
            losses.check(loss, np.array([[0.5, np.nan]]), (1, 2))
    with pytest.raises(LabelError, match=r"run from 1 to 4, and the network has 4 outputs.*y - 1"):
        losses.check(BinaryCrossEntropy(), np.array([1, 4]), (2, 4))


def test_labels_of_a_foreign_loss_are_not_checked() -> None:
    losses.check(lambda outputs, y: outputs, np.array([-7]), (1, 4))
    losses.check(losses.mean_squared_error, np.array([-7.0]), (1, 1))
