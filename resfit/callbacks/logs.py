"""Logs that stay on the device until a callback reads them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

Logs = MutableMapping[str, Any]


def read(values: Any) -> Any:
    """Copy values from the device to the host and wait for them. Every read of a log calls this function."""
    return np.asarray(values) if isinstance(values, jax.Array) else jax.device_get(values)


if TYPE_CHECKING:
    _Dict = dict[str, Any]
else:

    class _Dict(MutableMapping, dict):
        """A dict whose methods call the `__getitem__` of a subclass; those of dict itself would not."""


class LazyLogs(_Dict):
    """A log whose values stay on the device until a callback reads one.

    `dict(logs)` and `logs["loss"]` return Python values and wait for the device if necessary: floats, and lists for
    metrics of several numbers. Writing, listing keys and calling `ready()` never wait. `json.dumps(logs)`,
    `logs.copy()` and `logs | other` work, as with every dict. All callbacks of a hook share one object, in list order,
    so later callbacks see the changes of earlier ones.

    Args:
      sums: metric sums on the device.
      finish: a function that turns the sums, once on the host, into named floats.
      keys: the names that `finish` returns, in order.
      loss: the batch's own loss, () float32.
      examples: the number of examples in the batch.
      place: that of the batch among the steps of one program, if `sums` and `loss` have a first axis for them.
    """

    def __init__(
        self,
        sums: Any,
        finish: Callable[[Any], Mapping[str, Any]],
        keys: Iterable[str],
        loss: jax.Array,
        examples: int,
        place: int | None = None,
    ) -> None:
        self.examples = examples
        self._place = place
        self._sums = sums
        self._finish: Callable[[Any], Mapping[str, Any]] | None = finish
        self._loss = loss
        dict.update(self, dict.fromkeys(keys))  # None: not read

    def ready(self) -> bool:
        """Return True if reading a value does not wait for the device."""
        return self._finish is None or all(leaf.is_ready() for leaf in jax.tree.leaves(self._sums))

    def wait(self) -> None:
        """Wait until the device has computed the values, without reading one."""
        if self._finish is not None:
            jax.block_until_ready(self._sums)

    @property
    def batch_loss(self) -> float:
        """The batch's own loss; `logs["loss"]` is the mean since the epoch began. Waits for the device."""
        return self._own(read(self._loss))

    def _own(self, losses: Any) -> float:
        return float(losses if self._place is None else losses[self._place])

    def _read(self) -> None:
        finish, given = self._finish, self._sums
        if finish is not None:
            sums = read(given)
            own = sums if self._place is None else jax.tree.map(lambda each: each[self._place], sums)
            for key, value in finish(own).items():
                if dict.get(self, key, value) is None:  # not deleted or overwritten since
                    dict.__setitem__(self, key, as_plain(value))
            self._finish = self._sums = None  # last: several threads can read

    def __getitem__(self, key: str) -> Any:
        if dict.__getitem__(self, key) is None:
            self._read()
        return dict.__getitem__(self, key)

    __setitem__, __delitem__, __len__ = dict.__setitem__, dict.__delitem__, dict.__len__
    __reversed__ = dict.__reversed__
    __contains__ = dict.__contains__  # that of Mapping reads the value, which waits

    def __iter__(self) -> Iterator[str]:
        return iter(list(dict.keys(self)))

    def popitem(self) -> tuple[str, Any]:
        self._read()
        return dict.popitem(self)

    def copy(self) -> dict[str, Any]:
        return dict(self)

    def __or__(self, other: Any) -> Any:
        return dict(self) | other

    def __ror__(self, other: Any) -> Any:
        return other | dict(self)

    def __ior__(self, other: Any) -> Any:
        self.update(other)
        return self

    def __reduce__(self) -> Any:
        return dict, (dict(self),)

    def __repr__(self) -> str:
        return repr(dict(self))


def batch_losses(logs: Sequence[LazyLogs]) -> list[float]:
    """Return the batches' own losses, read in one transfer."""
    return [log._own(losses) for log, losses in zip(logs, read([log._loss for log in logs]), strict=True)]


def as_float(value: Any) -> Any:
    """Return a scalar as a Python float, and anything larger as a NumPy array."""
    array = np.asarray(value)
    return float(array) if array.ndim == 0 else array


def as_plain(value: Any) -> Any:
    """Return an array as a number or nested lists, which JSON has, and anything else as it is."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic | jax.Array) else value
