"""Learning rates for parts of a network."""

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

from resfit._utils.keywords import checked
from resfit.errors import CompileError
from resfit.optimizers.evaluation import has_evaluation_params


@checked("function arguments")
def by_part(parts: Mapping[str, float], optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return an optimizer that multiplies the learning rate by a factor in each part of the network.

    `model.learning_rate` sets the learning rate of all parts, and schedules apply to all parts. The factor multiplies
    the optimizer's step, which is exact for every optimizer whose step is proportional to the learning rate.

    Args:
      parts: pattern -> factor. Patterns are shell patterns (`*`, `?`, `[ab]`) of dotted parameter paths such as
        "stage1.blocks.0.branch.conv1.kernel"; a star also matches dots. The first pattern that matches decides. The
        factor of all other parameters is 1. If the network holds a parameter under several paths, each path can match.
      optimizer: any optax transformation.

    Raises:
      CompileError: for a factor that is negative or not finite; in `compile`, for a pattern that applies to no
        parameter, and for an optimizer that evaluates with other parameters.

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
            f"by_part got {optimizer!r}. Expected an optax.GradientTransformation, such as resfit.optimizers.sgd(0.1)."
        )
    if not parts:
        raise CompileError("by_part got no patterns. Expected at least one, such as {'head.*': 1.0, '*': 0.1}.")
    for pattern, factor in parts.items():
        if not hasattr(factor, "__float__") or not (math.isfinite(factor) and factor >= 0):
            raise CompileError(f"by_part got {factor!r} for {pattern!r}. Expected a factor of 0 or more.")

    def init(params: Any) -> optax.EmptyState:
        _check(parts, [_names(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)])
        if has_evaluation_params(jax.eval_shape(optimizer.init, params)):
            raise CompileError(
                "by_part got an optimizer that evaluates with other parameters than it trains, which scaled updates "
                "would make wrong. Scale the updates of its inner optimizer instead, as in "
                "optax.contrib.schedule_free(by_part({'head.*': 1.0, '*': 0.1}, optax.sgd(0.1)), 0.1)."
            )
        return optax.EmptyState()

    def update(updates: Any, state: optax.EmptyState, params: Any = None) -> tuple[Any, optax.EmptyState]:
        del params
        return jax.tree_util.tree_map_with_path(lambda path, u: u * _factor(parts, _names(path)), updates), state

    scaled: optax.GradientTransformation = optax.chain(optimizer, optax.GradientTransformation(init, update))
    return scaled


@checked("function arguments")
def by_depth(
    parts: Sequence[str], optimizer: optax.GradientTransformation, *, decay: float = 0.75
) -> optax.GradientTransformation:
    """Return an optimizer whose learning rate decays from the last part of the network to the first one.

    Use it for fine-tuning: the first layers work for other images too and need small changes. Parameters outside all
    parts train at the full learning rate.

    Args:
      parts: dotted paths of parts from the first to the last, such as `net.parts` of a ResNet, or patterns as in
        `by_part`.
      optimizer: any optax transformation, with the learning rate of the last part.
      decay: the learning rate of a part divided by that of the next one.

    Raises:
      CompileError: for a decay outside (0, 1]; in `compile`, for a part without trainable parameters.

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
            f"by_depth got the text {parts!r} as parts. Expected a sequence of paths, such as net.parts of a ResNet."
        )
    return by_part({f"{part}.*": decay**i for i, part in enumerate(reversed(parts))}, optimizer)


_TIED: ContextVar[Mapping[str, Sequence[str]]] = ContextVar("_TIED", default=types.MappingProxyType({}))


@contextlib.contextmanager
def tied_names(names: Mapping[str, Sequence[str]]) -> Iterator[None]:
    """Let patterns match every name of a parameter that a module holds several times.

    Args:
      names: name in the optimizer's tree of parameters -> other names.
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
                f"The pattern {pattern!r} has no effect: the earlier pattern {_decides(parts, taken[0])!r} matches the "
                f"same parameters, such as {taken[0][0]!r}. Put the narrower pattern first."
            )
        every = [name for names in params for name in names]
        raise CompileError(f"The pattern {pattern!r} matches no parameter. {_nearest(pattern, every)}")


def _nearest(pattern: str, names: list[str]) -> str:
    if any(name.startswith(f"{pattern}.") for name in names):
        return f"For all parameters of that part pass '{pattern}.*'."
    # The pattern of a whole part is a suggestion too.
    parts = {".".join(name.split(".")[:depth]) + ".*" for name in names for depth in range(1, name.count(".") + 1)}
    near = difflib.get_close_matches(pattern, [*sorted(parts), *names], n=3)
    return f"Did you mean one of {near}?" if near else f"Paths look like {names[:3]}."
