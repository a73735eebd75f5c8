"""Images in one folder per class: path/class_name/anything.jpg."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from resfit._utils.keywords import checked
from resfit._utils.paths import expand_user
from resfit.data.cores import cores
from resfit.data.sources.files import ImageFiles, check_options
from resfit.errors import DataError

_log = logging.getLogger("resfit")

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_SPLITS = {"train", "training", "val", "valid", "validation", "test"}


@checked("data arguments")
def folder(
    path: str | Path,
    *,
    size: int | tuple[int, int] | None = None,
    crop: str | float | None = None,
    mode: str = "RGB",
    classes: Sequence[str] | None = None,
    threads: int | None = None,
    on_error: str = "raise",
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
        evaluation, crops the central 224 of 256 pixels of the shorter side, or the same share at other sizes; a number
        is another share, such as 0.95.
      mode: "RGB", "L" (gray) or "RGBA". 16-bit images keep their upper 8 bits; an alpha channel is dropped unless the
        mode has one.
      classes: the names of the class folders in the order of their numbers; by default all class folders, sorted.
        `fit` and `evaluate` map other orders and missing classes by name; with `classes=train.classes`, another split
        uses the same numbers.
      threads: the number of decoding threads; by default one per core, at most 16.
      on_error: "raise" to raise for files that cannot be read, and name them; "skip" to leave them out, with a warning
        that counts and names them. A quick check finds truncated files and files that are not images.

    Raises:
      DataError: if the folder does not exist or has no class folders, a class has no image, a file cannot be read, or
        an option is invalid; during reading, if a file is damaged or images differ in size (the message names it).
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
    out = check_options(size, crop, mode, threads, "resfit.data.folder")
    names, labels, paths = _listed(Path(expand_user(path)), None if classes is None else tuple(classes))
    return ImageFolder(
        paths=paths,
        labels=labels,
        classes=names,
        size=out,
        crop=crop,
        mode=mode,
        threads=cores() if threads is None else threads,
    ).checked_before(on_error)


class ImageFolder(ImageFiles):
    """A `Source` of the images of a folder, as `folder` returns it; see `ImageFiles`."""

    labels: np.ndarray
    classes: tuple[str, ...]


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
    images, others = images_below(folder)
    if not images:
        raise DataError(
            f"{str(folder)!r} holds no image among its {len(others)} files. Expected files ending in "
            f"{', '.join(SUFFIXES)}. Add images to the folder, or remove it."
        )
    return images, others


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"  # macOS adds this folder to archives


def images_below(top: Path) -> tuple[list[str], list[str]]:
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
