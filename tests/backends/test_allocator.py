"""On a CPU the C library keeps memory that steps free, and returns it after the fit."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

from resfit.backends import allocator
from resfit.backends.allocator import keeping_memory

ROOT = Path(__file__).parents[2]


class Libc:
    """A C library that records its calls."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def mallopt(self, option: int, value: int) -> int:
        self.calls.append((option, value))
        return 1

    def malloc_trim(self, pad: int) -> int:
        self.calls.append("trim")
        return 1


@pytest.fixture
def libc(monkeypatch: pytest.MonkeyPatch) -> Iterator[Libc]:
    if allocator._giving_back is not None:  # of a test before: its 30 seconds need not pass
        allocator._giving_back.cancel()
        monkeypatch.setattr(allocator, "_giving_back", None)
    fake = Libc()
    monkeypatch.setattr(allocator, "_glibc", lambda: fake)
    monkeypatch.setattr(allocator, "SECONDS_UNTIL_GIVEN_BACK", 0.05)
    monkeypatch.delenv(allocator.SWITCH, raising=False)
    yield fake
    given_back()


def given_back() -> None:
    """Wait until the memory of the last block is returned."""
    while (timer := allocator._giving_back) is not None:
        timer.join()


def test_memory_is_kept_inside_the_block_and_returned_after_it_or_an_error(libc: Libc) -> None:
    def fails() -> None:
        with keeping_memory("cpu"):
            assert libc.calls == [(-4, 0), (-1, -1), (-2, 64 * 2**20)]
            libc.calls.clear()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert libc.calls == []
    given_back()
    assert libc.calls == [(-4, 65536), (-1, 64 * 2**20), (-2, 0), (-3, 32 * 2**20), "trim"]


def test_the_last_of_several_blocks_returns_the_memory(libc: Libc) -> None:
    def inner() -> None:
        with keeping_memory("cpu"):
            pass

    with keeping_memory("cpu"):
        libc.calls.clear()
        thread = threading.Thread(target=inner)
        thread.start()
        thread.join()
        assert libc.calls == []
    given_back()
    assert libc.calls[-1] == "trim"


def test_the_next_calls_find_the_memory_kept_and_start_no_thread(libc: Libc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "SECONDS_UNTIL_GIVEN_BACK", 0.5)
    with keeping_memory("cpu"):
        pass
    libc.calls.clear()
    first = allocator._giving_back
    for _ in range(20):
        with keeping_memory("cpu"):
            pass
    assert libc.calls == []
    assert allocator._giving_back is first  # the calls share a thread
    given_back()
    assert libc.calls[-1] == "trim"


def test_a_block_keeps_the_memory_beyond_the_time_that_began_before_it(libc: Libc) -> None:
    with keeping_memory("cpu"):
        pass
    timer = allocator._giving_back
    assert timer is not None
    with keeping_memory("cpu"):
        timer.join()
        libc.calls.clear()
        assert allocator._giving_back is None  # no thread waits for a block
    assert libc.calls == []
    given_back()
    assert libc.calls.count("trim") == 1


def test_the_time_begins_with_the_end_of_the_last_block(libc: Libc, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(allocator.time, "monotonic", lambda: now[0])
    with keeping_memory("cpu"):
        pass
    timer = allocator._giving_back
    assert timer is not None
    with keeping_memory("cpu"):
        now[0] = 0.04
    timer.join()
    libc.calls.clear()
    assert allocator._giving_back is not None  # waits for the rest
    now[0] = 0.2
    given_back()
    assert libc.calls[-1] == "trim"


def test_other_platforms_and_the_switch_change_nothing(libc: Libc, monkeypatch: pytest.MonkeyPatch) -> None:
    with keeping_memory("cuda"):
        pass
    monkeypatch.setenv(allocator.SWITCH, "system")
    with keeping_memory("cpu"):
        allocator.share_one_arena()
    assert libc.calls == []


@pytest.mark.parametrize(("platforms", "expected"), [("cpu", [(-8, 1)]), ("cuda", []), ("cuda,cpu", [])])
def test_threads_share_an_arena_only_if_the_cpu_is_the_only_platform(
    libc: Libc, monkeypatch: pytest.MonkeyPatch, platforms: str, expected: list[Any]
) -> None:
    class Config:
        jax_platforms = platforms

    class Jax:
        config = Config

    monkeypatch.setattr(allocator, "jax", Jax)
    allocator.share_one_arena()
    assert libc.calls == expected


STEPS = """
import resource
import numpy as np
from flax import nnx
import resfit

class Net(nnx.Module):
    def __init__(self, rngs):
        self.conv, self.head = nnx.Conv(3, 16, (3, 3), rngs=rngs), nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.conv(x)).mean(axis=(1, 2)))

model = resfit.Model(Net(nnx.Rngs(0)))
model.compile("sgd", learning_rate=0.1, dispatch="jit")
x, y = np.zeros((1536, 32, 32, 3), np.uint8), np.arange(1536) % 10
model.fit(x, y, batch_size=256, verbose=0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
model.fit(x, y, batch_size=256, epochs=3, verbose=0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.optimized
@pytest.mark.slow
@pytest.mark.skipif(allocator._glibc() is None, reason="the C library is not glibc")
def test_the_steps_of_a_fit_cause_fewer_page_faults() -> None:
    cached = {"JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir)}

    def faults(**env: str) -> int:
        ended = subprocess.run(
            [sys.executable, "-c", STEPS],
            env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", **cached, **env},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        return int(ended.stdout)

    assert faults() < faults(RESFIT_MALLOC="system") / 2
