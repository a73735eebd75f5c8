"""What published weight files expect of photographs: resized and cropped on the host, normalised on the device.

`transforms_for("timm/resnet50.a1_in1k")` gives it as a `Transforms`. Assigned to `model.transforms` it is saved with
the model.
"""

from resfit.transforms.pretrained_transforms import transforms_for
from resfit.transforms.transforms import Transforms

__all__ = ["Transforms", "transforms_for"]
