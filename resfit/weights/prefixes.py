"""Names of a state dict that begin with a prefix, such as the name of a backbone inside a larger network."""

from collections import Counter
from collections.abc import Collection, Mapping

from resfit.errors import WeightsError


def check_prefix(names: Collection[str], expected: Mapping[str, Collection[str]], of_head: Collection[str]) -> None:
    """Raise if most names of a network are in a state dict only behind a prefix.

    Args:
        names: of the state dict.
        expected: the names of the network by naming.
        of_head: the names of the last layer, in any naming.

    Raises:
        WeightsError: with the call that removes the prefix.
    """
    prefix, count, own = max((_common(names, wanted) for wanted in expected.values()), key=lambda found: found[1])
    if count <= sum(name in own for name in names) or 2 * count < len(own):
        return
    inside = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    others = sorted({f"{prefix}{name.partition('.')[0]}." for name in inside - set(own) | inside & set(of_head)})
    keep = f"name.startswith({prefix!r})"
    if not set(own) & set(of_head) <= inside:  # a file without the last layer
        keep += f" and not name.startswith({tuple(others)!r})" if others else ""
        keep += "}, head='reset'"
    else:
        keep += "}"
    raise WeightsError(
        f"{count} of the {len(own)} names of the network have the prefix {prefix!r} in the state dict. Expected names "
        "without a prefix. Remove the prefix: resfit.weights.load_state_dict(net, {name.removeprefix("
        f"{prefix!r}): value for name, value in weights.items() if {keep}), where weights is the state dict, or "
        "resfit.weights.read(path)."
    )


def _common(names: Collection[str], wanted: Collection[str]) -> tuple[str, int, Collection[str]]:
    """Return the prefix before most of the wanted names, their number, and the wanted names."""
    wanted = set(wanted)
    starts = Counter(
        name[:cut]
        for name in names
        for cut in (at + 1 for at, letter in enumerate(name) if letter == ".")
        if name[cut:] in wanted
    )
    (prefix, count), *_ = starts.most_common(1) or [("", 0)]
    return prefix, count, wanted
