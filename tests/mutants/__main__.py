"""Test the tests: change resfit in small ways, and see which changes the tests notice."""

import argparse
import collections
import dataclasses
import json
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.mutants import sample, trials
from tests.mutants.near import GROUPS
from tests.mutants.sample import Mutant

LEVELS = ("test", "test-all")  # of the Makefile; the second has all tests of the first
CACHE = trials.ROOT / ".cache" / "mutants"
SAMPLE = Path(__file__).with_name("sample.jsonl")


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    new = commands.add_parser("sample", help="sample mutants of the working tree; needs cosmic-ray")
    new.add_argument("--seed", type=int, default=0)
    new.add_argument("--mutants", type=Path, default=SAMPLE, help="the file to write")
    new.add_argument("--keep", action="store_true", help="keep the mutants of that file that are not gone")

    run = commands.add_parser("run", help="run tests on each mutant; a run that is stopped resumes there")
    show = commands.add_parser("summary", help="print what a run has found so far")
    for command in (run, show):
        command.add_argument("--commit", default="HEAD", help="the code to change and its tests (default HEAD)")
        command.add_argument("--results", type=Path, help="(default: a file of the commit in .cache/mutants)")
        command.add_argument("--before", type=Path, help="earlier results: tried first, and compared with")
    run.add_argument("--mutants", type=Path, default=SAMPLE, help="the sample (default: the committed one)")
    run.add_argument("--level", choices=LEVELS, default=LEVELS[-1], help="test-all: after test, on its survivors")
    run.add_argument("--folder", type=Path, default=CACHE / "code", help="the clone that is changed")
    run.add_argument("--whole", action="store_true", help="also run the tests that are far from the change")
    run.add_argument("--patience", type=float, default=300, help="seconds after which a test counts as hung")
    run.add_argument("--limit", type=int, help="how many mutants of the sample")

    options = parser.parse_args(words)
    if options.command == "sample":
        mutants = sample.sample(trials.ROOT, options.seed, sample.read(options.mutants) if options.keep else ())
        sample.write(options.mutants, mutants)
        print(f"{len(mutants)} mutants in {options.mutants}")
        return
    results = _Results(options.results or CACHE / f"{trials.full_name(options.commit)}.jsonl")
    before = _Results(options.before) if options.before else None
    if options.command == "run":
        code = trials.Code(options.folder, options.commit)
        mutants = sample.read(options.mutants)[: options.limit]
        trials.prepare()
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # which leaves no tests behind
        for level in LEVELS[: LEVELS.index(options.level) + 1]:
            _run(code, mutants, level, results, before, whole=options.whole, patience=options.patience)
    print(*_summary(results, before), sep="\n")


class _Results:
    """A file of results, one JSON object a line: of a mutant at a level, or of a killing test without any mutant.

    Attributes:
      bad: tests that fail without a mutant: what they say of one does not count.
      good: tests that pass without a mutant.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.bad: set[str] = set()
        self.good: set[str] = set()
        self._entries: dict[tuple[Mutant, str], dict[str, Any]] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            self._take(json.loads(line))

    def add(self, **entry: Any) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        self._take(entry)

    def _take(self, entry: dict[str, Any]) -> None:
        if "mutant" in entry:
            self._entries[Mutant(**entry["mutant"]), entry["level"]] = entry
        else:
            (self.good if entry["passes"] else self.bad).add(entry["test"])

    def at(self, mutant: Mutant, level: str) -> dict[str, Any] | None:
        """Return what is known of a mutant at a level. What kills it at `test`, kills it at `test-all`."""
        found = [self._entries.get((mutant, name)) for name in LEVELS[: LEVELS.index(level) + 1]]
        return next((entry for entry in found if entry and entry["outcome"] != "survived"), found[-1])

    def outcome(self, mutant: Mutant, level: str) -> str | None:
        """Return the outcome; at a level that was not run, what the one below it says."""
        entry = self.at(mutant, level) or self.at(mutant, LEVELS[0])
        return entry["outcome"] if entry else None

    def mutants(self) -> list[Mutant]:
        return list(dict.fromkeys(mutant for mutant, _ in self._entries))

    def killers(self, mutants: Iterable[Mutant]) -> list[str]:
        """Return the tests that killed mutants, the most successful first."""
        found = [entry["test"] for mutant in mutants if (entry := self.at(mutant, LEVELS[-1]))]
        return [test for test, _ in collections.Counter(filter(None, found)).most_common()]


def _run(
    code: trials.Code,
    mutants: list[Mutant],
    level: str,
    results: _Results,
    before: _Results | None,
    *,
    whole: bool,
    patience: float,
) -> None:
    """Run row after row of tests, each on all mutants that are left."""
    rows = {mutant: trials.rows(code, mutant, whole=whole) for mutant in mutants}

    def trial(mutant: Mutant, tests: list[str], *, only: bool) -> trials.Outcome:
        while True:
            outcome = trials.trial(code, mutant, level, tests, bad=results.bad, patience=patience, only=only)
            # A test that fails without a mutant kills none: what it "killed" is tried again without it.
            test = outcome.test
            if test and test not in results.good | results.bad:
                passes = not trials.failing(code, [test], level, patience)
                results.add(test=test, passes=passes, level=level, commit=code.commit)
            if test not in results.bad:
                return outcome

    def report(mutant: Mutant, outcome: trials.Outcome, done: int) -> None:
        told = dataclasses.asdict(outcome) | {"rows": done, "of": len(rows[mutant])}
        results.add(mutant=dataclasses.asdict(mutant), level=level, commit=code.commit, **told)
        where = f"{mutant.file} {mutant.function}"
        print(f"{level} {done} {outcome.outcome:8} {outcome.seconds:6.1f} s  {where}  {outcome.test}", flush=True)

    if before:  # what killed a mutant once is likely to do it again
        for mutant in mutants:
            killers = before.killers([mutant])
            if killers and not results.at(mutant, level):
                report(mutant, trial(mutant, killers, only=True), 0)
    for done in range(max(map(len, rows.values()))):
        for mutant in mutants:
            if done < len(rows[mutant]) and _rows_run(results.at(mutant, level)) == done:
                killers = results.killers(one for one in results.mutants() if one.group == mutant.group)[:3]
                outcome = trial(mutant, killers, only=True) if not done else trials.Outcome("survived")
                if outcome.outcome == "survived":
                    outcome = trial(mutant, rows[mutant][done], only=False)
                report(mutant, outcome, done + 1)


def _rows_run(entry: dict[str, Any] | None) -> float:
    """Return how many rows of tests a mutant has survived; infinity for one that has not, or is gone."""
    if entry is None:
        return 0
    return float(entry["rows"]) if entry["outcome"] == "survived" else float("inf")


def _summary(results: _Results, before: _Results | None) -> Iterable[str]:
    mutants = results.mutants()
    for mutant in mutants:
        entry = results.at(mutant, LEVELS[-1]) or results.at(mutant, LEVELS[0])
        if entry and entry["outcome"] == "survived":
            rows = f"{entry['rows']} of {entry['of']} rows run"
            yield f"make {entry['level']} does not notice ({rows}):\n{_diff(mutant)}\n"
    killed = [mutant for mutant in mutants if before and before.outcome(mutant, LEVELS[-1]) in ("killed", "timeout")]
    killed = [mutant for mutant in killed if results.outcome(mutant, LEVELS[0]) not in ("gone", "equivalent")]
    lost = [mutant for mutant in killed if results.outcome(mutant, LEVELS[0]) == "survived"]
    for mutant in lost:
        yield f"make {LEVELS[0]} no longer notices ({before.killers([mutant])[0]} did):\n{_diff(mutant)}\n"
    yield f"{'':28}mutants  gone or equivalent  killed by: {'  '.join(f'make {level}' for level in LEVELS)}"
    for name in [*(group.name for group in GROUPS), "all"]:
        found = [mutant for mutant in mutants if name in (mutant.group, "all")]
        gone = sum(results.outcome(mutant, LEVELS[0]) in ("gone", "equivalent") for mutant in found)
        dead = [sum(results.outcome(mutant, level) in ("killed", "timeout") for mutant in found) for level in LEVELS]
        yield f"{name:28}{len(found):7}{gone:20}{dead[0]:23}{dead[1]:15}"
    if before:
        yield f"Of {len(killed)} mutants that were killed before, make {LEVELS[0]} kills {len(killed) - len(lost)}."


def _diff(mutant: Mutant) -> str:
    lines = [*(f"- {line}" for line in mutant.old.splitlines()), *(f"+ {line}" for line in mutant.new.splitlines())]
    return "\n".join([f"{mutant.file} {mutant.function}", *lines])


if __name__ == "__main__":
    main(sys.argv[1:])
