"""Compiled programs are kept on disk, so that the second start of a script compiles next to nothing."""

import functools
import hashlib
import os
import pathlib
import platform
from typing import Any

import jax

from resfit._utils.paths import cache_folder

SWITCH = "RESFIT_COMPILATION_CACHE"
# JAX keeps what took a second. A small network's step takes less, and is most of the time that its script takes.
SECONDS = 0.1
_JAXS_SECONDS = 1.0


def use() -> None:
    """Turns JAX's persistent compilation cache on, unless somebody has decided about it.

    It lies in ``~/.cache/resfit/jax`` (in the folder that XDG_CACHE_HOME names), apart for each kind of processor: code
    for one may not run on another that shares the home folder. Programs that took less than a tenth of a second to
    compile are not kept (``jax_persistent_cache_min_compile_time_secs``, unless somebody has set it).

    Left alone: a cache folder that is set already (``jax_compilation_cache_dir``, JAX_COMPILATION_CACHE_DIR), a cache
    that is disabled (``jax_enable_compilation_cache``), and everything if RESFIT_COMPILATION_CACHE is "0" or "off".
    """
    config: Any = jax.config  # its values are attributes that no type checker knows
    decided = config.jax_compilation_cache_dir is not None or not config.jax_enable_compilation_cache
    if decided or os.environ.get(SWITCH, "").lower() in ("0", "off"):
        return
    folder = _folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that cannot be written to: every start compiles, as without a cache
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if config.jax_persistent_cache_min_compile_time_secs == _JAXS_SECONDS:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", SECONDS)


def _folder() -> pathlib.Path:
    return cache_folder() / "jax" / _processor()


@functools.cache
def _processor() -> str:
    """What tells processors apart: their instruction sets, where the system lists them."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    description = f"{platform.system()} {platform.machine()} {platform.processor()} {flags}"
    return hashlib.sha256(description.encode()).hexdigest()[:16]
