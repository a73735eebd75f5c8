"""The settings of every test: several devices, strict broadcasting, a warm compilation cache, and its own folder.

The file is in the root so that the doctests in `resfit/` run under the same rules as `tests/`.
"""

import gc
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

# Before jax starts a backend: use the CPU even if there is an accelerator, unless JAX_PLATFORMS selects it.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compilation is most of the cost of the suite. XLA's passes stay; LLVM does less. See `_compiler_effort`.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

import hypothesis
import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest
from flax import nnx
from jax._src import compiler

from tests import levels

# Rewriting the suite's assertions takes seconds: keep the result for the next run, whatever the environment sets.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

collect_ignore_glob = ["tests/golden/make_*.py"]  # scripts that need the packages that wrote the golden files
if importlib.util.find_spec("keras") is None and "keras" not in os.environ.get("RESFIT_REQUIRE", ""):
    collect_ignore_glob.append("tests/callbacks/test_against_keras.py")  # compares everything with Keras
if importlib.util.find_spec("torch") is None and "torch" not in os.environ.get("RESFIT_REQUIRE", ""):
    collect_ignore_glob.append("tests/data/sources/test_against_torch.py")

DEVICES = 4
CACHE = Path(__file__).parent / ".cache" / "jax"

jax.config.update("jax_num_cpu_devices", DEVICES)
# Otherwise (10,) labels against (10, 10) logits broadcast without an error.
jax.config.update("jax_numpy_rank_promotion", "raise")
# Keep every executable, however small, for the next run and worker.
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

mpl.use("Agg")

# No test cuts the power, and to wait for the disk takes longer than to compute.
os.fsync = lambda _: None

# The number of examples of a property, which `--hypothesis-profile` in the Makefile selects. No deadline: the first
# example of a shape compiles.
for _profile, _examples in (("test", 10), ("all", 20), ("exhaustive", 400)):
    hypothesis.settings.register_profile(
        _profile,
        deadline=None,
        max_examples=_examples,
        derandomize="CI" in os.environ,
        print_blob="CI" in os.environ,
    )
hypothesis.settings.load_profile("test")


def _with_older_emitters(options_of: Any) -> Any:
    """Compile in less than half the time: XLA's older emitters of fused loops, and one module of LLVM for a program.

    JAX has no setting for these, and XLA_FLAGS cannot be switched within a process. XLA of JAX 0.12 has no older ones.
    """

    def get_compile_options(*arguments: Any, **keywords: Any) -> Any:
        options = options_of(*arguments, **keywords)
        if jax.config.read("jax_disable_most_optimizations"):
            options.env_option_overrides = [
                *options.env_option_overrides,
                ("xla_cpu_use_fusion_emitters", False),
                ("xla_cpu_parallel_codegen_split_count", 1),
            ]
        return options

    return get_compile_options


if jax.__version_info__ < (0, 11):
    compiler.get_compile_options = _with_older_emitters(compiler.get_compile_options)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Divide the tables before pytest selects by marker."""
    some = config.getoption("lf", default=False) or any("::" in argument for argument in config.args)
    levels.mark_rows(items, whole=not some)


def pytest_collection_finish() -> None:
    """Leave the imported modules and the collected tests out of every later garbage collection."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)  # a trace allocates many objects and frees few of them


@pytest.fixture(autouse=True)
def _compiler_effort(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile for speed of compiling, here and in child processes, unless the test is marked `optimized`."""
    optimized = request.node.get_closest_marker("optimized") is not None
    if optimized:
        monkeypatch.delenv("JAX_DISABLE_MOST_OPTIMIZATIONS", raising=False)
    if jax.config.read("jax_disable_most_optimizations") is optimized:
        jax.config.update("jax_disable_most_optimizations", not optimized)
        jax.clear_caches()  # JAX's caches in memory ignore the setting


@pytest.fixture(autouse=True)
def _own_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start each test in an empty folder, so that a relative path is never in the repository."""
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))


@pytest.fixture(autouse=True)
def _names_in_docstrings(doctest_namespace: dict[str, Any]) -> None:
    """Provide the names that every example can use without importing them."""
    doctest_namespace.update(jax=jax, jnp=jnp, np=np, nnx=nnx)
