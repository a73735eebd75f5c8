"""A run of hooks with fixed values, without training: fast, and equal in every run."""

import collections
from typing import Any, cast

import jax
import numpy as np

from resfit.callbacks import Callback
from resfit.callbacks.logs import LazyLogs
from resfit.data.states import EXPECTED, packed, unpacked
from resfit.model import Model
from resfit.testing.findings import Wrong
from resfit.trainer.loop.callback_list import CallbackList

# Losses that fall, rise and stay, on a device that finishes a step eight steps later.
LOSSES = (5.0, 3.0, 4.0, 2.5, 2.75, 2.625, 2.0, 2.25)
STEPS, _LAG, _BATCH = 24, 8, 4


class _Value:
    """A value on the device, which counts reads before it is ready."""

    def __init__(self, value: float, waits: list[int], step: int) -> None:
        self._value, self._waits, self._step, self.done = value, waits, step, False

    def is_ready(self) -> bool:
        return self.done

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if not self.done:
            self._waits.append(self._step)
        return np.asarray(self._value, dtype)


class SimulatedRun:
    """A run of hooks. After each epoch the model has the weights of that epoch.

    Args:
      model: given to the callback; compiled with a number as learning rate.
      weights: of the model at the beginning.
      callback: whose hooks are called.

    Attributes:
      callback: whose hooks are called.
      waits: the steps in which the callback waited for the device.
      rates: the learning rate after each epoch.
    """

    def __init__(self, model: Model, weights: list[np.ndarray], callback: Callback) -> None:
        self._model, self._weights = model, weights
        self.callback = callback
        self.waits: list[int] = []
        self.rates: dict[int, float] = {}
        params = {"verbose": 0, "epochs": len(LOSSES), "steps": STEPS}
        self._hooks = CallbackList([callback], model, params)
        model.stop_training = False
        self._hooks.fire("on_train_begin", {})

    def epochs(self, first: int, last: int) -> None:
        """Run the epochs from first to last - 1."""
        model, fire = self._model, self._hooks.fire
        for epoch in range(first, last):
            if model.stop_training:
                return
            fire("on_epoch_begin", epoch, {})
            flying: collections.deque[_Value] = collections.deque()
            for step in range(STEPS):
                fire("on_train_batch_begin", step, {})
                value = _Value(LOSSES[epoch], self.waits, step)
                flying.append(value)
                if len(flying) > _LAG:
                    flying.popleft().done = True
                fire("on_train_batch_end", step, _lazy(value))
            for value in flying:
                value.done = True
            model.set_weights([array + np.float32(epoch + 1) for array in self._weights])
            logs = {"loss": LOSSES[epoch], "accuracy": 1 / LOSSES[epoch]}
            fire("on_test_begin", {})
            fire("on_test_end", dict(logs))
            fire("on_epoch_end", epoch, logs | {f"val_{name}": value for name, value in logs.items()})
            self.rates[epoch] = model.learning_rate

    def result(self) -> dict[str, Any]:
        """End the run and return its outcome."""
        model, state = self._model, stored(self.callback.state_dict())
        stopped = model.stop_training
        self._hooks.fire("on_train_end", {"loss": LOSSES[-1]})
        outcome = {"state": state, "stop_training": stopped, "learning_rate": self.rates}
        return outcome | {"weights": model.get_weights()}


def _lazy(value: _Value) -> LazyLogs:
    def finish(read: Any) -> dict[str, float]:
        loss = float(np.asarray(read))
        return {"loss": loss, "accuracy": 1 / loss}

    return LazyLogs(value, finish, ["loss", "accuracy"], cast(jax.Array, value), _BATCH)


def stored(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state as a checkpoint restores it."""
    restored: dict[str, Any] = unpacked(packed(state, _refused))
    return restored


def _refused(place: str, what: str) -> Wrong:
    return Wrong(f"its {place} is {what}, which a checkpoint cannot hold. Expected {EXPECTED}")


def _flat(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda leaf: leaf is None)[0]
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def differences(a: Any, b: Any) -> set[str]:
    """Return the paths at which two trees differ."""
    flat_a, flat_b = _flat(a), _flat(b)
    both = flat_a.keys() & flat_b.keys()
    return (flat_a.keys() ^ flat_b.keys()) | {path for path in both if not _equal(flat_a[path], flat_b[path])}


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, float | np.ndarray) and isinstance(b, float | np.ndarray):
        return np.array_equal(a, b, equal_nan=np.asarray(a).dtype.kind == "f")
    return type(a) is type(b) and bool(a == b)
