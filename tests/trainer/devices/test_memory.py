"""The memory of a training step: known before the first step, for any model, without changing the model."""

from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import resfit
from resfit.errors import CompileError, DataError, LabelError, NotCompiledError
from tests.helpers import (
    BATCH,
    PlainNet,
    TinyNet,
    assert_same,
    compiled,
    compiled_of,
    counting_compilations,
    fit,
    images,
    labels,
    state_of,
    values,
)

X, Y = images(BATCH), labels(BATCH)


def test_the_table_and_the_memory_of_a_step_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    model = compiled()
    model.summary((X, Y))
    text = capsys.readouterr().out
    assert "TinyNet on 8 x 8 x 1" in text
    assert "Memory of a training step on 8 examples, on the device:" in text
    rows = {line.split()[0]: line for line in text.splitlines() if line.startswith("  ")}
    assert {"arguments", "outputs", "temporary", "peak"} <= set(rows)
    assert "KiB" in rows["peak"]


def test_the_step_is_compiled_once_for_the_summary_and_for_fit(capsys: pytest.CaptureFixture[str]) -> None:
    model = compiled()
    with counting_compilations() as found:
        model.summary((X, Y))
        model.summary((X, Y))
        fit(model, X, Y)
        model.summary((X, Y))
    assert len(found) == 1


@pytest.mark.representatives("sharded")
@pytest.mark.parametrize("dispatch", ["jit", "sharded", "pmap"])
def test_nothing_of_the_model_changes(dispatch: str, capsys: pytest.CaptureFixture[str]) -> None:
    model, untouched = compiled(dispatch=dispatch), compiled(dispatch=dispatch)
    before = values(model.module)
    held = model.module.head.kernel[...]
    for i in range(2):
        model.summary((X, Y))
        assert_same(values(model.module), before if i == 0 else values(untouched.module))
        np.asarray(held)  # not donated
        for each in (model, untouched):
            fit(each, X, Y)
    assert model.history.history == untouched.history.history
    where = "on the device" if dispatch == "jit" else "on each of 4 devices"
    assert where in capsys.readouterr().out


@pytest.mark.slow
def test_images_of_either_kind_can_still_be_trained_on_after_a_summary(capsys: pytest.CaptureFixture[str]) -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)))
    model.summary((X.astype(np.uint8), Y))
    fit(model, X, Y)


class TwoInputs(nnx.Module):
    """A module of two inputs, for which there is no table."""

    def __init__(self) -> None:
        self.head = nnx.Linear(128, 3, rngs=nnx.Rngs(0))

    def __call__(self, x: Any) -> jax.Array:
        return self.head(jax.numpy.concatenate([x[name].reshape(x[name].shape[0], -1) for name in ("a", "b")], axis=1))


class Pairs(nnx.Module):
    """A model with a custom loss that calls the module with two arguments."""

    def __init__(self) -> None:
        self.head = nnx.Linear(64, 3, rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array, scale: float) -> jax.Array:
        return self.head(x.reshape(x.shape[0], -1)) * scale


class Scaled(resfit.Model):
    def compute_loss(self, module: Any, x: Any, y: Any, *, key: jax.Array, train: bool) -> Any:
        outputs = module(x, 2.0)
        return ((outputs - 1) ** 2).mean(axis=1), outputs


def test_modules_without_a_table_have_their_memory_shown(capsys: pytest.CaptureFixture[str]) -> None:
    compiled(TwoInputs()).summary(({"a": X, "b": X}, Y))
    compiled(Pairs(), kind=Scaled, metrics=None).summary(X)
    text = capsys.readouterr().out
    assert "the input is PyTreeDef({'a': *, 'b': *}), expected one array" in text
    assert "the module raised on a batch of one example. Pairs.__call__() missing" in text
    assert text.count("Memory of a training step on 8 examples") == 2


def test_a_shape_in_place_of_a_batch_is_the_shape_of_an_image(capsys: pytest.CaptureFixture[str]) -> None:
    model = resfit.Model(TinyNet(rngs=nnx.Rngs(0)))
    model.summary(input_shape=(8, 8, 1))
    expected = capsys.readouterr().out
    model.summary((8, 8, 1))
    assert capsys.readouterr().out == expected != ""


def test_invalid_arguments_raise(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(NotCompiledError, match=r"compile.*summary of a batch"):
        resfit.Model(TinyNet(rngs=nnx.Rngs(0))).summary((X, Y))
    with pytest.raises(CompileError, match="another dispatch"):
        compiled(dispatch="eager").summary((X, Y))
    with pytest.raises(LabelError):
        compiled().summary((X, Y + 5))
    with pytest.raises(DataError, match="a batch is a tuple of 4 entries"):
        compiled().summary((8, 8, 1, 1))


@pytest.mark.optimized
def test_arguments_outputs_and_aliased_memory_match_the_bytes_of_state_and_batch() -> None:
    model = compiled()
    memory, _ = compiled_of(model).trainer.memory(resfit.data.Batch(X, Y, None, None, BATCH))
    state = sum(leaf.nbytes for leaf in state_of(model).leaves)
    assert memory.aliased == state
    assert state + X.nbytes + Y.nbytes < memory.arguments < state + X.nbytes + Y.nbytes + 500
    assert state < memory.outputs < state + 2000  # and sums, the loss, and the pointers to all of them
    assert memory.peak == memory.arguments + memory.outputs - state + memory.temporary
    assert memory.temporary > X.nbytes
