"""The problems: networks, and images of their size."""

from typing import Any, NamedTuple

import numpy as np


class Problem(NamedTuple):
    """A network and its batches.

    Attributes:
      title: its name in the table.
      spec: arguments of `resfit.nets.ResNetSpec`; all contestants build from them.
      side: of the square images, in pixels.
      batch: images in a step.
      steps: in an epoch, which is a turn.
    """

    title: str
    spec: dict[str, Any]
    side: int
    batch: int
    steps: int


_RESNET20 = {
    "block": "basic", "depths": (3, 3, 3), "widths": (16, 32, 64), "stem": "cifar", "shortcut": "A", "num_classes": 10,
    "in_channels": 3,
}  # fmt: skip
_RESNET50 = {
    "block": "bottleneck", "depths": (3, 4, 6, 3), "widths": (64, 128, 256, 512), "stem": "imagenet",
    "shortcut": "B", "num_classes": 1000, "in_channels": 3,
}  # fmt: skip
_RESNET18 = _RESNET50 | {"block": "basic", "depths": (2, 2, 2, 2)}
_TINY = {
    "block": "basic", "depths": (1,), "widths": (8,), "stem": "cifar", "shortcut": "B", "num_classes": 10,
    "in_channels": 1,
}  # fmt: skip

# Short turns: load on the machine changes slowly, so both contestants of a pair see the same. A call costs less than a
# thousandth of a large step.
CPU = {
    "resnet20": Problem("ResNet-20, 32 x 32, batch 128", _RESNET20, 32, 128, 6),
    "resnet18": Problem("ResNet-18, 224 x 224, batch 16", _RESNET18, 224, 16, 4),
    "resnet50": Problem("ResNet-50, 224 x 224, batch 8", _RESNET50, 224, 8, 3),
    "tiny": Problem("one block of 8 channels, 8 x 8, batch 32", _TINY, 8, 32, 500),
}
_LARGE = tuple(name for name in CPU if name != "tiny")
CPU |= {
    f"{name}_bfloat16": CPU[name]._replace(
        title=f"{CPU[name].title}, bfloat16", spec=CPU[name].spec | {"dtype": "bfloat16"}
    )
    for name in _LARGE
}
GPU = {
    "resnet20": Problem("ResNet-20, 32 x 32, batch 1024, bfloat16", _RESNET20 | {"dtype": "bfloat16"}, 32, 1024, 40),
    "resnet50": Problem("ResNet-50, 224 x 224, batch 256, bfloat16", _RESNET50 | {"dtype": "bfloat16"}, 224, 256, 10),
    "tiny": CPU["tiny"],
}
BY_PLATFORM = {"cpu": CPU, "gpu": GPU}


def problem(platform: str, name: str, steps: int | None = None) -> Problem:
    """Return the problem of this name, with the usual number of steps or another."""
    found = BY_PLATFORM[platform][name]
    return found if steps is None else found._replace(steps=steps)


def network(problem: Problem) -> Any:
    """Build the network as an nnx.Module."""
    from flax import nnx

    import resfit

    return resfit.nets.ResNet(resfit.nets.ResNetSpec(**problem.spec), rngs=nnx.Rngs(0))


def images(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Return the images of an epoch, float32, and the labels, int32."""
    random = np.random.default_rng(0)
    shape = (problem.steps * problem.batch, problem.side, problem.side, problem.spec["in_channels"])
    x = random.standard_normal(shape, np.float32)
    return x, random.integers(0, problem.spec["num_classes"], len(x)).astype(np.int32)
