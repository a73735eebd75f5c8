"""The instruction sets of this machine's processor."""

import functools
import pathlib

FILE = pathlib.Path("/proc/cpuinfo")  # of Linux
BFLOAT16 = ("amx_bf16", "avx512_bf16")  # units that multiply in bfloat16


def cpu_flags() -> frozenset[str]:
    """Return the names of the instruction sets, as Linux spells them. Empty on other systems."""
    return _flags(FILE)


@functools.cache
def _flags(file: pathlib.Path) -> frozenset[str]:
    lines = file.read_text().splitlines() if file.is_file() else []
    flags = [line.partition(":")[2] for line in lines if line.startswith("flags")]
    return frozenset(flags[0].split()) if flags else frozenset()
