"""The Fashion-MNIST recipe runs as for a new user, learns learnable images only, and reports its measurements."""

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from flax import nnx

from tests.recipes.fashion import load, percent, run, say, write

CHANCE = 0.1


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return load("fashion_mnist")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("learnable"), learnable=True)


@pytest.mark.parametrize(
    ("learnable", "arguments", "part", "least", "most"),
    [
        pytest.param(True, ["--seeds", "2"], "test", 0.5, 1.0, marks=pytest.mark.slow),
        pytest.param(False, [], "test", 0.0, 2 * CHANCE, marks=pytest.mark.exhaustive),
        # Held-out labels without information do not predict held-out images, as for the test set.
        pytest.param(False, ["--validate"], "validation", 0.0, 2 * CHANCE, marks=pytest.mark.exhaustive),
    ],
)
def test_it_learns_learnable_images_only_and_saves_the_reported_values(
    learnable: bool, arguments: list[str], part: str, least: float, most: float, tmp_path: Path
) -> None:
    output = tmp_path / "a" / "results.json"
    folder = write(tmp_path, learnable=learnable)
    text = run(
        "fashion_mnist.py", "--fast", "--images", "2560", *arguments, "--data", str(folder), "--output", str(output)
    )
    saved = json.loads(output.read_text())
    seeds = 2 if arguments == ["--seeds", "2"] else 1
    assert (saved["images"], saved["part"], len(saved["runs"])) == (2560, part, seeds)
    for seed, measured in enumerate(saved["runs"]):
        assert least <= measured["accuracy"] <= most
        assert least <= measured["accuracy_with_mirror_images"] <= most
        assert percent(rf"Seed {seed}: {part} accuracy (\d+\.\d+)%", text) == pytest.approx(
            100 * measured["accuracy"], abs=0.006
        )
        assert measured["cpu_minutes"] > 0
    mean = 100 * np.mean([measured["accuracy"] for measured in saved["runs"]])
    assert percent(r"(\d+\.\d+)% mean", text) == pytest.approx(mean, abs=0.006)
    assert f"on {5000 if part == 'validation' else 10_000} images" in text


def test_mirror_images_are_averaged_with_the_originals(recipe: ModuleType) -> None:
    class Left:
        """Predict class 0 if the left half is the brighter one, else class 1. Bright pixels count twice."""

        def predict(self, x: np.ndarray, batch_size: int, verbose: int) -> np.ndarray:
            difference = x[:, :, :14].sum(axis=(1, 2, 3)) - 2.0 * x[:, :, 14:].sum(axis=(1, 2, 3))
            return np.stack([difference, 0 * difference], axis=1)

    x = np.zeros((2, 28, 28, 1))
    x[0, :, 0], x[1, :, 27] = 1, 1  # bright on the left only; bright on the right only
    # Without its mirror image, the first is of class 0 (+28 against 0). With it, the first is not (+28 - 56).
    measured = recipe.score(Left(), x, np.array([0, 1]))
    assert measured == {"accuracy": 1.0, "accuracy_with_mirror_images": 0.5}


def test_muon_trains_every_convolution_and_nothing_else(recipe: ModuleType) -> None:
    net = nnx.eval_shape(lambda: recipe.SmallResNet(rngs=nnx.Rngs(0)))
    params = nnx.to_pure_dict(nnx.state(net, nnx.Param))
    state = nnx.eval_shape(recipe.muon(0.02).init, params)
    kernels = {path for path, leaf in nnx.to_flat_state(nnx.state(net, nnx.Param)) if len(leaf.shape) == 4}
    momenta = state.inner_states["muon"].inner_state[0].mu
    trained = {path for path, leaf in nnx.traversals.flatten_mapping(momenta).items() if hasattr(leaf, "shape")}
    assert trained == kernels
    assert len(kernels) == 12  # one in the stem, two in each of four blocks, one in each of three projections


@pytest.mark.parametrize("wrong", [["--seeds", "0"], ["--images", "127"]])
def test_invalid_arguments_raise(wrong: list[str], recipe: ModuleType, folder: Path) -> None:
    assert " ".join(wrong) in say(recipe, *wrong, "--data", str(folder), status=2)
