"""The digits recipe runs as a newcomer runs it, in a process of its own, and learns what it says it learns."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from safetensors import safe_open

RECIPE = Path(__file__).parents[2] / "recipes" / "digits.py"
PNG = b"\x89PNG\r\n\x1a\n"


def run(*arguments: str) -> str:
    """What the recipe prints. Its executables are kept where those of the tests are."""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-W", "error", str(RECIPE), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def percent(pattern: str, text: str) -> float:
    """The percentage that stands in the pattern's group."""
    match = re.search(pattern, text)
    assert match, text
    return float(match[1])


def test_help_says_what_it_does_what_it_takes_and_what_it_reaches() -> None:
    text = run("--help")
    for said in ("--seeds", "--epochs", "--split", "--out", "cores", "seconds", "SVM"):
        assert said in text
    assert percent(r"(\d+\.\d+) %", text) >= 99.0


@pytest.fixture(scope="module")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What four epochs print, and the folder that they fill."""
    out = tmp_path_factory.mktemp("digits") / "a" / "b"
    return run("--epochs", "4", "--out", str(out)), out


def test_it_writes_three_pictures_and_one_model(short_run: tuple[str, Path]) -> None:
    _, out = short_run
    assert {path.name for path in out.iterdir()} == {
        "confusion_matrix.png",
        "curves.png",
        "mistakes.png",
        "model.safetensors",
    }
    assert all(path.read_bytes().startswith(PNG) for path in out.glob("*.png"))
    with safe_open(out / "model.safetensors", framework="numpy") as file:
        sizes = {name: file.get_tensor(name).size for name in file.keys()}  # noqa: SIM118
    assert sum(sizes.values()) > 100_000


def test_it_shows_the_network_the_epochs_and_both_baselines(short_run: tuple[str, Path]) -> None:
    text, _ = short_run
    for said in ("stage2", "Epoch 1/4", "Epoch 4/4", "val_accuracy"):
        assert said in text
    # scikit-learn's own results on this split: 4 and 5 mistakes among 360.
    assert percent(r"(\d+\.\d+)%  SVC", text) == 98.89
    assert percent(r"(\d+\.\d+)%  KNeighborsClassifier", text) == 98.61


def test_the_reloaded_model_is_as_good_as_the_trained_one(short_run: tuple[str, Path]) -> None:
    text, _ = short_run
    trained = percent(r"Seed 0: test accuracy (\d+\.\d+)%", text)
    assert percent(r"loaded again: test accuracy (\d+\.\d+)%", text) == trained
    # Ten classes: four epochs do not make a good reader, but one far better than chance.
    assert trained > 50


@pytest.mark.slow
def test_one_full_seed_is_right_on_at_least_985_of_1000(tmp_path: Path) -> None:
    text = run("--out", str(tmp_path))
    accuracy = percent(r"Seed 0: test accuracy (\d+\.\d+)%", text)
    assert accuracy >= 98.5
    assert percent(r"loaded again: test accuracy (\d+\.\d+)%", text) == accuracy
