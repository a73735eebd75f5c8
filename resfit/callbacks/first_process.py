"""The process that writes files when several processes train together."""

import jax


def is_first() -> bool:
    """Return True in the process that writes files; all processes have the same values and would overwrite a file.

    Example:
      >>> is_first()
      True
    """
    return jax.process_index() == 0
