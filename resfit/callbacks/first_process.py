"""Which process writes, where several train together."""

import jax


def is_first() -> bool:
    """Whether this is the process that writes files: all have the same numbers, and would write over each other.

    Example:
      >>> is_first()
      True
    """
    return jax.process_index() == 0
