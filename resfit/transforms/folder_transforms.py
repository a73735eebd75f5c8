"""`FolderTransforms`: the pixels of a photograph as `resfit.data.folder` reads them for evaluation."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from resfit._utils.optional_import import load_package
from resfit.data.crops import crop_of, output_size
from resfit.data.decode import MODES, decode
from resfit.data.records import stack_images
from resfit.errors import DataError
from resfit.transforms.transforms import Transforms, as_stored, pixels_of


@dataclasses.dataclass(frozen=True)
class FolderTransforms:
    """Resize and crop a photograph as `resfit.data.folder` does for evaluation. They do not normalize.

    `fit` on a folder sets them as `model.transforms`, so that a photograph has the pixels of the training images.

    Attributes:
      size: (height, width) of the result, n for squares, or None to keep the size of the photograph.
      crop: None to resize the whole image, "center", or the share of the shorter side that the crop keeps.
      mode: "RGB", "L" (gray) or "RGBA".

    Raises:
      DataError: if an option is invalid.

    Example:
      >>> from PIL import Image
      >>> FolderTransforms(size=32, crop="center")(Image.new("RGB", (640, 480), "brown")).shape
      (32, 32, 3)
    """

    size: int | tuple[int, int] | None = None
    crop: str | float | None = None
    mode: str = "RGB"

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", output_size(self.size, self.crop))
        if self.crop == "random" or self.mode not in MODES:
            raise DataError(
                f"FolderTransforms got crop={self.crop!r} and mode={self.mode!r}. Expected crop=None, 'center' or "
                f"a share, and mode to be one of {', '.join(MODES)}."
            )

    @property
    def normalizes(self) -> bool:
        """False: a model keeps its own preprocessing."""
        return False

    def __call__(self, image: Any) -> np.ndarray:
        """Resize and crop one photograph.

        Args:
          image: the path or the bytes of a file; a PIL image; or uint8 pixels, (height, width, 3) or (height, width)
            for a gray image. The EXIF orientation of files and PIL images is applied.

        Returns:
          (height, width, channels) uint8; a gray image has one channel.

        Raises:
          DataError: if `image` has another form, or the file cannot be read.
          MissingPackageError: if Pillow is not installed.
        """
        pil = load_package("PIL.Image", "resfit.FolderTransforms", "pip install 'resfit[folder]'")
        stored = as_stored(image)
        size = output_size(self.size, None)
        if stored is None:
            stored = pil.fromarray(pixels_of(image))
        pixels = decode(stored, self.mode, size, crop_of(self.crop, size, None, ()))
        return pixels[..., None] if pixels.ndim == 2 else pixels

    def batch(self, images: Iterable[Any]) -> np.ndarray:
        """Resize and crop several photographs to one array for `Model.predict`.

        Args:
          images: the photographs, each as for a call; or one path.

        Returns:
          (images, height, width, channels) uint8.

        Raises:
          DataError: if there are no photographs, or their sizes differ and `size` is None.
        """
        photographs = [self(image) for image in ([images] if as_stored(images) is not None else images)]
        if not photographs:
            raise DataError("FolderTransforms.batch got no photographs. Expected at least one.")
        return stack_images(photographs)


def to_config(transforms: Transforms | FolderTransforms | None) -> dict[str, Any] | None:
    """Return the transforms as JSON values, to save them with a model."""
    if transforms is None:
        return None
    kind = {"kind": "folder"} if isinstance(transforms, FolderTransforms) else {}
    return {**kind, **dataclasses.asdict(transforms)}


def from_config(config: Mapping[str, Any] | None) -> Transforms | FolderTransforms | None:
    """Return the transforms from the result of `to_config`."""
    if config is None:
        return None
    if not isinstance(config, Mapping):
        raise TypeError(f"expected a JSON object, got {config!r:.60}")
    if config.get("kind") == "folder":
        return FolderTransforms(**{name: value for name, value in config.items() if name != "kind"})
    return Transforms(**config)
