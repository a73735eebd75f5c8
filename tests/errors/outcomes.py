"""Run a row of the table and return its outcome."""

import functools
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from flax import nnx

from tests.errors.mistakes import BEFORE, WARNING, Mistake

# Parts that differ in every run.
_VARYING = [
    (re.compile(r"0x[0-9a-f]{6,}"), "0x..."),
    (re.compile(r"'labels': \d+"), "'labels': ..."),
]


class Outcome(NamedTuple):
    """The outcome of a row.

    Attributes:
      error: the class of the exception; `WARNING` if there were only warnings in the log; None if there was no problem.
      message: the message for the user, without the parts that differ in every run.
      notes: the note that resfit added to a message of Python or JAX.
      names: the names that the code could use, and those that it defined.
    """

    error: type[BaseException] | str | None
    message: str
    notes: str
    names: dict[str, Any]


@functools.cache
def _first_names() -> dict[str, Any]:
    made: dict[str, Any] = {"__name__": "mistake"}
    exec(compile(BEFORE, "before", "exec"), made)
    return made


def names(model: Any = None) -> dict[str, Any]:
    """Return the names that `BEFORE` defines for every row.

    The arrays and the model are new ones. The network is a copy, because a ResNet takes long to initialize.

    Args:
      model: a compiled model to use in place of a new one.
    """
    first = _first_names()
    made = first | {"x": first["x"].copy(), "y": first["y"].copy(), "model": model}
    if model is None:
        made["model"] = first["resfit"].Model(nnx.clone(first["model"].module))
        exec(BEFORE.splitlines()[-1], made)  # compiles the model
    return made


def run(code: str, made: dict[str, Any]) -> Outcome:
    """Run the code of a row in the current folder."""
    with _warnings() as said:
        try:
            exec(compile(code, "mistake", "exec"), made)
        except Exception as error:  # noqa: BLE001 - whatever a mistake leads to
            notes = [note for note in getattr(error, "__notes__", []) if "resfit" in note]
            return Outcome(type(error), _normalised(str(error)), _normalised("\n".join(notes)), made)
    return Outcome(WARNING if said else None, _normalised("\n".join(dict.fromkeys(said))), "", made)


@contextmanager
def in_an_empty_folder() -> Iterator[None]:
    """Change to a temporary folder for the block."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Record the log of resfit, from warnings up."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("resfit")
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)


def _normalised(text: str) -> str:
    here = os.getcwd()
    for place in {os.path.realpath(here), here}:
        text = text.replace(place + "/", "").replace(place, ".")
    for pattern, instead in _VARYING:
        text = pattern.sub(instead, text)
    return text


def section(mistake: Mistake, outcome: Outcome) -> str:
    """Return the section of a row: its title, its code, and its error."""
    if isinstance(outcome.error, str):
        said = f"WARNING: {outcome.message}"
    elif mistake.foreign:
        said = f"{mistake.error.__name__}: ...\n{outcome.notes}"  # type: ignore[union-attr]
    else:
        said = f"{outcome.error.__name__}: {outcome.message}"  # type: ignore[union-attr]
    return f"### {mistake.title}\n\n```python\n{mistake.code}\n```\n\n```text\n{said}\n```\n"
