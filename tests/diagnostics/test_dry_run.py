"""A dry run estimates a run from a few of its steps, and restores the model."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import resfit
from resfit.diagnostics.dry_run import DryRun
from resfit.errors import CompileError, DataError, NotCompiledError
from tests.helpers import compiled, fit, images, labels, state_of, values


def everything(model: resfit.Model) -> list[Any]:
    state = state_of(model)
    return [*map(np.array, state.visible()), *map(np.array, state.leaves), np.array(state.epoch)]


@pytest.mark.representatives("True-sharded")
@pytest.mark.parametrize("dispatch", ["jit", "sharded", "eager"])
@pytest.mark.parametrize("trained", [False, True])
def test_the_model_is_the_same_afterwards_bit_for_bit(dispatch: str, trained: bool) -> None:
    x, y = images(64), labels(64)
    model = compiled(dispatch=dispatch, ema=0.9)
    history = fit(model, x, y) if trained else None
    before, in_module = everything(model), values(model.module)
    found = resfit.dry_run(model, x, y, batch_size=8, steps=3)
    for old, new in zip(before, everything(model), strict=True):
        np.testing.assert_array_equal(old, new)
    for name, value in values(model.module).items():
        np.testing.assert_array_equal(in_module[name], value)
    assert model.history is history
    assert not model.stop_training
    assert found.devices == (4 if dispatch == "sharded" else 1)
    assert (found.memory is None) == (dispatch == "eager")


def test_training_after_a_dry_run_matches_training_without_it() -> None:
    x, y = images(32), labels(32)
    tried, plain = compiled(), compiled()
    resfit.dry_run(tried, x, y, batch_size=8, epochs=3, steps=5)
    assert fit(tried, x, y).history == fit(plain, x, y).history


@pytest.mark.parametrize(
    ("examples", "batch_size", "epochs", "steps", "expected"),
    [
        pytest.param(64, 8, 90, 4, (8, 4), id="stops in the first epoch"),
        pytest.param(64, 32, 90, 4, (2, 4), id="several epochs"),
        pytest.param(64, 32, 2, 10, (2, 2), id="the run is shorter"),
        pytest.param(60, 8, 1, 10, (8, 6), id="partial batch"),
    ],
)
def test_steps_are_counted(examples: int, batch_size: int, epochs: int, steps: int, expected: tuple[int, int]) -> None:
    x, y = images(examples), labels(examples)
    found = resfit.dry_run(compiled(), x, y, batch_size=batch_size, epochs=epochs, steps=steps)
    assert (found.steps_per_epoch, found.measured_steps) == expected
    assert found.epochs == epochs
    assert found.input_shapes == (x.shape[1:],)
    assert found.seconds == pytest.approx(epochs * expected[0] * found.seconds_per_step)
    assert found.batch_size == batch_size
    # Batches have the same size, except that the last of an epoch can be smaller.
    assert 0.8 < found.examples_per_second * found.seconds_per_step / batch_size <= 1.0001
    assert 0 <= found.data_wait <= 1


def test_memory_is_that_of_the_summary(capsys: pytest.CaptureFixture[str]) -> None:
    x, y = images(64), labels(64)
    model = compiled()
    found = resfit.dry_run(model, x, y, batch_size=16, steps=1)
    model.summary((x[:16], y[:16]))
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("  peak"))
    assert found.memory
    assert " ".join(row.split()[1:3]) in str(found)


def test_data_of_unknown_length_have_no_estimate() -> None:
    def batches() -> Any:
        for _ in range(6):
            yield images(8), labels(8)

    found = resfit.dry_run(compiled(), batches, steps=2)
    assert (found.steps_per_epoch, found.seconds) == (None, None)
    assert "unknown in an epoch" in str(found)
    assert "unknown for 1 epoch," in str(found)
    assert found.batch_size == 8  # of the data, not the default of batch_size
    assert found.examples_per_second == pytest.approx(8 / found.seconds_per_step)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda m, x, y: resfit.dry_run(m, x, y, batch_size=32), DataError, "run of 2 steps"),
        (lambda m, x, y: resfit.dry_run(m, x, y, batch_size=64), DataError, r"run of 1 step\."),
        (lambda m, x, y: resfit.dry_run(m, iter([(x, y)] * 9)), DataError, "got an iterator, a list_iterator"),
        (lambda m, x, y: resfit.dry_run(m, x, y, steps=0), DataError, "steps"),
        (lambda m, x, y: resfit.dry_run(m.module, x, y), CompileError, "got a TinyNet. Expected a resfit.Model"),
        (lambda m, x, y: resfit.dry_run(resfit.Model(m.module), x, y), NotCompiledError, "dry_run"),
        (lambda m, x, y: resfit.dry_run(m, x, y + 100), resfit.errors.LabelError, "label"),
    ],
)
def test_mistakes_raise_and_leave_the_model(call: Callable[..., Any], error: type, said: str) -> None:
    model, x, y = compiled(), images(64), labels(64)
    before = everything(model)
    with pytest.raises(error, match=said):
        call(model, x, y)
    for old, new in zip(before, everything(model), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_schedule_that_does_not_fit_into_the_run_raises() -> None:
    model = compiled(learning_rate=resfit.schedules.WarmupCosine(warmup_epochs=5))
    with pytest.raises(CompileError, match="warmup_epochs"):
        resfit.dry_run(model, images(64), labels(64), epochs=4, batch_size=8)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(1.0, "100 seconds"), (1.3, "2.2 minutes"), (80.0, "2.2 hours"), (1728.0, "2.0 days")],
)
def test_the_estimate_has_a_readable_unit(seconds: float, said: str) -> None:
    found = DryRun("Net", 1000, ((8, 8, 3),), 32, 4, 2**30, 10, 10, 5, seconds, 32 / seconds, 0.25)
    assert f"estimated  {said} for 10 epochs" in str(found)
    assert "on each of 4 devices" in str(found)
    assert "waited for data in 25% of the time" in str(found)
