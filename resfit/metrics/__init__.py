"""Metrics, built on clu.metrics: sums on the device, merged inside the step and computed when a log is read.

Every metric counts examples, not batches, so a partial last batch has the right weight. `compile(metrics=...)` also
takes any `clu.metrics.Metric` class and any function of (outputs, labels).

With dense outputs, (batch, height, width, classes), metrics of one label per example count pixels.

Metrics with one value per class, or a matrix, appear in logs as NumPy arrays.
"""

from typing import TYPE_CHECKING

from resfit._utils.keywords import check_constructors
from resfit._utils.words import no_attribute
from resfit.metrics.accuracy import Accuracy, BinaryAccuracy, CrossEntropy, top_k_accuracy
from resfit.metrics.auc import auc
from resfit.metrics.calibration import calibration_error
from resfit.metrics.collection import collection, from_step, names
from resfit.metrics.confusion import accuracy_per_class, confusion_matrix, f1, mean_iou, precision, recall
from resfit.metrics.mean import Loss, Mean
from resfit.metrics.metric_names import MetricsArgument, automatic, by_name
from resfit.metrics.multi_label import reads_one_label

__all__ = [
    "Accuracy",
    "BinaryAccuracy",
    "CrossEntropy",
    "Loss",
    "Mean",
    "MetricsArgument",
    "accuracy_per_class",
    "auc",
    "automatic",
    "by_name",
    "calibration_error",
    "collection",
    "confusion_matrix",
    "f1",
    "from_step",
    "mean_iou",
    "names",
    "precision",
    "reads_one_label",
    "recall",
    "top_k_accuracy",
]

check_constructors(__name__)

if not TYPE_CHECKING:  # a type checker would accept every name
    __getattr__ = no_attribute(__name__, "metrics")
