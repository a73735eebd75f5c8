"""Image files by their paths, with a label for each."""

import dataclasses
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any, Self, overload

import numpy as np

from resfit._utils.keywords import checked
from resfit._utils.optional_import import load_package
from resfit._utils.paths import expand_user
from resfit.data.cores import cores
from resfit.data.crops import crop_of, output_size
from resfit.data.decode import MODES, decode
from resfit.data.records import as_labels, stack_images
from resfit.data.sources.broken_files import readable
from resfit.data.sources.splitting import split_rows
from resfit.errors import DataError

if TYPE_CHECKING:
    import matplotlib.figure


@checked("data arguments")
def files(
    paths: Iterable[str | os.PathLike[str]],
    labels: Any = None,
    *,
    size: int | tuple[int, int] | None = None,
    crop: str | float | None = None,
    mode: str = "RGB",
    classes: Sequence[str] | None = None,
    threads: int | None = None,
    on_error: str = "raise",
) -> "ImageFiles":
    """Load image files by their paths, such as those of a table, for `fit`, `evaluate` and `predict`.

    Threads decode the images while the step runs, as those of `resfit.data.folder`, with the same options.

    Args:
      paths: the path of each image: a list, an array, or a column of pandas such as `table["path"]`.
      labels: one entry per path: class names, class numbers, or numbers to predict; or one row of numbers per path. A
        pandas DataFrame has one column per class, whose names are the class names. None for `predict`.
      size: as in `resfit.data.folder`.
      crop: as in `resfit.data.folder`.
      mode: as in `resfit.data.folder`.
      classes: the class names in the order of their numbers; by default the names among the labels, sorted. Pass
        `classes=train.classes` for another split.
      threads: as in `resfit.data.folder`.
      on_error: as in `resfit.data.folder`.

    Raises:
      DataError: if a file does not exist or cannot be read, a label is missing or not one of `classes`, the numbers of
        paths and labels differ, or an option is invalid; during reading, if a file is damaged or images differ in size.
      MissingPackageError: if Pillow is not installed.

    Example:
      >>> import tempfile
      >>> from PIL import Image
      >>> folder = tempfile.mkdtemp()
      >>> paths = [f"{folder}/{name}.png" for name in ("a", "b", "c")]
      >>> for path in paths:
      ...     Image.new("RGB", (40, 30)).save(path)
      >>> images = files(paths, ["dog", "cat", "dog"], size=16)
      >>> images.classes, images.labels
      (('cat', 'dog'), array([1, 0, 1], dtype=int32))
      >>> images.take(slice(0, 2))[0].shape
      (2, 16, 16, 3)
    """
    out = check_options(size, crop, mode, threads, "resfit.data.files")
    listed = _listed(paths)
    numbers, names = _numbered(labels, None if classes is None else tuple(classes))
    if numbers is not None and len(numbers) != len(listed):
        raise DataError(
            f"Got {len(listed)} paths and {len(numbers)} labels. Expected one label per path. Select both from the "
            "same rows."
        )
    return ImageFiles(
        paths=listed,
        labels=numbers,
        classes=names,
        size=out,
        crop=crop,
        mode=mode,
        threads=cores() if threads is None else threads,
    ).checked_before(on_error)


def check_options(
    size: int | tuple[int, int] | None, crop: str | float | None, mode: str, threads: int | None, who: str
) -> tuple[int, int] | None:
    """Check the options of reading images, and return the size as (height, width)."""
    image_file = load_package("PIL.ImageFile", who, "pip install 'resfit[folder]'")
    if image_file.LOAD_TRUNCATED_IMAGES:
        raise DataError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is True. Expected False, Pillow's default: with True, Pillow fills "
            "truncated images with gray without an error."
        )
    if mode not in MODES:
        raise DataError(f"Expected mode to be one of {', '.join(MODES)}, got {mode!r}.")
    if threads is not None and threads < 0:
        raise DataError(f"Expected threads to be 0 (none) or more, got {threads}.")
    return output_size(size, crop)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ImageFiles:
    """A `Source` of image files, as `files` and `folder` return it.

    It is also a sequence of (image, label) pairs, as Grain's MapDataset.source and PyTorch's DataLoader read them. A
    slice is a source of the selected images, and `split` returns a training and a validation part.

    Attributes:
      paths: the paths of the images; of a folder sorted by class number and path.
      labels: (examples,) int32 class numbers, other numbers of the labels, or None.
      classes: class names by number, or None.
      size: (height, width) of the output, or None.
      crop: as in `resfit.data.folder`.
      mode: "L", "RGB" or "RGBA".
      threads: the number of decoding threads.
      key: (seed, epoch), which determine random crops; None until `for_epoch` sets them.
      skipped: the paths of files that cannot be read, with on_error="skip".
    """

    paths: tuple[str, ...]
    labels: np.ndarray | None
    classes: tuple[str, ...] | None
    size: tuple[int, int] | None
    crop: str | float | None
    mode: str
    threads: int
    key: tuple[int, int] | None = None
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        classes = "" if self.classes is None else f" of {len(self.classes)} classes"
        return (
            f"{type(self).__name__}({len(self)} images{classes}, size={self.size}, crop={self.crop!r}, "
            f"mode={self.mode!r}, files={self.description['files']:08x})"
        )

    @overload
    def __getitem__(self, row: int) -> Any: ...

    @overload
    def __getitem__(self, row: slice) -> Self: ...

    def __getitem__(self, row: int | slice) -> Any:
        if isinstance(row, slice):
            return self._selected(np.arange(len(self))[row])
        x, y, _ = self.take(np.asarray([range(len(self))[row]]))
        return x[0] if y is None else (x[0], y[0].item() if y.ndim == 1 else y[0])

    def split(self, validation: float = 0.2, *, seed: int = 0) -> tuple[Self, Self]:
        """Return a training and a validation part, stratified by class.

        Every class gives the same share of its images, and at least one of two. The validation part of `crop="random"`
        has `crop="center"`.

        Args:
          validation: the fraction of the images in the validation part.
          seed: determines the images of each part.

        Raises:
          DataError: if `validation` is not between 0 and 1, or no class has two images.

        Example:
          >>> import tempfile
          >>> from PIL import Image
          >>> paths = [f"{tempfile.mkdtemp()}/{i}.png" for i in range(10)]
          >>> for path in paths:
          ...     Image.new("RGB", (40, 30)).save(path)
          >>> train, val = files(paths, ["cat"] * 5 + ["dog"] * 5, size=16).split(0.2)
          >>> train.class_counts, val.class_counts
          ({'cat': 4, 'dog': 4}, {'cat': 1, 'dog': 1})
        """
        training, held_out = split_rows(self.labels, len(self), validation, seed)
        part = self._selected(held_out)
        return self._selected(training), dataclasses.replace(
            part, crop="center" if part.crop == "random" else part.crop
        )

    @property
    def class_counts(self) -> dict[str, int]:
        """The number of images of each class, by name; of class numbers without names, by number.

        Raises:
          DataError: if the labels are not class numbers.
        """
        labels = self.labels
        if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu":
            described = "no labels" if labels is None else f"labels of shape {labels.shape}, {labels.dtype}"
            raise DataError(f"The images have {described}. Expected one class number for each image.")
        names = self.classes or tuple(str(number) for number in range(int(labels.max(initial=-1)) + 1))
        counts = np.bincount(labels, minlength=len(names))
        return {name: int(count) for name, count in zip(names, counts, strict=True)}

    def show(self, count: int = 16, *, seed: int = 0) -> "matplotlib.figure.Figure":
        """Return a figure of random images with their class names. Needs `resfit[plot]`.

        Args:
          count: the largest number of images.
          seed: determines the images; and their crops, for `crop="random"`.
        """
        from resfit import plots

        rows = np.sort(np.random.default_rng(seed).permutation(len(self))[:count])
        x, y, _ = self.for_epoch(seed, 0).take(rows)
        return plots.batch(x, y, self.classes, count=count)

    def checked_before(self, on_error: str) -> Self:
        """Return the images without those that cannot be read; see `on_error` of `resfit.data.folder`."""
        good = readable(self.paths, self.mode, on_error)
        if good.all():
            return self
        broken = tuple(path for path, fine in zip(self.paths, good, strict=True) if not fine)
        kept = self._selected(np.flatnonzero(good))
        if self.classes and self.labels is not None and kept.labels is not None and self.labels.ndim == 1:
            lost = sorted({*self.labels.tolist()} - {*kept.labels.tolist()})
            if lost:
                raise DataError(
                    f"No image of the classes {[self.classes[label] for label in lost]} can be read, such as "
                    f"{broken[0]}. Expected at least one. Replace the files, or remove the class."
                )
        return dataclasses.replace(kept, skipped=broken)

    def _selected(self, rows: np.ndarray) -> Self:
        paths = tuple(self.paths[row] for row in rows.tolist())
        return dataclasses.replace(self, paths=paths, labels=self._labels_of(rows))

    def take(self, rows: slice | np.ndarray) -> tuple[np.ndarray, np.ndarray | None, None]:
        numbers = np.arange(len(self))[rows].tolist()
        names = [self.paths[row] for row in numbers]
        images = [
            decode(name, self.mode, self.size, crop_of(self.crop, self.size, self.key, (row,)))
            for row, name in zip(numbers, names, strict=True)
        ]
        return stack_images(images, names), self._labels_of(rows), None

    def _labels_of(self, rows: slice | np.ndarray) -> np.ndarray | None:
        return None if self.labels is None else self.labels[rows]

    @property
    def description(self) -> Mapping[str, Any]:
        if not self.paths:
            return {"files": 0}
        # Relative to the common folder, so that moving the folder does not change the description.
        root = _length_of_root(self.paths)
        files = zlib.crc32("\0".join(path[root:] for path in self.paths).encode(errors="surrogateescape"))
        return {
            "files": files,
            "size": None if self.size is None else list(self.size),
            "crop": self.crop,
            "mode": self.mode,
        }

    def for_epoch(self, seed: int | None, epoch: int) -> Self:
        """Return the same images with the random crops of one epoch; without a seed there are no random crops."""
        return self if seed is None else dataclasses.replace(self, key=(seed, epoch))


def _length_of_root(paths: Sequence[str]) -> int:
    """Return the length of the path of the folder that contains all of the files, or 0 without such a folder."""
    first, last = os.path.dirname(min(paths)), os.path.dirname(max(paths))
    return len(os.path.commonpath([first, last])) if os.path.isabs(first) == os.path.isabs(last) else 0


def _listed(paths: Any) -> tuple[str, ...]:
    """Return the paths as text; raise unless all of the files exist."""
    if isinstance(paths, str | os.PathLike):
        raise DataError(
            f"paths is the single path {os.fspath(paths)!r}. Expected one path per image. Pass [path], or load a "
            "folder with resfit.data.folder(path)."
        )
    if hasattr(paths, "columns"):
        columns = list(paths.columns)
        raise DataError(
            f"paths is a {type(paths).__name__} with the columns {columns}. Expected one column of paths, and one of "
            f"labels: resfit.data.files(table[{columns[0]!r}], table[{columns[-1]!r}])."
        )
    _check_ordered(paths, "paths")
    listed: list[str] = []
    for number, path in enumerate(paths):
        if not isinstance(path, str | os.PathLike):
            remedy = (
                "Decode it: os.fsdecode(path)."
                if isinstance(path, bytes)
                else "Remove rows without a path: table.dropna()."
            )
            raise DataError(
                f"paths[{number}] is {path!r:.60}, a {type(path).__name__}. Expected paths as text. {remedy}"
            )
        listed.append(os.fspath(expand_user(path)))
    if not listed:
        raise DataError("paths is empty. Expected the path of at least one image.")
    missing = [path for path in listed if not os.path.isfile(path)]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(listed)} files do not exist, such as {missing[0]}. Expected the paths of image "
            f"files, absolute or relative to {os.getcwd()}. Add the folder to the paths, as in 'images/' + "
            "table['path'], or remove these rows."
        )
    return tuple(listed)


def _check_ordered(values: Any, name: str) -> None:
    """Raise unless the values have an order that assigns labels to paths."""
    if isinstance(values, Mapping | Set):
        remedy = "paths, labels = zip(*labels.items())" if isinstance(values, Mapping) else "sorted(paths)"
        raise DataError(
            f"{name} is a {type(values).__name__}, whose order does not assign labels to paths. Expected a list with "
            f"one entry per image. Pass lists in one order, such as {remedy}."
        )
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise DataError(
            f"{name} is {values!r:.60}. Expected one entry per image. Pass a list, or the column of a table."
        )


def _numbered(labels: Any, classes: tuple[str, ...] | None) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    """Return labels as numbers, and the class names by number."""
    if labels is None:
        return None, classes
    if hasattr(labels, "columns"):  # a DataFrame
        names = tuple(map(str, labels.columns))
        if classes not in (None, names):
            raise DataError(
                f"classes is {classes}, but the columns of the labels are {names}. Expected the same names in one "
                "order. Select the columns in the order of the classes: table[list(classes)]."
            )
        return as_labels(labels.to_numpy().tolist(), "labels"), names
    _check_ordered(labels, "labels")
    listed = labels.tolist() if hasattr(labels, "tolist") else list(labels)
    missing = [number for number, label in enumerate(listed) if _is_missing(label)]
    if missing:
        raise DataError(
            f"labels has no value for {len(missing)} of {len(listed)} images, such as image {missing[0]}. Expected a "
            "label for each. Remove these rows: table.dropna()."
        )
    texts = [label for label in listed if isinstance(label, str)]
    if len(texts) < len(listed):
        numbers = as_labels(listed, "labels")  # raises if some labels are names and others are not
        _check_numbers(numbers, classes)
        return numbers, classes
    names = tuple(sorted(set(texts))) if classes is None else classes
    unknown = sorted(set(texts) - set(names))
    if len(set(names)) < len(names):
        raise DataError(f"classes is {names}. Expected classes to name each label once. Remove the repeated names.")
    if unknown:
        raise DataError(
            f"classes is {names}, but the labels hold {unknown}. Expected classes to name each label. Add the missing "
            "names, or remove these images."
        )
    table = {name: number for number, name in enumerate(names)}
    return np.asarray([table[label] for label in texts], np.int32), names


def _is_missing(label: Any) -> bool:
    """Return True for None, NaN, and the missing value of pandas."""
    return label is None or type(label).__name__ == "NAType" or (isinstance(label, float) and label != label)


def _check_numbers(numbers: np.ndarray, classes: tuple[str, ...] | None) -> None:
    if classes is not None and numbers.ndim == 1 and not 0 <= numbers.min() <= numbers.max() < len(classes):
        raise DataError(
            f"labels holds numbers from {numbers.min()} to {numbers.max()}, but classes has {len(classes)} names. "
            f"Expected numbers from 0 to {len(classes) - 1}. Add the missing names, or number the classes from 0."
        )
