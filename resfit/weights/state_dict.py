"""State dicts under other libraries' names: from one into a network, and from a network to one."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal, NamedTuple, get_args

import jax.numpy as jnp
import numpy as np
from flax import nnx

from resfit.errors import WeightsError
from resfit.nets import ResNet
from resfit.weights.keras_folding import folded
from resfit.weights.layouts import AS_IT_IS, Array, Layout
from resfit.weights.names import IGNORED, NAMINGS, PREFIXES, other_name

Head = Literal["keep", "reset"]
Stem = Literal["keep", "sum", "repeat"]


def state_dict(module: nnx.Module, *, naming: str | None = None) -> dict[str, Array]:
    """A network's parameters and running statistics as another library names them and lays them out.

    Convolution kernels become (out, in, height, width) and dense ones (out, in). PyTorch's `num_batches_tracked` is not
    among them.

    Args:
        module: a `resfit.nets.ResNet`.
        naming: whose names: `"torchvision"`, which timm's ResNets share, `"timm_v2"` for its pre-activated ones, or
            `"transformers"` (by default, the first of these that fits the network).

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
    if naming == "keras":
        raise WeightsError(
            "Received naming='keras', whose networks have biases in their convolutions and another epsilon: they are "
            f"read, not written. Expected one of {[name for name in NAMINGS if name != 'keras']}."
        )
    _check_arithmetic(module, naming)
    return {name: entry.value() for name, entry in named(module, naming)}


def load_state_dict(
    module: nnx.Module,
    mapping: Mapping[str, Any],
    *,
    naming: str | None = None,
    head: Head = "keep",
    stem: Stem = "keep",
) -> None:
    """Fills a network with parameters and running statistics from a state dict, in place.

    Names and shapes must agree both ways, except for PyTorch's counts of batches, which are ignored; after an error
    the network is as it was. What stands before every name (`module.`, `model.`, `_orig_mod.`) is taken off. Values
    are cast to the network's dtypes.

    Args:
        module: a `resfit.nets.ResNet`.
        mapping: arrays by name, laid out as the library does: NumPy arrays, or anything that `numpy.asarray` reads,
            such as the tensors of a PyTorch `state_dict()` on the CPU.
        naming: whose names: `"torchvision"`, which timm's ResNets share, `"timm_v2"` for its pre-activated ones,
            `"transformers"` (Hugging Face), or `"keras"` (by default, what fits the names).
        head: `"keep"` (default) fills the last layer too; `"reset"` leaves it as it is, for other classes.
        stem: where the network takes another number of channels, `"sum"` spreads the sum of the first kernel over
            channels evenly, so that a grey image counts as it did with its channel copied; `"repeat"` repeats its
            channels, scaled so that the sum stays. `"keep"` (default) refuses.

    Raises:
        WeightsError: listing every missing, unexpected and mis-shaped entry.

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
    """A state dict without counts of batches, and without what stands before every one of its names."""
    values = {name: value for name, value in mapping.items() if name.rpartition(".")[2] not in IGNORED}
    while values and (prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in values)), None)):
        values = {name.removeprefix(prefix): value for name, value in values.items()}
    return values


def fitting(module: nnx.Module, names: Collection[str]) -> str:
    """The library whose names most of these are; the module's own default, if there is none."""
    default = _default_naming(module)
    found = {default: 0}
    for naming in NAMINGS:
        try:
            found[naming] = len({name for name, _ in named(module, naming)} & set(names))
        except WeightsError:  # the library has no such network
            continue
    return max(found, key=lambda naming: (found[naming], naming == default))


def number_of_classes(mapping: Mapping[str, Any]) -> int | None:
    """How many classes a state dict's last layer tells apart; None if it has none that is known."""
    values = without_prefix(mapping)
    biases = (other_name(("head", "dense", "bias"), naming).name for naming in NAMINGS)
    return next((int(np.shape(values[name])[0]) for name in biases if name in values), None)


def first_kernel_channels(module: nnx.Module, mapping: Mapping[str, Any]) -> int | None:
    """How many channels the images have that a state dict is for; None if it has no first kernel."""
    values = without_prefix(mapping)
    entries = dict(named(module, fitting(module, values)))
    first = _first_kernel(entries)
    if first not in values or np.ndim(values[first]) != 4:
        return None
    return int(np.shape(values[first])[entries[first].channel_axis])


def _first_kernel(entries: Mapping[str, "Stored"]) -> str:
    """The name of what meets the image; empty if there is none."""
    return next((name for name, entry in entries.items() if entry.is_first_kernel), "")


def _check_arithmetic(module: nnx.Module, naming: str | None) -> None:
    """Raise if the network computes what no network of the library does, although its names and shapes fit."""
    if naming == "transformers" and isinstance(module, ResNet) and module.spec.antialias is not None:
        raise WeightsError(
            f"The network has antialias={module.spec.antialias!r}, and transformers has no anti-aliased ResNet: names "
            "and shapes fit, but the logits would differ. Expected antialias=None, or the names of timm "
            "(naming='torchvision')."
        )
    if naming == "keras" and (not isinstance(module, ResNet) or module.spec.block != "bottleneck_v1"):
        raise WeightsError(
            f"These are weights of keras.applications, whose blocks step in their first 1x1 convolution; the network "
            f"has {module.spec.block if isinstance(module, ResNet) else type(module).__name__!r} blocks, which would "
            "take them and compute something else. Expected block='bottleneck_v1'. Build 'resnet50_v1'."
        )


def _for_channels(kernel: Array, entry: "Stored", stem: Stem) -> Array:
    """The first kernel, as the other library has it, for the network's number of channels."""
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
    remedies = [
        "Build it with the depths, block, stem, shortcut, num_classes and in_channels that the weights were "
        "trained with."
    ]
    if of_head & (wrong | (entries.keys() - values.keys())):
        remedies.append("For other classes than theirs: head='reset'.")
    if first in wrong:
        remedies.append("For other channels than theirs: stem='sum' or 'repeat'.")
    listed = "\n  ".join(sorted(problems))
    raise WeightsError(
        f"The state dict does not fit the network; {len(problems)} of its entries differ:\n  {listed}\nExpected "
        f"the names and shapes of this very network. {' '.join(remedies)}"
    )


class Stored(NamedTuple):
    """A parameter or statistic, where it is in the module, and how it lies in the other library."""

    path: tuple[str, ...]
    variable: nnx.Variable[Any]
    layout: Layout

    @property
    def shape(self) -> tuple[int, ...]:
        """In the other library."""
        return self.layout.shape(tuple(self.variable.get_value().shape))

    @property
    def is_first_kernel(self) -> bool:
        """Whether it is what meets the image."""
        return self.path in {("stem", name, "kernel") for name in ("conv", "conv1", "conv_of_blocks")}

    @property
    def channel_axis(self) -> int:
        """Of a convolution's kernel in the other library: where the channels of its input are."""
        return 2 if self.layout is AS_IT_IS else 1

    def value(self) -> Array:
        """As the other library has it, a copy."""
        return np.array(self.layout.outwards(np.asarray(self.variable.get_value())), order="C")


def named(module: nnx.Module, naming: str | None) -> Iterator[tuple[str, Stored]]:
    """Every parameter and statistic of a module, under its name in the other library."""
    naming = naming or _default_naming(module)
    for path, node in nnx.iter_graph(module):
        if isinstance(node, nnx.Param | nnx.BatchStat):
            place = tuple(str(key) for key in path)
            name, layout = other_name(place, naming, len(node.get_value().shape))
            yield name, Stored(place, node, layout)


def _default_naming(module: nnx.Module) -> str:
    return "timm_v2" if isinstance(module, ResNet) and module.norm is not None else "torchvision"
