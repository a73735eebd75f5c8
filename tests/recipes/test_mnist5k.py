"""The MNIST-5k recipe holds every image out once, and writes one line for each fold."""

import csv
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import resfit
from tests.recipes.fashion import load, percent, say


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the recipe with a thin network and numbered images of 8 x 8 pixels, 500 of each digit in any order."""
    module, create_model = load("mnist5k"), resfit.create_model
    x = np.zeros((5000, 8, 8, 1), np.float32)
    x[:, 0, 0, 0] = np.arange(5000)
    y = np.random.default_rng(0).permutation(np.arange(5000) % 10)
    monkeypatch.setattr(module.resfit.data, "load", lambda name: ((x[:4000], y[:4000]), (x[4000:], y[4000:])))
    thin = {"depths": (1,), "widths": (4,)}
    monkeypatch.setattr(module.resfit, "create_model", lambda name, **given: create_model(name, **given | thin))
    return module


def test_every_image_is_held_out_once_and_every_fold_has_each_digit_equally(recipe: ModuleType) -> None:
    held_out = []
    for number in range(recipe.FOLDS):
        (x, _), (x_test, y_test) = recipe.fold(number)
        assert np.bincount(y_test).tolist() == [100] * 10
        assert set(x[:, 0, 0, 0]) | set(x_test[:, 0, 0, 0]) == set(range(5000))
        held_out.append(x_test[:, 0, 0, 0])
    assert sorted(np.concatenate(held_out)) == list(range(5000))


def test_each_fold_is_trained_once(recipe: ModuleType) -> None:
    text = say(recipe, "--folds", "1", "--epochs", "1")
    with Path("results/mnist5k.csv").open(newline="") as file:
        (line,) = csv.DictReader(file)
    assert (line["seed"], line["evaluation"], line["epochs"]) == ("0", "last epoch", "1")
    assert percent(r"Fold 0: accuracy (\d+\.\d+)%", text) == pytest.approx(100 * float(line["accuracy"]), abs=0.006)
    assert "1/1 " in text
    assert "1/1 " not in say(recipe, "--folds", "1", "--epochs", "1")


@pytest.mark.parametrize("wrong", [("--folds", "0"), ("--folds", "6"), ("--epochs", "0")])
def test_invalid_arguments_raise(wrong: tuple[str, str], recipe: ModuleType) -> None:
    assert " ".join(wrong) in say(recipe, *wrong, status=2)
