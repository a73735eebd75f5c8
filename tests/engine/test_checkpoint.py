"""The folder of checkpoints: each whole or not there, each read as it was written or passed over."""

import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resfit.engine.checkpoint import Checkpoints, Saved
from resfit.errors import CheckpointError
from tests.helpers import assert_same


def saved(number: int) -> Saved:
    rows = np.random.default_rng(number).normal(size=(20, 30)).astype(np.float32)
    arrays = {"state/0": rows, "state/1": np.int32(number), "sums/0": np.zeros((0, 3), np.float32)}
    facts = {"number": number, "nested": [None, True, 0.1, {"weights": np.arange(3.0) * number}], "text": "é"}
    return Saved({name: np.asarray(array) for name, array in arrays.items()}, facts)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Holds three checkpoints."""
    checkpoints = Checkpoints(tmp_path / "run")
    for number in range(3):
        checkpoints.save(number, saved(number))
    checkpoints.close()
    return tmp_path / "run"


def newest(folder: Path) -> Any:
    checkpoints = Checkpoints(folder)
    try:
        return checkpoints.newest()
    finally:
        checkpoints.close()


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


def test_what_is_saved_comes_back(folder: Path) -> None:
    number, found = newest(folder)
    assert number == 2
    assert_same(found.arrays, saved(2).arrays)
    assert_same(found.facts, saved(2).facts)


def test_an_empty_folder_has_none(tmp_path: Path) -> None:
    assert newest(tmp_path / "new") is None


def test_those_that_are_not_kept_are_deleted(folder: Path) -> None:
    checkpoints = Checkpoints(folder)
    checkpoints.save(3, saved(3), lambda complete: {0, *complete[-2:]})
    checkpoints.close()
    assert checkpoints.steps == [0, 2, 3]


@pytest.mark.parametrize("damage", ["truncated", "a flipped bit", "gone", "of zeros"])
def test_a_checkpoint_of_which_any_file_is_damaged_is_passed_over_or_was_not_touched(
    damage: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Some files say what is said elsewhere too: then everything that comes back is still what was saved."""
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
    assert "damaged and passed over" in caplog.text


def test_what_was_never_finished_is_no_checkpoint(folder: Path) -> None:
    """Orbax writes under another name, and renames."""
    shutil.copytree(folder / "2", folder / "3.orbax-checkpoint-tmp-1")
    assert newest(folder)[0] == 2


def test_where_none_can_be_read_it_is_said(folder: Path) -> None:
    for path in files(folder):
        if path.name != ".lock":
            path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"None of the checkpoints \[0, 1, 2\]"):
        newest(folder)


def test_a_second_process_is_refused_and_a_dead_one_is_not_in_the_way(folder: Path) -> None:
    program = (
        "import sys, pathlib; from resfit.engine.checkpoint import Checkpoints; "
        f"c = Checkpoints(pathlib.Path({str(folder)!r})); print('has it', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "has it\n"
        with pytest.raises(CheckpointError, match="Another run is at work"):
            Checkpoints(folder)
        other.kill()
    assert newest(folder)[0] == 2


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(CheckpointError, match="Expected a folder that can be made"):
        Checkpoints(tmp_path / "file" / "run")


def test_a_folder_that_vanishes_is_an_error_or_made_again(folder: Path) -> None:
    checkpoints = Checkpoints(folder)
    shutil.rmtree(folder)
    folder.write_text("in its place")
    with pytest.raises(CheckpointError, match="could not be written"):
        checkpoints.save(3, saved(3))
    folder.unlink()
    checkpoints.save(4, saved(4))  # it is made again
    checkpoints.close()
    assert newest(folder)[0] == 4
