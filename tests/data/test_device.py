"""`cache="device"`: the examples are sent once, and again if they are others."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flax import nnx

from resfit.data.device import DeviceSource
from resfit.data.sources.arrays import ArraySource
from resfit.errors import DataError
from tests.helpers import PlainNet, assert_same, compiled, fit, images, labels


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[DeviceSource]:
    """Return a list that receives every dataset that is sent to the device."""
    found: list[DeviceSource] = []
    init = DeviceSource.__init__

    def noted(self: DeviceSource, source: Any, device: Any) -> None:
        found.append(self)
        init(self, source, device)

    monkeypatch.setattr(DeviceSource, "__init__", noted)
    return found


def test_the_same_arrays_are_sent_once(sent: list[DeviceSource]) -> None:
    x, y = images(), labels()
    cached, plain = (compiled(PlainNet(rngs=nnx.Rngs(0))) for _ in range(2))
    for _ in range(3):
        fit(cached, x, y, cache="device")
        fit(plain, x, y)
    assert len(sent) == 1
    assert_same(cached.get_weights(), plain.get_weights())


def scaled(x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    x *= 2
    return {"x": x, "y": y}


def one_changed(x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    x[77] += 1
    return {"x": x, "y": y}


def relabeled(x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    y[:] = (y + 1) % 3
    return {"x": x, "y": y}


OTHER: dict[str, Callable[[np.ndarray, np.ndarray], dict[str, Any]]] = {
    "an equal array": lambda x, y: {"x": x.copy(), "y": y},
    "changed in place": scaled,
    "one image changed in place": one_changed,
    "labels changed in place": relabeled,
    "other labels": lambda x, y: {"x": x, "y": y[::-1]},
    "weights": lambda x, y: {"x": x, "y": y, "sample_weight": np.arange(200.0)},
    "class weights": lambda x, y: {"x": x, "y": y, "class_weight": {0: 2.0}},
}


def test_a_fit_that_fails_after_the_release_does_not_break_the_next_one() -> None:
    x, y = images(), labels()
    model = compiled(PlainNet(rngs=nnx.Rngs(0)))
    fit(model, x, y, cache="device")
    with pytest.raises(DataError, match="cache='device' needs examples with random access"):
        fit(model, [(x, y)], cache="device")
    fit(model, x, y, cache="device")


@pytest.mark.parametrize("other", OTHER)
def test_other_data_are_sent_again_and_the_former_are_released(other: str, sent: list[DeviceSource]) -> None:
    x, y = images(200), labels(200)
    cached, plain = (compiled(PlainNet(rngs=nnx.Rngs(0))) for _ in range(2))
    fit(cached, x, y, cache="device", batch_size=50)
    fit(plain, x, y, batch_size=50)
    given = OTHER[other](x, y)
    fit(cached, cache="device", batch_size=50, **given)
    fit(plain, batch_size=50, **given)
    assert len(sent) == 2
    assert sent[0]._arrays is None
    assert_same(cached.get_weights(), plain.get_weights())


def test_the_memory_of_the_caller_is_not_shared() -> None:
    buffer = np.zeros(20 * 4 + 16, np.float32)
    x = buffer[(-buffer.ctypes.data % 64) // 4 :][: 20 * 4].reshape(20, 4)  # aligned, as a put without a copy needs
    source = DeviceSource(ArraySource(x, np.zeros(20, np.int32)))
    x[:] = 1
    assert not np.asarray(source.take(slice(0, 20))[0]).any()
