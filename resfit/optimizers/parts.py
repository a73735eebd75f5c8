"""Learning rates by part of the network."""

import contextlib
import difflib
import math
import types
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from fnmatch import fnmatchcase
from typing import Any

import jax
import optax

from resfit.errors import CompileError


def by_part(parts: Mapping[str, float], optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """An optimizer whose learning rate is multiplied by another factor in each part of the network.

    The one rate stays settable through `model.learning_rate`, and schedules apply to all parts. Exact for every
    optimizer whose step is its learning rate times something else: the factor multiplies the step.

    Args:
      parts: pattern -> factor. Patterns are those of a shell (`*`, `?`, `[ab]`) over dotted parameter paths such as
        "stage1.blocks.0.branch.conv1.kernel"; a star spans dots. The first that matches decides; what none matches has
        factor 1. A parameter that the network holds under several paths is matched by each of them.
      optimizer: any optax transformation.

    Raises:
      CompileError: for a factor that is negative or not finite; and, once the parameters are known (in `compile`), for
        a pattern that decides about no parameter.

    Example:
      >>> from resfit import optimizers
      >>> optimizer = by_part({"head.*": 1.0, "*": 0.1}, optimizers.sgd(1.0, momentum=0.0))
      >>> params = {"stem": {"kernel": jnp.zeros(2)}, "head": {"kernel": jnp.zeros(2)}}
      >>> gradients = jax.tree.map(jnp.ones_like, params)
      >>> optimizer.update(gradients, optimizer.init(params), params)[0]
      {'head': {'kernel': Array([-1., -1.], dtype=float32)}, 'stem': {'kernel': Array([-0.1, -0.1], dtype=float32)}}
    """
    if not isinstance(optimizer, optax.GradientTransformation):
        raise CompileError(
            f"by_part got {optimizer!r} to wrap. Expected an optimizer that is built, such as "
            "resfit.optimizers.sgd(0.1)."
        )
    if not parts:
        raise CompileError("by_part got no patterns. Expected some, such as {'head.*': 1.0, '*': 0.1}.")
    for pattern, factor in parts.items():
        if not (math.isfinite(factor) and factor >= 0):
            raise CompileError(f"by_part got {factor!r} for {pattern!r}. Expected a factor of zero or more.")

    def init(params: Any) -> optax.EmptyState:
        _check(parts, [_names(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)])
        return optax.EmptyState()

    def update(updates: Any, state: optax.EmptyState, params: Any = None) -> tuple[Any, optax.EmptyState]:
        del params
        return jax.tree_util.tree_map_with_path(lambda path, u: u * _factor(parts, _names(path)), updates), state

    scaled: optax.GradientTransformation = optax.chain(optimizer, optax.GradientTransformation(init, update))
    return scaled


def by_depth(
    parts: Sequence[str], optimizer: optax.GradientTransformation, *, decay: float = 0.75
) -> optax.GradientTransformation:
    """An optimizer whose learning rate falls from the last part to the first, by the same factor each time.

    For fine-tuning: what is near the image is of use for other images too, and need not change much. What no part
    covers trains at the full rate.

    Args:
      parts: dotted paths of parts from the first to the last, such as a ResNet's `net.parts`, or patterns as in
        `by_part`.
      optimizer: any optax transformation; its rate is that of the last part.
      decay: the rate of a part over that of the next one.

    Raises:
      CompileError: for a decay that is not between 0 and 1, and as in `by_part`: once the parameters are known, for a
        part that has none, be it frozen.

    Example:
      >>> from resfit import optimizers
      >>> optimizer = by_depth(("stem", "head"), optimizers.sgd(1.0, momentum=0.0), decay=0.5)
      >>> params = {"stem": {"kernel": jnp.zeros(2)}, "head": {"kernel": jnp.zeros(2)}}
      >>> gradients = jax.tree.map(jnp.ones_like, params)
      >>> optimizer.update(gradients, optimizer.init(params), params)[0]
      {'head': {'kernel': Array([-1., -1.], dtype=float32)}, 'stem': {'kernel': Array([-0.5, -0.5], dtype=float32)}}
    """
    if not 0 < decay <= 1:
        raise CompileError(f"by_depth got decay={decay!r}. Expected a factor above 0 and at most 1, such as 0.75.")
    if isinstance(parts, str):
        raise CompileError(
            f"by_depth got the text {parts!r} as parts. Expected several, such as net.parts of a ResNet."
        )
    return by_part({f"{part}.*": decay**i for i, part in enumerate(reversed(parts))}, optimizer)


_TIED: ContextVar[Mapping[str, Sequence[str]]] = ContextVar("_TIED", default=types.MappingProxyType({}))


@contextlib.contextmanager
def tied_names(names: Mapping[str, Sequence[str]]) -> Iterator[None]:
    """Let patterns match every name of a parameter that a module holds more than once.

    Args:
      names: the other names, by the one in the tree that optimizers see.
    """
    token = _TIED.set(names)
    try:
        yield
    finally:
        _TIED.reset(token)


def _names(path: Any) -> list[str]:
    name = jax.tree_util.keystr(path, simple=True, separator=".")
    return [name, *_TIED.get().get(name, ())]


def _matches(names: list[str], pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in names)


def _decides(parts: Mapping[str, float], names: list[str]) -> str | None:
    return next((pattern for pattern in parts if _matches(names, pattern)), None)


def _factor(parts: Mapping[str, float], names: list[str]) -> float:
    pattern = _decides(parts, names)
    return 1.0 if pattern is None else float(parts[pattern])


def _check(parts: Mapping[str, float], params: list[list[str]]) -> None:
    used = {_decides(parts, names) for names in params}
    for pattern in parts:
        if pattern in used:
            continue
        if taken := [names for names in params if _matches(names, pattern)]:
            raise CompileError(
                f"The pattern {pattern!r} decides about nothing: {_decides(parts, taken[0])!r} stands before it and "
                f"takes all it would match, such as {taken[0][0]!r}. Put the narrower pattern first."
            )
        every = [name for names in params for name in names]
        raise CompileError(f"The pattern {pattern!r} matches no parameter. {_nearest(pattern, every)}")


def _nearest(pattern: str, names: list[str]) -> str:
    if any(name.startswith(f"{pattern}.") for name in names):
        return f"For all parameters of that part write '{pattern}.*'."
    # A pattern may mean a whole part, so the parts are offered too.
    parts = {".".join(name.split(".")[:depth]) + ".*" for name in names for depth in range(1, name.count(".") + 1)}
    near = difflib.get_close_matches(pattern, [*sorted(parts), *names], n=3)
    return f"Near it: {near}." if near else f"Paths look like these: {names[:3]}."
