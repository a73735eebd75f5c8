"""`Transforms`: from a photograph to the pixels that a network was trained to see."""

import dataclasses
import io
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit._utils.checks import is_int
from resfit._utils.optional_import import load_package
from resfit._utils.paths import expand_user
from resfit.data.decode import Encoded, decode, is_picture
from resfit.errors import DataError
from resfit.preprocess import Normalize

if TYPE_CHECKING:
    from PIL import Image

INTERPOLATIONS = ("bilinear", "bicubic")

# Means and deviations of ImageNet's channels, in units of [0, 1], as torchvision and timm have them.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Transforms:
    """Resize the shorter side, cut out the centre, both on the host; then normalise, on the device inside the step.

    The pixels are those of torchvision's `Resize(antialias=True)` and `CenterCrop` on a PIL image.

    Attributes:
      resize: pixels that the shorter side becomes; the longer one follows it.
      crop: pixels a side of the square that is cut out of the middle.
      interpolation: "bilinear" or "bicubic", antialiased.
      mean: of each channel, in units of [0, 1]. ImageNet's by default. None: the transforms only resize and crop, and
        a model that they are assigned to keeps its own preprocessing.
      std: likewise; None together with mean.

    Raises:
      DataError: if the crop is larger than what it is cut out of, the interpolation is unknown, or only one of mean and
        std is None.

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
                object.__setattr__(self, name, getattr(self.preprocess, name))  # lists, as JSON has them, are welcome
        if self.interpolation not in INTERPOLATIONS:
            raise DataError(f"Expected interpolation to be one of {list(INTERPOLATIONS)}, got {self.interpolation!r}.")
        if not is_int(self.crop, 1) or not is_int(self.resize, self.crop):
            raise DataError(
                f"Expected whole pixels, at least one to crop and as many or more to resize to, got crop={self.crop!r} "
                f"and resize={self.resize!r}."
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
        """One photograph, resized and cropped.

        Args:
          image: a file's path or bytes; a PIL image; or uint8 pixels, (height, width, 3), or (height, width) if it is
            grey. Files and PIL images are turned upright by their EXIF data and converted to RGB, as by
            `resfit.data.folder`.

        Returns:
          (crop, crop, 3) uint8.

        Raises:
          DataError: if it is none of these, or the file cannot be read.
          MissingPackageError: if Pillow is not installed.
        """
        pil = load_package("PIL.Image", "resfit.Transforms", "pip install 'resfit[folder]'")
        photograph: Image.Image = pil.fromarray(_pixels(image))
        width, height = photograph.size
        shorter = min(width, height)
        # int, as torchvision has it: the longer side is cut down to whole pixels.
        size = [self.resize if side == shorter else int(self.resize * side / shorter) for side in (width, height)]
        resized = photograph.resize(size, pil.Resampling[self.interpolation.upper()])
        left, top = (round((side - self.crop) / 2) for side in size)
        return np.asarray(resized.crop((left, top, left + self.crop, top + self.crop)))

    def batch(self, images: Iterable[Any]) -> np.ndarray:
        """Several photographs, of any sizes, as one array for `Model.predict`.

        Args:
          images: each as for a call; or one path.

        Returns:
          (images, crop, crop, 3) uint8.

        Raises:
          DataError: if there is none.
        """
        if isinstance(images, str | os.PathLike | bytes):
            images = [images]
        photographs = [self(image) for image in images]
        if not photographs:
            raise DataError("Transforms.batch got no photographs. Expected at least one.")
        return np.stack(photographs)


def _pixels(image: Any) -> np.ndarray:
    """Any photograph as (height, width, 3) uint8."""
    if isinstance(image, bytes):
        image = Encoded(image)
    elif isinstance(image, str | os.PathLike):
        image = expand_user(image)
    if isinstance(image, str | io.IOBase) or is_picture(image):
        return decode(image)
    pixels = np.asarray(image)
    if pixels.dtype == np.uint8 and pixels.ndim == 2:
        return np.stack([pixels] * 3, axis=-1)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise DataError(
            f"Transforms got {pixels.dtype} of shape {pixels.shape}. Expected a file's path, a PIL image, or uint8 "
            "pixels (height, width, 3) of one photograph; several go into Transforms.batch."
        )
    return pixels


def to_config(transforms: Transforms | None) -> dict[str, Any] | None:
    """What is saved with a model, as JSON."""
    return None if transforms is None else dataclasses.asdict(transforms)


def from_config(config: Mapping[str, Any] | None) -> Transforms | None:
    """The inverse of `to_config`."""
    return None if config is None else Transforms(**config)
