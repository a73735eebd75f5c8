"""The rows of a training and a validation part."""

import numpy as np

from resfit._utils.checks import is_int
from resfit.errors import DataError


def split_rows(labels: np.ndarray | None, count: int, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of the training and of the validation part, each in ascending order.

    Class numbers are stratified: every class gives the same share of its rows, rounded, and at least one of two rows.

    Args:
      labels: (examples,) class numbers, other labels, or None.
      count: the number of examples.
      fraction: the share of the validation part, between 0 and 1.
      seed: determines the rows.

    Raises:
      DataError: if `fraction` or `seed` is invalid, or a part would be empty.

    Example:
      >>> split_rows(np.array([0, 0, 0, 0, 1, 1]), 6, 0.25, seed=0)[1].shape
      (2,)
    """
    if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 < fraction < 1:
        raise DataError(f"Expected the validation part as a fraction between 0 and 1, such as 0.2, got {fraction!r}.")
    if not is_int(seed, 0):
        raise DataError(f"Expected seed to be an integer of 0 or more, got {seed!r}.")
    are_classes = labels is not None and labels.ndim == 1 and labels.dtype.kind in "iu"
    groups = labels if labels is not None and are_classes else np.zeros(count, int)
    draws = np.random.default_rng(seed)
    held_out = []
    for group in np.unique(groups):
        rows = draws.permutation(np.flatnonzero(groups == group))
        held_out.append(rows[: min(max(round(fraction * len(rows)), 1), len(rows) - 1)])
    validation = np.sort(np.concatenate(held_out)) if held_out else np.zeros(0, int)
    if not len(validation):
        raise DataError(
            f"A split of {count} examples leaves none for validation, because no class has two. Expected at least two "
            "examples of a class. Add examples."
        )
    return np.setdiff1d(np.arange(count), validation), validation
