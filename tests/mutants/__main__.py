"""Test the tests: `make mutants`, or `python -m tests.mutants sample|run|summary`."""

import argparse
import collections
import dataclasses
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.mutants import sample, trials
from tests.mutants.near import GROUPS
from tests.mutants.sample import Mutant

LEVELS = ("test", "test-all")
CACHE = trials.ROOT / ".cache" / "mutants"
COMMITTED = Path(__file__).with_name("sample.jsonl")


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    new = commands.add_parser("sample", help="sample mutants of the working tree")
    new.add_argument("--seed", type=int, default=0)
    new.add_argument("--mutants", type=Path, default=COMMITTED)

    run = commands.add_parser("run", help="run the tests of a level on them; goes on where it was stopped")
    run.add_argument("--mutants", type=Path, default=COMMITTED)
    run.add_argument("--level", choices=LEVELS, default="test", help="test-all: on those that survive test")
    run.add_argument("--commit", default="HEAD", help="the code to change and to test (default HEAD)")
    run.add_argument("--results", type=Path, default=CACHE / "results.jsonl")
    run.add_argument("--killers", type=Path, help="results of an earlier run, whose killing tests are tried first")
    run.add_argument("--folder", type=Path, default=CACHE / "code", help="of the clone that is changed")
    run.add_argument("--whole", action="store_true", help="on survivors, also run the tests far from the change")
    run.add_argument("--patience", type=float, default=300, help="seconds after which a test hangs")
    run.add_argument("--limit", type=int, help="how many mutants at most")

    summary = commands.add_parser("summary", help="print what a run found")
    summary.add_argument("--results", type=Path, default=CACHE / "results.jsonl")
    summary.add_argument("--before", type=Path, help="results of an earlier run to compare with")

    options = parser.parse_args(words)
    if options.command == "sample":
        mutants = sample.sample(trials.ROOT, options.seed)
        sample.write(options.mutants, mutants)
        print(f"{len(mutants)} mutants in {options.mutants}")
    elif options.command == "run":
        _run(options)
    else:
        _summary(_Results(options.results), _Results(options.before) if options.before else None)


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
        """Return what decided about a mutant at a level; what kills it at `test`, kills it at `test-all`."""
        found = [self._entries.get((mutant, name)) for name in LEVELS[: LEVELS.index(level) + 1]]
        valid = [entry for entry in found if entry and entry["test"] not in self.bad]
        decided = [entry for entry in valid if entry["outcome"] != "survived"]
        return decided[0] if decided else next((entry for entry in valid if entry["level"] == level), None)

    def mutants(self) -> list[Mutant]:
        return list(dict.fromkeys(mutant for mutant, _ in self._entries))

    def killers(self, mutants: Iterable[Mutant]) -> list[str]:
        """Return the tests that killed mutants, the most successful first."""
        found = [
            entry["test"] for mutant in mutants if (entry := self.at(mutant, LEVELS[-1]) or self.at(mutant, "test"))
        ]
        return [test for test, _ in collections.Counter(filter(None, found)).most_common()]


def _run(options: argparse.Namespace) -> None:
    results = _Results(options.results)
    earlier = _Results(options.killers) if options.killers else None
    mutants, level = sample.read(options.mutants)[: options.limit], options.level
    code = trials.Code(options.folder, options.commit)
    trials.prepare()
    while todo := [mutant for mutant in mutants if results.at(mutant, level) is None]:
        for i, mutant in enumerate(todo):
            alike = [one for one in results.mutants() if one.group == mutant.group]
            killers = [*(earlier.killers([mutant]) if earlier else ()), *results.killers(alike)[:4]]
            outcome = trials.trial(
                code,
                mutant,
                level,
                killers=[test for test in dict.fromkeys(killers) if "::" in test],
                bad=results.bad,
                whole=options.whole,
                patience=options.patience,
            )
            told = dataclasses.asdict(outcome)
            results.add(mutant=dataclasses.asdict(mutant), level=level, commit=code.commit, **told)
            where = f"{mutant.file} {mutant.function}"
            print(
                f"{i + 1}/{len(todo)} {outcome.outcome:8} {outcome.seconds:6.1f} s  {where}  {outcome.test}", flush=True
            )
        # A test that fails without a mutant kills none: those that it "killed" are tried again without it.
        tests = [test for test in results.killers(mutants) if test not in results.good]
        bad = trials.failing(code, tests, level, options.patience) if tests else []
        for test in tests:
            results.add(test=test, passes=test not in bad, level=level, commit=code.commit)


def _summary(results: _Results, before: _Results | None) -> None:
    print(f"{'':30}mutants  gone  killed by test  by test-all")
    rows = [(group.name, [m for m in results.mutants() if m.group == group.name]) for group in GROUPS]
    for name, mutants in [*rows, ("all", results.mutants())]:
        gone = sum(_outcome(results, mutant, "test") == "gone" for mutant in mutants)
        killed = [sum(_killed(results, mutant, level) for mutant in mutants) for level in LEVELS]
        print(f"{name:30}{len(mutants):7}{gone:6}{killed[0]:16}{killed[1]:13}")
    print("\nsurvivors:")
    for mutant in results.mutants():
        if not _killed(results, mutant, LEVELS[-1]) and _outcome(results, mutant, "test") != "gone":
            level = LEVELS[-1] if results.at(mutant, LEVELS[-1]) else "test"
            print(f"\n{mutant.file} {mutant.function} (of {level})\n- {mutant.old}\n+ {mutant.new}")
    if before:
        comparable = [m for m in results.mutants() if before.at(m, "test") and _outcome(results, m, "test") != "gone"]
        killed = [mutant for mutant in comparable if _killed(before, mutant, LEVELS[-1])]
        kept = [mutant for mutant in killed if _killed(results, mutant, "test")]
        print(
            f"\nOf {len(killed)} mutants that the whole suite killed before, make test kills {len(kept)}. The others:"
        )
        for mutant in killed:
            if mutant not in kept:
                test = (before.at(mutant, LEVELS[-1]) or before.at(mutant, "test") or {})["test"]
                print(f"\n{mutant.file} {mutant.function}, before by {test}\n- {mutant.old}\n+ {mutant.new}")


def _outcome(results: _Results, mutant: Mutant, level: str) -> str | None:
    entry = results.at(mutant, level)
    return entry["outcome"] if entry else None


def _killed(results: _Results, mutant: Mutant, level: str) -> bool:
    """Return whether a level kills a mutant; a level that was not run kills what the one below it does."""
    levels = LEVELS[: LEVELS.index(level) + 1]
    return any(_outcome(results, mutant, name) in ("killed", "timeout") for name in levels)


if __name__ == "__main__":
    main(sys.argv[1:])
