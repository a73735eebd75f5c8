"""The Fashion-MNIST recipe runs as for a new user, learns learnable images only, and reports its measurements."""

import csv
import dataclasses
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from flax import nnx

from tests.recipes.fashion import load, percent, run, say, write

CHANCE = 0.1
EVALUATIONS = ["last epoch", "last epoch, flip", "ema", "ema, flip"]


def results() -> list[dict[str, str]]:
    with Path("results/fashion_mnist.csv").open(newline="") as file:
        return list(csv.DictReader(file))


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
def test_it_learns_learnable_images_only_and_writes_the_reported_values(
    learnable: bool, arguments: list[str], part: str, least: float, most: float, tmp_path: Path
) -> None:
    folder = write(tmp_path, learnable=learnable)
    text = run("fashion_mnist.py", "--fast", "--images", "2560", *arguments, "--data", str(folder))
    lines = results()
    seeds = 2 if arguments == ["--seeds", "2"] else 1
    assert [line["seed"] for line in lines] == [str(seed) for seed in range(seeds) for _ in EVALUATIONS]
    assert [line["evaluation"] for line in lines] == seeds * EVALUATIONS
    for line in lines:
        assert (line["recipe"], line["network"], line["epochs"]) == ("fast", "resnet10 32-64-128", "4")
        assert line["data"] == f"fashion_mnist {part}, 2560 training images"
        if not line["evaluation"].startswith("ema"):  # an average over too few steps here
            assert least <= float(line["accuracy"]) <= most
        assert percent(
            rf"Seed {line['seed']}, fast, {line['evaluation']}: {part} accuracy (\d+\.\d+)%", text
        ) == pytest.approx(100 * float(line["accuracy"]), abs=0.006)
        assert float(line["cpu_minutes"]) > 0
    means = [float(line["accuracy"]) for line in lines if line["evaluation"] == "last epoch"]
    assert percent(r"(\d+\.\d+)(?: ± \S+)? %  last epoch, \d seed", text) == pytest.approx(
        100 * np.mean(means), abs=0.006
    )
    assert f"on {5000 if part == 'validation' else 10_000} images" in text


def test_settings_that_differ_are_other_runs(recipe: ModuleType) -> None:
    """The results tell runs apart by these names."""
    names = [(settings.name, settings.network) for settings in (recipe.FULL, *recipe.ABLATIONS)]
    assert len(set(names)) == len(names)
    for settings in recipe.ABLATIONS[1:]:
        changed = {name for name, value in vars(settings).items() if value != getattr(recipe.FAST, name)}
        assert len(changed) == 2  # the name and one technique
        assert settings.name.startswith("fast + ")


@pytest.fixture
def thin(recipe: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the recipe with small images and a small network."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (recipe.HELD_OUT + 256, 8, 8, 1), np.uint8)
    split = images, np.arange(len(images)) % 10
    monkeypatch.setattr(recipe.resfit.data, "load", lambda name, path: (split, split))
    monkeypatch.setattr(recipe, "HELD_OUT", 250)
    thin = [dataclasses.replace(settings, stem=4, stages=((4, 1),)) for settings in recipe.ABLATIONS]
    monkeypatch.setattr(recipe, "ABLATIONS", tuple(thin))
    monkeypatch.setattr(recipe, "FAST", thin[0])
    monkeypatch.setattr(recipe, "muon", "sgd")  # compiles in less time
    return recipe


@pytest.mark.slow
def test_an_ablation_resumes_where_it_stopped_and_reports_each_technique(thin: ModuleType) -> None:
    arguments = ("--ablate", "--epochs", "2", "--images", "256")
    text = say(thin, *arguments)
    before = results()
    assert {line["recipe"] for line in before} == {settings.name for settings in thin.ABLATIONS}
    assert {line["data"] for line in before} == {"fashion_mnist validation, 256 training images"}
    found = {(line["recipe"], line["evaluation"]): 100 * float(line["accuracy"]) for line in before}
    techniques = {
        "alternating flip": ("fast + alternating flip", "last epoch"),
        "erasing": ("fast + erasing", "last epoch"),
        "progressive resizing": ("fast + progressive resizing", "last epoch"),
        "bfloat16": ("fast + bfloat16", "last epoch"),
        "evaluation flip": ("fast", "last epoch, flip"),
        "evaluation ema": ("fast", "ema"),
    }
    for technique, key in techniques.items():
        change = re.findall(rf"([+-]\d+\.\d+)  {technique}$", text, re.MULTILINE)
        assert list(map(float, change)) == [pytest.approx(found[key] - found["fast", "last epoch"], abs=0.006)]
    # Without the lines of one run, only this run is repeated, to the same values.
    path = Path("results/fashion_mnist.csv")
    kept = [line for line in path.read_text().splitlines(keepends=True) if "fast + erasing" not in line]
    path.write_text("".join(kept))
    again = say(thin, *arguments)
    assert again.count("\n  2/2 ") == 1
    assert again.splitlines()[-7:] == text.splitlines()[-7:]


@pytest.mark.slow
def test_a_dry_run_estimates_the_run_and_writes_nothing(thin: ModuleType) -> None:
    text = say(thin, "--fast", "--dry-run")
    for said in ("128 examples of 8 x 8 x 1", "in 4 epochs", "estimated"):
        assert said in text
    assert list(Path().iterdir()) == []


def test_muon_trains_every_convolution_and_nothing_else(recipe: ModuleType) -> None:
    net = nnx.eval_shape(lambda: recipe.SmallResNet(recipe.FAST, rngs=nnx.Rngs(0)))
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
