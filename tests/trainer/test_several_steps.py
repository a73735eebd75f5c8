"""`steps_per_execution`: the same training, with the steps of a group one by one or in one program."""

import itertools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

import resfit
from resfit.errors import CompileError, DataError, ResumeError
from resfit.trainer.devices.placement import Placement
from resfit.trainer.several_steps import grouped, repeated
from tests.helpers import BATCH, PlainNet, Recorder, TinyNet, assert_close, assert_same, compiled, fit, images, labels

N = 36  # four full batches and one of four examples


@pytest.fixture(params=[False, pytest.param(True, id="one_program")])
def one_program(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Run the steps as on a CPU, or as on an accelerator."""
    monkeypatch.setattr(Placement, "loops", property(lambda self: request.param))
    return bool(request.param)


class Losses(resfit.callbacks.Callback):
    """Records the hooks, and the values of each batch."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.seen.append(("begin", batch))

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.seen.append(("end", batch, logs.batch_loss, dict(logs), logs.examples))

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        self.seen.append(("test", batch, dict(logs)))

    def on_predict_batch_end(self, batch: int, logs: Any = None) -> None:
        self.seen.append(("predict", batch, np.asarray(logs["outputs"])))


def trained(module: type[nnx.Module], steps: int, **arguments: Any) -> Any:
    model, losses = compiled(module(rngs=nnx.Rngs(0)), steps_per_execution=steps, **arguments), Losses()
    x, y = images(N), labels(N)
    history = fit(model, x, y, epochs=2, callbacks=[losses], validation_data=(x, y)).history
    evaluated = model.evaluate(x, y, batch_size=BATCH, verbose=0)
    predicted = model.predict(x, batch_size=BATCH, verbose=0, callbacks=[losses])
    return history, model.get_weights(), evaluated, predicted, losses.seen


@pytest.mark.parametrize(
    "steps", [3, pytest.param(2, marks=pytest.mark.slow), pytest.param(50, marks=pytest.mark.slow)]
)
def test_the_results_and_the_log_of_every_batch_are_those_of_single_steps(steps: int, one_program: bool) -> None:
    one, several = (trained(PlainNet, each) for each in (1, steps))
    assert [entry[:2] for entry in one[-1]] == [entry[:2] for entry in several[-1]]
    one, several = ((*found[:-1], [entry[2:] for entry in found[-1]]) for found in (one, several))
    if one_program:
        assert_close(one, several, 1e-6)
    else:
        assert_same(one, several)


@pytest.mark.slow
@pytest.mark.usefixtures("one_program")
@pytest.mark.parametrize(
    "arguments",
    [{"ema": 0.9}, {"gradient_accumulation_steps": 2}, {"learning_rate": "cosine"}, {"optimizer": "adam"},
     {"augment": lambda key, x, y: (x + 0.1 * jax.random.normal(key, x.shape), y)}, {"precision": "bfloat16"}],
    ids=lambda arguments: next(iter(arguments)),
)  # fmt: skip
def test_with_every_part_of_a_step(arguments: dict[str, Any]) -> None:
    tolerance = 2e-2 if "precision" in arguments else 1e-5
    assert_close(*(trained(TinyNet, steps, **arguments)[:4] for steps in (1, 3)), tolerance)


def test_a_group_that_is_not_full_needs_no_other_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Placement, "loops", property(lambda self: True))
    compilations: list[str] = []

    class Counter(resfit.callbacks.Callback):
        def on_compile_begin(self, what: str) -> None:
            compilations.append(what)

    model = compiled(PlainNet(rngs=nnx.Rngs(0)), steps_per_execution=3)
    fit(model, images(N), labels(N), epochs=2, callbacks=[Counter()])
    assert compilations == ["train", "train"]  # for full batches, and for the last one of four examples


@pytest.mark.usefixtures("one_program")
def test_what_a_callback_asks_for_happens_after_the_execution() -> None:
    class Stops(Recorder):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            super().on_train_batch_end(batch, logs)  # type: ignore[misc]
            self.model.stop_training = True

    model, recorder = compiled(PlainNet(rngs=nnx.Rngs(0)), steps_per_execution=3), Stops()
    fit(model, images(N), labels(N), callbacks=[recorder])
    assert [entry[1] for entry in recorder.trace if entry[0] == "on_train_batch_end"] == [0, 1, 2]
    other = compiled(PlainNet(rngs=nnx.Rngs(0)))
    fit(other, images(N), labels(N), steps_per_epoch=3)
    assert_close(model.get_weights(), other.get_weights(), 1e-6)


@pytest.mark.usefixtures("one_program")
def test_validation_by_steps_follows_the_execution_in_which_it_is_due() -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)), steps_per_execution=3)
    history = fit(model, images(64), labels(64), epochs=2, validation_data=(images(8), labels(8)), validation_every=4)
    assert history.validations["step"] == [6, 8, 14, 16]


@pytest.mark.parametrize("stop", [4, pytest.param(8, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("one_program")
def test_a_run_resumes_exactly_at_every_execution(stop: int, tmp_path: Path) -> None:
    class Stop(resfit.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.steps = getattr(self, "steps", 0) + 1
            if self.steps == stop:
                self.model.stop_training = True
                raise KeyboardInterrupt

    def run(folder: Path, *callbacks: Any, steps: int = 2, **arguments: Any) -> Any:
        model = compiled(TinyNet(rngs=nnx.Rngs(0)), steps_per_execution=steps)
        saving = resfit.callbacks.Checkpoint(folder, every=2)
        fit(model, images(N), labels(N), epochs=2, callbacks=[saving, *callbacks], **arguments)
        return model.get_weights()

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", Stop())
    with pytest.raises(ResumeError, match="steps_per_execution was 2, is None"):
        run(tmp_path / "cut", steps=1, resume=True)
    assert_same(run(tmp_path / "cut", resume=True), whole)


@pytest.mark.usefixtures("one_program")
def test_bad_data_in_a_group_leave_the_parameters_of_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resfit.data.sources.arrays._CHECKED_AT_ONCE", 0)
    x, y = images(N), labels(N)
    x[3 * BATCH] = np.nan
    model, before = (compiled(PlainNet(rngs=nnx.Rngs(0)), steps_per_execution=2) for _ in range(2))
    with pytest.raises(DataError, match=rf"x\[{3 * BATCH}\] holds NaN"):
        fit(model, x, y, shuffle=False)
    fit(before, x[: 2 * BATCH], y[: 2 * BATCH], shuffle=False)
    assert_close(model.get_weights(), before.get_weights(), 1e-6)


@pytest.mark.parametrize("steps", [0, 1.5, True])
def test_other_numbers_raise(steps: Any) -> None:
    with pytest.raises(CompileError, match="Expected steps_per_execution to be a positive integer"):
        compiled(PlainNet(rngs=nnx.Rngs(0)), steps_per_execution=steps)


@given(items=st.lists(st.integers(0, 2)), size=st.integers(1, 4))
def test_groups_hold_every_item_once_in_order(items: list[int], size: int) -> None:
    groups = list(grouped(items, size, lambda item: item))
    assert [item for group in groups for item in group] == items
    assert all(0 < len(group) <= size and len(set(group)) == 1 for group in groups)
    for before, after in itertools.pairwise(groups):
        assert len(before) == size or before[0] != after[0]


@given(count=st.integers(1, 4))
def test_a_loop_takes_only_the_first_steps(count: int) -> None:
    batches = tuple(np.float32(i + 1) for i in range(4))
    carry, results = repeated(lambda total, x: (total + x, 2 * x), np.float32(0), batches, count)
    assert float(carry) == sum(batches[:count])
    np.testing.assert_array_equal(results, [2 * x if i < count else 0 for i, x in enumerate(batches)])
