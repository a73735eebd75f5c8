"""A batch as the steps see it, and what a training step does with it before the module is called."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax

from resfit.augment.alternating_flip import seen_again
from resfit.augment.copies import copies_of, repeated
from resfit.augment.pipeline import applied
from resfit.augment.resize import Resize
from resfit.trainer.graph.explain import explained


class DeviceBatch(NamedTuple):
    """A batch inside a step: arrays (batch, ...), or None for labels, weight, mask or origin that were not given.

    Its images are resized in a training step, unless `resize` is None.
    """

    x: Any
    y: Any
    weight: Any
    mask: Any
    origin: Any = None
    resize: Resize | None = None


def prepared(
    batch: DeviceBatch,
    augments: Iterable[Callable[..., tuple[Any, Any]]],
    preprocess: Callable[[Any], Any] | None,
    key: jax.Array,
) -> DeviceBatch:
    """Return a training batch after augmentation, resizing and preprocessing."""
    for i, augment in enumerate(augments):
        with explained(augment, batch.x, batch.y):
            x, y = applied(augment, jax.random.fold_in(key, i), batch.x, batch.y, batch.origin)
        batch = batch._replace(x=x, y=y)
        if (copies := copies_of([augment])) > 1:
            weight, mask, origin = repeated((batch.weight, batch.mask, batch.origin), copies)
            batch = batch._replace(weight=weight, mask=mask, origin=seen_again(origin, copies))
    if batch.resize is not None:
        x, (y, weight) = batch.resize(batch.x, (batch.y, batch.weight))
        batch = batch._replace(x=x, y=y, weight=weight)
    if preprocess is None:
        return batch
    with explained(preprocess, batch.x):
        return batch._replace(x=preprocess(batch.x))
