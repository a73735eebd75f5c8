"""Files in the format of Fashion-MNIST, and the output of a recipe for them."""

import contextlib
import importlib.util
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from unittest import mock

import jax
import numpy as np
import pytest

from tests.data.originals import idx_bytes

RECIPES = Path(__file__).parents[2] / "recipes"
PNG = b"\x89PNG\r\n\x1a\n"


def load(recipe: str) -> ModuleType:
    """Import a script as a module."""
    spec = importlib.util.spec_from_file_location(f"{recipe}_recipe", RECIPES / f"{recipe}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    with mock.patch.object(sys, "path", [str(RECIPES), *sys.path]):  # as for a script of this folder
        spec.loader.exec_module(module)
    return module


def say(recipe: ModuleType, *arguments: str, status: int | None = None) -> str:
    """Return the output of `main` of a recipe in this process, or the status if it exits."""
    said = io.StringIO()
    exits = contextlib.nullcontext() if status is None else pytest.raises(SystemExit)
    with (
        mock.patch.object(sys, "argv", ["recipe", *arguments]),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
        exits as raised,
    ):
        recipe.main()
    assert raised is None or raised.value.code == status
    return said.getvalue()


def run(recipe: str, *arguments: str) -> str:
    """Run a recipe as a new user does and return its output. It shares the compilation cache of the tests."""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-W", "error", str(RECIPES / recipe), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def percent(pattern: str, text: str) -> float:
    """Return the percentage in the group of the pattern."""
    match = re.search(pattern, text)
    assert match, text
    return float(match[1])


def write(folder: Path, *, learnable: bool) -> Path:
    """Write four files of 60,000 and 10,000 images. The class of a learnable image selects two bright rows.

    The labels of images that are not learnable are permuted, so they do not depend on the image.
    """
    rng = np.random.default_rng(0)
    for part, n in {"train": 60_000, "t10k": 10_000}.items():
        labels = rng.integers(0, 10, n, np.uint8)
        images = np.full((n, 28, 28), 40, np.uint8)
        for row in (4, 5):
            images[np.arange(n), row + 2 * labels] = 200
        images[:, ::3] += rng.integers(0, 40, (n, 10, 28), np.uint8)
        for name, array in {
            f"{part}-images-idx3-ubyte": images,
            f"{part}-labels-idx1-ubyte": labels if learnable else rng.permutation(labels),
        }.items():
            (folder / name).write_bytes(idx_bytes(array))
    return folder
