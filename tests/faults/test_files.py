"""Disk failures: training continues with a warning, and no good checkpoint is lost."""

import collections
import contextlib
import errno
import functools
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx

import resfit
from resfit.errors import CheckpointError
from resfit.trainer.checkpoint.saved_run import SavedRun
from resfit.trainer.checkpoint.store import CheckpointStore
from tests import levels
from tests.faults import files, runs
from tests.helpers import PlainNet, assert_same

VERBS = {"mkdir", "open", "write", "fsync", "rename", "unlink", "rmdir"}
ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES)


# --- a small run, and everything in it that touches a file --------------------------------------------------------


def plain(folder: Path, *extra: Any, **arguments: Any) -> dict[str, Any]:
    """Run six steps; save after each step and each of two epochs, and delete old checkpoints."""
    made = runs.small(PlainNet, optimizer="adamw", learning_rate=0.01)
    return runs.run(made, folder, *extra, every=1, epochs=2, **arguments)


def everything(folder: Path, *extra: Any, **arguments: Any) -> dict[str, Any]:
    """Run with every part that a resume could lose."""
    return runs.run(runs.model(), folder, *extra, every=1, **arguments)


@functools.cache
def whole(fit: Callable[..., dict[str, Any]], folder: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the results of an undisturbed run, and all operations of a run that crashes in its fifth step."""
    seen: list[str] = []
    with files.watched(folder / f"{fit.__name__} crash", seen.append), runs.stopped(ZeroDivisionError):
        fit(folder / f"{fit.__name__} crash", runs.Stops(5, lambda: 1 / 0))
    return fit(folder / f"{fit.__name__} whole"), tuple(seen)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """Return a folder in memory if the system has one: thousands of flushes to a disk take a minute."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def concerning(operations: Sequence[str], *numbers: int) -> list[tuple[str, int]]:
    """Return the operations on these checkpoints, each with its number among those of the same name."""
    count: collections.Counter[str] = collections.Counter()
    found = []
    for operation in operations:
        count[operation] += 1
        if operation.split()[1].partition("/")[0].partition(".")[0] in map(str, numbers):
            found.append((operation, count[operation]))
    return found


class Fails:
    """An operation fails once, or it and all writing after it."""

    def __init__(self, name: str, number: int, code: int, *, forever: bool = False) -> None:
        self._name, self._left, self._code, self._forever = name, number, code, forever
        self.after: list[str] | None = None  # the operations after the failure

    def __call__(self, name: str) -> None:
        self._left -= name == self._name
        if self.after is not None:
            self.after.append(name)
            if not self._forever or name.split()[0] not in ("mkdir", "open", "write", "fsync"):
                return
        elif name != self._name or self._left:
            return
        self.after = self.after or []
        raise OSError(self._code, os.strerror(self._code), name)


def saved(number: int) -> SavedRun:
    return SavedRun({"state/0": np.arange(5.0) + number, "state/1": np.zeros((0, 2))}, {"number": number})


def newest_two(complete: list[int]) -> list[int]:
    return complete[-2:]


def four(folder: Path) -> list[CheckpointError]:
    """Save four checkpoints, keep the newest two, and return the errors."""
    checkpoints, found = CheckpointStore(folder), []
    for number in range(4):
        try:
            checkpoints.save(number, saved(number), newest_two)
            checkpoints.wait()
        except CheckpointError as error:
            found.append(error)
    checkpoints.close()
    return found


def one_of_each(operations: list[tuple[str, int]]) -> list[tuple[str, int]]:
    return list({name.split()[0]: (name, number) for name, number in reversed(operations)}.values())


@pytest.mark.parametrize(
    ("code", "chosen"),
    [
        (errno.EIO, one_of_each),
        pytest.param(errno.ENOSPC, list, marks=pytest.mark.slow),
        *(pytest.param(code, list, marks=pytest.mark.exhaustive) for code in ERRORS[1:]),
    ],
)
def test_checkpoints_survive_the_failure_of_each_file_operation(code: int, chosen: Any, memory: Path) -> None:
    seen: list[str] = []
    with files.watched(memory / "whole", seen.append):
        assert four(memory / "whole") == []
    operations = concerning(seen, 2, 0)
    assert {name.split()[0] for name, _ in operations} == VERBS
    assert complete(memory / "whole") == [2, 3]
    for i, (name, number) in enumerate(chosen(operations)):
        folder, fails = memory / str(i), Fails(name, number, code)
        with files.watched(folder, fails):
            errors = four(folder)
        assert fails.after is not None, f"{name} never came"
        if errors:
            assert len(errors) == 1, name
            assert os.strerror(code) in str(errors[0])
            assert str(folder) in str(errors[0])
        else:  # Orbax removes a file that is missing: harmless
            assert name.split()[0] == "unlink"
            assert "rename 2.unsynced" in fails.after
        checkpoints = CheckpointStore(folder)
        newest = checkpoints.newest()
        assert newest is not None
        assert newest[0] == 3  # despite the failure of the previous one
        assert_same(newest[1], saved(3))
        checkpoints.read(complete(folder)[-2])
        checkpoints.save(4, saved(4), newest_two)
        checkpoints.close()
        assert [path.name for path in folder.iterdir() if "." in path.name] == [".lock"], name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fit", "chosen", "forever"),
    [
        (plain, one_of_each, False),
        pytest.param(plain, one_of_each, True, marks=pytest.mark.exhaustive),
        pytest.param(plain, list, False, marks=pytest.mark.exhaustive),
        pytest.param(everything, one_of_each, False, marks=pytest.mark.exhaustive),
    ],
)
def test_a_run_continues_after_each_failed_file_operation_with_a_warning(
    fit: Any, chosen: Any, forever: bool, shared: Path, memory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected, seen = whole(fit, shared)
    codes = itertools.cycle(ERRORS)
    for i, (name, number) in enumerate(chosen(concerning(seen, 2, 0))):
        code = next(codes)
        folder, fails = memory / str(i), Fails(name, number, code, forever=forever)
        caplog.clear()
        with files.watched(folder, fails), runs.stopped(ZeroDivisionError):
            fit(folder, runs.Stops(5, lambda: 1 / 0))
        assert fails.after is not None, f"{name} never came"
        told = [text for text in caplog.messages if "Training continues" in text]
        if told or name.split()[0] != "unlink":
            assert len(told) == 1 or forever, (name, caplog.messages)
            assert os.strerror(code) in told[0], name
            assert str(folder) in told[0], name
        caplog.clear()
        assert_same(fit(folder, resume=True), expected)
        assert "damaged" not in caplog.text, name


def complete(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


@pytest.mark.parametrize("fit", [plain, pytest.param(everything, marks=pytest.mark.exhaustive)])
def test_resume_after_death_at_any_file_operation_uses_the_newest_complete_checkpoint(
    fit: Any, shared: Path, memory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected, seen = whole(fit, shared)
    folder, copies = memory / "run", list[Path]()

    def leave(name: str) -> None:
        if concerning([name], 0, 2):
            copies.append(memory / f"copy {len(copies)}")
            files.copy(folder, copies[-1])

    with files.watched(folder, leave), runs.stopped(ZeroDivisionError):
        fit(folder, runs.Stops(5, lambda: 1 / 0))
    assert len(copies) == len(concerning(seen, 0, 2))
    found: dict[int, SavedRun] = {}
    for copy in copies:
        checkpoints = CheckpointStore(copy)
        newest = checkpoints.newest()
        checkpoints.close()
        assert [path.name for path in copy.iterdir() if "." in path.name] == [".lock"]
        number, content = (-1, SavedRun({}, {})) if newest is None else newest
        if number not in found:  # equal files resume equally
            assert_same(fit(copy, resume=True), expected)
        assert_same(content.arrays, found.setdefault(number, content).arrays)
    assert found.keys() >= {-1, 1, 3}  # 3 replaces 0
    assert "damaged" not in caplog.text


def test_the_file_layer_detects_a_failure_without_a_warning(shared: Path, tmp_path: Path) -> None:
    """Negative control: the test above fails if an error is swallowed."""
    _, seen = whole(plain, shared)
    name = "rename 3/facts.unfinished"
    assert name in seen
    folder = tmp_path / "run"

    def swallow(operation: str) -> None:
        if operation == name:
            shutil.rmtree(folder / "3" / "arrays")

    with files.watched(folder, swallow), runs.stopped(ZeroDivisionError):
        plain(folder, runs.Stops(4, lambda: 1 / 0))
    assert complete(folder)[-1] == 3
    checkpoints = CheckpointStore(folder)
    newest = checkpoints.newest()
    assert newest is not None
    assert newest[0] == 2
    assert checkpoints.unreadable == {3}
    checkpoints.close()


# --- what happens to files afterwards -----------------------------------------------------------------------------


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.representatives("unlink")
@pytest.mark.parametrize(
    "damage",
    levels.only([flip, Path.unlink], [truncate, flip, empty, Path.unlink]),
    ids=lambda damage: damage.__name__,
)
def test_a_run_ends_the_same_after_damage_to_each_file_of_the_newest_checkpoint(
    damage: Callable[[Path], None], shared: Path, memory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected, _ = whole(plain, shared)
    folder = memory / "run"
    with runs.stopped(ZeroDivisionError):
        plain(folder, runs.Stops(5, lambda: 1 / 0))
    newest = complete(folder)[-1]
    passed_over, resumed = 0, set()
    for path in sorted(path for path in (folder / str(newest)).rglob("*") if path.is_file()):
        copy = memory / path.name
        shutil.copytree(folder, copy)
        damage(copy / path.relative_to(folder))
        checkpoints = CheckpointStore(copy)
        found = checkpoints.newest()
        checkpoints.close()
        assert found is not None
        passed_over += found[0] < newest
        if found[0] not in resumed:  # equal files resume equally
            resumed.add(found[0])
            caplog.clear()
            assert_same(plain(copy, resume=True), expected)
            assert ("damaged and skipped" in caplog.text) == (found[0] < newest)
        shutil.rmtree(copy)
    assert passed_over >= 3


def test_unreadable_checkpoints_are_neither_counted_nor_deleted(tmp_path: Path) -> None:
    """Two good ones are kept. Counting the damaged one would delete the only good one."""
    folder = tmp_path / "run"
    with runs.stopped(ZeroDivisionError):
        plain(folder, runs.Stops(4, lambda: 1 / 0))
    good, damaged = complete(folder)[-2:]
    for path in (folder / str(damaged)).rglob("facts.json"):
        flip(path)
    with runs.stopped(ZeroDivisionError):
        plain(folder, runs.Stops(1, lambda: 1 / 0), resume=True)
    assert complete(folder) == [good, damaged, damaged + 1]


# --- real file systems --------------------------------------------------------------------------------------------


def mount(*arguments: str) -> None:
    try:
        subprocess.run(["mount", *arguments], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this machine does not let us mount a file system: {getattr(error, 'stderr', error)}")


@contextlib.contextmanager
def disk(folder: Path, size: str) -> Iterator[None]:
    """Mount a small file system in a folder."""
    folder.mkdir()
    mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextlib.contextmanager
def sealed(folder: Path) -> Iterator[None]:
    """Make the folder read-only, even for root, who ignores permissions."""
    spare = folder.with_name("spare")
    spare.mkdir()
    mount("--bind", str(folder), str(spare))
    try:
        mount("-o", "remount,bind,ro", str(spare))  # not in place: a write may be in progress there
        mount("--bind", str(spare), str(folder))
        try:
            yield
        finally:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
    finally:
        subprocess.run(["umount", "--lazy", str(spare)], check=True)


def test_training_continues_on_a_full_disk_and_keeps_the_last_good_checkpoint(
    shared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected, _ = whole(plain, shared)
    folder, filler = tmp_path / "disk" / "run", tmp_path / "disk" / "filler"
    with disk(tmp_path / "disk", "2m"):

        def fill() -> None:
            with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while file.write(bytes(1 << 12)):
                    pass

        with runs.stopped(ZeroDivisionError):
            plain(folder, runs.Stops(3, fill), runs.Stops(5, lambda: 1 / 0))
        assert "No space left on device" in caplog.text
        assert str(folder) in caplog.text
        assert "Training continues" in caplog.text
        before = complete(folder)
        assert_same(plain(folder, resume=True), expected)  # still full
        assert complete(folder)[: len(before)] == before
        filler.unlink()
        caplog.clear()
        assert_same(plain(folder, resume=True), expected)
        assert caplog.messages == []
        assert [path.name for path in folder.iterdir() if "." in path.name] == [".lock"]


def test_training_continues_while_the_folder_is_read_only_and_can_resume_later(
    shared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected, _ = whole(plain, shared)
    folder = tmp_path / "run"
    with contextlib.ExitStack() as stack:
        assert_same(plain(folder, runs.Stops(3, lambda: stack.enter_context(sealed(folder)))), expected)
        assert "Read-only file system" in caplog.text
        assert str(folder) in caplog.text
        assert "Training continues" in caplog.text
        with pytest.raises(CheckpointError, match=r"cannot be written to .*Read-only file system"):
            plain(folder, resume=True)
    assert_same(plain(folder, resume=True), expected)


def test_training_continues_when_a_file_replaces_the_folder(
    shared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file has the path of the folder: nothing can be saved, and the run completes."""
    expected, _ = whole(plain, shared)
    folder = tmp_path / "run"

    def replace() -> None:
        folder.rename(tmp_path / "elsewhere")
        folder.write_text("something else")

    assert_same(plain(folder, runs.Stops(3, replace)), expected)
    assert "File exists" in caplog.text
    assert "Training continues" in caplog.text
    folder.unlink()
    (tmp_path / "elsewhere").rename(folder)
    assert_same(plain(folder, resume=True), expected)


def test_a_folder_that_is_created_again_is_locked_again(tmp_path: Path) -> None:
    checkpoints = CheckpointStore(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    checkpoints.save(0, SavedRun({"a": np.zeros(3)}, {}))
    with pytest.raises(CheckpointError, match="Another run writes to"):
        CheckpointStore(tmp_path / "run")
    checkpoints.close()


def test_model_save_is_atomic_when_any_file_operation_fails(tmp_path: Path) -> None:
    model = resfit.Model(PlainNet(rngs=nnx.Rngs(0)))
    path = tmp_path / "folder" / "net.safetensors"
    path.parent.mkdir()
    model.save(path)
    seen: list[str] = []
    before = path.read_bytes()
    with files.watched(path.parent, seen.append):
        model.save(path)
    assert {name.split()[0] for name in seen} >= {"fsync", "rename"}
    model.module.head.bias.set_value(model.module.head.bias[...] + 1)
    for i in range(len(seen)):
        calls = itertools.count()

        def fail(name: str, i: int = i, calls: Iterator[int] = calls) -> None:
            if next(calls) == i:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)

        with files.watched(path.parent, fail), pytest.raises(OSError, match="No space"):
            model.save(path)
        assert path.read_bytes() == before
        assert [found.name for found in path.parent.iterdir()] == [path.name]
    model.save(path)
    assert path.read_bytes() != before
