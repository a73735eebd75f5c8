"""A test kit that puts a callback through everything that can happen in a run."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from einops import rearrange
from flax import nnx

from resfit.callbacks import Callback
from resfit.errors import CallbackCheckError, CallbackError
from resfit.model import Model
from resfit.testing.findings import Findings, Wrong
from resfit.testing.processes import as_process
from resfit.testing.simulated_run import LOSSES, STEPS, SimulatedRun, differences, stored
from resfit.testing.written_files import written_files

_HOOKS = tuple(name for name in vars(Callback) if name.startswith("on_"))
_RATE, _EPOCHS, _BATCH = 0.1, 2, 4
_X = np.random.default_rng(0).normal(size=(16, 2, 2, 1)).astype(np.float32)
_Y = np.arange(16, dtype=np.int32) % 3
_TEST = (_X[:8], _Y[:8])


@dataclass(frozen=True)
class CallbackReport:
    """The report of `check_callback`.

    Attributes:
      scenes: the names of all checks.
      costs: behavior that makes training slower.
    """

    scenes: tuple[str, ...]
    costs: tuple[str, ...]


def check_callback(make: Callable[[], Callback]) -> CallbackReport:
    """Check a callback in fit, evaluate, predict, stops, exceptions, a second fit, resumed runs and two processes.

    The checks train a tiny model on the available device, with a learning rate that can be set, accuracy, and averaged
    weights. They are:

    - The callback raises no exception, even if on_train_begin did not run.
    - Exceptions of other callbacks propagate unchanged.
    - A request to stop takes effect.
    - `loss` stays in the logs, and added values are numbers.
    - A checkpoint can hold the result of `state_dict`, the result is a copy, and a new object continues from it as if
      the run had never stopped. Wall-clock values can differ.
    - Of two processes, both control training in the same way and make the same number of collective calls such as
      `model.evaluate`. Only the first one, whose `jax.process_index()` is 0, writes files. A callback can also raise
      `CallbackError` in on_train_begin.

    The two processes run one after the other, so communication between them is not checked.

    Args:
      make: a function () -> new callback. It is called many times and decides where the callbacks write files.

    Returns:
      The report, if there are no problems.

    Raises:
      CallbackCheckError: if there are problems; the message lists all of them.

    Example:
      >>> from resfit.callbacks import Callback, EarlyStopping
      >>> check_callback(lambda: EarlyStopping("loss", patience=1, restore_best_weights=True)).costs
      ()
      >>> class Misspelled(Callback):
      ...     def on_epoch_ends(self, epoch, logs=None):
      ...         print(epoch)
      >>> check_callback(Misspelled)
      Traceback (most recent call last):
      resfit.errors.CallbackCheckError: Misspelled has the method on_epoch_ends, which is not a hook...
    """
    found = Findings(_check_made(make))
    kit = _Kit(make)
    for scene, act in _scenes(kit):
        kit.reset()
        with found.check(scene):
            act()
    found.raise_problems(CallbackCheckError)
    return CallbackReport(tuple(found.checks), tuple(kit.costs))


def _check_made(make: Callable[[], Callback]) -> str:
    callback, another = make(), make()
    name = type(callback).__name__
    if not isinstance(callback, Callback):
        raise CallbackCheckError(f"make returned a {name}. Expected an object of a class that derives from Callback.")
    if callback is another:
        raise CallbackCheckError(f"make returned the same {name} twice. Expected a new object in every call.")
    unknown = [n for n in dir(callback) if n.startswith("on_") and n not in _HOOKS and callable(getattr(callback, n))]
    if unknown:
        raise CallbackCheckError(
            f"{name} has the method {', '.join(unknown)}, which is not a hook and is never called. Expected some of "
            f"{', '.join(_HOOKS)}. Rename other methods to names without on_."
        )
    return name


class _Marker(Exception):  # noqa: N818 - the exception of another callback
    pass


class _Net(nnx.Module):
    def __init__(self) -> None:
        self.head = nnx.Linear(4, 3, rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(rearrange(x, "n h w c -> n (h w c)"))


class _Kit:
    """The model that all scenes share, and the costs that the scenes find."""

    def __init__(self, make: Callable[[], Callback]) -> None:
        self.make = make
        self.model = Model(_Net())
        self.model.compile("sgd", learning_rate=_RATE, metrics=["accuracy"], ema=0.9, dispatch="jit")
        self.weights = self.model.get_weights()
        self.costs: list[str] = []

    def reset(self) -> None:
        self.model.set_weights(self.weights)
        self.model.learning_rate = _RATE
        self.model.validation_weights = "raw"

    def fit(self, *callbacks: Callback, validation: bool = True) -> Any:
        data = _TEST if validation else None
        return self.model.fit(
            _X, _Y, batch_size=_BATCH, epochs=_EPOCHS, verbose=0, validation_data=data, callbacks=callbacks
        )

    def evaluate(self, *callbacks: Callback) -> None:
        self.model.evaluate(*_TEST, batch_size=_BATCH, verbose=0, callbacks=callbacks)

    def simulated(self) -> SimulatedRun:
        return SimulatedRun(self.model, self.weights, self.make())

    def predict(self, *callbacks: Callback) -> None:
        self.model.predict(_TEST[0], batch_size=_BATCH, verbose=0, callbacks=callbacks)


# --- the scenes -------------------------------------------------------------------------------------------------------


def _scenes(kit: _Kit) -> Iterator[tuple[str, Callable[[], None]]]:
    yield "fit", lambda: _whole_fit(kit, validation=False)
    yield "fit with validation", lambda: _whole_fit(kit, validation=True)
    yield "evaluate with a new object", lambda: kit.evaluate(kit.make())
    yield "predict with a new object", lambda: kit.predict(kit.make())
    yield "fit, evaluate, predict and fit again with one object", lambda: _reused(kit)
    for hook in ("on_train_batch_end", "on_epoch_end"):
        yield f"another callback stops training in {hook}", lambda hook=hook: _stopped(kit, hook)  # type: ignore[misc]
    yield "another callback stops a validation", lambda: _stopped_validation(kit)
    for hook in _RAISING:
        for place in ("before", "after"):
            yield (
                f"another callback, {place} it, raises in {hook}",
                lambda hook=hook, place=place: _raised(kit, hook, place),  # type: ignore[misc]
            )
    yield "state_dict", lambda: _state(kit)
    yield "a resumed run", lambda: _resumed(kit)
    yield "two processes", lambda: _two_processes(kit)
    yield "cost", lambda: _cost(kit)


_RAISING: dict[str, Callable[..., Any]] = {
    "on_train_begin": _Kit.fit,
    "on_epoch_begin": _Kit.fit,
    "on_train_batch_begin": _Kit.fit,
    "on_train_batch_end": _Kit.fit,
    "on_test_begin": _Kit.fit,
    "on_test_batch_end": _Kit.fit,
    "on_test_end": _Kit.evaluate,
    "on_epoch_end": _Kit.fit,
    "on_train_end": _Kit.fit,
    "on_predict_batch_end": _Kit.predict,
}


class _At(Callback):
    """A callback that calls a function in one hook."""

    def __init__(self, hook: str, act: Callable[..., None]) -> None:
        setattr(self, hook, act)


class _KeepsLoss(Callback):
    """The last callback of a list, which checks that the logs still hold the loss."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._look(logs, "on_train_batch_end")

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._look(logs, "on_epoch_end")

    def on_test_end(self, logs: Any = None) -> None:
        self._look(logs, "on_test_end")

    def _look(self, logs: Any, hook: str) -> None:
        if "loss" not in logs:
            raise Wrong(f"it removes 'loss' from the logs of {hook}. Expected 'loss' to stay for later callbacks")


def _whole_fit(kit: _Kit, validation: bool) -> None:
    history = kit.fit(kit.make(), _KeepsLoss(), validation=validation).history
    for name, values in history.items():
        for value in values:
            if value is not None and np.asarray(value).dtype.kind not in "fiub":
                raise Wrong(f"it adds {name!r} = {value!r} to the logs. Expected numbers")


def _reused(kit: _Kit) -> None:
    callback = kit.make()
    kit.fit(callback)
    kit.evaluate(callback)
    kit.predict(callback)
    kit.fit(callback, validation=False)
    kit.fit(callback)


def _stopped(kit: _Kit, hook: str) -> None:
    def stop(number: int, logs: Any = None) -> None:
        kit.model.stop_training = True

    batches: list[int] = []
    kit.fit(_At(hook, stop), kit.make(), _At("on_train_batch_end", lambda batch, logs: batches.append(batch)))
    allowed = 1 if hook == "on_train_batch_end" else len(_X) // _BATCH
    if len(batches) > allowed:
        raise Wrong(
            f"training continued for {len(batches)} batches instead of {allowed}. Expected stop_training to stay True"
        )


def _stopped_validation(kit: _Kit) -> None:
    def stop(batch: int, logs: Any = None) -> None:
        kit.model.stop_evaluating = True

    kit.fit(_At("on_test_batch_end", stop), kit.make())


def _raised(kit: _Kit, hook: str, place: str) -> None:
    marker, callback = _Marker(), kit.make()

    def fail(*_: Any) -> None:
        raise marker

    act, other = _RAISING[hook], _At(hook, fail)
    try:
        act(kit, *((other, callback) if place == "before" else (callback, other)))
    except _Marker:
        pass
    except Exception as error:
        raise Wrong(f"it hides the exception of another callback behind {type(error).__name__}: {error}") from error
    kit.reset()
    kit.fit(callback)  # the callback must still work


# --- simulated runs ---------------------------------------------------------------------------------------------------


def _whole(kit: _Kit) -> dict[str, Any]:
    kit.reset()
    play = kit.simulated()
    play.epochs(0, len(LOSSES))
    return play.result()


def _state(kit: _Kit) -> None:
    play = kit.simulated()
    play.epochs(0, 3)
    state = play.callback.state_dict()
    before = copy.deepcopy(state)
    stored(state)
    play.epochs(3, len(LOSSES))
    changed = differences(before, state)
    play.result()
    if changed:
        raise Wrong(f"later epochs change a result of state_dict at {sorted(changed)}. Expected a copy")


def _resumed(kit: _Kit) -> None:
    expected = _whole(kit)
    clocks = differences(expected, _whole(kit))  # values that differ between two equal runs are clocks
    for cut in (1, 3, 4):
        kit.reset()
        first = kit.simulated()
        first.epochs(0, cut)
        if kit.model.stop_training:  # the callback stopped the run: nothing to resume
            first.result()
            return
        state = stored(first.callback.state_dict())
        second = kit.simulated()
        second.callback.load_state_dict(state)
        second.rates |= first.rates
        second.epochs(cut, len(LOSSES))
        wrong = differences(expected, second.result()) - clocks
        first.result()  # closes open files
        if wrong:
            raise Wrong(
                f"a run that is resumed after epoch {cut - 1} ends with other values at {sorted(wrong)} than an "
                "uninterrupted run. Expected state_dict and load_state_dict to cover its whole state"
            )


def _two_processes(kit: _Kit) -> None:
    outcomes, called = [], []
    for index in (0, 1):
        kit.reset()
        with as_process(index, kit.model) as calls, written_files() as files:
            callback = kit.make()
            try:
                play = SimulatedRun(kit.model, kit.weights, callback)
            except CallbackError:
                return  # the callback supports only one process
            play.epochs(0, len(LOSSES))
            outcome = play.result()
        del outcome["state"]  # the state of a file belongs to the process that writes it
        outcomes.append(outcome)
        called.append(dict(calls))
    if files:
        raise Wrong(
            f"the second process writes {files}. Expected only the first one to write, if jax.process_index() is 0"
        )
    if called[0] != called[1]:
        raise Wrong(
            f"the processes make different calls of model methods: {called[0]} and {called[1]}. Expected the same "
            "calls, since processes wait for each other"
        )
    wrong = differences(*outcomes)
    if wrong:
        raise Wrong(f"the processes end with different values at {sorted(wrong)}. Expected the same values")


def _cost(kit: _Kit) -> None:
    play = kit.simulated()
    play.epochs(0, 1)
    waits = len(set(play.waits))
    play.result()
    if waits:
        kit.costs.append(
            f"it waits for the device in {waits} of {STEPS} steps. Read the logs of a batch at an interval, at the "
            "end of the epoch, or once `ready()` is True"
        )
