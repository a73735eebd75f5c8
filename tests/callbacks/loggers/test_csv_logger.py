"""The file of CSVLogger has one header and one row per epoch in every case."""

import csv
import json
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from resfit.callbacks import CSVLogger
from resfit.errors import CallbackError
from tests.callbacks.fakes import begin, play
from tests.helpers import PlainNet, compiled, fit, images, labels

EPOCHS = [{"loss": 2.0, "accuracy": 0.5}, {"loss": 1.0, "accuracy": 0.75}]


def lines(path: str = "log.csv") -> list[str]:
    return Path(path).read_text().splitlines()


def test_one_row_per_epoch_under_a_header_of_sorted_names() -> None:
    play(CSVLogger("runs/a/log.csv"), EPOCHS)
    assert lines("runs/a/log.csv") == ["epoch,accuracy,loss", "0,0.5,2.0", "1,0.75,1.0"]
    assert [path.name for path in Path("runs/a").iterdir()] == ["log.csv"]


def test_separator_is_honoured() -> None:
    play(CSVLogger("log.csv", separator=";"), EPOCHS)
    assert lines()[:2] == ["epoch;accuracy;loss", "0;0.5;2.0"]


def test_append_never_repeats_the_header_with_one_object_or_two() -> None:
    play(CSVLogger("log.csv"), EPOCHS)
    callback = CSVLogger("log.csv", append=True)
    play(callback, EPOCHS, first=2)
    play(callback, EPOCHS, first=4)
    assert [line.split(",")[0] for line in lines()] == ["epoch", *"012345"]


def test_without_append_every_fit_starts_a_new_file() -> None:
    callback = CSVLogger("log.csv")
    for _ in range(2):
        play(callback, EPOCHS)
        assert len(lines()) == 3


def test_append_starts_a_missing_or_empty_file() -> None:
    Path("empty.csv").touch()
    for path in ("new.csv", "empty.csv"):
        play(CSVLogger(path, append=True), EPOCHS)
        assert lines(path) == ["epoch,accuracy,loss", "0,0.5,2.0", "1,0.75,1.0"]


def test_a_name_that_appears_later_gets_a_column_with_na_in_earlier_rows() -> None:
    play(CSVLogger("log.csv"), [{"loss": 3.0}, {"loss": 2.0}, {"loss": 1.0, "val_loss": 1.5}, {"loss": 0.5}])
    assert lines() == ["epoch,loss,val_loss", "0,3.0,NA", "1,2.0,NA", "2,1.0,1.5", "3,0.5,NA"]
    play(CSVLogger("log.csv", append=True), [{"loss": 0.25, "learning_rate": 0.1}], first=4)
    assert lines()[0] == "epoch,learning_rate,loss,val_loss"
    assert lines()[-2:] == ["3,NA,0.5,NA", "4,0.1,0.25,NA"]


def test_a_run_without_validation_has_no_val_columns() -> None:
    play(CSVLogger("log.csv"), EPOCHS)
    assert "val_" not in lines()[0]


def test_nan_infinity_arrays_and_text_are_written_in_a_readable_form() -> None:
    per_class = np.asarray([0.5, 0.25])
    play(
        CSVLogger("log.csv"),
        [{"a": float("nan"), "b": float("-inf"), "c": per_class, "d": "x, y", "e": jax.numpy.ones(())}],
    )
    with Path("log.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row == {"epoch": "0", "a": "nan", "b": "-inf", "c": "[0.5, 0.25]", "d": "x, y", "e": "1.0"}


@pytest.mark.parametrize("append", [False, True])
@pytest.mark.parametrize("saved", range(4))
def test_a_resumed_run_writes_the_same_file_as_an_uninterrupted_run(saved: int, append: bool) -> None:
    """The run is killed one epoch after its checkpoint. The row of that epoch and its new column appear once."""
    epochs = [{"loss": 4.0}, {"loss": 3.0}, {"loss": 2.0, "val_loss": 2.5}, {"loss": 1.0}]
    Path("log.csv").write_text("epoch,loss\n7,7.0\n")
    play(CSVLogger("log.csv", append=append), epochs)
    whole = lines()

    Path("log.csv").write_text("epoch,loss\n7,7.0\n")
    killed = CSVLogger("log.csv", append=append)
    begin(killed)
    state: dict[str, Any] = {}
    for i, logs in enumerate(epochs[: saved + 1]):
        if i == saved:
            state = json.loads(json.dumps(killed.state_dict()))
        killed.on_epoch_end(i, dict(logs))
    resumed = CSVLogger("log.csv", append=append)
    begin(resumed)
    resumed.load_state_dict(state)
    for i, logs in enumerate(epochs[saved:], saved):
        resumed.on_epoch_end(i, dict(logs))
    assert lines() == whole


def test_a_resumed_run_warns_about_a_missing_file_and_continues(caplog: pytest.LogCaptureFixture) -> None:
    callback = CSVLogger("log.csv")
    begin(callback)
    callback.load_state_dict({"rows": 5})
    with caplog.at_level(logging.WARNING, "resfit"):
        callback.on_epoch_end(5, {"loss": 1.0})
    assert "has 0 rows, but the resumed run wrote 5" in caplog.text
    assert lines() == ["epoch,loss", "5,1.0"]


def test_only_the_first_process_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    play(CSVLogger("log.csv"), EPOCHS)
    assert not Path("log.csv").exists()


@pytest.mark.parametrize("separator", ["", ", ", 7])
def test_a_separator_that_is_not_one_character_raises(separator: Any) -> None:
    with pytest.raises(CallbackError, match="one character"):
        CSVLogger("log.csv", separator)


def test_the_rows_of_a_fit_equal_its_history() -> None:
    callback = CSVLogger("log.csv")
    history = fit(
        compiled(PlainNet(rngs=nnx.Rngs(0))), epochs=3, validation_data=(images(9), labels(9)), validation_freq=3,
        callbacks=[callback],
    )  # fmt: skip
    with Path("log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == history.epoch
    for name, values in history.history.items():
        assert [float(row[name]) for row in rows if row[name] != "NA"] == values


def test_a_user_file_beside_the_log_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "log.csv.new").write_text("mine")
    play(CSVLogger(tmp_path / "log.csv"), [{"loss": 2.0}, {"loss": 1.0}])
    assert (tmp_path / "log.csv.new").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 2
