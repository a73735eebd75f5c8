"""A snapshot survives training, costs nothing until then, and restores the model exactly."""

from typing import Any

import numpy as np
import pytest
from flax import nnx

import resfit
from resfit.callbacks import Checkpoint
from resfit.errors import CompileError
from tests.helpers import PlainNet, assert_same, compiled, fit, images, labels, state_of


def plain(**arguments: Any) -> Any:
    return compiled(PlainNet(rngs=nnx.Rngs(0)), **arguments)


def everything(model: resfit.Model) -> list[np.ndarray]:
    return [np.array(leaf) for leaf in state_of(model).leaves]


@pytest.mark.representatives("jit")
@pytest.mark.parametrize("dispatch", ["jit", "sharded"])
def test_restore_returns_to_the_snapshot_every_time(dispatch: str) -> None:
    model = plain(dispatch=dispatch, ema=0.9)
    fit(model)
    snapshot, before = model.snapshot(), everything(model)
    for _ in range(2):
        fit(model)
        snapshot.restore()
        assert_same(everything(model), before)
        assert_same(model.get_weights(), before[: len(model.get_weights())])


def test_a_snapshot_costs_no_memory_until_training_continues() -> None:
    model = plain()
    fit(model)
    held = [leaf.unsafe_buffer_pointer() for leaf in state_of(model).leaves]
    snapshot = model.snapshot()
    assert [leaf.unsafe_buffer_pointer() for leaf in snapshot.leaves] == held
    before = [np.array(leaf) for leaf in snapshot.leaves]
    fit(model)
    model.train_on_batch(images(8), labels(8))
    assert_same([np.array(leaf) for leaf in snapshot.leaves], before)


def test_a_snapshot_that_a_callback_takes_survives_the_next_step() -> None:
    taken: list[Any] = []
    keep = resfit.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: taken.append((model.snapshot(), model.get_weights()))
    )
    model = plain()
    fit(model, callbacks=[keep])
    assert len(taken) == 3
    for snapshot, weights in taken:
        assert_same([np.array(leaf) for leaf in snapshot.variables], weights)


@pytest.mark.parametrize("compile_first", [True, False])
def test_restore_raises_after_another_compile(compile_first: bool) -> None:
    model = plain() if compile_first else resfit.Model(PlainNet(rngs=nnx.Rngs(0)))
    snapshot = model.snapshot()
    model.compile("adam", dispatch="jit")
    fit(model)
    before = everything(model)
    with pytest.raises(CompileError, match="compiled after the snapshot"):
        snapshot.restore()
    assert_same(everything(model), before)


def test_a_run_after_restore_is_saved_with_the_learning_rate_of_the_snapshot(tmp_path: Any) -> None:
    model = plain(learning_rate=0.1)
    snapshot = model.snapshot()
    model.learning_rate = 0.01
    snapshot.restore()
    fit(model, callbacks=[Checkpoint(tmp_path)])
    again = plain(learning_rate=0.1)
    assert fit(again, callbacks=[Checkpoint(tmp_path)], epochs=2, resume=True).epoch == [0, 1]
