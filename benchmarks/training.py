"""Steps of training, evaluation and prediction: resfit and the contestants, each in its own process.

The processes take turns of one epoch, so that only one works at a time. `fit` and its reference loop take part in every
round, the others in every other round.
"""

import contextlib
import importlib.util
from typing import Any

from benchmarks import interleaved, problems
from benchmarks.child import Child, Reply
from benchmarks.contestants import FIT, FIT_BARS, HAND_WRITTEN, OTHERS
from benchmarks.rows import Row, compared, counted, divided, left_out, timed

ROUNDS = {"resnet20": 10, "resnet50": 4, "tiny": 20}
QUICK_ROUNDS, QUICK_STEPS = 4, {"resnet20": 3, "tiny": 200}
SAME_BATCHES = "<= 1.03"  # evaluate and predict over a bare jitted forward pass
Times = dict[str, dict[int, float]]


class UnequalContestantsError(Exception):
    """Two contestants do not train the same network."""


def rows(name: str, platform: str, quick: bool) -> list[Row]:
    """Return all rows of one problem."""
    problem = problems.problem(platform, name, QUICK_STEPS.get(name) if quick else None)
    title = problem.title
    if quick and name not in QUICK_STEPS:
        return [left_out(title, "everything", "too long for --quick")]
    there = {key: entry for key, entry in OTHERS.items() if _installed(entry.package)}
    found = [left_out(title, entry.title, f"{entry.package} is not installed") for entry in OTHERS.values()
             if not _installed(entry.package)]  # fmt: skip
    rounds = QUICK_ROUNDS if quick else ROUNDS[name]
    with contextlib.ExitStack() as stack:
        children = {key: stack.enter_context(Child()) for key in (HAND_WRITTEN, FIT, *there)}
        for key, child in children.items():
            child.call(f"benchmarks.contestants.{key}:Contestant", platform=platform, name=name, steps=problem.steps)
        train, processor = _turns(children, "train", rounds, problem.steps, rarely=there)
        facts = {key: child.call(".facts").result for key, child in children.items()}
        _check(facts)
        found += _training(title, name, there, train, processor, facts)
        found += _memory(title, there, facts)
        if platform == "cpu":
            found.append(_memory_not_kept(problem, name, facts))
        for method in ("evaluate", "predict"):
            takers = {key: child for key, child in children.items() if method == "predict" or key != "pytorch"}
            times, _ = _turns(takers, method, max(rounds // 2, 3), problem.steps, rarely=())
            found += _inference(title, method, {key: there[key] for key in there if key in takers}, times)
    return found


def _installed(package: str | None) -> bool:
    return package is None or importlib.util.find_spec(package) is not None


def _turns(children: dict[str, Child], method: str, rounds: int, steps: int, rarely: Any) -> tuple[Times, Times]:
    """Return the milliseconds of a step, in wall and in processor time."""

    def turn(child: Child) -> Any:
        return lambda: child.call(f".{method}")

    replies = interleaved.turns({key: turn(child) for key, child in children.items()}, rounds, rarely)

    def in_milliseconds(clock: str) -> Times:
        def of(reply: Reply) -> float:
            return getattr(reply, clock) / steps * 1e3

        return {key: {round_: of(reply) for round_, reply in taken.items()} for key, taken in replies.items()}

    return in_milliseconds("wall"), in_milliseconds("processor")


def _check(facts: dict[str, Any]) -> None:
    numbers = {key: fact["parameters"] for key, fact in facts.items()}
    if len(set(numbers.values())) != 1:
        raise UnequalContestantsError(f"The contestants have {numbers} parameters. Expected as many in each.")


def _pairs(times: Times, a: str, b: str) -> tuple[list[float], list[float]]:
    common = sorted(times[a].keys() & times[b].keys())
    return [times[a][round_] for round_ in common], [times[b][round_] for round_ in common]


def _training(title: str, name: str, there: Any, wall: Times, processor: Times, facts: Any) -> list[Row]:
    by_processor = compared("", "", *_pairs(processor, FIT, HAND_WRITTEN)).ratio
    found = [
        timed(title, "hand-written step", list(wall[HAND_WRITTEN].values())),
        compared(
            title, "fit step / hand-written step", *_pairs(wall, FIT, HAND_WRITTEN), FIT_BARS[name],
            f"{by_processor:.3f} by the processor's clock",
        ),
    ]  # fmt: skip
    for key, entry in there.items():
        what = f"{entry.title} step / fit step"
        found.append(compared(title, what, *_pairs(wall, key, FIT), entry.bars.get(name, ""), facts[key]["remark"]))
    return found


def _memory(title: str, there: Any, facts: Any) -> list[Row]:
    base = facts[HAND_WRITTEN]
    mib = 2**20
    temporary = facts[FIT]["temporary_memory"]
    found = [
        divided(title, "temporary memory of the training step, fit / hand-written", temporary / mib,
                base["temporary_memory"] / mib, "MiB", "<= 1.01"),
        counted(title, "peak memory of the process, hand-written", base["peak_memory"] / mib, "", "MiB"),
    ]  # fmt: skip
    for key, other in ((FIT, "fit"), *((key, entry.title) for key, entry in there.items())):
        what = f"peak memory of the process, {other} / hand-written"
        found.append(divided(title, what, facts[key]["peak_memory"] / mib, base["peak_memory"] / mib, "MiB"))
    return found


def _memory_not_kept(problem: problems.Problem, name: str, facts: Any) -> Row:
    """Return the peak of a `fit` whose allocator returns freed memory, as that of the hand-written loop does."""
    with Child({"RESFIT_MALLOC": "system"}) as child:
        child.call(f"benchmarks.contestants.{FIT}:Contestant", platform="cpu", name=name, steps=problem.steps)
        for _ in range(3):
            child.call(".train")
        peak = child.call(".facts").result["peak_memory"]
    mib = 2**20
    kept = f"the allocator keeps {(facts[FIT]['peak_memory'] - peak) / mib:,.0f} MiB more in a plain fit"
    what = "peak memory of the process, fit with RESFIT_MALLOC=system / hand-written"
    return divided(problem.title, what, peak / mib, facts[HAND_WRITTEN]["peak_memory"] / mib, "MiB", "<= 1.15", kept)


def _inference(title: str, method: str, there: Any, wall: Times) -> list[Row]:
    found = [
        timed(title, f"bare jitted forward, batches as in {method}", list(wall[HAND_WRITTEN].values())),
        compared(title, f"{method} / bare jitted forward", *_pairs(wall, FIT, HAND_WRITTEN), SAME_BATCHES),
    ]
    for key, entry in there.items():
        found.append(compared(title, f"{entry.title} {method} / {method}", *_pairs(wall, key, FIT)))
    return found
