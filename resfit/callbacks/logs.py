"""Logs that stay on the device until a callback reads them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import jax
import numpy as np

Logs = MutableMapping[str, Any]


def read(values: Any) -> Any:
    """Copy values from the device to the host and wait for them. Every read of a log calls this function."""
    return np.asarray(values) if isinstance(values, jax.Array) else jax.device_get(values)


class LazyLogs(MutableMapping[str, Any]):
    """A log whose values stay on the device until a callback reads one.

    `dict(logs)` and `logs["loss"]` return Python floats and wait for the device if necessary. Writing, listing keys and
    calling `ready()` never wait. All callbacks of a hook share one object, in list order, so later callbacks see the
    changes of earlier ones.

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
        self._values: dict[str, Any] = dict.fromkeys(keys)

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

    def _read(self) -> dict[str, Any]:
        if self._finish is not None:
            finish, self._finish = self._finish, None
            sums = read(self._sums)
            own = sums if self._place is None else jax.tree.map(lambda each: each[self._place], sums)
            for key, value in finish(own).items():
                if key in self._values and self._values[key] is None:  # not deleted or overwritten since
                    self._values[key] = value
            self._sums = None
        return self._values

    def __getitem__(self, key: str) -> Any:
        value = self._values[key]
        return self._read()[key] if value is None else value

    def __setitem__(self, key: str, value: Any) -> None:
        self._values[key] = value

    def __delitem__(self, key: str) -> None:
        del self._values[key]

    def __contains__(self, key: object) -> bool:
        return key in self._values  # the method of Mapping reads the value, which waits

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._values))

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(dict(self))


def batch_losses(logs: Sequence[LazyLogs]) -> list[float]:
    """Return the batches' own losses, read in one transfer."""
    return [log._own(losses) for log, losses in zip(logs, read([log._loss for log in logs]), strict=True)]


def as_float(value: Any) -> Any:
    """Return a scalar as a Python float, and anything larger as a NumPy array."""
    array = np.asarray(value)
    return float(array) if array.ndim == 0 else array
