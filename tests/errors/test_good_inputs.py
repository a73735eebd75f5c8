"""Inputs that look unusual but are valid cause no error and no warning."""

import functools
import logging
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import resfit
from tests.helpers import compiled, fit

X = np.random.default_rng(0).normal(size=(16, 8, 8, 3)).astype(np.float32)
Y = np.arange(16) % 3


def read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


class Flat(nnx.Module):
    """A dense layer on all pixels: the smallest network for these images."""

    def __init__(self, classes: int, *, rngs: nnx.Rngs) -> None:
        self.head = nnx.Linear(8 * 8 * 3, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(x.reshape(len(x), -1))


@functools.cache
def network(kind: str, classes: int) -> nnx.Module:
    """Return the one network of a kind; take `nnx.clone` of it."""
    if kind == "flat":
        return Flat(classes, rngs=nnx.Rngs(0))
    spec = resfit.nets.ResNetSpec(block="basic", depths=(1,), widths=(4,), stem="cifar", num_classes=classes)
    return resfit.nets.ResNet(spec, rngs=nnx.Rngs(0))


# The checks look at arrays and outputs. Only the number of channels and classes is also read from a ResNet's spec: the
# tests of binary outputs need it.
each_network = pytest.mark.parametrize("kind", ["flat", pytest.param("resnet", marks=pytest.mark.exhaustive)])


class Good(NamedTuple):
    """x, y, other arguments of fit, and a function that converts x and y to arrays of JAX if needed."""

    x: Any
    y: Any = None
    arguments: Mapping[str, Any] = MappingProxyType({})
    convert: Callable[[Any, Any], tuple[Any, Any]] = lambda x, y: (x, y)


GOOD: dict[str, Good] = {
    "a batch larger than the data": Good(X, Y, {"batch_size": 1000}),
    "one class alone": Good(X, np.zeros(16, int)),
    "one image": Good(X[:1], Y[:1]),
    "batches of one image": Good(X[:3], Y[:3], {"batch_size": 1}),
    "float64 images": Good(X.astype("float64"), Y),
    "float16 images": Good(X.astype("float16"), Y),
    "whole numbers up to 255 as floats": Good(np.round(np.abs(X) * 60).clip(0, 255), Y),
    "black images": Good(np.zeros((16, 8, 8, 3), "uint8"), Y),
    "lists of numbers": Good(X[:8].tolist(), Y[:8].tolist()),
    "read-only arrays": Good(read_only(X), read_only(Y)),
    "arrays that are not contiguous": Good(X.transpose(3, 1, 2, 0)[::1].transpose(3, 1, 2, 0)[::-1], Y[::-1]),
    "every second image": Good(X[::2], Y[::2]),
    "big-endian arrays": Good(X.astype(">f4"), Y.astype(">i4")),
    "jax arrays": Good(X, Y, convert=lambda x, y: (jnp.asarray(x), jnp.asarray(y))),
    "bfloat16 images": Good(X, Y, convert=lambda x, y: (jnp.asarray(x, jnp.bfloat16), y)),
    "labels with an axis of one": Good(X, Y[:, None]),
    "uint8 labels": Good(X, Y.astype("uint8")),
    "one-hot integers": Good(X, np.eye(3, dtype=int)[Y]),
    "one-hot booleans": Good(X, np.eye(3, dtype=bool)[Y]),
    "soft targets": Good(X, np.full((16, 3), 1 / 3)),
    "one-hot labels, and class numbers to validate": Good(X, np.eye(3)[Y], {"validation_data": (X, Y)}),
    "images and labels as NumPy scalars' types": Good(X, Y, {"batch_size": np.int64(8), "epochs": np.int64(1)}),
    "some weights of zero": Good(X, Y, {"sample_weight": np.arange(16) % 2}),
    "integer weights": Good(X, Y, {"sample_weight": np.ones(16, int)}),
    "weights of some classes": Good(X, Y, {"class_weight": {2: 3}}),
    "weights of no class": Good(X, Y, {"class_weight": {}}),
    "validation of one image": Good(X, Y, {"validation_split": 0.05}),
    "validation as a list of batches": Good(X, Y, {"validation_data": [(X, Y), (X[:8], Y[:8])]}),
    "validation on the training data": Good(X, Y, {"validation_data": (X, Y)}),
    "a list of batches, the last one short": Good([(X, Y), (X[:8], Y[:8])]),
    "a list of dicts": Good([{"image": X, "label": Y}]),
    "a generator for one epoch": Good(lambda: ((X, Y) for _ in range(2))),
    "a function with defaults": Good(lambda n=2: [(X, Y)] * n),
    "a tuple as epochs' end": Good(X, Y, {"initial_epoch": 1, "epochs": 1}),
    "more steps than batches": Good(X, Y, {"batch_size": 8, "steps_per_epoch": 3}),
    "verbose as a boolean": Good(X, Y, {"verbose": False}),
    "shuffle as a NumPy boolean": Good(X, Y, {"shuffle": np.bool_(False)}),
    "no callbacks": Good(X, Y, {"callbacks": []}),
    "callbacks as a tuple": Good(X, Y, {"callbacks": (resfit.callbacks.EarlyStopping("loss"),)}),
    "a callback with a method of its own": Good(X, Y, {"callbacks": type("Own", (resfit.callbacks.Callback,), {
        "on_improvement": lambda self: None,
        "on_epoch_end": lambda self, *arguments: None,
        "on_train_end": lambda self, logs=None, more=1: None,
    })()}),
}  # fmt: skip


@pytest.fixture
def silent(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Record the log, from warnings up; pytest turns every warning into an error."""
    return lambda: [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.representatives(
    "one class alone-flat",
    "batches of one image-flat",
    "big-endian arrays-flat",
    "labels with an axis of one-flat",
    "one-hot booleans-flat",
    "integer weights-flat",
    "a generator for one epoch-flat",
    "callbacks as a tuple-flat",
)
@each_network
@pytest.mark.parametrize("name", GOOD)
def test_an_unusual_but_valid_input_trains_without_a_warning(
    name: str, kind: str, silent: Callable[[], list[str]]
) -> None:
    good = GOOD[name]
    model = compiled(nnx.clone(network(kind, 3)))
    x, y = good.convert(good.x, good.y)
    history = model.fit(x, y, **{"verbose": 0, **good.arguments})
    assert all(np.isfinite(values).all() for values in history.history.values())
    assert silent() == []


@pytest.mark.representatives("pmap")
@pytest.mark.parametrize("dispatch", ["sharded", "pmap"])
def test_batches_that_the_devices_do_not_divide_are_valid(dispatch: str, silent: Callable[[], list[str]]) -> None:
    fit(compiled(dispatch=dispatch), batch_size=6)
    assert silent() == []


@pytest.mark.representatives("labels1-flat")
@pytest.mark.parametrize("kind", ["flat", "resnet"])
@pytest.mark.parametrize("labels", [Y > 0, (Y > 0).astype(int), (Y > 0)[:, None], np.linspace(0, 1, 16)])
def test_labels_of_one_binary_output(labels: np.ndarray, kind: str, silent: Callable[[], list[str]]) -> None:
    model = compiled(nnx.clone(network(kind, 1)), learning_rate=0.0, seed=np.int64(3))
    model.fit(X, labels, verbose=0)
    model.predict(X, outputs="probabilities", verbose=0)
    assert silent() == []


def test_a_model_can_train_in_a_callback_of_another_model(silent: Callable[[], list[str]]) -> None:
    inner, outer = (compiled(nnx.clone(network("flat", 3))) for _ in range(2))
    again = resfit.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: inner.fit(X, Y, verbose=0))
    outer.fit(X, Y, verbose=0, callbacks=again)
    assert silent() == []
