"""Throughput measures the training only."""

import types

import pytest
from flax import nnx

from resfit.callbacks import Throughput, stopwatch
from tests.callbacks.fakes import batch, begin
from tests.helpers import PlainNet, compiled, fit, images, labels


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    fake = types.SimpleNamespace(now=100.0)
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: fake.now)
    return fake


def test_compilation_and_validation_are_left_out(clock: types.SimpleNamespace) -> None:
    callback = Throughput()
    model = begin(callback)
    for epoch in range(2):
        clock.now += 1000  # between the epochs
        callback.on_epoch_begin(epoch, {})
        for i in range(4):
            callback.on_compile_begin("train")
            clock.now += 7
            callback.on_compile_end("train")
            clock.now += 2
            callback.on_train_batch_end(i, batch(1.0))
        callback.on_test_begin({})
        clock.now += 50
        callback.on_compile_begin("evaluate")
        clock.now += 50
        callback.on_compile_end("evaluate")
        clock.now += 50
        callback.on_test_end({})
        callback.on_epoch_end(epoch, {})
    assert callback.images_per_second == [4.0, 4.0]  # 4 x 8 images in 4 x 2 s
    assert callback.steps_per_second == [0.5, 0.5]
    assert model.history.timings["images_per_second"] == [4.0, 4.0]


def test_a_failed_compilation_does_not_stop_the_clock_of_the_next_epoch(clock: types.SimpleNamespace) -> None:
    callback = Throughput()
    begin(callback)
    callback.on_epoch_begin(0, {})
    callback.on_compile_begin("train")
    begin(callback)
    callback.on_epoch_begin(0, {})
    clock.now += 2
    callback.on_train_batch_end(0, batch(1.0))
    callback.on_epoch_end(0, {})
    assert callback.images_per_second == [4.0]


def test_in_a_fit_the_history_has_one_value_per_epoch_and_the_logs_have_none() -> None:
    callback = Throughput()
    model = compiled(PlainNet(rngs=nnx.Rngs(0)))
    history = fit(model, epochs=2, validation_data=(images(9), labels(9)), callbacks=[callback])
    assert history.timings["images_per_second"] == callback.images_per_second
    assert len(callback.images_per_second) == 2
    assert min(callback.images_per_second) > 0
    ratios = [i / s for i, s in zip(callback.images_per_second, callback.steps_per_second, strict=True)]
    assert ratios == pytest.approx([20 / 3] * 2)
    assert set(history.history) == {"loss", "accuracy", "val_loss", "val_accuracy"}
