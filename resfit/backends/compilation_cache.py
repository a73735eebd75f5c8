"""JAX's cache of compiled programs on disk, by which the second start of a script compiles almost nothing."""

import functools
import hashlib
import os
import pathlib
import platform
from typing import Any

import jax

from resfit._utils.paths import cache_folder

SWITCH = "RESFIT_COMPILATION_CACHE"
# JAX keeps programs that took a second to compile. The step of a small network takes less, but most of the time of its
# script.
SECONDS = 0.1
_JAXS_SECONDS = 1.0


def use() -> None:
    """Turn on JAX's persistent compilation cache, unless the user configured it.

    The cache is in ``~/.cache/resfit/jax`` (or in the folder XDG_CACHE_HOME), with a folder for each kind of processor:
    code for one may not run on another that shares the home folder. Programs that took less than a tenth of a second to
    compile are not kept (``jax_persistent_cache_min_compile_time_secs``, unless the user set it).

    A cache folder that is set already (``jax_compilation_cache_dir``, JAX_COMPILATION_CACHE_DIR) stays, and so does a
    disabled cache (``jax_enable_compilation_cache``). RESFIT_COMPILATION_CACHE=0 or "off" changes nothing in JAX.
    """
    config: Any = jax.config  # its values are attributes that type checkers do not know
    decided = config.jax_compilation_cache_dir is not None or not config.jax_enable_compilation_cache
    if decided or os.environ.get(SWITCH, "").lower() in ("0", "off"):
        return
    folder = _folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home without write permission: every start compiles, as without a cache
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if config.jax_persistent_cache_min_compile_time_secs == _JAXS_SECONDS:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", SECONDS)


def _folder() -> pathlib.Path:
    return cache_folder() / "jax" / _processor()


@functools.cache
def _processor() -> str:
    """Return a digest of the kind of processor: its instruction sets, if the system lists them."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    description = f"{platform.system()} {platform.machine()} {platform.processor()} {flags}"
    return hashlib.sha256(description.encode()).hexdigest()[:16]
