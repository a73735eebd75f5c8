"""TensorBoard itself can read the event files of the callback."""

import io
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import PIL.Image
import pytest
from flax import nnx

from resfit.callbacks import Callback, Checkpoint, JSONLogger, TensorBoard
from resfit.callbacks.loggers.tensorboard import _filters
from resfit.errors import CallbackError, MissingPackageError
from tests.callbacks.fakes import FakeModel, batch, begin, counting_reads, play
from tests.faults.runs import Stops
from tests.helpers import CLASSES, PlainNet, TinyNet, compiled, fit, images, labels

accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def read(run: str, folder: str = "logs") -> Any:
    accumulator = accumulators.EventAccumulator(
        f"{folder}/{run}", size_guidance=accumulators.STORE_EVERYTHING_SIZE_GUIDANCE
    )
    return accumulator.Reload()


def series(run: str, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in read(run).Scalars(tag)]


def test_tensorboards_reader_finds_the_history_and_batches_of_a_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = counting_reads(monkeypatch)
    model = compiled(PlainNet(rngs=nnx.Rngs(0)))
    history = fit(
        model, epochs=3, validation_data=(images(9), labels(9)), validation_freq=2,
        callbacks=[TensorBoard(update_freq=3)],
    )  # fmt: skip
    assert reads.reads == 3  # by the loop itself, which reads the same batch that is written
    for tag, run, name in [
        ("epoch_loss", "train", "loss"), ("epoch_accuracy", "train", "accuracy"),
        ("epoch_loss", "validation", "val_loss"), ("epoch_accuracy", "validation", "val_accuracy"),
    ]:  # fmt: skip
        expected = list(zip(history.epochs[name], history.history[name], strict=True))
        np.testing.assert_allclose(series(run, tag), expected, rtol=1e-6)
    assert series("train", "epoch_learning_rate") == [(i, pytest.approx(0.1)) for i in range(3)]
    assert series("batches", "batch_loss") == [
        (3 * i + 3, pytest.approx(loss)) for i, loss in enumerate(history.history["loss"])
    ]
    speeds = series("train", "epoch_images_per_second")
    assert len(speeds) == 3
    assert min(speed for _, speed in speeds) > 0
    assert "epoch_steps_per_second" not in read("train").Tags()["scalars"]
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize(("frequency", "steps"), [("epoch", []), ("batch", [1, 2, 3, 4]), (2, [2, 4])])
def test_update_freq_sets_the_steps_of_the_written_batches(frequency: str | int, steps: list[int]) -> None:
    callback = TensorBoard(update_freq=frequency)
    begin(callback)
    callback.on_epoch_begin(0, {})
    for i in range(4):
        callback.on_train_batch_end(i, batch(float(i)))
    callback.on_epoch_end(0, {"loss": 1.0})
    callback.on_train_end({})
    assert Path("logs/batches").exists() == bool(steps)
    if steps:
        assert series("batches", "batch_loss") == [(step, step - 1.0) for step in steps]


def test_non_finite_values_are_written_and_vectors_are_written_entry_by_entry() -> None:
    play(TensorBoard(), [{"loss": float("nan"), "recall": np.array([0.5, 1.0]), "matrix": np.eye(2)}], FakeModel(None))
    assert np.isnan(series("train", "epoch_loss")[0][1])
    assert series("train", "epoch_recall_1") == [(0, 1.0)]
    assert "epoch_matrix" not in read("train").Tags()["scalars"]
    assert "epoch_learning_rate" not in read("train").Tags()["scalars"]


def test_histograms_and_norms_of_all_variables_are_written_every_n_epochs() -> None:
    model = compiled(TinyNet(rngs=nnx.Rngs(0)))
    fit(model, epochs=3, callbacks=[TensorBoard(histogram_freq=2, write_images=True, write_steps_per_second=True)])
    found = read("train")
    names = {"conv/kernel", "norm/scale", "norm/bias", "norm/mean", "norm/var", "head/kernel", "head/bias"}
    assert set(found.Tags()["histograms"]) == {f"{name}/histogram" for name in names}
    for name in names:
        assert [event.step for event in found.Histograms(f"{name}/histogram")] == [1]
        assert [event.step for event in found.Scalars(f"{name}/norm")] == [1]
    assert found.Histograms("conv/kernel/histogram")[0].histogram_value.num == 36
    assert found.Tags()["images"] == ["conv/kernel/image"]
    assert len(found.Scalars("epoch_steps_per_second")) == 3

    fit(model, epochs=1, callbacks=[TensorBoard("last", histogram_freq=1)])
    (norm,) = read("train", "last").Scalars("conv/kernel/norm")
    assert norm.value == pytest.approx(float(np.linalg.norm(model.module.conv.kernel[...])), rel=1e-6)


def shown(folder: str) -> dict[str, set[str]]:
    """Return the names that TensorBoard's pages request, by plugin, in all runs. A name has one plugin."""
    from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
    from tensorboard.context import RequestContext

    multiplexer = plugin_event_multiplexer.EventMultiplexer().AddRunsFromDirectory(folder)
    provider = data_provider.MultiplexerDataProvider(multiplexer.Reload(), folder)
    found = {}
    for plugin, ask in (
        ("scalars", provider.list_scalars),
        ("histograms", provider.list_tensors),
        ("images", provider.list_blob_sequences),
    ):
        runs = ask(RequestContext(), experiment_id="", plugin_name=plugin)
        found[plugin] = {name for names in runs.values() for name in names}
    return found


def test_tensorboards_pages_show_everything_that_was_written() -> None:
    model = compiled(TinyNet(rngs=nnx.Rngs(0)))
    confusion = images(9), labels(9)
    fit(model, epochs=1, callbacks=[TensorBoard(histogram_freq=1, write_images=True, confusion_matrix=confusion)])
    found = shown("logs")
    assert found["images"] == {"conv/kernel/image", "confusion_matrix"}
    assert {"conv/kernel/histogram", "head/bias/histogram"} <= found["histograms"]
    assert {"conv/kernel/norm", "head/bias/norm", "epoch_loss"} <= found["scalars"]


def test_a_non_finite_variable_has_a_norm_and_a_histogram_of_its_finite_values() -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)))
    kernel = np.array(model.module.head.kernel[...])
    kernel[:3] = np.nan
    model.set_weights([array if array.shape != kernel.shape else kernel for array in model.get_weights()])
    callback = TensorBoard(histogram_freq=1)
    begin(callback, model)
    callback.on_epoch_begin(0, {})
    callback.on_epoch_end(0, {})
    callback.on_train_end({})
    assert np.isnan(series("train", "head/kernel/norm")[0][1])
    assert read("train").Histograms("head/kernel/histogram")[0].histogram_value.num == kernel.size - 3 * CLASSES


def test_the_confusion_matrix_is_drawn_and_does_not_change_the_training() -> None:
    plain, drawn = compiled(PlainNet(rngs=nnx.Rngs(0))), compiled(PlainNet(rngs=nnx.Rngs(0)))
    fit(plain, epochs=2)
    fit(drawn, epochs=2, callbacks=[TensorBoard(confusion_matrix=(images(9), labels(9)))])
    events = read("validation").Images("confusion_matrix")
    assert [event.step for event in events] == [0, 1]
    pixels = np.asarray(PIL.Image.open(io.BytesIO(events[0].encoded_image_string)))
    assert pixels.shape[2] == 3
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 3
    for a, b in zip(plain.get_weights(), drawn.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_evaluate_outside_fit_writes_a_separate_run() -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)))
    callback = TensorBoard()
    fit(model, callbacks=[callback])
    loss, _ = model.evaluate(images(), labels(), verbose=0, callbacks=[callback])
    assert series("evaluation", "evaluation_loss") == [(3, pytest.approx(loss))]


def test_two_fits_in_the_same_second_write_to_different_folders() -> None:
    callback = TensorBoard()
    for first in (0, 2, 4):
        play(callback, [{"loss": 1.0}, {"loss": 2.0}], first=first)
    assert series("train", "epoch_loss") == [(i, 1.0 + i % 2) for i in range(6)]


@pytest.mark.slow
def test_each_row_appears_once_after_a_failed_run_with_step_validation_is_resumed() -> None:
    def run(folder: str, *more: Callback) -> Any:
        loggers = [TensorBoard(f"{folder}/logs", update_freq=2), JSONLogger(f"{folder}/log.jsonl", every=2)]
        validation = {"validation_data": (images(9), labels(9)), "validation_every": 2}
        fit(
            compiled(),
            epochs=2,
            callbacks=[*loggers, *more, Checkpoint(f"{folder}/run", every=2)],
            resume=True,
            **validation,
        )
        events = read("batches", f"{folder}/logs")
        rows = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
        return rows, Path(f"{folder}/log.jsonl").read_text()

    whole = run("whole")
    with pytest.raises(ZeroDivisionError):  # the validation after step 2 is written again after the resume
        run("failed", Stops(3, lambda: 1 / 0))
    assert run("failed") == whole
    with pytest.raises(SystemExit):  # and its batch is reported again
        run("ended", Stops(1, lambda: os.kill(os.getpid(), signal.SIGTERM), "on_test_begin"))
    assert run("ended") == whole
    assert whole[0]["batch_val_loss"]


@pytest.mark.parametrize("saved", [2, 3, 5, 6])
def test_a_resumed_run_shows_every_step_once(saved: int) -> None:
    """Epochs of three batches. The run is saved after a batch, killed three batches later, and resumed."""

    def start(callback: TensorBoard) -> TensorBoard:
        begin(callback)
        callback.on_epoch_begin(0, {})
        return callback

    def run(callback: TensorBoard, first: int, last: int, shift: float) -> None:
        for i in range(first, last):
            callback.on_epoch_begin(i // 3, {})
            callback.on_train_batch_end(i % 3, batch(i + shift))
            if i % 3 == 2:
                callback.on_epoch_end(i // 3, {"loss": i + shift, "val_loss": i + shift})

    killed = start(TensorBoard(update_freq="batch"))
    run(killed, 0, saved, shift=0.0)
    state = json.loads(json.dumps(killed.state_dict()))
    run(killed, saved, saved + 3, shift=0.5)  # steps that the resumed run replaces
    killed.close()
    resumed = start(TensorBoard(update_freq="batch"))
    resumed.load_state_dict(state)
    run(resumed, saved, 9, shift=0.0)
    resumed.on_train_end({})
    assert series("batches", "batch_loss") == [(i + 1, float(i)) for i in range(9)]
    for which in ("train", "validation"):
        assert series(which, "epoch_loss") == [(0, 2.0), (1, 5.0), (2, 8.0)]


def test_only_the_first_process_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    play(TensorBoard("nothing"), [{"loss": 1.0}])
    assert not Path("nothing").exists()


def test_a_kernel_picture_shows_its_filters_side_by_side() -> None:
    kernel = np.stack([np.full((2, 2, 3), value, np.float32) for value in (0.0, 1.0, 0.5)], axis=-1)
    image = _filters(kernel, zoom=1)
    assert image.shape == (6, 6, 3)  # two rows of two, each with a border
    assert [image[0, 0, 0], image[0, 3, 0], image[3, 0, 0], image[3, 3, 0]] == [0, 255, 127, 0]
    assert _filters(np.zeros((3, 3, 1, 5), np.float32)).max() == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: TensorBoard(histogram_freq=-1),
        lambda: TensorBoard(histogram_freq=True),
        lambda: TensorBoard(write_images=True),
        lambda: TensorBoard(update_freq="step"),
        lambda: TensorBoard(update_freq=0),
        lambda: TensorBoard(confusion_matrix=np.zeros(3)),  # type: ignore[arg-type]
    ],
)
def test_invalid_values_raise(make: Callable[[], TensorBoard]) -> None:
    with pytest.raises(CallbackError, match=r"Expected|Pass histogram_freq"):
        make()


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(MissingPackageError, match=r'TensorBoard needs .* pip install "resfit\[tensorboard\]"'):
        TensorBoard()
