"""Members whose steps one program takes, forced on a CPU: each computes what it computes alone, up to rounding."""

import dataclasses
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from jax.extend.core import Primitive
from jax.interpreters import mlir

import resfit
from resfit import Each, Ensemble
from resfit.callbacks import Callback, Checkpoint, EarlyStopping, LambdaCallback
from resfit.ensemble import parallel
from resfit.ensemble.folds import folded
from resfit.trainer.devices import together as devices_together
from resfit.trainer.devices.placement import CompiledStep
from resfit.trainer.devices.together import Meeting
from tests.ensemble.test_ensemble import HELD_OUT, NETS, X, Y, alone, ensemble, fit, maker, state
from tests.helpers import BATCH, PlainNet, assert_same, counting_compilations, fewer_examples, state_of


class FullNet(nnx.Module):
    """Statistics, random numbers, and parameters."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(64, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.5, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.second = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.second(self.dropout(nnx.relu(self.norm(self.first(x.reshape(len(x), -1))))))


def distance(found: Any, expected: Any) -> float:
    """Return the largest difference of two structures of arrays, relative to values above 1; infinite for NaN."""
    most = 0.0
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        a, b = (np.asarray(_numbers(leaf), np.float64) for leaf in (one, other))
        most = max([most, *np.nan_to_num(np.abs(a - b) / np.maximum(1, np.abs(b)), nan=np.inf).ravel()])
    return most


def _numbers(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


@dataclasses.dataclass
class Steps:
    """The steps that were taken together.

    Attributes:
      sizes: the number of members of each, in order.
      distance: the largest difference of a result from the step that is taken alone, from the same state.
    """

    sizes: list[int]
    distance: float = 0.0


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[Steps]:
    """Take steps together on a CPU, and compare each with the single step from the same state."""
    monkeypatch.setattr(parallel, "computes_several", lambda platform: True)
    found, run = Steps([]), Meeting.run

    def compared(self: Meeting, executable: Any, given: list[Any]) -> Any:
        copies = [jax.tree.map(lambda leaf: leaf.copy(), one) for one in given]  # a single step donates its state
        results = run(self, executable, given)
        if results:
            found.sizes.append(len(given))
            pairs = zip(results, copies, strict=False)
            found.distance = max([found.distance, *(distance(one, executable(*copy)) for one, copy in pairs)])
        return results

    monkeypatch.setattr(Meeting, "run", compared)
    return found


EVERY: dict[str, Any] = NETS | {"all": FullNet}
SETTINGS: dict[str, Any] = {"optimizer": resfit.optimizers.sgd(0.1, momentum=0.9), "learning_rate": None, "ema": 0.9}


@pytest.mark.representatives("all")
@pytest.mark.parametrize("net", EVERY)
def test_each_step_equals_the_step_of_the_member_alone(net: str, steps: Steps) -> None:
    made = ensemble(EVERY[net], [3, 0, 5], **SETTINGS)
    history = fit(made)
    assert steps.sizes == [3] * 8  # three batches and one of the validation, in both epochs
    assert steps.distance < 1e-5
    for i, seed in enumerate([3, 0, 5]):
        single = alone(EVERY[net], seed, **SETTINGS)
        assert distance(state(made.members[i]), state(single)) < 1e-4
        for name, values in single.history.history.items():  # type: ignore[union-attr]
            np.testing.assert_allclose([one[i] for one in history.history[name]], values, rtol=1e-4, atol=1e-6)


# The parts of the arguments (leaves, sums, key, batch) of a step, as they are found in the state of a member.
PARTS: dict[str, Callable[[tuple[Any, ...], Any, tuple[Any, ...]], tuple[Any, ...]]] = {
    "sums": lambda own, _, other: (own[0], other[1], *own[2:]),
    "random key": lambda own, _, other: (*own[:2], other[2], own[3]),
    "batch": lambda own, _, other: (*own[:3], other[3]),
} | {
    part: lambda own, layout, other, part=part: (_with(layout, part, own[0], other[0]), *own[1:])
    for part in ("params", "carried", "averages", "optimizer_state", "step")
}


def _with(layout: Any, part: str, own: Any, other: Any) -> Any:
    return layout.flatten(layout.unflatten(own)._replace(**{part: getattr(layout.unflatten(other), part)}))


@pytest.mark.representatives("carried", "random key", "optimizer_state")
@pytest.mark.parametrize("part", PARTS)
def test_the_comparison_notices_a_part_of_another_member(
    part: str, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, together = ensemble(FullNet, 2, **SETTINGS), CompiledStep.together
    layout = state_of(made.members[0]).layout

    def mixed(self: CompiledStep, calls: Any) -> Any:
        run = together(self, calls)
        return lambda *given: run(given[0], *(PARTS[part](one, layout, given[0]) for one in given[1:]))

    monkeypatch.setattr(CompiledStep, "together", mixed)
    if part == "step":  # the counters of members are equal, unless one of them was trained before
        made.members[1].fit(X, Y, BATCH, 1, 0)
    fit(made, validation_data=None)
    assert steps.distance > 1e-4


@pytest.mark.slow
@fewer_examples(2)
@given(data=st.data())
def test_any_members_equal_the_models_alone(data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "computes_several", lambda platform: True)
        n = data.draw(st.integers(2, 4))
        each = lambda values: data.draw(st.lists(st.sampled_from(values), min_size=n, max_size=n))  # noqa: E731
        net, optimizer = data.draw(st.sampled_from(list(EVERY))), data.draw(st.sampled_from(["sgd", "adamw"]))
        rates, decays, seeds, epochs, rows = (
            each(values) for values in ([0.0, 0.01, 0.1], [0.0, 0.1], [0, 1, 7], [1, 2], [13, 16, 20])
        )
        made = ensemble(EVERY[net], n, optimizer=optimizer, learning_rate=rates, weight_decay=decays, seed=seeds)
        of = [(X[:count], Y[:count]) for count in rows]
        fit(made, x=Each([x for x, _ in of]), y=Each([y for _, y in of]), epochs=Each(epochs))
        for i, (x, y) in enumerate(of):
            model = resfit.Model(EVERY[net](rngs=nnx.Rngs(i)))
            model.compile(optimizer, learning_rate=rates[i], weight_decay=decays[i], seed=seeds[i], dispatch="jit")
            model.fit(x, y, BATCH, epochs[i], 0, validation_data=HELD_OUT)
            # Adam's first updates are the signs of the gradients, which rounding can turn.
            assert distance(state(made.members[i]), state(model)) < (1e-4 if optimizer == "sgd" else 0.5)
            if optimizer == "sgd":
                assert_same(made.members[i].predict(x, verbose=0).argmax(1), model.predict(x, verbose=0).argmax(1))


@pytest.mark.slow
def test_the_number_of_members_and_their_stops_compile_nothing_more(steps: Steps) -> None:
    def compilations(members: int, **arguments: Any) -> int:
        with counting_compilations() as found:
            fit(ensemble(PlainNet, members, learning_rate=[0.1] * members), epochs=4, **arguments)
        return len(found)

    compilations(2)  # the copies of the comparison
    two = compilations(2)
    assert compilations(4) == two
    steps.sizes.clear()
    assert compilations(4, callbacks=lambda member: [_stop_after(member)]) == two
    assert steps.sizes == [4] * 4 + [3] * 4 + [2] * 4  # the last epoch is that of one member
    assert compilations(1) == two - 3  # two sizes of training batches, and one of validation batches


def _stop_after(member: int) -> Callback:
    def stop(epoch: int, logs: Any) -> None:
        callback.model.stop_training = epoch >= member

    callback = LambdaCallback(on_epoch_end=stop)
    return callback


def test_a_member_that_stops_early_stays_as_it_is(steps: Steps) -> None:
    stop = EarlyStopping("loss", min_delta=1e-4, patience=1, restore_best_weights=True)
    rates = [0.1, 1e-9, 0.05]
    made = ensemble(learning_rate=rates)
    losses = np.array(fit(made, epochs=5, callbacks=stop).history["loss"])
    assert np.isnan(losses[:, 1]).tolist() == [False, False, True, True, True]
    assert not np.isnan(losses[:, [0, 2]]).any()
    assert set(steps.sizes) == {2, 3}
    for i, rate in enumerate(rates):
        model = resfit.Model(PlainNet(rngs=nnx.Rngs(i)))
        model.compile("sgd", learning_rate=rate, seed=i, dispatch="jit")
        own = EarlyStopping("loss", min_delta=1e-4, patience=1, restore_best_weights=True)
        model.fit(X, Y, BATCH, 5, 0, own, validation_data=HELD_OUT)
        assert distance(state(made.members[i]), state(model)) < 1e-4


@pytest.mark.slow
def test_folds_of_unequal_size_and_other_losses_take_their_steps_apart(steps: Steps) -> None:
    made = ensemble(PlainNet, 3, metrics=None)
    fit(made, folds=3, validation_data=None, batch_size=7)  # 13, 13 and 14 examples, and 7, 7 and 6 in the folds
    assert set(steps.sizes) == {2, 3}
    for i, part in enumerate(folded(X, Y, None, 3, 3)):
        model = resfit.Model(PlainNet(rngs=nnx.Rngs(i)))
        model.compile("sgd", learning_rate=0.1, seed=i, dispatch="jit", metrics=None)
        model.fit(part["x"], part["y"], 7, 2, 0, validation_data=part["validation_data"])
        assert distance(state(made.members[i]), state(model)) < 1e-4
    steps.sizes.clear()
    losses = [resfit.losses.CrossEntropy(smoothing) for smoothing in (0.1, 0.2)]
    fit(ensemble(PlainNet, 2, loss=Each(losses), metrics=None))
    assert steps.sizes == []


def test_callbacks_can_hold_locks_and_read_other_members(steps: Steps) -> None:
    lock, made = threading.Lock(), ensemble(PlainNet, 2)

    class Reads(Callback):
        def __init__(self, other: int) -> None:
            self.other = other

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            made.members[self.other].get_weights()  # while the other member waits for this one
            with lock:
                self.model.evaluate(*HELD_OUT, verbose=0)

    fit(made, callbacks=lambda member: [Reads(1 - member)])
    assert steps.sizes == [2] * 8


def test_data_can_hold_a_lock_that_another_member_waits_for(
    steps: Steps, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(devices_together, "_PATIENCE", 0.2)
    lock = threading.Lock()

    def batches() -> Iterator[Any]:
        with lock:
            yield from ((X[start : start + BATCH], Y[start : start + BATCH]) for start in (0, BATCH))

    made, whole = ensemble(PlainNet, 3), ensemble(PlainNet, 3)
    hangs = threading.Timer(60, signal.raise_signal, [signal.SIGINT])
    hangs.start()
    try:
        fit(made, x=batches, y=None)
    finally:
        hangs.cancel()
    assert steps.distance < 1e-5
    assert caplog.text.count("hold locks only while a batch is read") == 1
    fit(whole, x=lambda: iter([(X[:BATCH], Y[:BATCH]), (X[BATCH : 2 * BATCH], Y[BATCH : 2 * BATCH])]), y=None)
    for one, other in zip(made.members, whole.members, strict=True):
        assert distance(state(one), state(other)) < 1e-4


def test_an_error_has_the_number_of_the_member_that_made_it(steps: Steps, caplog: pytest.LogCaptureFixture) -> None:
    wrong = Y.copy()
    wrong[-1] = 7
    with pytest.raises(resfit.errors.LabelError) as caught:
        fit(ensemble(PlainNet, 3), y=Each([Y, Y, wrong]))
    assert "member 2" in caught.value.__notes__[0]
    with jax.debug_nans(True), pytest.raises(Exception, match="'nan'") as found:
        fit(ensemble(PlainNet, 3, learning_rate=[0.1, 1e38, 0.1]), epochs=9)
    assert any("member 1" in note for note in found.value.__notes__)
    assert "one by one" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, *(pytest.param(step, marks=pytest.mark.exhaustive) for step in (1, 3, 4, 5, 6))])
def test_a_run_that_stops_at_any_step_resumes(step: int, tmp_path: Path, steps: Steps) -> None:
    whole = ensemble(FullNet)
    fit(whole)

    def run(resume: bool, stops: bool) -> Any:
        def callbacks(member: int) -> list[Callback]:
            own = [Checkpoint(tmp_path / f"member_{member}", every=1)]
            return [*own, LambdaCallback(on_train_batch_end=stop)] if stops and member == 1 else own

        left = [step]

        def stop(batch: int, logs: Any) -> None:
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt

        made = ensemble(FullNet)
        fit(made, resume=resume, callbacks=callbacks)
        return made

    with pytest.raises(KeyboardInterrupt):
        run(False, True)
    resumed = run(True, False)
    for one, other in zip(resumed.members, whole.members, strict=True):
        assert distance(state(one), state(other)) < 1e-4
    assert_same(run(True, False).members[2].get_weights(), resumed.members[2].get_weights())  # of a finished run


@pytest.mark.slow
def test_members_that_resume_at_different_epochs_do_not_wait_for_each_other(tmp_path: Path, steps: Steps) -> None:
    folders = [tmp_path / str(member) for member in range(3)]
    first = ensemble(PlainNet, 3)
    fit(first, epochs=Each([1, 3, 2]), callbacks=lambda member: [Checkpoint(folders[member])])
    again, whole = ensemble(PlainNet, 3), ensemble(PlainNet, 3)
    fit(again, epochs=4, callbacks=lambda member: [Checkpoint(folders[member])], resume=True)
    fit(whole, epochs=4)
    for one, other in zip(again.members, whole.members, strict=True):
        assert distance(state(one), state(other)) < 1e-4


@pytest.mark.slow
def test_a_module_that_vmap_does_not_know_is_trained_one_by_one(steps: Steps, caplog: pytest.LogCaptureFixture) -> None:
    double = Primitive("double_without_batching")
    double.def_abstract_eval(lambda x: x)
    mlir.register_lowering(double, mlir.lower_fun(lambda x: 2 * x, multiple_results=False))

    class Doubled(PlainNet):
        def __call__(self, x: jax.Array) -> jax.Array:
            return super().__call__(double.bind(x))

    made = ensemble(Doubled, 2)
    fit(made)
    assert steps.sizes == []
    assert "one by one" in caplog.text
    assert "double_without_batching" in caplog.text
    for i, member in enumerate(made.members):
        assert_same(state(member), state(alone(Doubled, i)))


@pytest.mark.slow
def test_a_search_takes_the_steps_of_its_trials_together(steps: Steps) -> None:
    space = {"learning_rate": [0.1, 0.01, 0.001, 0.0001]}
    found = resfit.search(
        lambda seed: PlainNet(rngs=nnx.Rngs(seed)), space, (X, Y), trials=4, epochs=2, batch_size=BATCH,
        validation_data=HELD_OUT, compile_arguments={"dispatch": "jit"},
    )  # fmt: skip
    assert steps.sizes
    assert steps.distance < 1e-5
    assert len(found.trials) == 4


def test_members_with_one_device_take_their_steps_together(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    two = jax.devices()[:2]
    monkeypatch.setattr(parallel.jax, "local_devices", lambda: two)
    made = ensemble(FullNet, 4, dispatch="auto", **SETTINGS)
    assert [list(member.snapshot().devices) for member in made.members] == [[device] for device in two * 2]
    fit(made)
    assert steps.sizes == [2] * 16  # on both devices
    assert steps.distance < 1e-5


@pytest.mark.parametrize(
    ("arguments", "own"),
    [
        ([{}, {"dispatch": "auto"}], [0, 1]),
        ([{}, {"dispatch": "sharded"}], [0, None]),
        ([{"dispatch": "jit"}, {}], [None, 1]),
        ([{"batch_norm": "per_replica"}, {}], [None, 1]),
        ([{"batch_norm": "global", "dispatch": "auto"}], [0]),  # not only together with others
    ],
    ids=["auto", "sharded", "jit", "norms of each device", "one member"],
)
def test_small_members_have_one_of_several_devices(
    arguments: list[dict[str, Any]], own: list[int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    members = Ensemble(maker(PlainNet), len(arguments)).members
    assert parallel.devices(members, arguments) == [None if i is None else jax.devices()[i] for i in own]
    with jax.default_device(jax.devices()[3]):
        assert parallel.devices(members, arguments) == [None] * len(arguments)
    monkeypatch.setattr(parallel, "SMALL", 1)
    assert parallel.devices(members, arguments) == [None] * len(arguments)


CHOICES: dict[str, tuple[dict[str, Any], bool]] = {
    "an accelerator": ({}, True),
    "eager": ({"dispatch": "eager"}, False),
    "several steps": ({"steps_per_execution": 2}, False),
    "one step": ({"steps_per_execution": 1}, True),
    "several devices": ({"dispatch": "sharded"}, False),
}


@pytest.mark.parametrize("name", CHOICES)
def test_the_choice_is_made_by_size_and_platform(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, expected = CHOICES[name]
    made = ensemble(PlainNet, 2, **arguments)
    assert not parallel.together(made.members, made._compiled)  # a CPU
    monkeypatch.setattr(parallel, "computes_several", lambda platform: True)
    assert parallel.together(made.members, made._compiled) == expected
    monkeypatch.setattr(parallel, "SMALL", 1)
    assert not parallel.together(made.members, made._compiled)
