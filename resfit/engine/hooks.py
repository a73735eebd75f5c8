"""Callbacks: the protocol, the list that fires hooks, and logs that cost nothing until they are read."""

import contextlib
import functools
import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from resfit import foreign
from resfit.data.states import EXPECTED, packed, unpacked
from resfit.errors import CallbackError

if TYPE_CHECKING:
    from resfit.model import Model

_log = logging.getLogger("resfit")

Logs = MutableMapping[str, Any]


def read(values: Any) -> Any:
    """Copies device values to the host, waiting for them. Every read of a log passes through here."""
    return jax.device_get(values)


class LazyLogs(MutableMapping[str, Any]):
    """A log whose values stay on the device until somebody reads them.

    `dict(logs)`, `logs["loss"]` and the like give plain Python floats and wait for the device if they must; writing,
    listing keys and asking `ready()` never wait. One object is shared by all callbacks of a hook, in list order, so
    that a value added or changed by the first is seen by those after it.

    Args:
      sums: metric sums on the device.
      finish: turns the sums, once on the host, into named floats.
      keys: the names that `finish` will return, in order.
      loss: the batch's own loss, () float32.
      examples: how many examples the batch had.
    """

    def __init__(
        self,
        sums: Any,
        finish: Callable[[Any], Mapping[str, Any]],
        keys: Iterable[str],
        loss: jax.Array,
        examples: int,
    ) -> None:
        self.examples = examples
        self._sums = sums
        self._finish: Callable[[Any], Mapping[str, Any]] | None = finish
        self._loss = loss
        self._values: dict[str, Any] = dict.fromkeys(keys)

    def ready(self) -> bool:
        """Whether reading would not wait."""
        return self._finish is None or all(leaf.is_ready() for leaf in jax.tree.leaves(self._sums))

    def wait(self) -> None:
        """Waits until the device has made the values, and reads none."""
        if self._finish is not None:
            jax.block_until_ready(self._sums)

    @property
    def batch_loss(self) -> float:
        """The batch's own loss, where `logs["loss"]` is the mean since the epoch began. Waits for the device."""
        return float(read(self._loss))

    def _read(self) -> dict[str, Any]:
        if self._finish is not None:
            finish, self._finish = self._finish, None
            for key, value in finish(read(self._sums)).items():
                if key in self._values and self._values[key] is None:  # neither deleted nor overwritten since
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
        return key in self._values  # Mapping's own asks for the value, and waits for it

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._values))

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(dict(self))


def batch_losses(logs: Sequence[LazyLogs]) -> list[float]:
    """Several batches' own losses, read in one transfer."""
    return [float(loss) for loss in read([log._loss for log in logs])]


def as_float(value: Any) -> Any:
    """A scalar as a Python float, anything larger as a NumPy array."""
    array = np.asarray(value)
    return float(array) if array.ndim == 0 else array


class Callback:
    """Base class of everything that watches or steers training. Hooks, order and arguments are Keras's.

    Override what you need. `fit` calls on_train_begin, then for each epoch on_epoch_begin, for each batch
    on_train_batch_begin and on_train_batch_end, validation's on_test_* hooks, on_epoch_end, and last on_train_end,
    which always runs once training began. `evaluate` and `predict` call the on_test_* and on_predict_* hooks.

    Logs map names to floats. A batch's log holds the running means since the epoch began; nothing waits for the device
    until a value is read, so reading one in every batch makes every step wait.

    Attributes:
      model: the `resfit.Model`. `model.module` holds the current variables and may be assigned to at any batch
        boundary; `model.stop_training = True` stops after this batch.
      params: {"verbose", "epochs", "steps"}.

    Example:
      >>> class Print(Callback):
      ...     def on_epoch_end(self, epoch, logs=None):
      ...         print(f"epoch {epoch}: loss {logs['loss']:.3f}")
    """

    model: "Model"
    params: dict[str, Any]

    def set_model(self, model: "Model") -> None:
        """Called once before training with the model."""
        self.model = model

    def set_params(self, params: dict[str, Any]) -> None:
        """Called once before training with the run's parameters."""
        self.params = params

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Called when `fit` begins."""

    def on_train_end(self, logs: Logs | None = None) -> None:
        """Called when `fit` ends, however it ends. logs: those of the last epoch."""

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Called before an epoch, counted from zero."""

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Called after an epoch and its validation. logs: loss, metrics and their val_ twins."""

    def on_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        """Called by on_train_batch_begin."""

    def on_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """Called by on_train_batch_end."""

    def on_train_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        """Called before a training step."""
        self.on_batch_begin(batch, logs)

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """Called once a training step has been handed to the device."""
        self.on_batch_end(batch, logs)

    def on_test_begin(self, logs: Logs | None = None) -> None:
        """Called when `evaluate`, or a validation inside `fit`, begins."""

    def on_test_end(self, logs: Logs | None = None) -> None:
        """Called when it ends. logs: loss and metrics."""

    def on_test_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        """Called before an evaluation step."""

    def on_test_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """Called after an evaluation step."""

    def on_predict_begin(self, logs: Logs | None = None) -> None:
        """Called when `predict` begins."""

    def on_predict_end(self, logs: Logs | None = None) -> None:
        """Called when `predict` ends."""

    def on_predict_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        """Called before a prediction step."""

    def on_predict_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """Called after a prediction step. logs: {"outputs": the batch's outputs}."""

    def on_compile_begin(self, what: str) -> None:
        """Called before a step is compiled, with "train", "evaluate" or "predict". Not in Keras."""

    def on_compile_end(self, what: str) -> None:
        """Called when that is done. Not in Keras."""

    def on_exception(self, exception: BaseException) -> None:
        """Called when `fit` (before on_train_end), `evaluate` or `predict` is left by an exception. Not in Keras."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run must know to go on as if it had never stopped. Not in Keras.

        It comes back exactly, types and the order of keys included. It may be made of dicts, lists, tuples, sets, plain
        values, bytes, and NumPy and JAX arrays; anything else is an error at the first checkpoint.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what `state_dict` gave, after on_train_begin of the run that goes on. Not in Keras."""


# A hook whose default calls another one must be fired for those who override only the other.
_CALLS = {"on_train_batch_begin": "on_batch_begin", "on_train_batch_end": "on_batch_end"}


class CallbackList:
    """Fires hooks on callbacks in order, skipping those that do not listen.

    Args:
      callbacks: in order.
      model: given to each.
      params: given to each.
    """

    def __init__(self, callbacks: Iterable[Callback], model: "Model", params: dict[str, Any]) -> None:
        self._callbacks = list(callbacks)
        self._listeners: dict[str, list[Callable[..., None]]] = {}
        for callback in self._callbacks:
            if not isinstance(callback, Callback):
                raise _no_callback(callback)
            _check_hooks(callback)
            callback.set_params(params)
            callback.set_model(model)

    def fire(self, hook: str, *args: Any) -> None:
        """Calls one hook of every callback that overrides it."""
        listeners = self._listeners.get(hook)
        if listeners is None:
            listeners = self._listeners[hook] = [getattr(c, hook) for c in self._callbacks if _listens(c, hook)]
        for listener in listeners:
            listener(*args)

    def state_dicts(self) -> dict[str, Any]:
        """Return what the callbacks remember, packed for a checkpoint; nothing that they do later changes it.

        The keys are the names of their classes; a second callback of a class is `Name 2`.

        Raises:
          CallbackError: naming the callback and the key of what a checkpoint cannot hold.
        """
        states = {name: state for name, callback in self._named().items() if (state := callback.state_dict())}
        return {name: packed(state, functools.partial(_refused, name)) for name, state in states.items()}

    def load_state_dicts(self, states: Mapping[str, Any]) -> None:
        """Take what `state_dicts` gave; a callback that has no state there begins anew."""
        for name, callback in self._named().items():
            if name in states:
                callback.load_state_dict(unpacked(states[name]))

    def names(self) -> list[str]:
        """Of the callbacks, as in `state_dicts`."""
        return list(self._named())

    def _named(self) -> dict[str, Callback]:
        named: dict[str, Callback] = {}
        for callback in self._callbacks:
            name = type(callback).__name__
            number = sum(type(other).__name__ == name for other in named.values()) + 1
            named[name if number == 1 else f"{name} {number}"] = callback
        return named

    @contextlib.contextmanager
    def told_of_exceptions(self) -> Iterator[None]:
        """Fires on_exception when the block is left by an exception."""
        try:
            yield
        except GeneratorExit:  # somebody read no further: nothing went wrong
            raise
        except BaseException as exception:
            self.fire("on_exception", exception)
            raise


def _refused(name: str, place: str, what: str) -> CallbackError:
    return CallbackError(
        f"{name}.{place} is {what}, which a checkpoint cannot hold. Expected {EXPECTED}. Let state_dict return those, "
        "and load_state_dict make the rest of them."
    )


HOOKS = tuple(name for name in vars(Callback) if name.startswith("on_"))


def _no_callback(callback: Any) -> CallbackError:
    foreign.refuse(callback, "callbacks", CallbackError)
    if isinstance(callback, type):
        return CallbackError(
            f"callbacks holds the class {callback.__name__}. Expected an object of it: {callback.__name__}(...)."
        )
    return CallbackError(
        f"callbacks holds a {type(callback).__module__}.{type(callback).__name__}. Expected objects of classes that "
        "derive from resfit.callbacks.Callback; its hooks are Keras's, so changing the base class will do. A function "
        "is made one by resfit.callbacks.LambdaCallback."
    )


def _check_hooks(callback: Callback) -> None:
    """Finds before training what would otherwise fail after an epoch, or never be called.

    Raises:
      CallbackError: if a hook cannot be called with its arguments.
    """
    name = type(callback).__name__
    for hook in HOOKS:
        if not _listens(callback, hook):
            continue
        wanted = [
            parameter for parameter in inspect.signature(getattr(Callback, hook)).parameters if parameter != "self"
        ]
        try:
            inspect.signature(getattr(callback, hook)).bind(*wanted)
        except TypeError as error:
            raise CallbackError(
                f"{name}.{hook} cannot be called with ({', '.join(wanted)}): {error}. Expected "
                f"def {hook}(self, {', '.join(wanted)}), as in resfit.callbacks.Callback."
            ) from error
        except ValueError:  # something built in, that does not tell
            continue
    for own in vars(type(callback)):
        if own.startswith("on_") and own not in HOOKS:
            # A method of the user's own may be called on_improvement; one on an epoch is meant to be a hook.
            like = [hook for hook in HOOKS if hook.split("_")[1] == own.split("_")[1]]
            if like:
                _log.warning("%s.%s is no hook, so nobody calls it. Expected one of %s.", name, own, like)


def _listens(callback: Callback, hook: str) -> bool:
    method = getattr(callback, hook)
    if getattr(method, "__func__", method) is not getattr(Callback, hook):
        return True
    return hook in _CALLS and _listens(callback, _CALLS[hook])
