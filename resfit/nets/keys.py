"""Random keys for the first weights of a network with many layers."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from flax import nnx

from resfit.errors import SpecError
from resfit.nets.first_values import FirstValues, Turn

_Module = TypeVar("_Module", bound=nnx.Module)


class _CountedStream(nnx.RngStream):
    """A stream of keys that counts in Python. It lives while a network is built and is never part of one."""

    def __init__(self, key: jax.Array, *, tag: str) -> None:
        self.base = key
        self.tag = tag
        self.drawn = 0
        self.given = 0  # of those, the keys themselves, to whoever asked: what was drawn with them nobody knows
        self.first_values = FirstValues(key) if FirstValues.possible(key) else None

    def __call__(self) -> jax.Array:
        self.drawn += 1
        self.given += 1
        return jax.random.fold_in(self.base, self.drawn)

    def turn(self) -> Any:
        """The next key, for one of our own initializers: only made where that asks for it."""
        if self.first_values is None:
            return self()
        self.drawn += 1
        return Turn(self.first_values, self.drawn)

    def fork(self, *, split: int | tuple[int, ...] | None = None) -> nnx.RngStream:
        # What a layer keeps, a Dropout for example, must be an ordinary stream with its own state.
        forked: nnx.RngStream = nnx.RngStream(self(), tag=self.tag).fork(split=split)
        return forked


class _Turns(nnx.RngStream):
    """A counted stream as our own layers draw from it."""

    def __init__(self, stream: _CountedStream) -> None:
        self.stream = stream
        self.tag = stream.tag

    def __call__(self) -> Any:
        return self.stream.turn()

    def fork(self, *, split: int | tuple[int, ...] | None = None) -> nnx.RngStream:
        return self.stream.fork(split=split)


class LayerKeys(nnx.Rngs):
    """An `nnx.Rngs` for building a network, from which drawing is cheap: call `finish` when it is built.

    Each draw from `nnx.Rngs` writes a Variable. In abstract evaluation that costs flax time in proportion to the length
    of the program so far: 3.5 minutes for the 1,202 layers of the deepest network, against seconds with this.

    Args:
        rngs: what the user gave. One key is drawn from its `params` stream, so the same seed builds the same network.
    """

    def __init__(self, rngs: nnx.Rngs) -> None:
        if not isinstance(rngs, nnx.Rngs):
            raise SpecError(
                f"rngs is {'the' if isinstance(rngs, type) else 'a'} {getattr(rngs, '__name__', type(rngs).__name__)}. "
                "Expected a flax.nnx.Rngs, which is made of a seed or of a key: rngs=nnx.Rngs(0)."
            )
        self.default = _CountedStream(rngs.params(), tag="params")

    def repeat(self, build: Callable[[], _Module], times: int) -> list[_Module]:
        """What `build` makes with these keys, so many times, where it makes the same but for its first values."""
        stream, first_values = self.default, self.default.first_values
        if first_values is None or times < 2:
            return [build() for _ in range(times)]
        before, given = stream.drawn, stream.given
        first = build()
        if stream.given != given:  # with which it drew values, or made a stream of its own: no other may have the same
            return [first, *(build() for _ in range(1, times))]
        drawn = stream.drawn - before
        stream.drawn += drawn * (times - 1)
        return [first, *first_values.copies(first, (drawn * i for i in range(1, times)))]

    def finish(self, module: nnx.Module) -> None:
        """Puts the first values into the module that was built with these keys."""
        if self.default.first_values is not None:
            self.default.first_values.fill(module)


class _TurnKeys(nnx.Rngs):
    """The keys of a `LayerKeys`, as our own layers draw them."""

    def __init__(self, stream: _CountedStream) -> None:
        self.default = _Turns(stream)


def turns(rngs: nnx.Rngs) -> nnx.Rngs:
    """For a layer whose initializers are our own (`first_values.Initializer`): keys that are made where it asks."""
    return _TurnKeys(rngs.default) if isinstance(rngs, LayerKeys) else rngs
