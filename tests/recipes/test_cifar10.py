"""The CIFAR-10 recipe runs on small files of every source, resumes, and writes each result once."""

import csv
import importlib
import signal
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import resfit
from tests.data import originals
from tests.recipes.fashion import load, percent, say

# `resfit.data.load` is the function; this is its file.
loading = importlib.import_module("resfit.data.datasets.load")
EACH = 40  # images in a member: 200 for the training, 40 for the test


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the recipe with thin networks, and accept small archives."""
    module, create_model = load("cifar10"), resfit.create_model
    monkeypatch.setitem(loading._EXPECTED, "cifar10", (5 * EACH, EACH, 10))
    monkeypatch.setattr(
        module.resfit,
        "create_model",
        lambda name, **arguments: create_model(name, **arguments | {"depths": (1,), "widths": (4,)}),
    )
    return module


def results() -> list[dict[str, str]]:
    with Path("results/cifar10.csv").open(newline="") as file:
        return list(csv.DictReader(file))


SHORT = ("--epochs", "2", "--batch-size", "64")


@pytest.mark.parametrize(
    "python", [pytest.param(False, marks=pytest.mark.slow), True], ids=["binary archive", "python archive"]
)
def test_it_trains_evaluates_and_writes_one_line(python: bool, recipe: ModuleType) -> None:
    originals.write_cifar(Path("data"), 10, EACH, python=python)
    text = say(recipe, "--data", "data", *SHORT)
    assert "Expected: the source has 91.25 %" in text
    (line,) = results()
    assert (line["recipe"], line["network"], line["data"]) == ("he-cifar, batch size 64", "resnet20", "cifar10 test")
    assert (line["evaluation"], line["seed"], line["epochs"]) == ("last epoch", "0", "2")
    assert percent(r"test accuracy (\d+\.\d+)%", text) == pytest.approx(100 * float(line["accuracy"]), abs=0.006)
    model = resfit.load(next(Path("out").rglob("model.safetensors")))
    _, (x, y) = resfit.data.load("cifar10", path="data")
    assert float(np.mean(model.predict(x, outputs="labels", verbose=0) == y)) == float(line["accuracy"])
    curve = Path("results/curves/cifar10.csv").read_text().splitlines()
    assert curve[0] == "recipe,network,data,seed,epochs,epoch,loss,accuracy,val_loss,val_accuracy"
    assert [row.rpartition("test,0,2,")[2][:2] for row in curve[1:]] == ["1,", "2,"]
    assert not list(Path("out").rglob("checkpoints"))


class Stop(resfit.callbacks.Callback):
    """A callback that presses Ctrl-C in the second epoch."""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch == 1:
            signal.raise_signal(signal.SIGINT)


def test_the_same_command_resumes_and_then_repeats_nothing(recipe: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    originals.write_cifar(Path("data"), 10, EACH)
    arguments = ("--data", "data", "--fast", "--epochs", "2", "--batch-size", "64")
    resumable = recipe.resumable

    def stopped(folder: Path) -> Any:
        elapsed, callbacks = resumable(folder)
        return elapsed, [*callbacks, Stop()]

    monkeypatch.setattr(recipe, "resumable", stopped)
    with pytest.raises(KeyboardInterrupt):
        say(recipe, *arguments)
    monkeypatch.setattr(recipe, "resumable", resumable)
    assert not Path("results").exists()
    text = say(recipe, *arguments)
    assert "\n  2/2 " in text
    assert "\n  1/2 " not in text
    assert [line["evaluation"] for line in results()] == ["last epoch", "last epoch, flip+shift"]
    again = say(recipe, *arguments)
    assert "/2 " not in again
    assert len(results()) == 2
    assert again.splitlines()[-2:] == text.splitlines()[-2:]  # the means


@pytest.mark.parametrize("seeds", [pytest.param(2, marks=pytest.mark.slow)])
def test_seeds_differ_and_their_mean_is_printed(seeds: int, recipe: ModuleType) -> None:
    originals.write_cifar(Path("data"), 10, EACH)
    text = say(recipe, "--data", "data", *SHORT, "--seeds", str(seeds))
    found = [float(line["accuracy"]) for line in results()]
    assert [line["seed"] for line in results()] == ["0", "1"]
    assert percent(rf"(\d+\.\d+) ± .*last epoch, {seeds} seeds", text) == pytest.approx(100 * np.mean(found), abs=0.006)


@pytest.mark.slow
@pytest.mark.parametrize("network", ["resnet56", "resnet110", "wrn_28_10", "--fast"])
def test_a_dry_run_estimates_every_network_and_writes_nothing(network: str, recipe: ModuleType) -> None:
    originals.write_cifar(Path("data"), 10, EACH)
    which = ("--fast",) if network == "--fast" else ("--network", network)
    text = say(recipe, "--data", "data", "--batch-size", "50", *which, "--dry-run")
    for said in ("50 examples of 32 x 32 x 3", "4 in an epoch", "device hours for each seed", "Expected: the source"):
        assert said in text
    assert {path.name for path in Path().iterdir()} == {"data"}


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (("--data", "nothing"), ["nothing is not a folder that contains cifar-10-binary.tar.gz", "--data PATH"]),
        (("--source", "tfds", "--data", "nothing"), ["not prepared in nothing", "--source huggingface"]),
        (("--source", "huggingface", "--data", "nothing"), ["nothing", "cifar-10-python.tar.gz"]),
    ],
)
@pytest.mark.representatives("arguments0-messages0")
def test_missing_images_raise_with_the_ways_to_get_them(
    arguments: tuple[str, ...], messages: list[str], recipe: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SystemExit) as raised:
        say(recipe, *arguments)
    for message in (*messages, "Ways to get CIFAR-10"):
        assert message in str(raised.value)


@pytest.mark.slow
def test_the_sources_have_the_same_images(recipe: ModuleType) -> None:
    import datasets
    from PIL import Image

    originals.write_cifar(Path("data"), 10, EACH)
    parts = recipe.read("archive", Path("data"))
    features = datasets.Features(img=datasets.Image(), label=datasets.ClassLabel(num_classes=10))
    Path("parquet").mkdir()
    for split, (x, y) in zip(("train", "test"), parts, strict=True):
        rows = {"img": [Image.fromarray(image) for image in x], "label": y.tolist()}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(f"parquet/{split}-00000-of-00001.parquet")
    for (x, y), (x_found, y_found) in zip(parts, recipe.read("huggingface", Path("parquet")), strict=True):
        np.testing.assert_array_equal(x_found, x)
        np.testing.assert_array_equal(y_found, y)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--seeds", "0"), "--seeds 0"),
        (("--epochs", "0"), "a positive integer"),
        (("--batch-size", "0"), "a positive integer"),
        (("--fast", "--network", "resnet20"), "--fast and --network resnet20"),
        (("--out", "file/out"), "file cannot be written to"),
        (("--results", "file"), "file cannot be written to"),
    ],
)
def test_invalid_arguments_raise(arguments: tuple[str, ...], said: str, recipe: ModuleType) -> None:
    Path("file").write_text("")
    assert said in say(recipe, *arguments, status=2)
