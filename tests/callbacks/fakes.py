"""Test doubles that drive a callback without training: a fake model, and logs of a device that can be slow."""

import types
from collections.abc import Sequence
from typing import Any

import numpy as np

import resfit
from resfit.callbacks import logs
from resfit.callbacks.base import Callback
from resfit.callbacks.logs import LazyLogs
from resfit.errors import CompileError


class FakeModel:
    """The part of a model that most callbacks use."""

    def __init__(self, learning_rate: float | None = 0.1) -> None:
        self._rate = None if learning_rate is None else np.float32(learning_rate)
        self.rates_set: list[float] = []
        self.stop_training = False
        self.control, self.data_wait = self, 0.0
        self.history = resfit.callbacks.History()

    @property
    def learning_rate(self) -> float:
        if self._rate is None:
            raise CompileError("Cannot read the learning rate.")
        return float(self._rate)

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self._rate = np.float32(value)
        self.rates_set.append(value)


class SlowArray:
    """A device value that is not ready before `finish` is called. Reading it earlier fails."""

    def __init__(self, value: float) -> None:
        self._value, self._done = value, False

    def finish(self) -> None:
        self._done = True

    def is_ready(self) -> bool:
        return self._done

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        assert self._done, "the host would have waited for the device"
        return np.asarray(self._value, dtype)


def lazy(array: SlowArray, own: float | SlowArray | None = None, examples: int = 8) -> LazyLogs:
    """Return the logs of a batch with one value, `loss`, and its own loss."""
    loss: Any = array if own is None else own
    return LazyLogs(array, lambda value: {"loss": float(np.asarray(value))}, ["loss"], loss, examples)


def batch(loss: float, own: float | None = None) -> LazyLogs:
    """Return the logs of a batch that the device has finished."""
    array = SlowArray(loss)
    array.finish()
    return lazy(array, own)


def begin(callback: Callback, model: Any = None, **params: Any) -> Any:
    """Prepare a callback for calls, as `fit` does."""
    model = FakeModel() if model is None else model
    callback.set_params({"verbose": 0, "epochs": 1, "steps": None, **params})
    callback.set_model(model)
    callback.on_train_begin({})
    return model


def play(
    callback: Callback, epochs: Sequence[dict[str, Any]], model: Any = None, first: int = 0
) -> list[dict[str, Any]]:
    """Play a run whose epochs end with the given logs. Return the logs as changed by the callback."""
    begin(callback, model)
    logs = [dict(epoch) for epoch in epochs]
    for i, epoch in enumerate(logs, first):
        callback.on_epoch_begin(i, {})
        callback.on_epoch_end(i, epoch)
        if callback.model.stop_training:
            break
    callback.on_train_end(logs[-1] if logs else {})
    return logs


def counting_reads(monkeypatch: Any) -> types.SimpleNamespace:
    """Count the device-to-host transfers of the logs."""
    count, read = types.SimpleNamespace(reads=0), logs.read

    def counted(values: Any) -> Any:
        count.reads += 1
        return read(values)

    monkeypatch.setattr(logs, "read", counted)
    return count
