"""Conversion between a network and state dicts with the names of other libraries."""

import contextlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal, NamedTuple, get_args

import jax.numpy as jnp
import numpy as np
from flax import nnx

from resfit._utils.jax_switches import suspending
from resfit.errors import WeightsError
from resfit.nets import ResNet
from resfit.weights.keras_folding import folded
from resfit.weights.layouts import AS_IT_IS, Array, AxisLayout
from resfit.weights.names import IGNORED, NAMINGS, PREFIXES, other_name
from resfit.weights.prefixes import check_prefix

Head = Literal["keep", "reset"]
Stem = Literal["keep", "sum", "repeat"]


@suspending
def state_dict(module: nnx.Module, *, naming: str | None = None) -> dict[str, Array]:
    """Return a network's parameters and running statistics with the names and layouts of another library.

    Kernels of convolutions become (out, in, height, width) and kernels of dense layers (out, in). PyTorch's
    `num_batches_tracked` is not included.

    Args:
        module: a `resfit.nets.ResNet`.
        naming: the names to use: `"torchvision"` (also for timm's ResNets), `"timm_v2"` for timm's pre-activation
            ResNets, `"timm_senet"` for timm's legacy SE networks, or `"transformers"` (by default, those of timm's
            network with the parts of this one).

    Returns:
        NumPy arrays by name, of the network's dtypes.

    Raises:
        WeightsError: if `naming` is unknown, or has no name for a part of the network.

    Example:
        >>> from resfit.nets import create_model
        >>> weights = state_dict(create_model("resnet20", num_classes=10))
        >>> weights["conv1.weight"].shape
        (16, 3, 3, 3)
    """
    if naming == "keras":
        raise WeightsError(
            "Received naming='keras', which is only for reading: networks of Keras have biases in their convolutions "
            f"and another epsilon. Expected one of {[name for name in NAMINGS if name != 'keras']}."
        )
    _check_arithmetic(module, naming)
    return {name: entry.value() for name, entry in named(module, naming)}


@suspending
def load_state_dict(
    module: nnx.Module,
    mapping: Mapping[str, Any],
    *,
    naming: str | None = None,
    head: Head = "keep",
    stem: Stem = "keep",
) -> None:
    """Load parameters and running statistics from a state dict into a network, in place.

    Names and shapes must match exactly; only PyTorch's counts of batches are ignored. After an error, the network is
    unchanged. Common prefixes of all names (`module.`, `model.`, `_orig_mod.`) are removed. Values are cast to the
    network's dtypes.

    Args:
        module: a `resfit.nets.ResNet`.
        mapping: arrays by name in the layout of the library: NumPy arrays, or anything that `numpy.asarray` reads, such
            as the tensors of a PyTorch `state_dict()` on the CPU.
        naming: the names in `mapping`: `"torchvision"` (also for timm's ResNets), `"timm_v2"` for timm's pre-activation
            ResNets, `"timm_senet"` for timm's legacy SE networks, `"transformers"` (Hugging Face), or `"keras"` (by
            default, the naming that fits best).
        head: `"keep"` (default) loads the last layer; `"reset"` does not load it, for other classes.
        stem: for another number of input channels, `"sum"` spreads the sum of the first kernel evenly over the
            channels, so that a gray image gives the same result as its copy in every channel; `"repeat"` repeats the
            channels of the kernel, scaled to keep the sum. `"keep"` (default) raises.

    Raises:
        WeightsError: if names or shapes differ; the message lists every missing, unexpected and mis-shaped entry.

    Example:
        >>> from resfit.nets import create_model
        >>> net, other = (create_model("resnet20", num_classes=10, rngs=seed) for seed in (0, 1))
        >>> load_state_dict(net, state_dict(other))
        >>> bool((net.head.dense.kernel[...] == other.head.dense.kernel[...]).all())
        True
    """
    for argument, choice, known in (("head", head, get_args(Head)), ("stem", stem, get_args(Stem))):
        if choice not in known:
            raise WeightsError(f"Received {argument}={choice!r}. Expected one of {list(known)}.")
    values = {name: np.asarray(value) for name, value in without_prefix(mapping).items()}
    naming = naming or fitting(module, values)
    entries = dict(named(module, naming))
    if entries.keys() != values.keys():
        names = [name for name in mapping if name.rpartition(".")[2] not in IGNORED]
        found = len(entries.keys() & values.keys())
        check_prefix(names, found, *_names_of_network(module), reset=head == "reset")
    _check_arithmetic(module, naming)
    if naming == "keras":
        values = folded(values)
    of_head = {name for name, entry in entries.items() if entry.path[0] == "head"}
    if head == "reset":
        entries = {name: entry for name, entry in entries.items() if name not in of_head}
        values = {name: value for name, value in values.items() if name not in of_head}
    first = _first_kernel(entries)
    if stem != "keep" and first in values and values[first].ndim == 4:
        values[first] = _for_channels(values[first], entries[first], stem)
    _check(entries, values, of_head, first)
    for name, entry in entries.items():
        value = entry.layout.inwards(values[name])
        entry.variable.set_value(jnp.asarray(value, entry.variable.get_value().dtype))


def without_prefix(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state dict without counts of batches and without the common prefixes of all names."""
    values = {name: value for name, value in mapping.items() if name.rpartition(".")[2] not in IGNORED}
    while values and (prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in values)), None)):
        values = {name.removeprefix(prefix): value for name, value in values.items()}
    return values


def fitting(module: nnx.Module, names: Collection[str]) -> str:
    """Return the naming that matches the most names; the module's default if none matches."""
    default = _default_naming(module)
    found = {default: 0} | {naming: len(own & set(names)) for naming, own in _names_of_network(module)[0].items()}
    return max(found, key=lambda naming: (found[naming], naming == default))


def _names_of_network(module: nnx.Module) -> tuple[dict[str, set[str]], set[str]]:
    """Return the names of a network by naming, and those of its last layer in all namings."""
    names: dict[str, set[str]] = {}
    of_head = set()
    for naming in NAMINGS:
        with contextlib.suppress(WeightsError):  # the library does not have this network
            entries = dict(named(module, naming))
            names[naming] = set(entries)
            of_head |= {name for name, entry in entries.items() if entry.path[0] == "head"}
    return names, of_head


def number_of_classes(mapping: Mapping[str, Any]) -> int | None:
    """Return the number of classes of a state dict's last layer, or None if the layer is not found."""
    values = without_prefix(mapping)
    biases = (other_name(("head", "dense", "bias"), naming).name for naming in NAMINGS)
    return next((int(np.shape(values[name])[0]) for name in biases if name in values), None)


def first_kernel_channels(module: nnx.Module, mapping: Mapping[str, Any]) -> int | None:
    """Return the number of input channels of a state dict's first kernel, or None if the kernel is not found."""
    values = without_prefix(mapping)
    entries = dict(named(module, fitting(module, values)))
    first = _first_kernel(entries)
    if first not in values or np.ndim(values[first]) != 4:
        return None
    return int(np.shape(values[first])[entries[first].channel_axis])


def _first_kernel(entries: Mapping[str, "Stored"]) -> str:
    """Return the name of the kernel that reads the image, or an empty string if no kernel does."""
    return next((name for name, entry in entries.items() if entry.is_first_kernel), "")


def _check_arithmetic(module: nnx.Module, naming: str | None) -> None:
    """Raise if names and shapes fit, but the library has no network with the same computation."""
    if naming == "transformers" and isinstance(module, ResNet) and module.spec.antialias is not None:
        raise WeightsError(
            f"The network has antialias={module.spec.antialias!r}, but transformers has no anti-aliased ResNet: names "
            "and shapes fit, but the logits would differ. Expected antialias=None. Or use the names of timm, "
            "naming='torchvision'."
        )
    spec = module.spec if isinstance(module, ResNet) else None
    if naming in ("transformers", "keras") and spec and (spec.stem == "caffe" or spec.weight_standardization):
        raise WeightsError(
            f"The network has stem={spec.stem!r} and weight_standardization={spec.weight_standardization}, but "
            f"{naming} has no such ResNet: names and shapes fit, but the logits would differ. Expected the stem "
            "'imagenet' and no weight standardization."
        )
    if naming == "timm_senet" and (not isinstance(module, ResNet) or module.spec.stem != "caffe"):
        raise WeightsError(
            "The weights are of timm's legacy SE networks, whose max pool is Caffe's; the network has the stem "
            f"{module.spec.stem if isinstance(module, ResNet) else type(module).__name__!r}, so the logits would "
            "differ. Expected stem='caffe'. Create 'legacy_seresnet50'."
        )
    if naming == "keras" and (not isinstance(module, ResNet) or module.spec.block != "bottleneck_v1"):
        raise WeightsError(
            f"The weights are of keras.applications, whose blocks have the stride in their first 1x1 convolution; the "
            f"network has {module.spec.block if isinstance(module, ResNet) else type(module).__name__!r} blocks, so "
            "the logits would differ. Expected block='bottleneck_v1'. Create 'resnet50_v1'."
        )


def _for_channels(kernel: Array, entry: "Stored", stem: Stem) -> Array:
    """Adapt the first kernel, in the other library's layout, to the network's number of channels."""
    axis = entry.channel_axis
    given, wanted = kernel.shape[axis], entry.shape[axis]
    if given == wanted:
        return kernel
    exact = kernel.astype("f8")
    if stem == "sum":
        spread: Array = np.repeat(exact.sum(axis, keepdims=True) / wanted, wanted, axis)
        return spread
    repeated: Array = exact.take(np.arange(wanted) % given, axis) * (given / wanted)
    return repeated


def _check(entries: Mapping[str, "Stored"], values: Mapping[str, Array], of_head: set[str], first: str) -> None:
    wrong = {name for name in entries.keys() & values.keys() if values[name].shape != entries[name].shape}
    problems = [f"missing: {name}, of shape {entries[name].shape}" for name in entries.keys() - values.keys()]
    problems += [f"unexpected: {name}, of shape {values[name].shape}" for name in values.keys() - entries.keys()]
    problems += [f"mis-shaped: {name} has shape {values[name].shape}, expected {entries[name].shape}" for name in wrong]
    if not problems:
        return
    remedies = ["Create it with the depths, block, stem, shortcut, num_classes and in_channels of the weights."]
    if of_head & (wrong | (entries.keys() - values.keys())):
        remedies.append("For other classes, pass head='reset'.")
    if first in wrong:
        remedies.append("For other channels, pass stem='sum' or 'repeat'.")
    listed = "\n  ".join(sorted(problems))
    raise WeightsError(
        f"The state dict does not fit the network; {len(problems)} of its entries differ:\n  {listed}\nExpected the "
        f"names and shapes of the network. {' '.join(remedies)}"
    )


class Stored(NamedTuple):
    """A parameter or statistic, with its path in the module and its layout in the other library."""

    path: tuple[str, ...]
    variable: nnx.Variable[Any]
    layout: AxisLayout

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in the other library."""
        return self.layout.shape(tuple(self.variable.get_value().shape))

    @property
    def is_first_kernel(self) -> bool:
        """True for the kernel that reads the image."""
        return self.path in {("stem", name, "kernel") for name in ("conv", "conv1", "conv_of_blocks")}

    @property
    def channel_axis(self) -> int:
        """The axis of the input channels in the other library, for the kernel of a convolution."""
        return 2 if self.layout is AS_IT_IS else 1

    def value(self) -> Array:
        """Return a copy of the value in the other library's layout."""
        return np.array(self.layout.outwards(np.asarray(self.variable.get_value())), order="C")


def named(module: nnx.Module, naming: str | None) -> Iterator[tuple[str, Stored]]:
    """Iterate over the parameters and statistics of a module with their names in the other library."""
    naming = naming or _default_naming(module)
    for path, node in nnx.iter_graph(module):
        if isinstance(node, nnx.Param | nnx.BatchStat):
            place = tuple(str(key) for key in path)
            name, layout = other_name(place, naming, len(node.get_value().shape))
            yield name, Stored(place, node, layout)


def _default_naming(module: nnx.Module) -> str:
    if isinstance(module, ResNet) and module.norm is not None:
        return "timm_v2"
    if isinstance(module, ResNet) and module.spec.stem == "caffe" and isinstance(module.spec.squeeze, float):
        return "timm_senet"
    return "torchvision"
