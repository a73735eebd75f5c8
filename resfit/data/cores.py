"""How many threads may decode at once."""

import os

# Beyond that, threads wait for each other's turns in the interpreter, and batches made ahead fill the memory.
_MOST = 16


def cores() -> int:
    """The cores that this process may use, at most 16."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    return min(_MOST, len(affinity(0)) if affinity else os.cpu_count() or 1)
