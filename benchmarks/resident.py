"""Steps with images on the device: the step time of an accelerator without reading and copying images."""

import contextlib
import functools

from benchmarks import interleaved, problems
from benchmarks.child import Child, ChildError
from benchmarks.rows import Row, compared, left_out, timed

NAMES = ("resnet20", "resnet50")
TITLES = {"hand_written": "hand-written step", "pytorch": "PyTorch step"}
ROUNDS = 6


def rows(platform: str, quick: bool) -> list[Row]:
    """Return the milliseconds of a step."""
    if platform == "cpu":
        return [left_out("images on the device", "steps", "a CPU's images always are")]
    found = []
    for name in NAMES[:1] if quick else NAMES:
        found += _rows(platform, name)
    return found


def _rows(platform: str, name: str) -> list[Row]:
    problem = problems.problem(platform, name)
    title, missing = f"{problem.title}, images on the device", []
    with contextlib.ExitStack() as stack:
        children = {}
        for who in ("fit", *TITLES):
            child = stack.enter_context(Child())
            try:
                child.call(
                    f"benchmarks.contestants.{who}:Contestant",
                    platform=platform, name=name, steps=problem.steps, resident=True,
                )  # fmt: skip
            except ChildError as error:
                missing.append(left_out(title, TITLES[who], str(error).strip().splitlines()[-1]))
            else:
                children[who] = child
        by_round = interleaved.turns({who: functools.partial(_turn, c) for who, c in children.items()}, ROUNDS)
        remarks = {who: child.call(".facts").result["remark"] for who, child in children.items()}
    times = {who: [wall / problem.steps for wall in taken.values()] for who, taken in by_round.items()}
    rate = [problem.batch / milliseconds * 1e3 for milliseconds in sorted(times["fit"])]
    found = [timed(title, "fit step", times["fit"], f"{rate[len(rate) // 2]:,.0f} images a second")]
    for who in times.keys() - {"fit"}:
        found.append(compared(title, f"{TITLES[who]} / fit step", times[who], times["fit"], note=remarks[who]))
    return found + missing


def _turn(child: Child) -> float:
    return child.call(".train").wall * 1e3
