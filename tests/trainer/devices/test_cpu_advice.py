"""`resfit[cpu]` is suggested once, and only where it would help."""

from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import resfit
from resfit.backends import onednn
from resfit.trainer.devices import cpu_advice

SIZES = {"large": 40, "small": 8}


class Net(nnx.Module):
    def __init__(self) -> None:
        self.stem = nnx.Conv(3, 16, (7, 7), strides=2, rngs=nnx.Rngs(0))
        self.head = nnx.Linear(16, 3, rngs=nnx.Rngs(0))

    def __call__(self, x: Any) -> Any:
        return self.head(self.stem(x).mean((1, 2)))


@pytest.fixture(autouse=True)
def _not_installed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make a process in which oneDNN is not installed and nothing was suggested."""
    monkeypatch.setattr(onednn, "why_not", lambda: onednn.NOT_INSTALLED)
    cpu_advice._suggest.cache_clear()
    yield
    cpu_advice._suggest.cache_clear()


def suggested(caplog: pytest.LogCaptureFixture, size: int, **arguments: Any) -> int:
    """Return the number of suggestions of two fits on images of this size."""
    model = resfit.Model(Net())
    model.compile("sgd", learning_rate=0.1, **arguments)
    for _ in range(2):
        model.fit(np.zeros((20, size, size, 3), np.uint8), np.arange(20) % 3, batch_size=20, verbose=0)
    return caplog.text.count("pip install -e '.[cpu]'")


def test_it_is_suggested_once_for_large_convolutions(caplog: pytest.LogCaptureFixture) -> None:
    assert suggested(caplog, SIZES["large"]) == 1
    assert suggested(caplog, SIZES["large"]) == 1


@pytest.mark.parametrize(
    ("size", "arguments"),
    [
        ("small", {}),
        ("large", {"cpu_kernels": "xla"}),
        pytest.param("large", {"dispatch": "eager"}, marks=pytest.mark.slow),
    ],
    ids=["small images", "ruled out", "eager"],
)
def test_it_is_not_suggested_where_it_cannot_help(
    size: str, arguments: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    assert suggested(caplog, SIZES[size], **arguments) == 0


@pytest.mark.parametrize("reason", [None, "oneDNN is used on Linux on x86-64 only"])
def test_it_is_not_suggested_with_oneDNN_or_on_another_machine(  # noqa: N802
    reason: str | None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onednn, "why_not", lambda: reason)
    assert suggested(caplog, SIZES["large"], cpu_kernels="auto" if reason else "xla") == 0


@pytest.mark.parametrize(
    ("shape", "count"),
    [
        ((40, 40, 3), 20 * 20 * 20 * 7 * 7 * 3 * 16),
        ((39, 39, 3), 20 * 20 * 20 * 7 * 7 * 3 * 16),
        ((40, 40, 1), 0),
        ((9,), 0),
    ],
)
def test_the_first_convolution_is_counted(shape: tuple[int, ...], count: int) -> None:
    assert cpu_advice.largest_first(Net(), jax.ShapeDtypeStruct(shape, np.float32), 20) == count
    assert cpu_advice.largest_first(Net(), {"a": 1}, 20) == 0
