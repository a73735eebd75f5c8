"""Losses, metrics, optimizers and callbacks of other libraries raise an error that names the replacement."""

import functools
import inspect
import re
from typing import Any

import clu.metrics
import jax
import optax
import pytest
from flax import nnx

import resfit
from resfit import losses, metrics, optimizers
from resfit._utils import foreign, words
from resfit.errors import CallbackError, CompileError
from resfit.trainer.loop.callback_list import CallbackList
from tests.helpers import compiled

LIBRARIES = {"resfit": resfit, "optax": optax, "nnx": nnx, "jax": jax}


def of(module: str, name: str) -> type:
    """Return a class that looks like one of another library, which is not installed."""
    return type(
        name, (), {"__module__": module, "__call__": lambda self, y_true, y_pred: y_pred, "call": lambda self: 0}
    )


def function_of(module: str, name: str) -> Any:
    function = lambda y_true, y_pred: y_pred  # noqa: E731
    function.__module__, function.__name__ = module, name
    return function


def derived(module: str, name: str) -> Any:
    return type("Mine", (of(module, name),), {"__module__": "my_project"})()


def hooks(callback: Any) -> CallbackList:
    return CallbackList([callback], compiled(), {})


REFUSED: dict[str, tuple[Any, Any, str]] = {
    "function of Keras": (losses.get, function_of("keras.src.losses.losses", "categorical_crossentropy"), "'cross_ent"),
    "object of Keras": (losses.get, of("keras.losses", "BinaryCrossentropy")(), "loss='binary_cross_entropy'"),
    "class of Keras": (losses.get, of("keras.losses", "MeanSquaredError"), "loss='mean_squared_error'"),
    "partial of Keras": (
        losses.get, functools.partial(function_of("keras.losses", "huber"), delta=1.0), "loss='huber'",
    ),
    "method of Keras": (losses.get, of("keras.losses", "Huber")().call, "loss='huber'"),
    "subclass of a loss of Keras": (
        losses.get, derived("keras.losses", "MeanSquaredError"), r"function of \(outputs, labels\)",
    ),
    "object of PyTorch": (losses.get, of("torch.nn.modules.loss", "CrossEntropyLoss")(), "'cross_entropy'"),
    "function of PyTorch": (losses.get, function_of("torch.nn.functional", "mse_loss"), "'mean_squared_error'"),
    "metric of Keras": (metrics.by_name, [of("keras.metrics", "AUC")()], r"metrics=\['auc'\]"),
    "metric of TorchMetrics": (
        metrics.by_name, {"f": of("torchmetrics.classification", "MulticlassF1Score")()}, r"metrics=\['f1'\]",
    ),
    "metric of scikit-learn": (metrics.by_name, [function_of("sklearn.metrics", "f1_score")], r"metrics=\['f1'\]"),
    "metric of segmentation": (metrics.by_name, [of("keras.metrics", "MeanIoU")()], r"resfit\.metrics\.mean_iou"),
    "metric without a replacement": (
        metrics.by_name, [of("keras.metrics", "SensitivityAtSpecificity")()], r"function of \(outputs",
    ),
    "optimizer of Keras": (
        lambda o: optimizers.get(o, None), of("keras.src.optimizers", "AdamW")(), "optimizer='adamw', learning_rate=",
    ),
    "optimizer class of PyTorch": (
        lambda o: optimizers.get(o, 0.1), of("torch.optim.adagrad", "Adagrad"), "optimizer=optax.adagrad",
    ),
    "optimizer of tf.keras": (
        lambda o: optimizers.get(o, None), of("tf_keras.optimizers", "Ftrl")(), "the optax optimizer of the same name",
    ),
    "callback of Keras": (hooks, of("keras.callbacks", "EarlyStopping")(), "resfit.callbacks.EarlyStopping"),
    "callback of Lightning": (hooks, of("lightning.callbacks", "RichProgressBar")(), r"fit\(verbose=1\)"),
    "subclass of a callback of Keras": (hooks, derived("keras.callbacks", "Callback"), "change the base class"),
}  # fmt: skip


@pytest.mark.parametrize(("resolve", "value", "remedy"), REFUSED.values(), ids=REFUSED)
def test_objects_of_other_libraries_raise_with_the_replacement(resolve: Any, value: Any, remedy: str) -> None:
    with pytest.raises((CompileError, CallbackError), match=rf"received .*Use .*{remedy}"):
        resolve(value)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("loss", optax.softmax_cross_entropy),
        ("loss", losses.CrossEntropy()),
        ("loss", of("keras_helpers.losses", "MeanSquaredError")()),
        ("loss", function_of("my_project.torch", "mse_loss")),
        ("metrics", clu.metrics.Accuracy),
        ("metrics", metrics.f1(3)),
        ("optimizer", optax.adam),
    ],
)
def test_objects_of_jax_and_of_packages_with_similar_names_are_accepted(argument: str, value: Any) -> None:
    foreign.refuse(value, argument, CompileError)


def test_every_name_in_a_replacement_exists() -> None:
    text = " ".join(answer for rows in words.WORDS.values() for answer in rows)
    for name in re.findall(r"\b(?:resfit|optax|nnx|jax)(?:\.\w+)+", text):
        assert functools.reduce(getattr, name.split(".")[1:], LIBRARIES[name.split(".")[0]]), name
    for method in re.findall(r"\bmodel\.(?!module)(\w+)", text):
        assert method in dir(compiled()), method
    for metric in re.findall(r"metrics=\['(\w+)'\]", text):
        assert metrics.by_name(metric, num_classes=10)
    for loss in re.findall(r"loss='(\w+)'", text):
        assert losses.get(loss)
    for optimizer in re.findall(r"optimizer='(\w+)'", text):
        assert optimizers.get(optimizer, 0.1)
    for method, argument in re.findall(r"\b(compile|fit|evaluate|predict)\((\w+)=", text):
        assert argument in inspect.signature(getattr(resfit.Model, method)).parameters, (method, argument)
