"""Named schedules are optax's curves, in epochs, over runs of any length."""

import dataclasses
from typing import Any

import jax
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resfit import schedules
from resfit.errors import CompileError
from resfit.schedules import Constant, Cosine, Linear, OneCycle, Schedule, Step, WarmupCosine

NAMES = ["constant", "cosine", "linear", "one_cycle", "step", "warmup_cosine"]
EPOCHS, PER_EPOCH = 20, 10
TOTAL = EPOCHS * PER_EPOCH
PEAK = 0.4

# our schedule and optax's for the same curve
TWINS: dict[str, tuple[Schedule, Any]] = {
    "constant": (Constant(PEAK), optax.constant_schedule(PEAK)),
    "linear": (Linear(PEAK), optax.linear_schedule(PEAK, 0.0, TOTAL)),
    "linear to a tenth": (Linear(PEAK, end=0.1), optax.linear_schedule(PEAK, 0.1 * PEAK, TOTAL)),
    "cosine": (Cosine(PEAK), optax.cosine_decay_schedule(PEAK, TOTAL)),
    "cosine to a tenth": (Cosine(PEAK, end=0.1), optax.cosine_decay_schedule(PEAK, TOTAL, alpha=0.1)),
    "warmup of three": (
        WarmupCosine(PEAK, warmup_epochs=3, end=0.05),
        optax.warmup_cosine_decay_schedule(0.0, PEAK, 3 * PER_EPOCH, TOTAL, end_value=0.05 * PEAK),
    ),
    "warmup of a tenth": (WarmupCosine(PEAK), optax.warmup_cosine_decay_schedule(0.0, PEAK, TOTAL // 10, TOTAL)),
    "steps": (
        Step(PEAK, at=(10, 15), drop=0.2),
        optax.piecewise_constant_schedule(PEAK, {10 * PER_EPOCH: 0.2, 15 * PER_EPOCH: 0.2}),
    ),
    "one cycle": (OneCycle(PEAK), optax.cosine_onecycle_schedule(TOTAL, PEAK)),
    "one cycle, other shape": (
        OneCycle(PEAK, rise=0.5, start=0.1, end=0.001),
        optax.cosine_onecycle_schedule(TOTAL, PEAK, pct_start=0.5, div_factor=10, final_div_factor=100),
    ),
}


def curve(schedule: Schedule, epochs: int = EPOCHS, per_epoch: int = PER_EPOCH) -> np.ndarray:
    """Return the learning rate at every step and at the end."""
    rate = jax.jit(jax.vmap(schedule.over(epochs, per_epoch)))
    return np.asarray(rate(np.arange(epochs * per_epoch + 1)))


@pytest.mark.representatives("constant", "linear to a tenth", "cosine", "steps", "one cycle, other shape")
@pytest.mark.parametrize("name", TWINS)
def test_a_schedule_equals_the_curve_of_optax(name: str) -> None:
    ours, theirs = TWINS[name]
    expected = np.asarray(jax.jit(jax.vmap(theirs))(np.arange(TOTAL + 1)))
    np.testing.assert_allclose(curve(ours), expected, rtol=2e-5, atol=1e-7)


def test_the_comparison_detects_a_warmup_that_is_one_step_longer() -> None:
    longer = WarmupCosine(PEAK, warmup_epochs=2 + 1 / PER_EPOCH)
    assert np.abs(curve(longer) - curve(WarmupCosine(PEAK))).max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
@given(epochs=st.integers(1, 40), per_epoch=st.integers(1, 50), data=st.data())
def test_lengths_can_be_traced(name: str, epochs: int, per_epoch: int, data: st.DataObject) -> None:
    schedule = schedules.get(name, default_peak=PEAK)
    step = data.draw(st.integers(0, epochs * per_epoch))
    traced = TRACED[name](step, epochs * per_epoch, per_epoch)
    np.testing.assert_allclose(traced, schedule.over(epochs, per_epoch)(step), rtol=2e-5, atol=1e-7)


TRACED = {name: jax.jit(schedules.get(name, default_peak=PEAK).rate) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_another_length_of_the_run_does_not_trace_again(name: str) -> None:
    traces = []

    @jax.jit
    def rate(*arguments: Any) -> jax.Array:
        traces.append(arguments)
        return schedules.get(name, default_peak=PEAK).rate(*arguments)

    shorter, longer = rate(12, 15, 5), rate(12, 150, 50)
    assert len(traces) == 1
    if name != "constant":
        assert shorter != longer


@pytest.mark.parametrize("name", NAMES)
@given(epochs=st.integers(1, 12), per_epoch=st.integers(1, 12))
def test_the_learning_rate_stays_between_zero_and_the_peak(name: str, epochs: int, per_epoch: int) -> None:
    rate = TRACED[name]
    rates = np.array([rate(step, epochs * per_epoch, per_epoch) for step in range(epochs * per_epoch)])
    assert np.isfinite(rates).all()
    assert (rates >= 0).all()
    assert (rates <= PEAK * (1 + 1e-6)).all()
    assert rates.max() > 0 or (name == "warmup_cosine" and len(rates) == 1)
    if name in ("constant", "cosine", "linear", "step"):
        assert rates[0] == np.float32(PEAK)
        assert (np.diff(rates) <= 1e-7).all()


@pytest.mark.parametrize("name", NAMES)
def test_after_its_end_a_schedule_keeps_its_last_value(name: str) -> None:
    rate = TRACED[name]
    assert rate(TOTAL + 1, TOTAL, PER_EPOCH) == rate(TOTAL, TOTAL, PER_EPOCH)


def test_the_default_warmup_is_five_epochs_of_a_long_run() -> None:
    np.testing.assert_array_equal(curve(WarmupCosine(PEAK), 90), curve(WarmupCosine(PEAK, warmup_epochs=5), 90))


def test_the_default_steps_are_those_of_imagenet() -> None:
    np.testing.assert_array_equal(curve(Step(PEAK), 90), curve(Step(PEAK, at=(30, 60)), 90))


def test_a_name_uses_the_given_peak_and_an_object_keeps_its_own() -> None:
    assert schedules.get("one_cycle", default_peak=0.3) == OneCycle(0.3)
    assert schedules.get(Linear(end=0.5), default_peak=0.3) == Linear(0.3, end=0.5)
    assert schedules.get(Linear(0.2), default_peak=0.3) == Linear(0.2)


@pytest.mark.parametrize("name", NAMES)
def test_schedules_compare_by_value(name: str) -> None:
    schedule = schedules.get(name, default_peak=PEAK)
    assert {schedule: 1}[dataclasses.replace(schedule)] == 1
    assert schedule != dataclasses.replace(schedule, peak=2 * PEAK)


def test_a_list_of_epochs_gives_the_same_schedule_as_a_tuple() -> None:
    assert hash(Step(PEAK, at=[3, 6])) == hash(Step(PEAK, at=(3, 6)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: schedules.get("cosinus", 0.1), "Unknown learning-rate schedule 'cosinus'"),
        (lambda: schedules.get(0.1), "got float: 0.1"),  # type: ignore[arg-type]
        (lambda: schedules.get("cosine"), r"learning_rate=resfit\.schedules\.Cosine\(peak=0\.1\)"),
        (lambda: Cosine().rate(0, 1, 1), "has no peak learning rate"),
        (lambda: Cosine(-0.1), "Cosine got peak=-0.1"),
        (lambda: Cosine(float("nan")), "got peak=nan"),
        (lambda: Cosine(0.1, end=1.5), "got end=1.5"),
        (lambda: Linear(0.1, end=-1), "got end=-1"),
        (lambda: WarmupCosine(0.1, warmup_epochs=-1), "got warmup_epochs=-1"),
        (lambda: WarmupCosine(0.1, end=2), "got end=2"),
        (lambda: WarmupCosine(0.1, warmup_epochs=5).over(5, 10), "warmup_epochs=5 in a run of 5"),
        (lambda: Step(0.1, at=(60, 30)), "rising epochs"),
        (lambda: Step(0.1, at=()), "rising epochs"),
        (lambda: Step(0.1, drop=10), "got drop=10"),
        (lambda: Step(0.1, at=(30, 60)).over(60, 10), "in a run of 60 epochs, which does not reach"),
        (lambda: OneCycle(0.1, rise=1.0), "got rise=1.0"),
        (lambda: Cosine(0.1).over(0, 10), "a run of 0 epochs"),
    ],
)
def test_invalid_arguments_raise_with_a_remedy(make: Any, words: str) -> None:
    with pytest.raises(CompileError, match=words):
        make()
