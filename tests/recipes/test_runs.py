"""The clock of a run counts on after a stop, and lines are found by their values."""

from pathlib import Path
from types import ModuleType

import pytest

from tests.recipes.fashion import load


@pytest.fixture(scope="module")
def runs() -> ModuleType:
    return load("runs")


def test_minutes_are_those_of_all_processes_of_a_run(runs: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0, 0.0]
    monkeypatch.setattr(runs, "_now", lambda: runs.np.array(now))
    first = runs.Elapsed()
    now[:] = 90, 30
    state = first.state_dict()
    now[:] = 1000, 500  # another process, much later
    second = runs.Elapsed()
    second.load_state_dict(state)
    now[:] = 1030, 510
    assert second.minutes() == {"minutes": 2.0, "cpu_minutes": 0.67}
    assert first.minutes()["minutes"] == 17.17


def test_lines_are_found_by_their_values(runs: ModuleType) -> None:
    assert runs.find_results(Path("results"), "a.py", seed=0) == []
    Path("results").mkdir()
    Path("results/a.csv").write_text('recipe,seed\nx,0\n"y, z",0\nx,1\n')
    assert runs.find_results(Path("results"), "recipes/a.py", recipe="y, z") == [{"recipe": "y, z", "seed": "0"}]
    assert [line["seed"] for line in runs.find_results(Path("results"), "a.py", recipe="x")] == ["0", "1"]
    assert runs.find_results(Path("results"), "a.py", recipe="x", seed=2) == []
