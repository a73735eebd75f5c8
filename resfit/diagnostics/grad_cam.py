"""Grad-CAM: maps of the image regions that support a class."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import einsum, reduce

from resfit._utils.jax_switches import suspending
from resfit._utils.keywords import checked
from resfit.data.sources.arrays import as_arrays
from resfit.errors import DataError, ModuleError
from resfit.model import Model
from resfit.nets import probe

# (change, weights, images) -> logits; `change` gets name and output of the part.
Forward = Callable[[probe.Change, Any, Any], Any]


@checked("function arguments")
@suspending
def grad_cam(model: Model, x: Any, part: str, classes: Any = None) -> np.ndarray:
    """Return maps of the image regions that support a class, seen by one part of the network.

    The channels of the part's output are summed, each weighted by the mean gradient of the class's logit by it.
    Negative values, which speak against the class, become 0. The network runs in evaluation mode, and nothing changes.

    Source: Selvaraju et al., "Grad-CAM" (arXiv 1610.02391), equations 1 and 2.

    Args:
      model: compiled or not; its module returns logits (batch, classes).
      x: a few images (examples, height, width, channels), as `Model.predict` takes them.
      part: dotted path of a module whose output is (batch, height, width, channels): "stage4", "stage2.blocks.0". The
        last stage separates classes best; earlier ones show finer detail.
      classes: (examples,) class numbers; the predicted ones by default. Required for a multi-label model, which can
        predict several.

    Returns:
      (examples, height, width) float32 from 0 to 1, of the images' size. The largest value of each image is 1; all
      values are 0 if nothing supports the class. `plots.grad_cam(x, maps)` draws the maps.

    Raises:
      ModuleError: if the module has no such part, or the part's output is not an image.
      DataError: if x is not a batch of images, or classes do not fit.

    Example:
      >>> import numpy as np, resfit
      >>> net = resfit.create_model("resnet20", num_classes=10, depths=(1, 1), widths=(4, 8))
      >>> x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
      >>> grad_cam(resfit.Model(net), x, "stage2").shape
      (2, 8, 8)
    """
    x, classes, _ = as_arrays(x, classes)
    if not isinstance(x, np.ndarray) or x.ndim != 4:
        raise DataError(
            f"Grad-CAM got x of shape {jax.tree.map(np.shape, x)}. Expected images (examples, height, width, channels)."
        )
    snapshot = model.snapshot()
    leaves, preprocess = snapshot.variables, snapshot.preprocess

    def forward(change: probe.Change, leaves: Any, x: Any) -> Any:
        module = snapshot.module(leaves)
        probe.tap_part(module, part, change)
        return module(x if preprocess is None else preprocess(x))

    output, logits = _shapes(forward, leaves, x, part)
    _check_classes(classes, len(x), logits.shape[1], multi_label=bool(snapshot.multi_label))
    return np.asarray(_maps(forward, output)(leaves, x, classes))


def _shapes(forward: Forward, leaves: Any, x: Any, part: str) -> tuple[jax.ShapeDtypeStruct, Any]:
    """Return the shapes of the part's output and of the logits; raise if they are not an image and (batch, classes)."""
    found: list[jax.ShapeDtypeStruct] = []

    def note(_: str, output: jax.Array) -> jax.Array:
        found.append(jax.ShapeDtypeStruct(output.shape, output.dtype))
        return output

    logits = jax.eval_shape(lambda leaves, x: forward(note, leaves, x), leaves, x)
    shapes = [output.shape for output in found]
    if len(shapes) != 1 or len(shapes[0]) != 4:
        raise ModuleError(
            f"Grad-CAM got part={part!r}, whose outputs in one call have the shapes {shapes}. Expected one (batch, "
            "height, width, channels). Name a stage or a block. A part that runs inside nnx.scan, nnx.remat or another "
            "transformation of the network has no output outside of it: name a part around or after the transformation."
        )
    if getattr(logits, "ndim", 0) != 2:
        raise ModuleError(
            f"Grad-CAM got a module that returns {jax.tree.map(np.shape, logits)}. Expected logits (batch, classes)."
        )
    return found[0], logits


def _check_classes(classes: Any, examples: int, num_classes: int, *, multi_label: bool) -> None:
    """Raise unless there is one class number for each image, or the predicted class can be used."""
    if classes is None:
        if multi_label and num_classes > 1:
            raise DataError(
                "Grad-CAM got no classes, and the model is multi-label: an image can have several labels, or no label. "
                "Expected one label number for each image, such as classes=np.full(len(x), 3)."
            )
    elif (
        classes.shape != (examples,)
        or not np.issubdtype(classes.dtype, np.integer)
        or classes.min() < 0
        or classes.max() >= num_classes
    ):
        raise DataError(
            f"Grad-CAM got classes of shape {classes.shape}, {classes.dtype}, from {classes.min()} to {classes.max()}. "
            f"Expected one class number from 0 to {num_classes - 1} for each of the {examples} images."
        )


def _maps(forward: Forward, part: jax.ShapeDtypeStruct) -> Callable[[Any, Any, Any], jax.Array]:
    """Return a compiled function of (weights, images, classes) that returns the maps.

    Args:
      forward: of the network.
      part: shape and dtype of the part's output.
    """

    @jax.jit
    def maps(leaves: Any, x: Any, classes: Any) -> jax.Array:
        def score(added: jax.Array) -> tuple[jax.Array, Any]:
            # The tapped class keeps `change` alive after the trace, so it must hold no array of it then.
            seen: list[jax.Array] = []
            left = [added]

            def change(_: str, output: jax.Array) -> jax.Array:
                seen.append(output)
                return output + left.pop()

            logits = forward(change, leaves, x)
            chosen = logits.argmax(axis=1) if classes is None else classes
            # Rows are independent in evaluation, so the gradient of the sum holds the gradient of each row.
            return jnp.take_along_axis(logits, chosen[:, None], axis=1).sum(), seen.pop()

        gradient, output = jax.grad(score, has_aux=True)(jnp.zeros(part.shape, part.dtype))
        weights = reduce(jnp.asarray(gradient, jnp.float32), "n h w c -> n c", "mean")
        heat = jax.nn.relu(einsum(jnp.asarray(output, jnp.float32), weights, "n h w c, n c -> n h w"))
        heat = jax.image.resize(heat, x.shape[:3], "linear")
        largest = heat.max(axis=(1, 2), keepdims=True)
        scaled: jax.Array = heat / jnp.where(largest > 0, largest, 1)
        return scaled

    return maps
