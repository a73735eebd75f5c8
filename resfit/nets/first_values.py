"""The first values of a network: one program, of one shape, draws those of every kernel of every network.

`jax.random` compiles a program for each shape that it draws, which for a ResNet-50 is most of the time of building it.
But its bits are a function of the key and of an element's position alone, so the same values come out of rows of fixed
length, each of which knows its key, its first position and its distribution.
"""

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.extend import random as extended_random
from jax.typing import DTypeLike

from resfit.backends import compilation_cache

ROW = 1024  # values in a row
ROWS = 1024  # rows in a call of the program; enough to keep it off the main thread, where a network is being built

Shape = tuple[int, ...]
_Module = TypeVar("_Module", bound=nnx.Module)


@dataclass(frozen=True)
class Distribution:
    """What a value is drawn from: `scale` times the standard normal, or the uniform of [low, high).

    Attributes:
        scale: factor after drawing, rounded to float32 as jax rounds it.
        low: of the uniform.
        high: of the uniform.
        normal: whether it is the normal.
    """

    scale: Any
    low: Any
    high: Any
    normal: bool


# The standard normal is made of this uniform, as in jax.random.normal.
_ABOVE_MINUS_ONE = np.nextafter(np.float32(-1), np.float32(0))


def normal(variance: float) -> Distribution:
    """The normal of this variance around zero."""
    return Distribution(np.sqrt(np.float32(variance)), _ABOVE_MINUS_ONE, np.float32(1), normal=True)


def uniform(variance: float) -> Distribution:
    """The uniform of this variance around zero."""
    return Distribution(np.sqrt(np.float32(3) * np.float32(variance)), np.float32(-1), np.float32(1), normal=False)


def between(low: float, high: float) -> Distribution:
    """The uniform of [low, high)."""
    return Distribution(np.float32(1), np.float32(low), np.float32(high), normal=False)


@dataclass(frozen=True)
class Initializer:
    """An initializer as flax calls it, that can also say what it draws from.

    Attributes:
        plain: (key, shape, dtype) -> values, one program for each shape.
        distribution: shape -> what `plain` draws from.
    """

    plain: Callable[[jax.Array, Shape, Any], jax.Array]
    distribution: Callable[[Shape], Distribution]

    def __call__(self, key: Any, shape: Shape, dtype: DTypeLike, *_: Any, **__: Any) -> Any:
        """The values now, or where `key` is a `Turn`, a `Later` in their place."""
        if not isinstance(key, Turn):
            return self.plain(key, shape, dtype)
        if dtype != jnp.float32:
            return self.plain(key.key(), shape, dtype)
        return key.first_values.later(key.number, shape, self.distribution(shape))


@dataclass(frozen=True)
class Turn:
    """A key that is only made where it is needed: the base key of a network, with the number of the draw folded in."""

    first_values: "FirstValues"
    number: int

    def key(self) -> jax.Array:
        """The key itself."""
        return jax.random.fold_in(self.first_values.base, self.number)


@dataclass(frozen=True)
class Later:
    """What stands in a Variable until its first values are there."""

    shape: Shape
    dtype: Any
    number: int  # of its key
    distribution: Distribution
    row: int  # the first of those that hold its values


class FirstValues:
    """Draws the first values of a network while it is being built, and fills them in at the end.

    Args:
        base: the key from which all others are folded.
    """

    def __init__(self, base: jax.Array) -> None:
        self.base = base
        self._asked: list[tuple[int, int, Distribution]] = []  # (number, rows, distribution), not yet drawn
        self._waiting = self._rows = 0  # rows not yet drawn; rows altogether
        self._drawn: list[jax.Array] = []

    @staticmethod
    def possible(base: jax.Array) -> bool:
        """Whether rows give what `jax.random` would: JAX's default generator, and nothing that is only traced."""
        config: Any = jax.config  # its values are attributes that no type checker knows
        return (
            not isinstance(base, jax.core.Tracer)
            and str(jax.random.key_impl(base)) == "threefry2x32"
            and getattr(config, "jax_threefry_partitionable", True)
        )

    def later(self, number: int, shape: Shape, distribution: Distribution) -> Later:
        """Asks for float32 values of a shape, drawn with the key of that number."""
        later = Later(shape, jnp.dtype(jnp.float32), number, distribution, self._rows)
        rows = -(-math.prod(shape) // ROW)
        self._asked.append((number, rows, distribution))
        self._rows += rows
        self._waiting += rows
        if self._waiting >= ROWS:
            self._draw()
        return later

    def _draw(self) -> None:
        """Hands the rows that wait to the device, the last call filled up with some that nobody asked for."""
        numbers, rows, distributions = zip(*self._asked, strict=True)
        calls = -(-self._waiting // ROWS)

        def column(values: Any, dtype: Any) -> np.ndarray[Any, Any]:
            return np.resize(np.repeat(np.asarray(values, dtype), rows), (calls, ROWS))

        columns = (
            column(numbers, np.uint32),
            np.resize(np.concatenate([np.arange(n, dtype=np.uint32) for n in rows]) * np.uint32(ROW), (calls, ROWS)),
            column([d.normal for d in distributions], bool),
            column([d.low for d in distributions], np.float32),
            column([d.high for d in distributions], np.float32),
            column([d.scale for d in distributions], np.float32),
        )
        self._drawn += [_program()(self.base, *(column[i] for column in columns)) for i in range(calls)]
        self._rows += calls * ROWS - self._waiting
        self._asked, self._waiting = [], 0

    def copies(self, module: _Module, shifts: Iterable[int]) -> list[_Module]:
        """Copies of a module that waits for its first values; those of each come from keys of so much higher numbers.

        Building a block of layers anew takes flax ten times as long.
        """
        graphdef, state = nnx.split(module)

        def anew(leaf: Any, shift: int) -> Any:
            if isinstance(leaf, Later):
                return self.later(leaf.number + shift, leaf.shape, leaf.distribution)
            return np.array(leaf)  # a constant

        return [nnx.merge(graphdef, jax.tree.map(functools.partial(anew, shift=shift), state)) for shift in shifts]

    def fill(self, module: nnx.Module) -> None:
        """Puts the values where `Later`s hold their places."""
        if self._waiting:
            self._draw()
        variables = [variable for _, variable in nnx.to_flat_state(nnx.state(module))]
        waiting = [variable for variable in variables if isinstance(variable.get_raw_value(), Later | np.ndarray)]
        blocks = [np.asarray(block).reshape(-1) for block in self._drawn]
        held = [variable.get_raw_value() for variable in waiting]
        values = [_cut(blocks, value) if isinstance(value, Later) else value for value in held]
        for variable, value in zip(waiting, jax.device_put(values), strict=True):
            variable.set_raw_value(value)


def _cut(blocks: list[np.ndarray[Any, Any]], later: Later) -> np.ndarray[Any, Any]:
    """The values of one Variable, out of all."""
    size = ROWS * ROW
    begin = later.row * ROW
    end = begin + math.prod(later.shape)
    parts = [
        blocks[i][max(begin - i * size, 0) : min(end - i * size, size)] for i in range(begin // size, -(-end // size))
    ]
    return (parts[0] if len(parts) == 1 else np.concatenate(parts)).reshape(later.shape)


@functools.cache
def _program() -> Callable[..., jax.Array]:
    """(base key, columns of rows...) -> (rows, values)."""
    compilation_cache.use()
    return jax.jit(jax.vmap(_row, in_axes=(None, 0, 0, 0, 0, 0, 0)))


def _row(
    base: jax.Array,
    number: jax.Array,
    position: jax.Array,
    normal: jax.Array,
    low: jax.Array,
    high: jax.Array,
    scale: jax.Array,
) -> jax.Array:
    """(ROW,) values of one array, from a position of it on."""
    key = jax.random.key_data(jax.random.fold_in(base, number))
    shifted = jax.random.wrap_key_data(jnp.append(key, position), impl=_shifted())
    values = jax.random.uniform(shifted, (ROW,), jnp.float32, low, high)
    # The constant in front of the inverse error function is that of jax.random.normal.
    return jnp.where(normal, np.float32(np.sqrt(2)) * lax.erf_inv(values), values) * scale


@functools.cache
def _shifted() -> Any:
    """JAX's default generator, with keys that also hold the position of the first element."""

    def bits(key: jax.Array, width: int, shape: Shape) -> jax.Array:
        if width != 32:
            raise NotImplementedError(f"Only 32 bits are drawn here, not {width}.")
        positions = key[2] + lax.iota(np.uint32, math.prod(shape))
        high, low = _threefry(key[0], key[1], jnp.zeros_like(positions), positions)
        return (high ^ low).reshape(shape)

    def unused(*_: Any) -> Any:
        raise NotImplementedError("Keys with a position are only drawn from.")

    return extended_random.define_prng_impl(
        key_shape=(3,), seed=unused, split=unused, random_bits=bits, fold_in=unused, name="shifted_threefry", tag="s"
    )


def _threefry(key1: jax.Array, key2: jax.Array, high: jax.Array, low: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Threefry-2x32 in 20 rounds (Salmon et al. 2011, doi:10.1145/2063384.2063405).

    JAX's own rolls the rounds into a loop on a CPU, which takes twice as long to compile and to run.
    """
    keys = (key1, key2, key1 ^ key2 ^ np.uint32(0x1BD11BDA))
    a, b = high + keys[0], low + keys[1]
    for group in range(5):
        for turn in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            a = a + b
            b = a ^ ((b << np.uint32(turn)) | (b >> np.uint32(32 - turn)))
        a, b = a + keys[(group + 1) % 3], b + keys[(group + 2) % 3] + np.uint32(group + 1)
    return a, b
