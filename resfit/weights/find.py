"""The place of a network in a state dict: the naming, the prefix of its names, and its last layer."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from resfit.errors import WeightsError
from resfit.nets import ResNet
from resfit.weights import arithmetic
from resfit.weights import names as library
from resfit.weights.layouts import AS_IT_IS, Array, AxisLayout
from resfit.weights.public_names import NAMINGS, other_name

_HEAD = ("head", "dense", "kernel")


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

    @property
    def is_of_head(self) -> bool:
        """True for the arrays of the last layer."""
        return self.path[0] == "head"

    def value(self) -> Array:
        """Return a copy of the value in the other library's layout."""
        return np.array(self.layout.outwards(np.asarray(self.variable.get_value())), order="C")


def named(module: nnx.Module, naming: str | None) -> Iterator[tuple[str, Stored]]:
    """Iterate over the parameters and statistics of a module with their names in the other library."""
    yield from _named(_parts(module), naming or default_naming(module))


def _parts(module: nnx.Module) -> list[tuple[tuple[str, ...], nnx.Variable[Any]]]:
    """Return the parameters and statistics of a module by path."""
    graph = nnx.iter_graph(module)
    return [(tuple(map(str, path)), node) for path, node in graph if isinstance(node, nnx.Param | nnx.BatchStat)]


def _named(parts: Iterable[tuple[tuple[str, ...], nnx.Variable[Any]]], naming: str) -> Iterator[tuple[str, Stored]]:
    for path, node in parts:
        name, layout = other_name(path, naming, len(node.get_value().shape))
        yield name, Stored(path, node, layout)


def default_naming(module: nnx.Module) -> str:
    """Return the naming of timm's network with the parts of this one."""
    if isinstance(module, ResNet) and module.norm is not None:
        return "timm_v2"
    if isinstance(module, ResNet) and module.spec.stem == "caffe" and isinstance(module.spec.squeeze, float):
        return "timm_senet"
    return "torchvision"


class Found(NamedTuple):
    """The place of a network in a state dict.

    Attributes:
        naming: a key of `NAMINGS`.
        prefix: the text before all names of the network except, possibly, those of the last layer.
        entries: the arrays of the network by their full names in the state dict.
        matched: how many of these names the state dict has.
        complete: True if it has all except those of the last layer.
    """

    naming: str
    prefix: str
    entries: Mapping[str, Stored]
    matched: int
    complete: bool

    def is_of_head(self, name: str) -> bool:
        """Return True for a name of the last layer, or of a layer in its place."""
        if name in self.entries:
            return self.entries[name].is_of_head
        heads = tuple(f"{self.prefix}{head}{NAMINGS[self.naming].separator}" for head in heads_of(self.naming))
        return name.startswith(heads)


def find(module: nnx.Module, values: Mapping[str, Array], naming: str | None, prefix: str | None, call: str) -> Found:
    """Return the place of a network in a state dict: that with the most names, without a prefix if most are missing.

    Args:
        module: the network.
        values: the arrays by name.
        naming: the naming, or None for the one that fits best.
        prefix: the prefix, or None for the one that fits best.
        call: the call of the user for errors, without the closing parenthesis.

    Raises:
        WeightsError: if `naming` is unknown or has no name for a part of the network, or if the state dict contains
            several networks of this kind with different values.
    """
    spec = module.spec if isinstance(module, ResNet) else None
    places: list[Found] = sorted(
        _places(module, values, naming, prefix),
        key=lambda place: (place.matched, spec is None or arithmetic.fits(place.naming, spec)),
        reverse=True,
    )
    whole: dict[str, Found] = {place.prefix: place for place in reversed(places) if place.complete}
    if len(whole) > 1:
        first, *others = sorted(whole.values(), key=lambda place: (len(place.prefix), place.prefix))
        if any(not _equal(first, other, values) for other in others):
            raise WeightsError(
                f"The state dict contains {len(whole)} networks, with the prefixes {sorted(whole)}. Expected one. "
                f"Choose one: {call}, prefix={_trained(whole)!r})."
            )
        return whole[first.prefix]
    best, plain = places[0], next(place for place in places if not place.prefix or prefix is not None)
    return best if 2 * best.matched >= len(best.entries) else plain


def _equal(one: Found, other: Found, values: Mapping[str, Array]) -> bool:
    """Return True if two places hold the same values."""
    paths = {entry.path: name for name, entry in other.entries.items() if name in values}
    pairs = ((name, paths.get(entry.path, "")) for name, entry in one.entries.items() if name in values)
    return all(theirs in ("", name) or np.array_equal(values[name], values[theirs]) for name, theirs in pairs)


def _trained(prefixes: Collection[str]) -> str:
    """Return the prefix of the trained network rather than of an average of it."""
    copies = re.compile("ema|momentum|teacher|target|_k\\b|swa|average")
    return min(prefixes, key=lambda prefix: (copies.search(prefix) is not None, prefix))


def _places(module: nnx.Module, values: Mapping[str, Array], naming: str | None, prefix: str | None) -> Iterator[Found]:
    """Iterate over the best places of the namings; the default naming comes first.

    Raises:
        WeightsError: if no naming has a name for every part of the network.
    """
    default, parts = default_naming(module), _parts(module)
    kernel = next((path for path, _ in parts if path[0].startswith("stage") and path[-1] == "kernel"), ())
    error: WeightsError | None = None
    known = False
    for key in [naming] if naming else [default, *(key for key in NAMINGS if key != default)]:
        if key not in (naming, default) and not _has(kernel, key, values):
            continue
        try:
            entries = dict(_named(parts, key))
        except WeightsError as unknown:  # the library has no such network
            error = error or unknown
            continue
        known = True
        body = {name for name, entry in entries.items() if not entry.is_of_head}
        starts = _starts(values, body) if prefix is None else {prefix: 0}
        most = max(starts.values())
        for start, count in starts.items():
            if count in (most, len(body)) or not start:
                yield _place(key, start, entries, values)
    if error is not None and not known:
        raise error


def _has(path: tuple[str, ...], naming: str, names: Collection[str]) -> bool:
    """Return True if one of the names ends in that of an array in a library."""
    own = library.entry(path, NAMINGS[naming], 4) if path else None
    return own is not None and any(name.endswith(own.name) for name in names)


def _starts(names: Collection[str], own: set[str]) -> Counter[str]:
    """Return how many of the own names follow each prefix."""
    starts = Counter({"": 0})
    for name in sorted(names):
        starts[""] += name in own
        for at, letter in enumerate(name):
            if letter in "./" and name[at + 1 :] in own:
                starts[name[: at + 1]] += 1
    return starts


def _place(naming: str, prefix: str, entries: Mapping[str, Stored], values: Mapping[str, Array]) -> Found:
    body = {prefix + name: entry for name, entry in entries.items() if not entry.is_of_head}
    head = _head(naming, prefix, {name: entry for name, entry in entries.items() if entry.is_of_head}, values)
    own = body | head
    whole = all(name in values for name in body)
    return Found(naming, prefix, own, sum(name in values for name in own), whole)


def _head(naming: str, prefix: str, entries: Mapping[str, Stored], values: Mapping[str, Array]) -> dict[str, Stored]:
    """Return the arrays of the last layer by their names in a state dict: inside the prefix, or beside the network.

    A layer beside the network counts only if no other array is beside it, because the features could go through
    another part before the layer.
    """
    usual, *_ = heads = heads_of(naming)
    beside = {name for name in values if not name.startswith(prefix)}
    for start in (prefix, *_shorter(prefix)):
        for head in heads:
            own = {start + head + name.removeprefix(usual): entry for name, entry in entries.items()}
            if own.keys() <= values.keys() and (start == prefix or own.keys() == beside):
                return own
    return {prefix + name: entry for name, entry in entries.items()}


def _shorter(prefix: str) -> Iterator[str]:
    """Iterate over the prefixes of the modules around a module."""
    yield from (prefix[: at + 1] for at in range(len(prefix) - 2, -1, -1) if prefix[at] in "./")
    yield ""


def heads_of(naming: str) -> tuple[str, ...]:
    """Return the names of the last layer, the usual one first."""
    names = NAMINGS[naming]
    usual = other_name(_HEAD, naming, 2).name
    return usual.rpartition(names.separator)[0], *names.heads


def number_of_classes(mapping: Mapping[str, Any]) -> int | None:
    """Return the number of classes of a state dict's last layer, or None if the layer is not found."""
    for naming in NAMINGS:
        bias = other_name(("head", "dense", "bias"), naming).name
        first, *others = heads_of(naming)
        for head in (first, *others):
            own = head + bias.removeprefix(first)
            for name, value in mapping.items():
                if name == own or name.endswith(("." + own, "/" + own)):
                    return int(np.shape(value)[0]) if np.ndim(value) == 1 else None
    return None
