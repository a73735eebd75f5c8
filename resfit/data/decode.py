"""Image files become arrays; no more of them is decoded than is needed."""

import math
import struct
from typing import IO, TYPE_CHECKING

import numpy as np

from resfit.data.crops import Crop, whole
from resfit.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

MODES = ("L", "RGB", "RGBA")
_GREY = ("1", "L", "LA", "La", "F")

# A JPEG file decodes to 1/2, 1/4 or 1/8 of its size in a fraction of the time. What comes out then has at least this
# many times the pixels a side that are asked for, and resizing does the rest: Pillow's own choice for thumbnails.
_SPARE = 2.0


def decode(
    path: str | IO[bytes], mode: str | None = "RGB", size: tuple[int, int] | None = None, crop: Crop = whole
) -> np.ndarray:
    """Reads an image file.

    Args:
      path: of the file, or the file, opened; messages call it str(path).
      mode: "RGB", "L" (grey) or "RGBA": what every image is converted to. 16-bit images keep their upper 8 bits, an
        alpha channel that is not asked for is left out, and palettes and CMYK become colours. None keeps grey images
        grey and makes all others RGB.
      size: (height, width) to resize to, with antialiased bilinear interpolation; None keeps the pixels as they are.
      crop: the part to resize, from the image's height and width.

    Returns:
      (height, width, channels) uint8, or (height, width) for mode "L".

    Raises:
      DataError: naming the file, if it cannot be read, is no image, or ends too early.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            if size is None:
                return np.asarray(_converted(image, mode, path))
            box = crop(image.height, image.width)
            scale = _draft(image, size, box)
            left, top, right, bottom = (side / scale for side in box)
            pixels = _converted(image, mode, path)
            return np.asarray(pixels.resize(size[::-1], Image.Resampling.BILINEAR, box=(left, top, right, bottom)))
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(f"{path} is not an image file. Expected a JPEG or PNG image: remove the file.") from error
    # What Pillow raises for files that are cut off or damaged depends on their format.
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise DataError(
            f"{path} could not be read: {error}. Expected a whole image: replace the file, or remove it."
        ) from error


def _draft(image: "Image.Image", size: tuple[int, int], box: tuple[float, float, float, float]) -> int:
    """Lets a JPEG file decode at a fraction of its size where the box allows it; returns what it is divided by."""
    width, height = image.size
    left, top, right, bottom = box
    # draft chooses the smallest of its sizes that is at least as large as what it is asked for.
    image.draft(
        None,
        (
            math.ceil(_SPARE * size[1] * width / (right - left)),
            math.ceil(_SPARE * size[0] * height / (bottom - top)),
        ),
    )
    return round(width / image.width)


def _converted(image: "Image.Image", mode: str | None, path: str | IO[bytes]) -> "Image.Image":
    from PIL import Image

    if mode is None:
        mode = "L" if image.mode in _GREY or image.mode.startswith("I") else "RGB"
    if image.mode == mode:
        return image
    if image.mode == "F":
        raise DataError(f"{path} holds floating-point pixels. Expected an image of 8 or 16 bits.")
    if image.mode.startswith("I"):
        # Pillow's own conversion of 16 bits makes everything above 255 white.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # a transparent entry of the palette has a colour, too
    return image if image.mode == mode else image.convert(mode)
