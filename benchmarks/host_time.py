"""Host time of a step while the device works: as many arrays as the state of ResNet-50, all tiny, no arithmetic.

The time is the processor time of the main thread between the first and the last step of an epoch, without the fixed
cost of an epoch.
"""

import time
from typing import Any

import jax
import numpy as np
from flax import nnx

import resfit
from benchmarks import interleaved
from benchmarks.contestants import LEARNING_RATE
from benchmarks.contestants.hand_written import Loop

LAYERS, CHANNELS, CLASSES, BATCH = 53, 4, 10, 32
Clock = list[float]  # seconds of the main thread: at the end of the first step, and of the last


class Layers(nnx.Module):
    """A module with as many parameters and statistics as ResNet-50, each used in one addition."""

    def __init__(self) -> None:
        square, row = (3, 3, CHANNELS, CHANNELS), (CHANNELS,)
        self.kernels = nnx.List([nnx.Param(np.full(square, 0.01, np.float32)) for _ in range(LAYERS)])
        self.scales = nnx.List([nnx.Param(np.ones(row, np.float32)) for _ in range(LAYERS)])
        self.biases = nnx.List([nnx.Param(np.zeros(row, np.float32)) for _ in range(LAYERS)])
        self.means = nnx.List([nnx.BatchStat(np.zeros(row, np.float32)) for _ in range(LAYERS)])
        self.vars = nnx.List([nnx.BatchStat(np.ones(row, np.float32)) for _ in range(LAYERS)])
        self.head = nnx.Linear(1, CLASSES, rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array) -> jax.Array:
        total = 0.0
        for kernel, scale, bias in zip(self.kernels, self.scales, self.biases, strict=True):
            total += kernel[0, 0, 0, 0] + scale[0] + bias[0]
        for statistic in (*self.means, *self.vars):
            statistic.set_value(0.9 * statistic[...] + 0.1)
        return self.head(x.mean((1, 2))) + 1e-6 * total


class Watch(resfit.callbacks.Callback):
    """A callback that reads the clock at the end of the first and of the last step."""

    def __init__(self, steps: int) -> None:
        self._last = steps - 1
        self.clock: Clock = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch in (0, self._last):
            self.clock.append(time.thread_time())


def host_times(steps: int, rounds: int) -> dict[str, list[float]]:
    """Return main-thread milliseconds per step, of both loops, by round."""
    random = np.random.default_rng(0)
    x = random.standard_normal((steps * BATCH, 8, 8, 1), np.float32)
    y = random.integers(0, CLASSES, len(x)).astype(np.int32)
    model = resfit.Model(Layers())
    model.compile("sgd", learning_rate=LEARNING_RATE)
    loop = Loop(Layers())
    loop.compile(x[:BATCH], y[:BATCH])

    def fit() -> float:
        watch = Watch(steps)
        model.fit(x, y, batch_size=BATCH, verbose=2, callbacks=[watch])
        return _per_step(watch.clock, steps)

    def by_hand() -> float:
        clock, order, losses = [], np.random.default_rng(0).permutation(len(x)), []
        for first in range(0, len(x), BATCH):
            rows = order[first : first + BATCH]
            loop.leaves, loss = loop.step(loop.leaves, x[rows], y[rows])
            losses.append(loss)
            if first in (0, len(x) - BATCH):
                clock.append(time.thread_time())
        jax.block_until_ready(losses)
        return _per_step(clock, steps)

    times = interleaved.turns({"fit": fit, "hand_written": by_hand}, rounds)
    return {name: list(by_round.values()) for name, by_round in times.items()}


def _per_step(clock: Clock, steps: int) -> float:
    return (clock[1] - clock[0]) / (steps - 1) * 1e3
