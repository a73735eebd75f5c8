"""Parts of a network by name: what a `ResNetSpec` may ask for, and how to add to it."""

from collections.abc import Iterator, Mapping
from typing import TypeVar

from resfit.errors import SpecError

_Part = TypeVar("_Part")


class Registry(Mapping[str, _Part]):
    """Names and what they stand for. Nothing is replaced or taken out: a name in a saved file keeps its meaning.

    Only what is defined again, such as a class in a notebook whose cell runs twice, takes the place of what it was.

    Args:
        kind: what it holds, for errors.
        parts: to begin with.

    Example:
        >>> parts = Registry("pool", {"max": max})
        >>> parts.register("min", min)
        <built-in function min>
        >>> list(parts)
        ['max', 'min']
    """

    def __init__(self, kind: str, parts: Mapping[str, _Part]) -> None:
        self._kind = kind
        self._parts = dict(parts)

    def register(self, name: str, part: _Part) -> _Part:
        """Adds a part, and returns it.

        Raises:
            SpecError: if the name is taken, or no plain word.
        """
        if not isinstance(name, str) or not name.isidentifier():
            raise SpecError(f"Received {name!r} as the name of a {self._kind}. Expected letters, digits and _.")
        if name in self._parts and self._parts[name] != part and not _defined_again(self._parts[name], part):
            raise SpecError(
                f"The {self._kind} {name!r} is registered already, as {self._parts[name]!r}. Expected a new name; "
                f"those in use are {list(self._parts)}."
            )
        self._parts[name] = part
        return part

    def __getitem__(self, name: str) -> _Part:
        return self._parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


def _defined_again(old: object, new: object) -> bool:
    """Whether both are the class or function of one name of one module."""
    places = [(getattr(part, "__module__", None), getattr(part, "__qualname__", "<lambda>")) for part in (old, new)]
    return places[0] == places[1] and "<lambda>" not in places[0][1]
