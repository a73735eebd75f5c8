"""Arrays in memory as a source of examples; checks of arrays and weights."""

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from resfit.data.batches import Geometry
from resfit.data.indexed import IndexedBatches
from resfit.data.sources.stored import Stored, is_stored
from resfit.data.tensors import without_tensors
from resfit.data.values import check_values, has_values_to_check, is_sparse, refuse_masked, refuse_sparse
from resfit.errors import DataError

_CHECKED_AT_ONCE = 1 << 24  # bytes, which take milliseconds
_COMPARED = 64  # examples in the checksum of a dataset; reading more of a mapped file could take long


class ArraySource:
    """A `Source` of arrays in memory or in a file, or of dicts and tuples of such arrays.

    Of a memory-mapped, h5py or zarr array, and of any other object with a shape and slices, only the rows of a batch
    are read. Labels in such an array are read at once if there is one number or one row of numbers per example.

    The values of large arrays are checked when an example is first taken, so that no pass over them delays the first
    step.

    Args:
      x: inputs: an array (examples, ...) or a pytree of such arrays.
      y: labels in the same form, or None.
      weight: (examples,), a dict, tuple or list of such by output, or None.

    Attributes:
      x: the inputs, as arrays.
      labels: as an array or a pytree of such; None without labels, or if they stay in a file.
      weight: (examples,) float32 or None.
      in_memory: False if an array is read from its file; a memory-mapped array counts as in memory.

    Raises:
      DataError: if there are no examples, or arrays differ in length; from `take`, if inputs are not finite.
    """

    checked = True

    def __init__(self, x: Any, y: Any = None, weight: Any = None) -> None:
        self.x, y, self.weight = as_arrays(x, y, weight, stored=True)
        if isinstance(self.weight, np.ndarray) and not self.weight.any():
            raise DataError(
                f"All {len(self.weight)} sample weights are 0. Expected at least one weight above 0. Leave "
                "sample_weight out to weigh all examples equally."
            )
        self._leaves, self._structure = jax.tree.flatten((self.x, y, self.weight))
        self.in_memory = not any(isinstance(leaf, Stored) for leaf in self._leaves)
        self.labels = None if any(isinstance(leaf, Stored) for leaf in jax.tree.leaves(y)) else y
        self.threads = 0 if self.in_memory else 1  # one, because the object may not expect several
        self._plain = all(type(leaf) is np.ndarray and native(leaf) is leaf for leaf in self._leaves)
        self._unchecked = np.ones(len(self), bool) if has_values_to_check(self.x, y) else None
        if self.in_memory and sum(leaf.nbytes for leaf in jax.tree.leaves((self.x, y))) <= _CHECKED_AT_ONCE:
            self.take(slice(None))

    @property
    def description(self) -> Mapping[str, Any]:
        n = len(self)
        compared = np.unique(np.linspace(0, n - 1, min(n, _COMPARED)).astype(int))
        crc = jax.tree.map(lambda leaf: zlib.crc32(leaf.tobytes()), self.weight)
        weight = list(crc) if isinstance(crc, tuple) else crc
        return {
            "inputs": [f"{leaf.dtype}{list(leaf.shape[1:])}" for leaf in jax.tree.leaves(self.x)],
            "values": [zlib.crc32(leaf[compared].tobytes()) for leaf in jax.tree.leaves(self.x)],
            "weights": weight,
        }

    def __len__(self) -> int:
        return len(jax.tree.leaves(self.x)[0])

    def take(self, rows: slice | np.ndarray) -> tuple[Any, Any, np.ndarray | None]:
        if not self._plain:
            leaves = [native(array[rows]) for array in self._leaves]
        elif isinstance(rows, slice):
            leaves = [array[rows] for array in self._leaves]
        else:  # `take` is faster than an index
            leaves = [array.take(rows, 0) for array in self._leaves]
        taken: tuple[Any, Any, np.ndarray | None] = jax.tree_util.tree_unflatten(self._structure, leaves)
        if self._unchecked is not None:
            self._check(taken, rows, self._unchecked)
        return taken

    def _check(self, taken: tuple[Any, Any, Any], rows: slice | np.ndarray, unchecked: np.ndarray) -> None:
        """Check examples that were not taken before."""
        if unchecked[rows].any():
            check_values(taken[0], taken[1], np.arange(len(self))[rows])
            unchecked[rows] = False
        elif not unchecked.any():
            self._unchecked = None


class ArrayBatches(IndexedBatches):
    """Batches of arrays in memory: `IndexedBatches` of an `ArraySource`.

    Args:
      x: inputs, as for `ArraySource`.
      y: labels, as for `ArraySource`.
      weight: weights, as for `ArraySource`.
      **geometry: the fields of `Geometry`.

    Example:
      >>> batches = ArrayBatches(np.arange(5.0), np.arange(5), batch_size=2, seed=0)
      >>> batches.steps, [batch.size for batch in batches.epoch(0)]
      (3, [2, 2, 1])
    """

    def __init__(self, x: Any, y: Any = None, weight: Any = None, **geometry: Any) -> None:
        super().__init__(ArraySource(x, y, weight), Geometry(**geometry))


def native(array: np.ndarray) -> np.ndarray:
    """Return the array in native byte order and with at most 64 bits per value, as JAX requires."""
    if array.dtype == np.longdouble and array.dtype.itemsize > 8:
        with np.errstate(over="ignore"):  # check_values raises for infinite values
            return array.astype(np.float64)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def as_arrays(x: Any, y: Any = None, weight: Any = None, *, stored: bool = False) -> tuple[Any, Any, Any]:
    """Check inputs, labels and weights, and return them as NumPy arrays of one length.

    Tensors become NumPy arrays, and images with the channels first are moved to the channels last.

    Args:
      x: inputs.
      y: labels, or None.
      weight: sample weights, or None.
      stored: True to return large arrays that are not in memory as `Stored`, False to read them.

    Raises:
      DataError: if there are no examples, lengths differ, or an array holds objects or text.
    """
    lengths: dict[str, int] = {}
    given = {"x": x, "y": y, "sample_weight": weight}
    for path, leaf in jax.tree_util.tree_leaves_with_path(given, is_leaf=_is_one_array):
        refuse_sparse(path[0].key + jax.tree_util.keystr(path[1:]), leaf)
    x, y = without_tensors(x, y)
    _, weight = without_tensors(None, weight)
    x, y = _array_tree("x", x, lengths, 0 if stored else None), _array_tree("y", y, lengths, 2 if stored else None)
    weight = _array_tree("sample_weight", weight, lengths)
    if not lengths or min(lengths.values()) == 0:
        raise DataError(f"There are no examples: the lengths are {lengths}. Expected at least one example.")
    if len(set(lengths.values())) > 1:
        raise DataError(_unequal(x, y, lengths))
    labels = {jax.tree_util.keystr(path): own for path, own in jax.tree_util.tree_leaves_with_path(y)}

    def checked(path: Any, own: Any) -> Any:
        place = jax.tree_util.keystr(path)
        return check_weight(own, f"sample_weight{place}", labels.get(place))

    return x, y, jax.tree_util.tree_map_with_path(checked, weight)


def _array_tree(name: str, tree: Any, lengths: dict[str, int], kept: int | None = None) -> Any:
    """Convert the leaves of a tree to arrays, and add the length of each to `lengths`.

    Args:
      name: the name of the tree.
      tree: the tree.
      lengths: the length of each leaf by name.
      kept: arrays that are not in memory stay there if they have more than this number of dimensions; None reads them.
    """
    if tree is None:
        return None
    paths, structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_list_of_numbers)
    places = ((name + jax.tree_util.keystr(path), leaf) for path, leaf in paths)
    arrays = {place: _array(place, leaf, kept) for place, leaf in places}
    lengths.update({place: len(array) for place, array in arrays.items()})
    return jax.tree.unflatten(structure, arrays.values())


def _array(name: str, value: Any, kept: int | None = None) -> Any:
    """Convert one leaf to an array of real numbers, with one entry per example."""
    if is_stored(value):
        value = value if isinstance(value, Stored) else Stored(name, value)
    if not hasattr(value, "__array__") and not isinstance(value, list):
        remedy = " Pass weights by class as class_weight." if name.startswith("sample_weight") else ""
        raise DataError(f"{name} is a {type(value).__name__}; expected an array, or a dict or tuple of arrays.{remedy}")
    refuse_masked(name, value)
    stays = isinstance(value, Stored) and kept is not None and value.ndim > kept
    try:
        array = value if stays else np.asarray(value)
    except ValueError as error:  # lists of different lengths
        raise DataError(
            f"{name} is a list of {len(value)} entries that do not form an array: {error}. Expected entries of one "
            "shape. Pass batches as a list of tuples, [(x, y), ...]."
        ) from error
    if array.dtype == object or array.dtype.kind in "USOcmM":
        raise DataError(
            f"{name} is an array of dtype {array.dtype}, shape {array.shape}; expected real numbers. "
            f"{_remedy_for_dtype(name, array.dtype.kind)}"
        )
    if array.ndim == 0:
        raise DataError(
            f"{name} is a single value, {array}; expected one entry per example. If the data are an iterable of single "
            "examples, batch them first: `fit` iterates over batches."
        )
    return array if isinstance(array, np.memmap | Stored) else native(array)  # `take` converts the rows of a file


def _remedy_for_dtype(name: str, kind: str) -> str:
    if name.startswith("y"):
        return "Convert class names to numbers: np.unique(y, return_inverse=True)[1]."
    if kind == "c":
        return "Pass the real part, or np.abs."
    if kind in "US":
        return "Pass paths of photographs to model.predict_images(paths), or load them with resfit.data.folder(path)."
    return "Check that all images have one size."


def _unequal(x: Any, y: Any, lengths: dict[str, int]) -> str:
    """Return the error message for arrays of different lengths."""
    if isinstance(x, list) and len(x) > 1 and hasattr(y, "__len__") and len(x) == len(y):
        return (
            f"x is a list of {len(x)} arrays, which means {len(x)} inputs of {lengths['x[0]']} examples, but there are "
            f"{len(y)} labels. Expected one entry per example in every array. For a list of images of one size, pass "
            "np.stack(x)."
        )
    if isinstance(y, np.ndarray) and y.ndim == 2 and y.shape[1] == len(jax.tree.leaves(x)[0]):
        return (
            f"y is one array of shape {y.shape}, and there are {y.shape[1]} examples. Expected one entry per example. "
            f"For labels of {len(y)} outputs pass a tuple of arrays, tuple(map(np.asarray, y)); else y.T."
        )
    return (
        f"Expected one entry per example in every array, got lengths {lengths}. Pass arrays of the same examples in "
        "the same order."
    )


def check_weight(weight: np.ndarray, name: str = "sample_weight", y: Any = None) -> np.ndarray:
    """Return sample weights as float32, one per example, or one per pixel of labels (examples, height, width).

    Args:
      weight: of the examples.
      name: for messages.
      y: the labels, or None.

    Raises:
      DataError: if `weight` has another shape, or has negative or non-finite values.
    """
    of_pixels = getattr(y, "ndim", 0) > 2 and weight.ndim > 1
    if of_pixels and weight.shape not in (y.shape, y.shape[:-1]):
        raise DataError(
            f"{name} has shape {weight.shape} and the labels have {y.shape}. Expected one weight per example, "
            f"{y.shape[:1]}, or one per pixel, in the shape of the labels."
        )
    if weight.ndim != 1 and not of_pixels:
        remedy = f" Pass the one column: {name}[:, 0]." if weight.ndim == 2 and weight.shape[1] == 1 else ""
        if weight.ndim == 2 and weight.shape[1] > 1 and weight.shape == getattr(y, "shape", None):
            remedy = " For one weight per position, pass labels (examples, positions, 1), such as y[..., None]."
        raise DataError(f"Expected one {name} per example, shape (examples,), got shape {weight.shape}.{remedy}")
    with np.errstate(over="ignore"):
        cast = weight.astype(np.float32)
    if not np.isfinite(cast).all() or cast.min() < 0:
        worst = weight[np.flatnonzero(~(np.isfinite(cast) & (cast >= 0)))[0]]
        raise DataError(
            f"{name} holds a negative or non-finite value as float32: {worst}. Expected finite weights >= 0. "
            "Remove these examples, or give them weight 0."
        )
    return cast


def is_container(tree: Any) -> bool:
    """Return True if a tree holds several arrays; a list of numbers or of rows of numbers is one array."""
    return isinstance(tree, Mapping | tuple) or (isinstance(tree, list) and not _is_list_of_numbers(tree))


def _is_list_of_numbers(tree: Any) -> bool:
    """Return True for a list of numbers or of rows of numbers, of which NumPy makes one array."""
    return isinstance(tree, list) and not any(getattr(entry, "shape", ()) for entry in tree)


def _is_one_array(tree: Any) -> bool:
    return _is_list_of_numbers(tree) or is_sparse(tree)


def structure_of(tree: Any) -> str:
    """Describe a container of arrays for an error message, such as "dict of ['a', 'b']" or "tuple of 2"."""
    held = sorted(tree, key=str) if isinstance(tree, Mapping) else len(tree)
    return f"{type(tree).__name__} of {held}"


def split_validation(fraction: float, x: Any, y: Any, weight: Any) -> tuple[tuple[Any, Any, Any], tuple[Any, Any, Any]]:
    """Split off the last fraction of the examples for validation before any shuffling, as Keras does.

    Raises:
      DataError: if either part would be empty.
    """
    if not 0 < fraction < 1:
        raise DataError(f"Expected validation_split to be between 0 and 1, got {fraction}.")
    x, y, weight = as_arrays(x, y, weight, stored=True)
    n = len(jax.tree.leaves(x)[0])
    cut = int(n * (1 - fraction) + 1e-6)  # 10 * (1 - 0.9) is 0.9999999999999998
    if not 0 < cut < n:
        raise DataError(
            f"validation_split={fraction} of {n} examples leaves one part empty. Expected examples in both parts. "
            "Choose another fraction, or pass validation_data."
        )

    def part(rows: slice) -> tuple[Any, Any, Any]:
        take: Callable[[Any], Any] = lambda a: a.part(rows) if isinstance(a, Stored) else a[rows]  # noqa: E731
        x_part, y_part, weight_part = jax.tree.map(take, (x, y, weight))
        return x_part, y_part, weight_part

    return part(slice(None, cut)), part(slice(cut, None))
