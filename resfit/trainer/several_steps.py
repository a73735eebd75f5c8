"""Several steps in one program: the host hands over a group of batches at once.

On an accelerator, a small network computes a step faster than the host hands it over. On a CPU, XLA computes the
gradient of a convolution inside a loop many times slower, so there the steps of a group are single programs.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun

from resfit.data.device import Rows

T = TypeVar("T")


class Taken(NamedTuple):
    """The results of a step, on the device.

    Attributes:
      sums: of the metrics after the step.
      loss: of its batch.
      place: None, or that of the step in the first axis of both.
    """

    sums: Any
    loss: jax.Array
    place: int | None


def grouped(items: Iterable[T], size: int, kind: Callable[[T], Any]) -> Iterator[list[T]]:
    """Yield lists of up to `size` items that follow one another and are of one kind.

    Example:
      >>> list(grouped([1, 1, 1, 2, 2], 2, kind=lambda item: item))
      [[1, 1], [1], [2, 2]]
    """
    group: list[T] = []
    for item in items:
        if group and (len(group) == size or kind(item) != kind(group[0])):
            yield group
            group = []
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


class Resident(NamedTuple):
    """The batches of a group, as rows of a dataset on the device.

    Attributes:
      arrays: a batch whose arrays hold all examples.
      places: (batches, rows) int32, the numbers of the examples of each batch.
      sent: the other arrays of each batch, with a first axis for the batches; None at the places of `arrays`.
    """

    arrays: Any
    places: Any
    sent: Any


def filled(batches: list[Any], size: int) -> tuple[tuple[Any, ...] | Resident, np.int32]:
    """Return `size` batches, of which the last one may be repeated, and the number of those that were given."""
    every = (*batches, *batches[-1:] * (size - len(batches)))
    count = np.int32(len(batches))
    rows = [jax.tree.leaves(batch)[0] for batch in every]
    if not isinstance(rows[0], Rows):
        return every, count
    arrays = jax.tree.map(lambda leaf: leaf.array if isinstance(leaf, Rows) else None, batches[0])
    others = [jax.tree.map(lambda leaf: None if isinstance(leaf, Rows) else leaf, batch) for batch in every]
    sent = jax.tree.map(lambda *leaves: np.stack(leaves), *others)
    return Resident(arrays, np.stack([leaf.places for leaf in rows]), sent), count


def gathered(batch: Any) -> Any:
    """Return a batch with arrays in place of `Rows`."""
    return jax.tree.map(lambda leaf: leaf.gathered() if isinstance(leaf, Rows) else leaf, batch)


def repeated(
    step: Callable[[Any, Any], tuple[Any, Any]], carry: Any, batches: tuple[Any, ...] | Resident, count: Any
) -> Any:
    """Take a step for each of the first `count` batches, in a loop on the device.

    Args:
      step: (carry, batch) -> (carry, result); pure.
      carry: the state before the first step.
      batches: of one shape; or the rows of a dataset, which the loop gathers.
      count: int32; a program serves groups that are not full, too.

    Returns:
      (the carry after the last step, the results with a first axis for the steps).
    """
    at, size = _picker(batches)
    # Traced once: the shapes of the results are needed before the loop.
    closed, shapes = jax.make_jaxpr(step, return_shape=True)(carry, jax.eval_shape(at, 0))
    run, structure = jaxpr_as_fun(closed), jax.tree.structure(shapes)
    results = jax.tree.map(lambda shape: jnp.zeros((size, *shape.shape), shape.dtype), shapes[1])

    def body(i: Any, state: Any) -> Any:
        carry, results = state
        batch = at(i)
        carry, result = jax.tree.unflatten(structure, run(*jax.tree.leaves((carry, batch))))
        return carry, jax.tree.map(lambda each, one: each.at[i].set(one), results, result)

    return jax.lax.fori_loop(0, count, body, (carry, results))


def _is_none(leaf: Any) -> bool:
    return leaf is None


def _picker(batches: tuple[Any, ...] | Resident) -> tuple[Callable[[Any], Any], int]:
    """Return a function from a number to the batch of that number, and the number of batches."""
    if isinstance(batches, Resident):
        arrays, places, sent = batches

        def at(i: Any) -> Any:
            gathered = jax.tree.map(lambda array: jnp.take(array, places[i], axis=0, mode="clip"), arrays)
            # Each leaf is None in one of the two.
            return jax.tree.map(
                lambda a, b: b if a is None else a, gathered, jax.tree.map(lambda a: a[i], sent), is_leaf=_is_none
            )

        return at, len(places)
    stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *batches)
    return lambda i: jax.tree.map(lambda parts: parts[i], stacked), len(batches)
