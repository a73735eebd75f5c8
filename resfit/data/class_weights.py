"""The weight of each example by its class, as Keras's class_weight."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from resfit.data.sources.arrays import is_container, structure_of
from resfit.data.values import is_one_hot
from resfit.errors import DataError

_LARGEST_WEIGHT = float(np.finfo(np.float32).max)


def class_weights(y: Any, class_weight: Mapping[int, float]) -> np.ndarray:
    """Return the weight of each example by its class, as Keras's class_weight does; other classes have weight 1.

    Args:
      y: (examples,) or (examples, 1) class numbers, or (examples, classes) one-hot or soft targets; the largest target
        determines the class. Or the same for each pixel, (examples, height, width) or (examples, height, width, 1).
      class_weight: class number -> weight.

    Returns:
      (examples,) float32, or (examples, height, width) for labels of pixels.

    Raises:
      DataError: if the labels have another form, such as several outputs, multi-hot targets or numbers that are not
        whole.

    Example:
      >>> class_weights(np.array([0, 1, 2, 1]), {1: 2.0})
      array([1., 2., 1., 2.], dtype=float32)
    """
    names = check_class_weight(class_weight)
    y = _labels_for_class_weight(y)
    if y.dtype.kind in "OUS":
        return np.ones(len(y), np.float32)  # `as_arrays` raises for these labels
    targets = y.ndim > 1 and y.shape[-1] > 1 and (y.ndim == 2 or _are_targets(y))
    if targets and names and max(names) >= y.shape[-1]:
        raise DataError(
            f"class_weight has the class {max(names)}, but the labels have {y.shape[-1]} columns. Expected class "
            f"numbers from 0 to {y.shape[-1] - 1}. Remove the other classes."
        )
    if targets:
        _check_one_class_each(y.reshape(-1, y.shape[-1]))
    classes = y.argmax(axis=-1) if targets else y.reshape(y.shape[:-1] if y.ndim > 1 and y.shape[-1] == 1 else y.shape)
    if not targets:
        _check_whole(classes)
    largest = max(names, default=-1)
    table = np.ones(largest + 3, np.float32)  # all classes above the largest share an entry, and all below 0
    table[list(names)] = list(names.values())
    weights: np.ndarray = table[np.clip(classes, -1, largest + 1).astype(np.int64)]
    return weights


def _check_whole(classes: np.ndarray) -> None:
    if classes.dtype.kind == "f" and (off := classes[classes != np.floor(classes)]).size:
        raise DataError(
            f"class_weight weighs each example by its class, and a label is {off[0]}. Expected class numbers, such as "
            "0 and 1, or a target for each class, (examples, classes). For other targets leave class_weight out and "
            "pass sample_weight."
        )


def _are_targets(y: np.ndarray) -> bool:
    """Return True if labels of pixels are one row of targets for each pixel, not class numbers."""
    return is_one_hot(y) or bool((y != np.floor(y)).any())


def _labels_for_class_weight(y: Any) -> np.ndarray:
    if is_container(y):
        raise DataError(
            f"class_weight needs labels as one array, (examples,) or (examples, classes); got a {structure_of(y)}. "
            "Leave class_weight out and pass weights by output, such as sample_weight={'a': np.array([1.0, 5.0])"
            "[y['a']]}, where entry k is the weight of class k."
        )
    labels = np.asarray(y)
    if y is None or labels.ndim < 1:
        found = "none" if y is None or labels.shape == () else f"{labels!r:.60}"
        raise DataError(
            f"class_weight needs labels as one array, (examples,) or (examples, classes); got {found}. Pass y, or "
            "leave class_weight out and pass sample_weight."
        )
    return labels


def _check_one_class_each(targets: np.ndarray) -> None:
    sums = targets.sum(axis=1, dtype=np.float64)
    off = np.flatnonzero(~(np.abs(sums - 1) <= 1e-3))
    if len(off):
        raise DataError(
            f"class_weight weighs each example by its one class, but row {off[0]} of the labels sums to "
            f"{sums[off[0]]:.4g}. Expected one class per example. Weigh several labels inside the loss: loss=lambda "
            "logits, labels: (weights * optax.sigmoid_binary_cross_entropy(logits, labels)).mean(axis=1). For a class "
            "number at each position, pass labels (examples, positions, 1), such as y[..., None]."
        )


def check_class_weight(class_weight: Any) -> dict[int, float]:
    """Return `class_weight` as class number -> weight.

    Raises:
      DataError: if `class_weight` is not a mapping of class numbers to finite weights >= 0.
    """
    if not isinstance(class_weight, Mapping):
        raise DataError(
            f"class_weight is {class_weight!r:.60}. Expected a dict of class numbers and weights, such as "
            "{0: 1.0, 1: 5.0}. For balanced classes, pass dict(enumerate(len(y) / (n * np.bincount(y)))) with n "
            "classes; for a list of weights, dict(enumerate(weights))."
        )
    if any(isinstance(value, Mapping) for value in class_weight.values()):
        raise DataError(
            f"class_weight is {dict(class_weight)!r:.60}, weights for each output. Expected weights for the classes of "
            "one array of labels, {0: 1.0, 1: 5.0}. For several outputs leave class_weight out and pass weights by "
            "output, such as sample_weight={'a': np.array([1.0, 5.0])[y['a']]}, where entry k is the weight of class k."
        )
    try:
        names = {_class_number(key): float(value) for key, value in class_weight.items()}
    except (TypeError, ValueError) as error:
        raise DataError(
            f"class_weight is {dict(class_weight)!r:.60}: {error}. Expected class numbers, as in the labels, and "
            "numbers as weights: {0: 1.0, 1: 5.0}."
        ) from error
    if len(names) < len(class_weight):
        raise DataError(
            f"class_weight is {dict(class_weight)!r:.60}. Expected each class once. Remove the other weights."
        )
    if any(key < 0 or not 0 <= value <= _LARGEST_WEIGHT for key, value in names.items()):
        raise DataError(f"class_weight is {names}. Expected class numbers from 0 and finite weights >= 0.")
    return names


def _class_number(key: Any) -> int:
    number = int(key)
    if not isinstance(key, str) and number != key:
        raise ValueError(f"{key!r} is no class number")
    return number
