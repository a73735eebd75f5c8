"""The first batch of any data, for tools that run a network once."""

from collections.abc import Sequence
from typing import Any

import jax

from resfit.data import Geometry, as_batches
from resfit.data.batches import classes_of
from resfit.data.choose import in_memory
from resfit.data.sources.arrays import as_arrays


def first_batch(x: Any, y: Any, batch_size: int) -> tuple[Any, Any, Any, Sequence[str] | None]:
    """Return the first batch, all known labels, and the class names."""
    if in_memory(x):  # without the checks of `fit`: values that are not finite are a problem to report
        x, y, _ = as_arrays(x, y)
        return *jax.tree.map(lambda a: a[:batch_size], (x, y)), y, None
    batches = as_batches(x, y, geometry=Geometry(batch_size, seed=0))
    batch = next(iter(batches.epoch(0)))
    return batch.x, batch.y, batch.y if batches.labels is None else batches.labels, classes_of(batches)
