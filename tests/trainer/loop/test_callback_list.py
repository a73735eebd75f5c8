"""Hooks fire as in Keras, and a log costs nothing until it is read."""

import copy
import json
import logging
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax._src.array import ArrayImpl  # there is no public name for the class of arrays

import resfit
from resfit.callbacks import Callback, logs
from resfit.callbacks.logs import LazyLogs
from tests.helpers import BATCH, PlainNet, Recorder, compiled, fit, images, labels

VALUES = ["accuracy", "loss"]
VALIDATED = ["accuracy", "loss", "val_accuracy", "val_loss"]


# --- order, names and arguments ---------------------------------------------------------------------------------------


def epoch(number: int, batches: int, validation: int = 0) -> list[tuple[Any, ...]]:
    """Return the hooks that Keras fires in one epoch."""
    trace: list[tuple[Any, ...]] = [("on_epoch_begin", number, [])]
    for i in range(batches):
        trace += [("on_train_batch_begin", i, []), ("on_train_batch_end", i, VALUES)]
    if validation:
        trace += evaluation(validation)
    return [*trace, ("on_epoch_end", number, VALIDATED if validation else VALUES)]


def evaluation(batches: int) -> list[tuple[Any, ...]]:
    trace: list[tuple[Any, ...]] = [("on_test_begin", [])]
    for i in range(batches):
        trace += [("on_test_batch_begin", i, []), ("on_test_batch_end", i, VALUES)]
    return [*trace, ("on_test_end", VALUES)]


def test_fit_fires_the_hooks_of_keras_in_its_order() -> None:
    recorder = Recorder()
    fit(compiled(), epochs=2, validation_data=(images(9), labels(9)), callbacks=[recorder])
    assert recorder.trace == [
        ("on_train_begin", []),
        *epoch(0, 3, validation=2),
        *epoch(1, 3, validation=2),
        ("on_train_end", VALIDATED),
    ]


def test_logs_without_validation_have_no_val_names_and_on_train_end_repeats_the_last_logs() -> None:
    recorder = Recorder()
    arguments: dict[str, Any] = {"validation_data": (images(9), labels(9)), "validation_freq": 2}
    fit(compiled(), epochs=3, callbacks=[recorder], **arguments)
    assert recorder.trace == [
        ("on_train_begin", []), *epoch(0, 3), *epoch(1, 3, validation=2), *epoch(2, 3), ("on_train_end", VALUES),
    ]  # fmt: skip


def test_evaluate_and_predict_fire_their_own_hooks() -> None:
    model = compiled()
    recorder = Recorder()
    model.evaluate(images(), labels(), batch_size=BATCH, verbose=0, callbacks=[recorder])
    assert recorder.trace == evaluation(3)
    assert recorder.params == {"verbose": 0, "epochs": 1, "steps": 3}

    recorder = Recorder()
    model.predict(images(), batch_size=BATCH, verbose=0, callbacks=[recorder])
    batches = [
        (f"on_predict_batch_{side}", i, keys) for i in range(3) for side, keys in (("begin", []), ("end", ["outputs"]))
    ]
    assert recorder.trace == [("on_predict_begin", []), *batches, ("on_predict_end", [])]


def test_a_callback_that_overrides_only_the_short_batch_hooks_is_called() -> None:
    class Short(Callback):
        def __init__(self) -> None:
            self.seen: list[str] = []

        def on_batch_begin(self, batch: int, logs: Any = None) -> None:
            self.seen.append(f"begin {batch}")

        def on_batch_end(self, batch: int, logs: Any = None) -> None:
            self.seen.append(f"end {batch}")

    short = Short()
    fit(compiled(), callbacks=[short])
    assert short.seen == [f"{side} {i}" for i in range(3) for side in ("begin", "end")]


def test_callbacks_are_called_in_the_order_of_the_list_and_before_history() -> None:
    class Notes(Callback):
        def __init__(self, name: str, notes: list[str]) -> None:
            self.name, self.notes = name, notes

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.notes.append(f"{self.name} after {len(self.model.history.epoch)}")

    notes: list[str] = []
    fit(compiled(), epochs=2, callbacks=[Notes("b", notes), Notes("a", notes)])
    assert notes == ["b after 0", "a after 0", "b after 1", "a after 1"]


def test_all_callbacks_of_a_hook_share_one_log_and_history_records_what_they_add() -> None:
    class Adds(Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            logs["steps"] = float(batch)

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            logs["learning_rate"] = self.model.learning_rate
            logs["loss"] = -1.0

    class Reads(Callback):
        seen: list[float]

        def on_train_begin(self, logs: Any = None) -> None:
            self.seen = []

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.seen.append(logs["steps"])

    reads = Reads()
    history = fit(compiled(), callbacks=[Adds(), reads])
    assert reads.seen == [0.0, 1.0, 2.0]
    assert history.history["loss"] == [-1.0]
    assert history.history["learning_rate"] == [pytest.approx(0.1)]


def test_batch_logs_are_running_means_and_also_hold_the_loss_of_the_batch() -> None:
    class Reads(Callback):
        def __init__(self) -> None:
            self.rows: list[tuple[float, float, int]] = []

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.rows.append((logs["loss"], logs.batch_loss, logs.examples))

    reads = Reads()
    fit(compiled(), callbacks=[reads])
    running, own, sizes = map(np.array, zip(*reads.rows, strict=True))
    assert sizes.tolist() == [8, 8, 4]
    np.testing.assert_allclose(running, np.cumsum(own * sizes) / np.cumsum(sizes), rtol=1e-6)


def test_the_model_seen_at_the_end_of_a_batch_is_the_one_after_it() -> None:
    class Reads(Callback):
        def __init__(self) -> None:
            self.agreement: list[bool] = []

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            module = self.model.module
            module.eval()
            predicted = self.model.predict(images(8), verbose=0)
            self.agreement.append(np.allclose(predicted, module(images(8)), atol=1e-5))
            module.train()
            self.kernels.append(np.array(module.head.kernel[...]).tobytes())

        kernels: list[bytes]

    reads = Reads()
    reads.kernels = []
    fit(compiled(), epochs=2, callbacks=[reads])
    assert reads.agreement == [True] * 6
    assert len(set(reads.kernels)) == 6


def test_evaluating_inside_a_callback_does_not_change_the_run() -> None:
    class Evaluates(Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.model.evaluate(images(9), labels(9), batch_size=BATCH, verbose=0)

    one, other = compiled(), compiled()
    fit(one, epochs=2, callbacks=[Evaluates()])
    fit(other, epochs=2)
    assert one.history.history == other.history.history


def test_compile_hooks_fire_once_per_program() -> None:
    class Compiles(Callback):
        def __init__(self) -> None:
            self.seen: list[str] = []

        def on_compile_begin(self, what: str) -> None:
            self.seen.append(f"{what}?")

        def on_compile_end(self, what: str) -> None:
            self.seen.append(f"{what}!")

    model, compiles = compiled(), Compiles()
    for _ in range(2):
        fit(model, callbacks=[compiles], validation_data=(images(9), labels(9)))
    model.predict(images(), batch_size=BATCH, verbose=0, callbacks=[compiles])
    expected = ["train", "train", "evaluate", "predict"]
    assert compiles.seen == [mark for what in expected for mark in (f"{what}?", f"{what}!")]


# --- leaving early ----------------------------------------------------------------------------------------------------


class Stops(Callback):
    """A callback that sets a stop flag in the n-th batch."""

    def __init__(self, flag: str, n: int) -> None:
        self.flag, self.n, self.batches = flag, n, 0

    def count(self) -> None:
        self.batches += 1
        if self.batches == self.n:
            setattr(self.model, self.flag, True)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.flag == "stop_training":
            self.count()

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.flag == "stop_evaluating":
            self.count()

    def on_predict_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.flag == "stop_predicting":
            self.count()


def forever() -> Iterator[Any]:
    while True:
        yield images(8), labels(8)


@pytest.mark.parametrize("n", [1, 3])
def test_stop_flags_end_training_evaluation_and_prediction_after_that_batch_of_endless_data(n: int) -> None:
    model = compiled()
    stops = Stops("stop_training", n)
    history = model.fit(forever(), epochs=2, verbose=0, callbacks=[stops])
    assert (stops.batches, len(history.epoch)) == (n, 1)
    stops = Stops("stop_evaluating", n)
    model.evaluate(forever(), verbose=0, callbacks=[stops])
    assert stops.batches == n
    stops = Stops("stop_predicting", n)
    assert model.predict((x for x, _ in forever()), verbose=0, callbacks=[stops]).shape[0] == 8 * n
    assert stops.batches == n
    # and the next call is not stopped by the old flag
    assert model.predict(images(), batch_size=BATCH, verbose=0).shape[0] == 20
    assert len(fit(model, epochs=2).epoch) == 2


def test_an_epoch_that_is_stopped_is_still_validated_and_ended() -> None:
    recorder = Recorder()
    arguments: dict[str, Any] = {"validation_data": (images(8), labels(8)), "epochs": 5}
    fit(compiled(), callbacks=[Stops("stop_training", 2), recorder], **arguments)
    assert recorder.trace == [("on_train_begin", []), *epoch(0, 2, validation=1), ("on_train_end", VALIDATED)]


def test_stop_evaluating_inside_fit_stops_one_validation() -> None:
    recorder = Recorder()
    arguments: dict[str, Any] = {"validation_data": (images(), labels()), "epochs": 2}
    fit(compiled(), callbacks=[Stops("stop_evaluating", 1), recorder], **arguments)
    assert recorder.names().count("on_test_batch_end") == 1 + 3
    assert recorder.names().count("on_train_batch_end") == 6


class BrokenError(Exception):
    pass


class Raises(Callback):
    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        raise BrokenError


def test_after_an_exception_comes_on_exception_and_then_on_train_end() -> None:
    recorder = Recorder()
    with pytest.raises(BrokenError):
        fit(compiled(), callbacks=[recorder, Raises()])
    assert recorder.names()[-3:] == ["on_train_batch_end", "on_exception", "on_train_end"]
    assert isinstance(recorder.trace[-2][1], BrokenError)


def test_without_an_exception_on_exception_is_not_called() -> None:
    recorder = Recorder()
    fit(compiled(), callbacks=[recorder])
    assert "on_exception" not in recorder.names()


def test_the_module_is_up_to_date_in_on_train_end_also_after_an_exception() -> None:
    class Looks(Callback):
        def on_train_end(self, logs: Any = None) -> None:
            self.kernel = np.array(kernel_of(self.model))

    def kernel_of(model: resfit.Model) -> Any:
        return model._module.head.kernel[...]  # type: ignore[attr-defined]

    looks, model = Looks(), compiled()
    start = np.array(kernel_of(model))
    with pytest.raises(BrokenError):
        fit(model, callbacks=[looks, Raises()])
    assert not np.array_equal(looks.kernel, start)
    np.testing.assert_array_equal(looks.kernel, kernel_of(model))


# --- laziness ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list that receives every read of a value from the device."""
    found: list[Any] = []
    original = logs.read

    def read(values: Any) -> Any:
        found.append(values)
        return original(values)

    monkeypatch.setattr(logs, "read", read)
    for module in ("loop.evaluator", "loop.predictor", "loop.trainer", "learning_rate"):
        monkeypatch.setattr(f"resfit.trainer.{module}.read", read)
    return found


class Counts(Callback):
    """Calls `look` with the log of each batch, and counts the reads from the device meanwhile."""

    def __init__(self, reads: list[Any], look: Callable[[Any], Any]) -> None:
        self.reads, self.look, self.per_batch = reads, look, []  # type: ignore[var-annotated]

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        before = len(self.reads)
        self.look(logs)
        self.per_batch.append(len(self.reads) - before)


@pytest.mark.parametrize(
    "look",
    [
        lambda logs: None,
        lambda logs: list(logs),
        lambda logs: len(logs),
        lambda logs: "loss" in logs,
        lambda logs: logs.keys(),
        lambda logs: logs.ready(),
        lambda logs: logs.examples,
        lambda logs: logs.update(extra=1.0),
    ],
    ids=["nothing", "list", "len", "in", "keys", "ready", "examples", "update"],
)
def test_a_log_that_is_not_read_reads_nothing(reads: list[Any], look: Any) -> None:
    counts = Counts(reads, look)
    fit(compiled(), epochs=2, callbacks=[counts])
    assert counts.per_batch == [0] * 6
    assert len(reads) == 2  # the ends of the two epochs


@pytest.mark.parametrize(
    "look",
    [
        lambda logs: logs["loss"],
        lambda logs: dict(logs),
        lambda logs: logs.get("accuracy"),
        lambda logs: repr(logs),
        lambda logs: logs.batch_loss,
        lambda logs: {**logs},
    ],
    ids=["item", "dict", "get", "repr", "batch_loss", "unpack"],
)
def test_a_log_that_is_read_is_counted(reads: list[Any], look: Any) -> None:
    counts = Counts(reads, look)
    fit(compiled(), epochs=1, callbacks=[counts])
    assert counts.per_batch == [1] * 3


def test_the_built_in_callbacks_read_nothing_during_an_epoch(reads: list[Any], tmp_path: Any) -> None:
    built_in = [
        resfit.callbacks.EarlyStopping("loss", restore_best_weights=True, patience=9),
        resfit.callbacks.ModelCheckpoint(tmp_path / "{epoch}-{loss:.2f}.safetensors"),
        resfit.callbacks.History(),
        resfit.callbacks.ProgressBar(2),
    ]
    fit(compiled(), epochs=2, callbacks=built_in)
    assert len(reads) == 2


@pytest.mark.parametrize("reading", [False, True])
def test_fit_does_not_read_the_device_during_an_epoch(reading: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Covers float(), bool() and device_get, and every read if arrays are not in host memory."""
    inside = reads = 0
    original = ArrayImpl._value

    def value(array: Any) -> Any:
        nonlocal reads
        reads += inside
        return original.fget(array)

    class Epoch(Callback):
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            nonlocal inside
            inside = 1

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            nonlocal inside
            if reading:
                logs["loss"]
            inside = int(batch < 2)

    model = compiled()
    fit(model)  # compiles; tracing reads constants
    monkeypatch.setattr(ArrayImpl, "_value", property(value))
    with jax.transfer_guard_device_to_host("disallow"):  # allows device_get, and everything on a CPU
        fit(model, epochs=2, verbose=2, validation_data=(images(9), labels(9)), callbacks=[Epoch()])
    assert (reads > 0) is reading


def lazy(**values: float) -> tuple[LazyLogs, list[Any]]:
    computed: list[Any] = []

    def finish(sums: Any) -> dict[str, float]:
        computed.append(sums)
        return values

    return LazyLogs(jnp.zeros(()), finish, values, jnp.float32(5), 8), computed


def test_a_log_behaves_as_a_dict_of_floats() -> None:
    logs, computed = lazy(loss=1.5, accuracy=0.25)
    assert (list(logs), len(logs), "loss" in logs, "lost" in logs) == (["loss", "accuracy"], 2, True, False)
    logs["loss"] = 9.0  # written before it is read: stays
    del logs["accuracy"]
    logs["extra"] = 3.0
    assert computed == []
    assert dict(logs) == {"loss": 9.0, "extra": 3.0}
    assert type(dict(logs)) is dict
    assert logs == {"loss": 9.0, "extra": 3.0}
    with pytest.raises(KeyError):
        logs["accuracy"]
    assert logs.get("accuracy", 7) == 7


def test_a_log_is_computed_once_and_holds_python_floats() -> None:
    logs, computed = lazy(loss=1.5, accuracy=0.25)
    assert logs["loss"] == 1.5
    assert dict(logs) == {"loss": 1.5, "accuracy": 0.25}
    assert repr(logs) == "{'loss': 1.5, 'accuracy': 0.25}"
    assert len(computed) == 1
    assert logs.batch_loss == 5.0
    assert logs.ready()


@pytest.mark.parametrize(
    "use",
    [
        lambda logs: json.loads(json.dumps(logs)),
        lambda logs: json.loads(json.dumps(logs, indent=1)),
        lambda logs: logs.copy(),
        copy.copy,
        copy.deepcopy,
        lambda logs: pickle.loads(pickle.dumps(logs)),
        lambda logs: logs | {},
        lambda logs: {} | logs,
        lambda logs: {**logs},
        lambda logs: dict(logs.items()),
        lambda logs: dict(zip(logs.keys(), logs.values(), strict=True)),
        lambda logs: {} if logs != logs.copy() else dict(logs),
        lambda logs: {name: logs.pop(name) for name in list(logs)},
        lambda logs: {name: logs.setdefault(name, 0) for name in reversed(logs)},
    ],
)
def test_a_log_that_was_not_read_works_in_place_of_a_dict(use: Any) -> None:
    logs, _ = lazy(loss=1.5, matrix=np.eye(2))  # type: ignore[arg-type]
    assert isinstance(logs, dict)
    assert use(logs) == {"loss": 1.5, "matrix": [[1.0, 0.0], [0.0, 1.0]]}


def test_a_log_can_be_updated_in_place_by_every_method_of_a_dict() -> None:
    logs, computed = lazy(loss=1.5, accuracy=0.25)
    logs |= {"a": 1}
    logs.update(loss=2.0)
    assert computed == []
    assert logs.popitem() == ("a", 1)
    logs.clear()
    assert (logs, len(logs), bool(logs)) == ({}, 0, False)


def test_logs_that_a_callback_keeps_read_correctly_many_steps_later() -> None:
    class Keeps(Callback):
        def __init__(self) -> None:
            self.kept: list[Any] = []

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.kept.append(logs)

    class Reads(Keeps):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.kept.append((logs["loss"], logs.batch_loss))

    keeps, now = Keeps(), Reads()
    fit(compiled(), epochs=3, callbacks=[keeps])
    fit(compiled(), epochs=3, callbacks=[now])
    assert [(logs["loss"], logs.batch_loss) for logs in keeps.kept] == now.kept


@pytest.mark.slow
def test_a_long_step_still_runs_when_its_hook_fires_and_is_done_after_a_read() -> None:
    class Heavy(PlainNet):
        def __call__(self, x: jax.Array) -> jax.Array:
            outputs = super().__call__(x)
            square = jnp.outer(jnp.resize(x, 700), jnp.resize(x, 700)) * 1e-3
            busy = jax.lax.fori_loop(0, 10, lambda _, a: jnp.tanh(a @ square), square)
            return outputs + 1e-6 * busy.sum().reshape(1, 1)

    class Looks(Callback):
        def __init__(self, read: bool) -> None:
            self.read, self.ready = read, []  # type: ignore[var-annotated]

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if self.read:
                logs["loss"]
            self.ready.append(logs.ready())

    model = compiled(Heavy(rngs=nnx.Rngs(0)))
    fit(model, images(8), labels(8))  # compiles
    lets_go, waits = Looks(read=False), Looks(read=True)
    fit(model, images(32), labels(32), callbacks=[lets_go])
    fit(model, images(32), labels(32), callbacks=[waits])
    assert not all(lets_go.ready)
    assert all(waits.ready)


def test_the_first_log_line_describes_the_devices_and_the_batch(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "resfit"):
        fit(
            compiled(PlainNet(rngs=nnx.Rngs(0)), seed=3, dispatch="sharded", batch_norm="per_replica"),
            images(8),
            labels(8),
        )
    # One more line may come first, about why convolutions use XLA.
    said = next(message for message in caplog.messages if "batches of" in message)
    assert "float32; BatchNorm over each device's part of the batch; seed 3" in said
    assert "sharded on 4 cpu device(s), batches of 8, 2 a device" in said
