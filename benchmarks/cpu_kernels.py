"""The effect of the extra `resfit[cpu]`: step, evaluation and prediction compared with XLA alone and with PyTorch.

The groups of the suite are in float32. In bfloat16:

    python -m benchmarks.cpu_kernels resnet20_bfloat16 resnet18_bfloat16 resnet50_bfloat16
"""

import contextlib
import sys
from typing import Any

from benchmarks import interleaved, problems
from benchmarks.child import Child, ChildError
from benchmarks.rows import Row, compared, left_out, timed

XLA, ONEDNN, PYTORCH = "fit", "fit_onednn", "pytorch"
BARS = {"resnet20": ">= 2.2", "resnet18": ">= 1.6", "resnet50": ">= 1.7", "tiny": ">= 0.98"}  # XLA alone / with it
AS_PYTORCH = {"float32": ">= 1.05", "bfloat16": ">= 1.15"}
ROUNDS = {"resnet20": 8, "resnet18": 5, "resnet50": 5, "tiny": 12}  # in bfloat16 as many
LEAST_OF_INFERENCE = 6  # a turn is a third of a training turn, and varies as much


def rows(name: str, platform: str, quick: bool) -> list[Row]:
    """Return the milliseconds of a batch of one problem."""
    if platform != "cpu":
        return [left_out("resfit[cpu]", "steps", f"it is not for a {platform}")]
    network, _, dtype = name.partition("_")
    rounds = 3 if quick else ROUNDS[network]
    problem = problems.problem("cpu", name)
    title, found = f"{problem.title}, resfit[cpu]", []
    with contextlib.ExitStack() as stack:
        children = {}
        for who in (XLA, ONEDNN, PYTORCH):
            child = stack.enter_context(Child())
            try:
                child.call(f"benchmarks.contestants.{who}:Contestant", platform="cpu", name=name, steps=problem.steps)
            except ChildError as error:
                found.append(left_out(title, who, str(error).strip().splitlines()[-1]))
            else:
                children[who] = child
        train = _turns(children, dict.fromkeys(children, "train"), rounds, problem.steps)
        # PyTorch's loop keeps its outputs for both.
        inference = {
            method: _turns(
                children,
                {PYTORCH: "predict"} | dict.fromkeys((XLA, ONEDNN), method),
                rounds if quick else max(rounds, LEAST_OF_INFERENCE),
                problem.steps,
            )
            for method in ("evaluate", "predict")
        }
        facts = {who: child.call(".facts").result for who, child in children.items()}
    if ONEDNN not in children:
        return found
    found += [
        timed(title, "fit step, XLA alone", train[XLA]),
        timed(title, "fit step", train[ONEDNN], f"peak memory {_peak(facts, ONEDNN):,.0f} MiB"),
        compared(title, "XLA alone fit step / fit step", train[XLA], train[ONEDNN], "" if dtype else BARS[name],
                 f"peak memory {_peak(facts, XLA):,.0f} MiB"),
    ]  # fmt: skip
    bar = "" if name == "tiny" else AS_PYTORCH[dtype or "float32"]
    if PYTORCH in children:
        note = f"peak memory {_peak(facts, PYTORCH):,.0f} MiB; {facts[PYTORCH]['remark']}"
        found.append(compared(title, "PyTorch step / fit step", train[PYTORCH], train[ONEDNN], bar, note))
    for method, times in inference.items():
        found.append(compared(title, f"XLA alone {method} / {method}", times[XLA], times[ONEDNN], ">= 0.98"))
        if PYTORCH in children:
            what = f"PyTorch inference_mode / {method}"
            found.append(compared(title, what, times[PYTORCH], times[ONEDNN], bar))
    return found


def _turns(children: dict[str, Child], methods: dict[str, str], rounds: int, steps: int) -> dict[str, list[float]]:
    def turn(child: Child, method: str) -> Any:
        return lambda: child.call(f".{method}").wall / steps * 1e3

    taken = interleaved.turns({who: turn(child, methods[who]) for who, child in children.items()}, rounds)
    return {who: list(by_round.values()) for who, by_round in taken.items()}


def main() -> None:
    """Print the rows of problems."""
    for name in sys.argv[1:]:
        for row in rows(name, "cpu", quick=False):
            print(row, flush=True)


def _peak(facts: dict[str, Any], who: str) -> float:
    return facts[who]["peak_memory"] / 2**20


if __name__ == "__main__":
    main()
