"""Averages of the weights of several networks: model soups and stochastic weight averaging over saved files."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from resfit._utils.jax_switches import suspending
from resfit._utils.keywords import checked
from resfit.errors import WeightsError
from resfit.weights.formats import read
from resfit.weights.layouts import Array
from resfit.weights.own_names import named_arrays


@checked("function arguments")
@suspending
def average(sources: Iterable[Any], weights: Sequence[float] | None = None) -> dict[str, Array]:
    """Return the average of the weights of several networks, array by array.

    Files that one run saved give stochastic weight averaging (Izmailov et al., arXiv 1803.05407); networks that were
    fine-tuned from the same weights give a model soup (Wortsman et al., arXiv 2203.05482). Networks that were trained
    from different initial weights have no useful average. Files are read one after another, and sums are float64.

    The BatchNorm statistics are averaged like the parameters. They do not describe the averaged network: call
    `resfit.recalibrate(model, x)` before it is evaluated. Arrays of integers and booleans are those of the first
    source.

    Args:
      sources: paths of any files that `read` reads, such as those of `Model.save` and `ModelCheckpoint`; `Model`
        objects; modules; or dicts of arrays by name, such as a result of `read`.
      weights: a number of 0 or more for each source, divided by their sum; by default all are equal.

    Returns:
      The averages by name, with the dtypes of the first source. `model.load_weights` takes those of files of resfit, of
      models and of modules, and `load_state_dict` those with the names of other libraries.

    Raises:
      WeightsError: if the names, shapes or kinds of the arrays differ between sources, an array has NaN, there is no
        source, or a weight is not valid.

    Example:
      >>> import resfit
      >>> nets = [resfit.create_model("resnet20", num_classes=10, rngs=seed) for seed in (0, 1)]
      >>> soup = average(nets, weights=[3, 1])
      >>> first, second = (net.stem.conv.kernel[...] for net in nets)
      >>> bool(jnp.allclose(soup["stem.conv.kernel"], 0.75 * first + 0.25 * second, atol=1e-6))
      True
      >>> resfit.Model(nets[0]).load_weights(soup)
    """
    if isinstance(sources, str | os.PathLike | Mapping | nnx.Module) or not isinstance(sources, Iterable):
        raise WeightsError(
            f"average got {_name(sources, 0)} as sources. Expected a list of them, such as ['a.safetensors', "
            "'b.safetensors']."
        )
    given = list(sources)
    factors = _factors(weights, len(given))
    first: dict[str, Array] = {}
    sums: dict[str, Array] = {}
    for i, (source, factor) in enumerate(zip(given, factors, strict=True)):
        arrays, name = _arrays(source, i), _name(source, i)
        first = first or arrays
        _check(first, _name(given[0], 0), arrays, name)
        for key, array in arrays.items():
            if jnp.issubdtype(array.dtype, jnp.inexact):
                wide = array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)
                sums[key] = factor * wide + sums.get(key, 0)
    means = {key: (total / sum(factors)).astype(first[key].dtype) for key, total in sums.items()}
    return {key: means[key] if key in means else np.array(array) for key, array in first.items()}


def _factors(weights: Sequence[float] | None, count: int) -> list[float]:
    if not count:
        raise WeightsError("average got no sources. Expected at least one, such as a path of a file of Model.save.")
    given: list[Any] = [1.0] * count if weights is None else np.ravel(np.array(weights, object)).tolist()
    valid = [isinstance(one, int | float | np.number) and math.isfinite(one) and one >= 0 for one in given]
    if len(given) != count or not all(valid) or not sum(given) > 0:
        raise WeightsError(
            f"average got weights={weights!r} for {count} sources. Expected one number of 0 or more for each source, "
            "and at least one above 0. For equal weights leave weights out."
        )
    return [float(one) for one in given]


def _arrays(source: Any, i: int) -> dict[str, Array]:
    if isinstance(source, str | os.PathLike):
        return read(source)
    if not isinstance(source, Mapping):
        module = source if isinstance(source, nnx.Module) else getattr(source, "module", None)
        if not isinstance(module, nnx.Module):
            raise WeightsError(
                f"average got {_name(source, i)}. Expected the path of a file, a resfit.Model, an nnx.Module, or a "
                "dict of arrays by name."
            )
        source = named_arrays(module)
    return {str(name): np.asarray(array) for name, array in source.items()}


def _name(source: Any, i: int) -> str:
    return repr(str(source)) if isinstance(source, str | os.PathLike) else f"source {i} (a {type(source).__name__})"


def _check(first: Mapping[str, Array], first_name: str, arrays: Mapping[str, Array], name: str) -> None:
    """Raise if the arrays of a source cannot be averaged with those of the first one."""
    problems = [f"{name} lacks {key!r}" for key in first.keys() - arrays.keys()]
    problems += [f"{name} has {key!r} too" for key in arrays.keys() - first.keys()]
    for key in first.keys() & arrays.keys():
        one, other = first[key], arrays[key]
        same = one.dtype == other.dtype or all(jnp.issubdtype(array.dtype, jnp.inexact) for array in (one, other))
        if one.shape != other.shape or not same:
            problems.append(f"{key!r} is {one.dtype}{list(one.shape)}, and {other.dtype}{list(other.shape)} in {name}")
    if problems:
        problems.sort()
        more = f"; and {len(problems) - 3} more differences" if len(problems) > 3 else ""
        raise WeightsError(
            f"The sources hold different networks. Compared with {first_name}: {'; '.join(problems[:3])}{more}. "
            "Expected arrays of the same names and shapes. Average networks of one architecture."
        )
    for key, array in arrays.items():
        if jnp.issubdtype(array.dtype, jnp.inexact) and np.isnan(array).any():
            raise WeightsError(f"The array {key!r} of {name} has NaN. Expected numbers. Leave this source out.")
