"""A model that notes which images its training steps see."""

from typing import Any

import jax
import numpy as np
from flax import nnx

import resfit
from tests.helpers import PlainNet, compiled

N = 20


def arrows(n: int = N) -> tuple[np.ndarray, np.ndarray]:
    """Return images (n, 8, 8, 1) whose first column is dark and whose last is bright, and their numbers as labels."""
    x = np.zeros((n, 8, 8, 1), np.uint8)
    x[:, :, -1] = 255
    return x, np.arange(n, dtype=np.int32)


class Numbers(resfit.Model):
    """A model whose labels are numbers of examples, and whose loss does not read them."""

    def compute_loss(self, module: Any, x: Any, y: Any, *, key: jax.Array, train: bool) -> Any:
        outputs = module(x)
        return 0 * outputs[:, 0], outputs


class Watch(resfit.callbacks.Callback):
    """Notes (label, True if the image is mirrored) of every image, by epoch.

    Attributes:
      epochs: a list of these pairs for each epoch.
    """

    def __init__(self) -> None:
        self.epochs: list[list[tuple[int, bool]]] = []

    def augment(self, key: Any, x: Any, y: Any) -> Any:
        """Note the images of a batch. To be the last augmentation."""
        jax.debug.callback(self._note, x[:, 0, 0, 0], y)
        return x, y

    def _note(self, corner: Any, y: Any) -> None:
        self.epochs[-1] += list(zip(np.asarray(y).tolist(), (np.asarray(corner) > 0).tolist(), strict=True))

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epochs.append([])

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        jax.effects_barrier()


def watched(augments: list[Any], **arguments: Any) -> tuple[Any, Watch]:
    """Return a compiled model and its watch."""
    watch = Watch()
    net = PlainNet(rngs=nnx.Rngs(0))
    return compiled(net, kind=Numbers, metrics=None, augment=[*augments, watch.augment], **arguments), watch
