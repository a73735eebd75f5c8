"""Steps with non-finite gradients change nothing and are counted. An epoch that consists of such steps raises."""

import logging
import math
from typing import Any

import jax
import numpy as np
import optax
import pytest
from flax import nnx

import resfit
from resfit import optimizers
from resfit.callbacks import Callback
from resfit.errors import CompileError, NonFiniteLossError
from tests.helpers import PlainNet, assert_same, compiled_of, images, labels, state_of

BAD = 7.0


class Poisoned(PlainNet):
    """A network that returns NaN for batches that contain a certain number, so its statistics become NaN too."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return super().__call__(jax.numpy.where((x == BAD).any(), jax.numpy.nan, x))


def batches(bad: tuple[int, ...], count: int = 5) -> list[tuple[np.ndarray, np.ndarray]]:
    x, y = images(8 * count), labels(8 * count)
    for i in bad:
        x[8 * i] = BAD
    return [(x[8 * i : 8 * i + 8], y[8 * i : 8 * i + 8]) for i in range(count)]


def model(optimizer: Any = None, **arguments: Any) -> resfit.Model:
    made = resfit.Model(Poisoned(rngs=nnx.Rngs(0)))
    made.compile(optimizer or optimizers.skip_non_finite(optimizers.sgd(0.1)), **{"dispatch": "jit", **arguments})
    return made


def leaves(made: resfit.Model) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in state_of(made).leaves]


class Leaves(Callback):
    """Store the state after each step on the host."""

    def __init__(self) -> None:
        self.after: list[list[np.ndarray]] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.after.append([np.array(leaf) for leaf in state_of(self.model).leaves])


@pytest.mark.representatives("arguments0-skip_non_finite", "arguments4-skip_non_finite", "arguments6-<lambda>")
@pytest.mark.parametrize(
    ("arguments", "wrap"),
    [
        ({}, optimizers.skip_non_finite),
        pytest.param({"ema": 0.9}, optimizers.skip_non_finite, marks=pytest.mark.slow),
        ({"gradient_accumulation_steps": 2}, optimizers.skip_non_finite),
        pytest.param({"dispatch": "sharded"}, optimizers.skip_non_finite, marks=pytest.mark.slow),
        ({"dispatch": "pmap", "batch_norm": "per_replica"}, optimizers.skip_non_finite),
        ({}, lambda optimizer: optax.apply_if_finite(optimizer, 3)),
        ({}, lambda optimizer: optimizers.clip(optimizers.skip_non_finite(optimizer), norm=1.0)),
        ({"learning_rate": resfit.schedules.Cosine(peak=0.1)}, optimizers.skip_non_finite),
    ],
)
def test_a_skipped_step_changes_nothing_but_the_counts(arguments: Any, wrap: Any) -> None:
    made, seen = model(wrap(optimizers.sgd(0.1)), **arguments), Leaves()
    made.fit(lambda: batches((2,)), steps_per_epoch=5, callbacks=[seen], verbose=0)
    skips = state_of(made).skips()
    assert skips is not None
    counts = {state_of(made).layout.n_model + i for i in skips}
    counts |= {
        state_of(made).layout.n_model + i for i in [compiled_of(made).rate.index] if "learning_rate" in arguments
    }
    counts.add(len(seen.after[0]) - 1)  # the step counter
    keep = [i for i in range(len(seen.after[0])) if i not in counts]
    for i in keep:
        np.testing.assert_array_equal(seen.after[2][i], seen.after[1][i])
    assert any((seen.after[3][i] != seen.after[2][i]).any() for i in keep)
    assert all(np.isfinite(leaf).all() for leaf in leaves(made))
    assert int(state_of(made).leaf(skips.total)) == 1


def test_the_log_counts_skipped_steps_and_its_means_leave_them_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "resfit"):
        made = model()
        history = made.fit(lambda: batches((2, 4)), steps_per_epoch=5, epochs=3, verbose=0)
        made.fit(lambda: batches(()), steps_per_epoch=5, verbose=0)  # skips no further update
    assert history.history["skipped_steps"] == [2.0, 4.0, 6.0]
    assert np.isfinite(history.history["loss"]).all()
    assert [record.getMessage()[:10] for record in caplog.records] == ["2 updates ", "4 updates ", "6 updates "]


def test_without_skip_non_finite_a_bad_batch_makes_parameters_and_statistics_nan() -> None:
    """Show why `skip_non_finite` exists. optax's wrapper in a custom loop does not protect the statistics."""
    made = model(optimizers.sgd(0.1))
    history = made.fit(lambda: batches((2,)), steps_per_epoch=5, verbose=0)
    assert math.isnan(history.history["loss"][0])
    assert "skipped_steps" not in history.history
    assert sum(not np.isfinite(leaf).all() for leaf in leaves(made)) > 2


def test_with_finite_batches_the_training_does_not_change() -> None:
    plain, guarded = model(optimizers.sgd(0.1)), model()
    for made in (plain, guarded):
        made.fit(lambda: batches(()), steps_per_epoch=5, epochs=2, verbose=0)
    for a, b in zip(plain.get_weights(), guarded.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_an_epoch_of_skipped_steps_raises_and_loses_nothing() -> None:
    made = model()
    before = made.get_weights()
    with pytest.raises(NonFiniteLossError, match=r"All 3 updates of epoch 0 were skipped.*Lower the learning rate"):
        made.fit(lambda: batches((0, 1, 2), count=3), steps_per_epoch=3, verbose=0)
    assert_same(made.get_weights(), before)


def test_the_learning_rate_can_still_be_set() -> None:
    made = model()
    made.learning_rate = 0.5
    assert made.learning_rate == 0.5


def test_an_optimizer_that_is_not_built_raises() -> None:
    with pytest.raises(CompileError, match=r"skip_non_finite got 'sgd'.*resfit\.optimizers\.sgd"):
        optimizers.skip_non_finite("sgd")  # type: ignore[arg-type]
