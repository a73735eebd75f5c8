"""Run the tests on mutants, each in a fork of one process that has imported everything but resfit.

A fork starts in the time that importing resfit takes. That is safe as long as no JAX backend has started in the
parent.
"""

import contextlib
import dataclasses
import gc
import importlib
import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.mutants.near import GROUPS
from tests.mutants.sample import Mutant

ROOT = Path(__file__).parents[2]


class Code:
    """A clone of the repository, at one commit, whose files are mutated.

    Attributes:
      folder: of the clone. Its `.cache/jax` stays, so that programs are compiled once.
      commit: the commit.
    """

    def __init__(self, folder: Path, commit: str) -> None:
        self.folder = folder.resolve()
        self.commit = full_name(commit)
        if not self.folder.exists():
            _git(ROOT, "clone", "--quiet", "--shared", "--no-checkout", ROOT, self.folder)
        _git(self.folder, "checkout", "--quiet", "--force", "--detach", self.commit)
        self._newest = 0

    def write(self, file: str, text: str) -> None:
        """Write a file with a time of its own: Python tells by time and size whether its bytecode is out of date."""
        self._newest = max(int(time.time()), self._newest + 1)
        (self.folder / file).write_text(text)
        os.utime(self.folder / file, (self._newest, self._newest))

    def arguments(self, level: str) -> list[str]:
        """Return the options that the Makefile of the commit gives pytest in `make level`."""
        found = re.search(
            rf"^{level}:.*\n\t\S+ -m pytest (.*) \$\(ARGS\)$", (self.folder / "Makefile").read_text(), re.M
        )
        return shlex.split(found[1])

    def tests(self, patterns: Iterable[str]) -> list[str]:
        """Return the test files of patterns below tests/, in the order of the patterns."""
        paths = [path for pattern in patterns for path in sorted((self.folder / "tests").glob(pattern))]
        return [str(path.relative_to(self.folder)) for path in dict.fromkeys(paths)]


@dataclasses.dataclass
class Outcome:
    """The result of a run of tests on a mutant.

    Attributes:
      outcome: "killed", "timeout" (killed too: a test hung), "survived", "gone" (its lines are no more), or
        "equivalent" (its reason stands in the sample).
      test: the test that failed or hung, or the file that could not be imported.
      why: the first words of the failure.
      seconds: processor time.
    """

    outcome: str
    test: str = ""
    why: str = ""
    seconds: float = 0.0


def rows(code: Code, mutant: Mutant, *, whole: bool) -> list[list[str]]:
    """Return the test files to run on a mutant, row by row; `whole`: and all others at the end."""
    group = next(group for group in GROUPS if group.name == mutant.group)
    found = [code.tests(row) for row in group.rows]
    if ">>> " in (code.folder / mutant.file).read_text():
        found[0].insert(0, mutant.file)
    if whole:
        found.append(["tests", "resfit", *(f"--ignore={test}" for row in found for test in row)])
    return found


def trial(
    code: Code, mutant: Mutant, level: str, tests: Sequence[str], *, bad: Collection[str], patience: float, only: bool
) -> Outcome:
    """Run tests on a mutant, up to the first that fails.

    Args:
      code: the clone.
      mutant: the change.
      level: "test" or "test-all".
      tests: files, or single tests where `only`; some of them may be gone.
      bad: tests that fail without any mutant.
      patience: seconds after which a test counts as hung.
      only: whether to run no other test of the files.
    """
    source = (code.folder / mutant.file).read_text()
    mutated = mutant.applied(source)
    if mutated is None:
        return Outcome("gone")
    if mutant.equivalent:
        return Outcome("equivalent")
    files = [test for test in _files(tests) if test not in bad and ("=" in test or (code.folder / test).exists())]
    if not files:
        return Outcome("survived")
    code.write(mutant.file, mutated)
    try:
        arguments = [*files, "-x", *code.arguments(level)]
        return run(code, arguments, only=tests if only else (), bad=bad, patience=patience)
    finally:
        code.write(mutant.file, source)


def failing(code: Code, tests: Sequence[str], level: str, patience: float) -> list[str]:
    """Return those of some tests that fail without a mutant."""
    events: list[dict[str, str]] = []
    run(code, [*_files(tests), *code.arguments(level)], only=tests, bad=(), patience=patience, events=events)
    return sorted({event["failed"] for event in events if "failed" in event})


def _files(tests: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(test.partition("::")[0] for test in tests))


def run(
    code: Code,
    arguments: Sequence[str],
    *,
    only: Sequence[str],
    bad: Collection[str],
    patience: float,
    events: list[dict[str, str]] | None = None,
) -> Outcome:
    """Run pytest in a fork, in the clone.

    Args:
      code: the clone.
      arguments: of pytest.
      only: the tests to run, in this order; empty for all.
      bad: tests to leave out.
      patience: seconds after which a test counts as hung.
      events: what happened, added to this list.
    """
    scratch = code.folder / ".cache" / "mutants"
    scratch.mkdir(parents=True, exist_ok=True)
    log, told = scratch / "log", scratch / "events"
    told.write_text("")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    child = os.fork()
    if child == 0:
        try:
            _pytest(code.folder, [*arguments, f"--basetemp={scratch / 'tmp'}"], _Recorder(told, only, bad), log)
        except BaseException:  # noqa: BLE001 - or the fork would go on as its parent
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(1)
    hung = False
    try:
        while os.waitpid(child, os.WNOHANG) == (0, 0) and not hung:
            hung = time.time() - told.stat().st_mtime > patience
            time.sleep(0.05)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # also what the tests started and did not end
    if hung:
        os.waitpid(child, 0)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1)
    happened = [json.loads(line) for line in told.read_text().splitlines()]
    if events is not None:
        events += happened
    last = next((event["test"] for event in reversed(happened) if "test" in event), arguments[0])
    if hung:
        return Outcome("timeout", last, seconds=seconds)
    for event in happened:
        if "failed" in event:
            return Outcome("killed", event["failed"], event["why"], seconds)
    end = next((event["exit"] for event in happened if "exit" in event), None)
    if end in ("0", "5"):  # all passed, or there was none
        return Outcome("survived", seconds=seconds)
    if end is None and any("test" in event for event in happened):
        return Outcome("killed", last, "the process died", seconds)
    raise RuntimeError(f"pytest ended with {end} and no failing test:\n{log.read_text()[-3000:]}")


def _pytest(folder: Path, arguments: list[str], recorder: "_Recorder", log: Path) -> None:
    os.setsid()
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream, target in ((0, os.open(os.devnull, os.O_RDONLY)), (1, out), (2, out)):
        os.dup2(target, stream)
    os.chdir(folder)
    os.environ["PYTHONPATH"] = str(folder)
    sys.path[:] = [str(folder), *(path for path in sys.path if path and Path(path).resolve() != ROOT)]
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]
    import pytest

    with contextlib.suppress(BaseException):  # before pytest imports one of its modules by its file, for doctests
        importlib.import_module("resfit")
    imported_before = "ignore::pytest.PytestAssertRewriteWarning"
    options = ["-n", "0", "-q", "-p", "no:cacheprovider", "-W", imported_before]
    code = pytest.main([*arguments, *options], plugins=[recorder])
    recorder.tell(exit=str(int(code)))
    sys.stdout.flush()
    os._exit(0)


class _Recorder:
    """Tells the parent of each test, and which failed. A plugin of pytest."""

    def __init__(self, file: Path, only: Sequence[str], bad: Collection[str]) -> None:
        self._file, self._only, self._bad = file, only, frozenset(bad)

    def tell(self, **event: str) -> None:
        with self._file.open("a") as file:
            file.write(json.dumps(event) + "\n")

    def pytest_collection(self) -> None:
        from hypothesis import Phase, settings

        # A failing example is enough; to make it small takes minutes.
        phases = (Phase.explicit, Phase.generate)
        settings.register_profile("mutants", parent=settings.default, phases=phases)
        settings.load_profile("mutants")

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        kept = [item for item in items if item.nodeid not in self._bad]
        if self._only:
            found = {item.nodeid: [item] for item in kept}
            for item in kept:  # the other rows of its table stand for a row that is gone
                found.setdefault(item.nodeid.partition("[")[0], []).append(item)
            kept = [item for test in self._only for item in found.get(test) or found.get(test.partition("[")[0], [])]
        items[:] = dict.fromkeys(kept)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.tell(test=nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self._report(report)

    def pytest_collectreport(self, report: Any) -> None:
        self._report(report)

    def _report(self, report: Any) -> None:
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            why = (crash.message if crash else str(report.longrepr)).strip()
            self.tell(failed=report.nodeid, why=why.splitlines()[-1 if not crash else 0][:200] if why else "")


def prepare() -> None:
    """Import what tests import and no mutant changes, once for all forks."""
    os.environ.update(
        JAX_PLATFORMS="cpu",
        JAX_DISABLE_MOST_OPTIMIZATIONS="1",
        CI="true",  # Hypothesis tries the same examples in each run
        OPENBLAS_NUM_THREADS="1",
    )
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    for name in _THIRD_PARTY.split():
        importlib.import_module(name)
    gc.freeze()  # what is imported is never looked through in a fork


_THIRD_PARTY = (
    "pytest hypothesis.strategies jax flax.nnx optax orbax.checkpoint clu.metrics matplotlib.pyplot rich.progress"
)


def full_name(commit: str) -> str:
    """Return the hash of a commit."""
    return _git(ROOT, "rev-parse", f"{commit}^{{commit}}")


def _git(folder: Path, *arguments: Any) -> str:
    return subprocess.run(
        ["git", "-C", str(folder), *map(str, arguments)], check=True, capture_output=True, text=True
    ).stdout.strip()
