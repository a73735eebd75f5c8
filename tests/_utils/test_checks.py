"""Integer arguments: one rule for every argument."""

import datetime
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import resfit
from resfit import augment, callbacks, optimizers
from resfit._utils.checks import int_from, is_int, positive_int
from resfit.metrics import auc, calibration_error, confusion_matrix
from resfit.nets import ResNetSpec
from resfit.transforms.transforms import Transforms

# Arguments that accept a positive integer, each in a call that accepts nothing else.
TAKE_COUNTS: dict[str, Callable[[Any], Any]] = {
    "Checkpoint(keep)": lambda n: callbacks.Checkpoint("runs/a", keep=n),
    "Checkpoint(every)": lambda n: callbacks.Checkpoint("runs/a", every=n),
    "ModelCheckpoint(keep)": lambda n: callbacks.ModelCheckpoint("{epoch}.safetensors", keep=n),
    "ModelCheckpoint(save_freq)": lambda n: callbacks.ModelCheckpoint("{epoch}.safetensors", save_freq=n),
    "RollbackOnNaN(times)": lambda n: callbacks.RollbackOnNaN(times=n),
    "LearningRateScheduler(every)": lambda n: callbacks.LearningRateScheduler(lambda step: 0.1, every=n),
    "pad_crop": augment.pad_crop,
    "random_resized_crop": augment.random_resized_crop,
    "mixup(num_classes)": lambda n: augment.mixup(num_classes=n),
    "auc": auc,
    "calibration_error": calibration_error,
    "confusion_matrix": confusion_matrix,
    "depths": lambda n: ResNetSpec((n,), (8,), "basic"),
    "groups": lambda n: ResNetSpec((1,), (8,), "bottleneck", groups=n),
    "Transforms": lambda n: Transforms(resize=n, crop=n),
}


def test_python_and_numpy_integers_are_integers_and_booleans_are_not() -> None:
    accepted = [3, np.int8(3), np.int64(3), np.uint8(3)]
    refused = [True, np.True_, 3.0, np.float32(3), "3", None, np.array([3]), datetime.timedelta(3)]
    assert all(is_int(value) for value in accepted)
    assert not any(is_int(value) for value in refused)


def test_the_smallest_value_is_accepted_and_the_one_below_raises() -> None:
    assert [is_int(value, least=2) for value in (1, 2, np.int32(1), np.int32(2))] == [False, True, False, True]


def test_a_checked_integer_is_a_plain_int() -> None:
    assert type(positive_int("keep", np.int64(2), ValueError)) is int
    assert type(int_from(0, "patience", np.uint8(0), ValueError)) is int


def test_the_message_contains_the_argument_the_expectation_and_the_value() -> None:
    with pytest.raises(KeyError, match="Expected keep to be a positive number of files, got 'two'"):
        positive_int("keep", "two", KeyError, "a positive number of files")


@pytest.mark.parametrize("argument", TAKE_COUNTS)
def test_a_numpy_integer_is_accepted_like_a_python_integer(argument: str) -> None:
    TAKE_COUNTS[argument](4)
    TAKE_COUNTS[argument](np.int64(4))


@pytest.mark.parametrize("value", [True, 0, -1, 1.5, np.float32(4), None])
@pytest.mark.parametrize("argument", TAKE_COUNTS)
def test_anything_but_a_positive_integer_raises(argument: str, value: Any) -> None:
    if value is None and argument in ("ModelCheckpoint(keep)", "mixup(num_classes)", "groups"):
        pytest.skip("None has a meaning of its own")
    with pytest.raises((ValueError, resfit.errors.ResfitError), match="Expected"):
        TAKE_COUNTS[argument](value)


def test_a_spec_of_numpy_integers_equals_the_spec_of_python_integers() -> None:
    numpy = ResNetSpec(tuple(np.array([1, 2])), tuple(np.array([8, 16])), "basic", num_classes=np.int64(10))  # type: ignore[arg-type]
    plain = ResNetSpec((1, 2), (8, 16), "basic", num_classes=10)
    assert numpy == plain
    assert json.dumps(numpy.to_dict()) == json.dumps(plain.to_dict())


TAKE_NUMBERS: dict[str, Callable[[Any], Any]] = {
    "sam(rho)": lambda number: optimizers.sam(optimizers.sgd(0.1), rho=number),
    "aug_mix(alpha)": lambda number: augment.aug_mix(alpha=number),
    "aug_mix(consistency)": lambda number: augment.aug_mix(consistency=number),
    "StochasticWeightAveraging(learning_rate)": lambda number: callbacks.StochasticWeightAveraging(0, number),
    "flip": augment.flip,
}


@pytest.mark.parametrize("name", TAKE_NUMBERS)
def test_a_number_of_numpy_is_a_number_and_true_is_none(name: str) -> None:
    TAKE_NUMBERS[name](np.float32(0.5))
    with pytest.raises(resfit.errors.ResfitError, match="True"):
        TAKE_NUMBERS[name](True)
