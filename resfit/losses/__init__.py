"""Losses: pure functions of (logits, labels) that return one value per example.

The argument order is optax's, (logits, labels). For a custom function the parameter names decide, so Keras's order,
(y_true, y_pred), works too: see `outputs_first`. Rank and dtype of the labels decide their meaning: integer class
numbers, one-hot or soft targets, or binary labels for a single logit. Ambiguous labels raise.

Losses with options are small objects, such as `CrossEntropy(label_smoothing=0.1)`. Equal objects compare equal.
"""

from typing import TYPE_CHECKING

from resfit._utils.keywords import check_constructors
from resfit._utils.words import no_attribute
from resfit.losses.binary import BinaryCrossEntropy, binary_cross_entropy
from resfit.losses.consistency import jensen_shannon
from resfit.losses.cross_entropy import CrossEntropy, cross_entropy
from resfit.losses.distillation_loss import distillation
from resfit.losses.focal import Focal
from resfit.losses.labels import Loss, Task, check_each_output, check_labels, multi_hot_row, one_hot, same_shape, task
from resfit.losses.loss_names import LossArgument, check, get, ignore_index, multi_label, takes_labels, weighted
from resfit.losses.order import outputs_first
from resfit.losses.predictions import (
    FINISHES,
    MULTI_LABEL_FINISHES,
    at_least_float32,
    class_numbers,
    each_label,
    each_probability,
    probabilities,
)
from resfit.losses.regression import (
    cosine_similarity,
    hinge,
    huber,
    kl_divergence,
    log_cosh,
    mean_absolute_error,
    mean_absolute_percentage_error,
    mean_squared_error,
    mean_squared_logarithmic_error,
    poisson,
)

__all__ = [
    "FINISHES",
    "MULTI_LABEL_FINISHES",
    "BinaryCrossEntropy",
    "CrossEntropy",
    "Focal",
    "Loss",
    "LossArgument",
    "Task",
    "at_least_float32",
    "binary_cross_entropy",
    "check",
    "check_each_output",
    "check_labels",
    "class_numbers",
    "cosine_similarity",
    "cross_entropy",
    "distillation",
    "each_label",
    "each_probability",
    "get",
    "hinge",
    "huber",
    "ignore_index",
    "jensen_shannon",
    "kl_divergence",
    "log_cosh",
    "mean_absolute_error",
    "mean_absolute_percentage_error",
    "mean_squared_error",
    "mean_squared_logarithmic_error",
    "multi_hot_row",
    "multi_label",
    "one_hot",
    "outputs_first",
    "poisson",
    "probabilities",
    "same_shape",
    "takes_labels",
    "task",
    "weighted",
]

check_constructors(__name__, "loss arguments")

if not TYPE_CHECKING:  # a type checker would accept every name
    __getattr__ = no_attribute(__name__, "loss")
