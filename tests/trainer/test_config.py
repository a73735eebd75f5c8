"""`CompileConfig` and `FitConfig` validate themselves, and every field is in the fingerprint of a checkpoint."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from resfit.errors import CompileError, DataError, ResfitError, ResumeError
from resfit.trainer.config import CompileConfig, FitConfig

# Compared in another way: by the program of the step, by the description of the data, or not at all.
NOT_COMPARED = {
    CompileConfig: {
        "optimizer", "learning_rate", "loss", "loss_weights", "metrics", "preprocess", "augment", "replace_preprocess",
    },
    FitConfig: {"verbose", "cache", "resume"},
}  # fmt: skip


@pytest.mark.parametrize("config", [CompileConfig, FitConfig])
def test_every_field_is_in_the_fingerprint(config: Any) -> None:
    names = {field.name for field in dataclasses.fields(config)}
    added = {
        "steps_per_execution",
        "weight_decay",
    } & names  # left out at their defaults, with which earlier versions ran
    assert set(config(**dict.fromkeys(added, 2)).fingerprint()) == names - NOT_COMPARED[config]
    assert set(config().fingerprint()) == names - NOT_COMPARED[config] - added


@pytest.mark.parametrize("config", [CompileConfig, FitConfig])
def test_a_new_field_is_in_the_fingerprint(config: Any) -> None:
    grown = dataclasses.make_dataclass(
        "Grown", [("loss_scale", float, 2.0)], bases=(config,), frozen=True, kw_only=True
    )
    assert grown().fingerprint() == config().fingerprint() | {"loss_scale": 2.0}
    assert grown(loss_scale=4.0).fingerprint() != grown().fingerprint()


def test_a_fingerprint_holds_plain_json_values() -> None:
    found = CompileConfig(seed=np.int64(3), compiler_options={"xla_flag": True}).fingerprint()
    assert type(found["seed"]) is int
    assert found["compiler_options"] == {"xla_flag": "True"}
    assert FitConfig(validation_freq=(2, 4)).fingerprint()["validation_freq"] == [2, 4]
    assert FitConfig(validation_freq={2, 4}).fingerprint()["validation_freq"] == [2, 4]  # type: ignore[arg-type]
    assert FitConfig(validation_freq=np.array([2, 4])).fingerprint()["validation_freq"] == [2, 4]  # type: ignore[arg-type]
    assert type(FitConfig(validation_freq=np.int64(2)).fingerprint()["validation_freq"]) is int  # type: ignore[arg-type]


@pytest.mark.parametrize("config", [CompileConfig(), FitConfig()])
def test_a_config_is_frozen(config: Any) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1


@pytest.mark.parametrize(
    ("config", "arguments", "error", "message"),
    [
        (CompileConfig, {"precision": "float16"}, CompileError, "'bfloat16' or 'auto', got 'float16'"),
        (CompileConfig, {"gradient_accumulation_steps": True}, CompileError, "a positive integer, got True"),
        (CompileConfig, {"ema": 1.0}, CompileError, "between 0 and 1, such as 0.999, got 1.0"),
        (CompileConfig, {"seed": -1}, CompileError, "got -1"),
        (FitConfig, {"epochs": None}, DataError, "epochs to be a positive integer, got None"),
        (FitConfig, {"epochs": 0}, DataError, "epochs to be a positive integer, got 0"),
        (FitConfig, {"steps_per_epoch": 2.0}, DataError, "None for one pass over the data, got 2.0"),
        (FitConfig, {"initial_epoch": -1}, DataError, "0 or more, got -1"),
        (FitConfig, {"initial_epoch": 3, "epochs": 2}, DataError, "no epoch to train"),
        (FitConfig, {"shuffle": "batch"}, DataError, "True or False, got 'batch'"),
        (FitConfig, {"validation_freq": 2.5}, DataError, "or a list of epochs, got 2.5"),
        (FitConfig, {"validation_freq": None}, DataError, "or a list of epochs, got None"),
        (FitConfig, {"validation_freq": "2"}, DataError, "or a list of epochs, got '2'"),
        (FitConfig, {"resume": "always"}, ResumeError, "'inexact', got 'always'"),
    ],
)
def test_a_wrong_value_is_refused(config: Any, arguments: Any, error: type[ResfitError], message: str) -> None:
    with pytest.raises(error, match=message):
        config(**arguments)


@pytest.mark.parametrize(
    ("frequency", "epochs"), [(1, [0, 1, 2, 3]), (2, [1, 3]), (np.int32(3), [2]), ([1, 4], [0, 3])]
)
def test_validation_follows_every_so_many_epochs_or_the_listed_ones(frequency: Any, epochs: list[int]) -> None:
    due = FitConfig(validation_freq=frequency).validates_after
    assert [epoch for epoch in range(4) if due(epoch)] == epochs
    with pytest.raises(DataError, match="positive number of epochs, got 0"):
        _ = FitConfig(validation_freq=0).validates_after
