"""The fixed cost of a call: many calls of `fit`, `evaluate` and `predict` of ten steps, beside loops by hand."""

import jax
import numpy as np

import resfit
from benchmarks import interleaved, problems
from benchmarks.child import ask
from benchmarks.contestants import LEARNING_RATE
from benchmarks.contestants.hand_written import Loop
from benchmarks.rows import Row, compared, timed

STEPS, CALLS, ROUNDS = 10, 50, 10


def rows(platform: str, quick: bool) -> list[Row]:
    """Return the milliseconds of a call, in turns of fifty calls."""
    title = f"{problems.problem(platform, 'tiny').title}, calls of {STEPS} steps"
    taken = ask("benchmarks.short_calls:measure", platform=platform, rounds=2 if quick else ROUNDS)
    wall = {name: [pair[0] for pair in pairs] for name, pairs in taken.items()}
    processor = {name: [pair[1] for pair in pairs] for name, pairs in taken.items()}
    found = []
    for call, base in (
        ("fit", "hand-written epoch"),
        ("evaluate", "bare forwards"),
        ("predict", "bare forwards, read"),
    ):
        by_processor = compared("", "", processor[call], processor[base]).ratio
        found.append(timed(title, base, wall[base], f"mean of {CALLS} calls"))
        what = f"call of {call}, {STEPS} steps / {base}"
        note = f"{by_processor:.3f} by the processor's clock"
        found.append(compared(title, what, wall[call], wall[base], note=note))
    return found


def measure(platform: str, rounds: int, calls: int = CALLS) -> dict[str, list[interleaved.Milliseconds]]:
    """Return the milliseconds of a call of each contestant, by round."""
    problem = problems.problem(platform, "tiny", STEPS)
    (x, y), batch = problems.images(problem), problem.batch
    model = resfit.Model(problems.network(problem))
    model.compile("sgd", learning_rate=LEARNING_RATE, cpu_kernels="xla")
    loop = Loop(problems.network(problem))
    loop.compile(x[:batch], y[:batch])
    contestants = {
        "hand-written epoch": lambda: loop.train(x, y, batch),
        "fit": lambda: model.fit(x, y, batch_size=batch, verbose=0),
        "bare forwards": lambda: jax.block_until_ready(loop.outputs(x, batch)),
        "evaluate": lambda: model.evaluate(x, y, batch_size=batch, verbose=0),
        "bare forwards, read": lambda: np.concatenate([np.asarray(output) for output in loop.outputs(x, batch)]),
        "predict": lambda: model.predict(x, batch_size=batch, verbose=0),
    }

    def often(call):
        def run() -> None:
            for _ in range(calls):
                call()

        return run

    return interleaved.measure({name: often(call) for name, call in contestants.items()}, rounds, calls)
