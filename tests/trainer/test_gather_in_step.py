"""`cache="device"` with `steps_per_execution`: the program gathers its batches from the dataset on the device."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import resfit
from resfit.data.device import Rows
from resfit.data.sources.arrays import ArraySource
from resfit.errors import DataError, LabelError
from resfit.trainer.devices.placement import CompiledStep, Placement
from tests.helpers import (
    BATCH,
    PlainNet,
    Recorder,
    TinyNet,
    assert_close,
    assert_same,
    compiled,
    context_of,
    fit,
    images,
    labels,
)

N = 36  # four full batches and one of four examples


@pytest.fixture(autouse=True)
def as_on_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the steps of an execution as one program."""
    monkeypatch.setattr(Placement, "loops", property(lambda self: True))


@pytest.fixture
def from_host(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[int, ...]]]:
    """Return a list that receives, for each call of a compiled step, the shapes of its arguments on the host."""
    found: list[list[tuple[int, ...]]] = []
    prepare = CompiledStep.prepare

    def noting(self: CompiledStep, arguments: tuple[Any, ...], on_compile: Callable[[bool], None]) -> Any:
        found.append([np.shape(leaf) for leaf in jax.tree.leaves(arguments) if not isinstance(leaf, jax.Array)])
        return prepare(self, arguments, on_compile)

    monkeypatch.setattr(CompiledStep, "prepare", noting)
    return found


def test_an_execution_gets_only_the_numbers_of_the_rows_from_the_host(from_host: list[Any]) -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)), steps_per_execution=3)
    x, y = images(N), labels(N)
    fit(model, x, y, cache="device")
    # The number of batches, and the rows of each. The four examples at the end are a group of one.
    assert from_host == [[(), (3, BATCH)], [(), (3, BATCH)], [(), (3, 4)]]
    from_host.clear()
    fit(model, x, y)  # a control
    assert from_host[0] == [(), *[x[:BATCH].shape, y[:BATCH].shape] * 3]


@pytest.mark.parametrize(("cache", "transfers"), [("device", 2), pytest.param(None, 7, id="control")])
def test_nothing_else_is_transferred_in_a_fit(
    cache: str | None, transfers: int, capfd: pytest.CaptureFixture[str]
) -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)), steps_per_execution=3)
    x, y = images(N), labels(N)
    fit(model, x, y, cache=cache)
    capfd.readouterr()
    with jax.transfer_guard_host_to_device("log"):
        fit(model, x, y, epochs=2, cache=cache)
    assert capfd.readouterr().err.count("host-to-device transfer") == 6 * transfers


CACHED: dict[str, dict[str, Any]] = {
    "as it is": {},
    "weights": {"sample_weight": np.linspace(0.1, 2, N)},
    "in order": {"shuffle": False},
    "averages": {"ema": 0.9},
    "augmentation": {"augment": lambda key, x, y: (x + 0.1 * jax.random.normal(key, x.shape), y)},
    "accumulation": {"gradient_accumulation_steps": 2},
    "a schedule": {"learning_rate": "cosine"},
    "more steps than batches": {"steps_per_execution": 50},
    "epochs of three steps": {"steps_per_epoch": 3},
    "a mesh": {"dispatch": "sharded"},
}
OF_FIT = ("sample_weight", "shuffle", "steps_per_epoch")


@pytest.mark.slow
@pytest.mark.parametrize("name", CACHED)
def test_the_results_are_those_of_single_steps_from_the_host(name: str) -> None:
    def run(cache: str | None, **steps: int) -> Any:
        given = CACHED[name]
        model = compiled(TinyNet(rngs=nnx.Rngs(0)), **{key: given[key] for key in given.keys() - set(OF_FIT)} | steps)
        recorder = Batches()
        of_fit = {key: given[key] for key in given.keys() & set(OF_FIT)}
        history = fit(model, images(N), labels(N), epochs=2, cache=cache, callbacks=[recorder], **of_fit).history
        weights = ["raw", *(["ema"] if "ema" in given else [])]
        evaluated = [model.evaluate(images(N), labels(N), weights=kind, verbose=0) for kind in weights]
        return history, model.get_weights(), evaluated, recorder.seen

    steps = {} if "steps_per_execution" in CACHED[name] else {"steps_per_execution": 3}
    assert_close(run("device", **steps), run(None, steps_per_execution=1), 1e-5)


class Batches(resfit.callbacks.Callback):
    """Records the log of each batch."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.seen.append((batch, dict(logs), logs.batch_loss, logs.examples))


@pytest.mark.parametrize("stop", [4, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 5, 7, 9))])
def test_a_run_resumes_exactly_at_every_execution(stop: int, tmp_path: Path) -> None:
    class Stop(resfit.callbacks.Callback):
        steps = 0

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.steps += 1
            if self.steps == stop:
                raise KeyboardInterrupt

    def run(folder: Path, *callbacks: Any, **arguments: Any) -> Any:
        model = compiled(PlainNet(rngs=nnx.Rngs(0)), steps_per_execution=2)
        saving = resfit.callbacks.Checkpoint(folder, every=1)
        fit(model, images(N), labels(N), epochs=2, cache="device", callbacks=[saving, *callbacks], **arguments)
        return model.get_weights()

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", Stop())
    assert_same(run(tmp_path / "cut", resume=True), whole)


def test_several_inputs_and_unknown_labels_are_gathered_too() -> None:
    class Sum(nnx.Module):
        def __init__(self) -> None:
            self.net = PlainNet(rngs=nnx.Rngs(0))

        def __call__(self, x: dict[str, jax.Array]) -> jax.Array:
            return self.net(x["a"] + x["b"])

    x = {"a": images(N), "b": images(N, seed=2)}
    one, other = (compiled(Sum(), steps_per_execution=steps) for steps in (3, 1))
    fit(one, Unlabeled(x, labels(N)), cache="device")
    fit(other, Unlabeled(x, labels(N)))
    assert_close(one.get_weights(), other.get_weights(), 1e-6)


class Unlabeled(ArraySource):
    """A source whose labels are known only from its batches."""

    def __init__(self, x: Any, y: Any) -> None:
        super().__init__(x, y)
        self.labels = None


def test_wrong_labels_that_only_batches_hold_raise_before_the_first_step() -> None:
    model, recorder = compiled(PlainNet(rngs=nnx.Rngs(0)), steps_per_execution=3), Recorder()
    y = labels(N)
    y[N - 1] = 7
    with pytest.raises(LabelError, match="7"):
        fit(model, Unlabeled(images(N), y), cache="device", shuffle=False, callbacks=[recorder])
    assert not [entry for entry in recorder.trace if entry[0] == "on_train_batch_end"]


def test_images_of_another_scale_than_in_training_raise() -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)), steps_per_execution=3)
    x = np.random.default_rng(0).integers(0, 255, (N, 8, 8, 1), np.uint8)
    fit(model, x, labels(N), cache="device")
    fit(model, (x / 255).astype(np.float32), labels(N), cache="device")
    with pytest.raises(DataError, match="trained on uint8 images"):
        fit(model, x.astype(np.float32), labels(N), cache="device")


def test_a_kept_step_can_be_examined() -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)), steps_per_execution=3, loss=lambda logits, y: logits[:, 0] * np.nan)
    callback = resfit.callbacks.TerminateOnNaN(locate=True)
    fit(model, images(N), labels(N), cache="device", callbacks=[callback])
    assert (callback.bad_batch, callback.bad_place) == ((0, 0), "the loss")


def test_the_dataset_is_on_the_device_of_the_model() -> None:
    device = jax.devices()[-1]
    with jax.default_device(device):
        model = compiled(PlainNet(rngs=nnx.Rngs(0)), steps_per_execution=3, dispatch="auto")
    fit(model, images(N), labels(N), cache="device")
    rows = jax.tree.leaves(context_of(model).on_device.take(slice(0, 1)))
    assert {each for leaf in rows for each in leaf.devices()} == {device}


def test_rows_are_those_of_the_array() -> None:
    array = jax.numpy.arange(12.0).reshape(6, 2)
    rows = Rows(array, np.array([5, 0, 5], np.int32))
    assert (rows.shape, rows.dtype, len(rows)) == ((3, 2), array.dtype, 3)
    np.testing.assert_array_equal(rows, np.asarray(array)[[5, 0, 5]])
