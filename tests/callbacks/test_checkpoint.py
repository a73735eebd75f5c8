"""Checkpoint as a callback: when it asks, and what it takes. What becomes of a run is in tests/faults."""

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx

from resfit.callbacks import Checkpoint
from resfit.errors import CallbackError
from tests.helpers import PlainNet, compiled, fit


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
def test_what_cannot_be_is_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(CallbackError, match=said):
        Checkpoint("run", **arguments)


@pytest.mark.parametrize(("every", "expected"), [("epoch", 2), (2, 3 + 2), (datetime.timedelta(days=1), 2)])
def test_it_saves_when_it_is_due_at_epoch_ends_and_at_the_end(every: Any, expected: int, tmp_path: Path) -> None:
    """Two epochs of three batches; one checkpoint more says that the run is finished."""
    model = compiled(PlainNet(rngs=nnx.Rngs(0)))
    fit(model, epochs=2, callbacks=[Checkpoint(tmp_path, every=every, keep=100)])
    assert len([path for path in tmp_path.iterdir() if path.name.isdigit()]) == expected + 1


def test_training_with_it_is_training_without_it(tmp_path: Path) -> None:
    with_it, without = (compiled(PlainNet(rngs=nnx.Rngs(0))) for _ in range(2))
    fit(with_it, epochs=2, callbacks=[Checkpoint(tmp_path, every=1)])
    fit(without, epochs=2)
    np.testing.assert_array_equal(with_it.module.head.kernel[...], without.module.head.kernel[...])
