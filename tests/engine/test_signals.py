"""Ctrl-C stops at a batch boundary and loses nothing."""

import os
import signal
import threading
from typing import Any

import numpy as np
import pytest

from resfit.callbacks import Callback
from resfit.engine.signals import at_batch_boundaries
from tests.helpers import BATCH, Recorder, compiled, differ, fit, flags, images, labels, values


class Interrupts(Callback):
    """Sends SIGINT to this process in a hook, as Ctrl-C does."""

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
    with at_batch_boundaries() as interrupt:
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
