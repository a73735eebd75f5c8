"""Copies of models by `copy`, `pickle` and what is built on it: they go on training exactly as the original would."""

import concurrent.futures
import copy
import multiprocessing
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import joblib
import numpy as np
import optax
import optax.contrib
import pytest
from flax import nnx

import resfit
from resfit import callbacks
from resfit.errors import PickleError
from tests.helpers import CLASSES, PlainNet, TinyNet, assert_same, compiled, fit, images, labels, state_of, values
from tests.levels import only


def pickled(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))


WAYS: dict[str, Callable[[Any], Any]] = {"deepcopy": copy.deepcopy, "copy": copy.copy, "pickle": pickled}


def weighted(outputs: Any, targets: Any) -> Any:
    """Return a loss, in a function that pickle finds by its name."""
    return 2 * optax.softmax_cross_entropy_with_integer_labels(outputs, targets)


class Scaled(resfit.Model):
    """A subclass with an argument of its own, and an attribute that refers to the model."""

    def __init__(self, module: nnx.Module, scale: float) -> None:
        super().__init__(module)
        self.scale, self.itself = scale, self

    def compute_loss(self, module: Any, x: Any, y: Any, *, key: jax.Array, train: bool) -> Any:
        losses, outputs = super().compute_loss(module, x, y, key=key, train=train)
        return self.scale * losses, outputs


def with_dropout() -> resfit.Model:
    net = resfit.create_model(
        "resnet20", num_classes=CLASSES, depths=(1,), widths=(4,), in_channels=1, drop_path=0.2, head_dropout=0.2
    )
    return compiled(net, optimizer=optax.adam(0.01), learning_rate=None, augment="cifar", seed=3)


def frozen() -> resfit.Model:
    model = resfit.Model(TinyNet(rngs=nnx.Rngs(0)))
    model.freeze("conv")
    model.compile("sgd", learning_rate=0.1, ema=0.9, loss=weighted, metrics=["accuracy", "cross_entropy"])
    return model


MODELS: dict[str, Callable[[], Any]] = {
    "a number as learning rate": lambda: compiled(PlainNet(rngs=nnx.Rngs(0)), optimizer="adam", seed=2),
    "a schedule": lambda: compiled(PlainNet(rngs=nnx.Rngs(0)), optimizer="adamw", learning_rate="cosine", ema=0.9),
    "a subclass": lambda: compiled(PlainNet(rngs=nnx.Rngs(0)), kind=lambda module: Scaled(module, 0.5)),
    "frozen parts": frozen,
    "other weights for evaluation": lambda: compiled(
        PlainNet(rngs=nnx.Rngs(0)), optimizer=optax.contrib.schedule_free_sgd(0.1), learning_rate=None
    ),
    "dropout and augmentation": with_dropout,
}
QUICK = {
    ("a number as learning rate", "pickle"),
    ("a subclass", "deepcopy"),
    ("other weights for evaluation", "deepcopy"),
}


@pytest.mark.parametrize(("name", "way"), only(QUICK, [(name, way) for name in MODELS for way in WAYS]))
def test_a_copy_goes_on_training_exactly_as_the_original(name: str, way: str) -> None:
    model = MODELS[name]()
    fit(model)
    if name == "a number as learning rate":
        model.learning_rate = 0.003
        model.class_names = ["a", "b", "c"]
    copied = WAYS[way](model)
    assert type(copied) is type(model)
    assert_same(state_of(copied).on_host(), state_of(model).on_host())
    assert (copied.history.history, copied.class_names) == (model.history.history, model.class_names)
    before = model.get_weights()
    on = fit(copied, epochs=2).history
    assert_same(model.get_weights(), before)  # the copy shares no memory
    assert fit(model, epochs=2).history == on
    assert_same(state_of(copied).on_host(), state_of(model).on_host())
    if name == "a subclass":
        assert copied.itself is copied


def test_a_model_that_is_not_compiled_can_be_copied() -> None:
    model = resfit.Model(PlainNet(rngs=nnx.Rngs(0)))
    assert_same(pickled(model).predict(images(4), verbose=0), model.predict(images(4), verbose=0))


@pytest.mark.slow
def test_a_copy_keeps_what_was_frozen_since_compile_for_the_next_one() -> None:
    model = compiled(TinyNet(rngs=nnx.Rngs(0)))
    model.freeze("conv")
    copied = copy.deepcopy(model)
    copied.compile("sgd", learning_rate=0.1)
    kernel = np.array(copied.module.conv.kernel[...])
    fit(copied)
    assert_same(np.array(copied.module.conv.kernel[...]), kernel)


@pytest.mark.parametrize("name", ["Accuracy", "BinaryAccuracy", "CrossEntropy"])
def test_a_model_with_a_metric_class_of_resfit_can_be_pickled(name: str) -> None:
    metric = getattr(resfit.metrics, name)
    model = resfit.Model(PlainNet(rngs=nnx.Rngs(0)))
    model.compile("sgd", metrics=[metric])
    assert pickled([metric, model])[0] is metric


def test_a_copy_made_in_a_running_fit_is_a_model_at_that_step() -> None:
    class Copy(callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if batch == 1:
                self.copied = pickled(self.model)
                self.weights = self.model.get_weights()

    callback = Copy()
    fit(compiled(PlainNet(rngs=nnx.Rngs(0))), callbacks=[callback])
    assert_same(callback.copied.get_weights(), callback.weights)
    fit(callback.copied)


def train(model: Any) -> dict[str, Any]:
    return fit(model).history


def test_joblib_and_a_spawned_process_get_a_model_that_trains_as_the_original(tmp_path: Path) -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)))
    fit(model)
    joblib.dump(model, tmp_path / "model.joblib")
    here = joblib.load(tmp_path / "model.joblib")
    assert train(here) == train(model)


@pytest.mark.slow
def test_a_spawned_process_gets_a_model_that_trains_as_the_original() -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)))
    fit(model)
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        there = pool.submit(train, model).result(timeout=120)
    assert there == train(model)


# --- what cannot be pickled -------------------------------------------------------------------------------------------


def local_module() -> nnx.Module:
    class Local(PlainNet):
        pass

    return Local(rngs=nnx.Rngs(0))


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "a loss": (
        lambda: compiled(PlainNet(rngs=nnx.Rngs(0)), loss=lambda a, b: weighted(a, b)),
        r"compile\(loss=\.\.\.\)",
    ),
    "a mask of an optimizer": (
        lambda: compiled(
            PlainNet(rngs=nnx.Rngs(0)),
            optimizer=optax.masked(optax.sgd(0.1), lambda params: jax.tree.map(lambda _: True, params)),
            learning_rate=None,
        ),
        r"compile\(optimizer=\.\.\.\)",
    ),
    "a module": (lambda: compiled(local_module()), r"model\.module"),
    "an attribute": (lambda: holding(threading.Lock()), r"model\.notes"),
}


def holding(thing: Any) -> Any:
    model = resfit.Model(PlainNet(rngs=nnx.Rngs(0)))
    model.notes = thing
    return model


@pytest.mark.parametrize("name", REFUSED)
def test_an_object_without_a_pickle_is_named_with_the_remedy(name: str) -> None:
    make, what = REFUSED[name]
    with pytest.raises(PickleError, match=what) as caught:
        pickle.dumps(make())
    assert "resfit.load(path)" in str(caught.value)
    assert isinstance(caught.value, pickle.PicklingError)


@pytest.mark.parametrize("function", [copy.copy, copy.deepcopy])
def test_an_object_without_a_copy_is_named(function: Any) -> None:
    with pytest.raises(PickleError, match=r"^model\.notes cannot be copied: .*lock"):
        function(holding(threading.Lock()))


def test_the_reason_is_that_of_the_named_part() -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)), loss=lambda a, b: weighted(a, b))
    model.notes = threading.Lock()
    with pytest.raises(PickleError, match=r"^compile\(loss=\.\.\.\) cannot be pickled: the function .*<lambda>"):
        pickle.dumps(model)


@pytest.mark.slow
def test_a_model_with_a_lambda_can_be_deepcopied() -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)), loss=lambda a, b: weighted(a, b))
    fit(model)
    copied = copy.deepcopy(model)
    assert train(copied) == train(model)


# --- networks and other objects ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", only({"basic"}, ["basic", "preact_basic"]))
def test_a_network_of_resfit_can_be_pickled_alone(block: str) -> None:
    net = resfit.create_model("resnet20", num_classes=CLASSES, depths=(1,), widths=(4,), in_channels=1, block=block)
    copied = pickled(net)
    assert nnx.graphdef(copied) == nnx.graphdef(net)
    assert_same(values(copied), values(net))


def test_a_history_and_callbacks_leave_the_model_behind() -> None:
    stopping = callbacks.EarlyStopping(monitor="loss")
    history = fit(compiled(PlainNet(rngs=nnx.Rngs(0))), callbacks=[stopping])
    for copied, original in ((pickled(history), history), (copy.deepcopy(history), history)):
        assert (copied.history, copied.epoch, copied.params) == (original.history, original.epoch, original.params)
        assert not hasattr(copied, "model")
    assert pickled(stopping).state_dict() == stopping.state_dict()


def test_an_exported_model_can_be_pickled(tmp_path: Path) -> None:
    model = resfit.Model(PlainNet(rngs=nnx.Rngs(0)))
    model.export(tmp_path / "model.npz", input_shape=(8, 8, 1), input_dtype="float32", platforms=["cpu"])
    exported = resfit.load_exported(tmp_path / "model.npz")
    for copied in (pickled(exported), copy.deepcopy(exported)):
        assert_same(copied.predict(images(3)), exported.predict(images(3)))


SMALL: dict[str, Callable[[], Any]] = {
    "transforms": lambda: resfit.transforms.Transforms(resize=36, crop=32),
    "schedule": lambda: resfit.schedules.WarmupCosine(peak=0.1, warmup_epochs=1),
    "augmentation": lambda: resfit.augment.get("cifar"),
    "loss": lambda: resfit.losses.CrossEntropy(label_smoothing=0.1),
    "spec": lambda: resfit.create_model("resnet20", num_classes=2, depths=(1,), widths=(4,)).spec,
    "early stopping": callbacks.EarlyStopping,
    "model checkpoint": lambda: callbacks.ModelCheckpoint("model.safetensors"),
    "checkpoint": lambda: callbacks.Checkpoint("run"),
    "csv logger": lambda: callbacks.CSVLogger("log.csv"),
    "tensorboard": callbacks.TensorBoard,
    "lambda callback": lambda: callbacks.LambdaCallback(on_epoch_end=train),
    "progress bar": callbacks.ProgressBar,
    "batches": lambda: resfit.data.as_batches(images(), labels(), geometry=resfit.data.Geometry(8)),
}


@pytest.mark.parametrize("name", SMALL)
def test_small_objects_can_be_pickled(name: str) -> None:
    made = SMALL[name]()
    assert type(pickled(made)) is type(copy.deepcopy(made)) is type(made)
