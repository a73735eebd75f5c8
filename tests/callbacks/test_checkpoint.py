"""Checkpoint as a callback: when it saves, and which arguments are valid. tests/faults tests resumed runs."""

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx

from resfit.callbacks import Callback, Checkpoint
from resfit.errors import CallbackError
from tests.helpers import PlainNet, assert_same, compiled, fit


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"keep": 0}, "positive number of checkpoints, got 0"),
        ({"keep": True}, "got True"),
        ({"every": "batch"}, "got every='batch'"),
        ({"every": 0}, "got every=0"),
        ({"every": datetime.timedelta()}, "positive datetime.timedelta"),
        ({"best": "score"}, "lower or a higher 'score' is better"),
        ({"best": "loss", "mode": "least"}, "Unknown mode 'least'"),
    ],
)
def test_invalid_arguments_raise(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(CallbackError, match=said):
        Checkpoint("run", **arguments)


@pytest.mark.parametrize(("every", "expected"), [("epoch", 2), (2, 3 + 2), (datetime.timedelta(days=1), 2)])
def test_it_saves_at_each_interval_at_epoch_ends_and_at_the_end(every: Any, expected: int, tmp_path: Path) -> None:
    """Two epochs of three batches. One more checkpoint marks the run as finished."""
    model = compiled(PlainNet(rngs=nnx.Rngs(0)))
    fit(model, epochs=2, callbacks=[Checkpoint(tmp_path, every=every, keep=100)])
    assert len([path for path in tmp_path.iterdir() if path.name.isdigit()]) == expected + 1


def test_it_does_not_change_the_training(tmp_path: Path) -> None:
    with_it, without = (compiled(PlainNet(rngs=nnx.Rngs(0))) for _ in range(2))
    fit(with_it, epochs=2, callbacks=[Checkpoint(tmp_path, every=1)])
    fit(without, epochs=2)
    np.testing.assert_array_equal(with_it.module.head.kernel[...], without.module.head.kernel[...])


@pytest.mark.representatives("on_train_batch_end")
@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_epoch_end"])
def test_a_checkpoint_contains_assignments_of_a_callback_in_the_same_hook(hook: str, tmp_path: Path) -> None:
    class Halves(Callback):
        def _halve(self, number: int, logs: Any = None) -> None:
            if number == 1:
                self.model.module.head.kernel[...] *= 0.5

    setattr(Halves, hook, Halves._halve)

    class Dies(Callback):
        steps = 0

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.steps += 1
            if self.steps == (3 if hook == "on_train_batch_end" else 7):
                raise InterruptedError

    def made() -> Any:
        return compiled(PlainNet(rngs=nnx.Rngs(0)), ema=0.9)

    whole, cut, resumed = made(), made(), made()
    fit(whole, epochs=3, callbacks=[Halves()])
    with pytest.raises(InterruptedError):
        fit(cut, epochs=3, callbacks=[Checkpoint(tmp_path, every=2), Halves(), Dies()])
    fit(resumed, epochs=3, callbacks=[Checkpoint(tmp_path, every=2), Halves()], resume=True)
    assert_same(resumed.get_weights(), whole.get_weights())
    assert_same(resumed.get_weights("ema"), whole.get_weights("ema"))
