"""The streaming recipe writes its files, trains from both sources, and learns."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

RECIPE = Path(__file__).parents[2] / "recipes" / "streaming.py"


def run(*arguments: str) -> str:
    """What the recipe prints. Its executables are kept where those of the tests are."""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-W", "error", str(RECIPE), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_it_learns_from_parquet_files() -> None:
    match = re.search(r"Test accuracy (\d+\.\d+)% after 3 epochs", run("--epochs", "3"))
    assert match
    assert float(match[1]) > 50
    assert len(list(Path("out/streaming/huggingface/digits").glob("*.parquet"))) == 9


@pytest.mark.slow
def test_it_learns_from_tfds() -> None:
    match = re.search(r"Test accuracy (\d+\.\d+)% after 3 epochs", run("--epochs", "3", "--source", "tfds"))
    assert match
    assert float(match[1]) > 50


def test_help_says_what_it_reaches() -> None:
    text = run("--help")
    for said in ("--source", "--data", "--epochs", "cores", "98.89 %", "CPU seconds"):
        assert said in text
