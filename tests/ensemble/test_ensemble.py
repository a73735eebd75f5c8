"""An ensemble: each member computes what it computes alone, and the members share one program."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

import resfit
from resfit import Each, Ensemble
from resfit.callbacks import Callback, Checkpoint, EarlyStopping, LambdaCallback
from resfit.ensemble import EnsembleHistory
from resfit.trainer.loop import interrupts
from tests.helpers import (
    BATCH,
    PlainNet,
    TinyNet,
    assert_close,
    assert_same,
    counting_compilations,
    fewer_examples,
    images,
    labels,
    state_of,
    values,
)

X, Y = images(), labels()
HELD_OUT = images(8, 3), labels(8)


class DropoutNet(nnx.Module):
    """Dropout between two dense layers: random numbers in every step."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(64, 8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.second = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.second(self.dropout(nnx.relu(self.first(x.reshape(len(x), -1)))))


class SharedNet(nnx.Module):
    """Two layers with one kernel."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(64, 64, rngs=rngs)
        self.second = nnx.Linear(64, 64, rngs=rngs)
        self.second.kernel = self.first.kernel
        self.head = nnx.Linear(64, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.second(nnx.relu(self.first(x.reshape(len(x), -1)))))


class Count(nnx.Variable[Any]):
    """A custom Variable."""


class CustomNet(nnx.Module):
    """A custom Variable that every training step moves, a parameter that is no layer, and the mode as an argument."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.calls = Count(jnp.zeros((), jnp.float32))
        self.kernel = nnx.Param(0.1 * jax.random.normal(rngs.params(), (64, 3)))

    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        if train:
            self.calls[...] = self.calls[...] + jnp.abs(x).mean()
        return x.reshape(len(x), -1) @ self.kernel[...] + self.calls[...]


NETS: dict[str, Callable[..., nnx.Module]] = {
    "plain": PlainNet,
    "batch norm": TinyNet,
    "dropout": DropoutNet,
    "shared parameter": SharedNet,
    "custom variable": CustomNet,
}


def maker(net: Callable[..., nnx.Module]) -> Callable[[int], nnx.Module]:
    return lambda seed: net(rngs=nnx.Rngs(seed))


def ensemble(net: Callable[..., nnx.Module] = PlainNet, members: Any = 3, **arguments: Any) -> Ensemble:
    """Return a compiled ensemble on one device, whose members can train at the same time."""
    made = Ensemble(maker(net), members)
    made.compile(**{"optimizer": "sgd", "learning_rate": 0.1, "dispatch": "jit", **arguments})
    return made


def fit(of: Ensemble, **arguments: Any) -> EnsembleHistory:
    given = {"batch_size": BATCH, "verbose": 0, "epochs": 2, "validation_data": HELD_OUT, **arguments}
    return of.fit(given.pop("x", X), given.pop("y", Y), **given)


def alone(net: Callable[..., nnx.Module], seed: int, callbacks: Any = None, **arguments: Any) -> resfit.Model:
    """Return the model of one member, trained alone."""
    model = resfit.Model(net(rngs=nnx.Rngs(seed)))
    model.compile(**{"optimizer": "sgd", "learning_rate": 0.1, "dispatch": "jit", "seed": seed, **arguments})
    model.fit(X, Y, BATCH, 2, 0, callbacks, validation_data=HELD_OUT)
    return model


def state(model: resfit.Model) -> list[np.ndarray]:
    """Return everything that training continues from: parameters, statistics, averages, optimizer, keys."""
    found: list[np.ndarray] = state_of(model).on_host()
    return found


# --- equal to the runs alone ------------------------------------------------------------------------------------------

COMPILED: dict[str, dict[str, Any]] = {
    "sgd": {},
    "adamw, averages": {"optimizer": "adamw", "learning_rate": 0.01, "ema": 0.9},
    "augmentation, slices": {"augment": lambda key, x, y: (x + jax.random.normal(key, x.shape), y)},
    "schedule": {"learning_rate": "cosine"},
    "optax": {"optimizer": optax.lion, "learning_rate": 0.01},
}
CASES = [*((net, "sgd") for net in NETS), *(("plain", name) for name in COMPILED if name != "sgd")]


@pytest.mark.representatives("batch norm-sgd", "dropout-sgd")
@pytest.mark.parametrize(("net", "settings"), CASES, ids=map("-".join, CASES))
def test_each_member_equals_the_model_that_is_trained_alone(net: str, settings: str) -> None:
    made = ensemble(NETS[net], [3, 0, 5], **COMPILED[settings])
    history = fit(made)
    for i, seed in enumerate([3, 0, 5]):
        single = alone(NETS[net], seed, **COMPILED[settings])
        assert_same(state(made.members[i]), state(single))
        for name, values_alone in single.history.history.items():  # type: ignore[union-attr]
            assert [float(one[i]) for one in history.history[name]] == values_alone


@pytest.mark.parametrize("dispatch", ["auto", pytest.param("sharded", marks=pytest.mark.slow)])
def test_members_on_several_devices_equal_the_models_alone(dispatch: str) -> None:
    made = ensemble(TinyNet, 2, dispatch=dispatch)
    fit(made)
    for seed, member in enumerate(made.members):
        every = jax.devices()
        assert list(member.snapshot().devices) == ([every[seed]] if dispatch == "auto" else every)
        assert_same(state(member), state(alone(TinyNet, seed, dispatch={"auto": "jit"}.get(dispatch, dispatch))))


RATES = st.lists(st.sampled_from([0.0, 0.01, 0.1, 0.5]), min_size=1, max_size=3)


@fewer_examples(2)
@given(rates=RATES, data=st.data())
def test_each_member_has_its_own_rate_decay_and_seed(rates: list[float], data: st.DataObject) -> None:
    n = len(rates)
    decays = data.draw(st.lists(st.sampled_from([0.0, 0.01, 0.3]), min_size=n, max_size=n))
    seeds = data.draw(st.lists(st.integers(0, 9), min_size=n, max_size=n))
    made = ensemble(PlainNet, n, learning_rate=rates, weight_decay=decays, seed=seeds)
    fit(made)
    for i, (rate, decay, seed) in enumerate(zip(rates, decays, seeds, strict=True)):
        model = resfit.Model(PlainNet(rngs=nnx.Rngs(i)))
        model.compile("sgd", learning_rate=rate, weight_decay=decay, seed=seed, dispatch="jit")
        model.fit(X, Y, BATCH, 2, 0, validation_data=HELD_OUT)
        assert_same(state(made.members[i]), state(model))


@pytest.mark.representatives("adamw")
@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb", "lars", "rmsprop"])
def test_weight_decay_in_the_state_equals_that_of_the_optimizer(name: str) -> None:
    factory, rate = getattr(resfit.optimizers, name), 10 if name == "lars" else 0.1
    models = [resfit.Model(PlainNet(rngs=nnx.Rngs(0))) for _ in range(3)]
    models[0].compile(name, learning_rate=rate, weight_decay=0.3, dispatch="jit")
    models[1].compile(factory(rate, weight_decay=0.3), dispatch="jit")
    models[2].compile(name, learning_rate=rate, weight_decay=0.0, dispatch="jit")
    for model in models:
        model.fit(X, Y, BATCH, 2, 0)
    assert_close(*(values(model.module) for model in models[:2]))
    assert not np.allclose(models[2].get_weights()[1], models[0].get_weights()[1], atol=1e-4)


def test_a_number_as_seed_gives_all_members_one_order() -> None:
    same = Ensemble(lambda _: PlainNet(rngs=nnx.Rngs(0)), 2)
    same.compile("sgd", learning_rate=0.1, seed=4, dispatch="jit")
    fit(same)
    assert_same(*map(state, same.members))
    same.compile("sgd", learning_rate=0.1, dispatch="jit")
    fit(same)
    assert not np.array_equal(*(member.get_weights()[0] for member in same.members))


# Each part of the state of a member, replaced by that of another member: the comparison above would notice.
PARTS: dict[str, tuple[str, Callable[[resfit.Model, resfit.Model], None]]] = {
    "statistics": ("batch norm", lambda one, other: _replace(one, other, "carried")),
    "random keys": ("dropout", lambda one, other: setattr(one._context, "key", other._context.key)),
    "optimizer": ("plain", lambda one, other: _replace(one, other, "optimizer_state")),
    "step counter": ("dropout", lambda one, other: _replace(one, other, "step")),
}


def _replace(one: resfit.Model, other: resfit.Model, part: str) -> None:
    of, taken = state_of(one), getattr(state_of(other).layout.unflatten(state_of(other).copy()), part)
    of.replace(of.layout.flatten(of.arrays._replace(**{part: taken})))


@pytest.mark.representatives("statistics", "random keys", "optimizer")
@pytest.mark.parametrize("part", PARTS)
def test_the_comparison_notices_a_part_of_another_member(part: str) -> None:
    net, replace = PARTS[part]
    made, twin = (ensemble(NETS[net], 2) for _ in range(2))
    for one in (made, twin):
        fit(one)
    other = twin.members[1]
    if part == "step counter":
        other.fit(X, Y, BATCH, 3, 0, initial_epoch=2)
    replace(twin.members[0], other)
    first = [one.members[0].train_on_batch(X[:BATCH], Y[:BATCH]) for one in (made, twin)]
    first += [one.members[0].evaluate(X, Y, verbose=0) for one in (made, twin)]
    assert any(np.any(first[i] != first[i + 1]) for i in (0, 2)) or any(
        not np.array_equal(a, b) for a, b in zip(*(one.members[0].get_weights() for one in (made, twin)), strict=True)
    )


# --- one program ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", ["plain", pytest.param("batch norm", marks=pytest.mark.slow)])
def test_n_members_compile_what_one_member_compiles(net: str) -> None:
    counts = []
    # The first run of a process also compiles small programs that all later ones use.
    before = ensemble(NETS[net], 1, optimizer="adamw", weight_decay=0.1, loss=resfit.losses.CrossEntropy(0.3))
    fit(before)
    before.predict(X, BATCH)
    for members, rates, decays in ((1, 0.1, 0.1), (4, [0.1, 0.2, 0.3, 0.4], [0.0, 0.1, 0.2, 0.3])):
        with counting_compilations() as found:
            made = ensemble(NETS[net], members, optimizer="adamw", learning_rate=rates, weight_decay=decays)
            fit(made)
            made.predict(X, BATCH)
        counts.append(len(found))
    assert counts[0] == counts[1]
    with counting_compilations() as found:  # the negative control: another loss is another program
        fit(ensemble(NETS[net], 2, loss=Each([resfit.losses.CrossEntropy(smoothing) for smoothing in (0.1, 0.2)])))
    with counting_compilations() as one:
        fit(ensemble(NETS[net], 2, loss=resfit.losses.CrossEntropy(0.1)))
    assert len(found) > len(one)


def test_small_networks_train_at_the_same_time_and_others_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    class Together(Callback):
        now, most, lock = 0, 0, threading.Lock()

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            with self.lock:
                Together.now += 1
                Together.most = max(Together.most, Together.now)

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            barrier.wait()
            with self.lock:
                Together.now -= 1

    monkeypatch.setattr("resfit.ensemble.parallel.cores", lambda: 2)
    barrier = threading.Barrier(2, timeout=60)  # each step waits for one of the other member
    fit(ensemble(members=2), callbacks=lambda _: Together())
    assert Together.most == 2
    monkeypatch.setattr("resfit.ensemble.parallel.SMALL", 1)
    barrier = threading.Barrier(1)
    Together.now = Together.most = 0
    fit(ensemble(members=2), callbacks=lambda _: Together())
    assert Together.most == 1


def test_settings_of_jax_reach_the_threads_of_the_members() -> None:
    seen = []
    with jax.default_matmul_precision("highest"), jax.debug_nans(True):
        fit(
            ensemble(members=2),
            callbacks=lambda _: LambdaCallback(
                on_epoch_begin=lambda *_: seen.append(
                    (jax.config.jax_default_matmul_precision, jax.config.jax_debug_nans)
                )  # type: ignore[attr-defined]
            ),
        )
    assert set(seen) == {("highest", True)}


# --- callbacks and logs -----------------------------------------------------------------------------------------------


def test_history_holds_a_value_for_each_member_with_mean_and_standard_error() -> None:
    made = ensemble(members=4)
    history = fit(made, epochs=3)
    assert made.history is history
    assert history.epoch == [0, 1, 2]
    assert sorted(history.history) == ["accuracy", "loss", "val_accuracy", "val_loss"]
    found = np.array(history.history["val_loss"])
    assert found.shape == (3, 4)
    np.testing.assert_allclose(history.mean["val_loss"], found.mean(1))
    np.testing.assert_allclose(history.standard_error["val_loss"], found.std(1, ddof=1) / 2)
    assert [one.history["loss"] for one in history.members] == np.array(history.history["loss"]).T.tolist()
    assert "±" in repr(history)
    assert history._repr_html_().count("<tr>") == 4


def test_a_single_member_has_no_standard_error() -> None:
    history = fit(ensemble(members=1))
    assert np.isnan(history.standard_error["loss"]).all()
    assert np.isfinite(history.mean["loss"]).all()


def test_a_metric_of_several_numbers_and_epochs_without_validation() -> None:
    metrics = {"each": resfit.metrics.accuracy_per_class(3)}
    history = fit(ensemble(members=2, metrics=metrics), epochs=3, validation_freq=2)
    assert history.history["each"][0].shape == (2, 3)
    assert history.epochs["val_loss"] == [1]
    assert history.mean["each"].shape == (3, 3)


def test_a_member_that_stops_early_is_frozen_and_keeps_its_best_weights() -> None:
    rates = [0.1, 1e-9, 0.05]
    stop = EarlyStopping("loss", min_delta=1e-4, patience=1, restore_best_weights=True)
    made = ensemble(learning_rate=rates)
    history = fit(made, epochs=5, callbacks=stop)
    losses = np.array(history.history["loss"])
    assert np.isnan(losses[:, 1]).tolist() == [False, False, True, True, True]
    assert not np.isnan(losses[:, [0, 2]]).any()
    assert np.isfinite(history.mean["loss"]).all()
    assert history.members[1].weights_epoch == 0
    for i, rate in enumerate(rates):
        model = resfit.Model(PlainNet(rngs=nnx.Rngs(i)))
        model.compile("sgd", learning_rate=rate, seed=i, dispatch="jit")
        own = EarlyStopping("loss", min_delta=1e-4, patience=1, restore_best_weights=True)
        model.fit(X, Y, BATCH, 5, 0, own, validation_data=HELD_OUT)
        assert_same(state(made.members[i]), state(model))
    assert stop.best is None  # the callbacks of the members are copies


def test_callbacks_of_the_ensemble_see_all_members_and_can_stop_one_or_all() -> None:
    calls: list[Any] = []

    class Halve(Callback):
        def on_train_begin(self, logs: Any = None) -> None:
            calls.append("begin")

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            calls.append(epoch)

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            calls.append(logs["loss"].shape)
            assert isinstance(self.model, Ensemble)
            assert len(self.model.history.epoch) == epoch + 1
            if epoch == 0:
                self.model.members[int(np.nanargmax(logs["loss"]))].stop_training = True
            if epoch == 2:
                self.model.stop_training = True

        def on_train_end(self, logs: Any = None) -> None:
            calls.append("end")

    history = fit(ensemble(), epochs=6, ensemble_callbacks=Halve())
    assert calls == ["begin", 0, (3,), 1, (3,), 2, (3,), "end"]
    found = np.array(history.history["loss"])
    assert np.isnan(found).sum() == 2
    assert np.isnan(found[1:, found[0].argmax()]).all()


def test_each_gives_every_member_its_own_callbacks() -> None:
    history = fit(ensemble(members=2), epochs=4, callbacks=Each([EarlyStopping("loss", min_delta=9, patience=1), None]))
    assert np.isnan(np.array(history.history["loss"])).sum(0).tolist() == [2, 0]


def test_the_standard_error_has_the_digits_of_the_mean() -> None:
    history = EnsembleHistory()
    history.add(0, {"loss": np.array([0.9870, 0.9874]), "small": np.array([1e-5, 2e-5]), "one": np.array([2.0])})
    assert repr(history).endswith("loss 0.9872 ± 0.0002, small 1.5e-05 ± 5e-06, one 2.0000>")


def test_messages_in_the_log_name_the_member(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("resfit")
    caplog.set_level("INFO")
    made = ensemble(members=3)
    own = [None, EarlyStopping("loss", min_delta=9, verbose=1), None]

    def on_epoch_end(epoch: int, logs: Any) -> None:
        log.info("100 %")
        # Threads that begin after that of the stopped member has ended: the system gives them its number again.
        others = [threading.Thread(target=log.info, args=("another thread",)) for _ in range(3)]
        for other in others:
            other.start()
            other.join()

    whole = LambdaCallback(on_epoch_end=on_epoch_end)
    fit(made, epochs=4, callbacks=Each(own), ensemble_callbacks=whole)
    log.info("after %d", 1)
    messages = [one.getMessage() for one in caplog.records]
    (stopped,) = [one for one in messages if "EarlyStopping" in one]
    assert stopped.startswith("Member 1 of the ensemble: EarlyStopping: stopped after epoch ")
    assert messages.count("100 %") == 4  # of the ensemble
    assert messages.count("another thread") == 12
    assert messages[-1] == "after 1"
    assert not log.filters


@pytest.mark.parametrize("where", ["member", "ensemble"])
def test_an_error_of_a_callback_stops_all_members(where: str, caplog: pytest.LogCaptureFixture) -> None:
    class Fails(Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if epoch == 1:
                raise RuntimeError("no more")

    made = ensemble()
    own = (lambda member: [Fails()] if member == 1 else []) if where == "member" else None
    with pytest.raises(RuntimeError, match="no more") as caught:
        fit(made, epochs=50, callbacks=own, ensemble_callbacks=Fails() if where == "ensemble" else None)
    assert (getattr(caught.value, "__notes__", [""])[0]).startswith("This happened in member 1") == (where == "member")
    assert "nterrupt" not in caplog.text  # nobody pressed Ctrl-C
    assert max(len(member.history.epoch) for member in made.members) < 5  # type: ignore[union-attr]
    assert np.isfinite(fit(made).mean["loss"]).all()  # and the ensemble can be trained again


def test_an_unknown_verbose_raises() -> None:
    with pytest.raises(resfit.errors.DataError, match="got 7"):
        fit(ensemble(members=1), verbose=7)


def test_a_line_for_each_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    fit(ensemble(), verbose=1)
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["epoch", "loss", "accuracy", "val_loss", "val_accuracy"]
    assert [line.split()[0] for line in lines] == ["1/2", "2/2"]
    assert all(line.count("±") == 4 for line in lines)


# --- resume -----------------------------------------------------------------------------------------------------------


class Stops(Callback):
    """Raise after a step, counted over the epochs."""

    def __init__(self, step: int) -> None:
        self.left = step

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


@pytest.mark.representatives("4")
@pytest.mark.parametrize("step", range(1, 7))
def test_a_run_that_stops_at_any_step_resumes_exactly(step: int, tmp_path: Path) -> None:
    whole = ensemble(DropoutNet, optimizer="adamw")
    expected = fit(whole)

    def run(resume: bool, *more: Callback) -> Ensemble:
        made = ensemble(DropoutNet, optimizer="adamw")
        checkpoint = Checkpoint(tmp_path, every=1)
        own = None if not more else lambda member: [_of_member(checkpoint, member), *(more if member == 1 else ())]
        fit(made, resume=resume, callbacks=own or checkpoint)
        return made

    with pytest.raises(KeyboardInterrupt):
        run(False, Stops(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["member_0", "member_1", "member_2"]
    resumed = run(True)
    for one, other in zip(resumed.members, whole.members, strict=True):
        assert_same(state(one), state(other))
    assert resumed.history is not None
    assert_same(resumed.history.history, expected.history)
    assert_same(run(True).members[2].get_weights(), whole.members[2].get_weights())  # of a finished run


@pytest.mark.parametrize("name", ["SIGINT", pytest.param("SIGTERM", marks=pytest.mark.slow)])
def test_a_signal_saves_all_members_and_the_run_resumes_exactly(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stop = EarlyStopping("loss", min_delta=0.05, patience=1)  # one member stops before the signal
    whole = ensemble(learning_rate=[0.1, 1e-6, 0.1])
    expected = fit(whole, epochs=5, callbacks=stop)
    assert np.isnan(np.array(expected.history["loss"])).any()

    def run(resume: bool, *more: Callback) -> Ensemble:
        made = ensemble(learning_rate=[0.1, 1e-6, 0.1])
        given = (one for one in (Checkpoint(tmp_path), stop))  # an iterator serves all members
        fit(made, epochs=5, callbacks=given, resume=resume, ensemble_callbacks=list(more))
        return made

    def signalled(epoch: int, logs: Any) -> None:
        if epoch == 2:
            os.kill(os.getpid(), getattr(signal, name))

    with pytest.raises(KeyboardInterrupt if name == "SIGINT" else SystemExit):
        run(False, LambdaCallback(on_epoch_end=signalled))
    reports = [one.getMessage() for one in caplog.records if one.getMessage().startswith("Interrupted in epoch")]
    if name == "SIGINT":  # one report for all members
        assert len(reports) == 1
        assert "in epoch 4" in reports[0]
        assert repr(str(tmp_path)) in reports[0]
        assert "initial_epoch=3" in reports[0]
    resumed = run(True)
    for one, other in zip(resumed.members, whole.members, strict=True):
        assert_same(state(one), state(other))
    assert resumed.history is not None
    assert_same(resumed.history.history, expected.history)


def test_a_second_signal_leaves_a_member_that_hangs() -> None:
    released = threading.Event()

    class Hangs(Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            while not interrupts._followed.interrupt.requested:  # two signals that wait together are one
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)
            released.wait(60)

    start = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            fit(ensemble(members=2), callbacks=lambda member: [Hangs()] if member else [])
        assert time.monotonic() - start < 40
    finally:
        released.set()


def _of_member(checkpoint: Checkpoint, member: int) -> Checkpoint:
    return Checkpoint(checkpoint.directory / f"member_{member}", every=1)


def test_resume_with_another_weight_decay_raises(tmp_path: Path) -> None:
    fit(ensemble(members=1, weight_decay=0.1), callbacks=Checkpoint(tmp_path))
    with pytest.raises(resfit.errors.ResumeError, match="weight_decay"):
        fit(ensemble(members=1, weight_decay=0.2), callbacks=Checkpoint(tmp_path), epochs=3, resume=True)


# --- folds ------------------------------------------------------------------------------------------------------------


@fewer_examples(1)
@given(
    counts=st.lists(st.integers(0, 9), min_size=2, max_size=4).filter(lambda counts: sum(counts) >= 8),
    folds=st.integers(2, 4),
    one_hot=st.booleans(),
    weighted=st.booleans(),
)
def test_folds_are_a_partition_with_equal_shares_of_each_class(
    counts: list[int], folds: int, one_hot: bool, weighted: bool
) -> None:
    from resfit.ensemble.folds import folded

    y = np.repeat(np.arange(len(counts)), counts)
    x, given_y = np.arange(len(y)), np.eye(len(counts))[y] if one_hot else y
    weight = np.arange(1.0, len(y) + 1) if weighted else None
    parts = folded(x, given_y, weight, folds, 2 * folds)
    assert_same(parts[:folds], parts[folds:])
    assert_same(np.sort(np.concatenate([part["validation_data"][0] for part in parts[:folds]])), x)
    for part in parts:
        held_out = part["validation_data"][0]
        assert_same(np.sort(np.concatenate([part["x"], held_out])), x)
        assert_same(part["y"], given_y[part["x"]])
        for name, count in enumerate(counts):
            assert abs((y[held_out] == name).sum() - count / folds) < 1 + 1e-9
        assert len(part["validation_data"]) == (3 if weighted else 2)
        assert part["sample_weight"] is None or np.array_equal(part["sample_weight"], part["x"] + 1)


def test_each_member_is_validated_on_its_fold() -> None:
    made = ensemble(members=2)
    history = fit(made, folds=2, validation_data=None, batch_size=10)
    from resfit.ensemble.folds import folded

    for i, part in enumerate(folded(X, Y, None, 2, 2)):
        loss, accuracy = made.members[i].evaluate(*part["validation_data"], verbose=0)
        assert history.history["val_accuracy"][-1][i] == accuracy
        assert history.history["val_loss"][-1][i] == pytest.approx(loss, rel=1e-5)


# --- prediction and evaluation ----------------------------------------------------------------------------------------


def softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def test_predict_is_the_mean_of_the_probabilities_of_the_members() -> None:
    made = ensemble()
    fit(made)
    every = np.stack([member.predict(X, verbose=0) for member in made.members])
    expected = softmax(every).mean(0)
    assert_close(made.predict(X), expected, 1e-6)
    assert_same(made.predict(X, outputs="labels"), expected.argmax(1).astype(np.int32))
    assert_same(made.predict(X, members=True, outputs="logits"), every)
    assert_close(made.predict(iter([X[:9], X[9:]]), outputs="logits"), every.mean(0), 1e-6)


def test_evaluate_measures_the_mean_and_each_member_with_calibration() -> None:
    made = ensemble(metrics=["accuracy", "cross_entropy"])
    fit(made)
    weight = np.linspace(0.5, 2, len(X)).astype(np.float32)
    found = made.evaluate(X, Y, sample_weight=weight)
    p = made.predict(X).astype(np.float64)
    each = -np.log(p[np.arange(len(Y)), Y])
    assert found.ensemble["loss"] == pytest.approx((weight * each).mean(), rel=1e-5)
    assert found.ensemble["cross_entropy"] == pytest.approx(each.mean(), rel=1e-5)
    assert found.ensemble["accuracy"] == pytest.approx((p.argmax(1) == Y).mean())
    for i, member in enumerate(made.members):
        alone = member.evaluate(X, Y, verbose=0, sample_weight=weight, return_dict=True)
        assert {name: float(found.members[name][i]) for name in alone} == pytest.approx(alone, rel=1e-5)
        member.compile(loss="auto", metrics=["calibration_error"])
        own = member.evaluate(X, Y, verbose=0, return_dict=True)["calibration_error"]
        assert found.members["calibration_error"][i] == pytest.approx(own, rel=1e-4)
    assert "calibration_error" in repr(found)


class StatesClasses(PlainNet):
    """A network that states the number of its classes, as those of resfit do."""

    spec = SimpleNamespace(num_classes=3)


def test_evaluate_knows_metrics_that_count_by_class() -> None:
    made = ensemble(StatesClasses, 2, metrics=["confusion_matrix", "f1"])
    fit(made, validation_data=None)
    found = made.evaluate(X, Y)
    counts = np.zeros((3, 3))
    np.add.at(counts, (Y, made.predict(X, outputs="labels")), 1)
    assert_close(found.ensemble["confusion_matrix"], counts)
    for i, member in enumerate(made.members):
        for name, value in member.evaluate(X, Y, verbose=0, return_dict=True).items():
            assert_close(found.members[name][i], value)


class OneOutput(PlainNet):
    def __init__(self, *, rngs: nnx.Rngs) -> None:
        super().__init__(1, rngs=rngs)


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


KINDS: dict[str, tuple[Any, dict[str, Any], np.ndarray, Callable[[np.ndarray, np.ndarray], float]]] = {
    "one logit": (
        OneOutput, {}, labels(20, 2),
        lambda z, y: float(-np.log(np.where(y == 1, p := sigmoid(z).mean(0)[:, 0], 1 - p)).mean()),
    ),
    "several labels": (
        PlainNet, {"loss": "binary_cross_entropy"}, np.eye(3, dtype=np.float32)[labels()],
        lambda z, y: float(-np.log(np.where(y == 1, p := sigmoid(z).mean(0), 1 - p)).mean()),
    ),
    "values": (
        OneOutput, {"loss": "mse"}, images(20).mean((1, 2, 3)),
        lambda z, y: float(((z.mean(0)[:, 0] - y) ** 2).mean()),
    ),
    "one class against the rest": (
        PlainNet, {"loss": resfit.losses.BinaryCrossEntropy()}, labels(),
        lambda z, y: float(-np.log(np.where(np.eye(3)[y] == 1, p := sigmoid(z).mean(0), 1 - p)).mean()),
    ),
    "one logit, one against the rest": (
        OneOutput, {"loss": resfit.losses.BinaryCrossEntropy()}, labels(20, 2),
        lambda z, y: float(-np.log(np.where(y == 1, p := sigmoid(z).mean(0)[:, 0], 1 - p)).mean()),
    ),
    "distributions": (
        PlainNet, {"loss": "kl_divergence"}, softmax(images(20)[:, 0, :3, 0]),
        lambda z, y: float((y * np.log(y / softmax(z).mean(0))).sum(1).mean()),
    ),
}  # fmt: skip


@pytest.mark.representatives("one logit", "distributions")
@pytest.mark.parametrize("kind", KINDS)
def test_evaluate_of_other_outputs(kind: str) -> None:
    net, arguments, y, expected = KINDS[kind]
    made = ensemble(net, 2, **arguments)
    fit(made, y=y, validation_data=None)
    found = made.evaluate(X, y)
    logits = made.predict(X, outputs="logits", members=True).astype(np.float64)
    assert found.ensemble["loss"] == pytest.approx(expected(logits, y), rel=1e-4)
    assert ("calibration_error" in found.ensemble) == (kind == "one logit")

    found = made.evaluate(X, y, 7, tta="flip")
    for i, member in enumerate(made.members):
        alone = member.evaluate(X, y, verbose=0, return_dict=True, tta="flip")
        assert {name: float(found.members[name][i]) for name in alone} == pytest.approx(alone, rel=1e-5)
    views = np.stack([logits, made.predict(X[:, :, ::-1], outputs="logits", members=True).astype(np.float64)])
    # `evaluate` averages the outputs of the views for this loss, and the probabilities of the members.
    seen = views.mean(0) if kind == "distributions" else views.reshape(-1, *logits.shape[1:])
    assert found.ensemble["loss"] == pytest.approx(expected(seen, y), rel=1e-4)
    assert found.ensemble["loss"] != pytest.approx(made.evaluate(X, y).ensemble["loss"], rel=1e-7)


class ThreeOutputs(nnx.Module):
    """Classes, values, and an output without a loss."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.first, self.second = PlainNet(rngs=rngs), OneOutput(rngs=rngs)

    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        z, value = self.first(x), self.second(x)
        return {"kind": z, "size": value, "free": 2 * value}


@pytest.mark.parametrize("weighted", [False, True])
def test_evaluate_of_several_outputs_combines_each_by_its_loss(weighted: bool) -> None:
    loss, loss_weights = {"kind": "cross_entropy", "size": "mse", "free": None}, {"size": 0.5}
    made = ensemble(ThreeOutputs, 2, loss=loss, loss_weights=loss_weights, metrics={"kind": ["accuracy"]})
    y = {"kind": Y, "size": images(20).mean((1, 2, 3))[:, None]}
    fit(made, y=y, validation_data=None)
    weight = np.linspace(0.5, 2, len(X)).astype(np.float32)
    given = {"kind": weight} if weighted else None
    found = made.evaluate(X, y, 7, given)
    z = jax.tree.map(np.float64, made.predict(X, outputs="logits", members=True))
    p = softmax(z["kind"]).mean(0)
    kind = ((weight if weighted else 1) * -np.log(p[np.arange(len(Y)), Y])).mean()
    size = ((z["size"].mean(0) - y["size"]) ** 2).mean()
    expected = {"loss": kind + 0.5 * size, "kind_loss": kind, "size_loss": size}
    expected["kind_accuracy"] = (p.argmax(1) == Y).mean()
    assert found.ensemble == pytest.approx(expected, rel=1e-4)
    for i, member in enumerate(made.members):
        alone = member.evaluate(X, y, verbose=0, sample_weight=given, return_dict=True)
        assert {name: float(one[i]) for name, one in found.members.items()} == pytest.approx(alone, rel=1e-5)

    found = made.evaluate(X, y, 7, given, tta="flip+shift")
    for i, member in enumerate(made.members):
        alone = member.evaluate(X, y, verbose=0, sample_weight=given, return_dict=True, tta="flip+shift")
        assert {name: float(one[i]) for name, one in found.members.items()} == pytest.approx(alone, rel=1e-5)
    with pytest.raises(resfit.errors.CompileError, match=r"Did you mean 'flip'"):
        made.evaluate(X, y, tta="flips")


def test_predict_of_values_and_with_mirror_images() -> None:
    made = ensemble(members=2)
    every = np.stack([member.predict(X, outputs="probabilities", tta="flip", verbose=0) for member in made.members])
    assert_close(made.predict(X, tta="flip"), every.mean(0), 1e-6)
    made.compile("sgd", loss="mse")
    with pytest.raises(resfit.errors.CompileError, match="outputs='logits'"):
        made.predict(X)


def test_an_ensemble_is_saved_and_loaded(tmp_path: Path) -> None:
    def make(seed: int) -> nnx.Module:
        return resfit.create_model("resnet20", num_classes=3, depths=(1,), widths=(4,), in_channels=1, rngs=seed)

    made = Ensemble(make, 2)
    made.save(tmp_path / "both")
    again = Ensemble.load(tmp_path / "both")
    assert_same(again.predict(X), made.predict(X))
    plain = ensemble(PlainNet, 2)
    fit(plain)
    plain.save(tmp_path / "plain")
    loaded = Ensemble.load(tmp_path / "plain", maker(PlainNet))
    assert_same(loaded.predict(X), plain.predict(X))
    assert repr(loaded).startswith("<Ensemble: 2 members")
    with pytest.raises(resfit.errors.SavedModelError, match="the others would stay"):
        Ensemble(maker(PlainNet), 1).save(tmp_path / "plain")
    with pytest.raises(resfit.errors.SavedModelError, match="member_0"):
        Ensemble.load(tmp_path)


def test_one_module_for_members_of_one_seed_raises() -> None:
    net = PlainNet(rngs=nnx.Rngs(0))
    with pytest.raises(resfit.errors.ModuleError, match=r"make\(0\) returned the module that an earlier call returned"):
        Ensemble(lambda seed: net, members=[0, 0])


def test_make_can_return_a_model_with_its_own_step() -> None:
    class Smoothed(resfit.Model):
        """Label smoothing by a Variable of the module: members with other values run the same program."""

        def compute_loss(self, module: Any, x: Any, y: Any, *, key: Any, train: bool) -> Any:
            logits = module(x)
            targets = optax.smooth_labels(jax.nn.one_hot(y, 3), module.smoothing[...])
            return optax.softmax_cross_entropy(logits, targets), logits

    def make(seed: int) -> resfit.Model:
        net: Any = PlainNet(rngs=nnx.Rngs(0))
        net.smoothing = Count(jnp.float32(0.1 * seed))
        return Smoothed(net)

    counts = []
    for members in (1, 1, 3):  # the first run of a process also compiles small programs that all later ones use
        with counting_compilations() as found:
            made = Ensemble(make, members)
            made.compile("sgd", learning_rate=0.1, seed=0, dispatch="jit")
            history = fit(made)
        counts.append(len(found))
    assert counts[1] == counts[2] <= counts[0]
    assert len({*history.history["loss"][0].tolist()}) == 3
    with pytest.raises(resfit.errors.CompileError, match="overrides compute_loss"):
        made.evaluate(X, Y)


@pytest.mark.parametrize(
    ("call", "part"),
    [
        (lambda made: made.predict(X, member=True), "members"),
        (lambda made: made.fit(X, Y, epoch=1, verbose=0), "epochs"),
        (lambda made: made.compile(learning_rates=0.1), "learning_rate"),
        (lambda _: Ensemble(maker(PlainNet), member=2), "members"),
    ],
)
def test_unknown_arguments_raise(call: Callable[[Ensemble], Any], part: str) -> None:
    with pytest.raises(resfit.errors.ArgumentError, match=part):
        call(ensemble(members=1))
