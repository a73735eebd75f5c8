"""Tables of the parts that a `ResNetSpec` can name. Each part registers itself where it is defined."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Protocol, TypeVar

import jax
from flax import nnx

from resfit.errors import SpecError

_Part = TypeVar("_Part")


class Registry(Mapping[str, _Part]):
    """Parts by name. A registered name keeps its meaning, because saved files contain names.

    The same class or function defined again, for example by a notebook cell that runs twice, replaces the old one.

    Args:
        kind: the kind of part, for errors.

    Example:
        >>> parts = Registry("pool")
        >>> parts.register("max", max)
        <built-in function max>
        >>> list(parts)
        ['max']
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._parts: dict[str, _Part] = {}

    def register(self, name: str, part: _Part) -> _Part:
        """Add a part and return it.

        Args:
            name: a Python identifier that is not in use.
            part: the object to register under the name.

        Raises:
            SpecError: if the name is taken or is not an identifier.
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
    """Return True if both are the class or function of one name in one module."""
    places = [(getattr(part, "__module__", None), getattr(part, "__qualname__", "<lambda>")) for part in (old, new)]
    return places[0] == places[1] and "<lambda>" not in places[0][1]


class Norm(Protocol):
    """A norm as a block calls it: x (batch, height, width, channels), and True to evaluate (None: its own mode)."""

    def __call__(self, x: jax.Array, evaluating: bool | None = None, /) -> jax.Array: ...


class MakeNorm(Protocol):
    """A function that makes a norm with the dtypes of a `Layers`."""

    def __call__(self, channels: int, *, zero_scale: bool, layers: Any, rngs: nnx.Rngs) -> Norm: ...


class MakeShortcut(Protocol):
    """A class or function that makes a shortcut for a branch that changes the shape."""

    def __call__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        strides: tuple[int, int],
        dilation: int,
        layers: Any,
        rngs: nnx.Rngs,
    ) -> nnx.Module: ...


class Stem(Protocol):
    """A stem as a network uses it.

    Attributes:
        strides: of the layers that step over pixels, in order.
        image_size: side in pixels of the images that the stem was made for.
    """

    strides: ClassVar[tuple[int, ...]]
    image_size: ClassVar[int]

    def __call__(self, x: jax.Array, *, train: bool | None = None) -> jax.Array: ...


MakeStem = Callable[..., Stem]
"""(in_channels, width, *, layers, rngs, and the arguments that a spec adds) -> a stem."""

MakeBlock = Callable[..., Any]
"""(in_channels, width, *, strides, layers, rngs, and the arguments that a spec adds) -> a `Residual`."""

NORMS: Registry[MakeNorm] = Registry("norm")
SHORTCUTS: Registry[MakeShortcut] = Registry("shortcut")
STEMS: Registry[MakeStem] = Registry("stem")
BLOCKS: Registry[MakeBlock] = Registry("block")
ZOO: Registry[Any] = Registry("network")  # of `ZooRow`s
