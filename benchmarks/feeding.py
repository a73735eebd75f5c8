"""Main-thread time of a batch, with a step that computes nothing and a thread that feeds batches.

A thread feeds batches on an accelerator; here it does on every platform. The time is the processor time of the main
thread in a call, divided by its batches, including the fixed cost of a call. A bare jitted call of a batch on the
device, with the same state, is the least that a loop in Python can cost.
"""

import itertools
import time
from typing import Any

import jax
import numpy as np
from flax import nnx

import resfit
from benchmarks import interleaved
from benchmarks.child import ask
from benchmarks.rows import Row, compared, timed
from resfit.trainer.devices.placement import CompiledStep, Placement

CLASSES = 10
BATCHES = {(1024, 32, 32, 3): 20, (256, 224, 224, 3): 8}  # shape of a batch -> batches of a call
DTYPES = ("float32", "uint8")
ROUNDS = 5
BARE = "bare jitted call"


class Constant(nnx.Module):
    """A module whose outputs are its parameters."""

    def __init__(self) -> None:
        self.bias = nnx.Param(np.zeros(CLASSES, np.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.bias[None] + 0 * x[:, :1, 0, 0]


class Still(jax.stages.Compiled):
    """A compiled step that returns the results of its first call."""

    def __init__(self, run: Any, arguments: tuple[Any, ...]) -> None:
        self.out_tree = run.out_tree
        # The step donates its state: it gets a copy.
        self._results = jax.block_until_ready(run(*jax.tree.map(jax.numpy.array, arguments)))

    def __call__(self, *arguments: Any) -> Any:
        return self._results


def rows(platform: str, quick: bool) -> list[Row]:
    """Return the main-thread milliseconds of a batch."""
    found = []
    for shape, dtype in itertools.product(BATCHES, DTYPES):
        batches, rounds = (2, 2) if quick else (BATCHES[shape], ROUNDS)
        taken = ask("benchmarks.feeding:measure", shape=shape, dtype=dtype, batches=batches, rounds=rounds)
        title = "main thread per batch, a step that computes nothing, fed by a thread"
        batch = f"{' x '.join(map(str, shape))}, {dtype}"
        bare = taken.pop(BARE)
        found.append(timed(title, f"{batch}: {BARE}", bare))
        found += [compared(title, f"{batch}: {call} / {BARE}", times, bare) for call, times in taken.items()]
    return found


def measure(shape: list[int], dtype: str, batches: int, rounds: int) -> dict[str, list[float]]:
    """Return main-thread milliseconds per batch, by round. Changes resfit in this process."""
    _still_steps()
    Placement.feeds_ahead = property(lambda self: True)  # type: ignore[method-assign, assignment]
    size, *rest = shape
    x = np.ones((size * batches, *rest), dtype)
    y = np.zeros(len(x), np.int32)
    model = resfit.Model(Constant())
    model.compile("sgd", learning_rate=0.1)
    contestants = {
        BARE: _bare(x[:size], y[:size], batches),
        "fit": lambda: model.fit(x, y, batch_size=size, verbose=0),
        "evaluate": lambda: model.evaluate(x, y, batch_size=size, verbose=0),
        "predict": lambda: model.predict(x, batch_size=size, verbose=0),
    }

    def timed_call(call: Any) -> Any:
        def run() -> float:
            begin = time.thread_time()
            call()
            return (time.thread_time() - begin) / batches * 1e3

        return run

    times = interleaved.turns({name: timed_call(call) for name, call in contestants.items()}, rounds)
    return {name: list(by_round.values()) for name, by_round in times.items()}


def _still_steps() -> None:
    prepare, still = CompiledStep.prepare, {}

    def prepared(self: CompiledStep, arguments: tuple[Any, ...], on_compile: Any) -> Any:
        run = prepare(self, arguments, on_compile)
        if run not in still:
            still[run] = Still(run, arguments)
        return still[run]

    CompiledStep.prepare = prepared  # type: ignore[method-assign]


def _bare(x: np.ndarray, y: np.ndarray, batches: int) -> Any:
    graph, state = nnx.split(Constant())
    leaves, tree = jax.tree.flatten(nnx.as_pure(state))
    forward = jax.jit(lambda leaves, x, y: nnx.merge(graph, jax.tree.unflatten(tree, leaves))(x))
    x, y = jax.device_put((x, y))
    run = forward.lower(leaves, x, y).compile()

    def call() -> None:
        outputs = [run(leaves, x, y) for _ in range(batches)]
        jax.block_until_ready(outputs)

    return call
