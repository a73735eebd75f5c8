"""The depth recipe trains both kinds of network from the same initial values on the same images, and plots them."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from tests.recipes.fashion import PNG, load, percent, run, say, write


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return load("depth")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("learnable"), learnable=True)


def parameters(net: nnx.Module) -> dict[tuple, np.ndarray]:
    return {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(nnx.state(net, nnx.Param))}


def test_both_kinds_have_the_same_parameters_except_the_last_scales_of_the_blocks(recipe: ModuleType) -> None:
    plain, residual = (parameters(recipe.build(kind, 8, seed=3)) for kind in ("plain", "residual"))
    assert list(plain) == list(residual)
    for path, values in plain.items():
        if path[-2:] == ("norm2", "scale"):
            assert np.all(values == 1)
            assert np.all(residual[path] == 0)
        else:
            np.testing.assert_array_equal(values, residual[path])


def test_another_seed_gives_another_network(recipe: ModuleType) -> None:
    first, second = (parameters(recipe.build("plain", 8, seed)) for seed in (0, 1))
    assert any(not np.array_equal(first[path], second[path]) for path in first)


@pytest.mark.parametrize(
    "depth", [20, pytest.param(56, marks=pytest.mark.slow), pytest.param(110, marks=pytest.mark.slow)]
)
def test_a_network_has_the_number_of_layers_in_its_name(recipe: ModuleType, depth: int) -> None:
    net = nnx.eval_shape(lambda: recipe.build("plain", depth, 0))
    kernels = [leaf for path, leaf in nnx.to_flat_state(nnx.state(net, nnx.Param)) if path[-1] == "kernel"]
    assert len(kernels) == depth


def test_the_plain_network_is_the_residual_one_without_additions(recipe: ModuleType) -> None:
    plain, residual = recipe.build("plain", 8, 0), recipe.build("residual", 8, 0)
    nnx.update(residual, nnx.state(plain))
    x = np.random.default_rng(0).normal(size=(2, 14, 14, 1)).astype(np.float32)

    @nnx.jit
    def outputs(plain: Any, residual: Any) -> tuple[jax.Array, ...]:
        h = residual.stem(x)
        for stage in residual.stages:
            for block in stage.blocks:
                h = nnx.relu(block.branch(h))
        return plain(x), residual(x), residual.head(h)

    of_plain, of_residual, without_additions = outputs(plain, residual)
    assert not np.allclose(of_plain, of_residual)
    np.testing.assert_allclose(of_plain, without_additions, rtol=1e-6)


def test_images_are_reduced_by_averaging_and_standardized(recipe: ModuleType, folder: Path) -> None:
    x, y = recipe.data(folder, 300)
    (images, labels), _ = recipe.resfit.data.load("fashion_mnist", path=folder)
    means = np.array([[images[7, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean() for j in range(14)] for i in range(14)])
    assert x.shape == (300, 14, 14, 1)
    np.testing.assert_allclose([x.mean(), x.std()], [0, 1], atol=1e-5)
    np.testing.assert_allclose(np.corrcoef(x[7].ravel(), means.ravel())[0, 1], 1, rtol=1e-5)
    np.testing.assert_array_equal(y, labels[:300])


@pytest.mark.slow
def test_it_measures_two_kinds_at_two_depths_with_two_seeds_and_plots_them(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "a" / "depth.json"
    arguments = ["--depths", "8", "14", "--seeds", "2", "--epochs", "8", "--images", "640"]
    text = run("depth.py", *arguments, "--data", str(folder), "--output", str(output))
    assert output.with_suffix(".png").read_bytes().startswith(PNG)
    saved = json.loads(output.read_text())
    assert (saved["images"], saved["epochs"]) == (640, 8)
    errors = saved["training_error"]
    curves = {(kind, depth): np.array(errors[kind][depth]) for kind in ("plain", "residual") for depth in ("8", "14")}
    for (kind, depth), curve in curves.items():
        assert curve.shape == (2, 8)
        assert not np.array_equal(curve[0], curve[1]), "two seeds, one run"
        # Ten classes: chance is 90 %.
        assert curve[:, -1].max() < 0.6 < curve[:, 0].min()
        assert percent(rf"(\d+\.\d+)%  {kind}-{depth},", text) == pytest.approx(100 * curve[:, -1].mean(), abs=0.006)


@pytest.mark.exhaustive
def test_images_without_information_are_not_learned(recipe: ModuleType, tmp_path: Path) -> None:
    x, y = recipe.data(write(tmp_path, learnable=False), 640)
    assert recipe.train(recipe.build("residual", 8, 0), x, y, epochs=8, seed=0)[-1] > 0.6


@pytest.mark.parametrize("wrong", [["--seeds", "0"], ["--images", "127"], ["--depths", "8", "21"], ["--depths", "2"]])
def test_invalid_arguments_raise(wrong: list[str], recipe: ModuleType) -> None:
    assert " ".join(wrong) in say(recipe, *wrong, status=2)
