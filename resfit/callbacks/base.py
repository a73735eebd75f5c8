"""The base class of all callbacks, and the protocol of the model that callbacks use."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from flax import nnx

from resfit.callbacks.logs import Logs


class RunControl(Protocol):
    """The requests that a callback can make of a running `fit`.

    Attributes:
      saves_checkpoints: True if `fit` runs with a `Checkpoint` callback.
      data_wait: the share of the last epoch's training in which the device waited for data, from 0 to 1.
    """

    @property
    def saves_checkpoints(self) -> bool: ...
    @property
    def data_wait(self) -> float: ...
    def trained_weights(self) -> list[np.ndarray]:
        """Return the weights with which training continues, and what else the optimizer keeps of the weights."""

    def restore_trained_weights(self, weights: Sequence[np.ndarray]) -> None:
        """Continue training with a result of `trained_weights`; the averages stay."""

    def request_checkpoint(self, *, best: bool = False) -> None:
        """Save the run after all hooks of this batch or epoch; `best` keeps the checkpoint as the best so far."""

    def request_rollback(self, *, bad: tuple[int, int] | None = None, learning_rate_factor: float = 1.0) -> None:
        """Go back to the newest checkpoint in which all values are finite, after all hooks of this batch or epoch."""


class TrainedModel(Protocol):
    """The part of `resfit.Model` that callbacks use, so that callbacks do not import the trainer.

    Attributes:
      compile: see `resfit.Model.compile`.
      fit: see `resfit.Model.fit`.
      evaluate: see `resfit.Model.evaluate`.
      predict: see `resfit.Model.predict`.
      stop_training: set it to True to stop `fit` after the current batch.
      stop_evaluating: set it to True to stop `evaluate` or the current validation.
      stop_predicting: set it to True to stop `predict`.
      validation_weights: "raw" or "ema", see `resfit.Model`.
      keep_last_step: see `resfit.Model.keep_last_step`.
      learning_rate: the learning rate of the last step; once set, that of the next step.
      history: the record of the last `fit`: a `resfit.callbacks.History`, or None.
      module: the trained module with its current variables.
      keeps_averages: True if there are averaged weights.
      control: takes requests, see `RunControl`.
    """

    stop_training: bool
    stop_evaluating: bool
    stop_predicting: bool
    validation_weights: str
    keep_last_step: bool
    learning_rate: float
    history: Any

    @property
    def compile(self) -> Callable[..., None]: ...
    @property
    def fit(self) -> Callable[..., Any]: ...
    @property
    def evaluate(self) -> Callable[..., Any]: ...
    @property
    def predict(self) -> Callable[..., Any]: ...
    @property
    def save(self) -> Callable[..., None]: ...
    @property
    def module(self) -> nnx.Module: ...
    @property
    def keeps_averages(self) -> bool: ...
    @property
    def control(self) -> RunControl: ...
    def first_non_finite(self) -> str | None: ...
    def get_weights(self, weights: str = "raw") -> list[np.ndarray]: ...
    def set_weights(self, weights: Sequence[Any], averages: Sequence[Any] | None = None) -> None: ...


class Callback:
    """Base class of all callbacks, which observe and control training. Hooks, order and arguments are Keras's.

    Override the hooks that you need. `fit` calls on_train_begin, then for each epoch on_epoch_begin, for each batch
    on_train_batch_begin and on_train_batch_end, validation's on_test_* hooks, on_epoch_end, and last on_train_end,
    which always runs once training began. `evaluate` and `predict` call the on_test_* and on_predict_* hooks.

    Logs are dicts of floats, and of nested lists for metrics of several numbers. A batch's log holds the running means
    since the epoch began. Values are read from the device when a callback asks for one, so a callback that reads a
    value in every batch makes every step wait.

    Attributes:
      model: the `resfit.Model`. `model.module` holds the current variables; a callback can assign to it at any
        batch boundary. `model.stop_training = True` stops after this batch.
      params: {"verbose", "epochs", "steps"}.

    Example:
      >>> class Print(Callback):
      ...     def on_epoch_end(self, epoch, logs=None):
      ...         print(f"epoch {epoch}: loss {logs['loss']:.3f}")
    """

    model: TrainedModel
    params: dict[str, Any]

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes for a copy or a pickle, without the model, which the next `fit` sets."""
        return {name: value for name, value in vars(self).items() if name != "model"}

    def set_model(self, model: TrainedModel) -> None:
        """Receive the model, once before training."""
        self.model = model

    def set_params(self, params: dict[str, Any]) -> None:
        """Receive the parameters of the run, once before training."""
        self.params = params

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Run when `fit` begins."""

    def on_train_end(self, logs: Logs | None = None) -> None:
        """Run when `fit` ends, also after an exception. logs: those of the last epoch."""

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Run before an epoch. Epochs are counted from zero."""

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Run after an epoch and its validation. logs: loss, metrics, and both with the prefix val_."""

    def on_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        """Run by on_train_batch_begin."""

    def on_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """Run by on_train_batch_end."""

    def on_train_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        """Run before a training step."""
        self.on_batch_begin(batch, logs)

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """Run once a training step has been dispatched to the device."""
        self.on_batch_end(batch, logs)

    def on_test_begin(self, logs: Logs | None = None) -> None:
        """Run when `evaluate`, or a validation inside `fit`, begins."""

    def on_test_end(self, logs: Logs | None = None) -> None:
        """Run when `evaluate`, or a validation inside `fit`, ends. logs: loss and metrics."""

    def on_test_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        """Run before an evaluation step."""

    def on_test_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """Run after an evaluation step."""

    def on_predict_begin(self, logs: Logs | None = None) -> None:
        """Run when `predict` begins."""

    def on_predict_end(self, logs: Logs | None = None) -> None:
        """Run when `predict` ends."""

    def on_predict_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        """Run before a prediction step."""

    def on_predict_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """Run after a prediction step. logs: {"outputs": the batch's outputs}."""

    def on_compile_begin(self, what: str) -> None:
        """Run before a step is compiled. what: "train", "evaluate" or "predict". Not in Keras."""

    def on_compile_end(self, what: str) -> None:
        """Run once the step is compiled. Not in Keras."""

    def on_exception(self, exception: BaseException) -> None:
        """Run when `fit` (before on_train_end), `evaluate` or `predict` raises. Not in Keras."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs to continue as if the run had never stopped. Not in Keras.

        A checkpoint restores the state exactly, types and the order of keys included. A state can consist of dicts,
        lists, tuples, sets, plain values, bytes, and NumPy and JAX arrays. The first checkpoint raises for anything
        else.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a result of `state_dict`. Not in Keras.

        Runs after on_train_begin of a resumed run, and during a run that goes back to a checkpoint.
        """


HOOKS = tuple(name for name in vars(Callback) if name.startswith("on_"))
