"""Images become arrays: files, bytes and PIL images alike. No more of a file is decoded than is needed."""

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
# Of EXIF data that cannot be parsed; the pixels of such a file are still good.
_BAD_EXIF = (SyntaxError, struct.error, OSError, ValueError, KeyError, TypeError, EOFError)

# A JPEG file decodes to 1/2, 1/4 or 1/8 of its size in a fraction of the time. What comes out then has at least this
# many times the pixels a side that are asked for, and resizing does the rest: Pillow's own choice for thumbnails.
_SPARE = 2.0


class Encoded(io.BytesIO):
    """An image file in memory, which messages can name."""

    def __str__(self) -> str:
        return f"its image ({len(self.getbuffer())} bytes)"


def is_picture(x: Any) -> bool:
    """Return True for an image of Pillow's, which is not imported to find out."""
    return hasattr(x, "convert") and hasattr(x, "getbands")


def decode(
    source: "str | os.PathLike[str] | IO[bytes] | Image.Image",
    mode: str | None = "RGB",
    size: tuple[int, int] | None = None,
    crop: Crop = whole,
) -> np.ndarray:
    """Return the pixels of an image. Every image that resfit reads comes through here.

    The image is turned upright by the orientation in its EXIF data. Of an animation, the first frame is taken.

    Args:
      source: a file's path, an opened file, or a PIL image. Messages call a file str(source).
      mode: "RGB", "L" (grey) or "RGBA": what every image is converted to. 16-bit images keep their upper 8 bits,
        floats in [0, 1] become 0 to 255, an alpha channel that is not asked for is left out, and palettes, CMYK and
        other color spaces become colors. None keeps grey images grey and makes all others RGB.
      size: (height, width) to resize to, with antialiased bilinear interpolation; None keeps the pixels as they are.
      crop: the part to resize, from the image's height and width.

    Returns:
      (height, width, channels) uint8, or (height, width) for mode "L".

    Raises:
      DataError: naming the file, if it cannot be read, is not an image, ends too early, or has pixels without a known
        scale.
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
    except UnidentifiedImageError as error:
        raise DataError(f"{name} is not an image file. Expected a JPEG or PNG image: remove the file.") from error
    # What Pillow raises for files that are cut off or damaged depends on their format.
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise DataError(
            f"{name} could not be read: {error}. Expected a whole image: replace the file, or remove it."
        ) from error


def _name(source: Any) -> str:
    if not is_picture(source):
        return str(source)
    return str(getattr(source, "filename", "") or f"The PIL image of mode {source.mode} and size {source.size}")


def _pixels(
    image: "Image.Image", mode: str | None, size: tuple[int, int] | None, crop: Crop, name: str, *, draft: bool
) -> np.ndarray:
    """The pixels of an opened image; draft: whether a JPEG file may be decoded at a fraction of its size."""
    from PIL import Image

    if image.format not in ("JPEG", "MPO"):
        image.load()  # which may turn a TIFF image, and finds EXIF data behind the pixels
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
    """The transposition that turns an image upright, by its EXIF data; None if there is nothing to turn."""
    from PIL.Image import Transpose

    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except _BAD_EXIF:
        return None  # as every viewer shows it
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
    """Lets a JPEG file decode at a fraction of its size; returns what it is divided by.

    Args:
      image: just opened.
      wanted: (width, height) that the whole image would be resized to.
    """
    width = image.width
    # draft chooses the smallest of its sizes that is at least as large as what it is asked for.
    image.draft(None, (math.ceil(_SPARE * wanted[0]), math.ceil(_SPARE * wanted[1])))
    return round(width / image.width)


def _converted(image: "Image.Image", mode: str | None, name: str) -> "Image.Image":
    """The image with 8 bits per channel, in the mode that was asked for."""
    if mode is None:
        mode = "L" if image.mode in _GREY or image.mode.startswith("I") else "RGB"
    if image.mode == mode:
        return image
    if image.mode == "F" or image.mode.startswith("I"):
        image = _eight_bits(image, name)
    elif image.mode in _DIRECTLY:  # a transparent entry of a palette has a color, too
        image = image.convert(_DIRECTLY[image.mode])
    return image if image.mode == mode else image.convert(mode)


def _eight_bits(image: "Image.Image", name: str) -> "Image.Image":
    """A grey image of more bits with 8 bits. Pillow's own conversion makes everything above 255 white."""
    from PIL import Image

    values = np.asarray(image)
    low, high = values.min(), values.max()
    if image.mode == "F":
        if not (low >= 0 and high <= 1):  # also for NaN
            raise DataError(
                f"{name} has floating-point pixels from {low:.4g} to {high:.4g}. Expected 0 to 1, which are black and "
                "white: scale them, or convert them to 8 bits first: Image.fromarray(pixels.astype('uint8'))."
            )
        return Image.fromarray(np.rint(values * 255).astype(np.uint8))
    # 32-bit images hold 16-bit ones, and Pillow itself takes them for 8-bit ones: values do not say which.
    if image.mode == "I" and (low < 0 or high > 0xFFFF or 0 < high <= 0xFF):
        raise DataError(
            f"{name} has 32-bit pixels from {low} to {high}, which do not say what is white. Expected 16-bit values, "
            "0 to 65535 with some above 255. Convert 0..255 with Image.fromarray(pixels.astype('uint8')), and scale "
            "larger ones to 0..65535 first."
        )
    return Image.fromarray((values >> 8).astype(np.uint8))
