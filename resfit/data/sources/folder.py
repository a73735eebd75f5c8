"""Images in one folder per class: path/class_name/anything.jpg."""

import dataclasses
import logging
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from resfit._utils.optional_import import load_package
from resfit._utils.paths import expand_user
from resfit.data.cores import cores
from resfit.data.crops import crop_of, output_size
from resfit.data.decode import MODES, decode
from resfit.data.records import stack_images
from resfit.errors import DataError

_log = logging.getLogger("resfit")

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_SPLITS = {"train", "training", "val", "valid", "validation", "test"}


def folder(
    path: str | Path,
    *,
    size: int | tuple[int, int] | None = None,
    crop: str | None = None,
    mode: str = "RGB",
    classes: Sequence[str] | None = None,
    threads: int | None = None,
) -> "ImageFolder":
    """Load the images of a folder with one subfolder per class, for `fit`, `evaluate` and `predict`.

    The layout is that of ImageNet and torchvision: path/class_name/anything.jpg, at any depth below the class folder.
    Links are followed and the case of suffixes is ignored. Hidden files and folders and __MACOSX folders are skipped;
    files with other suffixes are skipped with a warning that counts them. Threads decode images while the step runs.

    The EXIF orientation is applied. An animation yields its first frame.

    Args:
      path: the folder.
      size: output size in pixels: n for squares, or (height, width). None keeps the size of every image; all images
        must then have one size.
      crop: None resizes the whole image and changes its aspect ratio. "random", for training, crops 8 to 100 % of the
        area at an aspect ratio from 3/4 to 4/3 and resizes the crop; (seed, epoch, image) determine it. "center", for
        evaluation, crops the central 224 of 256 pixels of the shorter side, or the same share at other sizes.
      mode: "RGB", "L" (gray) or "RGBA". 16-bit images keep their upper 8 bits; an alpha channel is dropped unless the
        mode has one.
      classes: the names of the class folders in the order of their numbers; by default all class folders, sorted.
        `fit` and `evaluate` map other orders and missing classes by name; with `classes=train.classes`, another split
        uses the same numbers.
      threads: the number of decoding threads; by default one per core, at most 16.

    Raises:
      DataError: if the folder does not exist or has no class folders, a class has no image, or an option is invalid;
        during reading, if a file is damaged or images differ in size (the message names the file).
      MissingPackageError: if Pillow is not installed.

    Example:
      >>> import tempfile
      >>> from PIL import Image
      >>> path = Path(tempfile.mkdtemp())
      >>> for name, color in (("cats", "gray"), ("dogs", "brown")):
      ...     (path / name).mkdir()
      ...     Image.new("RGB", (40, 30), color).save(path / name / "1.png")
      >>> images = folder(path, size=16, crop="center")
      >>> images.classes, images.labels
      (('cats', 'dogs'), array([0, 1], dtype=int32))
      >>> images.take(slice(0, 2))[0].shape
      (2, 16, 16, 3)
    """
    image_file = load_package("PIL.ImageFile", "resfit.data.folder", "pip install 'resfit[folder]'")
    if image_file.LOAD_TRUNCATED_IMAGES:
        raise DataError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is True. Expected False, Pillow's default: with True, Pillow fills "
            "truncated images with gray without an error."
        )
    if mode not in MODES:
        raise DataError(f"Expected mode to be one of {', '.join(MODES)}, got {mode!r}.")
    out = output_size(size, crop)
    if threads is not None and threads < 0:
        raise DataError(f"Expected threads to be 0 (none) or more, got {threads}.")
    names, labels, paths = _listed(Path(expand_user(path)), None if classes is None else tuple(classes))
    return ImageFolder(
        paths=paths,
        labels=labels,
        classes=names,
        size=out,
        crop=crop,
        mode=mode,
        threads=cores() if threads is None else threads,
    )


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ImageFolder:
    """A `Source` of the images of a folder, as `folder` returns it.

    An `ImageFolder` is also a sequence of (image, label) pairs, as Grain's MapDataset.source and PyTorch's DataLoader
    read them. A slice is an `ImageFolder` of the selected images.

    Attributes:
      paths: the paths of the images, sorted by class number and path.
      labels: (examples,) int32 class numbers.
      classes: class names by number.
      size: (height, width) of the output, or None.
      crop: None, "random" or "center".
      mode: "L", "RGB" or "RGBA".
      threads: the number of decoding threads.
      key: (seed, epoch), which determine random crops; None until `for_epoch` sets them.
    """

    paths: tuple[str, ...]
    labels: np.ndarray
    classes: tuple[str, ...]
    size: tuple[int, int] | None
    crop: str | None
    mode: str
    threads: int
    key: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        return (
            f"ImageFolder({len(self)} images of {len(self.classes)} classes, size={self.size}, crop={self.crop!r}, "
            f"mode={self.mode!r}, files={self.description['files']:08x})"
        )

    @overload
    def __getitem__(self, row: int) -> tuple[np.ndarray, int]: ...

    @overload
    def __getitem__(self, row: slice) -> "ImageFolder": ...

    def __getitem__(self, row: int | slice) -> "tuple[np.ndarray, int] | ImageFolder":
        if isinstance(row, slice):
            return dataclasses.replace(self, paths=self.paths[row], labels=self.labels[row])
        x, y, _ = self.take(np.asarray([range(len(self))[row]]))
        return x[0], int(y[0])

    def take(self, rows: slice | np.ndarray) -> tuple[np.ndarray, np.ndarray, None]:
        numbers = np.arange(len(self))[rows].tolist()
        names = [self.paths[row] for row in numbers]
        images = [
            decode(name, self.mode, self.size, crop_of(self.crop, self.size, self.key, (row,)))
            for row, name in zip(numbers, names, strict=True)
        ]
        return stack_images(images, names), self.labels[rows], None

    @property
    def description(self) -> Mapping[str, Any]:
        if not self.paths:
            return {"files": 0}
        # Relative to the common folder, so that moving the folder does not change the description.
        root = len(os.path.commonpath([os.path.dirname(self.paths[0]), os.path.dirname(self.paths[-1])]))
        files = zlib.crc32("\0".join(path[root:] for path in self.paths).encode(errors="surrogateescape"))
        return {
            "files": files,
            "size": None if self.size is None else list(self.size),
            "crop": self.crop,
            "mode": self.mode,
        }

    def for_epoch(self, seed: int | None, epoch: int) -> "ImageFolder":
        """Return the same images with the random crops of one epoch; without a seed there are no random crops."""
        return self if seed is None else dataclasses.replace(self, key=(seed, epoch))


def _listed(root: Path, classes: tuple[str, ...] | None) -> tuple[tuple[str, ...], np.ndarray, tuple[str, ...]]:
    """Return the class names, the label of every image, and the path of every image."""
    if not root.is_dir():
        raise DataError(f"There is no folder {root}. Expected a folder that contains one folder of images per class.")
    entries = sorted(entry for entry in root.iterdir() if not _is_hidden(entry.name))
    found = [entry.name for entry in entries if entry.is_dir()]
    _check_classes(root, found, len(entries), classes)
    others = [str(entry) for entry in entries if not entry.is_dir()]
    names = tuple(found) if classes is None else classes
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        if name in found:
            images, rest = _images_of_class(root / name)
            paths += images
            labels += [label] * len(images)
            others += rest
    if others:
        _log.warning(
            "%d file(s) in %s are skipped, such as %s. Images end in %s and are inside the class folders.",
            len(others), root, others[0], ", ".join(SUFFIXES),
        )  # fmt: skip
    return names, np.asarray(labels, np.int32), tuple(paths)


def _check_classes(root: Path, found: list[str], entries: int, classes: tuple[str, ...] | None) -> None:
    """Raise if the folders in `root` are not class folders, or `classes` does not name each of them once."""
    if not found:
        raise DataError(
            f"{root} holds {entries} files and no folders. Expected one folder per class with its images inside, such "
            f"as {root / 'cats' / '1.jpg'}."
        )
    if classes is None and set(found) <= _SPLITS:
        raise DataError(
            f"{root} holds {', '.join(found)}, which are splits of a dataset and not classes. Expected the folder of "
            f"one split, such as {root / found[0]}. If the folders are classes, pass classes={found}."
        )
    if classes is not None and (len(set(classes)) < len(classes) or not set(found) <= set(classes)):
        raise DataError(
            f"classes is {classes}, but {root} holds the folders {', '.join(found)}. Expected classes to name each "
            "folder once. Add the missing names, or move the other folders away."
        )


def _images_of_class(folder: Path) -> tuple[list[str], list[str]]:
    """Return the image files of a class and its other files; raise if there are no images."""
    images, others = _images_below(folder)
    if not images:
        raise DataError(
            f"{folder} holds no image among its {len(others)} files. Expected files ending in {', '.join(SUFFIXES)}. "
            "Add images to the folder, or remove it."
        )
    return images, others


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"  # macOS adds this folder to archives


def _images_below(top: Path) -> tuple[list[str], list[str]]:
    """Return the image files in a folder and all folders below it, sorted, and the other files."""

    def fail(error: OSError) -> None:
        raise DataError(
            f"{error.filename} could not be listed: {error.strerror}. Expected a readable folder. Change its "
            "permissions, or remove it."
        )

    images: list[str] = []
    others: list[str] = []
    seen: set[str] = set()
    for directory, below, names in os.walk(top, followlinks=True, onerror=fail):
        real = os.path.realpath(directory)
        if real in seen:
            raise DataError(
                f"{directory} is a link to {real}, which was read before. Expected every image once. Remove the link."
            )
        seen.add(real)
        below[:] = [name for name in below if not _is_hidden(name)]
        for name in names:
            if not name.startswith("."):
                (images if name.lower().endswith(SUFFIXES) else others).append(os.path.join(directory, name))
    return sorted(images), sorted(others)
