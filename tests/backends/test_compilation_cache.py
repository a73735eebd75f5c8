"""The persistent compilation cache is on unless the user decides otherwise; a second process compiles nothing."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

from resfit.backends import compilation_cache

ROOT = Path(__file__).parents[1]

PROGRAM = """
import json, jax
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if "cache_hits" in event else None)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
from tests.helpers import *
fit(compiled())
print(json.dumps([jax.config.jax_compilation_cache_dir, len(hits)]))
"""


def run(**environment: str) -> Any:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_COMP", "JAX_ENABLE"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**kept, **environment},
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_second_process_finds_what_the_first_one_compiled(tmp_path: Path) -> None:
    home = {"XDG_CACHE_HOME": str(tmp_path)}
    folder, hits = run(**home)
    assert folder.startswith(str(tmp_path / "resfit" / "jax"))
    assert hits == 0
    assert any(Path(folder).iterdir())
    assert run(**home)[1] > 0


@pytest.fixture
def undecided() -> Iterator[None]:
    """Remove all settings of the cache."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)
    jax.config.update("jax_enable_compilation_cache", True)


@pytest.mark.usefixtures("undecided")
def test_the_cache_is_in_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compilation_cache.use()
    assert jax.config.jax_compilation_cache_dir.startswith(str(tmp_path / "resfit" / "jax"))


@pytest.mark.usefixtures("undecided")
@pytest.mark.parametrize(("theirs", "expected"), [(1.0, compilation_cache.SECONDS), (0.5, 0.5), (0.0, 0.0)])
def test_programs_of_less_than_a_second_are_kept_unless_the_user_set_a_time(
    theirs: float, expected: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = jax.config.jax_persistent_cache_min_compile_time_secs
    try:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", theirs)
        compilation_cache.use()
        assert jax.config.jax_persistent_cache_min_compile_time_secs == expected
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", before)


@pytest.mark.usefixtures("undecided")
def test_the_users_settings_of_the_cache_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for word in ("0", "off", "OFF"):
        monkeypatch.setenv("RESFIT_COMPILATION_CACHE", word)
        compilation_cache.use()
        assert jax.config.jax_compilation_cache_dir is None
    monkeypatch.delenv("RESFIT_COMPILATION_CACHE")

    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.use()
    assert jax.config.jax_compilation_cache_dir is None
    jax.config.update("jax_enable_compilation_cache", True)

    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")  # cannot be written to
    compilation_cache.use()
    assert jax.config.jax_compilation_cache_dir is None

    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "theirs"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compilation_cache.use()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "theirs")
