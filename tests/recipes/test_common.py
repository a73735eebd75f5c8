"""Each run of a recipe leaves one line of CSV."""

import csv
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import pytest

import resfit
from tests.recipes.fashion import load

RUN: dict[str, Any] = {
    "recipe": "rsb-a3", "network": "resnet50", "data": "digits, test", "seed": 1, "epochs": 3,
    "minutes": 0.5, "cpu_minutes": 0.7,
}  # fmt: skip
SHARES = {"last epoch": 0.98765, "ema": 0.5}


@pytest.fixture(scope="module")
def common() -> ModuleType:
    return load("common")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_run_appends_a_line(common: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/anywhere/imagenet.py", "--data", "two words"])
    for seed in (1, 2):
        path = common.write_results(Path("a/results"), "/anywhere/imagenet.py", SHARES, **RUN | {"seed": seed})
    assert path == Path("a/results/imagenet.csv")
    first, ema, second, _ = rows(path)
    assert ema == first | {"evaluation": "ema", "accuracy": "0.5000"}
    assert {name: first[name] for name in RUN} == {name: str(value) for name, value in RUN.items()}
    assert first["accuracy"] == "0.9877"
    assert second == first | {"seed": "2"}
    assert first["command"] == "python recipes/imagenet.py --data 'two words'"
    assert first["evaluation"] == "last epoch"
    assert re.search(rf" cores?, jax {re.escape(jax.__version__)}$", first["machine"])
    assert list(first) == list(common.COLUMNS)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (resfit.errors.DataError("no images"), "DataError: no images"),
        (FileNotFoundError("no weights"), "FileNotFoundError: no weights"),
        (KeyboardInterrupt(), "130"),
    ],
)
def test_expected_errors_end_a_recipe_with_their_message(error: BaseException, said: str, common: ModuleType) -> None:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit, match=said):
        common.start(main)


def test_other_errors_of_a_recipe_keep_their_traceback(common: ModuleType) -> None:
    with pytest.raises(ZeroDivisionError):
        common.start(lambda: 1 / 0)


@pytest.mark.parametrize("accuracy", [98.7, -0.1, float("nan")])
def test_an_accuracy_that_is_no_share_raises(accuracy: float, common: ModuleType) -> None:
    with pytest.raises(ValueError, match="Expected a share"):
        common.write_results(Path("results"), "imagenet.py", {"last epoch": 0.5, "ema": accuracy}, **RUN)
    assert not Path("results").exists()


def test_a_file_with_other_columns_raises_and_stays(common: ModuleType) -> None:
    Path("imagenet.csv").write_text("recipe,accuracy\na,0.1\n")
    with pytest.raises(ValueError, match="Move the file away"):
        common.write_results(Path(), "imagenet.py", SHARES, **RUN)
    assert Path("imagenet.csv").read_text() == "recipe,accuracy\na,0.1\n"


@pytest.mark.parametrize("before", ["", "without the last line break"])
def test_lines_are_kept_whole_in_an_empty_file_and_after_an_editor(before: str, common: ModuleType) -> None:
    path = Path("imagenet.csv")
    path.write_text("")
    if before:
        common.write_results(Path(), "imagenet.py", SHARES, **RUN)
        path.write_text(path.read_text().rstrip("\n"))
    common.write_results(Path(), "imagenet.py", SHARES, **RUN)
    assert [row["evaluation"] for row in rows(path)] == ["last epoch", "ema"] * (2 if before else 1)


def test_a_folder_that_cannot_be_written_exits_before_the_training(common: ModuleType) -> None:
    Path("file").write_text("")
    common.require_writable(common.argparse.ArgumentParser(), Path("new/folder"), Path())
    assert not Path("new").exists()
    with pytest.raises(SystemExit):
        common.require_writable(common.argparse.ArgumentParser(), Path("file/results"))


@pytest.mark.parametrize(
    ("error", "code"),
    [(resfit.errors.DataError("no images"), "DataError: no images"), (KeyboardInterrupt(), 130)],
)
def test_a_recipe_ends_with_the_message_of_an_error(error: BaseException, code: Any, common: ModuleType) -> None:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as raised:
        common.start(main)
    assert raised.value.code == code


def test_the_commit_is_that_of_the_repository_or_the_version(
    common: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "ROOT", Path.cwd())
    assert common.commit() == f"resfit {resfit.__version__}"
    subprocess.run(["git", "init", "-q"], check=True)  # without a commit
    monkeypatch.setattr(resfit, "__file__", str(Path.cwd() / "resfit/__init__.py"))
    assert common.commit() == f"resfit {resfit.__version__}"
    monkeypatch.setattr(resfit, "__file__", "/elsewhere/resfit/__init__.py")  # a copy of the recipes
    assert common.commit() == f"resfit {resfit.__version__}"
