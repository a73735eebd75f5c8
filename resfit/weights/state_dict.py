"""State dicts under PyTorch's names: from one into a network, and from a network to one."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from resfit.errors import WeightsError
from resfit.weights.names import IGNORED, KERNEL_AXES, other_name


def state_dict(module: nnx.Module, *, naming: str = "torchvision") -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
    """A network's parameters and running statistics as another library names them and lays them out.

    Convolution kernels become (out, in, height, width) and dense ones (out, in). PyTorch's `num_batches_tracked` is not
    among them.

    Args:
        module: a `resfit.nets.ResNet`.
        naming: whose names (default `"torchvision"`, which timm's ResNets share).

    Returns:
        NumPy arrays by name, of the network's own dtypes.

    Raises:
        WeightsError: if the naming is unknown, or has no name for a part of the network.

    Example:
        >>> from resfit.nets import create_model
        >>> weights = state_dict(create_model("resnet20", num_classes=10))
        >>> weights["conv1.weight"].shape
        (16, 3, 3, 3)
    """
    return {name: _to_torch(variable) for name, variable in _named(module, naming)}


def load_state_dict(module: nnx.Module, mapping: Mapping[str, Any], *, naming: str = "torchvision") -> None:
    """Fills a network with parameters and running statistics from a state dict, in place.

    Names and shapes must agree both ways, except for PyTorch's `num_batches_tracked`, which is ignored; after an error
    the network is as it was. Values are cast to the network's dtypes.

    Args:
        module: a `resfit.nets.ResNet`.
        mapping: arrays by name, laid out as PyTorch does: NumPy arrays, or anything that `numpy.asarray` reads, such as
            the tensors of a PyTorch `state_dict()` on the CPU.
        naming: whose names (default `"torchvision"`, which timm's ResNets share).

    Raises:
        WeightsError: listing every missing, unexpected and mis-shaped entry.

    Example:
        >>> from resfit.nets import create_model
        >>> net, other = (create_model("resnet20", num_classes=10, rngs=seed) for seed in (0, 1))
        >>> load_state_dict(net, state_dict(other))
        >>> bool((net.head.dense.kernel[...] == other.head.dense.kernel[...]).all())
        True
    """
    variables = dict(_named(module, naming))
    values = {name: np.asarray(value) for name, value in mapping.items() if name.split(".")[-1] != IGNORED}
    problems = [
        f"missing: {name}, of shape {_torch_shape(variables[name])}" for name in variables.keys() - values.keys()
    ]
    problems += [f"unexpected: {name}, of shape {values[name].shape}" for name in values.keys() - variables.keys()]
    problems += [
        f"mis-shaped: {name} has shape {values[name].shape}, expected {_torch_shape(variables[name])}"
        for name in variables.keys() & values.keys()
        if values[name].shape != _torch_shape(variables[name])
    ]
    if problems:
        listed = "\n  ".join(sorted(problems))
        raise WeightsError(
            f"The state dict does not fit the network; {len(problems)} of its entries differ:\n  {listed}\nExpected "
            "the names and shapes of this very network. Build it with the depths, block, stem, shortcut, num_classes "
            "and in_channels that the weights were trained with."
        )
    for name, variable in variables.items():
        variable.set_value(jnp.asarray(_from_torch(values[name]), variable.get_value().dtype))


def _named(module: nnx.Module, naming: str) -> Iterator[tuple[str, nnx.Variable[Any]]]:
    """Every parameter and statistic of a module, under its name in the other library."""
    for path, node in nnx.iter_graph(module):
        if isinstance(node, nnx.Param | nnx.BatchStat):
            yield other_name(tuple(str(key) for key in path), naming), node


def _to_torch(variable: nnx.Variable[Any]) -> np.ndarray[Any, np.dtype[Any]]:
    value = np.asarray(variable.get_value())
    if value.ndim not in KERNEL_AXES:
        return value.copy()
    here, there = KERNEL_AXES[value.ndim]
    return np.ascontiguousarray(rearrange(value, f"{here} -> {there}"))


def _from_torch(value: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[Any]]:
    if value.ndim not in KERNEL_AXES:
        return value
    here, there = KERNEL_AXES[value.ndim]
    return rearrange(value, f"{there} -> {here}")


def _torch_shape(variable: nnx.Variable[Any]) -> tuple[int, ...]:
    shape: tuple[int, ...] = tuple(variable.get_value().shape)
    if len(shape) not in KERNEL_AXES:
        return shape
    here, there = KERNEL_AXES[len(shape)]
    sizes = dict(zip(here.split(), shape, strict=True))
    return tuple(sizes[axis] for axis in there.split())
