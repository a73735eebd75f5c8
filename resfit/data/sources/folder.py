"""A folder of class folders of images: path/class_name/anything.jpg."""

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
from resfit.data.crops import crop_of, height_and_width
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
    """The images of a folder that holds one folder for each class, as data for `fit`, `evaluate` and `predict`.

    The layout is ImageNet's and torchvision's: path/class_name/anything.jpg, at any depth below the class folder,
    through links, suffixes in any case. Files and folders whose names begin with a dot, and folders named __MACOSX, are
    skipped; files with other suffixes are left out, with a warning that counts them. Images are decoded by threads
    while the step runs.

    Images are turned upright by the orientation in their EXIF data. Of an animation, the first frame is taken.

    Args:
      path: the folder.
      size: pixels of what comes out: n for squares, or (height, width). None keeps every image as it is; they must then
        be of one size.
      crop: None resizes the whole image, whatever its aspect ratio. "random", for training, cuts out 8 to 100 % of its
        area at an aspect ratio from 3/4 to 4/3 and resizes that, anew in every epoch, decided by (seed, epoch, image)
        alone. "center", for evaluation, is the middle 224 of 256 pixels of the shorter side, or that share at any other
        size.
      mode: "RGB", "L" (grey) or "RGBA". 16-bit images keep their upper 8 bits; an alpha channel that is not asked for
        is left out.
      classes: the names of the class folders in the order of their numbers; by default those there are, sorted. `fit`
        and `evaluate` map other orders and missing classes by name; `train.classes` gives another split the same
        numbers from the start.
      threads: that decode; by default one for each core, at most 16.

    Raises:
      DataError: if there is no such folder, it holds no class folders, a class holds no image, or an option is unknown;
        when images are read, naming the file, if one is damaged or they differ in size.
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
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is True: files that end too early would be filled up with grey, "
            "silently. Expected False, Pillow's default."
        )
    if mode not in MODES:
        raise DataError(f"Expected mode to be one of {', '.join(MODES)}, got {mode!r}.")
    if crop not in (None, "random", "center"):
        raise DataError(f"Expected crop to be None, 'random' or 'center', got {crop!r}.")
    if crop is not None and size is None:
        raise DataError(f"crop={crop!r} needs the size of what comes out. Expected size=224, or another.")
    if threads is not None and threads < 0:
        raise DataError(f"Expected threads to be 0 (none) or more, got {threads}.")
    names, labels, paths = _listed(Path(expand_user(path)), None if classes is None else tuple(classes))
    return ImageFolder(
        paths=paths,
        labels=labels,
        classes=names,
        size=None if size is None else height_and_width(size),
        crop=crop,
        mode=mode,
        threads=cores() if threads is None else threads,
    )


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ImageFolder:
    """The images of a folder, as a `Source`: what `folder` returns.

    Also a sequence of (image, label) pairs, which is what Grain's MapDataset.source and PyTorch's DataLoader read. A
    slice of it is an `ImageFolder` of these images.

    Attributes:
      paths: of the images: class by class, sorted.
      labels: (examples,) int32 class numbers.
      classes: class names, by number.
      size: (height, width) of what comes out, or None.
      crop: None, "random" or "center".
      mode: "L", "RGB" or "RGBA".
      threads: that decode.
      key: (seed, epoch), which decide random crops; None until `for_epoch` sets them.
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
        # Below their common folder, which may be moved.
        root = len(os.path.commonpath([os.path.dirname(self.paths[0]), os.path.dirname(self.paths[-1])]))
        files = zlib.crc32("\0".join(path[root:] for path in self.paths).encode(errors="surrogateescape"))
        return {
            "files": files,
            "size": None if self.size is None else list(self.size),
            "crop": self.crop,
            "mode": self.mode,
        }

    def for_epoch(self, seed: int | None, epoch: int) -> "ImageFolder":
        """The same images with the crops of one epoch; a seed of None is none."""
        return self if seed is None else dataclasses.replace(self, key=(seed, epoch))


def _listed(root: Path, classes: tuple[str, ...] | None) -> tuple[tuple[str, ...], np.ndarray, tuple[str, ...]]:
    """Class names, the label of every image, and its path."""
    if not root.is_dir():
        raise DataError(f"There is no folder {root}. Expected one that holds a folder of images for each class.")
    entries = sorted(entry for entry in root.iterdir() if not _is_hidden(entry.name))
    found = [entry.name for entry in entries if entry.is_dir()]
    if not found:
        raise DataError(
            f"{root} holds {len(entries)} files and no folders. Expected a folder for each class with its images "
            f"inside, such as {root / 'cats' / '1.jpg'}."
        )
    if classes is None and set(found) <= _SPLITS:
        raise DataError(
            f"{root} holds {', '.join(found)}, which are splits of a data set and not classes. Expected the folder of "
            f"one of them, {root / found[0]}; or classes={found} if that is what they are."
        )
    if classes is not None and (len(set(classes)) < len(classes) or not set(found) <= set(classes)):
        raise DataError(
            f"classes is {classes}, and {root} holds the folders {', '.join(found)}. Expected every one of them to be "
            "named once, so that no image is lost."
        )
    others = [str(entry) for entry in entries if not entry.is_dir()]
    names = tuple(found) if classes is None else classes
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        if name not in found:
            continue
        images, rest = _images_below(root / name)
        if not images:
            raise DataError(
                f"{root / name} holds no image among its {len(rest)} files. Expected files ending in "
                f"{', '.join(SUFFIXES)}: fill the folder, or remove it."
            )
        paths += images
        labels += [label] * len(images)
        others += rest
    if others:
        _log.warning(
            "%d file(s) in %s are left out, such as %s: images end in %s, and are inside the class folders.",
            len(others), root, others[0], ", ".join(SUFFIXES),
        )  # fmt: skip
    return names, np.asarray(labels, np.int32), tuple(paths)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"  # which macOS adds to archives


def _images_below(top: Path) -> tuple[list[str], list[str]]:
    """Image files in a folder and the folders below it, sorted; and its other files."""

    def fail(error: OSError) -> None:
        raise DataError(f"{error.filename} could not be listed: {error.strerror}. Expected a folder that can be read.")

    images: list[str] = []
    others: list[str] = []
    seen: set[str] = set()
    for directory, below, names in os.walk(top, followlinks=True, onerror=fail):
        real = os.path.realpath(directory)
        if real in seen:
            raise DataError(f"{directory} is a link to {real}, which was read before. Expected every image once.")
        seen.add(real)
        below[:] = [name for name in below if not _is_hidden(name)]
        for name in names:
            if not name.startswith("."):
                (images if name.lower().endswith(SUFFIXES) else others).append(os.path.join(directory, name))
    return sorted(images), sorted(others)
