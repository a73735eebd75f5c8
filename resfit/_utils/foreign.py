"""Errors for objects of other libraries, with the replacement in resfit.

Module names identify a library, so no library is imported. A loss of Keras takes (labels, outputs), and a metric of
PyTorch takes tensors: inside a step of resfit they would fail or return wrong numbers.
"""

import functools
from collections.abc import Iterator
from typing import Any

_LIBRARIES = {
    "keras": "Keras",
    "tf_keras": "Keras",
    "tensorflow": "TensorFlow",
    "torch": "PyTorch",
    "torchmetrics": "TorchMetrics",
    "lightning": "PyTorch Lightning",
    "pytorch_lightning": "PyTorch Lightning",
    "sklearn": "scikit-learn",
}

_FUNCTION = "loss=lambda outputs, labels: {}, one value per example"

# For each argument: replacement -> names of other libraries, in lower case and without underscores.
_REPLACEMENTS: dict[str, dict[str, str]] = {
    "loss": {
        "loss='cross_entropy', which reads class numbers and one-hot labels (with label smoothing: "
        "resfit.losses.CrossEntropy(label_smoothing=0.1))": (
            "categoricalcrossentropy sparsecategoricalcrossentropy crossentropyloss crossentropy nllloss logloss"
        ),
        "loss='binary_cross_entropy' (with options: resfit.losses.BinaryCrossEntropy)": (
            "binarycrossentropy bceloss bcewithlogitsloss binarycrossentropywithlogits multilabelsoftmarginloss"
        ),
        "loss=resfit.losses.Focal(gamma=2.0)": "binaryfocalcrossentropy categoricalfocalcrossentropy",
        "loss='mean_squared_error'": "meansquarederror mse mseloss",
        _FUNCTION.format("jnp.abs(outputs - labels).mean(axis=-1)"): "meanabsoluteerror mae l1loss",
        _FUNCTION.format("optax.huber_loss(outputs, labels).mean(axis=-1)"): "huber huberloss smoothl1loss",
        _FUNCTION.format("optax.log_cosh(outputs, labels).mean(axis=-1)"): "logcosh",
        _FUNCTION.format("optax.cosine_distance(outputs, labels)"): "cosinesimilarity cosineembeddingloss",
        _FUNCTION.format("optax.kl_divergence(jax.nn.log_softmax(outputs), labels)"): "kldivergence kldivloss kldiv",
    },
    "metrics": {
        "metrics=['accuracy']": (
            "accuracy binaryaccuracy categoricalaccuracy sparsecategoricalaccuracy multiclassaccuracy "
            "multilabelaccuracy accuracyscore"
        ),
        "metrics=['top_5_accuracy']": (
            "topkcategoricalaccuracy sparsetopkcategoricalaccuracy topkaccuracyscore"
        ),
        "metrics=['auc']": "auc auroc binaryauroc multiclassauroc multilabelauroc rocaucscore",
        "metrics=['precision']": "precision binaryprecision multiclassprecision multilabelprecision precisionscore",
        "metrics=['recall']": "recall binaryrecall multiclassrecall multilabelrecall recallscore",
        "metrics=['f1']": "f1 f1score binaryf1score multiclassf1score multilabelf1score fbetascore",
        "metrics=['confusion_matrix']": "confusionmatrix binaryconfusionmatrix multiclassconfusionmatrix",
        "metrics=['calibration_error']": "calibrationerror binarycalibrationerror multiclasscalibrationerror",
        "metrics=['cross_entropy']": "crossentropy categoricalcrossentropy sparsecategoricalcrossentropy logloss",
    },
    "optimizer": {
        **{f"optimizer={name!r}, learning_rate=...": name for name in ("sgd", "adam", "adamw", "lamb", "rmsprop")},
        **{
            f"optimizer=optax.{name}, learning_rate=...": name
            for name in ("adadelta", "adafactor", "adagrad", "adamax", "lbfgs", "lion", "nadam", "nadamw", "radam")
        },
    },
    "callbacks": {
        **{
            f"resfit.callbacks.{name}": name.lower()
            for name in (
                "CSVLogger", "EarlyStopping", "LambdaCallback", "LearningRateScheduler", "ModelCheckpoint",
                "ReduceLROnPlateau", "SwapEMAWeights", "TensorBoard", "TerminateOnNaN", "Timer",
            )
        },
        "resfit.callbacks.Checkpoint(folder) with fit(resume=True)": "backupandrestore",
        "nothing: fit returns a History": "history",
        "fit(verbose=1)": "progbarlogger tqdmprogressbar richprogressbar progressbar",
        "model.freeze(...), then compile": "basefinetuning backbonefinetuning",
        "resfit.callbacks.Throughput or Timer": "devicestatsmonitor throughputmonitor",
        "compile(gradient_accumulation_steps=...)": "gradientaccumulationscheduler",
        "compile(ema=...)": "stochasticweightaveraging weightaveraging emaweightaveraging",
        "nothing: the learning rate of a schedule is in every epoch's logs": "learningratemonitor",
    },
}  # fmt: skip

_OTHERWISE = {
    "loss": "a function of (outputs, labels) that returns one value per example, written with jax.numpy, or the name "
    "of a loss, such as loss='cross_entropy'",
    "metrics": "a function of (outputs, labels) that returns one value per example, written with jax.numpy, or the "
    "name of a metric, such as metrics=['accuracy']",
    "optimizer": "the optax optimizer of the same name, such as optimizer=optax.adamw, learning_rate=...",
    "callbacks": "an object of a subclass of resfit.callbacks.Callback. The hooks are Keras's, so for a custom class "
    "change the base class",
}


def refuse(value: Any, argument: str, error: type[Exception]) -> None:
    """Raise if the value, or a base class of it, belongs to another library.

    Args:
      value: an object, a class, a function, a `functools.partial` or a bound method.
      argument: the argument that received the value: "loss", "metrics", "optimizer" or "callbacks".
      error: the class to raise.

    Raises:
      error: if the value belongs to another library. The message names the replacement.

    Example:
      >>> class Adam:
      ...     __module__ = "torch.optim.adam"
      >>> refuse(Adam(), "optimizer", ValueError)
      Traceback (most recent call last):
      ...
      ValueError: optimizer received torch.optim.adam.Adam, of PyTorch. Use optimizer='adam', learning_rate=....
    """
    for i, (module, name) in enumerate(_origins(value)):
        library = _LIBRARIES.get(module.partition(".")[0])
        if library is None:
            continue
        # A custom class does not do what its base class does.
        replacement = _replacement(name, argument) if i == 0 else _OTHERWISE[argument]
        raise error(
            f"{argument} received {module}.{name}, of {library}. Use {replacement}."
            if i == 0
            else f"{argument} received a {next(_origins(value))[1]}, which derives from {module}.{name}, of {library}. "
            f"Use {replacement}."
        )


def _origins(value: Any) -> Iterator[tuple[str, str]]:
    """Yield (module, name) of the function or class of a value, then of its base classes."""
    while isinstance(value, functools.partial):
        value = value.func
    owner = getattr(value, "__self__", None)  # a bound method belongs to its object
    value = value if owner is None else owner
    if not isinstance(value, type):
        if hasattr(value, "__name__") and isinstance(getattr(value, "__module__", None), str):
            yield value.__module__, value.__name__
        value = type(value)
    yield from ((base.__module__, base.__name__) for base in value.__mro__)


def _replacement(name: str, argument: str) -> str:
    plain = name.lower().replace("_", "")
    for replacement, names in _REPLACEMENTS[argument].items():
        if plain in names.split():
            return replacement
    return _OTHERWISE[argument]
