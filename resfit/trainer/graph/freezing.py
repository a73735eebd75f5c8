"""The parts of a module that do not train, chosen by patterns of paths or by filters of NNX."""

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Self

from flax import nnx

from resfit._utils.suggest import did_you_mean
from resfit.errors import ModuleError

Path = tuple[Any, ...]
Predicate = Callable[[Path, Any], bool]


class Freeze(NamedTuple):
    """The parts of a module that do not train.

    Attributes:
      patterns: shell patterns of dotted paths, of which each covers everything inside a part that it matches; and
        predicates of (path, Variable).
      batch_norm: True if frozen BatchNorms also keep their statistics, and normalize by them.
    """

    patterns: tuple[str | Predicate, ...] = ()
    batch_norm: bool = True

    @classmethod
    def of(cls, filters: Iterable[Any], *, batch_norm: bool) -> Self:
        """Return what `Model.freeze` gets, with filters of NNX as predicates.

        Raises:
          ModuleError: if one is neither a pattern nor a filter.
        """
        return cls(tuple(map(_pattern, filters)), batch_norm)

    def covers(self, leaf: Any, *paths: Sequence[Any]) -> bool:
        """Return True if a pattern matches a Variable, or a part around it.

        Args:
          leaf: the Variable.
          *paths: all its paths.
        """
        names = [".".join(map(str, path[:n])) for path in paths for n in range(1, len(path) + 1)]
        return any(
            any(fnmatch.fnmatchcase(name, pattern) for name in names)
            if isinstance(pattern, str)
            else any(pattern(tuple(path), leaf) for path in paths)
            for pattern in self.patterns
        )


NOTHING_FROZEN = Freeze()


def _pattern(given: Any) -> str | Predicate:
    """Return a pattern as it is, and a filter of NNX as a predicate, which is hashable."""
    if isinstance(given, str):
        return given
    if given is None or isinstance(given, bool):
        raise ModuleError(
            f"freeze received {given!r}, which names no part. Expected dotted paths of parts, such as those of "
            "model.module.parts: freeze('stem', 'stage1'). freeze() trains all parts."
        )
    if isinstance(given, list | tuple) and any(isinstance(one, str) for one in given):
        raise ModuleError(
            f"freeze received {given!r}. Expected one argument for each pattern: freeze(*{given!r}). Inside a filter "
            "of NNX, a text is the tag of a Variable, not a path."
        )
    # A module is callable, but not with (path, Variable).
    is_filter = given is ... or isinstance(given, list | tuple) or callable(given)
    of_variables = not isinstance(given, type) or issubclass(given, nnx.Variable)
    if not is_filter or not of_variables or isinstance(given, nnx.Module):
        kind = given.__name__ if isinstance(given, type) else type(given).__name__
        raise ModuleError(
            f"freeze received {'the class ' if isinstance(given, type) else 'an object of '}{kind}. Expected dotted "
            "paths of parts, such as 'stem', or filters of NNX on Variables, such as nnx.Not(nnx.LoRAParam) or a "
            "function of (path, variable)."
        )
    predicate: Predicate = nnx.filterlib.to_predicate(given)
    return predicate


def check_patterns(freeze: Freeze, leaves: Sequence[tuple[Path, Any]], tied: Mapping[Path, tuple[Path, ...]]) -> None:
    """Raise if a pattern matches no part of the module.

    Args:
      freeze: the patterns.
      leaves: path and Variable of everything that the module holds.
      tied: the other paths of a Variable, by each of its paths.
    """
    for pattern in freeze.patterns:
        alone = Freeze((pattern,))
        if any(alone.covers(leaf, path, *tied.get(path, ())) for path, leaf in leaves):
            continue
        parts = sorted({str(path[0]) for path, _ in leaves})
        if isinstance(pattern, str):
            raise ModuleError(
                f"Nothing in the module matches the pattern {pattern!r}. Expected the dotted path of a part, with * "
                f"for anything, as in {'.'.join(map(str, leaves[0][0]))!r}; the outermost parts are {parts}."
                f"{did_you_mean(pattern, parts)}"
            )
        kinds = sorted({type(leaf).__name__ for _, leaf in leaves})
        raise ModuleError(
            f"No Variable in the module matches the filter {pattern!r}. The types of its Variables are {kinds}, the "
            f"outermost parts {parts}. Expected a filter that matches one of them, or the dotted path of a part."
        )
