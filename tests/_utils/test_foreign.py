"""Losses, metrics, optimizers and callbacks of other libraries raise an error that names the replacement."""

import functools
from typing import Any

import clu.metrics
import optax
import pytest

import resfit
from resfit import losses, metrics, optimizers
from resfit._utils import foreign
from resfit.errors import CallbackError, CompileError
from resfit.trainer.callback_list import CallbackList
from tests.helpers import compiled


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
        losses.get, functools.partial(function_of("keras.losses", "huber"), delta=1.0), "optax.huber_loss",
    ),
    "method of Keras": (losses.get, of("keras.losses", "Huber")().call, "optax.huber_loss"),
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
    "metric without a replacement": (metrics.by_name, [of("keras.metrics", "MeanIoU")()], r"function of \(outputs"),
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
    for replacement in foreign._REPLACEMENTS["callbacks"]:
        if replacement.startswith("resfit.callbacks.") and " " not in replacement:
            assert hasattr(resfit.callbacks, replacement.removeprefix("resfit.callbacks.")), replacement
    for replacement in foreign._REPLACEMENTS["metrics"]:
        metrics.by_name(replacement.removeprefix("metrics=['").removesuffix("']"), num_classes=10)
    for replacement in foreign._REPLACEMENTS["optimizer"]:
        name = replacement.removeprefix("optimizer=").removesuffix(", learning_rate=...")
        assert hasattr(optax, name.removeprefix("optax.").strip("'")), replacement
