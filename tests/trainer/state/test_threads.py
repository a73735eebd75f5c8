"""One thread trains a model while others read it: readers work on a snapshot, and training does not notice them."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx

import resfit
from resfit.callbacks import Callback
from resfit.errors import BusyError, StepFailed
from tests.helpers import PlainNet, assert_same, compiled, context_of, fit, images, labels, state_of
from tests.levels import only

SECONDS = 60  # a deadlock fails the test


def plain(**arguments: Any) -> Any:
    return compiled(PlainNet(rngs=nnx.Rngs(0)), **arguments)


def in_thread(function: Callable[[], Any]) -> Any:
    """Return the result of a function that runs in another thread, or raise its exception."""
    done = start(function)
    return done()


def start(function: Callable[[], Any]) -> Callable[[], Any]:
    """Start a function in another thread; return a function that waits for its result."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append((function(), None))
        except BaseException as error:  # noqa: BLE001 - raised in the waiting thread
            found.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def wait() -> Any:
        thread.join(SECONDS)
        assert found, "The thread is still running."
        result, error = found[0]
        if error is not None:
            raise error
        return result

    return wait


class At(Callback):
    """Call functions in a hook."""

    def __init__(self, hook: str, *functions: Callable[[], Any]) -> None:
        self.results: list[Any] = []
        setattr(self, hook, lambda *_: self.results.extend(function() for function in functions))


class Hooked(Callback):
    """Call a function after each batch."""

    def __init__(self, function: Callable[[int], Any]) -> None:
        self.function = function

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.function(batch)


READERS: dict[str, Callable[[Any, Path], Any]] = {
    "predict": lambda model, _: model.predict(images(), batch_size=8, verbose=0),
    "evaluate": lambda model, _: model.evaluate(images(), labels(), batch_size=8, verbose=0),
    "averages": lambda model, _: model.predict(images(8), verbose=0, weights="ema"),
    "get_weights": lambda model, _: model.get_weights(),
    "save": lambda model, folder: model.save(folder / "model.safetensors"),
    "export": lambda model, folder: model.export(folder / "model.npz", platforms=["cpu"]),
    "summary": lambda model, _: model.summary(input_shape=(8, 8, 1)),
    "module": lambda model, _: np.asarray(model.module.head.kernel[...]),
    "learning_rate": lambda model, _: model.learning_rate,
    "one batch": lambda model, _: (model.predict_on_batch(images(8)), model.test_on_batch(images(8), labels(8))),
    "snapshot": lambda model, _: model.snapshot().steps,
}

CHEAP = tuple(name for name in READERS if name not in ("export", "summary"))


@pytest.mark.parametrize("names", only(["cheap"], ["cheap", "all"]))
def test_readers_in_other_threads_do_not_change_the_training(names: str, tmp_path: Path) -> None:
    """Every reader runs after every step in a thread that the callback joins; one more runs while the steps go on."""
    model, alone = plain(ema=0.9, metrics=["accuracy"]), plain(ema=0.9, metrics=["accuracy"])
    waiting: list[Callable[[], Any]] = []

    def read(batch: int) -> None:
        for name in CHEAP if names == "cheap" else READERS:
            in_thread(lambda name=name: READERS[name](model, tmp_path))
        waiting.append(start(lambda: READERS["predict"](model, tmp_path)))

    history = fit(model, epochs=2, steps_per_epoch=2, callbacks=[Hooked(read)])
    assert all(np.isfinite(wait()).all() for wait in waiting)
    assert fit(alone, epochs=2, steps_per_epoch=2).history == history.history
    assert_same(state_of(model).on_host(), state_of(alone).on_host())


def test_several_readers_run_beside_every_step_of_a_fit() -> None:
    model, alone = plain(), plain()
    model.predict(images(8), verbose=0)
    stop = threading.Event()

    def serve() -> int:
        served = 0
        while not stop.is_set():
            assert np.isfinite(model.predict(images(8), verbose=0)).all()
            assert np.isfinite(model.evaluate(images(8), labels(8), verbose=0)).all()
            served += 1
        return served

    waiting = [start(serve) for _ in range(2)]
    fit(model, epochs=8)
    stop.set()
    assert min(wait() for wait in waiting) > 0
    fit(alone, epochs=8)
    assert_same(state_of(model).on_host(), state_of(alone).on_host())


def test_a_prediction_that_spans_several_steps_uses_the_weights_of_its_start() -> None:
    model = plain()
    before = model.predict(images(), verbose=0)
    go, read = threading.Event(), threading.Event()

    def slowly() -> Any:
        found = []
        for outputs in model.predict_batches(images(), batch_size=8):
            found.append(outputs)
            read.set()
            assert go.wait(SECONDS)
        return np.concatenate(found)

    class Meanwhile(Callback):
        def on_train_begin(self, logs: Any = None) -> None:
            self.wait = start(slowly)
            assert read.wait(SECONDS)

        def on_train_end(self, logs: Any = None) -> None:
            go.set()
            self.found = self.wait()

    callback = Meanwhile()
    fit(model, epochs=2, callbacks=[callback])
    assert_same(callback.found, before)
    assert not np.array_equal(model.predict(images(), verbose=0), before)


def test_a_reader_that_comes_during_the_first_compilation_does_not_wait_for_it() -> None:
    model = plain()
    found = At("on_compile_begin", lambda: in_thread(lambda: model.predict(images(8), verbose=0)).shape)
    fit(model, callbacks=[found])
    assert found.results[0] == (8, 3)


def test_a_callback_can_assign_while_readers_run() -> None:
    def double(batch: int) -> None:
        kernel = model.module.head.kernel
        kernel[...] = 2 * kernel[...]
        in_thread(lambda: model.get_weights())

    def double_alone(batch: int) -> None:
        alone.module.head.kernel[...] = 2 * alone.module.head.kernel[...]

    model, alone = plain(), plain()
    fit(model, callbacks=[Hooked(double)])
    fit(alone, callbacks=[Hooked(double_alone)])
    assert_same(model.get_weights(), alone.get_weights())


def test_weights_that_another_thread_sets_count_from_the_next_step() -> None:
    model = plain()
    weights = [np.full_like(array, 7) for array in model.get_weights()]

    class Set(Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            in_thread(lambda: model.set_weights(weights))

    fit(model, callbacks=[Set()])
    assert_same(model.get_weights(), weights)


# --- two trainings at once --------------------------------------------------------------------------------------------


TRAININGS: dict[str, Callable[[Any], Any]] = {
    "fit": lambda model: fit(model),
    "train_on_batch": lambda model: model.train_on_batch(images(8), labels(8)),
    "compile": lambda model: model.compile("sgd", learning_rate=0.1),
    "find_learning_rate": lambda model: resfit.find_learning_rate(model, images(), labels(), steps=3),
}


def test_a_second_training_in_another_thread_raises_and_the_first_one_goes_on() -> None:
    model, alone = plain(), plain()
    errors: dict[str, BaseException] = {}

    def all_trainings(batch: int) -> None:
        for name, train in TRAININGS.items():
            with pytest.raises(BusyError) as caught:
                in_thread(lambda train=train: train(model))
            errors[name] = caught.value

    history = fit(model, callbacks=[Hooked(all_trainings)])
    assert {name: str(error).partition(" of the same")[0] for name, error in errors.items()} == {
        name: f"{name} was called while fit" for name in TRAININGS
    }
    assert history.history == fit(alone).history
    assert_same(state_of(model).on_host(), state_of(alone).on_host())
    in_thread(lambda: model.train_on_batch(images(8), labels(8)))  # after the fit


def test_a_training_that_ended_in_another_thread_does_not_count() -> None:
    model = plain()
    in_thread(lambda: model.train_on_batch(images(8), labels(8)))
    assert not state_of(model).trains_elsewhere


def test_a_snapshot_is_not_restored_while_another_thread_trains() -> None:
    model = plain()
    before = model.snapshot()

    def restore(batch: int) -> None:
        with pytest.raises(BusyError, match=r"snapshot\.restore"):
            in_thread(before.restore)

    fit(model, callbacks=[Hooked(restore)])


# --- failures ---------------------------------------------------------------------------------------------------------


class BrokenError(RuntimeError):
    pass


def test_an_exception_in_fit_leaves_readers_and_later_trainings_usable() -> None:
    model = plain()
    waiting: list[Callable[[], Any]] = []

    def fail(batch: int) -> None:
        waiting.append(start(lambda: model.predict(images(), verbose=0)))
        raise BrokenError

    with pytest.raises(BrokenError):
        fit(model, callbacks=[Hooked(fail)])
    assert np.isfinite(waiting[0]()).all()
    in_thread(lambda: fit(model))


@contextlib.contextmanager
def failing_step(model: Any, meanwhile: Callable[[], Any]) -> Iterator[None]:
    """Let the next step of `fit` lose its donated arrays and raise, and another thread read before `fit` recovers."""
    trainer = model.control.compiled.trainer
    prepare, explain = trainer.step.prepare, state_of(model).recover

    def failing(arguments: Any, announce: Any) -> Any:
        run = prepare(arguments, announce)

        def step(*given: Any) -> Any:
            run(*given)
            raise BrokenError

        return step

    def recover() -> Any:
        meanwhile()
        return explain()

    trainer.step.prepare, state_of(model).recover = failing, recover
    try:
        yield
    finally:
        trainer.step.prepare = prepare


def test_a_reader_after_a_failed_step_gets_the_values_that_fit_goes_back_to() -> None:
    model = plain()
    before, found = model.get_weights(), []
    with (
        failing_step(model, lambda: found.append(in_thread(model.get_weights))),
        pytest.raises(StepFailed, match="destroyed the state"),
    ):
        fit(model)
    assert_same(found[0], before)
    assert_same(model.get_weights(), before)


def test_a_step_of_fit_donates_its_state_unless_a_thread_reads_it() -> None:
    model = plain()
    kept: list[Any] = []
    fit(model, callbacks=[Hooked(lambda _: kept.append(context_of(model).state.leaves[0]))])
    assert [leaf.is_deleted() for leaf in kept] == [True, True, False]
