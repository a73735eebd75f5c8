"""The clock of a run counts on after a stop, and lines are found by their values."""

import csv
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import resfit
from tests.recipes.fashion import load


@pytest.fixture(scope="module")
def runs() -> ModuleType:
    return load("runs")


def test_minutes_are_those_of_all_processes_of_a_run(runs: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0, 0.0]
    monkeypatch.setattr(runs, "_now", lambda: runs.np.array(now))
    first = runs.Elapsed()
    now[:] = 90, 30
    state = first.state_dict()
    now[:] = 1000, 500  # another process, much later
    second = runs.Elapsed()
    second.load_state_dict(state)
    now[:] = 1030, 510
    assert second.minutes() == {"minutes": 2.0, "cpu_minutes": 0.67}
    assert first.minutes()["minutes"] == 17.17


def test_lines_are_found_by_their_values(runs: ModuleType) -> None:
    folder, seen = Path("results"), []
    assert runs.find_results(folder, "a.py", seed=0) == []
    for recipe, seed in (("x", 0), ("y, z", 0), ("x", 1)):
        run = {"recipe": recipe, "network": "b", "data": "c", "seed": seed, "epochs": 1, "minutes": 1.0}
        runs.write_results(folder, "a.py", {"last epoch": 0.5}, **run)
        seen.append((recipe, str(seed)))
    assert [(row["recipe"], row["seed"]) for row in runs.find_results(folder, "recipes/a.py")] == seen
    assert [row["recipe"] for row in runs.find_results(folder, "a.py", recipe="y, z")] == ["y, z"]
    assert [row["seed"] for row in runs.find_results(folder, "a.py", recipe="x")] == ["0", "1"]
    assert runs.find_results(folder, "a.py", recipe="x", seed=2) == []
    Path("results/b.csv").write_text("recipe,seed\nx,0\n")
    with pytest.raises(ValueError, match="has the columns 'recipe,seed'"):
        runs.find_results(folder, "b.py", network="x")


def run_of(epochs: int, loss: float) -> tuple[resfit.Model, dict[str, Any]]:
    model = resfit.Model(resfit.create_model("resnet20", num_classes=2, depths=(1,), widths=(4,)))
    model.history = resfit.callbacks.History()
    model.history.history["loss"] = [loss] * epochs
    return model, {"recipe": "a", "network": "b", "data": "c, d", "seed": 0, "epochs": epochs}


def test_a_run_that_was_killed_while_it_wrote_its_lines_writes_them_once(runs: ModuleType) -> None:
    for epochs, loss in ((2, 0.5), (3, 1.0), (2, 0.25)):  # the curve of 2 epochs is there, its results are not
        model, run = run_of(epochs, loss)
        runs._write_curve(Path("curves/a.csv"), model, run)
    with Path("curves/a.csv").open(newline="") as file:
        found = [(row["epochs"], row["epoch"], row["loss"]) for row in csv.DictReader(file)]
    assert found == [*[("3", str(i), "1") for i in (1, 2, 3)], *[("2", str(i), "0.25") for i in (1, 2)]]
    model, run = run_of(2, 0.25)
    for _ in range(2):  # two processes with one run
        runs.record(Path(), "a.py", model, Path(), {"last epoch": 0.5, "ema": 0.75}, **run, minutes=1.0)
    assert [row["evaluation"] for row in runs.find_results(Path(), "a.py", **run)] == ["last epoch", "ema"]


@pytest.mark.parametrize(
    ("changes", "precision", "label"),
    [
        ({}, "auto", "rsb-a3"),
        ({"epochs": 7}, "auto", "rsb-a3"),
        ({"batch_size": 64, "test_crop": 0.9}, "bfloat16", "rsb-a3, batch size 64, test crop 0.9, bfloat16"),
    ],
)
def test_other_settings_have_another_name_in_the_results(
    changes: dict[str, Any], precision: str, label: str, runs: ModuleType
) -> None:
    assert runs.label(resfit.recipes.get("rsb-a3").replace(**changes), precision) == label
