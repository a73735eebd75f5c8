"""Each run of a recipe leaves one line of CSV."""

import csv
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import pytest

from tests.recipes.fashion import load

RUN: dict[str, Any] = {
    "recipe": "rsb-a3", "network": "resnet50", "data": "digits, test", "seed": 1, "accuracy": 0.98765, "epochs": 3,
    "minutes": 0.5, "cpu_minutes": 0.7,
}  # fmt: skip


@pytest.fixture(scope="module")
def common() -> ModuleType:
    return load("common")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_run_appends_a_line(common: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/anywhere/imagenet.py", "--data", "two words"])
    for seed in (1, 2):
        path = common.write_result(Path("a/results"), "/anywhere/imagenet.py", **RUN | {"seed": seed})
    assert path == Path("a/results/imagenet.csv")
    first, second = rows(path)
    assert {name: first[name] for name in RUN} == {name: str(value) for name, value in RUN.items()} | {
        "accuracy": "0.9877"
    }
    assert second == first | {"seed": "2"}
    assert first["command"] == "python recipes/imagenet.py --data 'two words'"
    assert first["evaluation"] == "last epoch"
    assert f"cores, jax {jax.__version__}" in first["machine"]
    assert list(first) == list(common.COLUMNS)


@pytest.mark.parametrize("accuracy", [98.7, -0.1, float("nan")])
def test_an_accuracy_that_is_no_share_raises(accuracy: float, common: ModuleType) -> None:
    with pytest.raises(ValueError, match="Expected a share"):
        common.write_result(Path("results"), "imagenet.py", **RUN | {"accuracy": accuracy})
    assert not Path("results").exists()


def test_a_file_with_other_columns_raises_and_stays(common: ModuleType) -> None:
    Path("imagenet.csv").write_text("recipe,accuracy\na,0.1\n")
    with pytest.raises(ValueError, match="Move the file away"):
        common.write_result(Path(), "imagenet.py", **RUN)
    assert Path("imagenet.csv").read_text() == "recipe,accuracy\na,0.1\n"


def test_the_commit_is_that_of_the_repository_or_the_version(
    common: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    import resfit

    monkeypatch.setattr(common, "ROOT", Path.cwd())
    assert common.commit() == f"resfit {resfit.__version__}"
