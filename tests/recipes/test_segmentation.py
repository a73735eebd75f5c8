"""The segmentation recipe draws pictures with exact masks, trains, and writes a picture, curves and a model."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import resfit
from resfit.nets import ResNetSpec
from tests.recipes.fashion import PNG, load, percent, run, say


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return load("segmentation")


def test_help_describes_the_recipe_its_cost_and_its_result(recipe: ModuleType) -> None:
    text = say(recipe, "--help", status=0)
    for said in ("--fast", "--epochs", "--seed", "--out", "cores", "mean IoU"):
        assert said in text
    assert percent(r"(\d+\.\d+) %", text) >= 30


def test_pictures_are_drawn_from_the_seed_and_borders_have_no_class(recipe: ModuleType) -> None:
    (images, masks), again = recipe.draw(8, 3), recipe.draw(8, 3)
    np.testing.assert_array_equal(images, again[0])
    np.testing.assert_array_equal(masks, again[1])
    assert (recipe.draw(8, 4)[0] != images).any()
    assert (images.dtype, images.shape) == (np.uint8, (8, recipe.SIZE, recipe.SIZE, 3))
    assert set(np.unique(masks)) == {0, 1, 2, 3, recipe.IGNORED}
    # Two classes never touch: the border between them is ignored.
    for axis in (1, 2):
        before, after = (np.take(masks, range(i, recipe.SIZE - 1 + i), axis=axis).astype(int) for i in (0, 1))
        touching = (before != after) & (before != recipe.IGNORED) & (after != recipe.IGNORED)
        assert not touching.any()


@pytest.mark.slow
def test_a_thin_run_prints_progress_and_mean_iou_and_writes_its_files(
    recipe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    thin = ResNetSpec(depths=(1, 1), widths=(4, 8), stem="cifar", output_stride=2)
    monkeypatch.setattr(recipe, "SPEC", thin)
    monkeypatch.setattr(recipe, "SIZE", 16)
    out = tmp_path / "a" / "b"
    text = say(recipe, "--fast", "--epochs", "2", "--out", str(out))
    for said in ("\n  1/2 ", "\n  2/2 ", "val_mean_iou", "triangle"):
        assert said in text
    assert {path.name for path in out.iterdir()} == {"predictions.png", "curves.png", "model.npz"}
    assert all(path.read_bytes().startswith(PNG) for path in out.glob("*.png"))
    # The table, written from predictions, agrees with the metric.
    of_classes = [percent(rf"(\d+\.\d+)%  {name}", text) for name in recipe.CLASSES]
    assert percent(r"(\d+\.\d+)%  mean IoU", text) == pytest.approx(np.mean(of_classes), abs=0.01)
    images, _ = recipe.draw(3, 0)
    masks = resfit.load_exported(out / "model.npz").predict(images)
    assert masks.shape == images.shape[:3]


@pytest.mark.exhaustive
@pytest.mark.optimized  # its steps cost more than compiling them
def test_a_full_run_reaches_the_stated_mean_iou(tmp_path: Path) -> None:
    text = run("segmentation.py", "--out", str(tmp_path))
    assert percent(r"(\d+\.\d+)%  mean IoU", text) >= 60
