"""The folder of checkpoints: each is complete or absent, and read as it was written or skipped."""

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resfit.errors import CheckpointError
from resfit.trainer.checkpoint.saved_run import SavedRun
from resfit.trainer.checkpoint.store import CheckpointStore
from tests.faults import files as layer
from tests.golden import files as golden
from tests.helpers import assert_same


def saved(number: int) -> SavedRun:
    rows = np.random.default_rng(number).normal(size=(20, 30)).astype(np.float32)
    arrays = {"state/0": rows, "state/1": np.int32(number), "sums/0": np.zeros((0, 3), np.float32)}
    facts = {"number": number, "nested": [None, True, 0.1, {"weights": np.arange(3.0) * number}], "text": "é"}
    return SavedRun({name: np.asarray(array) for name, array in arrays.items()}, facts)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with three checkpoints."""
    checkpoints = CheckpointStore(tmp_path / "run")
    for number in range(3):
        checkpoints.save(number, saved(number))
    checkpoints.close()
    return tmp_path / "run"


def newest(folder: Path) -> Any:
    checkpoints = CheckpointStore(folder)
    try:
        return checkpoints.newest()
    finally:
        checkpoints.close()


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


def test_read_returns_what_was_saved(folder: Path) -> None:
    number, found = newest(folder)
    assert number == 2
    assert_same(found.arrays, saved(2).arrays)
    assert_same(found.facts, saved(2).facts)


def test_an_empty_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert newest(tmp_path / "new") is None


def test_checkpoints_that_are_not_kept_are_deleted(folder: Path) -> None:
    checkpoints = CheckpointStore(folder)
    checkpoints.save(3, saved(3), lambda complete: {0, *complete[-2:]})
    checkpoints.close()
    assert checkpoints.steps == [0, 2, 3]


@pytest.mark.parametrize("damage", ["truncated", "a flipped bit", "gone", "of zeros"])
def test_a_checkpoint_of_which_any_file_is_damaged_is_passed_over_or_was_not_touched(
    damage: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Some files repeat what others hold: then the newest checkpoint is read as it was saved."""
    passed_over = 0
    for path in files(folder / "2"):
        content = path.read_bytes()
        if damage == "truncated":
            path.write_bytes(content[: len(content) // 2])
        elif damage == "a flipped bit":
            middle = len(content) // 2
            path.write_bytes(content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :])
        elif damage == "of zeros":
            path.write_bytes(bytes(len(content)))
        else:
            path.unlink()
        with caplog.at_level(logging.WARNING, "resfit"):
            number, found = newest(folder)
        assert_same(found.arrays, saved(number).arrays)
        assert_same(found.facts, saved(number).facts)
        passed_over += number == 1
        path.write_bytes(content)
    assert passed_over >= 2
    assert "The checkpoint of step 2" in caplog.text
    assert "damaged and skipped" in caplog.text


def test_an_unfinished_folder_is_not_a_checkpoint(folder: Path) -> None:
    """Orbax writes under a temporary name, and renames."""
    shutil.copytree(folder / "2", folder / "3.orbax-checkpoint-tmp-1")
    assert newest(folder)[0] == 2


def test_a_folder_without_a_readable_checkpoint_is_an_error(folder: Path) -> None:
    for path in files(folder):
        if path.name != ".lock":
            path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"None of the checkpoints \[0, 1, 2\]"):
        newest(folder)


@pytest.mark.slow
def test_a_second_process_is_refused_unless_the_first_is_dead(folder: Path) -> None:
    program = (
        "import sys, pathlib; from resfit.trainer.checkpoint.store import CheckpointStore; "
        f"c = CheckpointStore(pathlib.Path({str(folder)!r})); print('has it', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "has it\n"
        with pytest.raises(CheckpointError, match="Another run writes to"):
            CheckpointStore(folder)
        other.kill()
    assert newest(folder)[0] == 2


def test_a_folder_that_cannot_be_created_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(CheckpointError, match="Expected a folder that can be made"):
        CheckpointStore(tmp_path / "file" / "run")


def test_a_deleted_folder_is_created_again_unless_it_was_replaced(folder: Path) -> None:
    checkpoints = CheckpointStore(folder)
    shutil.rmtree(folder)
    folder.write_text("in its place")
    with pytest.raises(CheckpointError, match="could not be written"):
        checkpoints.save(3, saved(3))
    folder.unlink()
    checkpoints.save(4, saved(4))  # the folder is created again
    checkpoints.close()
    assert newest(folder)[0] == 4


# --- files that resfit did not write are never changed ----------------------------------------------------------


def tree(folder: Path) -> dict[str, bytes]:
    """Return the content of a folder: the bytes of its files, the targets of its links."""
    return {
        path.relative_to(folder).as_posix(): (
            os.readlink(path).encode() if path.is_symlink() else path.read_bytes() if path.is_file() else b"a folder"
        )
        for path in sorted(folder.rglob("*"))
    }


def newest_two(complete: list[int]) -> list[int]:
    return complete[-2:]


def newest_one(complete: list[int]) -> list[int]:
    return complete[-1:]


def go_on(folder: Path, *numbers: int, keep: Callable[[list[int]], list[int]] = newest_two) -> None:
    checkpoints = CheckpointStore(folder)
    for number in numbers:
        checkpoints.save(number, saved(number), keep)
    checkpoints.close()


def put(folder: Path, *names: str) -> None:
    """Write files of the user, in folders that may belong to resfit."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")


def copies_of_0(folder: Path, *names: str) -> None:
    for name in names:
        shutil.copytree(folder / "0", folder / name)


def beside(folder: Path) -> None:
    put(folder, "20.results/thesis.txt", "20/thesis.txt", "12.notes", "12", "007/thesis.txt", "notes/thesis.txt")
    put(folder, "1.deleted/arrays/thesis.txt", "100.unsynced/thesis.txt")
    copies_of_0(folder, "0.best", "0-2", "0.deleted", "0.unsynced", "99")
    (folder / "50").mkdir()


def inside(folder: Path) -> None:
    put(folder, "0/thesis.txt", "1/arrays/thesis.txt", "2/arrays/d/thesis.txt")


def changed(folder: Path) -> None:
    (folder / "0").rename(folder.parent / "on a larger disk")
    (folder / "0").symlink_to(folder.parent / "on a larger disk")
    (folder / "1" / "facts.json").write_text('{"mine": 1}')
    (folder / "2" / "empty").mkdir()


@pytest.mark.parametrize("change", [beside, inside, changed], ids=lambda change: change.__name__)
def test_files_of_the_user_in_the_folder_stay_and_the_run_continues(
    change: Callable[[Path], None], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = tree(folder)
    change(folder)
    mine = {name: content for name, content in tree(folder).items() if made.get(name) != content}
    assert len(mine) >= 3
    checkpoints = CheckpointStore(folder)
    first = checkpoints.next_step
    for number in range(first, first + 4):
        checkpoints.save(number, saved(number), newest_two)
    checkpoints.close()
    assert len(set(caplog.messages)) == len(caplog.messages)
    assert {name: content for name, content in tree(folder).items() if name in mine} == mine
    assert newest(folder)[0] == first + 3
    kept = [number for number in (*range(3), *range(first, first + 4)) if (folder / str(number)).is_dir()]
    assert kept == [*(() if change is beside else (0, 1, 2)), first + 2, first + 3]


def test_a_foreign_folder_under_the_next_number_is_not_changed(folder: Path) -> None:
    checkpoints = CheckpointStore(folder)
    (folder / "3").mkdir()
    checkpoints.save(3, saved(3))
    with pytest.raises(CheckpointError, match="'3' exists already"):
        checkpoints.wait()
    checkpoints.save(4, saved(4))
    checkpoints.close()
    assert tree(folder / "3") == {}
    assert newest(folder)[0] == 4


def test_a_copy_under_another_number_is_named_and_skipped(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(folder / "1", folder / "99")
    assert newest(folder)[0] == 2
    assert "it is a copy of checkpoint 1. Rename it to 1 to resume from it" in caplog.text


def test_old_checkpoints_of_an_earlier_version_are_deleted_unless_they_hold_files_of_the_user(
    tmp_path: Path,
) -> None:
    for name in ("run", "with a note", "with a backup"):
        shutil.copytree(golden.CHECKPOINTS, tmp_path / name)
    put(tmp_path / "with a note" / "3", "note.txt")
    put(tmp_path / "with a backup" / "3", "arrays.backup/note.txt")
    for name, left in (("run", [5, 6]), ("with a note", [3, 5, 6]), ("with a backup", [3, 5, 6])):
        go_on(tmp_path / name, 4, 5, 6)
        assert CheckpointStore(tmp_path / name, writes=False).steps == left


def test_remainders_of_an_earlier_version_are_kept_with_one_warning(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "1").rename(folder / "1.deleted")
    go_on(folder, 3, 4)
    assert (folder / "1.deleted").is_dir()
    assert [text for text in caplog.messages if "is kept: it may be yours" in text] == caplog.messages
    assert len(caplog.messages) == 1


def test_an_existing_lock_file_keeps_its_content(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("mine")
    go_on(tmp_path, 0)
    assert (tmp_path / ".lock").read_text() == "mine"


def test_a_run_never_changes_a_replacement_of_its_moved_folder_and_continues_when_it_is_back(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = CheckpointStore(folder)
    folder.rename(folder.with_name("moved"))
    with pytest.raises(CheckpointError, match="moved or replaced"):
        first.save(3, saved(3), newest_two)
    assert not folder.exists()
    second = CheckpointStore(folder)
    second.save(0, saved(7))
    second.close()
    before = tree(folder)
    first.save(4, saved(4), newest_two)  # one message
    first.wait()
    assert (first.steps, first.newest(), first.next_step) == ([], None, 0)
    assert tree(folder) == before
    folder.rename(folder.with_name("second"))
    folder.with_name("moved").rename(folder)
    first.save(5, saved(5), newest_two)
    first.close()
    assert newest(folder)[0] == 5
    assert tree(folder.with_name("second")) == before
    assert caplog.messages == []


def test_a_folder_whose_lock_was_replaced_is_not_written_to(folder: Path) -> None:
    first = CheckpointStore(folder)
    (folder / ".lock").unlink()
    second = CheckpointStore(folder)
    before = tree(folder)
    with pytest.raises(CheckpointError, match="File exists"):
        first.save(3, saved(3))
    first.close()
    assert tree(folder) == before
    second.close()


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the system has no paths that follow a folder")
def test_a_folder_moved_during_a_save_gets_the_checkpoint_and_its_replacement_does_not(
    tmp_path: Path,
) -> None:
    """The folder is moved at each operation of a save in turn."""
    seen: list[str] = []
    with layer.watched(tmp_path / "whole", seen.append):
        go_on(tmp_path / "whole", 0, 1, keep=newest_one)
    operations = [name for name in dict.fromkeys(seen) if name.split()[1].startswith("1")][::4]
    operations += [name for name in dict.fromkeys(seen) if name.split()[1].startswith("0.deleted")][:1]
    for number, name in enumerate(operations):
        folder, moved = tmp_path / str(number), tmp_path / f"{number} moved"

        def move(operation: str, name: str = name, folder: Path = folder, moved: Path = moved) -> None:
            if operation == name and not moved.exists():
                folder.rename(moved)
                folder.mkdir()

        with layer.watched(folder, move):
            go_on(folder, 0, 1, keep=newest_one)
        assert moved.is_dir(), name
        assert tree(folder) == {}, name
        assert CheckpointStore(moved, writes=False).steps[-1] == 1, name
