"""Several labels per example: outputs, metrics and files treat each output separately, or raise an error."""

import functools
import logging
from pathlib import Path
from typing import Any

import clu.metrics
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import resfit
from resfit import losses, metrics
from resfit.errors import CompileError, DataError, LabelError
from resfit.losses import BinaryCrossEntropy
from resfit.trainer.learned.facts import SeenData
from tests.helpers import PlainNet, compiled, context_of, fit, images

X = images(20)
Y = (np.random.default_rng(3).random((20, 3)) < [0.5, 0.3, 0.7]).astype(np.int32)
ONE_HOT = np.eye(3, dtype=np.int32)[np.arange(20) % 3]


def net(outputs: int = 3) -> PlainNet:
    return PlainNet(outputs, rngs=nnx.Rngs(1))


def model_of(loss: Any = "binary_cross_entropy", names: Any = None, outputs: int = 3) -> resfit.Model:
    model: resfit.Model = compiled(net(outputs), loss=loss, metrics=names, learning_rate=0.01)
    return model


def own(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return a custom loss, which can mark missing labels by -1."""
    known = labels >= 0
    return jnp.where(known, optax.sigmoid_binary_cross_entropy(logits, labels), 0).mean(axis=1)


EACH: dict[str, Any] = {
    "f1": metrics.f1(3),
    "precision": metrics.precision(3),
    "recall": metrics.recall(3),
    "auc": metrics.auc(3),
    "f1_per_class": metrics.f1(3, per_class=True),
    "precision_per_class": metrics.precision(3, per_class=True),
    "recall_per_class": metrics.recall(3, per_class=True),
    "accuracy_per_class": metrics.accuracy_per_class(3),
    "confusion_matrix": metrics.confusion_matrix(3),
    "accuracy": "accuracy",
    "cross_entropy": "cross_entropy",
    "binary_accuracy": "binary_accuracy",
}


def expected(logits: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """Return the values of scikit-learn's metrics."""
    from sklearn import metrics as sklearn  # slow to import

    yes = (logits > 0).astype(int)
    per_label = {
        "f1": sklearn.f1_score, "precision": sklearn.precision_score, "recall": sklearn.recall_score,
    }  # fmt: skip
    found: dict[str, Any] = {
        name: score(y, yes, average="macro", zero_division=0) for name, score in per_label.items()
    } | {f"{name}_per_class": score(y, yes, average=None, zero_division=0) for name, score in per_label.items()}
    loss = np.mean(jax.jit(optax.sigmoid_binary_cross_entropy)(logits, y))
    return found | {
        "auc": sklearn.roc_auc_score(y, logits, average="macro"),
        "accuracy_per_class": (yes == y).mean(axis=0),
        "confusion_matrix": sklearn.multilabel_confusion_matrix(y, yes),
        "accuracy": (yes == y).mean(),
        "binary_accuracy": (yes == y).mean(),
        "cross_entropy": loss,
        "loss": loss,
    }


def test_metrics_of_a_binary_loss_equal_scikit_learns_for_several_labels() -> None:
    model = model_of(names=EACH)
    logits = model.predict(X, verbose=0)
    found = model.evaluate(X, Y, batch_size=8, verbose=0, return_dict=True)  # a padded last batch
    assert set(found) == set(expected(logits, Y))
    for name, value in expected(logits, Y).items():
        tolerance = 2e-3 if name == "auc" else 1e-6  # the area is counted in bins
        np.testing.assert_allclose(found[name], value, atol=tolerance, err_msg=name)


def test_metric_names_follow_the_loss_for_several_labels() -> None:
    chosen = metrics.by_name(["accuracy", "f1"], num_classes=3, multi_label=True)
    assert chosen == {"accuracy": metrics.BinaryAccuracy, "f1": metrics.f1(3, multi_label=True)}
    # A binary logit has only one meaning.
    assert metrics.by_name(["accuracy", "f1"], num_classes=1, multi_label=True) == {
        "accuracy": metrics.Accuracy,
        "f1": metrics.f1(1),
    }
    assert metrics.f1(1, multi_label=True) is metrics.f1(1)


def test_one_binary_output_keeps_the_values_of_its_metrics() -> None:
    y = Y[:, :1]
    single = model_of(names={"accuracy": "accuracy", "calibration_error": "calibration_error"}, outputs=1)
    automatic = compiled(net(1), loss="auto", metrics=["accuracy", "calibration_error"])
    np.testing.assert_allclose(single.evaluate(X, y, verbose=0), automatic.evaluate(X, y, verbose=0), rtol=1e-6)
    np.testing.assert_array_equal(
        single.predict(X, outputs="labels", verbose=0), automatic.predict(X, outputs="labels", verbose=0)
    )


@pytest.mark.parametrize("name", ["calibration_error", "top_2_accuracy"])
def test_metrics_without_a_meaning_for_several_labels_raise(name: str) -> None:
    with pytest.raises(LabelError, match=rf"{name} reads one class per example.*3 outputs.*'accuracy'"):
        model_of(names=[name]).evaluate(X, Y, verbose=0)


def test_accuracy_of_clu_raises_and_other_metrics_of_clu_receive_every_label() -> None:
    with pytest.raises(CompileError, match="of clu, which reads one class per example"):
        model_of(names={"clu": clu.metrics.Accuracy})
    every = clu.metrics.Average.from_fun(lambda *, labels, **_: labels.sum(axis=1))
    found = model_of(names={"every": every}).evaluate(X, Y, verbose=0, return_dict=True)
    np.testing.assert_allclose(found["every"], Y.sum(axis=1).mean(), rtol=1e-6)


def test_binary_accuracy_raises_for_a_loss_over_classes() -> None:
    with pytest.raises(LabelError, match="binary_accuracy reads every output on its own"):
        model_of("cross_entropy", ["binary_accuracy"]).evaluate(X, ONE_HOT, verbose=0)


LOSSES: dict[str, Any] = {
    "binary": "binary_cross_entropy",
    "options": BinaryCrossEntropy(multi_label=True, label_smoothing=0.1),
    "by labels": BinaryCrossEntropy(),
    "custom": own,
}


@pytest.mark.representatives("by labels")
@pytest.mark.parametrize("loss", LOSSES)
def test_predictions_of_a_multi_label_model_are_independent_also_from_files(loss: str, tmp_path: Path) -> None:
    model = model_of(LOSSES[loss])
    fit(model, X, Y)
    logits = model.predict(X, verbose=0)
    wanted = {"logits": logits, "probabilities": np.asarray(jax.nn.sigmoid(logits)), "labels": (logits > 0).astype(int)}
    model.save(tmp_path / "model.safetensors")
    loaded = resfit.load(tmp_path / "model.safetensors", module=net())
    loaded.compile("sgd", loss=own if loss == "custom" else LOSSES[loss], metrics=None, dispatch="jit")
    for outputs, values in wanted.items():
        model.export(tmp_path / f"{outputs}.npz", outputs=outputs, platforms=["cpu"], class_names=["a", "b", "c"])
        exported = resfit.load_exported(tmp_path / f"{outputs}.npz")
        assert exported.metadata["multi_label"] is True
        for found in (
            model.predict(X, outputs=outputs, verbose=0), loaded.predict(X, outputs=outputs, verbose=0),
            exported.predict(X),
        ):  # fmt: skip
            np.testing.assert_allclose(found, values, rtol=1e-5, atol=1e-6)


def test_a_binary_loss_decides_before_any_labels_are_seen() -> None:
    model = model_of()
    found = model.predict(X, outputs="probabilities", verbose=0)
    np.testing.assert_allclose(found, jax.nn.sigmoid(model.predict(X, verbose=0)), rtol=1e-6)


@pytest.mark.parametrize("loss", [BinaryCrossEntropy(), own])
def test_labels_of_one_class_give_a_softmax(loss: Any) -> None:
    reads_numbers = loss if loss is not own else lambda logits, labels: losses.cross_entropy(logits, labels)
    model = model_of(reads_numbers, ["accuracy"])
    fit(model, X, np.arange(20) % 3)
    assert model.predict(X, outputs="labels", verbose=0).shape == (20,)
    np.testing.assert_allclose(model.predict(X, outputs="probabilities", verbose=0).sum(axis=1), 1, rtol=1e-5)


def test_a_loss_for_both_kinds_of_labels_asks_for_labels_or_an_argument() -> None:
    model = model_of(BinaryCrossEntropy())
    with pytest.raises(CompileError, match=r"has seen none.*BinaryCrossEntropy\(multi_label=True\)"):
        model.predict(X, outputs="probabilities", verbose=0)
    assert model.predict(X, verbose=0).shape == (20, 3)
    one = model_of(BinaryCrossEntropy(), outputs=1)
    one.evaluate(X, Y[:, :1], verbose=0)
    assert one.predict(X, outputs="labels", verbose=0).shape == (20,)
    with pytest.raises(LabelError, match="Row 0 of the targets sums to 2"):
        losses.check(BinaryCrossEntropy(multi_label=False), np.array([[1, 1, 0]]), (1, 3))
    with pytest.raises(LabelError, match=r"got class numbers.*omit multi_label"):
        BinaryCrossEntropy(multi_label=True)(np.zeros((2, 3), np.float32), np.int32([0, 1]))


@pytest.mark.representatives("mean_squared_error", "own step")
@pytest.mark.parametrize("step", [losses.get("mse"), own, BinaryCrossEntropy(), "own step"])
def test_metrics_for_one_label_raise_for_several_before_anything_is_trained(step: Any) -> None:
    class OwnStep(resfit.Model):
        def compute_loss(self, module: Any, x: Any, y: Any, *, key: Any, train: bool) -> Any:
            return own(module(x), y), module(x)

    kind = OwnStep if step == "own step" else resfit.Model
    loss = "auto" if step == "own step" else step
    model = compiled(net(), kind=kind, loss=loss, metrics=["accuracy"])
    before = model.get_weights()
    row = int(np.flatnonzero(Y.sum(axis=1) != 1)[0])
    with pytest.raises(LabelError, match=rf"Row {row} of the labels .*\['accuracy'\] read one label per example"):
        fit(model, X, Y)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    model.compile("sgd", loss=loss, metrics={"f1": metrics.f1(3, multi_label=True)}, dispatch="jit")
    assert 0 <= model.evaluate(X, Y, verbose=0)[1] <= 1


def test_one_hot_labels_of_a_binary_loss_warn(caplog: pytest.LogCaptureFixture) -> None:
    for y, told in ((ONE_HOT, True), (Y, False)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="resfit"):
            fit(model_of(), X, y)
        assert ("exactly one label" in caplog.text) is told


def test_tools_for_one_class_raise_with_the_remedy_for_several_labels() -> None:
    model = model_of()
    with pytest.raises(LabelError, match=r"outputs='labels'"):
        resfit.top_k(model.predict(X, outputs="probabilities", verbose=0))
    with pytest.raises(DataError, match=r"labels\[:, i\]"):
        resfit.plots.confusion_matrix(Y, model.predict(X, verbose=0))
    distiller = resfit.Distiller(net(), net())
    distiller.compile("sgd", loss="binary_cross_entropy", dispatch="jit")
    with pytest.raises(CompileError, match=r"several labels.*override Model\.compute_loss"):
        distiller.evaluate(X, Y, verbose=0)


@pytest.mark.representatives("several")
@pytest.mark.parametrize("y", [Y, ONE_HOT, ONE_HOT.argmax(axis=1)], ids=["several", "one-hot", "numbers"])
def test_a_trained_model_keeps_the_kind_of_its_labels_after_another_compile(y: Any, tmp_path: Path) -> None:
    model = model_of(BinaryCrossEntropy())
    fit(model, X, y)
    expected = model.predict(X, outputs="labels", verbose=0)
    model.compile("sgd", loss=BinaryCrossEntropy(), metrics=None, dispatch="jit")
    np.testing.assert_array_equal(model.predict(X, outputs="labels", verbose=0), expected)
    model.save(tmp_path / "net.safetensors")
    loaded = resfit.load(tmp_path / "net.safetensors", module=net())
    loaded.compile("sgd", loss=BinaryCrossEntropy(), metrics=None, dispatch="jit")
    np.testing.assert_array_equal(loaded.predict(X, outputs="labels", verbose=0), expected)


def test_a_finished_run_restores_the_kind_of_its_labels_when_resumed(tmp_path: Path) -> None:
    predicted = []
    for _ in range(2):
        model = model_of(BinaryCrossEntropy())
        model.fit([(X, Y)], verbose=0, callbacks=[resfit.callbacks.Checkpoint(tmp_path)], resume=True)
        predicted.append(model.predict(X, outputs="labels", verbose=0))
    np.testing.assert_array_equal(*predicted)
    assert predicted[0].shape == Y.shape


def test_a_finished_run_of_a_version_that_saved_no_facts_reads_its_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SeenData, "load_state_dict", lambda *_: None)
    for _ in range(2):
        model = model_of(BinaryCrossEntropy())
        fit(model, X, Y, callbacks=[resfit.callbacks.Checkpoint(tmp_path)], resume=True)
    assert model.predict(X, outputs="labels", verbose=0).shape == Y.shape
    assert context_of(model).learned.inputs.trained


def test_early_stopping_restores_the_best_by_a_metric_for_several_labels() -> None:
    model = model_of(names=["accuracy"])
    stop = resfit.callbacks.EarlyStopping("val_accuracy", patience=1, restore_best_weights=True)
    history = fit(model, X, Y, validation_data=(X, Y), epochs=3, callbacks=[stop]).history
    best = model.evaluate(X, Y, verbose=0)[1]
    assert best == pytest.approx(max(history["val_accuracy"]))


def test_multi_hot_labels_are_recognized() -> None:
    first = functools.partial(losses.multi_hot_row)
    assert first(np.array([[1, 0, 0], [0, 0, 0]])) == 1
    assert first(np.array([[True, True]])) == 0
    assert first(np.array([[0.0, 1.0, np.nan], [np.nan, np.nan, np.nan]])) == 1
    for other in (ONE_HOT, np.full((2, 2), 0.5), np.arange(4), np.ones((4, 1)), np.ones((2, 2, 2)), {"a": Y}, None):
        assert first(other) is None
