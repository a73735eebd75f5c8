"""A model whose run is resumed, or was finished, equals the model of the original run."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import pytest

import resfit
from resfit.callbacks import Callback, Checkpoint
from resfit.errors import DataError
from resfit.losses import BinaryCrossEntropy
from tests import levels
from tests.faults import runs
from tests.helpers import CLASSES, PlainNet, assert_same, compiled, context_of, images, labels, state_of

BYTES = (images(10) * 20 + 128).astype(np.uint8)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def trained(folder: Path, *more: Callback, made: resfit.Model | None = None) -> resfit.Model:
    model = runs.small(PlainNet) if made is None else made
    model.fit(BYTES, labels(10), epochs=2, verbose=0, callbacks=[*more, Checkpoint(folder)], resume=True)
    return model


def stops(model: resfit.Model) -> Callable[[], None]:
    return lambda: setattr(model, "stop_training", True)


@pytest.mark.representatives("finished")
@pytest.mark.parametrize("end", ["finished", "terminated after the last epoch", "stopped by a callback"])
def test_a_resumed_model_restores_the_facts_about_its_data(end: str, tmp_path: Path) -> None:
    first = runs.small(PlainNet)
    if end == "finished":
        trained(tmp_path, made=first)
    elif end == "stopped by a callback":
        trained(tmp_path, runs.Stops(1, stops(first)), made=first)
    else:
        with runs.stopped(SystemExit):
            trained(tmp_path, runs.Stops(2, terminate, "on_epoch_end"), made=first)
    again = trained(tmp_path)
    for name in ("trained_on", "example"):
        one, other = (getattr(context_of(model).learned.inputs, name) for model in (again, first))
        assert one == other, name
    assert again.stop_training == first.stop_training
    assert context_of(again).learned.inputs.trained_on == ("uint8",)
    with pytest.raises(DataError, match="trained on uint8"):
        again.predict(BYTES.astype(np.float32), verbose=0)
    again.save(tmp_path / "model.safetensors")
    with pytest.raises(DataError, match="trained on uint8"):
        resfit.load(tmp_path / "model.safetensors", module=again.module).predict(BYTES.astype(np.float32), verbose=0)


ENDS = ["finished", "terminated in the middle", "terminated after the last epoch"]


@pytest.mark.parametrize("end", levels.only(["terminated in the middle"], ENDS))
def test_a_resumed_model_restores_that_its_labels_are_multi_hot(end: str, tmp_path: Path) -> None:
    """The first batch has multi-hot rows; the others have one label per row, as class labels do."""
    hot = np.eye(CLASSES, dtype=np.float32)[labels(10)]
    hot[0] = 1
    loss = BinaryCrossEntropy()

    def fit(*more: Callback) -> resfit.Model:
        model = runs.small(PlainNet, loss=loss, metrics=("binary_accuracy",))
        batches = lambda: iter([(images(5), hot[:5]), (images(5), hot[5:])])  # noqa: E731
        callbacks = [*more, Checkpoint(tmp_path)]
        model.fit(batches, epochs=1, steps_per_epoch=2, verbose=0, callbacks=callbacks, resume=True)
        return model

    if end == "finished":
        fit()
    else:
        last = end == "terminated after the last epoch"
        with runs.stopped(SystemExit):
            fit(runs.Stops(1, terminate, "on_epoch_end" if last else "on_train_batch_end"))
    again = fit()
    logits, probabilities = (again.predict(images(4), outputs=name, verbose=0) for name in ("logits", "probabilities"))
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-logits)), rtol=1e-5)


def test_a_resume_that_fails_before_the_restore_leaves_the_model_untrained(tmp_path: Path) -> None:
    trained(tmp_path)
    model = runs.small(PlainNet)
    with runs.stopped(ZeroDivisionError):
        callbacks = [Checkpoint(tmp_path), runs.Stops(1, lambda: 1 / 0, "on_train_begin")]
        model.fit(BYTES, labels(10), epochs=3, verbose=0, callbacks=callbacks, resume=True)
    model.compile("sgd", preprocess=None)  # a network that was trained with another one refuses it


@pytest.mark.slow
@pytest.mark.parametrize("dispatch", levels.only(["jit"], ["jit", "sharded"]))
def test_random_keys_in_the_optimizer_state_resume_exactly(dispatch: str, tmp_path: Path) -> None:
    noisy = optax.noisy_sgd(0.01, eta=0.1, key=jax.random.key(3))

    def run(folder: str, *more: Callback) -> list[np.ndarray]:
        model = runs.small(PlainNet, optimizer=noisy, learning_rate=None, dispatch=dispatch)
        trained(tmp_path / folder, *more, made=model)
        return state_of(model).on_host()

    whole = run("whole")
    with runs.stopped(SystemExit):
        run("run", runs.Stops(1, terminate))
    assert_same(run("run"), whole)


class Pair(NamedTuple):
    """Inputs in a container that a checkpoint cannot hold."""

    left: Any
    right: Any


@pytest.mark.parametrize(
    ("inputs", "known"), [({"b": BYTES, "a": [BYTES, images(2)]}, True), (BYTES, True), (Pair(BYTES, BYTES), False)]
)
def test_inputs_of_unknown_structure_are_left_out_of_the_checkpoint(inputs: Any, known: bool) -> None:
    from resfit.data.states import packed, unpacked
    from resfit.preprocess import example
    from resfit.trainer.learned.facts import SeenData

    model, other = compiled(), compiled()
    context_of(model).learned.inputs.example = example(inputs)
    state = unpacked(packed(SeenData(context_of(model).learned).state_dict()))
    SeenData(context_of(other).learned).load_state_dict(state)
    assert context_of(other).learned.inputs.example == (context_of(model).learned.inputs.example if known else None)
