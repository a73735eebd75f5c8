"""Callbacks: what watches and steers training. Write your own by subclassing `Callback`."""

from resfit.callbacks.early_stopping import EarlyStopping
from resfit.callbacks.history import History
from resfit.callbacks.learning_rate_scheduler import LearningRateScheduler
from resfit.callbacks.model_checkpoint import ModelCheckpoint
from resfit.callbacks.progress_bar import ProgressBar
from resfit.callbacks.reduce_lr_on_plateau import ReduceLROnPlateau
from resfit.engine.hooks import Callback

__all__ = [
    "Callback",
    "EarlyStopping",
    "History",
    "LearningRateScheduler",
    "ModelCheckpoint",
    "ProgressBar",
    "ReduceLROnPlateau",
]
