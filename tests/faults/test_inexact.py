"""Settings that must be equal to resume: each difference is named, and an inexact resume accepts it."""

from pathlib import Path
from typing import Any

import numpy as np
import optax
import pytest
from flax import nnx

import resfit
from resfit.callbacks import Callback, Checkpoint
from resfit.errors import ResumeError
from tests import levels
from tests.faults import runs, twin
from tests.helpers import PlainNet, images, labels, state_of

EXAMPLES, BATCH = twin.EXAMPLES, twin.BATCH


def model(kind: type[nnx.Module] = PlainNet, **arguments: Any) -> resfit.Model:
    return runs.small(kind, **arguments)


def go(folder: Path, *more: Callback, made: resfit.Model | None = None, **arguments: Any) -> resfit.callbacks.History:
    return (made or model()).fit(
        **{
            "x": images(EXAMPLES),
            "y": labels(EXAMPLES),
            "batch_size": BATCH,
            "epochs": 2,
            "callbacks": [Checkpoint(folder, every=1), *more],
            "verbose": 0,
            **arguments,
        }
    )


def stopped(folder: Path, step: int = 2, **arguments: Any) -> None:
    with runs.stopped(SystemExit):
        go(folder, runs.Stops(step, runs.terminate), **arguments)


def other_pixels() -> np.ndarray:
    """Return other inputs for the same labels."""
    return images(EXAMPLES, seed=7)


# The arguments of compile and fit at the start and at the resume, and the message about the difference.
Sides = tuple[dict[str, Any], dict[str, Any]]
DIFFERENCES: dict[str, tuple[Sides, Sides, str]] = {
    "batch size": (({}, {}), ({}, {"batch_size": 5}), "batch_size was 4, is 5"),
    "a larger batch": (({}, {}), ({}, {"batch_size": 10}), "batch_size was 4, is 10"),
    "more epochs under a schedule that spans them": (
        ({"learning_rate": "cosine"}, {}),
        ({"learning_rate": "cosine"}, {"epochs": 4}),
        "epochs was 2, is 4",
    ),
    "steps of an epoch": (({}, {"steps_per_epoch": 3}), ({}, {"steps_per_epoch": 4}), "steps_per_epoch was 3, is 4"),
    "fewer steps than are done of an epoch": (
        ({}, {"steps_per_epoch": 4}),
        ({}, {"steps_per_epoch": 1}),
        "steps_per_epoch was 4, is 1",
    ),
    "4 devices, then 1": (({"dispatch": "sharded"}, {}), ({}, {}), "devices was 4, is 1; dispatch was 'sharded', is"),
    "image sizes": (
        ({}, {"image_sizes": {0: (4, 16)}}),
        ({}, {"image_sizes": {0: (16, 4)}}),
        r"image_sizes\.0 was '\(4, 16\)', is '\(16, 4\)'",
    ),
    "image sizes, then none": (
        ({}, {"image_sizes": {0: (4, 16)}}),
        ({}, {}),
        r"image_sizes\.0 was '\(4, 16\)', is None",
    ),
    "1 device, then 4": (({}, {}), ({"dispatch": "sharded"}, {}), "devices was 1, is 4; dispatch was 'jit', is"),
    "labels": (({}, {}), ({}, {"y": labels(EXAMPLES, seed=9)}), r"data\.labels was \d+, is"),
    "inputs": (({}, {}), ({}, {"x": other_pixels()}), r"data\.values was"),
    "more data": (
        ({}, {}),
        ({}, {"x": images(14), "y": labels(14)}),
        r"data\.examples was 10, is 14; data\.labels was",
    ),
    "weights": (({}, {}), ({}, {"sample_weight": np.full(EXAMPLES, 0.5)}), r"data\.weights was None, is"),
    "class weights": (
        ({}, {"class_weight": {0: 2.0}}),
        ({}, {"class_weight": {0: 2.0, 1: 3.0}}),
        r"data\.weights was \d+, is",
    ),
    "learning rate": (({}, {}), ({"learning_rate": 0.025}, {}), "learning_rate was 0.1.*, is 0.025"),
    "an injected rate": (
        ({"optimizer": optax.inject_hyperparams(optax.sgd)(0.5), "learning_rate": None}, {}),
        ({"optimizer": optax.inject_hyperparams(optax.sgd)(0.25), "learning_rate": None}, {}),
        "learning_rate was 0.5, is 0.25",
    ),
    "schedule": (
        ({"learning_rate": resfit.schedules.Cosine(0.1)}, {}),
        ({"learning_rate": resfit.schedules.Cosine(0.2)}, {}),
        r"learning_rate was 'Cosine\(peak=0.1, end=0.0\)', is 'Cosine\(peak=0.2",
    ),
    "how often is validated": (
        ({}, {"validation_data": twin.VALIDATION}),
        ({}, {"validation_data": twin.VALIDATION, "validation_freq": [2]}),
        r"validation_freq was 1, is \[2\]",
    ),
    "loss": (
        ({}, {}),
        ({"loss": resfit.losses.CrossEntropy(label_smoothing=0.1)}, {}),
        "another program than that of the saved run",
    ),
}


@pytest.mark.representatives("learning rate")
@pytest.mark.parametrize(
    "name",
    levels.only(
        {"batch size", "fewer steps than are done of an epoch", "labels", "learning rate", "loss"}, DIFFERENCES
    ),
)
def test_each_difference_is_named_and_inexact_resume_accepts_it(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (compile_before, fit_before), (compile_now, fit_now), said = DIFFERENCES[name]
    stopped(tmp_path, made=model(**compile_before), **fit_before)
    with pytest.raises(ResumeError, match=said):
        go(tmp_path, made=model(**compile_now), resume=True, **fit_now)
    found = model(**compile_now)
    history = go(tmp_path, made=found, resume="inexact", **fit_now)
    assert history.epoch == list(range(fit_now.get("epochs", 2)))
    assert all(np.isfinite(history.history["loss"]))
    assert state_of(found).steps() > 2  # those before the stop count
    if name != "loss":
        assert "The run resumes inexactly: it was saved with other" in caplog.text
    # The run has the new settings from now on.
    assert go(tmp_path, made=model(**compile_now), resume=True, **fit_now).history == history.history


def test_several_differences_are_all_named(tmp_path: Path) -> None:
    stopped(tmp_path)
    said = (
        r"batch_size was 4, is 5; (cpu_kernels was .*; )?data\.weights was None, is .*; devices was 1, is 4; "
        r"dispatch was 'jit', is 'sharded'; learning_rate was .*; seed was 0, is 1; "
        r"validation_batch_size was None, is 3"
    )
    made = model(seed=1, learning_rate=0.5, dispatch="sharded")
    weights = np.full(EXAMPLES, 0.5)
    with pytest.raises(ResumeError, match=said):
        go(tmp_path, made=made, resume=True, batch_size=5, validation_batch_size=3, sample_weight=weights)


@pytest.mark.parametrize(("resume", "rate"), [(True, 0.025), ("inexact", 0.5)])
def test_exact_resume_keeps_the_learning_rate_and_inexact_resume_takes_the_new_one(
    resume: Any, rate: float, tmp_path: Path
) -> None:
    """The callback that lowered the rate before the stop is part of the run."""
    made = model()

    def lower() -> None:
        made.learning_rate = 0.025

    with runs.stopped(SystemExit):
        go(tmp_path, runs.Stops(1, lower), runs.Stops(2, runs.terminate), made=made)
    again = model(learning_rate=0.1 if resume is True else rate)
    go(tmp_path, made=again, resume=resume)
    assert again.learning_rate == pytest.approx(rate)


def test_inexact_resume_takes_the_new_weight_decay(tmp_path: Path) -> None:
    stopped(tmp_path, made=model(weight_decay=0.1))
    with pytest.raises(ResumeError, match=r"weight_decay was 0\.1, is 0\.5"):
        go(tmp_path, made=model(weight_decay=0.5), resume=True)
    for resume in ("inexact", True):  # from now on, the run has the new one
        made = model(weight_decay=0.5)
        go(tmp_path, made=made, resume=resume)
        state = state_of(made)
        assert state.leaf(state.layout.weight_decay_index) == 0.5


def test_a_learning_rate_that_a_callback_set_is_no_difference_in_the_same_model(tmp_path: Path) -> None:
    made = model()

    def lower() -> None:
        made.learning_rate = 0.025

    stopped_by = [runs.Stops(1, lower), runs.Stops(2, runs.terminate)]
    with runs.stopped(SystemExit):
        go(tmp_path, *stopped_by, made=made)
    go(tmp_path, made=made, resume=True)
    assert made.learning_rate == pytest.approx(0.025)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "now", "kind"),
    levels.only(
        [("jit", "sharded", PlainNet)],
        [("jit", "sharded", PlainNet), ("jit", "sharded", twin.ThinNet), ("sharded", "jit", twin.ThinNet)],
    ),
)
def test_another_number_of_devices_changes_only_the_order_of_additions(
    before: str, now: str, kind: type[nnx.Module], tmp_path: Path
) -> None:
    whole = model(kind, dispatch=before)
    go(tmp_path / "whole", made=whole)
    stopped(tmp_path / "run", made=model(kind, dispatch=before))
    found = model(kind, dispatch=now)
    go(tmp_path / "run", made=found, resume="inexact")
    assert state_of(found).steps() == state_of(whole).steps()
    for u, v in zip(state_of(found).leaves[:-2], state_of(whole).leaves[:-2], strict=True):
        np.testing.assert_allclose(u, v, rtol=1e-3, atol=1e-4)


def test_other_pixels_are_detected_also_in_data_on_the_device(tmp_path: Path) -> None:
    stopped(tmp_path, cache="device")
    with pytest.raises(ResumeError, match=r"data\.values was"):
        go(tmp_path, resume=True, cache="device", x=other_pixels())
