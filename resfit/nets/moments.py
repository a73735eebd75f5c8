"""Mean and variance of the whole from those of its parts: the one place that merges them."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Name = TypeVar("Name")


class Moments(NamedTuple):
    """Mean and biased variance of some values per channel, and how many values there are.

    Moments of stacked layers (nnx.scan, nnx.vmap) have the axes of the stack before the channels, and in the count.
    """

    count: Any  # (...)
    mean: Any  # (..., channels)
    var: Any  # (..., channels)


def merge(parts: list[Moments]) -> Moments:
    """Return the moments of all values together, from those of their parts, in float64 on the host.

    Example:
        >>> parts = [Moments(2, np.array([0.0]), np.array([1.0])), Moments(2, np.array([4.0]), np.array([1.0]))]
        >>> count, mean, var = merge(parts)
        >>> float(count), mean, var
        (4.0, array([2.]), array([5.]))
    """
    counts = np.array([part.count for part in parts], np.float64)
    values = {name: np.array([getattr(part, name) for part in parts], np.float64) for name in ("mean", "var")}

    def average(values: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: (value * counts[..., None]).sum(axis=0) / counts.sum(axis=0)[..., None]
            for name, value in values.items()
        }

    with np.errstate(invalid="ignore"):  # infinity minus infinity is NaN; the caller raises
        merged = averaged(values, {"var": ("mean", 1.0)}, average)
    return Moments(counts.sum(axis=0), merged["mean"], merged["var"])


def add(a: Moments, b: Moments) -> Moments:
    """Return the moments of the values of both, on the device. Moments of no values are zeros."""
    count = a.count + b.count
    share = (b.count / count)[..., None]
    apart = b.mean - a.mean
    var = a.var + (b.var - a.var) * share + jnp.square(apart) * share * (1 - share)
    return Moments(count, a.mean + apart * share, var)


def averaged(
    values: Mapping[Name, Any],
    variances: Mapping[Name, tuple[Name, float]],
    average: Callable[[Mapping[Name, Any]], Mapping[Name, Any]],
) -> dict[Name, Any]:
    """Return the values of the whole from those of its parts: averages, and merged variances.

    A merged variance is the average of the variances plus the average squared distance between a part's mean and the
    whole mean. It equals E[x^2] - E[x]^2, without the cancellation where the mean is large.

    Args:
        values: by name: means, variances, and others, which are only averaged.
        variances: for each variance, the name of its mean, and the share that one batch has in both: 1, or
            1 - momentum for running statistics. Means that moved by that share lie that much closer together.
        average: returns the average of each value over all parts.
    """
    whole = dict(average(values))
    apart = {var: _square(values[mean] - whole[mean]) / share for var, (mean, share) in variances.items()}
    return whole | {var: whole[var] + between for var, between in average(apart).items()}


def _square(x: Any) -> Any:
    return jnp.square(x) if isinstance(x, jax.Array) else np.square(x)  # NumPy keeps float64


def from_powers(mean: jax.Array, mean_of_squares: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return mean and variance from the means of x and x^2, which average over equal parts as they are."""
    return mean, jnp.maximum(mean_of_squares - jnp.square(mean), 0.0)
