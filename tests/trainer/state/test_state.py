"""The named parts of a state, and its flat form."""

from typing import Any

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

import resfit
from resfit.optimizers import Skips
from resfit.trainer.graph.module_plan import plan_module
from resfit.trainer.state.train_state import ScheduleSpan, StateLayout, TrainState, average_of
from tests.helpers import PlainNet, TinyNet, assert_same, compiled, fit

INT32 = st.integers(-(2**31), 2**31 - 1)


def layout_of(optimizer: optax.GradientTransformation | None, *, ema: bool = False) -> StateLayout:
    module = TinyNet(rngs=nnx.Rngs(0))
    return StateLayout(plan_module(module), jax.tree.leaves(nnx.state(module, nnx.Param)), optimizer, ema=ema)


@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.parametrize("optimizer", [None, optax.sgd(0.1), optax.adam(0.1)], ids=["none", "sgd", "adam"])
def test_the_flat_form_has_the_order_of_checkpoints(optimizer: Any, ema: bool) -> None:
    layout = layout_of(optimizer, ema=ema)
    n, count = layout.n_model, layout.n_model + layout.optimizer_tree.num_leaves + 2
    state: TrainState = layout.unflatten(range(count))
    # Checkpoints hold the arrays by number: params, carried arrays, averages, optimizer state, span, step.
    assert state.visible == tuple(range(layout.n_visible))
    assert state.params == tuple(range(layout.n_params))
    assert state.averages == (tuple(range(layout.n_visible, n)) if ema else ())
    assert state.optimizer_state == tuple(range(n, count - 2))
    assert (state.span, state.step) == (count - 2, count - 1)
    assert layout.flatten(state) == tuple(range(count))
    assert layout.unflatten_model(state.visible) == (state.params, state.carried)


def test_the_names_of_the_arrays_are_their_paths() -> None:
    layout = layout_of(None)
    params, statistics = "conv.kernel head.bias head.kernel norm.bias norm.scale", "norm.mean norm.var"
    assert layout.visible_names == f"{params} {statistics}".split()
    values = tuple(range(layout.n_params))
    assert layout.nested(values) == {
        "conv": {"kernel": 0},
        "head": {"bias": 1, "kernel": 2},
        "norm": {"bias": 3, "scale": 4},
    }
    assert layout.unnested(layout.nested(values)) == values


def test_the_learning_rate_and_the_skipped_updates_have_their_index() -> None:
    wrapped = layout_of(resfit.optimizers.skip_non_finite(resfit.optimizers.sgd(0.25)))
    assert wrapped.skips == Skips(finite=1, in_a_row=0, total=2)
    plain = layout_of(resfit.optimizers.sgd(0.25))
    assert plain.skips is None
    params = plain.nested(np.zeros(2, np.float32) for _ in plain.params)
    leaves = jax.tree.leaves(resfit.optimizers.sgd(0.25).init(params))
    assert plain.rate_index is not None
    assert leaves[plain.rate_index] == 0.25
    assert layout_of(optax.sgd(0.25)).rate_index is None
    assert (layout_of(None).rate_index, layout_of(None).skips) == (None, None)


@given(INT32, INT32, INT32, st.floats(width=32, allow_nan=False))
def test_a_packed_span_is_the_same_span(begin: int, steps: int, steps_per_epoch: int, factor: float) -> None:
    span = ScheduleSpan(begin, steps, steps_per_epoch, factor)
    packed = span.packed()
    assert (packed.shape, packed.dtype) == ((4,), np.int32)
    assert ScheduleSpan.unpacked(packed) == span


@pytest.mark.parametrize(
    ("dtype", "kept"), [("bfloat16", "float32"), ("float16", "float32"), ("float32", "float32"), ("int32", "int32")]
)
def test_averages_of_narrow_floats_are_float32(dtype: str, kept: str) -> None:
    assert average_of(jax.numpy.ones(2, dtype)).dtype == kept


def test_many_calls_of_fit_leave_the_arrays_that_the_user_holds() -> None:
    """The state is copied before a step donates it, also by the program that later calls use."""
    held: list[Any] = []
    model = compiled(PlainNet(rngs=nnx.Rngs(0)))
    whole = compiled(PlainNet(rngs=nnx.Rngs(0)))
    for _ in range(7):
        fit(model)
        held.append((model.module.head.kernel.get_raw_value(), model.get_weights()))
    fit(whole, epochs=7)
    assert_same(model.get_weights(), whole.get_weights())
    for kernel, weights in held:
        np.testing.assert_array_equal(kernel, weights[1])
