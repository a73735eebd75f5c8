"""Arrays in memory as a source of examples, and what is checked and derived from them."""

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from resfit.data.batches import Geometry
from resfit.data.indexed import IndexedBatches
from resfit.data.values import check_values, refuse_masked
from resfit.errors import DataError

_LOOKED_AT_AT_ONCE = 1 << 30  # bytes
_LARGEST_WEIGHT = float(np.finfo(np.float32).max)
_COMPARED = 64  # examples that tell one data set from another: more might be read from a file for long


class ArraySource:
    """Arrays in memory or mapped from a file, or dicts and tuples of them, as a `Source`.

    Args:
      x: inputs: an array (examples, ...) or a pytree of such.
      y: labels likewise, or None.
      weight: (examples,) or None.

    Raises:
      DataError: if there are no examples, arrays differ in length, or inputs are not finite.
    """

    threads = 0
    checked = True

    def __init__(self, x: Any, y: Any = None, weight: Any = None) -> None:
        self._x, self._y, self._weight = as_arrays(x, y, weight)
        structure: Any  # whose methods no type checker knows
        if self._weight is not None and not self._weight.any():
            raise DataError(
                f"All {len(self._weight)} sample weights are 0, so that no example counts. Expected some above 0; "
                "leave sample_weight out to let all count alike."
            )
        self._leaves, structure = jax.tree.flatten((self._x, self._y, self._weight))
        self._rebuilt: Callable[[list[Any]], Any] = structure.unflatten
        # A file larger than memory is not read twice: what is mapped from it is looked at batch by batch.
        self._looked_at = sum(leaf.nbytes for leaf in jax.tree.leaves((self._x, self._y))) <= _LOOKED_AT_AT_ONCE
        if self._looked_at:
            check_values(self._x, self._y)

    @property
    def labels(self) -> Any:
        return self._y

    @property
    def description(self) -> Mapping[str, Any]:
        n = len(self)
        looked_at = np.unique(np.linspace(0, n - 1, min(n, _COMPARED)).astype(int))
        weight = None if self._weight is None else zlib.crc32(self._weight.tobytes())
        return {
            "inputs": [f"{leaf.dtype}{list(leaf.shape[1:])}" for leaf in jax.tree.leaves(self._x)],
            "values": [zlib.crc32(leaf[looked_at].tobytes()) for leaf in jax.tree.leaves(self._x)],
            "weights": weight,
        }

    def __len__(self) -> int:
        return len(jax.tree.leaves(self._x)[0])

    def take(self, rows: slice | np.ndarray) -> tuple[Any, Any, np.ndarray | None]:
        taken: tuple[Any, Any, np.ndarray | None] = self._rebuilt([native(array[rows]) for array in self._leaves])
        if not self._looked_at:
            check_values(taken[0], taken[1])
        return taken


class ArrayBatches(IndexedBatches):
    """Batches of arrays in memory: `IndexedBatches` of an `ArraySource`.

    Args:
      x: as for `ArraySource`; y and weight likewise.
      geometry: the fields of `Geometry`.

    Example:
      >>> batches = ArrayBatches(np.arange(5.0), np.arange(5), batch_size=2, seed=0)
      >>> batches.steps, [batch.size for batch in batches.epoch(0)]
      (3, [2, 2, 1])
    """

    def __init__(self, x: Any, y: Any = None, weight: Any = None, **geometry: Any) -> None:
        super().__init__(ArraySource(x, y, weight), Geometry(**geometry))


def native(array: np.ndarray) -> np.ndarray:
    """An array in this machine's byte order and of at most 64 bits, which is all that JAX takes."""
    if array.dtype == np.longdouble and array.dtype.itemsize > 8:
        with np.errstate(over="ignore"):  # infinite values are refused later
            return array.astype(np.float64)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def as_arrays(x: Any, y: Any = None, weight: Any = None) -> tuple[Any, Any, np.ndarray | None]:
    """Checks inputs, labels and weights and returns them as NumPy arrays of one length.

    Raises:
      DataError: if there are no examples, lengths differ, or an array holds objects or text.
    """
    lengths: dict[str, int] = {}

    def convert(name: str, value: Any) -> np.ndarray:
        if not hasattr(value, "__array__") and not isinstance(value, list):
            remedy = " Weights by class are class_weight." if name.startswith("sample_weight") else ""
            raise DataError(
                f"{name} is a {type(value).__name__}; expected an array, or a dict or tuple of arrays.{remedy}"
            )
        refuse_masked(name, value)
        try:
            array = np.asarray(value)
        except ValueError as error:  # lists of unequal lengths
            raise DataError(
                f"{name} is a list of {len(value)} from which no array can be made: {error}. Expected entries of one "
                "shape; batches are given as a list of tuples, [(x, y), ...]."
            ) from error
        if array.dtype == object or array.dtype.kind in "USOcmM":
            remedy = (
                "Class names need numbers: np.unique(y, return_inverse=True)[1]."
                if name.startswith("y")
                else "Take the real part, or np.abs."
                if array.dtype.kind == "c"
                else "Files of images are read by resfit.data.folder(path), or by model.transforms.batch(paths)."
                if array.dtype.kind in "US"
                else "Are the images of one size?"
            )
            raise DataError(
                f"{name} is an array of dtype {array.dtype}, shape {array.shape}; expected real numbers. {remedy}"
            )
        if array.ndim == 0:
            raise DataError(
                f"{name} is a single value, {array}; expected one entry per example. Whatever yields single examples "
                "must be batched first: what `fit` iterates over are batches."
            )
        lengths[name] = len(array)
        return array if isinstance(array, np.memmap) else native(array)  # what is mapped is made so as it is read

    def convert_tree(name: str, tree: Any) -> Any:
        if tree is None:
            return None
        if isinstance(tree, list) and not any(getattr(leaf, "ndim", 0) for leaf in tree):
            return convert(name, tree)  # a plain list of numbers is an array, as everywhere in NumPy
        paths, structure = jax.tree_util.tree_flatten_with_path(tree)
        return jax.tree.unflatten(structure, [convert(name + jax.tree_util.keystr(path), leaf) for path, leaf in paths])

    if _is_container(weight):
        raise DataError(
            f"sample_weight is a {structure_of(weight)}. Expected one array, (examples,): an example has one weight, "
            "for all of its outputs. Weigh outputs against one another in Model.compute_loss. Weights by class are "
            "class_weight."
        )
    x, y, weight = convert_tree("x", x), convert_tree("y", y), convert_tree("sample_weight", weight)
    if not lengths or min(lengths.values()) == 0:
        raise DataError(f"There are no examples: the lengths are {lengths}. Expected at least one.")
    if len(set(lengths.values())) > 1:
        raise DataError(_unequal(x, y, lengths))
    if weight is not None:
        weight = check_weight(weight)
    return x, y, weight


def _unequal(x: Any, y: Any, lengths: dict[str, int]) -> str:
    """What to say of arrays of several lengths."""
    if isinstance(x, list) and len(x) > 1 and hasattr(y, "__len__") and len(x) == len(y):
        return (
            f"x is a list of {len(x)} arrays, which is {len(x)} inputs of {lengths['x[0]']} examples, and there are "
            f"{len(y)} labels. Expected one entry per example in every array: np.stack(x) makes one array of a list of "
            "images of one size."
        )
    return (
        f"Expected one entry per example in every array, got lengths {lengths}. Cut them to the same examples, or look "
        "for what left some out."
    )


def check_weight(weight: np.ndarray) -> np.ndarray:
    """Sample weights as float32, one per example.

    Raises:
      DataError: for another rank, or values that are negative or not finite.
    """
    if weight.ndim != 1:
        remedy = " Take its one column: sample_weight[:, 0]." if weight.ndim == 2 and weight.shape[1] == 1 else ""
        raise DataError(f"Expected one sample_weight per example, shape (examples,), got shape {weight.shape}.{remedy}")
    with np.errstate(over="ignore"):
        cast = weight.astype(np.float32)
    if not np.isfinite(cast).all() or cast.min() < 0:
        raise DataError("sample_weight holds negative or non-finite values, as float32. Expected finite weights >= 0.")
    return cast


def class_weights(y: Any, class_weight: Mapping[int, float]) -> np.ndarray:
    """The weight of each example by its class, as Keras's class_weight: classes that are not named weigh 1.

    Args:
      y: (examples,) or (examples, 1) class numbers, or (examples, classes) one-hot or soft targets, of which the
        largest counts.
      class_weight: class number -> weight.

    Raises:
      DataError: if the labels are none of these, such as those of several outputs, or multi-hot.

    Example:
      >>> class_weights(np.array([0, 1, 2, 1]), {1: 2.0})
      array([1., 2., 1., 2.], dtype=float32)
    """
    names = check_class_weight(class_weight)
    if _is_container(y):
        raise DataError(
            f"class_weight needs labels as one array, (examples,) or (examples, classes); got a {structure_of(y)}. "
            "Leave class_weight out and pass sample_weight, one weight for each example: an example has one loss, in "
            "which Model.compute_loss weighs the outputs."
        )
    y = None if y is None else np.asarray(y)
    if getattr(y, "ndim", 0) not in (1, 2):
        found = "none" if y is None or y.shape == () else f"{y!r:.60}"
        raise DataError(
            f"class_weight needs labels as one array, (examples,) or (examples, classes); got {found}. Pass y, or "
            "leave class_weight out and give sample_weight."
        )
    if y.dtype.kind in "OUS":
        return np.ones(len(y), np.float32)  # `as_arrays` says what is wrong with them
    classes = (y if y.ndim == 1 else y[:, 0] if y.shape[1] == 1 else y.argmax(axis=1)).astype(np.int64)
    if y.ndim == 2 and y.shape[1] > 1 and names and max(names) >= y.shape[1]:
        raise DataError(
            f"class_weight names the class {max(names)}, and the labels have {y.shape[1]} columns. Expected class "
            f"numbers from 0 to {y.shape[1] - 1}."
        )
    if y.ndim == 2 and y.shape[1] > 1:
        _check_one_class_each(y)
    table = np.ones(max([*names, int(classes.max(initial=0))]) + 1, np.float32)
    table[list(names)] = list(names.values())
    weights: np.ndarray = table[classes]
    return weights


def _check_one_class_each(targets: np.ndarray) -> None:
    sums = targets.sum(axis=1, dtype=np.float64)
    off = np.flatnonzero(~(np.abs(sums - 1) <= 1e-3))
    if len(off):
        raise DataError(
            f"class_weight weighs whole examples by their one class, and row {off[0]} of the labels sums to "
            f"{sums[off[0]]:.4g}. Expected one class for each example. Weigh several labels inside the loss: "
            "loss=lambda logits, labels: (weights * optax.sigmoid_binary_cross_entropy(logits, labels)).mean(axis=1)."
        )


def _is_container(tree: Any) -> bool:
    """Return True if a tree holds several arrays; a list of numbers, or of rows of numbers, is one array."""
    return isinstance(tree, Mapping | tuple) or (isinstance(tree, list) and any(hasattr(leaf, "ndim") for leaf in tree))


def structure_of(tree: Any) -> str:
    """A container of arrays in words, for messages: dict of ['a', 'b'], tuple of 2."""
    held = sorted(tree, key=str) if isinstance(tree, Mapping) else len(tree)
    return f"{type(tree).__name__} of {held}"


def check_class_weight(class_weight: Any) -> dict[int, float]:
    """class_weight as class number -> weight.

    Raises:
      DataError: if it is no mapping of class numbers to finite weights that are not negative.
    """
    if not isinstance(class_weight, Mapping):
        raise DataError(
            f"class_weight is {class_weight!r:.60}. Expected a dict of class numbers and weights, such as "
            "{0: 1.0, 1: 5.0}. Weights that balance the classes: dict(enumerate(len(y) / (n * np.bincount(y)))) for n "
            "classes; a list of weights: dict(enumerate(weights))."
        )
    if any(isinstance(value, Mapping) for value in class_weight.values()):
        raise DataError(
            f"class_weight is {dict(class_weight)!r:.60}, weights for each output. Expected weights for the classes of "
            "one array of labels, {0: 1.0, 1: 5.0}. Pass sample_weight, one weight for each example, or weigh the "
            "outputs in Model.compute_loss."
        )
    try:
        names = {int(key): float(value) for key, value in class_weight.items()}
    except (TypeError, ValueError) as error:
        raise DataError(
            f"class_weight is {dict(class_weight)!r:.60}: {error}. Expected class numbers, as in the labels, and "
            "weights that are numbers: {0: 1.0, 1: 5.0}."
        ) from error
    if any(key < 0 or not 0 <= value <= _LARGEST_WEIGHT for key, value in names.items()):
        raise DataError(f"class_weight is {names}. Expected class numbers from 0 and finite weights >= 0.")
    return names


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
