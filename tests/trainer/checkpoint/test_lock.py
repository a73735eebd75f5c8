"""One process holds a folder, and none of its children does."""

import contextlib
import errno
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from resfit.errors import CheckpointError
from resfit.trainer.checkpoint.lock import FolderLock


@pytest.fixture
def held(tmp_path: Path) -> Iterator[FolderLock]:
    folder = FolderLock(tmp_path / "run", Path("run"))
    folder.take()
    yield folder
    folder.release()


def assert_free(folder: Path) -> None:
    other = FolderLock(folder, folder)
    other.take()
    other.release()


def test_a_second_lock_is_refused_until_the_first_is_released(held: FolderLock, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="Another run writes to 'other'"):
        FolderLock(tmp_path / "run", Path("other")).take()
    held.take()  # again: nothing happens
    held.release()
    assert not held.is_held()
    assert_free(tmp_path / "run")


def test_a_folder_is_recognized_if_inode_numbers_last_only_while_a_file_is_open(
    held: FolderLock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with FUSE: a file without an open descriptor has another inode number at each stat."""
    stat, looks = Path.stat, itertools.count(1 << 40)

    def changing(path: Path, *arguments: Any, **more: Any) -> os.stat_result:
        found = stat(path, *arguments, **more)
        numbers = [entry.name for entry in Path("/proc/self/fd").iterdir() if entry.name.isdecimal()]
        for number in map(int, numbers):
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(number), found):
                    return found
        return os.stat_result((found[0], next(looks), *found[2:]))

    monkeypatch.setattr(Path, "stat", changing)
    assert held.is_held()
    held.take()
    with held.opened() as here:
        (here / "a").mkdir()
    assert (tmp_path / "run" / "a").is_dir()


def test_a_lock_that_another_machine_deleted_does_not_count_as_a_moved_folder(
    held: FolderLock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with NFS: fstat of the deleted file fails."""
    lock = os.stat(tmp_path / "run" / ".lock")
    shutil.rmtree(tmp_path / "run")

    def stale(descriptor: int, fstat: Any = os.fstat) -> os.stat_result:
        found: os.stat_result = fstat(descriptor)
        if os.path.samestat(found, lock) and not found.st_nlink:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return found

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", stale)
        assert not held.is_held()
        held.take()
    assert held.is_held()


@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_forked_child_that_outlives_its_parent_does_not_hold_the_folder(held: FolderLock, tmp_path: Path) -> None:
    parent_end, child_end = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        os.write(child_end[1], b"1" if held.is_held() else b"0")
        os.read(parent_end[0], 1)
        os._exit(0)
    try:
        assert os.read(child_end[0], 1) == b"0"
        assert held.is_held()
        with pytest.raises(CheckpointError, match="Another run"):
            assert_free(tmp_path / "run")  # the child ended only its own copy
        held.release()
        assert_free(tmp_path / "run")
    finally:
        os.write(parent_end[1], b"1")
        os.waitpid(child, 0)
        for end in (*parent_end, *child_end):
            os.close(end)


def test_a_subprocess_does_not_hold_the_folder(held: FolderLock, tmp_path: Path) -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False) as child:
        held.release()
        assert_free(tmp_path / "run")
        assert child.poll() is None
        child.communicate()
