"""The multi-process recipe starts its processes and gives the results of one process."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import pytest

RECIPE = Path(__file__).parents[2] / "recipes" / "multihost.py"


def run(*arguments: str) -> str:
    """Return the output of the recipe. It shares the compilation cache of the tests."""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-W", "error", str(RECIPE), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_two_processes_give_the_results_of_one() -> None:
    said = run("--epochs", "1")
    assert said.count("\n  1/1 ") == 2  # of the first of two processes, and of the single one
    losses = [float(loss) for loss in re.findall(r"process.*: test accuracy .*, loss (\S+)", said)]
    assert len(losses) == 3
    assert losses[0] == losses[1]
    assert losses[0] == pytest.approx(losses[2], rel=1e-3)
    match = re.search(r"largest difference of a logit: (\S+)", said)
    assert match
    assert float(match[1]) < 1e-2
    assert "written: ['out/multihost/2_processes/0/model.safetensors']" in said
    assert Path("out/multihost/2_processes/1/logits.npy").exists()


def test_help_states_the_result(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [str(RECIPE), "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(RECIPE), run_name="__main__")
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for said in ("--processes", "--devices", "--epochs", "cores"):
        assert said in text
