"""Functions for the adapters of PyTorch's datasets and loaders. PyTorch is never imported."""

import itertools
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from resfit.data.decode import is_picture
from resfit.data.records import stack_images
from resfit.data.tensors import library_of
from resfit.errors import DataError


def is_torch(x: Any, *names: str) -> bool:
    """Return True if the class of `x` is one of these classes of `torch.utils.data`, or derived from one."""
    return any(kind.__module__.startswith("torch.utils.data") and kind.__name__ in names for kind in type(x).__mro__)


def seed_torch(key: tuple[int, ...], *generators: Any) -> None:
    """Seed PyTorch's random numbers, and these generators, with a number that depends only on `key`."""
    number = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))
    sys.modules["torch"].manual_seed(number)
    for generator in generators:
        generator.manual_seed(number)


def seeded(items: Iterator[Any], key: tuple[int, ...]) -> Iterator[Any]:
    """Yield the items, and seed PyTorch before each: random transforms depend on the key and the position alone."""
    for number in itertools.count():
        seed_torch((*key, number))
        try:
            item = next(items)
        except StopIteration:
            return
        yield item


def as_tuple(item: Any) -> Any:
    """Return a batch or example of PyTorch, with tuples in place of lists: (images, labels)."""
    return tuple(map(as_tuple, item)) if isinstance(item, list) and not _is_numbers(item) else item


def _is_numbers(item: Any) -> bool:
    return isinstance(item, list) and all(isinstance(entry, bool | int | float | str) for entry in item)


def collated(examples: list[Any], name: str) -> Any:
    """Stack the examples of a dataset to a batch in the same form.

    Args:
      examples: images, (image, label) pairs, or other trees of tensors, arrays, numbers and PIL images.
      name: the class of the dataset, for errors.

    Raises:
      DataError: if the examples differ in form, shape or dtype.
    """
    try:
        return jax.tree.map(lambda *leaves: _stacked(leaves), *map(as_tuple, examples), is_leaf=_is_numbers)
    except (ValueError, RuntimeError, TypeError) as error:  # PyTorch raises RuntimeError for other shapes
        raise DataError(
            f"The examples of the {name} do not form a batch: {error}. Expected examples of one form and size, such as "
            "(image, label). Resize images in the dataset, or pass a DataLoader with collate_fn."
        ) from error


def _stacked(leaves: tuple[Any, ...]) -> Any:
    first = leaves[0]
    if library_of(first) == "torch":
        return sys.modules["torch"].stack(leaves)
    if is_picture(first):
        return stack_images(leaves)
    return np.stack([np.asarray(leaf) for leaf in leaves])
