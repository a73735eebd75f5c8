"""A kit that puts any callback through everything that can happen to it, and says what it gets wrong."""

import collections
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import jax
import numpy as np
from einops import rearrange
from flax import nnx

from resfit.callbacks import Callback
from resfit.callbacks.logs import LazyLogs
from resfit.data.states import EXPECTED, packed, unpacked
from resfit.errors import CallbackCheckError, CallbackError
from resfit.model import Model
from resfit.testing.processes import as_process
from resfit.testing.written_files import written_files
from resfit.trainer.callback_list import CallbackList

_HOOKS = tuple(name for name in vars(Callback) if name.startswith("on_"))
_RATE, _EPOCHS, _BATCH = 0.1, 2, 4
_X = np.random.default_rng(0).normal(size=(16, 2, 2, 1)).astype(np.float32)
_Y = np.arange(16, dtype=np.int32) % 3
_TEST = (_X[:8], _Y[:8])

# The played run: losses that fall, rise and stand still, and a device whose steps are done eight steps later.
_LOSSES = (5.0, 3.0, 4.0, 2.5, 2.75, 2.625, 2.0, 2.25)
_STEPS, _LAG = 24, 8


@dataclass(frozen=True)
class Report:
    """What `check_callback` did and found.

    Attributes:
      scenes: everything that the callback was put through.
      costs: what is no mistake but makes training slower.
    """

    scenes: tuple[str, ...]
    costs: tuple[str, ...]


def check_callback(make: Callable[[], Callback]) -> Report:
    """Puts a callback through fit, evaluate and predict, stops, exceptions, a second fit, resuming and two processes.

    A tiny model is trained on the CPU or whatever device there is, with a learning rate that can be set, accuracy, and
    averaged weights. What each scene demands: no exception of the callback's own, also where it never saw
    on_train_begin; the exception of somebody else comes out as it was; a request to stop is obeyed; `loss` stays in the
    logs, and what is added to them is numbers; `state_dict` is what a checkpoint can hold, is a copy, and lets a new
    object go on as if the run had never stopped. Wall-clock values in the state may differ. Of two processes, both must
    steer training alike and call `model.evaluate` and its like equally often, and only the first, whose
    `jax.process_index()` is 0, may write files; a callback may also refuse by a `CallbackError` in on_train_begin. The
    two are played one after the other, so what a callback would send from one to the other is not seen.

    Args:
      make: () -> a new callback. It is called many times; what the callbacks write goes where `make` tells them to.

    Returns:
      The report, where nothing is wrong.

    Raises:
      CallbackCheckError: with everything that is wrong; pytest shows it as a failed test.

    Example:
      >>> from resfit.callbacks import Callback, EarlyStopping
      >>> check_callback(lambda: EarlyStopping("loss", patience=1, restore_best_weights=True)).costs
      ()
      >>> class Misspelt(Callback):
      ...     def on_epoch_ends(self, epoch, logs=None):
      ...         print(epoch)
      >>> check_callback(Misspelt)
      Traceback (most recent call last):
      resfit.errors.CallbackCheckError: Misspelt: on_epoch_ends is no hook...
    """
    name = _check_made(make)
    kit = _Kit(make)
    problems: dict[str, list[str]] = {}
    scenes = []
    for scene, act in _scenes(kit):
        scenes.append(scene)
        kit.reset()
        try:
            act()
        except Exception as error:  # noqa: BLE001 - whatever a callback raises is what this is about
            text = str(error) if isinstance(error, _Wrong) else f"it raised {type(error).__name__}: {error}"
            problems.setdefault(text, []).append(scene)
    if problems:
        lines = [f"{text} (in: {'; '.join(where)})" for text, where in problems.items()]
        raise CallbackCheckError(f"{name}: {len(lines)} problem(s).\n" + "\n".join(f"- {line}" for line in lines))
    return Report(tuple(scenes), tuple(kit.costs))


def _check_made(make: Callable[[], Callback]) -> str:
    callback, another = make(), make()
    name = type(callback).__name__
    if not isinstance(callback, Callback):
        raise CallbackCheckError(f"make returned a {name}. Expected an object of a class that derives from Callback.")
    if callback is another:
        raise CallbackCheckError(f"make returned the same {name} twice. Expected a new one at every call.")
    unknown = [n for n in dir(callback) if n.startswith("on_") and n not in _HOOKS and callable(getattr(callback, n))]
    if unknown:
        raise CallbackCheckError(
            f"{name}: {', '.join(unknown)} is no hook, so nobody calls it. Expected some of {', '.join(_HOOKS)}; name "
            "a method of your own without on_."
        )
    return name


class _Wrong(Exception):  # noqa: N818 - what is wrong, in the words of the report
    pass


class _Marker(Exception):  # noqa: N818 - somebody else's exception
    pass


class _Net(nnx.Module):
    def __init__(self) -> None:
        self.head = nnx.Linear(4, 3, rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(rearrange(x, "n h w c -> n (h w c)"))


class _Kit:
    """The model that all scenes share, and what they found out about costs."""

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
        yield f"somebody stops training in {hook}", lambda hook=hook: _stopped(kit, hook)  # type: ignore[misc]
    yield "somebody stops a validation", lambda: _stopped_validation(kit)
    for hook in _RAISING:
        for place in ("before", "after"):
            yield (
                f"a callback {place} it raises in {hook}",
                lambda hook=hook, place=place: _raised(kit, hook, place),  # type: ignore[misc]
            )
    yield "state_dict", lambda: _state(kit)
    yield "a run that is cut and resumed", lambda: _resumed(kit)
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
    """Does something in one hook."""

    def __init__(self, hook: str, act: Callable[..., None]) -> None:
        setattr(self, hook, act)


class _KeepsLoss(Callback):
    """Comes last, and misses what was taken out of the logs."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._look(logs, "on_train_batch_end")

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._look(logs, "on_epoch_end")

    def on_test_end(self, logs: Any = None) -> None:
        self._look(logs, "on_test_end")

    def _look(self, logs: Any, hook: str) -> None:
        if "loss" not in logs:
            raise _Wrong(f"it takes 'loss' out of the logs of {hook}, where callbacks after it look for it")


def _whole_fit(kit: _Kit, validation: bool) -> None:
    history = kit.fit(kit.make(), _KeepsLoss(), validation=validation).history
    for name, values in history.items():
        for value in values:
            if value is not None and np.asarray(value).dtype.kind not in "fiub":
                raise _Wrong(f"it puts {name!r} = {value!r} into the logs. Expected numbers")


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
        raise _Wrong(
            f"training went on for {len(batches)} batches instead of {allowed}, as stop_training was taken back"
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
        raise _Wrong(f"it hides the exception of somebody else behind {type(error).__name__}: {error}") from error
    kit.reset()
    kit.fit(callback)  # it must be as good as new


# --- a run of hooks without a network ---------------------------------------------------------------------------------


class _Value:
    """A value on the device; reading it before it is ready is counted."""

    def __init__(self, value: float, waits: list[int], step: int) -> None:
        self._value, self._waits, self._step, self.done = value, waits, step, False

    def is_ready(self) -> bool:
        return self.done

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if not self.done:
            self._waits.append(self._step)
        return np.asarray(self._value, dtype)


class _Play:
    """Hooks with the same values every time; after each epoch the model's weights are those of that epoch."""

    def __init__(self, kit: _Kit, callback: Callback) -> None:
        self._kit = kit
        self.callback = callback
        self.waits: list[int] = []
        self.rates: dict[int, float] = {}  # after each epoch
        params = {"verbose": 0, "epochs": len(_LOSSES), "steps": _STEPS}
        self._hooks = CallbackList([callback], kit.model, params)
        kit.model.stop_training = False
        self._hooks.fire("on_train_begin", {})

    def epochs(self, first: int, last: int) -> None:
        model, fire = self._kit.model, self._hooks.fire
        for epoch in range(first, last):
            if model.stop_training:
                return
            fire("on_epoch_begin", epoch, {})
            flying: collections.deque[_Value] = collections.deque()
            for step in range(_STEPS):
                fire("on_train_batch_begin", step, {})
                value = _Value(_LOSSES[epoch], self.waits, step)
                flying.append(value)
                if len(flying) > _LAG:
                    flying.popleft().done = True
                fire("on_train_batch_end", step, _lazy(value))
            for value in flying:
                value.done = True
            model.set_weights([array + np.float32(epoch + 1) for array in self._kit.weights])
            logs = {"loss": _LOSSES[epoch], "accuracy": 1 / _LOSSES[epoch]}
            fire("on_test_begin", {})
            fire("on_test_end", dict(logs))
            fire("on_epoch_end", epoch, logs | {f"val_{name}": value for name, value in logs.items()})
            self.rates[epoch] = model.learning_rate

    def result(self) -> dict[str, Any]:
        """What the run came to; ends it."""
        model, state = self._kit.model, _stored(self.callback.state_dict())
        stopped = model.stop_training
        self._hooks.fire("on_train_end", {"loss": _LOSSES[-1]})
        outcome = {"state": state, "stop_training": stopped, "learning_rate": self.rates}
        return outcome | {"weights": model.get_weights()}


def _lazy(value: _Value) -> LazyLogs:
    def finish(read: Any) -> dict[str, float]:
        loss = float(np.asarray(read))
        return {"loss": loss, "accuracy": 1 / loss}

    return LazyLogs(value, finish, ["loss", "accuracy"], cast(jax.Array, value), _BATCH)


def _stored(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state as a checkpoint gives it back."""
    restored: dict[str, Any] = unpacked(packed(state, _refused))
    return restored


def _refused(place: str, what: str) -> _Wrong:
    return _Wrong(f"its {place} is {what}, which a checkpoint cannot hold. Expected {EXPECTED}")


def _flat(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda leaf: leaf is None)[0]
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _differences(a: Any, b: Any) -> set[str]:
    """The paths at which two trees differ."""
    flat_a, flat_b = _flat(a), _flat(b)
    both = flat_a.keys() & flat_b.keys()
    return (flat_a.keys() ^ flat_b.keys()) | {path for path in both if not _equal(flat_a[path], flat_b[path])}


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, float | np.ndarray) and isinstance(b, float | np.ndarray):
        return np.array_equal(a, b, equal_nan=np.asarray(a).dtype.kind == "f")
    return type(a) is type(b) and bool(a == b)


def _whole(kit: _Kit) -> dict[str, Any]:
    kit.reset()
    play = _Play(kit, kit.make())
    play.epochs(0, len(_LOSSES))
    return play.result()


def _state(kit: _Kit) -> None:
    play = _Play(kit, kit.make())
    play.epochs(0, 3)
    state = play.callback.state_dict()
    before = copy.deepcopy(state)
    _stored(state)
    play.epochs(3, len(_LOSSES))
    changed = _differences(before, state)
    play.result()
    if changed:
        raise _Wrong(f"a state that state_dict gave is changed by later epochs at {sorted(changed)}. Expected a copy")


def _resumed(kit: _Kit) -> None:
    expected = _whole(kit)
    clocks = _differences(expected, _whole(kit))  # what differs between two runs of the same is no result
    for cut in (1, 3, 4):
        kit.reset()
        first = _Play(kit, kit.make())
        first.epochs(0, cut)
        if kit.model.stop_training:  # by its own will: nothing is left to resume
            first.result()
            return
        state = _stored(first.callback.state_dict())
        second = _Play(kit, kit.make())
        second.callback.load_state_dict(state)
        second.rates |= first.rates
        second.epochs(cut, len(_LOSSES))
        wrong = _differences(expected, second.result()) - clocks
        first.result()  # closes what it opened
        if wrong:
            raise _Wrong(
                f"a run that is resumed after epoch {cut - 1} ends with other values at {sorted(wrong)} than one that "
                "was never stopped: state_dict must hold, and load_state_dict take, all that it remembers"
            )


def _two_processes(kit: _Kit) -> None:
    outcomes, called = [], []
    for index in (0, 1):
        kit.reset()
        with as_process(index, kit.model) as calls, written_files() as files:
            callback = kit.make()
            try:
                play = _Play(kit, callback)
            except CallbackError:
                return  # it says itself that it serves one process
            play.epochs(0, len(_LOSSES))
            outcome = play.result()
        del outcome["state"]  # that of a file belongs to the process that writes it
        outcomes.append(outcome)
        called.append(dict(calls))
    if files:
        raise _Wrong(
            f"the second process writes {files} too. Expected only the first to write, where jax.process_index() is 0"
        )
    if called[0] != called[1]:
        raise _Wrong(
            f"the processes call the model's methods unequally often: {called[0]} and {called[1]}. Expected the same "
            "calls in each, as they wait for one another"
        )
    wrong = _differences(*outcomes)
    if wrong:
        raise _Wrong(f"the processes end with different values at {sorted(wrong)}. Expected each to steer alike")


def _cost(kit: _Kit) -> None:
    play = _Play(kit, kit.make())
    play.epochs(0, 1)
    waits = len(set(play.waits))
    play.result()
    if waits:
        kit.costs.append(
            f"the device was waited for in {waits} of {_STEPS} steps: read a batch's log at an interval, at the "
            "epoch's end, or once its `ready()` is true"
        )
