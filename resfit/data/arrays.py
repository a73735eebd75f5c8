"""Arrays in memory as batches: shuffled by (seed, epoch), the short last one kept and, for evaluation, padded."""

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from resfit.data.batches import Batch
from resfit.errors import DataError

_log = logging.getLogger("resfit")


class ArrayBatches:
    """Batches of NumPy or JAX arrays, or of dicts and tuples of them.

    Args:
      x: inputs: an array (examples, ...) or a pytree of such.
      y: labels likewise, or None.
      weight: (examples,) or None.
      batch_size: examples in a batch.
      seed: with the epoch it decides the order; None keeps the order of the arrays.
      pad: pad every batch to one shape and mask what was added, so that one executable serves all of them.
      min_batch: a last batch of fewer examples is dropped, with a warning (BatchNorm has no use for one example).
      drop_remainder: drop a short last batch of any size.

    Raises:
      DataError: if there are no examples, or arrays differ in length.

    Example:
      >>> batches = ArrayBatches(np.arange(5.0), np.arange(5), batch_size=2, seed=0)
      >>> batches.steps, [batch.size for batch in batches.epoch(0)]
      (3, [2, 2, 1])
    """

    def __init__(
        self,
        x: Any,
        y: Any = None,
        weight: Any = None,
        *,
        batch_size: int,
        seed: int | None = None,
        pad: bool = False,
        min_batch: int = 1,
        drop_remainder: bool = False,
    ) -> None:
        self._x, self._y, self._weight = as_arrays(x, y, weight)
        self._n = len(jax.tree.leaves(self._x)[0])
        if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer) or batch_size < 1:
            raise DataError(f"Expected batch_size to be a positive integer, got {batch_size!r}.")
        # A data set smaller than a batch is padded no further than to the next power of two: a handful of executables.
        self._batch = (
            int(batch_size) if self._n >= batch_size else min(int(batch_size), 1 << (self._n - 1).bit_length())
        )
        self._seed = seed
        self._pad = pad
        full, rest = divmod(self._n, self._batch)
        if drop_remainder and self._n < batch_size:
            raise DataError(
                f"drop_remainder=True with {self._n} examples and batch_size={batch_size} leaves nothing to train on."
            )
        dropped = rest if full and rest and (drop_remainder or rest < min_batch) else 0
        if dropped and not drop_remainder:
            _log.warning(
                "The last batch of every epoch has %d example(s), too few for BatchNorm, and is left out. "
                "Another batch_size avoids that: %d examples, batch_size=%d.", rest, self._n, batch_size,
            )  # fmt: skip
        self.examples = self._n - dropped
        self.steps = -(-self.examples // self._batch)

    @property
    def labels(self) -> Any:
        return self._y

    def epoch(self, epoch: int) -> Iterator[Batch]:
        order = None if self._seed is None else np.random.default_rng((self._seed, epoch)).permutation(self._n)
        for start in range(0, self.examples, self._batch):
            stop = min(start + self._batch, self.examples)
            yield self._rows(slice(start, stop) if order is None else order[start:stop], stop - start)

    def _rows(self, rows: slice | np.ndarray, size: int) -> Batch:
        def take(array: np.ndarray) -> np.ndarray:
            return array[rows]

        x, y = jax.tree.map(take, (self._x, self._y))
        weight = None if self._weight is None else self._weight[rows]
        if not self._pad:
            return Batch(x, y, weight, None, size)
        missing = self._batch - size
        if missing:
            # Copies of the last row, not zeros: whatever the network does to real rows, it survives these.
            x, y, weight = jax.tree.map(
                lambda a: np.concatenate([a, np.repeat(a[-1:], missing, axis=0)]), (x, y, weight)
            )
        return Batch(x, y, weight, np.arange(self._batch) < size, size)


def as_arrays(x: Any, y: Any = None, weight: Any = None) -> tuple[Any, Any, np.ndarray | None]:
    """Checks inputs, labels and weights and returns them as NumPy arrays of one length.

    Raises:
      DataError: if there are no examples, lengths differ, or an array holds objects or text.
    """
    lengths: dict[str, int] = {}

    def convert(name: str, value: Any) -> np.ndarray:
        if not hasattr(value, "__array__") and not isinstance(value, list):
            raise DataError(f"{name} is a {type(value).__name__}; expected an array, or a dict or tuple of arrays.")
        array = np.asarray(value)
        if array.dtype == object or array.dtype.kind in "US":
            remedy = (
                "Class names need numbers: np.unique(y, return_inverse=True)[1]."
                if name.startswith("y")
                else "Are the images of one size?"
            )
            raise DataError(
                f"{name} is an array of dtype {array.dtype}, shape {array.shape}; expected numbers. {remedy}"
            )
        if array.ndim == 0:
            raise DataError(f"{name} is a single value, {array!r}; expected one entry per example.")
        lengths[name] = len(array)
        return array

    def convert_tree(name: str, tree: Any) -> Any:
        if tree is None:
            return None
        if isinstance(tree, list) and not any(hasattr(leaf, "__array__") for leaf in tree):
            return convert(name, tree)  # a plain list of numbers is an array, as everywhere in NumPy
        paths, structure = jax.tree_util.tree_flatten_with_path(tree)
        return jax.tree.unflatten(structure, [convert(name + jax.tree_util.keystr(path), leaf) for path, leaf in paths])

    x, y, weight = convert_tree("x", x), convert_tree("y", y), convert_tree("sample_weight", weight)
    if not lengths or min(lengths.values()) == 0:
        raise DataError(f"There are no examples: the lengths are {lengths}. Expected at least one.")
    if len(set(lengths.values())) > 1:
        raise DataError(f"Expected one entry per example in every array, got lengths {lengths}.")
    if weight is not None:
        weight = check_weight(weight)
    return x, y, weight


def check_weight(weight: np.ndarray) -> np.ndarray:
    """Sample weights as float32, one per example.

    Raises:
      DataError: for another rank, or values that are negative or not finite.
    """
    if weight.ndim != 1:
        raise DataError(f"Expected one sample_weight per example, shape (examples,), got shape {weight.shape}.")
    if not np.isfinite(weight).all() or weight.min() < 0:
        raise DataError("sample_weight holds negative or non-finite values. Expected finite weights >= 0.")
    return weight.astype(np.float32)


def class_weights(y: Any, class_weight: Mapping[int, float]) -> np.ndarray:
    """The weight of each example by its class, as Keras's class_weight: classes that are not named weigh 1.

    Args:
      y: (examples,) or (examples, 1) class numbers, or (examples, classes) one-hot or soft targets.
      class_weight: class number -> weight.

    Example:
      >>> class_weights(np.array([0, 1, 2, 1]), {1: 2.0})
      array([1., 2., 1., 2.], dtype=float32)
    """
    if getattr(y, "ndim", 0) not in (1, 2):
        raise DataError(f"class_weight needs labels as one array, (examples,) or (examples, classes); got {y!r:.60}.")
    classes = (y if y.ndim == 1 else y[:, 0] if y.shape[1] == 1 else y.argmax(axis=1)).astype(np.int64)
    names = {int(key): float(value) for key, value in class_weight.items()}
    if any(key < 0 or not np.isfinite(value) or value < 0 for key, value in names.items()):
        raise DataError(f"class_weight is {names}. Expected class numbers from 0 and finite weights >= 0.")
    table = np.ones(max([*names, int(classes.max(initial=0))]) + 1, np.float32)
    table[list(names)] = list(names.values())
    weights: np.ndarray = table[classes]
    return weights


def split_validation(fraction: float, x: Any, y: Any, weight: Any) -> tuple[tuple[Any, Any, Any], tuple[Any, Any, Any]]:
    """Splits off the last fraction of the examples for validation, before any shuffling, as Keras does.

    Raises:
      DataError: if either side would be empty.
    """
    if not 0 < fraction < 1:
        raise DataError(f"Expected validation_split to be between 0 and 1, got {fraction}.")
    x, y, weight = as_arrays(x, y, weight)
    n = len(jax.tree.leaves(x)[0])
    cut = int(n * (1 - fraction) + 1e-6)  # 10 * (1 - 0.9) is 0.9999999999999998
    if not 0 < cut < n:
        raise DataError(
            f"validation_split={fraction} of {n} examples leaves one side empty. Expected examples on both."
        )

    def part(rows: slice) -> tuple[Any, Any, Any]:
        take: Callable[[np.ndarray], np.ndarray] = lambda a: a[rows]  # noqa: E731
        x_part, y_part, weight_part = jax.tree.map(take, (x, y, weight))
        return x_part, y_part, weight_part

    return part(slice(None, cut)), part(slice(cut, None))
