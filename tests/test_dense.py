"""Dense prediction, from `compile` to files: a class for every pixel."""

import itertools
import os
import signal
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import resfit
from resfit import losses, metrics
from resfit.callbacks import Checkpoint, LambdaCallback
from resfit.data import Geometry, as_batches
from resfit.data.class_weights import class_weights
from resfit.data.relabeled import relabeled
from resfit.data.sources.arrays import as_arrays
from resfit.errors import DataError, LabelError, LossError
from resfit.losses import BinaryCrossEntropy, CrossEntropy
from tests.data.test_relabeled import NamedSource
from tests.helpers import assert_close, assert_same, compiled, fit, values
from tests.levels import only

CLASSES, IGNORED, SIZE = 3, 255, (20, 4, 3)


class PerPixel(nnx.Module):
    """A dense layer on the channels of every pixel."""

    def __init__(self, classes: int = CLASSES) -> None:
        self.dense = nnx.Linear(1, classes, rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.dense(x)


def data(classes: int = CLASSES, *, ignored: bool = True) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    x = random.normal(size=(*SIZE, 1)).astype(np.float32)
    y = random.integers(0, max(classes, 2), SIZE).astype(np.uint8)
    if ignored:
        y[random.random(SIZE) < 0.3] = IGNORED
        y[3] = IGNORED
    return x, y


def model(classes: int = CLASSES, **arguments: Any) -> Any:
    return compiled(
        PerPixel(classes),
        **{
            "loss": CrossEntropy(ignore_index=IGNORED),
            "metrics": {"accuracy": "accuracy", "mean_iou": metrics.mean_iou(classes)},
            **arguments,
        },
    )


def expected(logits: np.ndarray, y: np.ndarray, weight: Any = 1.0) -> dict[str, float]:
    """Return loss and metrics by formulas in NumPy."""
    valid = y != IGNORED
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    each = -np.take_along_axis(log_p, np.where(valid, y, 0)[..., None].astype(int), axis=-1)[..., 0]
    image = (each * valid * weight).sum(axis=(1, 2)) / np.maximum(valid.sum(axis=(1, 2)), 1)
    predicted = logits.argmax(axis=-1)
    shares = [
        ((predicted == k) & (y == k)).sum() / (valid & ((predicted == k) | (y == k))).sum() for k in range(CLASSES)
    ]
    return {"loss": image.mean(), "accuracy": (predicted == y)[valid].mean(), "mean_iou": np.mean(shares)}


@pytest.mark.parametrize("dispatch", only(("jit",), ("jit", "sharded", "pmap", "eager")))
@pytest.mark.parametrize("batch_size", only((8,), (1, 7, 8, 20)))
def test_evaluation_is_exact_for_every_batch_size_and_weight_of_pixels(dispatch: str, batch_size: int) -> None:
    x, y = data()
    trained = model(dispatch=dispatch)
    history = fit(trained, x, y, epochs=2)
    assert history.history["loss"][1] < history.history["loss"][0]
    logits = trained.predict(x, batch_size, verbose=0)
    found = trained.evaluate(x, y, batch_size, verbose=0, return_dict=True)
    assert_close(found, expected(logits, y))
    weight = np.random.default_rng(1).random(SIZE).astype(np.float32)
    found = trained.evaluate(x, y, batch_size, verbose=0, return_dict=True, sample_weight=weight)
    assert_close(found, expected(logits, y, weight))
    labels = trained.predict(x, batch_size, verbose=0, outputs="labels")
    np.testing.assert_array_equal(labels, logits.argmax(axis=-1))


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [{"dispatch": "sharded"}, {"dispatch": "pmap"}, {"gradient_accumulation_steps": 2}]
)
def test_training_is_the_same_on_devices_and_in_slices(arguments: dict[str, Any]) -> None:
    x, y = data()
    weight = np.random.default_rng(1).random(SIZE)
    one, other = model(), model(**arguments)
    histories = [fit(each, x, y, epochs=2, sample_weight=weight).history for each in (one, other)]
    assert_close(histories[0], histories[1])
    assert_close(values(one.module), values(other.module))


@pytest.mark.slow
def test_class_weights_are_the_weights_of_the_pixels_of_each_class() -> None:
    x, y = data()
    weight = np.where(y == 1, 5.0, np.where(y == 2, 0.5, 1.0))
    histories = [
        fit(model(), x, y, class_weight={1: 5.0, 2: 0.5}).history,
        fit(model(), x, y, sample_weight=weight).history,
        fit(model(), [(x[i : i + 8], y[i : i + 8]) for i in (0, 8, 16)], class_weight={1: 5.0, 2: 0.5}).history,
    ]
    assert_same(histories[0], histories[1])
    assert histories[2]["loss"][0] == pytest.approx(histories[0]["loss"][0], rel=0.1)  # another order


class Positions(nnx.Module):
    """A class for each position: (batch, positions, features) -> (batch, positions, classes)."""

    def __init__(self) -> None:
        self.head = nnx.Linear(4, 3, rngs=nnx.Rngs(0))

    def __call__(self, x: Any) -> Any:
        return self.head(x)


def test_class_weights_of_sequences_need_an_axis_that_says_so() -> None:
    x = np.random.default_rng(0).normal(size=(6, 5, 4)).astype("float32")
    y = np.eye(5, dtype="int32")[[0, 1, 2, 3, 4, 0]]  # class numbers of five positions, which look like one-hot rows
    weight = np.array([1.0, 5.0])
    net = resfit.Model(Positions())
    net.compile("sgd", learning_rate=0.0)
    for train in (
        lambda: fit(net, x, y, class_weight={1: 5.0}),
        lambda: fit(net, [(x, y)], class_weight={1: 5.0}),
        lambda: net.train_on_batch(x, y, class_weight={1: 5.0}),
    ):
        with pytest.raises(LabelError, match=r"class_weight reads labels.*\(6, 5, 3\).*Pass y\[\.\.\., None\]"):
            train()
    net.evaluate(x, y, verbose=0)  # the weights are forgotten
    logits = net.predict(x, verbose=0)
    each = optax.softmax_cross_entropy_with_integer_labels(logits, y)
    history = fit(net, x, y[..., None], class_weight={1: 5.0}).history
    assert history["loss"][0] == pytest.approx(float((each * weight[y]).mean()), rel=1e-5)
    history = fit(net, x, y[..., None], sample_weight=weight[y]).history
    assert history["loss"][0] == pytest.approx(float((each * weight[y]).mean()), rel=1e-5)
    with pytest.raises(DataError, match=r"class number at each position.*y\[\.\.\., None\]"):
        fit(net, x, y + 1, class_weight={1: 5.0})
    with pytest.raises(DataError, match=r"one weight per position.*y\[\.\.\., None\]"):
        fit(net, x, y, sample_weight=weight[y])


@pytest.mark.parametrize("loss", only(("auto",), ("auto", "binary_crossentropy", "focal", BinaryCrossEntropy())))
@pytest.mark.parametrize("form", only(("mask",), ("mask", "channel", "bool", "float")))
def test_binary_masks_have_one_output(loss: Any, form: str) -> None:
    x, y = data(1, ignored=False)
    forms = {"mask": y, "channel": y[..., None], "bool": y > 0, "float": y.astype(np.float32)}
    trained = model(1, loss=loss)
    fit(trained, x, forms[form])
    logits = trained.predict(x, verbose=0)
    labels = trained.predict(x, verbose=0, outputs="labels")
    np.testing.assert_array_equal(labels, logits[..., 0] > 0)
    found = trained.evaluate(x, forms[form], verbose=0, return_dict=True)
    assert found["accuracy"] == pytest.approx((labels == y).mean())
    shares = [((labels == k) & (y == k)).sum() / ((labels == k) | (y == k)).sum() for k in (0, 1)]
    assert found["mean_iou"] == pytest.approx(np.mean(shares))


def test_predictions_are_over_the_last_axis() -> None:
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 3, 5)).astype(np.float32))
    np.testing.assert_allclose(losses.probabilities(logits).sum(axis=-1), np.ones((2, 4, 3)), rtol=1e-6)
    np.testing.assert_array_equal(losses.class_numbers(logits), logits.argmax(axis=-1))
    np.testing.assert_array_equal(losses.each_label(logits), logits > 0)
    np.testing.assert_array_equal(losses.class_numbers(logits[..., :1]), logits[..., 0] > 0)
    assert losses.each_label(logits[..., :1]).shape == (2, 4, 3)


@pytest.mark.slow
def test_a_terminated_run_resumes_at_its_step_bit_for_bit(tmp_path: Path) -> None:
    x, y = data()

    def run(folder: Path, *more: Any) -> Any:
        trained = model(augment=resfit.augment.flip())
        weight = np.random.default_rng(1).random(SIZE)
        fit(trained, x, y, epochs=3, sample_weight=weight, callbacks=[*more, Checkpoint(folder)], resume=True)
        return trained

    whole = run(tmp_path / "whole")
    steps = itertools.count()
    stop = LambdaCallback(on_train_batch_end=lambda *_: next(steps) == 3 and os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit):
        run(tmp_path / "cut", stop)
    resumed = run(tmp_path / "cut")
    assert_same(values(resumed.module), values(whole.module))
    assert_same(resumed.history.history, whole.history.history)


@pytest.mark.slow
def test_an_exported_model_maps_images_to_masks(tmp_path: Path) -> None:
    x, y = data()
    trained = model()
    fit(trained, x, y)
    trained.export(tmp_path / "model.npz", outputs="labels")
    masks = resfit.load_exported(tmp_path / "model.npz").predict(x)
    np.testing.assert_array_equal(masks, trained.predict(x, verbose=0, outputs="labels"))
    trained.save(tmp_path / "model.safetensors")
    again = resfit.load(tmp_path / "model.safetensors", PerPixel())
    np.testing.assert_array_equal(again.predict(x, verbose=0), trained.predict(x, verbose=0))


def test_class_weights_have_the_shape_of_the_masks() -> None:
    y = np.array([[[0, 1], [2, 255]]], np.uint8)
    weights = np.array([[[1, 5], [1, 1]]], np.float32)
    for form in (y, y[..., None], y.astype(np.float32), np.where(y == 255, -1, y.astype(np.int8))):
        np.testing.assert_array_equal(class_weights(form, {1: 5.0}), weights)
    np.testing.assert_array_equal(class_weights(np.eye(3)[np.minimum(y, 2)], {1: 5.0}), weights)
    with pytest.raises(DataError, match=r"row 0 of the labels sums to 1\.5"):
        class_weights(np.full((1, 2, 2, 3), 0.5), {1: 5.0})


@pytest.mark.parametrize("shape", [(20, 3, 4), (20, 1), (20, 4, 3, 1)])
def test_weights_of_another_shape_than_the_masks_raise(shape: tuple[int, ...]) -> None:
    x, y = data()
    with pytest.raises(DataError, match=r"\(20, 4, 3\)\. Expected one weight per example, \(20,\), or one per pixel"):
        as_arrays(x, y, np.ones(shape))


def test_weights_of_pixels_need_outputs_of_pixels_and_the_loss_of_resfit() -> None:
    x, y = data()

    class Own(resfit.Model):
        def compute_loss(self, module: Any, x: Any, y: Any, *, key: Any, train: bool) -> Any:
            return jnp.zeros(len(x)), module(x)

    with pytest.raises(LossError, match=r"\(20, 4, 3\), and compute_loss is overridden"):
        model(kind=Own).test_on_batch(x, y, np.ones(SIZE))
    with pytest.raises(LossError, match="custom loss"):
        model(loss=lambda logits, labels: jnp.zeros(len(labels))).test_on_batch(x, y, np.ones(SIZE))


def test_masks_of_another_size_raise_before_the_first_step() -> None:
    x, y = data()
    with pytest.raises(LabelError, match=r"4 x 3 pixels of outputs and 2 x 3 labels.*jax\.image\.resize"):
        fit(model(), x, y[:, :2])


def test_masks_are_mapped_by_class_name_and_ignored_pixels_stay() -> None:
    x, y = data()
    source = NamedSource(x, y, ("c", "a", "b"))
    batches = relabeled(as_batches(source, geometry=Geometry(5)), ("a", "b", "c"), "x", IGNORED)
    np.testing.assert_array_equal(batches.labels, np.select([y == 0, y == 1, y == 2], [2, 0, 1], IGNORED))
    one_hot = NamedSource(x, np.eye(3, dtype=np.uint8)[y % 3], ("c", "a", "b"))
    columns = relabeled(as_batches(one_hot, geometry=Geometry(5)), ("a", "b", "c"), "x").labels
    np.testing.assert_array_equal(columns.argmax(axis=-1), np.array([2, 0, 1])[y % 3])
    with pytest.raises(DataError, match="class number 255"):
        _ = relabeled(as_batches(source, geometry=Geometry(5)), ("a", "b", "c"), "x").labels


@pytest.mark.slow
def test_sequences_of_zeros_and_ones_are_class_numbers_and_not_several_labels() -> None:
    x, y = data(2, ignored=False)
    trained = model(2, loss="auto", metrics=["accuracy"])
    fit(trained, x[:, 0], y[:, 0].astype(np.int32))
    assert trained.predict(x[:, 0], verbose=0, outputs="labels").shape == (20, 3)


class MasksAndKinds(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.masks, self.kinds = nnx.Linear(2, 3, rngs=rngs), nnx.Linear(2, 4, rngs=rngs)

    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        return {"masks": self.masks(x), "kinds": self.kinds(x.mean(axis=(1, 2)))}


def test_each_of_several_outputs_has_weights_of_its_examples_or_pixels() -> None:
    random = np.random.default_rng(0)
    n = 4  # as many as the pixels of a side: no broadcast may hide
    x = random.normal(size=(n, n, n, 2)).astype(np.float32)
    y = {"masks": random.integers(0, 3, (n, n, n)), "kinds": np.arange(n)}
    weights = {"masks": random.random((n, n, n)), "kinds": random.random(n)}
    trained = compiled(MasksAndKinds(rngs=nnx.Rngs(0)), loss={"masks": "auto", "kinds": "auto"}, metrics=None)
    found = trained.predict(x, verbose=0)
    each = {name: np.asarray(losses.cross_entropy(found[name].reshape(-1, found[name].shape[-1]), y[name].reshape(-1)))
            for name in y}  # fmt: skip
    masks, kinds = ((each[name] * weights[name].reshape(-1)).mean() for name in ("masks", "kinds"))
    both = trained.evaluate(x, y, sample_weight=weights, batch_size=3, verbose=0)
    np.testing.assert_allclose(both, [masks + kinds, masks, kinds], rtol=1e-5)
    one = trained.evaluate(x, y, sample_weight={"masks": weights["masks"]}, batch_size=3, verbose=0)
    np.testing.assert_allclose(one[1:], [masks, each["kinds"].mean()], rtol=1e-5)
    assert fit(trained, x, y, sample_weight=weights).history["loss"][0] == pytest.approx(masks + kinds, rel=1e-5)
