"""Decoding of image files, bytes and PIL images to arrays."""

import io
import math
import os
import struct
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np

from resfit.data.crops import Crop, whole
from resfit.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

MODES = ("L", "RGB", "RGBA")
_GREY = ("1", "L", "LA", "La", "F")
_DIRECTLY = {"La": "LA", "RGBa": "RGBA", "P": "RGBA", "PA": "RGBA", "HSV": "RGB", "LAB": "RGB"}

_ORIENTATION = 0x0112  # the EXIF tag
# Raised for EXIF data that cannot be parsed; the pixels of such a file are still valid.
_BAD_EXIF = (SyntaxError, struct.error, OSError, ValueError, KeyError, TypeError, EOFError)

# A JPEG file decodes to 1/2, 1/4 or 1/8 of its size in a fraction of the time. Each side of the decoded image has at
# least this many times the requested pixels, as in Pillow's thumbnail(); resizing does the rest.
_SPARE = 2.0


class Encoded(io.BytesIO):
    """An image file in memory, with a name for error messages."""

    def __str__(self) -> str:
        return f"its image ({len(self.getbuffer())} bytes)"


def is_picture(x: Any) -> bool:
    """Return True for a PIL image, without importing Pillow."""
    return hasattr(x, "convert") and hasattr(x, "getbands")


def decode(
    source: "str | os.PathLike[str] | IO[bytes] | Image.Image",
    mode: str | None = "RGB",
    size: tuple[int, int] | None = None,
    crop: Crop = whole,
) -> np.ndarray:
    """Return the pixels of an image. resfit reads every image with this function.

    The EXIF orientation is applied. An animation yields its first frame.

    Args:
      source: a path, an open file, or a PIL image. Error messages name a file as str(source).
      mode: the mode of the result: "RGB", "L" (gray) or "RGBA". 16-bit images keep their upper 8 bits, floats in [0, 1]
        become 0 to 255, an alpha channel is dropped unless the mode has one, and palettes, CMYK and other color spaces
        become RGB. None keeps gray images gray and converts all others to RGB.
      size: (height, width) of the result, resized with antialiased bilinear interpolation; None does not resize.
      crop: the function that returns the box to resize, from the image's height and width.

    Returns:
      (height, width, channels) uint8, or (height, width) for mode "L".

    Raises:
      DataError: if the file cannot be read, is not an image, is truncated, or has pixels of unknown scale. The message
        names the file.
    """
    from PIL import Image, UnidentifiedImageError

    name = _name(source)
    try:
        if is_picture(source):
            return _pixels(cast("Image.Image", source), mode, size, crop, name, draft=False)
        with Image.open(cast(str, source)) as image:
            return _pixels(image, mode, size, crop, name, draft=True)
    except DataError:
        raise
    except FileNotFoundError as error:
        where = "" if os.path.isabs(name) else f" in {os.getcwd()!r}"
        raise DataError(
            f"{name} could not be read: No such file{where}. Expected the path of an image. Correct the path."
        ) from error
    except UnidentifiedImageError as error:
        raise DataError(
            f"{name} is not an image file. Expected a JPEG, PNG, WebP, BMP, GIF or TIFF image. Remove the file."
        ) from error
    # Pillow raises different errors for truncated and damaged files, depending on the format.
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise DataError(
            f"{name} could not be read: {error}. Expected a complete image. Replace or remove the file."
        ) from error


def _name(source: Any) -> str:
    if not is_picture(source):
        return str(source)
    return str(getattr(source, "filename", "") or f"The PIL image of mode {source.mode} and size {source.size}")


def _pixels(
    image: "Image.Image", mode: str | None, size: tuple[int, int] | None, crop: Crop, name: str, *, draft: bool
) -> np.ndarray:
    """Return the pixels of an open image; `draft` allows decoding a JPEG file at a fraction of its size."""
    from PIL import Image

    if image.format not in ("JPEG", "MPO"):
        image.load()  # reads EXIF data that follow the pixels, and may rotate a TIFF image
    turn, turns = _turn(image), Image.Transpose
    scale, box = 1, (0.0, 0.0, 0.0, 0.0)
    if size is not None:
        swapped = turn in (turns.ROTATE_90, turns.ROTATE_270, turns.TRANSPOSE, turns.TRANSVERSE)
        width, height = image.size[::-1] if swapped else image.size
        box = crop(height, width)
        if draft:
            shares = (width / (box[2] - box[0]) * size[1], height / (box[3] - box[1]) * size[0])
            scale = _draft(image, shares[::-1] if swapped else shares)
    pixels = _converted(image, mode, name)
    if turn is not None:
        pixels = pixels.transpose(turn)
    if size is not None:
        left, top, right, bottom = (side / scale for side in box)
        pixels = pixels.resize(size[::-1], Image.Resampling.BILINEAR, box=(left, top, right, bottom))
    return np.asarray(pixels)


def _turn(image: "Image.Image") -> "Image.Transpose | None":
    """Return the transposition for the EXIF orientation of an image, or None if no transposition is needed."""
    from PIL.Image import Transpose

    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except _BAD_EXIF:
        return None  # image viewers ignore invalid EXIF data, too
    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return turns.get(orientation)


def _draft(image: "Image.Image", wanted: tuple[float, float]) -> int:
    """Set a JPEG image to decode at a fraction of its size; return the divisor.

    Args:
      image: an image that is open but not loaded.
      wanted: (width, height) of the whole image after resizing.
    """
    width = image.width
    # draft() chooses the smallest available size that is not smaller than the requested size.
    image.draft(None, (math.ceil(_SPARE * wanted[0]), math.ceil(_SPARE * wanted[1])))
    return round(width / image.width)


def _converted(image: "Image.Image", mode: str | None, name: str) -> "Image.Image":
    """Return the image with 8 bits per channel in the requested mode."""
    if mode is None:
        mode = "L" if image.mode in _GREY or image.mode.startswith("I") else "RGB"
    if image.mode == mode:
        return image
    if image.mode == "F" or image.mode.startswith("I"):
        image = _eight_bits(image, name)
    elif image.mode in _DIRECTLY:  # RGBA keeps the color of a transparent palette entry
        image = image.convert(_DIRECTLY[image.mode])
    return image if image.mode == mode else image.convert(mode)


def _eight_bits(image: "Image.Image", name: str) -> "Image.Image":
    """Return a gray image of higher depth with 8 bits. Pillow's conversion makes every value above 255 white."""
    from PIL import Image

    values = np.asarray(image)
    low, high = values.min(), values.max()
    if image.mode == "F":
        if not (low >= 0 and high <= 1):  # also True for NaN
            raise DataError(
                f"{name} has floating-point pixels from {low:.4g} to {high:.4g}. Expected values from 0 (black) to 1 "
                "(white). Scale the pixels, or convert them to 8 bits: Image.fromarray(pixels.astype('uint8'))."
            )
        return Image.fromarray(np.rint(values * 255).astype(np.uint8))
    # Mode I usually holds 16-bit values, but Pillow itself treats them as 8-bit: small values are ambiguous.
    if image.mode == "I" and (low < 0 or high > 0xFFFF or 0 < high <= 0xFF):
        raise DataError(
            f"{name} has 32-bit pixels from {low} to {high}, whose scale is unknown. Expected 16-bit values: 0 to "
            "65535 with some above 255. Convert values from 0 to 255 with Image.fromarray(pixels.astype('uint8')), and "
            "scale larger values to 0..65535."
        )
    return Image.fromarray((values >> 8).astype(np.uint8))
