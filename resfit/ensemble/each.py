"""Arguments with one value for each member of an ensemble."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from resfit._utils.keywords import checked
from resfit.errors import ArgumentError

_LISTS = ("learning_rate", "weight_decay", "seed")  # arguments of `compile` that are no sequences for a single model


class Each:
    """Values of an argument for the members of an ensemble, one for each.

    Args:
      values: in the order of the members.

    Raises:
      ArgumentError: if `values` is not a sequence.

    Example:
      >>> import resfit
      >>> smoothing = Each([resfit.losses.CrossEntropy(label_smoothing=value) for value in (0.0, 0.1)])
      >>> len(smoothing.values)
      2
    """

    @checked("ensemble arguments", "Each")
    def __init__(self, values: Iterable[Any]) -> None:
        if isinstance(values, str | Mapping) or not isinstance(values, Iterable):
            raise ArgumentError(f"Each got {values!r}. Expected a list with one value for each member.")
        self.values = list(values)

    def __repr__(self) -> str:
        return f"Each({self.values!r})"


def for_members(method: str, arguments: Mapping[str, Any], members: int) -> list[dict[str, Any]]:
    """Return the arguments of each member.

    Args:
      method: that got the arguments, for messages.
      arguments: by name; an `Each` has one value for each member, any other value is for all members. A list is an
        `Each` where a single model takes no list.
      members: the number of members.

    Raises:
      ArgumentError: for another number of values than of members.

    Example:
      >>> for_members("compile", {"optimizer": "sgd", "learning_rate": [0.1, 0.2]}, 2)
      [{'optimizer': 'sgd', 'learning_rate': 0.1}, {'optimizer': 'sgd', 'learning_rate': 0.2}]
    """
    columns: dict[str, list[Any]] = {}
    for name, given in arguments.items():
        as_list = name in _LISTS and (isinstance(given, list | tuple) or (isinstance(given, np.ndarray) and given.ndim))
        one = Each(given) if as_list else given
        values = one.values if isinstance(one, Each) else [one] * members
        if len(values) != members:
            raise ArgumentError(
                f"{method} got {len(values)} values of {name} for {members} members. Expected one for each member, or "
                "one value for all of them."
            )
        columns[name] = values
    return [{name: values[i] for name, values in columns.items()} for i in range(members)]
