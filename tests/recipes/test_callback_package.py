"""The example package is installed and tested as a copy: outside the repository, by its own tests."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "recipes" / "callback_package"
RESULT = re.compile(r"(\d+) passed")


def python(*arguments: str, cwd: Path, path: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, cwd=cwd, check=False,
        env={**os.environ, "PYTHONPATH": str(path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_package_installs_and_passes_its_own_tests(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77", reason="builds the package without the network")
    source, installed, tests = tmp_path / "source", tmp_path / "installed", tmp_path / "tests"
    shutil.copytree(PACKAGE, source, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    python(
        "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(installed),
        str(source), cwd=tmp_path, path=installed,
    )  # fmt: skip
    assert (installed / "resfit_best_epochs" / "py.typed").exists()
    shutil.move(source / "tests", tests)
    shutil.rmtree(source)  # so that only the installed package is found
    output = python("pytest", "-q", "-p", "no:cacheprovider", "-W", "error", str(tests), cwd=tmp_path, path=installed)
    match = RESULT.search(output)
    assert match is not None
    assert int(match[1]) == 7


def test_the_page_shows_every_file_of_the_package() -> None:
    page = (ROOT / "docs" / "callbacks.md").read_text()
    for file in PACKAGE.rglob("*"):
        if file.is_file() and not {"__pycache__", "build"} & set(file.parts) and ".egg-info" not in str(file):
            assert re.search(rf"^  {re.escape(str(file.relative_to(PACKAGE)))}(\s|$)", page, re.MULTILINE), file
