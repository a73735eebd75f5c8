"""The default number of decoding threads."""

import os

# With more threads, the interpreter lock is the limit and batches made ahead fill the memory.
_MOST = 16


def cores() -> int:
    """Return the number of cores that this process may use, at most 16."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    return min(_MOST, len(affinity(0)) if affinity else os.cpu_count() or 1)
