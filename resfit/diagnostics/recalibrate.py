"""Recalibrate BatchNorm: replace the running statistics that training left by true averages over a dataset."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from resfit._utils.jax_switches import suspending
from resfit._utils.keywords import checked
from resfit.data import Geometry, as_batches
from resfit.data.batches import whole_epoch
from resfit.errors import DataError, ModuleError
from resfit.model import Model
from resfit.nets.intercept import intercept
from resfit.nets.moments import Moments, add, merge
from resfit.trainer.state.snapshot import Snapshot

Path = tuple[Any, ...]
Measure = Callable[[Any, Any], dict[str, Moments]]


@checked("function arguments")
@suspending
def recalibrate(model: Model, x: Any, *, batch_size: int = 256) -> None:
    """Replace the running statistics of every BatchNorm by its mean and variance over a dataset.

    Running statistics are averages over the last steps, each with other weights. After a short training, an average of
    weights, or a change of the image size, they fit badly. The ResNets that He et al. released
    (github.com/KaimingHe/deep-residual-networks) hold averages after training instead.

    The data is read once. Every BatchNorm normalizes by its batch, as in training; other layers (Dropout) are in
    evaluation mode, and nothing is augmented. The moments of all batches are merged, weighted by their number of
    values, so that the variance includes the variance between batches: the mean of the batch variances would be too
    small. The input of a layer behind another BatchNorm depends on the batch, so prefer large batches. Parameters,
    optimizer, averaged weights and frozen BatchNorms do not change. To recalibrate the averaged weights, put them into
    the module first: `model.set_weights(model.get_weights("ema"))`.

    Source: Wu and Johnson, "Rethinking 'Batch' in BatchNorm" (arXiv 2105.07576), section 3, "PreciseBN".

    Args:
      model: compiled or not.
      x: images (examples, height, width, channels), or an iterable of batches, as in `Model.fit`; labels are ignored.
        Some thousand training images are enough.
      batch_size: examples in a step, over all devices together.

    Raises:
      ModuleError: if there is no BatchNorm to recalibrate.
      DataError: if there are no examples, or a statistic would not be finite.

    Example:
      >>> import numpy as np, resfit
      >>> net = resfit.create_model("resnet20", num_classes=10, depths=(1,), widths=(4,), in_channels=1)
      >>> model = resfit.Model(net)
      >>> recalibrate(model, np.random.default_rng(0).normal(size=(64, 8, 8, 1)).astype("float32"))
      >>> bool((net.stem.norm.var[...] != 1).all())
      True
    """
    snapshot = model.snapshot()
    norms = _norms(snapshot)
    if not norms:
        raise ModuleError(
            f"{type(model.module).__name__} holds no nnx.BatchNorm with running statistics that are not frozen, and "
            "recalibrate does not read those of Linen modules. There is nothing to recalibrate; leave out the call."
        )
    measure = _measure(snapshot, norms)
    found: dict[str, list[Moments]] = {_name(path): [] for path in norms}
    data = as_batches(x, geometry=Geometry(batch_size, min_batch=2))
    for batch in whole_epoch(data, 0, data.epoch(0)):
        placed = snapshot.place(batch.x)
        for name, moments in jax.device_get(measure(snapshot.variables, placed)).items():
            if np.any(moments.count):  # zero for a part that the call does not use
                found[name].append(moments)
    if not any(found.values()):
        raise ModuleError(
            f"No call of {type(model.module).__name__} used one of its BatchNorms {sorted(found)}, or a transformation "
            "of JAX dropped their statistics. Expected calls inside transformations of NNX, such as nnx.remat."
        )
    new = list(model.get_weights())
    slots = {slot.path: snapshot.layout.n_params + i for i, slot in enumerate(snapshot.layout.carried)}
    for path, norm in norms.items():
        if found[_name(path)]:
            whole = merge(found[_name(path)])
            mean, var = _checked(whole, _name(path), unbiased=getattr(norm, "unbiased", False))
            new[slots[*path, "mean"]], new[slots[*path, "var"]] = mean, var
    model.set_weights(new, averages=model.get_weights("ema") if model.keeps_averages else None)


def _norms(snapshot: Snapshot) -> dict[Path, nnx.BatchNorm]:
    """Return the BatchNorms that are not frozen, by path."""
    frozen = {slot.path for slot in snapshot.layout.plan.slots if slot.frozen}
    module = snapshot.module(snapshot.variables)
    return {
        path: part
        for path, part in nnx.iter_modules(module)
        if isinstance(part, nnx.BatchNorm) and (*path, "mean") not in frozen
    }


def _measure(snapshot: Snapshot, norms: dict[Path, nnx.BatchNorm]) -> Measure:
    """Return a compiled function of (variables, images) that returns the moments of the inputs of each norm."""

    @jax.jit
    def measure(variables: Any, x: Any) -> dict[str, Moments]:
        module = snapshot.module(variables)
        parts = {_name(path): part for path, part in nnx.iter_modules(module) if path in norms}
        for part in parts.values():
            _record(part)
        module(x if snapshot.preprocess is None else snapshot.preprocess(x))
        return {name: _recorded(part) for name, part in parts.items()}

    return measure


def _record(norm: Any) -> None:
    """Make a copy of a norm normalize by the batch in every mode, and merge the moments of its inputs.

    The moments are in the Variables of the norm, which leave every transformation of NNX. Stacked norms (nnx.scan,
    nnx.vmap) have one count for each layer.
    """

    def around(self: Any, call: Any, x: jax.Array, use_running_average: Any = None, *, mask: Any = None) -> jax.Array:
        before = _recorded(self)
        y: jax.Array = call(x, use_running_average=False, mask=mask)
        values = x.size if mask is None else jnp.broadcast_to(mask, x.shape).sum()
        count = jnp.asarray(values / self.num_features, jnp.float32)
        merged = add(before, Moments(count, self.mean[...], self.var[...]))
        self.recorded[...], self.mean[...], self.var[...] = merged
        return y

    norm.momentum = 0.0  # the running statistics become those of the batch
    if hasattr(norm, "unbiased"):
        norm.unbiased = False  # corrected once, for all batches together
    norm.recorded = nnx.BatchStat(jnp.zeros(norm.mean.shape[:-1], jnp.float32))
    norm.mean[...], norm.var[...] = jnp.zeros_like(norm.mean[...]), jnp.zeros_like(norm.var[...])
    intercept(norm, around)


def _recorded(norm: Any) -> Moments:
    return Moments(norm.recorded[...], norm.mean[...], norm.var[...])


def _checked(moments: Moments, name: str, *, unbiased: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and running variance; raise if they are not finite."""
    count, mean, var = moments
    if unbiased:
        var = var * (count / (count - 1))[..., None]
    if not (np.isfinite(mean).all() and np.isfinite(var).all()):
        raise DataError(
            f"The statistics of {name!r} over this dataset are not finite. Expected finite activations. Look for NaN "
            "or infinity in x and in the parameters; the model did not change."
        )
    return mean, var


def _name(path: Path) -> str:
    return ".".join(map(str, path))
