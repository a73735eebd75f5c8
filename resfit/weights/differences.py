"""The error for a state dict that does not fit a network: at most ten lines, with the call that helps."""

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from flax import nnx

from resfit.errors import WeightsError
from resfit.nets import ZOO, ResNet
from resfit.weights.arithmetic import difference
from resfit.weights.find import Found
from resfit.weights.layouts import Array
from resfit.weights.public_names import NAMINGS, other_name

_MOST_LINES = 6  # of single differences


def matches(name: str, prefix: str, patterns: Sequence[str]) -> bool:
    """Return True if a pattern matches a name, or a part around it, with or without the prefix."""
    ends = [at for at, letter in enumerate(name) if letter in "./"] + [len(name)]
    starts = {0, len(prefix)} if name.startswith(prefix) else {0}
    return any(
        fnmatchcase(name[start:end], pattern) for start in starts for end in ends if end > start for pattern in patterns
    )


def without_ignored(found: Found, values: Mapping[str, Array], patterns: Sequence[str]) -> dict[str, Array]:
    """Return the arrays that no pattern matches.

    Raises:
        WeightsError: if a pattern matches an array of the network or of one of its blocks, or nothing.
    """
    ignored = {name for name in values if matches(name, found.prefix, patterns)}
    parts = own_parts(found)
    if wrong := sorted(name for name in ignored if not found.is_of_head(name) and name.startswith(parts)):
        raise WeightsError(
            f"Received ignore={tuple(patterns)}, which matches {wrong[:3]}, inside the stem or the blocks of the "
            "network. Expected patterns of other parts: without these arrays, the logits would differ. Create a "
            "network that has them."
        )
    unused = [pattern for pattern in patterns if not any(matches(name, found.prefix, [pattern]) for name in values)]
    if unused:
        raise WeightsError(
            f"Received ignore={tuple(patterns)}, but {unused} match no name of the state dict. Expected shell "
            f"patterns of names such as {sorted(values)[:3]}. Leave them out."
        )
    return {name: value for name, value in values.items() if name not in ignored}


def own_parts(found: Found) -> tuple[str, ...]:
    """Return the beginnings of the names inside the stem, the stages and the last norm of the network.

    The stages after the last one count too: a deeper network is not the network with other parts.
    """
    layers = [name for name, entry in found.entries.items() if entry.path[0] in ("stem", "norm")]
    separator = NAMINGS[found.naming].separator
    parts = [name[: name.rfind(separator) + 1] for name in layers]
    stages = {entry.path[0] for entry in found.entries.values() if entry.path[0].startswith("stage")}
    for stage in range(1, len(stages) + 3):
        blocks = [_kernel(found, stage, block) for block in (0, 1)]
        parts.append(os.path.commonprefix(blocks))  # noqa: RUF071 - names of blocks differ in a number, not in a part
    return tuple(parts)


def _kernel(found: Found, stage: int, block: int, layer: int = 1) -> str:
    """Return the full name of a kernel in a block."""
    path = (f"stage{stage}", "blocks", str(block), "branch", f"conv{layer}", "kernel")
    return found.prefix + other_name(path, found.naming, 4).name


def check(
    module: nnx.Module,
    found: Found,
    values: Mapping[str, Array],
    call: str,
    *,
    reset: bool,
    names: Collection[str],
) -> None:
    """Raise unless the names and shapes of a state dict are those of the network.

    Args:
        module: the network.
        found: the place of the network in the state dict.
        values: the arrays with the prefix, and those of the last layer.
        call: the call of the user, without the closing parenthesis.
        reset: True if the last layer is not loaded.
        names: all names in the state dict.

    Raises:
        WeightsError: if they differ, with the call that loads the rest if there is one.
    """
    entries = {name: entry for name, entry in found.entries.items() if not (reset and entry.is_of_head)}
    missing = sorted(entries.keys() - values.keys())
    unexpected = sorted(values.keys() - entries.keys())
    wrong = sorted(name for name in entries.keys() & values.keys() if values[name].shape != entries[name].shape)
    lines = [f"mis-shaped: {name} has shape {values[name].shape}, expected {entries[name].shape}" for name in wrong]
    groups = [
        lines,
        [f"missing: {name}, of shape {entries[name].shape}" for name in missing],
        [f"unexpected: {name}, of shape {values[name].shape}" for name in unexpected],
    ]
    count = sum(map(len, groups))
    if not count:
        return
    if other := difference(names):
        raise WeightsError(
            f"The state dict does not fit the network; {count} of its entries differ. {other} Expected weights of "
            "another source. The zoo lists the published weights that fit: docs/zoo.md."
        )
    where = f" with the prefix {found.prefix!r}" if found.prefix else " without a prefix"
    raise WeightsError(
        f"The state dict does not fit the network; {count} of its entries differ:\n{_listed(groups, count)}\n"
        f"The names are read as those of {found.naming}{where}. Expected the names and shapes of the network. "
        + (_remedy(found, missing, wrong, unexpected, values, call) or _network(module, found, values))
    )


def _listed(groups: Iterable[Sequence[str]], count: int) -> str:
    """Return the first differences of each kind, and how many more there are."""
    waiting = [list(group) for group in groups]
    shown: list[str] = []
    while len(shown) < min(count, _MOST_LINES):
        for group in waiting:
            if group and len(shown) < _MOST_LINES:
                shown.append(group.pop(0))
    kinds = ("mis-shaped", "missing", "unexpected")
    rest = [f"{len(group)} {kind}" for kind, group in zip(kinds, waiting, strict=True) if group]
    lines = sorted(shown) + ([f"... and {count - len(shown)} more: {', '.join(rest)}"] if rest else [])
    return "\n".join(f"  {line}" for line in lines)


def _remedy(
    found: Found,
    missing: Collection[str],
    wrong: Collection[str],
    unexpected: Collection[str],
    values: Mapping[str, Array],
    call: str,
) -> str:
    """Return the call that loads the rest of the network, or an empty text if its own arrays differ."""
    parts = own_parts(found)
    first = [name for name in wrong if _other_channels(found, name, values)]
    of_head = {name for name in (*missing, *wrong, *unexpected) if found.is_of_head(name)}
    foreign = [name for name in unexpected if name not in of_head and not name.startswith(parts)]
    if of_head | set(first) | set(foreign) != {*missing, *wrong, *unexpected}:
        return ""
    why, options = [], []
    if of_head or foreign:
        options.append("head='reset'")
    if of_head:
        why.append("For other classes, create the network with their num_classes, or pass head='reset'.")
    if first:
        options.append("stem='sum'")
        why.append("For other channels, pass stem='sum' or 'repeat'.")
    if foreign:
        inside = {name.removeprefix(found.prefix).partition("/")[0].partition(".")[0] for name in foreign}
        options.append(f"ignore={tuple(sorted(inside))}")
        why.append("To leave out other parts, pass ignore=, and head='reset' if the last layer follows them.")
    return f"{' '.join(why)} Call {call}, {', '.join(options)})."


def _other_channels(found: Found, name: str, values: Mapping[str, Array]) -> bool:
    """Return True for a first kernel of another number of image channels."""
    entry = found.entries[name]
    if not entry.is_first_kernel or values[name].ndim != 4:
        return False
    axis = entry.channel_axis
    ours, theirs = entry.shape, values[name].shape
    return bool(ours[:axis] + ours[axis + 1 :] == theirs[:axis] + theirs[axis + 1 :])


def _network(module: nnx.Module, found: Found, values: Mapping[str, Array]) -> str:
    """Return a sentence about the network of the state dict."""
    if not isinstance(module, ResNet):
        return "Load the weights into the network of the state dict."
    text = "Create it with the depths, block, stem, shortcut, num_classes and in_channels of the weights."
    depths = _depths(found, values)
    if depths and depths != module.spec.depths:
        bottleneck = _kernel(found, 1, 0, layer=3) in values
        same = [
            name
            for name, row in ZOO.items()
            if row.spec.depths == depths and ("bottleneck" in row.spec.block) == bottleneck
        ]
        text += f" The state dict has depths={depths}, the network depths={module.spec.depths}."
        text += f" Networks of such depths: {', '.join(same[:6])}." if same else ""
    return text


def _depths(found: Found, values: Mapping[str, Array]) -> tuple[int, ...]:
    """Return the number of blocks in each stage of a state dict."""
    depths: list[int] = []
    while _kernel(found, stage := len(depths) + 1, 0) in values:
        blocks = range(1, len(values) + 1)
        depths.append(next(block for block in blocks if _kernel(found, stage, block) not in values))
    return tuple(depths)
