"""The contestants: one file each, which only its own process imports.

Each file has a class `Contestant`, made with (platform, name of the problem, steps), whose methods are turns: `train`,
`evaluate` and `predict` process the images once and return when the device is done. All contestants train the same
network on the same images with the same optimizer, SGD with Nesterov momentum; `facts` returns evidence for it.
Contestants that take `resident=True` have all images on the device before the first step.
"""

from typing import NamedTuple


class Entry(NamedTuple):
    """A contestant in the table.

    Attributes:
      title: its name.
      package: the package that it needs; None if the requirements of resfit are enough.
      bars: name of the problem -> bound of its step over that of `fit`.
    """

    title: str
    package: str | None
    bars: dict[str, str]


OTHERS = {
    "textbook": Entry("nnx.jit textbook loop", None, {"tiny": ">= 2.5"}),
    "keras_jax": Entry("Keras on JAX", "keras", {"resnet20": ">= 1.00", "tiny": ">= 1.3"}),
    "pytorch": Entry("PyTorch", "torch", {}),
}
FIT, HAND_WRITTEN = "fit", "hand_written"
FIT_BARS = {"resnet20": "<= 1.01", "resnet50": "<= 1.01", "tiny": "<= 1.10"}  # over the hand-written loop
LEARNING_RATE, MOMENTUM = 0.1, 0.9
