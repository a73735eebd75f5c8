"""Test-time augmentation: the mean of the predictions for several views of each image."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from resfit import losses
from resfit._utils.jax_switches import implicit_promotion
from resfit._utils.suggest import did_you_mean
from resfit.augment.copies import repeated
from resfit.errors import CompileError, ImageTooSmallError, ModuleError, RankError
from resfit.losses.by_output import ByOutput, entries_by_name, is_by_output
from resfit.trainer.supervised import ComputeLoss, Supervised


class View(NamedTuple):
    """A view of an image.

    Attributes:
      mirrored: True for left to right.
      shift: pixels by which the image moves down and to the right; its border is mirrored.
      weight: of the view in the mean.
    """

    mirrored: bool
    shift: int
    weight: float


TTA: Mapping[str, tuple[View, ...]] = {
    "flip": (View(False, 0, 0.5), View(True, 0, 0.5)),
    "flip+shift": tuple(
        View(mirrored, shift, 0.125 if shift else 0.25) for shift in (0, 1, -1) for mirrored in (False, True)
    ),
}
"""The views of the argument `tta` by its values."""

Means = str | tuple[tuple[str, str], ...]
"""The mean of the outputs, a key of `_MEANS`; or for outputs by name, pairs of a name and its mean."""


def check_tta(tta: Any) -> None:
    """Raise CompileError for an unknown value of the argument `tta`."""
    if tta is not None and (not isinstance(tta, str) or tta not in TTA):
        suggestion = did_you_mean(tta, TTA) if isinstance(tta, str) else ""
        raise CompileError(f"Expected tta to be None or one of {list(TTA)}, got {tta!r}.{suggestion}")


def mean_for_loss(compute_loss: ComputeLoss) -> Means:
    """Return the mean of the outputs that a loss reads: of probabilities if the loss reads logits of classes."""
    if not isinstance(compute_loss, Supervised):
        return "outputs"
    loss = compute_loss.loss
    if isinstance(loss, ByOutput):
        return tuple((name, _mean_for(one)) for name, one in loss.loss_of.items())
    return _mean_for(loss)


def mean_for_kind(kind: str) -> Means:
    """Return the mean of the outputs for a kind of prediction, a key of `learned.outputs.OUTPUTS`."""
    if kind in ("logits", "embedding"):
        return "outputs"
    return "sigmoids" if kind.startswith("multi-label") else "probabilities"


def averaging(tta: str | None, means: Means) -> Callable[[Any], Any] | None:
    """Return a function from a module to an `Averaged` one; None if there is one view."""
    return None if tta is None else functools.partial(Averaged, tta=tta, means=means)


class Averaged:
    """A module in evaluation mode whose outputs are means over several views of its inputs.

    Other attributes are those of the module.

    Args:
      module: the network.
      tta: a key of `TTA`.
      means: the mean of the outputs.
    """

    def __init__(self, module: Any, tta: str, means: Means) -> None:
        self._module, self._tta, self._means = module, tta, means
        self.__name__ = type(module).__name__

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def __call__(self, x: Any) -> Any:
        """Return the mean outputs for a batch, of the shapes of the module's outputs."""
        return self._mean(self._module, x, self._means)

    def embed(self, x: Any) -> Any:
        """Return the mean embeddings of a batch."""
        return self._mean(self._module.embed, x, "outputs")

    @implicit_promotion()
    def _mean(self, function: Callable[[Any], Any], x: Any, means: Means) -> Any:
        outputs = losses.at_least_float32(function(_views(x, self._tta)))
        sizes = {tuple(leaf.shape[1:3]) for leaf in jax.tree.leaves(x) if np.ndim(leaf) == 4}
        mean = functools.partial(_mean, self._tta, sizes)
        if isinstance(means, str):
            return jax.tree.map(lambda output: mean(means, output), outputs)
        by_name = dict(means)
        return {
            name: jax.tree.map(functools.partial(mean, by_name.get(name, "outputs")), output)
            for name, output in (entries_by_name(outputs) if is_by_output(outputs) else {}).items()
        }


def _mean_for(loss: losses.Loss | None) -> str:
    if losses.takes_labels(loss):
        return "probabilities"
    several = isinstance(loss, losses.BinaryCrossEntropy) or losses.multi_label(loss)
    return "sigmoids" if several else "outputs"


def _views(x: Any, tta: str) -> Any:
    """Return inputs with several rows for each row, one for each view; inputs that are no images are repeated."""
    leaves = jax.tree.leaves(x)
    if not any(np.ndim(leaf) == 4 for leaf in leaves):
        raise RankError(
            f"tta={tta!r} mirrors images, and got inputs of shape {jax.tree.map(np.shape, x)}. Expected images (batch, "
            "height, width, channels). Leave tta out for other inputs."
        )
    views = TTA[tta]

    def of(leaf: jax.Array) -> jax.Array:
        if leaf.ndim != 4:
            rows: jax.Array = repeated(leaf, len(views))
            return rows
        return jnp.stack([_view(leaf, view) for view in views], axis=1).reshape(-1, *leaf.shape[1:])

    return jax.tree.map(of, x)


def _view(x: jax.Array, view: View) -> jax.Array:
    if view.shift:
        height, width = x.shape[1:3]
        if min(height, width) < 2:
            raise ImageTooSmallError(
                f"tta='flip+shift' got images of {height} x {width} pixels. Expected at least 2 in both directions. "
                "Use tta='flip'."
            )
        start = 1 - view.shift
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
        x = x[:, start : start + height, start : start + width]
    return x[:, :, ::-1] if view.mirrored else x


def _mean(tta: str, sizes: set[tuple[int, ...]], means: str, output: jax.Array) -> jax.Array:
    """Return the mean of an output (rows * views, ...) over the views, (rows, ...), for images of these sizes."""
    views = TTA[tta]
    of_views = output.reshape(-1, len(views), *output.shape[1:])
    if _are_pixels(output, tta, sizes):  # those of a mirrored image are mirrored back
        if any(view.shift for view in views):
            raise ModuleError(
                f"tta={tta!r} moves the images by a pixel, and the module returned outputs for pixels, of shape "
                f"{output.shape[1:]} for each image. Expected one output per image. Use tta='flip'."
            )
        mirrored = np.array([view.mirrored for view in views]).reshape(1, -1, *[1] * (output.ndim - 1))
        of_views = jnp.where(mirrored, jnp.flip(of_views, axis=3), of_views)
    weights = np.array([view.weight for view in views], np.float32).reshape(1, -1, *[1] * (output.ndim - 1))
    return _MEANS[means](of_views, weights)


def _are_pixels(output: jax.Array, tta: str, sizes: set[tuple[int, ...]]) -> bool:
    """Return True for outputs (rows, height, width, ...) for pixels."""
    if output.ndim != 3:
        return output.ndim > 3
    rows, columns = output.shape[1:]
    if (rows, columns) in sizes:
        return True
    if any(rows * width == columns * height for height, width in sizes):
        raise ModuleError(
            f"tta={tta!r} got outputs of shape ({rows}, {columns}) for each image. They could be pixels, which "
            "are mirrored back, or others. Expected a last axis of channels for pixels: return (batch, "
            f"{rows}, {columns}, 1) from the network."
        )
    return False


def _of_outputs(outputs: jax.Array, weights: np.ndarray) -> jax.Array:
    return (outputs * weights).sum(axis=1)


def _of_probabilities(logits: jax.Array, weights: np.ndarray) -> jax.Array:
    """Return logits whose softmax is the mean of the softmaxes; of a single binary logit, the sigmoid."""
    if logits.ndim < 3 or logits.shape[-1] == 1:
        return _of_sigmoids(logits, weights)
    return jax.nn.logsumexp(jax.nn.log_softmax(logits, axis=-1), axis=1, b=weights)


def _of_sigmoids(logits: jax.Array, weights: np.ndarray) -> jax.Array:
    """Return logits whose sigmoid is the mean of the sigmoids."""
    yes, no = (jax.nn.logsumexp(jax.nn.log_sigmoid(each), axis=1, b=weights) for each in (logits, -logits))
    return yes - no


_MEANS: Mapping[str, Callable[[jax.Array, np.ndarray], jax.Array]] = {
    "outputs": _of_outputs,
    "probabilities": _of_probabilities,
    "sigmoids": _of_sigmoids,
}
