"""The parts of an ensemble that belong to one member: its module and its callbacks."""

import copy
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from resfit.callbacks import Callback, Checkpoint, CSVLogger, ModelCheckpoint, Profiler
from resfit.callbacks.loggers.metric_logger import MetricLogger
from resfit.data.choose import adapted, in_memory, is_source
from resfit.ensemble.each import Each
from resfit.errors import CallbackError, DataError, ModuleError
from resfit.model import Model
from resfit.trainer.arguments import listed

_WRITE_FILES = (ModelCheckpoint, CSVLogger, MetricLogger, Profiler)


def check_distinct(models: Sequence[Model], seeds: Sequence[int]) -> None:
    """Raise if two members have one module.

    Raises:
      ModuleError: with the seeds of both.
    """
    first: dict[int, int] = {}
    for model, seed in zip(models, seeds, strict=True):
        before = first.setdefault(id(model.module), seed)
        if before is not seed:
            raise ModuleError(
                f"make({seed}) returned the module that make({before}) returned. Expected a new module in each call, "
                "such as resfit.create_model('resnet20', num_classes=10, rngs=seed)."
            )


def check_shared(name: str, data: Any) -> None:
    """Raise if several members cannot read one object of data, because a read changes it.

    Args:
      name: of the argument, for the message.
      data: the argument of `fit`; an `Each` has one object for each member.

    Raises:
      DataError: for an iterator, a loader, and a dataset that keeps its own position.
    """
    if data is None or isinstance(data, Each | list) or in_memory(data) or callable(data) or is_source(adapted(data)):
        return
    raise DataError(
        f"{name} is one {type(data).__name__} for all members of the ensemble, which read it together. Expected "
        "arrays, a source of resfit.data, or a function that returns a new iterator. For one object for each member "
        f"pass {name}=resfit.Each([...])."
    )


def callbacks_of_members(
    callbacks: Callback | Iterable[Callback] | Callable[[int], Any] | None, members: int
) -> list[list[Callback]]:
    """Return the callbacks of each member.

    Args:
      callbacks: copied for every member; a `Checkpoint` gets a folder for each. Or a function: member number ->
        callbacks.
      members: the number of members.

    Raises:
      CallbackError: if a callback cannot be copied, or would write the files of all members to one path.
    """
    if callable(callbacks) and not isinstance(callbacks, Callback | type):
        return [listed(callbacks(number)) for number in range(members)]
    given = listed(callbacks)  # type: ignore[arg-type]  # no function is left
    return [[_copied(one, number) for one in given] for number in range(members)]


def folder_of(callbacks: Sequence[Sequence[Callback]]) -> Path | None:
    """Return the folder that holds the checkpoints of the members; None without checkpoints."""
    folders = [one.directory for own in callbacks for one in own if isinstance(one, Checkpoint)]
    return Path(os.path.commonpath([folder.absolute() for folder in folders])) if folders else None


def _copied(callback: Any, number: int) -> Any:
    if not isinstance(callback, Callback):
        return callback  # `fit` raises for it
    name = type(callback).__name__
    function = f"Pass a function of the member's number: callbacks=lambda member: [{name}(...)]."
    if isinstance(callback, _WRITE_FILES):
        raise CallbackError(f"All members of the ensemble would write the files of one {name}. {function}")
    try:
        own = copy.deepcopy(callback)
    except TypeError as error:
        raise CallbackError(f"{name} cannot be copied for each member of the ensemble: {error}. {function}") from error
    if isinstance(own, Checkpoint):
        own.directory = own.directory / f"member_{number}"
    return own
