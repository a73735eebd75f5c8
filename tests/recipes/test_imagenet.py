"""The ImageNet recipe trains, resumes, evaluates and estimates, from folders and streams in the format of ImageNet."""

import csv
import io
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

import resfit
from resfit.errors import DistributedError
from tests.recipes.fashion import RECIPES, load, percent, run, say

COLORS = {"n01440764": (200, 40, 40), "n01443537": (40, 200, 40), "n01484850": (40, 40, 200)}
SMALL = ["--batch-size", "16", "--epochs", "2", "--train-size", "16", "--size", "16", "--precision", "float32"]
V1 = ["--recipe", "torchvision-v1", *SMALL]
NAMED = "torchvision-v1, batch size 16, train size 16, test size 16, float32"
FOLDER = Path("out/imagenet/torchvision-v1-batch_size_16-train_size_16-test_size_16-float32-resnet50-2-0")


def picture(rng: np.random.Generator, color: tuple[int, int, int]) -> Image.Image:
    height, width = rng.integers(20, 30, 2)
    return Image.fromarray((rng.integers(0, 60, (height, width, 3)) + 0.7 * np.array(color)).astype(np.uint8))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the layout of ImageNet: 48 training and 12 validation photographs of three colors."""
    root, rng = tmp_path_factory.mktemp("imagenet"), np.random.default_rng(0)
    for part, count in (("train", 16), ("val", 4)):
        for name, color in COLORS.items():
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                picture(rng, color).save(root / part / name / f"{name}_{i}.JPEG")
    return root


@pytest.fixture(scope="module")
def parquet(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the same photographs as a dataset repository of Hugging Face: shards of parquet files."""
    import datasets

    root = tmp_path_factory.mktemp("parquet")
    for split, part, shards in (("train", "train", 2), ("validation", "val", 1)):
        files = sorted((photos / part).rglob("*.JPEG"))
        names = datasets.ClassLabel(names=sorted(COLORS))
        features = datasets.Features(image=datasets.Image(), label=names)
        rows = {
            "image": [{"bytes": file.read_bytes(), "path": None} for file in files],
            "label": [names.str2int(file.parent.name) for file in files],
        }
        table = datasets.Dataset.from_dict(rows, features=features)
        for i in range(shards):
            table.shard(shards, i).to_parquet(root / f"{split}-{i:05}-of-{shards:05}.parquet")
    return root


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the script, with a thin network in place of those of the zoo."""

    def thin(name: str, num_classes: int, seed: int, **arguments: Any) -> resfit.nets.ResNet:
        assert name == "resnet50"
        return resfit.create_model(
            "resnet20", num_classes=num_classes, rngs=seed, depths=(1,), widths=(8,), **arguments
        )

    script = load("imagenet")
    monkeypatch.setattr(script, "network", thin)
    return script


def lines(path: Path = Path("results/imagenet.csv")) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def weights() -> list[np.ndarray]:
    return resfit.load(FOLDER / "model.safetensors").get_weights()


def test_it_trains_once_and_evaluates_the_saved_model(recipe: ModuleType, photos: Path) -> None:
    command = ["--data", str(photos), *V1]
    text = say(recipe, *command)
    assert re.search(r"[\d,.]+ images/s in the last epoch, on 4 device", text)
    assert "The source has 76.13% for resnet50" in text
    accuracy = percent(r"Accuracy (\d+\.\d+)% on the validation images, with the raw weights", text)
    (line,) = lines()
    assert float(line["accuracy"]) == pytest.approx(accuracy / 100, abs=1e-4)
    assert (line["recipe"], line["network"], line["epochs"]) == (NAMED, "resnet50", "2")
    assert line["data"] == f"{photos} val"
    assert "--recipe torchvision-v1" in line["command"]

    again = say(recipe, *command)  # the run is finished
    assert percent(r"Accuracy (\d+\.\d+)%", again) == accuracy
    assert "nothing was trained" in again
    assert len(lines()) == 1
    Path("results/imagenet.csv").unlink()  # as if the process had been killed before it wrote the line
    say(recipe, *command)
    assert lines()[0] == line
    for other in (["--epochs", "1"], ["--crop", "0.5"]):  # another run
        assert "nothing was trained" not in say(recipe, *command, *other)
    assert len(lines()) == 3

    (FOLDER / "data.txt").write_text("folder elsewhere")
    with pytest.raises(SystemExit, match="trains on the images of 'folder elsewhere'"):
        say(recipe, *command)

    file = str(FOLDER / "model.safetensors")
    evaluated = say(recipe, "--data", str(photos), "--evaluate", file, "--precision", "float32")
    assert percent(r"accuracy (\d+\.\d+)%", evaluated) == accuracy
    assert "at 16 pixels, crop 0.875" in evaluated  # those of the recipe
    larger = say(recipe, "--data", str(photos), "--evaluate", file, "--size", "20", "--crop", "0.95")
    assert "at 20 pixels, crop 0.95" in larger


def test_a_run_that_is_interrupted_resumes_by_the_same_command(
    recipe: ModuleType, photos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    command = ["--data", str(photos), *V1]
    for folder in ("whole", "stopped"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    say(recipe, *command)
    expected = weights()

    seen: list[int] = []

    class Interrupts(resfit.callbacks.Throughput):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            super().on_train_batch_end(batch, logs)
            seen.append(batch)
            if len(seen) == 2:
                signal.raise_signal(signal.SIGINT)

    monkeypatch.chdir(tmp_path / "stopped")
    monkeypatch.setattr(recipe, "Throughput", Interrupts)
    with pytest.raises(KeyboardInterrupt):
        say(recipe, *command)
    assert not Path("results").exists()
    say(recipe, *command)
    assert seen == [0, 1, 2, 0, 1, 2]  # two epochs of three batches
    for old, new in zip(expected, weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert len(lines()) == 1


def test_a_dry_run_prints_the_plan_and_writes_nothing(recipe: ModuleType, photos: Path) -> None:
    text = say(recipe, "--data", str(photos), *V1, "--epochs", "90", "--dry-run")
    assert "16 examples of 16 x 16 x 3" in text
    assert "3 in an epoch, 270 in 90 epochs" in text
    assert re.search(r"estimated  [\d.]+ \w+ for 90 epochs", text)
    assert re.search(r"cost       \S+ device hours", text)
    assert list(Path().iterdir()) == []


def test_weights_of_other_classes_raise(recipe: ModuleType, photos: Path) -> None:
    net = resfit.create_model("resnet20", num_classes=5, depths=(1,), widths=(8,))
    resfit.Model(net).save("five.safetensors")
    with pytest.raises(SystemExit, match=r"has 5 classes, and the validation images have 3\. Expected"):
        say(recipe, "--data", str(photos), "--evaluate", "five.safetensors")


@pytest.mark.parametrize(
    ("published", "given", "expected"),
    [
        (("torchvision/IMAGENET1K_V2", "resnet50"), (None, None), (224, 224 / 232)),
        (("timm/resnet50.a3_in1k", "resnet50"), (None, None), (160, 160 / 168)),
        (("timm/resnet50.a3_in1k", "resnet50"), (224, 0.95), (224, 0.95)),
        (None, (None, None), (224, 0.875)),
        (None, (96, None), (96, 0.875)),
    ],
)
def test_published_weights_are_evaluated_at_their_size(
    published: Any, given: Any, expected: Any, recipe: ModuleType
) -> None:
    net = resfit.create_model("resnet20", num_classes=3, depths=(1,), widths=(8,))
    if published is not None:
        net.published_weights = published
    assert recipe.view(resfit.Model(net), *given) == expected


@pytest.mark.slow
def test_any_file_of_weights_can_be_evaluated(recipe: ModuleType) -> None:
    net = resfit.create_model("resnet18", num_classes=3, rngs=3)
    resfit.weights.save(net, "torch.safetensors")
    loaded = recipe.model_of("torch.safetensors", "resnet18").module
    assert loaded.spec.num_classes == 3
    np.testing.assert_array_equal(loaded.head.dense.kernel, net.head.dense.kernel)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--recipe", "rsb-a4"], "invalid choice"),
        (["--recipe", "fine-tune"], "invalid choice"),
        (["--source", "zip"], "invalid choice"),
        *[
            ([f"--{name}", "0"], "positive integer")
            for name in ("epochs", "batch-size", "size", "train-size", "slices")
        ],
        (["--batch-size", "1e3"], "got '1e3'"),
        (["--crop", "95"], "a share above 0"),
        (["--crop", "nan"], "a share above 0"),
        (["--crop", "all"], "got 'all', expected a share above 0"),
        (["--evaluate", "net.safetensors", "--dry-run"], "Expected one of them"),
    ],
)
def test_wrong_arguments_exit(wrong: list[str], said: str, recipe: ModuleType) -> None:
    assert said in say(recipe, *wrong, status=2)


def test_labels_without_class_names_exit(recipe: ModuleType) -> None:
    import datasets

    rows = {"image": [picture(np.random.default_rng(0), (9, 9, 9))] * 2, "label": [0, 1]}
    with pytest.raises(SystemExit, match="labels without class names"):
        recipe.classes_of(resfit.data.huggingface(datasets.Dataset.from_dict(rows), mode="RGB"))


def test_a_part_of_the_connection_raises(recipe: ModuleType) -> None:
    with pytest.raises(DistributedError):
        say(recipe, "--processes", "2")


def test_help_states_the_expected_results_of_the_recipes(recipe: ModuleType) -> None:
    text = say(recipe, "--help", status=0)
    for name in recipe.NAMES:
        one = resfit.recipes.get(name)
        if one.data == "imagenet":
            row = next(line.split() for line in text.splitlines() if line.split()[:1] == [name])
            assert row[1:4] == [str(one.epochs), str(one.batch_size), str(one.train_size)]
            assert float(row[4]) == pytest.approx(100 * one.accuracy, abs=0.05)


@pytest.mark.slow
def test_it_streams_from_hugging_face(
    recipe: ModuleType, photos: Path, parquet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    text = say(recipe, "--source", "huggingface", "--data", str(parquet), "--data-dir", "cache", *V1)
    accuracy = percent(r"Accuracy (\d+\.\d+)%", text)
    file = str(FOLDER / "model.safetensors")
    evaluated = say(recipe, "--data", str(photos), "--evaluate", file, "--precision", "float32")
    assert percent(r"accuracy (\d+\.\d+)%", evaluated) == accuracy  # the same images in a folder


@pytest.mark.slow
def test_it_reads_tfds(recipe: ModuleType, photos: Path, tmp_path: Path) -> None:
    import tensorflow_datasets as package

    class Imagenet2012(package.core.GeneratorBasedBuilder):
        VERSION = package.core.Version("5.1.0")
        name = "imagenet2012"

        def _info(self) -> Any:
            features = {"image": package.features.Image(), "label": package.features.ClassLabel(names=sorted(COLORS))}
            return self.dataset_info_from_configs(
                features=package.features.FeaturesDict(features), supervised_keys=("image", "label")
            )

        def _split_generators(self, manager: Any) -> Any:
            return {split: self._examples(split[:5].replace("valid", "val")) for split in ("train", "validation")}

        def _examples(self, part: str) -> Any:
            for file in sorted((photos / part).rglob("*.JPEG")):
                yield file.name, {"image": io.BytesIO(file.read_bytes()), "label": file.parent.name}

        _generate_examples = _examples

    Imagenet2012(data_dir=tmp_path / "tfds", file_format="array_record").download_and_prepare()
    text = say(recipe, "--source", "tfds", "--data", "imagenet2012", "--data-dir", str(tmp_path / "tfds"), *V1)
    assert "Accuracy" in text
    assert lines()[0]["data"] == "imagenet2012 validation"


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["rsb-a1", "rsb-a3", "torchvision-v2", "he-cifar"])
def test_other_recipes_train(name: str, recipe: ModuleType, photos: Path) -> None:
    text = say(recipe, "--data", str(photos), "--recipe", name, *SMALL)
    assert f"with the {'ema' if name == 'torchvision-v2' else 'raw'} weights" in text


@pytest.mark.exhaustive
def test_it_learns_colors_as_a_command(photos: Path) -> None:
    sizes = ["--train-size", "64", "--size", "64", "--batch-size", "24", "--epochs", "3"]
    text = run("imagenet.py", "--data", str(photos), "--recipe", "torchvision-v1", "--network", "resnet18", *sizes)
    assert percent(r"Accuracy (\d+\.\d+)%", text) > 60


def two_processes(arguments: list[str], environment: Callable[[], dict[str, str]]) -> list[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, str(RECIPES / "imagenet.py"), *arguments, "--coordinator", address, "--processes", "2"]
    started = [
        subprocess.Popen([*command, "--process", str(i)], env=environment(), stdout=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    said = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    return said


@pytest.mark.exhaustive
def test_two_processes_train_one_model(photos: Path) -> None:
    import os

    sizes = ["--train-size", "64", "--size", "64", "--batch-size", "24", "--epochs", "1"]
    first, second = two_processes(
        ["--data", str(photos), "--recipe", "torchvision-v1", "--network", "resnet18", *sizes],
        lambda: os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert "images/s in the last epoch, on " in first
    assert percent(r"Accuracy (\d+\.\d+)%", first) == percent(r"Accuracy (\d+\.\d+)%", second)
    assert len(lines()) == 1
