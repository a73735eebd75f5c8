"""Ctrl-C stops a run at a batch boundary and loses nothing."""

import contextlib
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import resfit
from resfit.backends import allocator
from resfit.callbacks import Callback, Checkpoint
from resfit.trainer.loop.boundary import Boundary
from resfit.trainer.loop.interrupts import at_batch_boundaries
from tests.helpers import BATCH, Recorder, compiled, differ, fit, flags, images, labels, values


class Interrupts(Callback):
    """A callback that sends SIGINT to this process in a hook, as Ctrl-C does."""

    def __init__(self, hook: str, at: int = 1) -> None:
        self.calls, self.at = 0, at
        setattr(self, hook, self.interrupt)

    def interrupt(self, *_: Any) -> None:
        if self.calls == self.at:
            os.kill(os.getpid(), signal.SIGINT)
        self.calls += 1


@pytest.mark.parametrize("hook", ["on_train_batch_begin", "on_train_batch_end"])
def test_an_interrupt_stops_after_that_batch_and_the_module_holds_its_result(hook: str) -> None:
    model, recorder = compiled(), Recorder()
    came_with, start, handler = flags(model.module), values(model.module), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(model, epochs=3, callbacks=[Interrupts(hook), recorder])
    assert recorder.names().count("on_train_batch_end") == 2
    assert recorder.names()[-2:] == ["on_exception", "on_train_end"]
    assert isinstance(recorder.trace[-2][1], KeyboardInterrupt)
    assert signal.getsignal(signal.SIGINT) is handler

    other = compiled()
    other.fit(images(20), labels(20), batch_size=BATCH, steps_per_epoch=2, verbose=0)
    assert differ(values(model.module), values(other.module)) == set()
    assert differ(start, values(model.module)) == set(start)
    assert flags(model.module) == came_with

    history = fit(model, epochs=2)
    assert len(history.epoch) == 2
    assert np.isfinite(history.history["loss"]).all()


@pytest.mark.parametrize("saves", [False, True], ids=["without checkpoints", "with checkpoints"])
@pytest.mark.parametrize(
    ("hook", "place", "epoch"),
    [
        ("on_train_begin", "before epoch 3", 2),
        ("on_train_batch_end", "in epoch 3, after 2 of its batches", 2),
        ("on_epoch_end", "before epoch 5", 4),
    ],
)
def test_an_interrupt_says_in_three_lines_what_is_kept_and_how_to_resume(
    hook: str, place: str, epoch: int, saves: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = [Checkpoint(tmp_path / "run")] if saves else []
    at = 0 if hook == "on_train_begin" else 1
    with pytest.raises(KeyboardInterrupt) as caught:
        fit(compiled(), initial_epoch=2, epochs=6, callbacks=[Interrupts(hook, at), *checkpoints])
    first, saved, resume = caplog.records[-1].getMessage().splitlines()
    assert first == f"Interrupted {place}. The model holds the result of the last finished step."
    assert saved.startswith(f"Checkpoints are in {str(tmp_path / 'run')!r}" if saves else "Nothing was saved")
    assert "resume=True" in saved if saves else "model.save(path)" in saved
    assert resume == f"To train on in this process, call fit with initial_epoch={epoch}."
    assert caught.type is KeyboardInterrupt
    assert len([entry for entry in caught.traceback if Path(resfit.__file__).parent in Path(entry.path).parents]) == 1


def test_a_second_interrupt_shows_where_the_loop_was(caplog: pytest.LogCaptureFixture) -> None:
    class Hangs(Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        fit(compiled(), epochs=2, callbacks=[Hangs()])
    assert caught.traceback[-1].name != "call"
    assert "on_train_batch_end" in [entry.name for entry in caught.traceback]
    assert "Interrupted at once, in epoch 1. The model holds the result of the last finished step." in caplog.text


def test_an_interrupt_during_a_validation_stops_it_at_its_next_batch() -> None:
    model, recorder = compiled(), Recorder()
    with pytest.raises(KeyboardInterrupt):
        fit(
            model,
            epochs=3,
            validation_data=(images(), labels()),
            callbacks=[Interrupts("on_test_batch_end", 0), recorder],
        )
    assert recorder.names().count("on_test_batch_end") == 1
    assert recorder.names().count("on_train_batch_end") == 3
    assert "on_epoch_end" not in recorder.names()  # half a validation is no result


def test_an_interrupt_at_the_end_of_an_epoch_stops_before_the_next_one() -> None:
    recorder = Recorder()
    with pytest.raises(KeyboardInterrupt):
        fit(compiled(), epochs=3, callbacks=[Interrupts("on_epoch_end", 0), recorder])
    assert recorder.names().count("on_epoch_begin") == 1


def test_the_second_interrupt_stops_at_once() -> None:
    with contextlib.suppress(KeyboardInterrupt), at_batch_boundaries() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.requested  # and we are still here
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_training_works_outside_the_main_thread() -> None:
    losses: list[float] = []
    model = compiled()
    handler = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=lambda: losses.extend(fit(model).history["loss"]))
    thread.start()
    thread.join()
    assert len(losses) == 1
    assert signal.getsignal(signal.SIGINT) is handler


forks = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning", "ignore:.*fork:RuntimeWarning")


def ended_by(number: int, *, inside: bool) -> int:
    """Return the number of the signal that ended a forked process, or 0 if it did not end."""
    with at_batch_boundaries(terminating=inside):
        child = os.fork()
        if not child:
            time.sleep(5)
            os._exit(0)
    os.kill(child, number)  # at once: the child may not have run a line of Python yet
    return os.WTERMSIG(os.waitpid(child, 0)[1])


@forks
@pytest.mark.parametrize("inside", [True, False], ids=["while fit runs", "without fit"])
def test_a_forked_process_ends_on_sigterm(inside: bool) -> None:
    assert ended_by(signal.SIGTERM, inside=inside) == signal.SIGTERM


@forks
def test_a_forked_process_gets_the_handlers_of_the_user_back() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        with at_batch_boundaries(terminating=True) as interrupt:
            child = os.fork()
            if not child:
                os.kill(os.getpid(), signal.SIGTERM)
                os._exit(7 if seen and not interrupt.requested else 1)
            assert os.WEXITSTATUS(os.waitpid(child, 0)[1]) == 7
            assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
    finally:
        signal.signal(signal.SIGTERM, before)


@forks
@pytest.mark.skipif(allocator._glibc_if_wanted() is None, reason="needs glibc")
def test_a_forked_process_returns_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(allocator, "_set", lambda libc, options: told.append(options))
    with allocator.keeping_memory("cpu"):
        allocator._lock.acquire()  # as another thread of the parent may have done
        child = os.fork()
        if not child:
            with allocator.keeping_memory("cpu"):
                pass
            os._exit(7 if told[-2:] == [allocator._LET_GO, allocator._KEEP] else 1)
        allocator._lock.release()
        assert os.WEXITSTATUS(os.waitpid(child, 0)[1]) == 7


def test_a_handler_installed_outside_python_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    handler = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with at_batch_boundaries(terminating=True):
        assert signal.signal(signal.SIGTERM, handler) is signal.SIG_DFL


class Waits:
    """Processes that receive a signal while they wait for each other."""

    def any(self, *flags: bool) -> tuple[bool, ...]:
        if not any(flags):
            os.kill(os.getpid(), signal.SIGTERM)
        return flags

    def raising_together(self) -> Any:
        return contextlib.nullcontext()


def test_sigterm_that_arrives_in_an_exchange_ends_with_143() -> None:
    with contextlib.suppress(SystemExit), at_batch_boundaries(terminating=True) as interrupt:
        boundary = Boundary(Waits(), interrupt, lambda: False)  # type: ignore[arg-type]
        assert not boundary()
        with pytest.raises(SystemExit) as ended:
            boundary()
    assert ended.value.code == 143


class Ends(Callback):
    """A callback that sends SIGTERM to this process in a hook."""

    def __init__(self, hook: str) -> None:
        setattr(self, hook, lambda *_: os.kill(os.getpid(), signal.SIGTERM))


@pytest.mark.representatives("on_train_begin", "on_test_begin")
@pytest.mark.parametrize("hook", ["on_train_begin", "on_test_begin", "on_train_end", "state_dict"])
def test_sigterm_in_any_phase_ends_with_143(hook: str, tmp_path: Path) -> None:
    recorder, validation = Recorder(), (images(), labels())
    with pytest.raises(SystemExit) as ended:
        fit(compiled(), callbacks=[Ends(hook), recorder, Checkpoint(tmp_path)], validation_data=validation)
    assert ended.value.code == 143
    steps = recorder.names().count("on_train_batch_end")
    assert (steps == 0) == (hook == "on_train_begin")
    assert fit(compiled(), callbacks=Checkpoint(tmp_path), validation_data=validation, resume=True).epoch == [0]
