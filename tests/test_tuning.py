"""`resfit.search`: the points, equality with single fits, compilations, successive halving, stopped searches."""

import csv
import functools
import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

import resfit
from resfit import errors
from resfit.callbacks import Callback, EarlyStopping
from resfit.ensemble import parallel
from resfit.tuning.points import draw, smoothed
from resfit.tuning.results import SearchResult, Trial, ranked
from resfit.tuning.search import _rungs
from tests.helpers import BATCH, CLASSES, PlainNet, images, labels

LOG = scipy.stats.loguniform(1e-3, 1)


def make(seed: int) -> PlainNet:
    return PlainNet(rngs=nnx.Rngs(seed))


def searched(space: Any, **arguments: Any) -> SearchResult:
    x, y = images(), labels()
    given = {"validation_data": (x, y), "epochs": 2, "batch_size": BATCH} | arguments
    given["compile_arguments"] = {"dispatch": "jit"} | given.get("compile_arguments", {})
    return resfit.search(given.pop("make", make), space, given.pop("data", (x, y)), **given)


# --- points -----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(0, 12))
def test_more_points_begin_with_the_same_points(seed: int, few: int, more: int) -> None:
    spaces: list[dict[str, Any]] = [
        {"learning_rate": LOG, "seed": scipy.stats.randint(0, 9), "optimizer": ["sgd", "adamw"]},
        {"learning_rate": np.geomspace(0.01, 1, 6), "seed": range(4)},
    ]
    for space in spaces:
        points = draw(space, few + more, seed)
        assert draw(space, few, seed) == points[:few]
        assert all(type(value) in (int, float, str) for point in points for value in point.values())
        assert all(1e-3 <= point["learning_rate"] <= 1 for point in points)


def test_a_grid_has_each_point_once() -> None:
    space = {"learning_rate": [0.1, 0.2, 0.3], "seed": (0, 1)}
    whole = draw(space, None, 0)
    assert whole == [{"learning_rate": rate, "seed": seed} for rate in (0.1, 0.2, 0.3) for seed in (0, 1)]
    drawn = draw(space, 6, 1)
    assert drawn != whole
    assert sorted(map(str, drawn)) == sorted(map(str, whole))
    assert len(draw(space, 100, 1)) == 6


def test_distributions_have_twenty_points_by_default_and_another_draw_for_another_seed() -> None:
    assert len({point["learning_rate"] for point in draw({"learning_rate": LOG}, None, 0)}) == 20
    assert draw({"learning_rate": LOG}, 3, 0) != draw({"learning_rate": LOG}, 3, 1)


@pytest.mark.parametrize(
    ("trials", "epochs", "factor", "rungs"),
    [
        (20, 9, None, [(20, 9)]),
        (20, 9, 3, [(20, 1), (6, 3), (2, 9)]),
        (27, 9, 3, [(27, 1), (9, 3), (3, 9)]),
        (4, 100, 2, [(4, 25), (2, 50), (1, 100)]),
        (100, 2, 2, [(100, 1), (50, 2)]),
        (1, 9, 3, [(1, 9)]),
        (9, 1, 3, [(9, 1)]),
    ],
)
def test_the_rounds_of_successive_halving(trials: int, epochs: int, factor: int | None, rungs: Any) -> None:
    assert _rungs(trials, epochs, factor) == rungs


# --- training ---------------------------------------------------------------------------------------------------------


def test_a_trial_has_the_bits_of_a_single_fit() -> None:
    found = searched({"learning_rate": [0.03, 0.3], "weight_decay": [0.0, 0.2], "seed": [3]}, monitor="loss")
    x, y = images(), labels()
    for trial in found.trials:
        point = trial.point
        model = resfit.Model(make(point["seed"]))
        optimizer = functools.partial(resfit.optimizers.sgd, weight_decay=point["weight_decay"])
        model.compile(optimizer, learning_rate=point["learning_rate"], seed=3, dispatch="jit")
        alone = model.fit(x, y, batch_size=BATCH, epochs=2, validation_data=(x, y), verbose=0)
        assert trial.history == alone.history
        assert trial.score == alone.history["loss"][-1]
    assert len({trial.score for trial in found.trials}) == 4
    assert found.best.score == min(trial.score for trial in found.trials)


def test_label_smoothing_of_a_point_equals_the_loss_with_it() -> None:
    found = searched({"label_smoothing": [0.0, 0.3]})
    x, y = images(), labels()
    for trial in found.trials:
        model = resfit.Model(make(0))
        loss = resfit.losses.CrossEntropy(label_smoothing=trial.point["label_smoothing"])
        model.compile("sgd", loss, dispatch="jit")
        alone = model.fit(x, y, batch_size=BATCH, epochs=2, verbose=0)
        np.testing.assert_allclose(trial.history["loss"], alone.history["loss"], rtol=1e-5)
        # The validation has the labels as they are, so that the scores can be compared.
        sharp = model.evaluate(x, np.eye(CLASSES, dtype=np.float32)[y], verbose=0, return_dict=True)
        assert trial.score == pytest.approx(sharp["accuracy"])
    assert found.trials[0].history["loss"] != found.trials[1].history["loss"]


def test_the_labels_of_a_validation_split_are_not_smoothed() -> None:
    x, y = images(), labels()
    cut = len(x) // 2
    space = {"label_smoothing": [0.3]}
    split = searched(space, validation_data=None, fit_arguments={"validation_split": 0.5})
    apart = searched(space, data=(x[:cut], y[:cut]), validation_data=(x[cut:], y[cut:]))
    assert split.trials[0].history == apart.trials[0].history


@pytest.mark.parametrize("kind", ["numbers", "probabilities"])
def test_smoothed_labels_are_probabilities(kind: str) -> None:
    hard = labels(6)
    given = hard if kind == "numbers" else np.eye(CLASSES, dtype=np.float32)[hard]
    found = smoothed(given, 0.3, None)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(found[np.arange(6), hard], 0.8, rtol=1e-6)


@pytest.mark.slow
def test_points_share_the_programs_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from resfit.backends import program_cache

    compiled: list[Any] = []
    compile_ = program_cache._compile
    monkeypatch.setattr(program_cache, "_compile", lambda *given: (compiled.append(1), compile_(*given))[1])

    def programs(space: dict[str, Any], **arguments: Any) -> int:
        resfit.clear_caches()
        compiled.clear()
        searched(space, epochs=1, **arguments)
        return len(compiled)

    names: dict[str, Any] = {
        "learning_rate": [0.1, 0.2], "weight_decay": [0.0, 0.1], "label_smoothing": [0.0, 0.1], "seed": [0, 1],
    }  # fmt: skip
    one = programs({name: values[:1] for name, values in names.items()})
    assert one == programs(names, trials=5)
    assert programs(names | {"optimizer": ["sgd", "adamw"]}, trials=5) > one


def test_halving_trains_the_best_longer_and_nothing_twice() -> None:
    begun: list[tuple[int, int]] = []

    class Epochs(Callback):
        def __init__(self, number: int) -> None:
            self.number = number

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            begun.append((self.number, epoch))

    rates = [1e-6, 0.1, 1e-7, 0.05]
    found = searched(
        {"learning_rate": rates}, epochs=4, halving=2, monitor="val_loss", callbacks=lambda number: [Epochs(number)]
    )
    assert [trial.epochs for trial in found.trials] == [1, 4, 1, 2]
    assert sorted(begun) == sorted(set(begun))
    assert [trial.epochs for trial in found.trials] == [sum(who == i for who, _ in begun) for i in range(4)]
    whole = searched({"learning_rate": rates}, epochs=4, monitor="val_loss")
    assert found.best.number == 1
    for trial, complete in zip(found.trials, whole.trials, strict=True):
        assert trial.history == {name: values[: trial.epochs] for name, values in complete.history.items()}


class Stop(Callback):
    """Raise after so many steps of all trials together, as a killed process ends there."""

    def __init__(self, steps: list[int]) -> None:
        self.steps = steps

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.steps[0] -= 1
        if self.steps[0] < 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("halving", [None, 2], ids=["random", "halving"])
@pytest.mark.parametrize("steps", [0, 3, 8, 14, 16])
@pytest.mark.representatives("8-random", "14-halving")
def test_a_stopped_search_continues_to_the_same_result(steps: int, halving: int | None) -> None:
    space = {"learning_rate": LOG, "weight_decay": scipy.stats.uniform(0, 0.1)}
    arguments: dict[str, Any] = {"trials": 4, "epochs": 2, "halving": halving, "monitor": "val_loss"}
    whole = searched(space, **arguments)
    left = [steps]
    with pytest.raises(KeyboardInterrupt):
        searched(space, **arguments, folder="run", callbacks=lambda number: [Stop(left)])
    resumed = searched(space, **arguments, folder="run")
    assert resumed == whole
    assert searched(space, **arguments, folder="run", make=_not_called) == whole


@pytest.mark.parametrize("cores", [1, 3])
@pytest.mark.representatives("3")
def test_a_trial_has_one_device_whatever_trials_are_beside_it(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It continues after halving, or after a stop, with other trials or alone."""
    space = {"learning_rate": [0.1, 1e-6, 0.05, 1e-7, 1e-8]}
    arguments: dict[str, Any] = {"trials": 5, "epochs": 4, "halving": 2, "monitor": "val_loss"}
    arguments["compile_arguments"] = {"dispatch": "auto"}
    whole = searched(space, **arguments)
    monkeypatch.setattr(parallel, "cores", lambda: cores)
    devices: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        searched(
            space, **arguments, folder="run",
            callbacks=lambda number: [Stop([5 if number == whole.best.number else 99])],  # once it is alone
        )  # fmt: skip
    resumed = searched(space, **arguments, folder="run", callbacks=lambda number: [Devices(devices)])
    assert resumed == whole
    assert set(devices) == {1}


@pytest.mark.parametrize(("small", "most"), [(1, 1), (parallel.SMALL, 2)], ids=["large", "small"])
def test_large_networks_are_in_memory_one_at_a_time(small: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "SMALL", small)
    monkeypatch.setattr(parallel, "cores", lambda: 2)
    living: weakref.WeakSet[Any] = weakref.WeakSet()
    counts = []

    def made(seed: int) -> PlainNet:
        module = make(seed)
        living.add(module)
        counts.append(len(living))
        return module

    searched({"learning_rate": LOG}, trials=4, make=made)
    assert counts == [1, most] * 2


class Devices(Callback):
    """Collect the number of devices of every fit."""

    def __init__(self, found: list[int]) -> None:
        self.found = found

    def on_train_begin(self, logs: Any = None) -> None:
        self.found.append(len(self.model.snapshot().devices))


@pytest.mark.parametrize(
    ("folder", "kept"), [(None, "Nothing was saved: pass folder="), ("run", "the same search continues there")]
)
def test_an_interrupted_search_says_what_it_kept(
    folder: str | None, kept: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(KeyboardInterrupt) as caught:
        searched(
            {"learning_rate": LOG}, trials=4, halving=2, folder=folder,
            callbacks=lambda number: [Stop([0])] if number == 3 else [],
        )  # fmt: skip
    assert caught.value.__notes__ == ["This happened in trial 3 of the search."]
    (report,) = [one.getMessage() for one in caplog.records if one.getMessage().startswith("Interrupted")]
    trained, _, finished = report.partition(". Finished trials of this length: ")
    assert trained.startswith("Interrupted in trial")
    assert "3, in training for 1 epoch" in trained
    assert finished.split(".")[0] in ("0", "2", "3")  # by the number of cores
    assert kept in report
    assert "initial_epoch" not in report
    assert "ensemble" not in report


def _not_called(seed: int) -> Any:
    raise AssertionError("a finished search trains nothing")


def test_a_random_search_continues_with_more_trials() -> None:
    few = searched({"learning_rate": LOG}, trials=2, folder="run")
    more = searched({"learning_rate": LOG}, trials=3, folder="run")
    assert more.trials[:2] == few.trials
    assert more == searched({"learning_rate": LOG}, trials=3)
    assert searched({"learning_rate": LOG}, trials=2, folder="run") == few


# --- results ----------------------------------------------------------------------------------------------------------


def result(scores: list[float], mode: str = "max", **values: list[Any]) -> SearchResult:
    points = [dict(zip(values, one, strict=True)) for one in zip(*values.values(), strict=True)]
    return SearchResult(
        tuple(Trial(i, point, 1, score, {}) for i, (point, score) in enumerate(zip(points, scores, strict=True))),
        "val_accuracy", mode,
    )  # fmt: skip


def test_the_best_trial_is_finite_and_trained_the_most_epochs() -> None:
    nan = float("nan")
    assert result([nan, 0.1, 0.5], learning_rate=[1, 2, 3]).best.number == 2
    assert result([nan, 0.1, 0.5], "min", learning_rate=[1, 2, 3]).best.number == 1
    assert result([0.5, 0.5], learning_rate=[1, 2]).best.number == 0
    few = Trial(0, {}, 1, 0.9, {})
    assert SearchResult((few, Trial(1, {}, 3, 0.8, {})), "val_accuracy", "max").best.number == 1
    assert [trial.number for trial in ranked([Trial(0, {}, 1, nan, {}), few], "max")] == [0, 0]


def test_records_are_written_as_csv() -> None:
    found = result([0.25, 0.5], learning_rate=[0.1, 1e-5], optimizer=["sgd", resfit.optimizers.adamw])
    found.to_csv("found.csv")
    with Path("found.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {"trial": "0", "learning_rate": "0.1", "optimizer": "sgd", "epochs": "1", "val_accuracy": "0.25"}
    assert float(rows[1]["learning_rate"]) == 1e-5
    assert " at 0x" not in rows[1]["optimizer"]
    json.dumps(found.records[0])


def test_the_plot_has_a_panel_for_each_value() -> None:
    found = result([0.2, 0.5, 0.4], learning_rate=[1e-3, 0.1, 1.0], seed=[0, 1, 2], optimizer=["sgd", "adamw", "sgd"])
    figure = found.plot()
    panels = {axes.get_xlabel(): axes for axes in figure.axes}
    assert list(panels) == ["learning rate", "seed", "optimizer"]
    assert [panel.get_xscale() for panel in panels.values()] == ["log", "linear", "linear"]
    assert [label.get_text() for label in panels["optimizer"].get_xticklabels()] == ["sgd", "adamw"]
    assert [text.get_text() for text in panels["seed"].get_legend().get_texts()] == ["best  0.5000"]


@pytest.mark.parametrize("cores", [1, 2])
def test_one_module_for_several_trials_raises(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "cores", lambda: cores)  # the trials of one ensemble
    module = make(0)
    with pytest.raises(errors.ModuleError, match=r"make\(0\) returned the module that an earlier call returned"):
        searched({"learning_rate": [0.1, 0.2]}, make=lambda seed: module)


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"space": {}}, errors.ArgumentError, "loguniform"),
        ({"space": {"learning_rate": 0.1}}, errors.ArgumentError, "compile_arguments"),
        ({"space": {"optimizer": "sgd"}}, errors.ArgumentError, "list of values"),
        ({"space": {"learning_rates": [0.1]}}, errors.ArgumentError, "Did you mean 'learning_rate'"),
        ({"space": {"batch_size": [16, 32]}}, errors.ArgumentError, "All trials have the same"),
        ({"n_trials": 3}, errors.ArgumentError, "Use `trials`|Use trials"),
        ({"space": {"seed": [0]}, "compile_arguments": {"seed": 1}}, errors.ArgumentError, "one of them"),
        ({"trials": 0}, errors.ArgumentError, "positive integer"),
        ({"epochs": 0}, errors.ArgumentError, "positive integer"),
        ({"halving": 1}, errors.ArgumentError, "2 or more"),
        ({"space": {"learning_rate": ["cosine"], "seed": [0, 1]}, "halving": 2}, errors.ArgumentError, "spans"),
        ({"validation_data": None}, errors.DataError, "Pass validation_data"),
        ({"monitor": "val_speed"}, errors.CallbackError, "Pass mode"),
        ({"monitor": "val_auc"}, errors.DataError, "val_accuracy"),
        ({"data": iter([])}, errors.DataError, "data is one list_iterator for all trials .* a new iterator.$"),
        ({"space": {"weight_decay": [-1]}}, errors.CompileError, "0 or more"),
        ({"space": {"weight_decay": [0.1], "optimizer": ["adam"]}}, errors.CompileError, "adamw"),
        ({"fit_arguments": {"epochs": 3}}, errors.ArgumentError, r"search\(epochs="),
        ({"fit_arguments": {"resume": True}}, errors.ArgumentError, r"search\(folder="),
        ({"space": {"label_smoothing": [1.0]}}, errors.CompileError, "below 1"),
        ({"space": {"label_smoothing": [0.1]}, "data": [(1, 2)]}, errors.DataError, "bring their labels"),
        ({"space": {"label_smoothing": [0.1]}, "data": (1, "a")}, errors.DataError, "class numbers"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_has_an_error_that_names_the_remedy(arguments: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        searched(**{"space": {"learning_rate": [0.1, 0.2]}} | arguments)


def test_another_search_in_the_folder_raises_with_the_difference() -> None:
    searched({"learning_rate": [0.1]}, folder="run")
    for arguments, name in (({"epochs": 3}, "rungs"), ({"batch_size": 4}, "batch_size"), ({"seed": 1}, "seed")):
        with pytest.raises(errors.ResumeError, match=rf"another search\. {name}: .* before, .* now"):
            searched({"learning_rate": [0.1]}, folder="run", **arguments)
    with pytest.raises(errors.ResumeError, match="points"):
        searched({"learning_rate": [0.2]}, folder="run")


def test_early_stopping_ends_a_trial() -> None:
    found = searched(
        {"learning_rate": [0.0, 0.1]}, epochs=5, callbacks=[EarlyStopping("loss", patience=0)], monitor="val_loss"
    )
    assert len(found.trials[0].history["loss"]) == 2
    assert len(found.trials[1].history["loss"]) > 2


def test_a_trial_that_a_callback_stopped_trains_no_further(caplog: pytest.LogCaptureFixture) -> None:
    stop = EarlyStopping("loss", patience=0, min_delta=9)  # after the second epoch
    arguments = {"halving": 2, "epochs": 8, "trials": 4, "callbacks": stop, "folder": "run"}
    found = searched({"learning_rate": LOG}, **arguments)
    assert [len(trial.history["loss"]) for trial in found.trials] == [2] * 4
    assert sorted(trial.epochs for trial in found.trials) == [2, 2, 4, 8]
    assert "Pass resume=" not in caplog.text  # `search` has no such argument
    assert searched({"learning_rate": LOG}, **arguments, make=_not_called) == found
