"""The parts of an ensemble that belong to one member: its module and its callbacks."""

import copy
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from resfit.callbacks import (
    Callback,
    Checkpoint,
    CSVLogger,
    EarlyStopping,
    LearningRateScheduler,
    ModelCheckpoint,
    Profiler,
    ReduceLROnPlateau,
    RollbackOnNaN,
    StochasticWeightAveraging,
    SwapEMAWeights,
    TerminateOnNaN,
)
from resfit.callbacks.loggers.metric_logger import MetricLogger
from resfit.data.choose import adapted, in_memory, is_source
from resfit.ensemble.each import Each, for_members
from resfit.errors import CallbackError, DataError, ModuleError
from resfit.model import Model
from resfit.trainer.arguments import listed

_WRITE_FILES = (ModelCheckpoint, CSVLogger, MetricLogger, Profiler)
_OF_ONE_MODEL = (
    Checkpoint, EarlyStopping, LearningRateScheduler, ModelCheckpoint, Profiler, ReduceLROnPlateau, RollbackOnNaN,
    StochasticWeightAveraging, SwapEMAWeights, TerminateOnNaN,
)  # fmt: skip


def check_distinct(models: Sequence[Model], seeds: Sequence[int]) -> None:
    """Raise if two members have one module.

    Raises:
      ModuleError: with the seeds of both.
    """
    first: dict[int, int] = {}
    for model, seed in zip(models, seeds, strict=True):
        if id(model.module) in first:
            raise not_distinct(seed, first[id(model.module)])
        first[id(model.module)] = seed


def not_distinct(seed: int, before: int) -> ModuleError:
    """Return the error for a module that two calls of `make` returned."""
    first = f"make({before})" if before != seed else "an earlier call"
    return ModuleError(
        f"make({seed}) returned the module that {first} returned. Expected a new module in each call, such as "
        "resfit.create_model('resnet20', num_classes=10, rngs=seed)."
    )


def check_shared(name: str, data: Any, *, by: str = "members of the ensemble") -> None:
    """Raise if several members cannot read one object of data, because a read changes it.

    Args:
      name: of the argument, for the message.
      data: the argument of `fit`; an `Each` has one object for each member.
      by: the readers, for the message.

    Raises:
      DataError: for an iterator, a loader, and a dataset that keeps its own position.
    """
    if data is None or isinstance(data, Each | list) or in_memory(data) or callable(data) or is_source(adapted(data)):
        return
    each = f" For one object for each member pass {name}=resfit.Each([...])." if "members" in by else ""
    raise DataError(
        f"{name} is one {type(data).__name__} for all {by}, which read it together. Expected arrays, a source of "
        f"resfit.data, or a function that returns a new iterator.{each}"
    )


def callbacks_of_members(
    callbacks: Callback | Iterable[Callback] | Callable[[int], Any] | Each | None, members: int
) -> list[list[Callback]]:
    """Return the callbacks of each member.

    Args:
      callbacks: copied for every member; a `Checkpoint` gets a folder for each. Or a function: member number ->
        callbacks; or an `Each` of the callbacks of each member.
      members: the number of members.

    Raises:
      CallbackError: if a callback cannot be copied, would write the files of all members to one path, or is given to
        two members.
      ArgumentError: for an `Each` with another number of values.
    """
    if isinstance(callbacks, Each):
        return _distinct([listed(own["callbacks"]) for own in for_members("fit", {"callbacks": callbacks}, members)])
    if callable(callbacks) and not isinstance(callbacks, Callback | type):
        return _distinct([listed(callbacks(number)) for number in range(members)])
    given = listed(callbacks)  # type: ignore[arg-type]  # no function is left
    return [[_copied(one, number) for one in given] for number in range(members)]


def _distinct(callbacks: list[list[Callback]]) -> list[list[Callback]]:
    """Return the callbacks of the members.

    Raises:
      CallbackError: if two members have one object, whose state and model would be those of both.
    """
    owners: dict[int, int] = {}
    for number, own in enumerate(callbacks):
        for one in own:
            if owners.setdefault(id(one), number) != number and isinstance(one, Callback):
                raise CallbackError(
                    f"The members {owners[id(one)]} and {number} of the ensemble got one {type(one).__name__}, which "
                    "keeps the state of one model. Expected a new object for each member."
                )
    return callbacks


def of_ensemble(callbacks: Callback | Iterable[Callback] | None) -> list[Callback]:
    """Return the callbacks of the whole ensemble.

    Raises:
      CallbackError: for one that steers or saves a single model.
    """
    given = listed(callbacks)
    for one in given:
        if isinstance(one, _OF_ONE_MODEL):
            raise CallbackError(
                f"ensemble_callbacks holds {type(one).__name__}, a callback of a single model. Pass it as "
                "callbacks=..., which every member gets a copy of."
            )
    return given


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
    except Exception as error:
        raise CallbackError(f"{name} cannot be copied for each member of the ensemble: {error}. {function}") from error
    if isinstance(own, Checkpoint):
        own.directory = own.directory / f"member_{number}"
    return own
