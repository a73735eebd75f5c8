"""A diverging run returns to its last good checkpoint with a lower learning rate, and can be stopped as well."""

import itertools
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import resfit
from resfit import schedules
from resfit.callbacks import Callback, Checkpoint, RollbackOnNaN
from resfit.errors import CallbackError, NonFiniteLossError
from tests import levels
from tests.faults import runs
from tests.faults.runs import Stops, stopped, terminate
from tests.helpers import PlainNet, assert_same, fit, images, labels, state_of
from tests.optimizers.test_finite import BAD, Poisoned

EPOCHS, STEPS = 4, 5


def steep(logits: jax.Array, y: jax.Array) -> jax.Array:
    """Return a steep square: a learning rate of 0.4 diverges, and 0.004 converges."""
    return 50 * jax.numpy.square(logits - y[:, None]).sum(-1)


PLAIN_SGD = resfit.optimizers.sgd(0.0, momentum=0.0)


def model(**arguments: Any) -> resfit.Model:
    return runs.small(PlainNet, **arguments)


def diverging(rate: Any = 0.4) -> resfit.Model:
    return model(optimizer=PLAIN_SGD, learning_rate=rate, loss=steep, metrics=())


class Seen(Callback):
    """Records the epoch and number of each batch."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, int]] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.batches.append((self._epoch, batch))


class Poisons(Callback):
    """Sets a parameter to NaN once after each of some batches, as a hardware fault does."""

    def __init__(self, *where: tuple[int, int]) -> None:
        self._where = set(where)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if (self._epoch, batch) in self._where:
            self._where.remove((self._epoch, batch))
            kernel = self.model.module.head.kernel
            kernel[...] = kernel[...] * np.nan


def train(made: resfit.Model, folder: Path, *callbacks: Callback, every: Any = 2, **arguments: Any) -> Any:
    return fit(
        made,
        images(8 * STEPS),
        labels(8 * STEPS),
        epochs=EPOCHS,
        callbacks=[Checkpoint(folder, every=every), *callbacks],
        **arguments,
    )


def left(made: resfit.Model, history: Any) -> dict[str, Any]:
    leaves = [np.asarray(leaf) for leaf in state_of(made).leaves]
    return {"history": history.history, "epoch": history.epoch, "leaves": leaves}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the state and history of an undisturbed run."""
    made = model()
    return left(made, train(made, tmp_path_factory.mktemp("whole")))


FAULTS = [*itertools.product([1, 2, "epoch"], [(0, 1), (1, 0), (1, 4), (3, 3)])]


@pytest.mark.representatives("epoch-where8")
@pytest.mark.parametrize(
    ("every", "where"), levels.only([(1, (1, 4)), (2, (1, 0)), ("epoch", (0, 1)), ("epoch", (3, 3))], FAULTS)
)
def test_a_rollback_with_factor_one_removes_a_hardware_fault(
    every: Any, where: tuple[int, int], whole: dict[str, Any], tmp_path: Path
) -> None:
    """With factor=1 the run matches a run without the fault bit for bit."""
    hurt = model()
    history = train(hurt, tmp_path, Poisons(where), RollbackOnNaN(factor=1), every=every)
    assert_same(left(hurt, history), whole)


@pytest.mark.slow
@pytest.mark.parametrize("steps_per_epoch", levels.only([3], [3, 7]))
def test_a_rollback_removes_a_hardware_fault_with_steps_per_epoch(steps_per_epoch: int, tmp_path: Path) -> None:
    whole, hurt = model(), model()
    expected = train(whole, tmp_path / "whole", steps_per_epoch=steps_per_epoch)
    faults = Poisons((1, 1), (3, 1))
    history = train(hurt, tmp_path / "hurt", faults, RollbackOnNaN(factor=1), steps_per_epoch=steps_per_epoch)
    assert history.history == expected.history
    assert_same(whole.get_weights(), hurt.get_weights())


@pytest.mark.representatives("rate1")
@pytest.mark.parametrize("rate", [0.4, schedules.Linear(peak=0.4)])
def test_a_diverging_run_continues_with_a_lower_learning_rate(
    rate: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = diverging(rate)
    rollback, seen = RollbackOnNaN(factor=0.01), Seen()
    with caplog.at_level(logging.WARNING, "resfit"):
        history = train(made, tmp_path, rollback, seen)
    assert rollback.count in (1, 2)
    assert all(np.isfinite(weight).all() for weight in made.get_weights())
    assert history.epoch == list(range(EPOCHS))
    assert len(seen.batches) > EPOCHS * STEPS
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == rollback.count
    assert "returns to its last good checkpoint (1 of 3 times) with the learning rate times 0.01" in said[0]
    last = 0.4 * 0.01**rollback.count * (1 if rate == 0.4 else 1 / (EPOCHS * STEPS))
    assert made.learning_rate == pytest.approx(last, rel=1e-5)


def test_a_run_that_stays_non_finite_raises_and_names_the_layer(tmp_path: Path) -> None:
    x = images(8 * STEPS)
    x[17] = BAD
    callbacks = [Checkpoint(tmp_path, every=1), RollbackOnNaN(times=2)]
    made = runs.small(Poisoned)
    with pytest.raises(NonFiniteLossError, match=r"batch 2 in epoch 0 is nan.*: the output of the layer 'head'"):
        fit(made, x, labels(8 * STEPS), shuffle=False, callbacks=callbacks)
    assert not made.keep_last_step


@pytest.mark.slow
@pytest.mark.parametrize("at", levels.only([9], [1, 4, 9, 14, 17]))
def test_a_run_with_a_rollback_and_a_stop_matches_the_uninterrupted_run(at: int, tmp_path: Path) -> None:
    def started(folder: Path, *extra: Callback) -> Any:
        made = diverging()
        history = train(made, folder, RollbackOnNaN(factor=0.01), *extra, resume=True)
        return history.history, [np.asarray(leaf) for leaf in state_of(made).leaves]

    expected = started(tmp_path / "whole")
    with stopped(SystemExit):
        started(tmp_path / "stopped", Stops(at, terminate))
    history, leaves = started(tmp_path / "stopped")
    assert history == expected[0]
    for a, b in zip(leaves, expected[1], strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_only_good_checkpoint_is_kept_while_newer_ones_are_not_finite(tmp_path: Path) -> None:
    made = model()
    fit(
        made, images(8 * STEPS), labels(8 * STEPS), epochs=EPOCHS,
        callbacks=[Checkpoint(tmp_path, every=1, keep=2), Poisons((1, 1))],
    )  # fmt: skip
    numbers = sorted(int(path.name) for path in tmp_path.iterdir() if path.name.isdigit())
    assert numbers == [5, 6, 23, 24]  # the last two before the fault, and the newest two


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"factor": 0}, "Expected 0 < factor <= 1"),
        ({"factor": 1.5}, "got 1.5"),
        ({"times": 0}, "Expected times to be a positive integer, got 0"),
    ],
)
def test_arguments_that_cannot_work_are_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(CallbackError, match=said):
        RollbackOnNaN(**arguments)


def test_rollback_without_a_checkpoint_is_refused_before_the_first_step() -> None:
    seen = Seen()
    with pytest.raises(CallbackError, match=r"this fit saves none.*Checkpoint\(folder\)"):
        fit(model(), callbacks=[RollbackOnNaN(), seen])
    assert not seen.batches


def test_rollback_without_a_settable_learning_rate_is_refused(tmp_path: Path) -> None:
    import optax

    made = resfit.Model(PlainNet(rngs=nnx.Rngs(0)))
    made.compile(optax.sgd(0.1))
    with pytest.raises(CallbackError, match=r"RollbackOnNaN lowers the learning rate.*factor=1"):
        fit(made, callbacks=[Checkpoint(tmp_path), RollbackOnNaN()])
