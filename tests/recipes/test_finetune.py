"""The fine-tuning recipe tunes a copy of a given model on the stated examples, and compares fairly."""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import resfit
from tests.helpers import assert_same, values
from tests.recipes.fashion import load, percent, run, say


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return load("finetune")


@pytest.fixture(scope="module")
def data(recipe: ModuleType) -> Any:
    return recipe.data()


@pytest.mark.slow
def test_both_datasets_have_images_of_one_size(data: Any) -> None:
    for (x, y), (x_test, y_test) in data:
        assert x.shape[1:] == x_test.shape[1:] == (14, 14, 1)
        assert x.dtype == x_test.dtype == np.uint8
        assert set(y) == set(y_test) == set(range(10))
    (mnist, _), _ = resfit.data.load("mnist_5k")
    (digits, _), _ = resfit.data.load("digits")
    assert abs(int(data[0][0][0][3, 5, 6, 0]) - mnist[3, 10:12, 12:14, 0].mean()) < 1
    np.testing.assert_array_equal(data[1][0][0][:, 3:11, 3:11], digits)


def test_examples_are_drawn_by_class_and_the_others_are_the_remainder(recipe: ModuleType) -> None:
    (_, y), _ = resfit.data.load("digits")
    numbered = np.arange(len(y)).reshape(-1, 1)
    (chosen, labels), (others, _) = recipe.few((numbered, y), 3, seed=1)
    assert np.bincount(labels).tolist() == [3] * 10
    np.testing.assert_array_equal(labels, y[chosen[:, 0]])
    assert sorted([*chosen[:, 0], *others[:, 0]]) == list(range(len(y)))
    again, other = (recipe.few((numbered, y), 3, seed=seed)[0][0] for seed in (1, 2))
    np.testing.assert_array_equal(again, chosen)
    assert set(other[:, 0]) != set(chosen[:, 0])


@pytest.mark.slow
def test_the_backbone_is_frozen_at_first_and_the_file_does_not_change(
    recipe: ModuleType, data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.safetensors"
    resfit.Model(recipe.new_net(seed=3)).save(path)
    before, bytes_before = values(recipe.new_net(seed=3)), path.read_bytes()
    seen: list[dict[str, np.ndarray]] = []

    def accuracy(model: resfit.Model, test: Any) -> float:
        seen.append(values(model.module))
        return 0.0

    monkeypatch.setattr(recipe, "accuracy", accuracy)
    examples, _ = recipe.few(data[1][0], 3, seed=0)
    recipe.transfer(path, examples, data[1][1], epochs=1, seed=0)
    frozen, full = seen
    backbone = [name for name in before if not name.startswith("head.")]
    assert_same({name: frozen[name] for name in backbone}, {name: before[name] for name in backbone})
    assert not np.array_equal(frozen["head.dense.kernel"], before["head.dense.kernel"])
    assert all(not np.array_equal(full[name], frozen[name]) for name in backbone if name.endswith("norm.scale"))
    assert path.read_bytes() == bytes_before


@pytest.mark.slow
def test_it_compares_three_ways_and_accepts_a_file(tmp_path: Path) -> None:
    short = ["--epochs", "4", "--shots", "3", "--seeds", "2", "--out", str(tmp_path)]
    text = run("finetune.py", "--pretraining", "4", *short)
    assert percent(r"The first net: (\d+\.\d+)%", text) > 60
    for way in ("frozen backbone", "then everything", "from scratch"):
        assert percent(rf"  {way} +(\d+\.\d+) ± \d", text) > 5
    again = run("finetune.py", "--weights", str(tmp_path / "mnist.safetensors"), *short)
    assert "The first net" not in again
    both = [[line for line in said.splitlines() if "±" in line] for said in (text, again)]
    assert both[0] == both[1]
    assert "unused training" in run(
        "finetune.py", "--weights", str(tmp_path / "mnist.safetensors"), "--validate", *short
    )


def test_settings_that_train_nothing_raise(recipe: ModuleType) -> None:
    assert "at least one example" in say(recipe, "--shots", "0", status=2)
