"""Optimizers, losses, metrics and callbacks of Keras, as the arguments of resfit's methods."""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import resfit
from resfit import callbacks as callbacks_
from tests.keras_suite import layers as layers_
from tests.keras_suite.names import NotTranslated, NotTranslatedAttributeError, adapted, missing, refuse

# --- optimizers ------------------------------------------------------------------------------------------------------


class _Described:
    """An optimizer of Keras: an optax function with Keras's defaults, and the other arguments of `compile`."""

    def __init__(self, function: Any, learning_rate: Any, use_ema: bool, ema_momentum: float, **options: Any) -> None:
        refuse("optimizers", **options)
        self.assign_sub = missing("optimizer.assign_sub")
        rate = learning_rate.rate if isinstance(learning_rate, _Schedule) else learning_rate
        self.arguments = {"optimizer": function, "learning_rate": rate, **({"ema": ema_momentum} if use_ema else {})}


def _optimizer(make: Any, default: float) -> Any:
    def described(
        learning_rate: Any = default,
        *,
        use_ema: bool = False,
        ema_momentum: float = 0.99,
        name: Any = None,
        **options: Any,
    ) -> _Described:
        del name
        own = {key: options.pop(key) for key in tuple(options) if key in ("momentum", "nesterov", "epsilon")}
        return _Described(functools.partial(make, **own), learning_rate, use_ema, ema_momentum, **options)

    return described


def _sgd(learning_rate: Any, momentum: float = 0.0, nesterov: bool = False) -> Any:
    return optax.sgd(learning_rate, momentum=momentum or None, nesterov=nesterov)


def _adam(learning_rate: Any, epsilon: float = 1e-7) -> Any:
    return optax.adam(learning_rate, eps=epsilon)


def _rmsprop(learning_rate: Any, epsilon: float = 1e-7) -> Any:
    return optax.rmsprop(learning_rate, decay=0.9, eps=epsilon)


def _adagrad(learning_rate: Any, epsilon: float = 1e-7) -> Any:
    return optax.adagrad(learning_rate, initial_accumulator_value=0.1, eps=epsilon)


class _Schedule:
    """A schedule of Keras: a function of the step."""

    def __init__(self, rate: Any) -> None:
        self.rate = rate


def _polynomial(initial_learning_rate: float, decay_steps: int, end_learning_rate: float = 1e-4) -> _Schedule:
    return _Schedule(optax.polynomial_schedule(initial_learning_rate, end_learning_rate, 1, decay_steps))


optimizers = {
    "SGD": _optimizer(_sgd, 0.01),
    "Adam": _optimizer(_adam, 0.001),
    "RMSprop": _optimizer(_rmsprop, 0.001),
    "Adagrad": _optimizer(_adagrad, 0.001),
    "PolynomialDecay": _polynomial,
}


def optimizer_arguments(given: Any) -> dict[str, Any]:
    """Return the arguments of `compile` for an optimizer of Keras, also by name, with Keras's defaults."""
    if isinstance(given, str):
        named = {"sgd": "SGD", "adam": "Adam", "rmsprop": "RMSprop", "adagrad": "Adagrad"}
        given = optimizers[named[given]]()
    if not isinstance(given, _Described):
        raise NotTranslated(f"an optimizer {given!r:.40}")
    return given.arguments


class Optimizer:
    """`model.optimizer` of Keras, of which resfit has the learning rate."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        raise NotTranslatedAttributeError(f"optimizer.{name}")

    @property
    def learning_rate(self) -> Any:
        return _Value(self._model.learning_rate)


class _Value:
    """A variable of one number, in float32."""

    def __init__(self, value: float) -> None:
        self.value = jnp.float32(value)


# --- losses ----------------------------------------------------------------------------------------------------------


class _Echo(nnx.Module):
    """A network whose outputs are its inputs, to measure given outputs."""

    def __init__(self) -> None:
        self.unused = nnx.Param(jnp.zeros(()))

    def __call__(self, x: Any) -> Any:
        return x + 0 * self.unused[...]


def _model(**arguments: Any) -> Any:
    model = resfit.Model(_Echo())
    model.compile(dispatch="jit", preprocess=None, **arguments)
    return model


class Loss:
    """A loss of Keras, measured by `test_on_batch` of a network that returns the given predictions.

    Args:
      loss: the loss of resfit.
      reads: "values", or what the predictions are unless from_logits: "probabilities" or "sigmoids".
    """

    def __init__(self, loss: Any, reads: str, *, from_logits: bool, reduction: Any) -> None:
        self.loss, self._reads, self._from_logits, self._reduction = loss, reads, from_logits, reduction

    def __getattr__(self, name: str) -> Any:
        raise NotTranslatedAttributeError(f"the attribute {name} of a loss")

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        y_true, y_pred = np.asarray(y_true), self.logits(np.asarray(y_pred))
        if self._reduction is None:
            values = resfit.losses.get(self.loss)(jnp.asarray(y_pred, jnp.float32), jnp.asarray(y_true))
            return values if sample_weight is None else values * sample_weight
        if self._reduction != "sum_over_batch_size":
            raise NotTranslated(f"reduction={self._reduction!r} of a loss")
        return _model(loss=self.loss, metrics=None).test_on_batch(y_pred, y_true, _weights(sample_weight, len(y_pred)))

    def logits(self, y_pred: np.ndarray) -> np.ndarray:
        """Return predictions as resfit reads them."""
        y_pred = y_pred.astype("float32")
        return y_pred if self._reads == "values" or self._from_logits else logits_of(y_pred, self._reads)


def logits_of(probabilities: np.ndarray, reads: str) -> np.ndarray:
    """Return the logits of these probabilities, with the limits that Keras documents for its losses."""
    adapted("probabilities are given as their logits")
    clipped = np.clip(probabilities, 1e-7, 1 - 1e-7)
    return np.log(clipped) if reads == "probabilities" else np.log(clipped) - np.log1p(-clipped)


def _weights(weight: Any, examples: int) -> Any:
    if weight is None:
        return None
    weight = np.asarray(weight, "float32")
    if weight.ndim == 0:
        adapted("a weight of all examples is given as one weight per example")
        return np.full(examples, weight)
    if weight.ndim == 2 and weight.shape[1] == 1:
        adapted("weights (examples, 1) are given as (examples,)")
        return weight[:, 0]
    return weight


def _loss(loss: Any, reads: str = "values") -> Any:
    """Return a function that makes this loss from Keras's arguments."""

    def make(
        from_logits: bool = False, reduction: Any = "sum_over_batch_size", name: Any = None, dtype: Any = None,
        **options: Any,
    ) -> Loss:  # fmt: skip
        del name
        refuse("losses", dtype=dtype)
        found = loss
        if options:
            found = loss(**options) if isinstance(loss, type) else refuse(str(loss), **options) or loss
        elif isinstance(loss, type):
            found = loss()
        return Loss(found, reads, from_logits=from_logits, reduction=reduction)

    return make


def _function(loss: Any, reads: str = "values") -> Any:
    """Return this loss as a function of Keras, which returns one value per example."""

    def function(y_true: Any, y_pred: Any, from_logits: bool = False, **options: Any) -> Any:
        return _loss(loss, reads)(from_logits=from_logits, reduction=None, **options)(y_true, y_pred)

    return function


def _cross_entropy(label_smoothing: float = 0.0, ignore_class: int | None = None, axis: int = -1) -> Any:
    refuse("cross-entropy", axis=None if axis == -1 else axis)
    return resfit.losses.CrossEntropy(label_smoothing=label_smoothing, ignore_index=ignore_class)


def _binary_cross_entropy(label_smoothing: float = 0.0, axis: int = -1) -> Any:
    refuse("binary cross-entropy", axis=None if axis == -1 else axis)
    if not label_smoothing:
        return "binary_cross_entropy"
    return resfit.losses.BinaryCrossEntropy(label_smoothing=label_smoothing)


class _Made(type):
    """A class whose call is a function, so that `_loss` passes the options of Keras on."""

    def __call__(cls, **options: Any) -> Any:
        return cls.function(**options)


class _CrossEntropy(metaclass=_Made):
    function = staticmethod(_cross_entropy)


class _BinaryCrossEntropy(metaclass=_Made):
    function = staticmethod(_binary_cross_entropy)


class _Focal(metaclass=_Made):
    @staticmethod
    def function(gamma: float = 2.0, alpha: float = 0.25, apply_class_balancing: bool = False, axis: int = -1) -> Any:
        refuse("focal loss", apply_class_balancing=apply_class_balancing, axis=None if axis == -1 else axis)
        return resfit.losses.Focal(gamma=gamma)


losses = {
    "MeanSquaredError": _loss("mean_squared_error"),
    "MeanAbsoluteError": _loss("mean_absolute_error"),
    "MeanAbsolutePercentageError": _loss("mean_absolute_percentage_error"),
    "MeanSquaredLogarithmicError": _loss("mean_squared_logarithmic_error"),
    "Hinge": _loss("hinge"),
    "CosineSimilarity": _loss("cosine_similarity"),
    "Huber": _loss("huber"),
    "LogCosh": _loss("log_cosh"),
    "KLDivergence": _loss("kl_divergence", "probabilities"),
    "Poisson": _loss("poisson"),
    "BinaryCrossentropy": _loss(_BinaryCrossEntropy, "sigmoids"),
    "CategoricalCrossentropy": _loss(_CrossEntropy, "probabilities"),
    "SparseCategoricalCrossentropy": _loss(_CrossEntropy, "probabilities"),
    "mean_squared_error": _function("mean_squared_error"),
    "mean_absolute_error": _function("mean_absolute_error"),
    "categorical_crossentropy": _function(_CrossEntropy, "probabilities"),
    "sparse_categorical_crossentropy": _function(_CrossEntropy, "probabilities"),
    "binary_crossentropy": _function(_BinaryCrossEntropy, "sigmoids"),
}


def loss_argument(given: Any) -> Any:
    """Return the argument `loss` of `compile`."""
    if isinstance(given, dict):
        return {name: loss_argument(loss) for name, loss in given.items()}
    if isinstance(given, list):
        return [loss_argument(loss) for loss in given]
    return given.loss if isinstance(given, Loss) else given


# --- metrics ---------------------------------------------------------------------------------------------------------


class Metric:
    """A metric of Keras, measured by `evaluate` of a network that returns the given predictions.

    Args:
      metric: the metric of resfit, by name or as a class, or a function of the number of outputs that returns one.
      name: of the value.
      reads: as in `Loss`.
    """

    def __init__(self, metric: Any, name: str, reads: str = "values") -> None:
        self.metric, self.name, self._reads = metric, name, reads
        self._batches: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        raise NotTranslatedAttributeError(f"the attribute {name} of a metric")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        if sample_weight is not None:
            raise NotTranslated("sample_weight of a metric")
        y_true, y_pred = np.asarray(y_true), np.asarray(y_pred, "float32")
        y_pred = y_pred if self._reads == "values" else logits_of(y_pred, self._reads)
        self._batches.append((y_pred, y_true))

    def reset_state(self) -> None:
        self._batches.clear()

    def of(self, outputs: int) -> Any:
        """Return the metric of resfit for this number of outputs."""
        return self.metric(outputs) if callable(self.metric) and not isinstance(self.metric, type) else self.metric

    def result(self) -> Any:
        outputs = self._batches[0][0].shape[-1] if self._batches and self._batches[0][0].ndim > 1 else 1
        model = _model(loss=_no_loss, metrics={self.name: self.of(outputs)})
        return model.evaluate(list(self._batches), return_dict=True, verbose=0)[self.name]

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        self.update_state(y_true, y_pred, sample_weight)
        return self.result()


def _no_loss(outputs: Any, labels: Any) -> Any:
    del labels
    return jnp.zeros(len(outputs))


def _metric(metric: Any, default: str, reads: str = "values") -> Any:
    """Return a class, which tests inherit from, of this metric."""

    class Named(Metric):
        def __init__(
            self, name: str | None = None, dtype: Any = None, from_logits: bool = False, **options: Any
        ) -> None:
            refuse(default, dtype=None if dtype in (None, "float32") else dtype, **options)
            super().__init__(metric, name or default, "values" if from_logits else reads)

    return Named


class _Accuracy(Metric):
    """Of class numbers and class numbers in Keras; `compile` reads it as the accuracy of the outputs."""

    def __init__(self, name: str = "accuracy", dtype: Any = None) -> None:
        super().__init__("accuracy", name)

    def update_state(self, *_: Any, **__: Any) -> None:
        raise NotTranslated("metrics.Accuracy of predicted class numbers")


class _MeanIoU(Metric):
    """Of class numbers and class numbers, which resfit gets as one-hot outputs."""

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        adapted("predicted class numbers are given as one-hot outputs")
        super().update_state(y_true, np.eye(self._classes)[np.asarray(y_pred, "int32")], sample_weight)

    def __init__(self, num_classes: int, name: str = "mean_io_u", dtype: Any = None, **options: Any) -> None:
        refuse("MeanIoU", **options)
        self._classes = num_classes
        super().__init__(resfit.metrics.mean_iou(num_classes), name)


class _TopK(Metric):
    def __init__(self, k: int = 5, name: str = "top_k_categorical_accuracy", dtype: Any = None, **options: Any) -> None:
        refuse("TopK", **options)
        super().__init__(resfit.metrics.top_k_accuracy(k), name)


class _BinaryAccuracy(Metric):
    def __init__(self, name: str = "binary_accuracy", dtype: Any = None, threshold: float | None = 0.5) -> None:
        refuse("BinaryAccuracy", threshold=None if threshold == 0.5 else threshold)
        super().__init__("binary_accuracy", name, "sigmoids")


class _F1(Metric):
    def __init__(self, average: Any = None, threshold: Any = None, name: str = "f1_score", dtype: Any = None) -> None:
        refuse("F1Score", threshold=threshold, average=average if average not in (None, "macro") else None)
        super().__init__(lambda outputs: resfit.metrics.f1(outputs, per_class=average is None), name)


class _AUC(Metric):
    def __init__(self, num_thresholds: int = 200, name: str = "auc", dtype: Any = None, **options: Any) -> None:
        refuse("AUC", num_thresholds=None if num_thresholds == 200 else num_thresholds, **options)
        super().__init__(resfit.metrics.auc, name, "sigmoids")


class _OfClasses(Metric):
    """Precision or recall of one output of probabilities."""

    function: Any = None
    default = ""

    def __init__(self, thresholds: Any = None, name: str | None = None, dtype: Any = None, **options: Any) -> None:
        refuse(self.default, thresholds=None if thresholds in (None, 0.5, [0.5]) else thresholds, **options)
        super().__init__(type(self).function, name or self.default, "sigmoids")


class _Precision(_OfClasses):
    function, default = staticmethod(resfit.metrics.precision), "precision"


class _Recall(_OfClasses):
    function, default = staticmethod(resfit.metrics.recall), "recall"


metrics = {
    "Accuracy": _Accuracy,
    "MeanSquaredError": _metric("mean_squared_error", "mean_squared_error"),
    "MeanAbsoluteError": _metric("mean_absolute_error", "mean_absolute_error"),
    "MeanAbsolutePercentageError": _metric("mean_absolute_percentage_error", "mean_absolute_percentage_error"),
    "MeanSquaredLogarithmicError": _metric("mean_squared_logarithmic_error", "mean_squared_logarithmic_error"),
    "CosineSimilarity": _metric("cosine_similarity", "cosine_similarity"),
    "LogCoshError": _metric("log_cosh", "logcosh"),
    "Hinge": _metric("hinge", "hinge"),
    "Poisson": _metric("poisson", "poisson"),
    "KLDivergence": _metric("kl_divergence", "kl_divergence", "probabilities"),
    "BinaryCrossentropy": _metric("binary_crossentropy", "binary_crossentropy", "sigmoids"),
    "CategoricalCrossentropy": _metric("categorical_crossentropy", "categorical_crossentropy", "probabilities"),
    "SparseCategoricalCrossentropy": _metric("cross_entropy", "sparse_categorical_crossentropy", "probabilities"),
    "BinaryAccuracy": _BinaryAccuracy,
    "CategoricalAccuracy": _metric("categorical_accuracy", "categorical_accuracy"),
    "SparseCategoricalAccuracy": _metric("sparse_categorical_accuracy", "sparse_categorical_accuracy"),
    "TopKCategoricalAccuracy": _TopK,
    "SparseTopKCategoricalAccuracy": _TopK,
    "AUC": _AUC,
    "Precision": _Precision,
    "Recall": _Recall,
    "F1Score": _F1,
    "MeanIoU": _MeanIoU,
}


def metrics_argument(given: Any, outputs: int = 1) -> Any:
    """Return the argument `metrics` of `compile`: strings and functions as they are, objects by name."""
    if isinstance(given, dict):
        return {name: metrics_argument(metric, outputs) for name, metric in given.items()}
    if isinstance(given, Metric):
        return {given.name: given.of(outputs)}
    if not isinstance(given, list | tuple) or not any(isinstance(metric, Metric) for metric in given):
        return given
    names = [metric.name if isinstance(metric, Metric) else metric for metric in given]
    if len(set(names)) < len(names):
        return [metrics_argument(metric, outputs) for metric in given]  # one for each output
    found = (metric.of(outputs) if isinstance(metric, Metric) else metric for metric in given)
    return dict(zip(names, found, strict=True))


# --- callbacks -------------------------------------------------------------------------------------------------------


class Callback(callbacks_.Callback):
    """A callback of a test, whose `model` is the model of Keras."""

    @property
    def model(self) -> Any:
        model = layers_.keras_model_of(self._model)
        if isinstance(model, layers_.Trainer):
            model.publish()
        return model

    @model.setter
    def model(self, value: Any) -> None:
        self._model = value


callbacks = {
    name: getattr(callbacks_, name)
    for name in (
        "CSVLogger", "EarlyStopping", "History", "LambdaCallback", "LearningRateScheduler", "ModelCheckpoint",
        "ReduceLROnPlateau", "SwapEMAWeights", "TensorBoard", "TerminateOnNaN",
    )
} | {"Callback": Callback}  # fmt: skip
