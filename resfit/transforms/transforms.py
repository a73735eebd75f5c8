"""`Transforms`: the conversion of a photograph to the pixels that a network expects."""

import dataclasses
import io
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit._utils.checks import is_int
from resfit._utils.optional_import import load_package
from resfit._utils.paths import expand_user
from resfit.data.decode import Encoded, decode, is_picture
from resfit.data.records import stack_images
from resfit.errors import DataError
from resfit.preprocess import Normalize

if TYPE_CHECKING:
    from PIL import Image

INTERPOLATIONS = ("bilinear", "bicubic")

# Means and standard deviations of ImageNet's channels for pixels in [0, 1], as in torchvision and timm.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Transforms:
    """The evaluation transforms: resize the shorter side, crop the center, normalize.

    Resizing and cropping run on the host, normalization on the device inside the step. The pixels equal those of
    torchvision's `Resize(antialias=True)` and `CenterCrop` on a PIL image.

    Attributes:
      resize: pixels of the shorter side after resizing; the aspect ratio stays.
      crop: pixels per side of the central square.
      interpolation: "bilinear" or "bicubic", antialiased.
      mean: the mean of each channel for pixels in [0, 1]; by default ImageNet's. With None, the transforms only resize
        and crop, and a model keeps its own preprocessing.
      std: the standard deviation of each channel; None if and only if `mean` is None.

    Raises:
      DataError: if the crop is larger than the resized image, the interpolation is unknown, or only one of `mean` and
        `std` is None.

    Example:
      >>> from PIL import Image
      >>> transforms = Transforms(resize=256, crop=224)
      >>> pixels = transforms(Image.new("RGB", (640, 480), "brown"))
      >>> pixels.shape, pixels.dtype
      ((224, 224, 3), dtype('uint8'))
      >>> transforms.preprocess(pixels[None]).shape
      (1, 224, 224, 3)
    """

    resize: int
    crop: int
    interpolation: str = "bilinear"
    mean: tuple[float, ...] | None = MEAN
    std: tuple[float, ...] | None = STD

    def __post_init__(self) -> None:
        if self.normalizes:
            for name in ("mean", "std"):
                object.__setattr__(self, name, getattr(self.preprocess, name))  # makes tuples of lists from JSON
        if self.interpolation not in INTERPOLATIONS:
            raise DataError(f"Expected interpolation to be one of {list(INTERPOLATIONS)}, got {self.interpolation!r}.")
        if not is_int(self.crop, 1) or not is_int(self.resize, self.crop):
            raise DataError(
                f"Got crop={self.crop!r} and resize={self.resize!r}. Expected positive integers, with crop at most as "
                "large as resize."
            )
        for name in ("crop", "resize"):
            object.__setattr__(self, name, int(getattr(self, name)))  # JSON has no NumPy integers

    @property
    def normalizes(self) -> bool:
        """True if the transforms have a mean and a standard deviation, False if both are None."""
        return (self.mean, self.std) != (None, None)

    @property
    def preprocess(self) -> Normalize:
        """The normalization on the device, for `compile(preprocess=...)`.

        Raises:
          DataError: if mean or std is None.
        """
        if self.mean is None or self.std is None:
            raise DataError(
                f"Transforms with mean={self.mean} and std={self.std} have no normalization. Expected both as one "
                "number per channel, or both None to only resize and crop and keep the model's own preprocessing."
            )
        return Normalize(self.mean, self.std)

    def __call__(self, image: Any) -> np.ndarray:
        """Resize and crop one photograph.

        Args:
          image: the path or the bytes of a file; a PIL image; or uint8 pixels, (height, width, 3) or (height, width)
            for a gray image. For files and PIL images, the EXIF orientation is applied and the result is RGB, as in
            `resfit.data.folder`.

        Returns:
          (crop, crop, 3) uint8.

        Raises:
          DataError: if `image` has another form, or the file cannot be read.
          MissingPackageError: if Pillow is not installed.
        """
        pil = load_package("PIL.Image", "resfit.Transforms", "pip install 'resfit[folder]'")
        photograph: Image.Image = pil.fromarray(pixels_of(image))
        width, height = photograph.size
        shorter = min(width, height)
        # torchvision rounds the longer side down, too.
        size = [self.resize if side == shorter else int(self.resize * side / shorter) for side in (width, height)]
        resized = photograph.resize(size, pil.Resampling[self.interpolation.upper()])
        left, top = (round((side - self.crop) / 2) for side in size)
        return np.asarray(resized.crop((left, top, left + self.crop, top + self.crop)))

    def batch(self, images: Iterable[Any]) -> np.ndarray:
        """Resize and crop several photographs of any sizes to one array for `Model.predict`.

        Args:
          images: the photographs, each as for a call; or one path.

        Returns:
          (images, crop, crop, 3) uint8.

        Raises:
          DataError: if there are no photographs.
        """
        if isinstance(images, str | os.PathLike | bytes):
            images = [images]
        photographs = [self(image) for image in images]
        if not photographs:
            raise DataError("Transforms.batch got no photographs. Expected at least one.")
        return stack_images(photographs)


def pixels_of(image: Any) -> np.ndarray:
    """Return a photograph as (height, width, 3) uint8."""
    stored = as_stored(image)
    if stored is not None:
        return decode(stored)
    pixels = np.asarray(image)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if pixels.dtype == np.uint8 and pixels.ndim == 2:
        return np.stack([pixels] * 3, axis=-1)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise DataError(
            f"Transforms got {pixels.dtype} of shape {pixels.shape}. Expected a file's path, a PIL image, or uint8 "
            "pixels (height, width, 3) of one photograph. Pass several photographs to Transforms.batch."
        )
    return pixels


def as_stored(image: Any) -> Any:
    """Return the path, the bytes of a file, or a PIL image in a form that `decode` reads; None for arrays."""
    if isinstance(image, bytes):
        return Encoded(image)
    if isinstance(image, str | os.PathLike):
        image = expand_user(image)
    return image if isinstance(image, str | os.PathLike | io.IOBase) or is_picture(image) else None
