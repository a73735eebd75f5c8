"""The preprocessing of published weight files: resize and crop on the host, normalize on the device.

`transforms_for("timm/resnet50.a1_in1k")` returns a `Transforms`. A model saves the one in `model.transforms`.
"""

from typing import TYPE_CHECKING

from resfit._utils.keywords import check_constructors
from resfit._utils.words import no_attribute
from resfit.transforms.folder_transforms import FolderTransforms
from resfit.transforms.pretrained_transforms import transforms_for
from resfit.transforms.transforms import Transforms

__all__ = ["FolderTransforms", "Transforms", "transforms_for"]

check_constructors(__name__)

if not TYPE_CHECKING:  # a type checker would accept every name
    __getattr__ = no_attribute(__name__, "transforms")
