"""BatchNorm statistics as true averages over a data set, instead of the running ones that training left."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from resfit.data import Geometry, as_batches
from resfit.errors import DataError, ModuleError
from resfit.model import Model
from resfit.nets.stand_in import stand_in
from resfit.trainer.snapshot import Snapshot

Path = tuple[Any, ...]


class Moments(NamedTuple):
    """What one BatchNorm saw in one call: how many values per channel, their mean and their biased variance."""

    count: Any  # ()
    mean: Any  # (channels,)
    var: Any  # (channels,)


def recalibrate(model: Model, x: Any, *, batch_size: int = 256) -> None:
    """Replaces every BatchNorm's running statistics by its mean and variance over a data set.

    Running statistics are averages over the last steps, of networks that no longer exist. After a short training, an
    average of weights, or a change of the image size, they fit badly. The ResNets that He et al. released
    (github.com/KaimingHe/deep-residual-networks) hold averages after training instead.

    One pass. Every BatchNorm normalises by its batch, as in training; all else (Dropout) is in evaluation mode, and
    nothing is augmented. A layer's batches are combined by E[x] and E[x^2], each weighted by how many values it had, so
    that the variance also holds what lies between batches: the mean of the batches' variances would be too small. What
    a layer behind another BatchNorm sees depends on the batch, so prefer large ones. Parameters, optimizer, averaged
    weights and frozen BatchNorms stay as they are. To recalibrate the averaged weights, put them into the module first:
    `model.set_weights(model.get_weights("ema"))`.

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
            f"{type(model.module).__name__} holds no BatchNorm with running statistics that are not frozen. There is "
            "nothing to recalibrate; leave out the call."
        )

    @jax.jit
    def measure(variables: Any, x: Any) -> dict[str, list[Moments]]:
        module = snapshot.module(variables)
        seen: dict[str, list[Moments]] = {}
        for path, part in nnx.iter_modules(module):
            if path in norms:
                _measure(part, seen.setdefault(_name(path), []).append)
        module(x if snapshot.preprocess is None else snapshot.preprocess(x))
        return seen

    totals: dict[str, list[Moments]] = {_name(path): [] for path in norms}
    for batch in as_batches(x, geometry=Geometry(batch_size, min_batch=2)).epoch(0):
        placed = snapshot.place(batch.x)
        for name, moments in jax.device_get(measure(snapshot.variables, placed)).items():
            totals[name] = [combine([*totals[name], *moments])] if totals[name] or moments else []
    new = list(model.get_weights())
    slots = {slot.path: snapshot.layout.n_params + i for i, slot in enumerate(snapshot.layout.carried)}
    for path, norm in norms.items():
        if not totals[_name(path)]:
            continue  # a part that the call does not use
        count, mean, var = totals[_name(path)][0]
        if getattr(norm, "unbiased", False):
            var = var * (count / (count - 1))
        if not (np.isfinite(mean).all() and np.isfinite(var).all()):
            raise DataError(
                f"The statistics of {_name(path)!r} over this data set are not finite. Expected finite activations. "
                "Look for NaN or infinity in x and in the parameters; the model is as it was."
            )
        new[slots[*path, "mean"]], new[slots[*path, "var"]] = mean, var
    model.set_weights(new, averages=model.get_weights("ema") if model.keeps_averages else None)


def combine(parts: list[Moments]) -> Moments:
    """The moments of all values together, from those of their parts, in float64.

    Example:
      >>> combine([Moments(2, np.array([0.0]), np.array([1.0])), Moments(2, np.array([4.0]), np.array([1.0]))])
      Moments(count=4.0, mean=array([2.]), var=array([5.]))
    """
    counts = [float(part.count) for part in parts]
    total = sum(counts)
    means = [np.asarray(part.mean, np.float64) for part in parts]
    mean = sum(n * m for n, m in zip(counts, means, strict=True)) / total
    # E[(x - mean)^2], not E[x^2] - mean^2, which cancels where the mean is large; they are the same number.
    with np.errstate(invalid="ignore"):  # infinity minus infinity, which the caller finds and names
        spread = [np.asarray(part.var, np.float64) + (m - mean) ** 2 for part, m in zip(parts, means, strict=True)]
    var = sum(n * s for n, s in zip(counts, spread, strict=True)) / total
    return Moments(total, np.asarray(mean), np.asarray(var))


def _norms(snapshot: Snapshot) -> dict[Path, nnx.BatchNorm]:
    """The BatchNorms whose statistics may move, by path."""
    frozen = {slot.path for slot in snapshot.layout.plan.slots if slot.frozen}
    module = snapshot.module(snapshot.variables)
    return {
        path: part
        for path, part in nnx.iter_modules(module)
        if isinstance(part, nnx.BatchNorm) and (*path, "mean") not in frozen
    }


def _measure(norm: Any, record: Callable[[Moments], None]) -> None:
    """Makes a copy of a norm normalise by the batch, whatever its mode, and report what it saw."""
    cls: type = type(norm)

    def __call__(self: Any, x: jax.Array, use_running_average: bool | None = None, *, mask: Any = None) -> jax.Array:
        y: jax.Array = cls.__call__(self, x, use_running_average=False, mask=mask)
        values = x.size if mask is None else jnp.broadcast_to(mask, x.shape).sum()
        record(Moments(jnp.asarray(values / self.num_features), self.mean[...], self.var[...]))
        return y

    norm.momentum = 0.0  # the running statistics become those of the batch
    if hasattr(norm, "unbiased"):
        norm.unbiased = False  # corrected once, for all batches together
    object.__setattr__(norm, "__class__", stand_in(cls, {"__call__": __call__}))


def _name(path: Path) -> str:
    return ".".join(map(str, path))
