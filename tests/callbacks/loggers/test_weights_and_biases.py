"""The offline files of the real wandb package contain the values that WeightsAndBiases logs."""

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flax import nnx

from resfit.callbacks import WeightsAndBiases
from resfit.errors import CallbackError, MissingPackageError
from tests.callbacks.fakes import FakeModel, batch, begin, counting_reads, play
from tests.helpers import PlainNet, compiled, fit, images, labels
from tests.packages import package


class FakeRun:
    """A run that stores the logged values."""

    def __init__(self) -> None:
        self.logged: list[dict[str, float]] = []
        self.axes: dict[str, str] = {}

    def define_metric(self, name: str, step_metric: str) -> None:
        self.axes[name] = step_metric

    def log(self, values: dict[str, float]) -> None:
        self.logged.append(values)


def test_epochs_and_batches_are_logged_over_separate_axes() -> None:
    run = FakeRun()
    callback = WeightsAndBiases(run, every=2)
    begin(callback, FakeModel(0.5))
    for epoch in range(2):
        callback.on_epoch_begin(epoch, {})
        for i in range(3):
            callback.on_train_batch_end(i, batch(epoch + i / 4))
        callback.on_epoch_end(epoch, {"loss": 1.0, "val_loss": 2.0})
    callback.on_train_end({})
    speeds = [entry.pop("epoch/images_per_second") for entry in run.logged if "epoch/loss" in entry]
    assert min(speeds) > 0
    summary = {"epoch/loss": 1.0, "epoch/val_loss": 2.0, "epoch/learning_rate": 0.5, "epoch/data_wait": 0.0}
    assert run.logged == [
        {"batch/loss": 0.25, "batch/step": 2}, {**summary, "epoch/epoch": 0},
        {"batch/loss": 1.0, "batch/step": 4}, {"batch/loss": 1.5, "batch/step": 6}, {**summary, "epoch/epoch": 1},
    ]  # fmt: skip
    assert run.axes == {"epoch/*": "epoch/epoch", "batch/*": "batch/step"}


def test_a_resumed_run_continues_the_step_count() -> None:
    first, run = WeightsAndBiases(FakeRun(), every=1), FakeRun()
    begin(first)
    for i in range(5):
        first.on_train_batch_end(i, batch(1.0))
    second = WeightsAndBiases(run, every=1)
    begin(second)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    second.on_train_batch_end(5, batch(1.0))
    assert run.logged == [{"batch/loss": 1.0, "batch/step": 6}]


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingPackageError, match=r"WeightsAndBiases needs .* pip install wandb"):
        begin(WeightsAndBiases())


def test_without_a_run_the_error_says_how_to_start_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Package:
        run = None

    monkeypatch.setitem(sys.modules, "wandb", Package)  # type: ignore[arg-type]
    with pytest.raises(CallbackError, match=r"Call wandb\.init"):
        begin(WeightsAndBiases())


def test_only_the_first_process_needs_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jax.process_index", lambda: 1)
    play(WeightsAndBiases(), [{"loss": 1.0}])


# --- the real package -------------------------------------------------------------------------------------------------


def logged(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of an offline run.

    After 7 bytes, each record has a checksum (4 bytes), a length (2), a kind (1) and its content.
    All records are in the first block of 32 KiB: a record is split only at the end of a block.
    """
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.rglob("*.wandb")
    content = file.read_bytes()
    assert len(content) < 32768
    at = 7
    while at < len(content):
        _, length, _ = struct.unpack("<IHB", content[at : at + 7])
        record = wandb_internal_pb2.Record.FromString(content[at + 7 : at + 7 + length])
        at += 7 + length
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            yield {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


@pytest.mark.originals
def test_the_real_package_writes_the_run_to_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wandb = package("wandb")
    reads = counting_reads(monkeypatch)
    settings = wandb.Settings(silent=True, console="off", x_disable_stats=True, x_disable_meta=True)
    run = wandb.init(mode="offline", dir=tmp_path, project="test", settings=settings)
    try:
        history = fit(
            compiled(PlainNet(rngs=nnx.Rngs(0))),
            epochs=2,
            validation_data=(images(9), labels(9)),
            callbacks=[WeightsAndBiases(every=3)],  # finds the active run
        )
    finally:
        run.finish()
        wandb.teardown()  # waits until its process has written everything
    assert reads.reads == 2
    entries = list(logged(tmp_path))
    epochs = [entry for entry in entries if "epoch/epoch" in entry]
    assert [entry["epoch/epoch"] for entry in epochs] == [0, 1]
    for name, values in history.history.items():
        assert [entry[f"epoch/{name}"] for entry in epochs] == values
    assert [entry["batch/step"] for entry in entries if "batch/step" in entry] == [3, 6]
