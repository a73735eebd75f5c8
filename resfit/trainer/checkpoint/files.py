"""The files of checkpoints: those that resfit wrote, and how they are removed.

Users keep files beside checkpoints and inside them, and a name proves nothing. Only these folders are ever deleted:

- a complete checkpoint: its name is a number, its facts have the right checksum and state this number, and it holds the
  files that the facts list and no other;
- unfinished work, which has the file `facts.unfinished`. A writer creates this file first and renames it to
  `facts.json` last. A deletion first renames the file back, and deletes it last;
- an empty folder `N.unsynced` or `N.deleted`, which a process leaves that dies just before or after those steps.
"""

import json
import pathlib
import re
import shutil
from collections.abc import Collection, Mapping
from typing import Any

FACTS, UNFINISHED, ARRAYS = "facts.json", "facts.unfinished", "arrays"

_NUMBER = "0|[1-9][0-9]{0,17}"
_WORK = re.compile(rf"(?:{_NUMBER})[.](?:unsynced|deleted)(?:-[0-9]+)?")


def number_of(path: pathlib.Path) -> int | None:
    """Return the number that is the name of a path; None for other names."""
    return int(path.name) if re.fullmatch(_NUMBER, path.name) else None


def is_checkpoint(path: pathlib.Path) -> bool:
    """Return True if a path has the name and files of a complete checkpoint, which may still be damaged or a copy."""
    return number_of(path) is not None and ((path / FACTS).is_file() or _is_without_facts(path))


def _is_without_facts(path: pathlib.Path) -> bool:
    return (path / ARRAYS).is_dir() and not (path / UNFINISHED).is_file()


def free_path(directory: pathlib.Path, name: str) -> pathlib.Path:
    """Return an unused path in the directory: the name, or the name with a number appended."""
    path, tries = directory / name, 1
    while path.exists() or path.is_symlink():
        tries += 1
        path = directory / f"{name}-{tries}"
    return path


def contents_of(folder: pathlib.Path) -> list[str]:
    """Return the relative paths of everything in the folder of a checkpoint except its facts."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    return sorted(name for name in names if name not in (FACTS, UNFINISHED))


def unknown_files(folder: pathlib.Path, facts: Mapping[str, Any]) -> list[str]:
    """Return the relative paths of everything in the folder of a checkpoint that resfit did not write.

    Args:
      folder: of the checkpoint.
      facts: of the checkpoint; they list no files in earlier versions and before the write ends.
    """
    known: Collection[str] | None = facts.get("files")
    if known is None:
        return [name for name in contents_of(folder) if not _is_of_arrays(name.partition("/")[0])]
    return [name for name in contents_of(folder) if name not in known]


def _is_of_arrays(name: str) -> bool:
    """Return True for the name of the folder of arrays, and of the temporary folder in which Orbax writes it."""
    return name == ARRAYS or name.startswith(f"{ARRAYS}.orbax-checkpoint-tmp")


def is_unfinished(path: pathlib.Path) -> bool:
    """Return True if a path is a folder of resfit without a checkpoint: partly written, partly deleted, or empty."""
    if not (has_name_of_work(path) or number_of(path) is not None) or path.is_symlink() or not path.is_dir():
        return False
    if (path / UNFINISHED).is_file():
        return not (path / FACTS).exists() and not unknown_files(path, _facts(path / UNFINISHED))
    return has_name_of_work(path) and not any(path.iterdir())


def has_name_of_work(path: pathlib.Path) -> bool:
    """Return True if a path has the name of a folder that is being written or deleted."""
    return _WORK.fullmatch(path.name) is not None


def _facts(path: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError:  # not written yet
        return {}
    return content if isinstance(content, dict) else {}


def remove(folder: pathlib.Path) -> None:
    """Delete an unfinished folder, and the file that marks it last."""
    for path in folder.iterdir():
        if path.name != UNFINISHED:
            shutil.rmtree(path)
    (folder / UNFINISHED).unlink(missing_ok=True)
    folder.rmdir()
