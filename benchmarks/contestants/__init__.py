"""Who is measured: one file each, that only its own process imports.

Each holds a class `Contestant`, made with (platform, name of the problem, steps), whose methods are turns: `train`,
`evaluate` and `predict` go once over the images and return when the device is done. All train the same network on the
same images with the same optimizer, SGD of Nesterov's kind; `facts` tells what shows that they do. Those that take
`resident=True` have all images on the device before the first step.
"""

from typing import NamedTuple


class Entry(NamedTuple):
    """A contestant as the table shows it.

    Attributes:
      title: its name.
      package: what has to be installed for it; None if resfit's own requirements do.
      bars: name of the problem -> what its step over that of `fit` has to keep.
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
