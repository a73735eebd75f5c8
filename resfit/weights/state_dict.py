"""State dicts under PyTorch's names: from one into a network, and from a network to one."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from resfit.errors import WeightsError
from resfit.nets import ResNet
from resfit.weights.layouts import Layout
from resfit.weights.names import IGNORED, other_name


def state_dict(module: nnx.Module, *, naming: str | None = None) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
    """A network's parameters and running statistics as another library names them and lays them out.

    Convolution kernels become (out, in, height, width) and dense ones (out, in). PyTorch's `num_batches_tracked` is not
    among them.

    Args:
        module: a `resfit.nets.ResNet`.
        naming: whose names: `"torchvision"`, which timm's ResNets share, or `"timm_v2"` for pre-activated ones (by
            default, what fits the network).

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
    return {name: entry.value() for name, entry in named(module, naming)}


def load_state_dict(module: nnx.Module, mapping: Mapping[str, Any], *, naming: str | None = None) -> None:
    """Fills a network with parameters and running statistics from a state dict, in place.

    Names and shapes must agree both ways, except for PyTorch's `num_batches_tracked`, which is ignored; after an error
    the network is as it was. Values are cast to the network's dtypes.

    Args:
        module: a `resfit.nets.ResNet`.
        mapping: arrays by name, laid out as PyTorch does: NumPy arrays, or anything that `numpy.asarray` reads, such as
            the tensors of a PyTorch `state_dict()` on the CPU.
        naming: whose names: `"torchvision"`, which timm's ResNets share, or `"timm_v2"` for pre-activated ones (by
            default, what fits the network).

    Raises:
        WeightsError: listing every missing, unexpected and mis-shaped entry.

    Example:
        >>> from resfit.nets import create_model
        >>> net, other = (create_model("resnet20", num_classes=10, rngs=seed) for seed in (0, 1))
        >>> load_state_dict(net, state_dict(other))
        >>> bool((net.head.dense.kernel[...] == other.head.dense.kernel[...]).all())
        True
    """
    entries = dict(named(module, naming))
    values = {name: np.asarray(value) for name, value in mapping.items() if name.split(".")[-1] != IGNORED}
    problems = [f"missing: {name}, of shape {entries[name].shape}" for name in entries.keys() - values.keys()]
    problems += [f"unexpected: {name}, of shape {values[name].shape}" for name in values.keys() - entries.keys()]
    problems += [
        f"mis-shaped: {name} has shape {values[name].shape}, expected {entries[name].shape}"
        for name in entries.keys() & values.keys()
        if values[name].shape != entries[name].shape
    ]
    if problems:
        listed = "\n  ".join(sorted(problems))
        raise WeightsError(
            f"The state dict does not fit the network; {len(problems)} of its entries differ:\n  {listed}\nExpected "
            "the names and shapes of this very network. Build it with the depths, block, stem, shortcut, num_classes "
            "and in_channels that the weights were trained with."
        )
    for name, entry in entries.items():
        value = entry.layout.inwards(values[name])
        entry.variable.set_value(jnp.asarray(value, entry.variable.get_value().dtype))


class Stored(NamedTuple):
    """A parameter or statistic, and how it lies in the other library."""

    variable: nnx.Variable[Any]
    layout: Layout

    @property
    def shape(self) -> tuple[int, ...]:
        """In the other library."""
        return self.layout.shape(tuple(self.variable.get_value().shape))

    def value(self) -> np.ndarray[Any, np.dtype[Any]]:
        """As the other library has it, a copy."""
        return np.array(self.layout.outwards(np.asarray(self.variable.get_value())), order="C")


def named(module: nnx.Module, naming: str | None) -> Iterator[tuple[str, Stored]]:
    """Every parameter and statistic of a module, under its name in the other library."""
    if naming is None:
        naming = "timm_v2" if isinstance(module, ResNet) and module.norm is not None else "torchvision"
    for path, node in nnx.iter_graph(module):
        if isinstance(node, nnx.Param | nnx.BatchStat):
            rank = len(node.get_value().shape)
            name, layout = other_name(tuple(str(key) for key in path), naming, rank)
            yield name, Stored(node, layout)
