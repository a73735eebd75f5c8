"""The loss of a step: that of `Model.compute_loss`, and the weights of pixels in it."""

import dataclasses
import functools
from typing import Any, Protocol

import jax

from resfit import losses
from resfit.errors import LabelError, LossError
from resfit.losses.by_output import entries_by_name, is_by_output
from resfit.losses.labels import described
from resfit.trainer.graph.explain import explained


class ComputeLoss(Protocol):
    """`Model.compute_loss`: returns one loss per example, (batch,), or `LossesByOutput`; and the outputs."""

    def __call__(self, module: Any, x: Any, y: Any, *, key: jax.Array, train: bool) -> tuple[Any, Any]: ...


@dataclasses.dataclass(frozen=True)
class Supervised:
    """`Model.compute_loss` of a model that does not override it: a loss of (outputs, labels).

    Attributes:
      loss: (outputs, labels) -> (batch,) loss.
    """

    loss: losses.Loss

    def __call__(
        self, module: Any, x: Any, y: Any, *, key: jax.Array, train: bool, pixel_weight: Any = None
    ) -> tuple[Any, Any]:
        if y is None:
            what = "to train on" if train else "to evaluate on"
            raise LabelError(
                f"There are no labels {what}: got y=None. Pass y, or data with labels, as (x, y). For a loss without "
                "labels, override Model.compute_loss."
            )
        with explained(module, x):
            outputs = losses.at_least_float32(module(x))
        with explained(self.loss, outputs, y):
            if pixel_weight is not None:
                return losses.weighted(self.loss, outputs, y, pixel_weight), outputs
            return self.loss(outputs, y), outputs


def weighing(compute_loss: ComputeLoss, weight: Any) -> ComputeLoss:
    """Return a `compute_loss` whose losses have the weights of their pixels, (batch, ...), if there are any."""
    of_pixels = _of_pixels(weight)
    if of_pixels is None:
        return compute_loss
    if not isinstance(compute_loss, Supervised):
        raise LossError(
            f"Got a sample_weight for each pixel, {described(of_pixels)}, and compute_loss is overridden, which "
            "returns one loss per example. Expected one weight per example."
        )
    return functools.partial(compute_loss, pixel_weight=of_pixels)


def _of_pixels(weight: Any) -> Any:
    """Return the weights of pixels, by output if the weights are; None if there are none."""
    if is_by_output(weight):
        return {name: one for name, one in entries_by_name(weight).items() if _of_pixels(one) is not None} or None
    return weight if getattr(weight, "ndim", 1) > 1 else None


def of_examples(weight: Any) -> Any:
    """Return the weights of the examples; those of pixels are in the loss, see `weighing`."""
    of_pixels = _of_pixels(weight)
    if of_pixels is None:
        return weight
    if not is_by_output(weight):
        return None
    return {name: one for name, one in entries_by_name(weight).items() if name not in of_pixels}
