"""`Model.fit`, step by step: data, callbacks, checkpoints, and the run itself."""

import contextlib
import dataclasses
import logging
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from resfit import losses
from resfit.backends import onednn
from resfit.backends.allocator import keeping_memory
from resfit.callbacks import (
    Callback,
    Checkpoint,
    EarlyStopping,
    History,
    LearningRateScheduler,
    ReduceLROnPlateau,
    RollbackOnNaN,
    StochasticWeightAveraging,
    SwapEMAWeights,
    TerminateOnNaN,
)
from resfit.callbacks.base import TrainedModel
from resfit.data import Batches, Epochs, Geometry, ImageFiles, as_batches
from resfit.data.batches import check_end, classes_of
from resfit.data.choose import image_size, in_memory
from resfit.data.device import DeviceSource
from resfit.data.indexed import IndexedBatches
from resfit.data.relabeled import relabeled
from resfit.data.sources.arrays import split_validation
from resfit.data.sources.keras_dataset import is_keras_dataset
from resfit.errors import CallbackError, DataError
from resfit.losses.by_output import ByOutput
from resfit.losses.smoothing import check_smoothing_of_steps
from resfit.trainer.arguments import bar, listed, unpacked
from resfit.trainer.checkpoint.manager import CheckpointManager, manager_of
from resfit.trainer.checkpoint.saved_run import Progress
from resfit.trainer.compiled import Compiled
from resfit.trainer.config import CompileConfig, FitConfig
from resfit.trainer.context import RunContext
from resfit.trainer.devices.cpu_advice import CpuAdvice
from resfit.trainer.devices.feeding import fed
from resfit.trainer.devices.multihost import Processes
from resfit.trainer.learned.facts import AnyTransforms, Learned, SeenData
from resfit.trainer.loop.callback_list import CallbackList
from resfit.trainer.loop.fit_control import FitControl
from resfit.trainer.loop.interrupts import at_batch_boundaries
from resfit.trainer.loop.run import Run, Validation
from resfit.trainer.state.run_state import RunState

_log = logging.getLogger("resfit")


class FitData(NamedTuple):
    """The data arguments of `Model.fit`."""

    x: Any
    y: Any
    sample_weight: Any
    class_weight: Mapping[int, float] | None
    validation_split: float
    validation_data: Any

    def split(self) -> "FitData":
        """Take validation data, if there are no other: the last part of arrays, or a stratified part of image files."""
        if not self.validation_split or self.validation_data is not None:
            return self
        if isinstance(self.x, ImageFiles):
            train, validation = self.x.split(self.validation_split)
            return self._replace(x=train, validation_data=validation)
        if not in_memory(self.x):
            raise DataError(
                f"Got validation_split={self.validation_split!r} for a {type(self.x).__name__}. Expected arrays, or "
                "image files of resfit.data.folder or resfit.data.files. Split the data, and pass the parts as x and "
                "validation_data."
            )
        (x, y, weight), held_out = split_validation(self.validation_split, self.x, self.y, self.sample_weight)
        return self._replace(x=x, y=y, sample_weight=weight, validation_data=held_out)


def fit(
    model: TrainedModel,
    control: FitControl,
    config: FitConfig,
    given: FitData,
    callbacks: Callback | Iterable[Callback] | None,
) -> History:
    """Train a compiled model; see `Model.fit`."""
    with control.require_compiled("fit").context.state.training("fit"):
        return _fit(model, control, config, given, callbacks)


def _fit(
    model: TrainedModel,
    control: FitControl,
    config: FitConfig,
    given: FitData,
    callbacks: Callback | Iterable[Callback] | None,
) -> History:
    compiled, learned = control.require_compiled("fit"), control.learned
    context = compiled.context
    processes, state = context.processes, context.state
    _check_model(control, state)
    context.check_trainable("fit")
    data, held_out = _data(compiled, config, given, learned)
    names = learned.labels.names_after_training(data)
    transforms = learned.inputs.transforms_after_training(given.x)
    validation = _validation(model, context, config, data, held_out)
    stream = Epochs(
        fed(data, context.placement, in_step=context.runs_in_one_program), config.steps_per_epoch, state.epoch
    )
    epochs = range(config.initial_epoch, config.epochs)
    compiled.rate.check_span(stream, epochs)
    _check_smoothing(compiled.asked, state, len(epochs) * (stream.steps or 0))
    model.stop_training = model.stop_evaluating = False
    history = History()
    given_callbacks = listed(callbacks)
    hooks = CallbackList(
        [*given_callbacks, history, SeenData(learned), *_advice(compiled, config), *bar(config.verbose)],
        model,
        {"verbose": config.verbose, "epochs": config.epochs, "steps": stream.steps},
    )
    model.history = history
    config = dataclasses.replace(config, learning_rate=compiled.rate.asked)  # a callback may set it in set_model
    settings = compiled.fingerprint() | config.fingerprint()
    history.settings = settings | compiled.named() | {"examples": data.examples}
    steering = [type(callback).__name__ for callback in given_callbacks if isinstance(callback, _STEERING)]
    extra = {"validation": validation is not None, "resume": config.resume, "callbacks": steering}
    _check_same_settings(processes, settings | extra)
    compared = {"data": data, "validation": None if validation is None else validation.data}
    with processes.failing_together():
        manager = manager_of(given_callbacks, config.resume, settings, compared, context)
    with at_batch_boundaries(manager is not None) as interrupt, control.during(manager), contextlib.closing(stream):
        start = None
        if manager is not None and config.resume:
            with processes.failing_together():
                start = manager.find(exact=config.resume != "inexact")
        model.stop_training = start is not None and start.stopping  # the epoch that was to be the last one still is
        if manager is not None and start is not None and start.finished:
            _restore_finished(manager, stream, hooks, learned, (names, transforms), data)
            state.publish()
            return history
        control.accept(manager)
        run = Run(
            context, compiled.trainer, compiled.evaluator, compiled.rate, stream, hooks, validation, manager, interrupt,
            lambda: model.stop_training, config.resize,
        )  # fmt: skip
        kept = keeping_memory(context.placement.platform)
        learning = learned.starting_over(names, given.class_weight, transforms)
        with learning, compiled.rate.spanning(stream, epochs), kept:
            end = run.train(epochs, start)
            if start is not None:
                learned.note_restored(data.labels)
        if manager is not None:
            manager.save(Progress(end.epoch, stopping=model.stop_training, finished=True), (), stream, hooks)
    return history


_STEERING = (
    Checkpoint, EarlyStopping, LearningRateScheduler, ReduceLROnPlateau, RollbackOnNaN,
    StochasticWeightAveraging, SwapEMAWeights, TerminateOnNaN,
)  # fmt: skip
"""The callbacks that change how a run continues; others may be in one process alone."""


def _advice(compiled: Compiled, config: FitConfig) -> list[Callback]:
    """Return the callback that suggests `resfit[cpu]`, if oneDNN could be installed and was not ruled out."""
    placement, inputs = compiled.context.placement, compiled.context.learned.inputs
    automatic = compiled.asked.cpu_kernels == "auto" and placement.platform == "cpu" and placement.kind != "eager"
    if not automatic or compiled.context.processes.shard[0] or not onednn.is_missing():
        return []
    return [CpuAdvice(compiled.context.state.module, config.batch_size, lambda: inputs.example)]


def _check_model(control: FitControl, state: RunState) -> None:
    """Raise if the module changed since `compile`, or `fit` runs already."""
    state.check_for_training()
    if control.fitting:
        raise CallbackError(
            "fit was called while fit is running, by a callback: both would train the same state. Stop with "
            "model.stop_training = True and call fit again, or train another Model."
        )


def _data(compiled: Compiled, config: FitConfig, given: FitData, learned: Learned) -> tuple[Batches, Any]:
    """Return the training data as batches, and the validation data as they were given."""
    if given.class_weight is not None:
        learned.labels.check_class_weight(given.class_weight)
    learned.labels.check_weights(given.sample_weight)
    given = given.split()
    _check_validation_inside(config, given)
    _warn_of_sizes(given.x, given.validation_data)
    context = compiled.context
    geometry = Geometry(
        config.batch_size,
        seed=context.seed if config.shuffle else None,
        min_batch=2 if context.state.layout.plan.has_batch_norm else 1,
        drop_remainder=config.drop_remainder,
        shard=context.processes.shard,
        numbered=compiled.trainer.reads_origin,
    )
    data = as_batches(
        learned.inputs.checked(given.x), given.y, given.sample_weight, given.class_weight, geometry=geometry,
        cache=config.cache, known=context.on_device, device=context.placement.devices[0],
    )  # fmt: skip
    source = data.source if isinstance(data, IndexedBatches) else None
    context.on_device = source if isinstance(source, DeviceSource) else None
    _check_same_data(context.processes, data)
    learned.labels.warn_of_one_hot(data.labels)
    _log.info("%s", compiled.described(config.batch_size))
    return data, given.validation_data


def _check_validation_inside(config: FitConfig, given: FitData) -> None:
    """Raise if a validation inside an epoch would call the hooks of the Keras dataset that is being trained on."""
    held_out = given.validation_data[0] if isinstance(given.validation_data, tuple) else given.validation_data
    if config.validation_every is not None and held_out is given.x and is_keras_dataset(given.x):
        raise DataError(
            f"validation_data is the {type(given.x).__name__} of the training, and validation_every="
            f"{config.validation_every} reads it inside an epoch: its hooks would change the rest of the epoch. "
            "Expected another object. Make a second dataset of the same data, or validate after epochs: "
            "validation_freq=1."
        )


def _validation(
    model: TrainedModel, context: RunContext, config: FitConfig, data: Batches, held_out: Any
) -> Validation | None:
    if held_out is None:
        return None
    x, y, weight = unpacked(held_out, "validation_data")
    context.learned.labels.check_weights(weight)
    geometry = Geometry(config.evaluation_batch_size, pad=True, shard=context.processes.shard)
    batches = as_batches(x, y, weight, geometry=geometry)
    check_end(batches, config.validation_steps, "validation_steps")

    def stopped() -> bool:
        # One validation inside `fit` is stopped, not the next one.
        asked, model.stop_evaluating = model.stop_evaluating, False
        return asked

    return Validation(
        relabeled(
            batches,
            classes_of(data) or context.learned.labels.names,
            "validation_data",
            context.learned.labels.ignore_index,
        ),
        config.validation_steps,
        config.validates_after,
        config.validation_every,
        stopped,
        lambda: model.validation_weights,
    )


def _warn_of_sizes(x: Any, held_out: Any) -> None:
    """Warn if the validation images have another size than the training images, where both are known."""
    sizes = image_size(x), image_size(held_out[0] if isinstance(held_out, tuple) and held_out else held_out)
    if None not in sizes and sizes[0] != sizes[1]:
        _log.warning(
            "The training images have %s x %s pixels, and the validation images %s x %s: most networks are less "
            "accurate at another size. Pass the same size to both, unless the difference is intended.",
            *(sizes[0] or ()), *(sizes[1] or ()),
        )  # fmt: skip


def _restore_finished(
    manager: CheckpointManager,
    stream: Epochs,
    hooks: CallbackList,
    learned: Learned,
    seen: tuple[list[str] | None, AnyTransforms],
    data: Batches,
) -> None:
    manager.restore(stream, hooks)
    learned.labels.names, learned.inputs.transforms = seen
    learned.note_restored(data.labels)


def _check_same_data(processes: Processes, data: Batches) -> None:
    entries = {"the number of examples": data.examples, "a label": data.labels}
    processes.check_same(
        "data",
        (b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(entry)) for entry in entries.values()),
        entries,
        "Pass the whole dataset in every process; each process reads its part. Pass data that is already split as "
        "an iterable of batches.",
    )


def _check_same_settings(processes: Processes, settings: Mapping[str, Any]) -> None:
    compared = {name: value for name, value in settings.items() if name != "cpu_kernels"}
    processes.check_same(
        "arguments of compile or fit",
        (repr(value).encode() for value in compared.values()),
        (f"{name}, here {value!r:.200}," for name, value in compared.items()),
        "Processes with different arguments would wait for each other forever. Pass the same in every process.",
    )


def _check_smoothing(asked: CompileConfig, state: RunState, steps: int) -> None:
    """Raise if a function for label smoothing leaves [0, 1) in the steps of this fit."""
    loss = losses.get(asked.loss, asked.loss_weights)
    for one in loss.loss_of.values() if isinstance(loss, ByOutput) else (loss,):
        if isinstance(one, losses.CrossEntropy | losses.BinaryCrossEntropy) and callable(one.label_smoothing):
            check_smoothing_of_steps(one.label_smoothing, state.steps(), steps)
