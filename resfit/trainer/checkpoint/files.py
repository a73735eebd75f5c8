"""The files of checkpoints: which of them resfit wrote, and how they are removed.

Users keep things beside checkpoints and inside them. A name proves nothing, so only these folders are ever deleted:

- a complete checkpoint: its name is a number, its facts have the right checksum and state this number, and it holds the
  files that the facts list and no other;
- unfinished work, which has the file `facts.unfinished`. This file is made first when a checkpoint is written, and
  renamed to `facts.json` last. Before a checkpoint is deleted, it gets its first name again, and is deleted last;
- an empty folder `N.unsynced` or `N.deleted`, which a process leaves that dies just before or after that.
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


def number(path: pathlib.Path) -> int | None:
    """Return the number that is the name of a path, or None."""
    return int(path.name) if re.fullmatch(_NUMBER, path.name) else None


def is_checkpoint(path: pathlib.Path) -> bool:
    """Return True if a path has the name and the parts of a complete checkpoint, which may be damaged or a copy."""
    return number(path) is not None and ((path / FACTS).is_file() or _is_without_facts(path))


def _is_without_facts(path: pathlib.Path) -> bool:
    return (path / ARRAYS).is_dir() and not (path / UNFINISHED).is_file()


def free(directory: pathlib.Path, name: str) -> pathlib.Path:
    """Return a path in the directory that nothing has: the name, or the name and a number behind it."""
    path, tries = directory / name, 1
    while path.exists() or path.is_symlink():
        tries += 1
        path = directory / f"{name}-{tries}"
    return path


def listed(folder: pathlib.Path) -> list[str]:
    """Return the paths, inside a checkpoint's folder, of all that it holds but the facts."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    return sorted(name for name in names if name not in (FACTS, UNFINISHED))


def strangers(folder: pathlib.Path, facts: Mapping[str, Any]) -> list[str]:
    """Return the paths, inside a checkpoint's folder, of what resfit did not write.

    Args:
      folder: of the checkpoint.
      facts: what the checkpoint says of itself; in earlier versions and before all is written, it lists no files.
    """
    known: Collection[str] | None = facts.get("files")
    if known is None:
        return [name for name in listed(folder) if not _is_of_arrays(name.partition("/")[0])]
    return [name for name in listed(folder) if name not in known]


def _is_of_arrays(name: str) -> bool:
    """Return True for the name of the folder of arrays, or of that in which Orbax begins it."""
    return name == ARRAYS or name.startswith(f"{ARRAYS}.orbax-checkpoint-tmp")


def is_unfinished(path: pathlib.Path) -> bool:
    """Return True if a path is a folder of resfit without a checkpoint: half written, half deleted, or empty."""
    if not (has_name_of_work(path) or number(path) is not None) or path.is_symlink() or not path.is_dir():
        return False
    if (path / UNFINISHED).is_file():
        return not (path / FACTS).exists() and not strangers(path, _facts(path / UNFINISHED))
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
    """Delete a folder that is unfinished, the file that says so last."""
    for path in folder.iterdir():
        if path.name != UNFINISHED:
            shutil.rmtree(path)
    (folder / UNFINISHED).unlink(missing_ok=True)
    folder.rmdir()
