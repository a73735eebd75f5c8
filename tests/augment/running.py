"""Run augmentations as the steps do: compiled as one program, not operation by operation."""

from typing import Any

import jax
import numpy as np

from resfit.augment import Augment


def run(function: Augment, x: Any, seed: int = 0) -> np.ndarray:
    """Return the images of an augmentation that does not change labels."""
    return np.asarray(jax.jit(lambda key, x: function(key, x, None)[0])(jax.random.key(seed), x))
