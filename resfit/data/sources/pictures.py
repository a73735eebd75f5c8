"""Decoding of the values of an image column."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from resfit._utils.optional_import import load_package
from resfit.data.crops import crop_of, output_size
from resfit.data.decode import MODES, Encoded, decode, is_picture
from resfit.errors import BadRecordError, DataError

INSTALL = "pip install 'resfit[hf]'"


class Pictures:
    """The decoder of an image column.

    Args:
      size: output size in pixels: n for squares, (height, width), or None to keep the size of every image.
      crop: as in `resfit.data.huggingface`.
      mode: "RGB", "L", "RGBA" or None.
      feature: the type of the column: a `datasets.Image`, `Array2D`, `Array3D`, or nested lists of numbers.

    Raises:
      DataError: if an option is invalid, or the column holds arrays and an option is given.
      MissingPackageError: if the column holds image files and Pillow is not installed.
    """

    def __init__(
        self, size: int | tuple[int, int] | None, crop: str | float | None, mode: str | None, feature: Any
    ) -> None:
        if mode not in (None, *MODES):
            raise DataError(f"Expected mode to be one of {', '.join(MODES)} or None, got {mode!r}.")
        self._size = output_size(size, crop)
        self.encoded = type(feature).__name__ == "Image"
        if not self.encoded and any(option is not None for option in (size, crop, mode)):
            raise DataError(
                f"The images are arrays (type {type(feature).__name__}), but size, crop and mode are for image files. "
                "Expected None. Resize with compile(preprocess=...), or once with dataset.map."
            )
        if self.encoded:
            load_package("PIL.Image", "an image column", INSTALL)
        self.crop = crop
        self._mode = mode if mode is not None else getattr(feature, "mode", None)
        self._dtype = None if self.encoded else _dtype(feature)

    @property
    def description(self) -> Mapping[str, Any]:
        return {"size": None if self._size is None else list(self._size), "crop": self.crop, "mode": self._mode}

    def undecoded(self, dataset: Any, column: str) -> Any:
        """Return the dataset with undecoded values: image files stay bytes, arrays become NumPy arrays."""
        if self.encoded:
            datasets = load_package("datasets", "an image column", INSTALL)
            return dataset.cast_column(column, datasets.Image(decode=False))
        return dataset.with_format("numpy")

    def decode(self, value: Any, key: tuple[int, int] | None, place: tuple[int, ...]) -> np.ndarray:
        """Return one image as (height, width, channels), or as (height, width) for a gray image.

        Args:
          value: the value in the column.
          key: (seed, epoch) for random crops.
          place: (row,) of the image, or (shard, row).

        Raises:
          BadRecordError: if the image is missing or cannot be decoded.
        """
        if value is None:
            raise BadRecordError("its image is missing.")
        crop = crop_of(self.crop, self._size, key, place)
        if not self.encoded:
            return np.asarray(value, self._dtype)
        try:
            return decode(_image(value), self._mode, self._size, crop)
        except DataError as error:
            raise BadRecordError(str(error)) from error


def _image(value: Any) -> Any:
    """Return a stored image as a file in memory or as a PIL image."""
    if isinstance(value, dict):
        content = value.get("bytes")
        if content is not None:
            return Encoded(content)
        path = value.get("path")
        if path is None:
            raise BadRecordError("its image has neither bytes nor a path.")
        return Encoded(_read(path))
    if is_picture(value):
        return value
    datasets = load_package("datasets", "an image column", INSTALL)
    return _image(datasets.Image().encode_example(value))


def _read(path: str) -> bytes:
    fsspec = load_package("fsspec", "reading an image file", INSTALL)
    try:
        with fsspec.open(path, "rb") as file:
            content: bytes = file.read()
    except FileNotFoundError as error:
        raise BadRecordError(f"its image file {path} does not exist.") from error
    return content


def _dtype(feature: Any) -> Any:
    """Return the dtype of an array column, because the conversion from Arrow to NumPy turns int8 into int64."""
    while not hasattr(feature, "dtype") and hasattr(feature, "feature"):
        feature = feature.feature
    return np.dtype(feature.dtype) if hasattr(feature, "dtype") else None
