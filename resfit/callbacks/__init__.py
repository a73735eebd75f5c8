"""Callbacks, which observe and control training. Subclass `Callback` to write a custom one."""

from typing import TYPE_CHECKING

from resfit._utils.keywords import check_constructors
from resfit._utils.words import no_attribute
from resfit.callbacks.base import Callback
from resfit.callbacks.checkpoint import Checkpoint
from resfit.callbacks.early_stopping import EarlyStopping
from resfit.callbacks.history import History
from resfit.callbacks.lambda_callback import LambdaCallback
from resfit.callbacks.learning_rate_scheduler import LearningRateScheduler
from resfit.callbacks.loggers.clu_metric_writer import CLUMetricWriter
from resfit.callbacks.loggers.csv_logger import CSVLogger
from resfit.callbacks.loggers.json_logger import JSONLogger
from resfit.callbacks.loggers.tensorboard import TensorBoard
from resfit.callbacks.loggers.weights_and_biases import WeightsAndBiases
from resfit.callbacks.model_checkpoint import ModelCheckpoint
from resfit.callbacks.profiler import Profiler
from resfit.callbacks.progress_bar import ProgressBar
from resfit.callbacks.reduce_lr_on_plateau import ReduceLROnPlateau
from resfit.callbacks.rollback_on_nan import RollbackOnNaN
from resfit.callbacks.stochastic_weight_averaging import StochasticWeightAveraging
from resfit.callbacks.swap_ema_weights import SwapEMAWeights
from resfit.callbacks.terminate_on_nan import TerminateOnNaN
from resfit.callbacks.throughput import Throughput
from resfit.callbacks.timer import Timer

__all__ = [
    "CLUMetricWriter",
    "CSVLogger",
    "Callback",
    "Checkpoint",
    "EarlyStopping",
    "History",
    "JSONLogger",
    "LambdaCallback",
    "LearningRateScheduler",
    "ModelCheckpoint",
    "Profiler",
    "ProgressBar",
    "ReduceLROnPlateau",
    "RollbackOnNaN",
    "StochasticWeightAveraging",
    "SwapEMAWeights",
    "TensorBoard",
    "TerminateOnNaN",
    "Throughput",
    "Timer",
    "WeightsAndBiases",
]

check_constructors(__name__, "callback arguments")

if not TYPE_CHECKING:  # a type checker would accept every name
    __getattr__ = no_attribute(__name__, "callbacks")
