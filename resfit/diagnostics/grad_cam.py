"""Grad-CAM: which places of an image speak for a class."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import einsum, reduce

from resfit.data.sources.arrays import as_arrays
from resfit.errors import DataError, ModuleError
from resfit.model import Model
from resfit.nets import probe


def grad_cam(model: Model, x: Any, part: str, classes: Any = None) -> np.ndarray:
    """How much each place of an image speaks for a class, as seen by one part of the network.

    The channels of the part's output are added up, each weighted by the mean gradient of the class's logit by it; what
    is negative speaks against the class and becomes 0. In evaluation mode; nothing is changed.

    Source: Selvaraju et al., "Grad-CAM" (arXiv 1610.02391), equations 1 and 2.

    Args:
      model: compiled or not; its module returns logits (batch, classes).
      x: a few images (examples, height, width, channels), as `Model.predict` takes them.
      part: dotted path of a module whose output is (batch, height, width, channels): "stage4", "stage2.blocks.0". The
        last stage tells classes apart best; earlier ones see finer detail.
      classes: (examples,) class numbers; the predicted ones by default. A multi-label model needs them, since it may
        predict several.

    Returns:
      (examples, height, width) float32 from 0 to 1, of the images' size; each image's largest value is 1, or all are 0
      where nothing speaks for the class. `plots.grad_cam(x, maps)` draws them.

    Raises:
      ModuleError: if there is no such part, or its output is no image.
      DataError: if x is no batch of images, or classes do not fit.

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

    def forward(change: Any, leaves: Any, x: Any) -> Any:
        module = snapshot.module(leaves)
        probe.tap_part(module, part, change)
        return module(x if preprocess is None else preprocess(x))

    found: list[jax.Array] = []

    def note(_: str, output: jax.Array) -> jax.Array:
        found.append(output)
        return output

    logits = jax.eval_shape(lambda leaves, x: forward(note, leaves, x), leaves, x)
    shapes = [output.shape for output in found]
    if len(shapes) != 1 or len(shapes[0]) != 4:
        raise ModuleError(
            f"Grad-CAM got part={part!r}, whose outputs in one call have the shapes {shapes}. Expected one (batch, "
            "height, width, channels). Name a stage or a block."
        )
    if getattr(logits, "ndim", 0) != 2:
        raise ModuleError(
            f"Grad-CAM needs logits (batch, classes); the module returns {jax.tree.map(np.shape, logits)}."
        )
    if classes is None and snapshot.multi_label and logits.shape[1] > 1:
        raise DataError(
            "Grad-CAM got no classes, and the model is multi-label: an image may have several labels, or none. "
            "Expected one label number for each image, such as classes=np.full(len(x), 3)."
        )
    if classes is not None and (
        classes.shape != (len(x),)
        or not np.issubdtype(classes.dtype, np.integer)
        or classes.min() < 0
        or classes.max() >= logits.shape[1]
    ):
        raise DataError(
            f"Grad-CAM got classes of shape {classes.shape}, {classes.dtype}, from {classes.min()} to {classes.max()}. "
            f"Expected one class number from 0 to {logits.shape[1] - 1} for each of the {len(x)} images."
        )

    @jax.jit
    def maps(leaves: Any, x: Any, classes: Any) -> jax.Array:
        def score(added: jax.Array) -> tuple[jax.Array, Any]:
            seen: list[jax.Array] = []

            def change(_: str, output: jax.Array) -> jax.Array:
                seen.append(output)
                return output + added

            logits = forward(change, leaves, x)
            chosen = logits.argmax(axis=1) if classes is None else classes
            # Rows do not depend on one another in evaluation, so the gradient of the sum holds that of each.
            return jnp.take_along_axis(logits, chosen[:, None], axis=1).sum(), seen[0]

        gradient, output = jax.grad(score, has_aux=True)(jnp.zeros(shapes[0], found[0].dtype))
        weights = reduce(jnp.asarray(gradient, jnp.float32), "n h w c -> n c", "mean")
        heat = jax.nn.relu(einsum(jnp.asarray(output, jnp.float32), weights, "n h w c, n c -> n h w"))
        heat = jax.image.resize(heat, x.shape[:3], "linear")
        largest = heat.max(axis=(1, 2), keepdims=True)
        scaled: jax.Array = heat / jnp.where(largest > 0, largest, 1)
        return scaled

    return np.asarray(maps(leaves, x, classes))
