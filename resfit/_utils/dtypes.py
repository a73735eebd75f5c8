"""Dtypes."""

from typing import Any

import numpy as np


def at_least_float32(dtype: Any) -> Any:
    """Return the dtype of arithmetic on values: float32 for anything narrower. Holds in strict promotion too.

    Example:
      >>> at_least_float32("uint8"), at_least_float32("float64")
      (dtype('float32'), dtype('float64'))
    """
    wide = np.dtype(dtype) in (np.float64, np.complex64, np.complex128)
    return np.dtype(dtype if wide else np.float32)
