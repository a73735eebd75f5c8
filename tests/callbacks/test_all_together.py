"""A fit with all callbacks trains the same as one without, and the callbacks read almost nothing."""

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx

from resfit import callbacks
from resfit.callbacks.base import Callback
from tests.callbacks.fakes import counting_reads
from tests.helpers import PlainNet, compiled, fit, images, labels

EPOCHS, STEPS, BATCH = 2, 24, 4


class Writer:
    """The methods that CLUMetricWriter needs."""

    def write_scalars(self, step: int, scalars: dict[str, float]) -> None:
        pass

    def flush(self) -> None:
        pass


class ReadsEveryStep(Callback):
    """A callback that reads the logs at every step, which costs time."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        float(logs["loss"])


def all_callbacks() -> list[Callback]:
    """Return each callback that reads batches without changing the run. Batches are written every 16 steps."""
    pytest.importorskip("tensorboardX")
    return [
        callbacks.Throughput(),
        callbacks.Timer(datetime.timedelta(hours=1)),
        callbacks.TerminateOnNaN(),
        callbacks.LearningRateScheduler(lambda step: 0.1, every=1),
        callbacks.ReduceLROnPlateau("loss"),
        callbacks.EarlyStopping("loss", patience=9),
        callbacks.Profiler("trace", start=1000, stop=1001),
        callbacks.CSVLogger("log.csv"),
        callbacks.JSONLogger("log.jsonl", every=16),
        callbacks.TensorBoard(update_freq=16),
        callbacks.CLUMetricWriter(Writer(), every=16),
        callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: None),
    ]


def run(chosen: list[Callback]) -> tuple[list[np.ndarray], dict[str, list[float]]]:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)))
    n = STEPS * BATCH
    history = fit(model, images(n), labels(n), batch_size=BATCH, epochs=EPOCHS, callbacks=chosen)
    return model.get_weights(), {name: values for name, values in history.history.items() if name != "learning_rate"}


def test_a_run_with_all_callbacks_ends_bit_for_bit_as_one_without() -> None:
    weights, history = run([])
    watched_weights, watched_history = run(all_callbacks())
    for a, b in zip(weights, watched_weights, strict=True):
        np.testing.assert_array_equal(a, b)
    assert history == watched_history
    assert Path("log.csv").exists()


def test_all_callbacks_together_read_a_few_times_an_epoch_and_a_read_at_every_step_is_detected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    count = counting_reads(monkeypatch)
    run([])
    assert count.reads == EPOCHS  # read by fit itself at the end of each epoch
    count.reads = 0
    run(all_callbacks())
    # TerminateOnNaN reads eight losses at once. The loggers share these reads, at steps 16, 32 and 48;
    # step 48 is the end of the second epoch.
    assert count.reads <= EPOCHS + EPOCHS * STEPS // 8 + 2
    count.reads = 0
    run([ReadsEveryStep()])
    assert count.reads == EPOCHS * STEPS
