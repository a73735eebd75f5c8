"""The digits recipe runs in a separate process as for a new user, and reaches the accuracy that it states."""

import csv
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from safetensors import safe_open

from resfit import Ensemble
from resfit.nets import ResNetSpec
from tests.recipes.fashion import PNG, load, percent, run, say


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return load("digits")


def test_help_describes_the_recipe_its_cost_and_its_result(recipe: ModuleType) -> None:
    text = say(recipe, "--help", status=0)
    for said in ("--seeds", "--epochs", "--split", "--out", "cores", "seconds", "SVM"):
        assert said in text
    assert percent(r"(\d+\.\d+) %", text) >= 99.0


@pytest.mark.parametrize("other", [("--split", "0"), ("--split", "1"), ("--seeds", "2")])
def test_splits_exclude_the_arguments_that_they_replace(
    recipe: ModuleType, tmp_path: Path, other: tuple[str, str]
) -> None:
    text = say(recipe, "--splits", "1", *other, "--results", str(tmp_path), "--out", str(tmp_path), status=2)
    assert other[0] in text
    assert list(tmp_path.iterdir()) == []


THIN = "thin, in this process"


@pytest.fixture(scope="module", params=[THIN, pytest.param("as a newcomer runs it", marks=pytest.mark.slow)])
def short_run(
    request: pytest.FixtureRequest, recipe: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, bool]:
    """Return the output of four epochs, their folder, and True for the unchanged network of the recipe."""
    out = tmp_path_factory.mktemp("digits") / "a" / "b"
    arguments = ("--epochs", "4", "--out", str(out))
    if request.param != THIN:
        return run("digits.py", *arguments), out, True
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(
            recipe, "ResNetSpec", lambda **spec: ResNetSpec(**spec | {"depths": (1, 1), "widths": (4, 8)})
        )
        return say(recipe, *arguments), out, False


def test_it_writes_three_plots_and_one_model(short_run: tuple[str, Path, bool]) -> None:
    _, out, whole = short_run
    assert {path.name for path in out.iterdir()} == {
        "confusion_matrix.png",
        "curves.png",
        "mistakes.png",
        "model.safetensors",
    }
    assert all(path.read_bytes().startswith(PNG) for path in out.glob("*.png"))
    with safe_open(out / "model.safetensors", framework="numpy") as file:
        sizes = {name: file.get_tensor(name).size for name in file.keys()}  # noqa: SIM118
    assert (sum(sizes.values()) > 100_000) == whole


def test_it_prints_the_network_the_epochs_and_both_baselines(short_run: tuple[str, Path, bool]) -> None:
    text, *_ = short_run
    for said in ("stage2", "\n  1/4 ", "\n  4/4 ", "val_accuracy"):
        assert said in text
    # scikit-learn's results on this split: 4 and 5 mistakes among 360.
    assert percent(r"(\d+\.\d+)%  SVC", text) == 98.89
    assert percent(r"(\d+\.\d+)%  KNeighborsClassifier", text) == 98.61


def test_the_reloaded_model_has_the_accuracy_of_the_trained_one(short_run: tuple[str, Path, bool]) -> None:
    text, _, whole = short_run
    trained = percent(r"Seed 0: test accuracy (\d+\.\d+)%", text)
    assert percent(r"loaded again: test accuracy (\d+\.\d+)%", text) == trained
    # Ten classes: after four epochs the model is not good, but far better than chance.
    assert trained > (50 if whole else 10)


@pytest.mark.slow
def test_several_seeds_print_mean_and_standard_error(recipe: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "ResNetSpec", lambda **spec: ResNetSpec(**spec | {"depths": (1,), "widths": (4,)}))
    made: list[Ensemble] = []
    monkeypatch.setattr(recipe.resfit, "Ensemble", lambda *given: made.append(Ensemble(*given)) or made[0])
    text = say(recipe, "--seeds", "2", "--epochs", "1")
    scores = np.array(made[0].history.history["val_accuracy"][-1])  # type: ignore[union-attr]
    assert made[0].seeds == [0, 1]
    mean, error = percent(r"(\d+\.\d+)%  ResNet-10", text), percent(r"ResNet-10 ± (\d+\.\d+)%", text)
    assert mean == pytest.approx(100 * scores.mean(), abs=0.006)
    assert error == pytest.approx(50 * abs(scores[0] - scores[1]), abs=0.006)
    assert percent(r"Seed 0 saved .* test accuracy (\d+\.\d+)%", text) == pytest.approx(100 * scores[0], abs=0.006)


@pytest.mark.slow
def test_each_split_is_trained_once_and_its_line_is_kept(recipe: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "ResNetSpec", lambda **spec: ResNetSpec(**spec | {"depths": (1, 1), "widths": (4, 8)}))
    text = say(recipe, "--splits", "2", "--epochs", "2")
    with Path("results/digits.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["seed"] for line in lines] == ["0", "1"]
    for split, line in enumerate(lines):
        found = percent(rf"Split {split}: test accuracy (\d+\.\d+)%", text)
        assert found == pytest.approx(100 * float(line["accuracy"]), abs=0.006)
    curves = Path("results/curves/digits.csv").read_text().splitlines()
    assert len(curves) == 1 + 2 * 2
    assert curves[1].count(",,") == 0, "the curve of the held-out images"
    again = say(recipe, "--splits", "2", "--epochs", "2")
    assert "/2 " not in again
    assert again.splitlines()[-1] == text.splitlines()[-1]


def test_no_splits_raise(recipe: ModuleType) -> None:
    assert "--splits 0" in say(recipe, "--splits", "0", status=2)


@pytest.mark.exhaustive
@pytest.mark.optimized  # its steps cost more than compiling them
def test_one_full_seed_reaches_an_accuracy_of_985_in_1000(tmp_path: Path) -> None:
    text = run("digits.py", "--out", str(tmp_path))
    accuracy = percent(r"Seed 0: test accuracy (\d+\.\d+)%", text)
    assert accuracy >= 98.5
    assert percent(r"loaded again: test accuracy (\d+\.\d+)%", text) == accuracy
