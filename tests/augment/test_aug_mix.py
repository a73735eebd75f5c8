"""AugMix: the mixtures of torchvision, and the consistency of the predictions in the loss."""

import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from resfit import augment, losses
from resfit.augment import policies
from resfit.augment.operations import OPERATIONS
from resfit.errors import CompileError, DataError, LabelError, LossError
from tests.augment.golden import CASES, GOLDEN
from tests.augment.test_policies import snake
from tests.helpers import CLASSES, PlainNet, compiled, labels, values

mixing: Any = sys.modules["resfit.augment.aug_mix"]  # the function has the name of its module
DRAWN = json.loads(str(GOLDEN["aug_mixes"]))


def test_mixtures_are_those_of_torchvision() -> None:
    """For the operations, magnitudes and shares that torchvision drew, all in one batch."""
    steps = [
        [(OPERATIONS.index(snake(name)), value * (255 if name == "Solarize" else 1)) for name, value in one["steps"]]
        for one in DRAWN
    ]
    by_step = np.asarray(steps).reshape(len(DRAWN) * 3, CASES["DEPTH"], 2).transpose(1, 0, 2)
    operation, magnitude = jnp.asarray(by_step[..., 0], jnp.int32), jnp.asarray(by_step[..., 1], jnp.float32)
    share, shares = (jnp.asarray([one[name] for one in DRAWN], jnp.float32) for name in ("share", "shares"))
    chains = mixing.Chains(policies.Steps(operation, magnitude), share, shares)
    x = jnp.broadcast_to(GOLDEN["image"], (len(DRAWN), *GOLDEN["image"].shape))
    with jax.numpy_rank_promotion("allow"):
        found = np.asarray(jax.jit(lambda x, chains: mixing.mixed(x, chains, "bilinear", 0.0))(x, chains))
    for number, one in enumerate(found):
        # torchvision cuts the fraction off.
        np.testing.assert_allclose(np.floor(one), GOLDEN[f"image/aug_mix/{number}"], atol=1, err_msg=str(number))
    assert len({name for one in DRAWN for name, _ in one["steps"]}) == 13


@pytest.mark.parametrize("alpha", [1.0, pytest.param(0.5, marks=pytest.mark.slow)])
def test_chains_are_drawn_as_in_the_source(alpha: float) -> None:
    rows, width, severity = 6000, 3, 4
    key, shape = jax.random.key(0), (rows, 32, 32, 3)
    with jax.numpy_rank_promotion("allow"):
        found = jax.jit(lambda key: mixing.drawn(key, shape, severity, width, None, alpha, all_ops=True))(key)
    operation, magnitude = (np.asarray(one) for one in found.steps)
    lengths = (operation > 0).sum(axis=0)
    np.testing.assert_allclose(np.bincount(lengths)[1:] / len(lengths), 1 / 3, atol=0.02)
    assert (np.diff((operation > 0).astype(int), axis=0) <= 0).all()  # the empty steps are last
    np.testing.assert_allclose(np.bincount(operation[0], minlength=14)[1:14] / len(lengths), 1 / 13, atol=0.01)
    turns = magnitude[operation == OPERATIONS.index("rotate")]
    np.testing.assert_allclose(np.unique(np.abs(turns)), np.arange(severity) * 30 / 9, rtol=1e-5)
    assert (turns < 0).mean() == pytest.approx(0.5 * (1 - 1 / severity), abs=0.05)
    share, shares = np.asarray(found.share), np.asarray(found.shares)
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(shares.mean(axis=0), 1 / 3, atol=0.02)
    # The variances of Dirichlet(alpha, alpha, alpha) and of Beta(alpha, alpha).
    np.testing.assert_allclose(shares.var(axis=0), (2 / 9) / (3 * alpha + 1), rtol=0.1)
    assert share.mean() == pytest.approx(0.5, abs=0.02)
    assert share.var() == pytest.approx(0.25 / (2 * alpha + 1), rel=0.1)
    assert abs(np.corrcoef(share, shares[:, 0])[0, 1]) < 0.06


def test_without_all_operations_no_color_changes() -> None:
    with jax.numpy_rank_promotion("allow"):
        found = mixing.drawn(jax.random.key(0), (2000, 8, 8, 3), 3, 3, 2, 1.0, all_ops=False)
    names = {OPERATIONS[number] for number in np.unique(found.steps.operation)}
    assert names == set(mixing._PARTIAL)
    assert len(names) == 9


def pictures(n: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 8, 8, 1), dtype=np.uint8)


def divergence(logits: np.ndarray) -> np.ndarray:
    """Return the Jensen-Shannon divergence of (rows, copies, classes), in float64."""
    logits = logits.astype(np.float64)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    mean = p.mean(axis=1, keepdims=True)
    return (p * np.log(p / mean)).sum(-1).mean(-1)


def of_a_step(consistency: float, **arguments: Any) -> tuple[list[float], np.ndarray, Any]:
    """Return loss and accuracy of a step, the images of the step in the order of their labels, and the variables."""
    seen: list[np.ndarray] = []

    def note(key: Any, x: Any, y: Any) -> Any:
        jax.debug.callback(lambda part: seen.append(np.asarray(part)), x)
        return x, y

    augments = [augment.aug_mix(consistency=consistency), note]
    model = compiled(PlainNet(rngs=nnx.Rngs(0)), augment=augments, metrics=["accuracy"], **arguments)
    found = model.train_on_batch(pictures(), labels(8), sample_weight=np.linspace(0.1, 2, 8))
    jax.effects_barrier()
    return found, np.concatenate(seen), values(model.module)


def test_the_loss_is_that_of_the_images_plus_the_divergence_and_the_metrics_are_those_of_the_images() -> None:
    (loss, accuracy), x, _ = of_a_step(12.0)
    y, weight = labels(8), np.linspace(0.1, 2, 8)
    np.testing.assert_array_equal(x[::3], pictures())
    assert all((x[i::3] != pictures()).any() for i in (1, 2))
    assert (x[1::3] != x[2::3]).any(axis=(1, 2, 3)).sum() >= 6
    model = compiled(PlainNet(rngs=nnx.Rngs(0)))
    logits = model.predict(x, verbose=0).reshape(8, 3, CLASSES)
    clean = logits[:, 0].astype(np.float64)
    entropy = np.log(np.exp(clean).sum(-1)) - clean[np.arange(8), y]
    assert loss == pytest.approx((weight * (entropy + 12 * divergence(logits))).mean(), rel=1e-4)
    assert accuracy == (clean.argmax(-1) == y).mean()
    plain, _, _ = of_a_step(1e-9)
    assert plain[0] == pytest.approx((weight * entropy).mean(), rel=1e-4)
    assert loss > plain[0] + 1e-4


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({"dispatch": "sharded"}, id="four devices"),
        pytest.param({"gradient_accumulation_steps": 2}, id="slices", marks=pytest.mark.slow),
    ],
)
def test_the_consistency_is_the_same_on_four_devices_and_in_slices(arguments: dict[str, Any]) -> None:
    (loss, accuracy), _, after = of_a_step(12.0, **arguments)
    expected, _, reference = of_a_step(12.0)
    np.testing.assert_allclose([loss, accuracy], expected, rtol=1e-5)
    for name, value in after.items():
        np.testing.assert_allclose(value, reference[name], rtol=1e-4, atol=1e-6)


def test_evaluation_has_no_copies() -> None:
    model, plain = (compiled(PlainNet(rngs=nnx.Rngs(0)), augment=one) for one in (augment.aug_mix(consistency=1), None))
    assert model.evaluate(pictures(), labels(8), verbose=0) == plain.evaluate(pictures(), labels(8), verbose=0)


@given(seed=st.integers(0, 2**32 - 1), copies=st.integers(2, 4), scale=st.sampled_from([0.1, 3.0, 30.0]))
def test_the_divergence_is_that_of_its_definition(seed: int, copies: int, scale: float) -> None:
    logits = scale * np.random.default_rng(seed).normal(size=(5, copies, 4))
    found = losses.jensen_shannon(jnp.asarray(logits.reshape(-1, 4), jnp.float32), copies)
    np.testing.assert_allclose(found, divergence(logits), rtol=1e-3, atol=2e-6)
    assert (np.asarray(found) <= np.log(copies) + 1e-5).all()


def test_a_single_logit_and_pixels_have_divergences_too() -> None:
    logit = jnp.asarray([[2.0], [-1.0], [0.5], [0.5]])
    two = jnp.concatenate([0 * logit, logit], axis=1)
    expected = losses.jensen_shannon(two, 2)
    np.testing.assert_allclose(losses.jensen_shannon(logit, 2), expected, rtol=1e-6)
    np.testing.assert_allclose(losses.jensen_shannon(logit[:, 0], 2), expected, rtol=1e-6)
    pixels = jnp.stack([two, two[::-1]], axis=1)
    np.testing.assert_allclose(losses.jensen_shannon(pixels, 2), [expected.mean()] * 2, rtol=1e-6)
    with pytest.raises(LossError, match=r"one array \(4, 2\) for 3 copies"):
        losses.jensen_shannon(two, 3)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"severity": 0}, "severity=0.*positive integer, at most 10"),
        ({"severity": 11}, "severity=11.*at most 10"),
        ({"width": 0}, "width=0.*positive integer"),
        ({"depth": 0}, "depth=0.*positive integer, or None for 1 to 3"),
        ({"depth": 1.5}, r"depth=1\.5"),
        ({"alpha": 0}, "alpha=0.*positive number"),
        ({"alpha": "1"}, "alpha='1'.*positive number"),
        ({"consistency": -1}, "consistency=-1.*at least 0, such as 12"),
        ({"consistency": float("inf")}, "consistency=inf"),
        ({"interpolation": "cubic"}, "aug_mix got interpolation='cubic'"),
        ({"fill": None}, "aug_mix got fill=None"),
    ],
    ids=repr,
)
def test_wrong_arguments_raise(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(CompileError, match=says):
        augment.aug_mix(**arguments)


def test_masks_and_images_of_two_channels_raise() -> None:
    key, x = jax.random.key(0), jnp.zeros((2, 8, 8, 1), jnp.uint8)
    for mix in (augment.aug_mix(), augment.aug_mix(consistency=12)):
        with pytest.raises(LabelError, match=r"aug_mix mixes images whose pixels moved.*rand_augment\(mask_fill"):
            jax.eval_shape(mix, key, x, jnp.zeros((2, 8, 8), jnp.int32))
        with pytest.raises(DataError, match=r"augment\.aug_mix got images of 2 channels"):
            jax.eval_shape(mix, key, jnp.zeros((2, 8, 8, 2), jnp.uint8), None)


@pytest.mark.parametrize(
    "loss", ["binary_cross_entropy", losses.BinaryCrossEntropy(), "mse", {"output_0": "cross_entropy"}], ids=repr
)
def test_a_consistency_with_a_loss_that_reads_no_classes_raises(loss: Any) -> None:
    with pytest.raises(CompileError, match=r"aug_mix\(consistency=\.\.\.\) and loss=.*one class per example"):
        compiled(PlainNet(rngs=nnx.Rngs(0)), loss=loss, augment=augment.aug_mix(consistency=12))
    compiled(PlainNet(rngs=nnx.Rngs(0)), loss=loss, augment=augment.aug_mix())
