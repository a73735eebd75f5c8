"""A process that is killed at any moment, also during a write, and restarted matches an uninterrupted process."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers import assert_same

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("RESFIT_KILLS", "4"))


def start(folder: Path, result: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.faults.killed", str(folder), str(result)],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> None:
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said


def load(result: Path) -> dict[str, Any]:
    found: dict[str, Any] = np.load(result, allow_pickle=True).item()
    return found


@pytest.mark.slow
def test_a_run_killed_at_random_moments_matches_the_uninterrupted_run(tmp_path: Path) -> None:
    finish(start(tmp_path / "whole", tmp_path / "whole.npy"))
    expected = load(tmp_path / "whole.npy")
    rng = random.Random(0)
    kills = number = 0
    while kills < KILLS:
        number += 1
        folder, result = tmp_path / str(number), tmp_path / f"{number}.npy"
        while not result.exists() and kills < KILLS:
            with start(folder, result) as process:
                assert process.stdout is not None
                for _ in range(rng.randint(0, 2)):  # of its steps, each of which is saved
                    process.stdout.readline()
                time.sleep(rng.uniform(0, 0.5))
                if process.poll() is None:
                    process.kill()
                    kills += 1
                    process.communicate()
                else:
                    finish(process)
        if not result.exists():
            finish(start(folder, result))
        assert_same(load(result), expected)
