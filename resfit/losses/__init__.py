"""Losses: pure functions of (logits, labels) that return one value per example.

Argument order is optax's, (logits, labels). Of a function of the user's own the parameter names decide, so that Keras's
(y_true, y_pred) is read as it is meant: see `outputs_first`. What the labels mean is read from their rank and dtype, and anything
ambiguous raises: integer class labels, one-hot or soft targets, and binary labels for a single logit.
Losses with options are small objects, such as `CrossEntropy(label_smoothing=0.1)`; equal ones compare equal.
"""

from resfit.losses.binary import BinaryCrossEntropy, binary_cross_entropy
from resfit.losses.choice import check, get, takes_labels
from resfit.losses.cross_entropy import CrossEntropy, cross_entropy
from resfit.losses.distillation import distillation
from resfit.losses.focal import Focal
from resfit.losses.labels import Loss, Task, check_each_output, check_labels, task
from resfit.losses.order import outputs_first
from resfit.losses.outputs import FINISHES, at_least_float32, class_numbers, probabilities
from resfit.losses.regression import mean_squared_error

__all__ = [
    "FINISHES",
    "BinaryCrossEntropy",
    "CrossEntropy",
    "Focal",
    "Loss",
    "Task",
    "at_least_float32",
    "binary_cross_entropy",
    "check",
    "check_each_output",
    "check_labels",
    "class_numbers",
    "cross_entropy",
    "distillation",
    "get",
    "mean_squared_error",
    "outputs_first",
    "probabilities",
    "takes_labels",
    "task",
]
