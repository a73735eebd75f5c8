"""Names of a state dict that begin with a prefix, such as the name of a backbone inside a larger network."""

from collections import Counter
from collections.abc import Collection, Mapping

from resfit.errors import WeightsError


def check_prefix(
    names: Collection[str],
    found: int,
    expected: Mapping[str, Collection[str]],
    of_head: Collection[str],
    *,
    reset: bool,
) -> None:
    """Raise if most names of a network are in a state dict only behind a prefix.

    Args:
        names: of the state dict.
        found: the number of the network's names that the state dict has.
        expected: the names of the network by naming.
        of_head: the names of the last layer, in any naming.
        reset: True if the last layer is not loaded.

    Raises:
        WeightsError: with the call that removes the prefix.
    """
    starts, own = max((_starts(names, set(own)) for own in expected.values()), key=lambda one: max(one[0].values()))
    count = max(starts.values())
    if count <= found or 2 * count < len(own):
        return
    # Of several copies of the network, the trained weights rather than their averages.
    prefix, *copies = sorted((one for one, n in starts.items() if n == count), key=lambda one: ("ema" in one, one))
    inside = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    keep, options = f"name.startswith({prefix!r})", ""
    if reset or not own & set(of_head) <= inside:
        others = sorted({f"{prefix}{name.partition('.')[0]}." for name in inside - own | inside & set(of_head)})
        keep += f" and not name.startswith({tuple(others)!r})" if others else ""
        options = ", head='reset'"
    also = f" The same names follow {', '.join(map(repr, copies))}." if copies else ""
    raise WeightsError(
        f"{count} of the {len(own)} names of the network have the prefix {prefix!r} in the state dict.{also} Expected "
        "names without a prefix. Remove the prefix: resfit.weights.load_state_dict(net, {name.removeprefix("
        f"{prefix!r}): value for name, value in weights.items() if {keep}}}{options}), where weights is the state "
        "dict, or resfit.weights.read(path)."
    )


def _starts(names: Collection[str], own: set[str]) -> tuple[Counter[str], set[str]]:
    """Return how many of the own names follow each prefix, and the own names."""
    starts = Counter({"": 0})
    starts.update(
        name[:cut]
        for name in names
        for cut in (at + 1 for at, letter in enumerate(name) if letter == ".")
        if name[cut:] in own
    )
    return starts, own
