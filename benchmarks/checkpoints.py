"""The cost of saving a run: the time in which the loop waits for a save, and the processor time of its thread.

    python -m benchmarks.checkpoints --net resnet20 --rounds 9

Steps and saves are measured in turns. Both costs are added and compared with a hundred steps, because on a CPU a
writing thread takes time from the training threads.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks import interleaved, problems
from benchmarks.child import ask
from benchmarks.rows import Row, counted, timed

STEPS = {"tiny": 4, "resnet20": 4, "resnet50": 2}  # of a turn
INTERVAL = 100  # steps from one save to the next
BAR = "<= 1"  # percent


def rows(platform: str, quick: bool) -> list[Row]:
    """Return the cost of a save for each network, and of saving every hundred steps."""
    found = []
    for name in ("tiny",) if quick else ("resnet20", "resnet50"):
        title = problems.problem(platform, name).title
        taken = ask("benchmarks.checkpoints:measure", platform=platform, name=name, rounds=3 if quick else 6)
        steps = INTERVAL * statistics.median(taken["step"])
        share = 100 * (statistics.median(taken["waits"]) + statistics.median(taken["background"])) / steps
        size = f"{taken['megabytes']:.0f} MB in {taken['arrays']} arrays"
        found.append(timed(title, "checkpoint: the loop waits", taken["waits"], note=size))
        found.append(timed(title, "checkpoint: processor in the background", taken["background"]))
        note = f"both, beside {INTERVAL} steps of {statistics.median(taken['step']):,.0f} ms"
        found.append(counted(title, f"saving every {INTERVAL} steps costs", share, BAR, "%", note))
    return found


def measure(platform: str, name: str, rounds: int) -> dict[str, Any]:
    """Return milliseconds of a step, of the loop in a save, and of the processor until the save is written."""
    import resfit
    from resfit.data import Geometry, as_batches
    from resfit.data.epochs import Epochs
    from resfit.trainer.checkpoint.manager import CheckpointManager
    from resfit.trainer.checkpoint.saved_run import Progress
    from resfit.trainer.checkpoint.store import CheckpointStore

    problem = problems.problem(platform, name, STEPS[name])
    x, y = problems.images(problem)
    model = resfit.Model(problems.network(problem))
    model.compile("sgd", learning_rate=0.1)
    context: Any = model.control.compiled.context
    data = Epochs(as_batches(x, y, geometry=Geometry(problem.batch)), None)
    callbacks: Any = SimpleNamespace(state_dicts=dict)
    clocks: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = CheckpointStore(Path(folder))
        keeper = CheckpointManager(checkpoints, 2, {}, context.state, context.placement, context.processes)

        def fit() -> float:
            start = time.perf_counter()
            model.fit(x, y, batch_size=problem.batch, verbose=0)
            return (time.perf_counter() - start) / problem.steps * 1e3

        def save() -> float:
            wall, processor = time.perf_counter(), time.process_time()
            keeper.save(Progress(0, 1), (), data, callbacks)
            waited, on_the_way = time.perf_counter() - wall, time.process_time()
            checkpoints.wait()
            clocks.append((waited * 1e3, (time.process_time() - on_the_way) * 1e3))
            return on_the_way - processor

        times = interleaved.turns({"step": fit, "save": save}, rounds)
        keeper.close()
    leaves = context.state.leaves
    return {
        "step": list(times["step"].values()),
        "waits": [waited for waited, _ in clocks[1:]],  # the first turn does not count
        "background": [background for _, background in clocks[1:]],
        "arrays": len(leaves),
        "megabytes": sum(leaf.nbytes for leaf in leaves) / 1e6,
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=list(STEPS), action="append", help="one of these only; may be repeated")
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds, of steps and saves in turns")
    arguments = parser.parse_args()
    for name in arguments.net or STEPS:
        taken = measure("cpu", name, arguments.rounds)
        print(f"{name}: {taken['megabytes']:.0f} MB in {taken['arrays']} arrays")
        for what in ("step", "waits", "background"):
            times = taken[what]
            print(f"  {what:10} {statistics.median(times):8.1f} ms ({min(times):.1f} to {max(times):.1f})")


if __name__ == "__main__":
    main()
