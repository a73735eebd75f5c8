"""Several metrics share their counts, and vector metrics work wherever scalar metrics do."""

import csv
import io
import json
from typing import Any

import jax
import numpy as np
import pytest
import rich.console
from flax import nnx

from resfit import metrics
from resfit.callbacks import CSVLogger, ProgressBar
from resfit.errors import CompileError
from tests.helpers import BATCH, CLASSES, PlainNet, compiled, fit, images, labels

BY_CLASS = ["confusion_matrix", "precision", "recall", "f1", "precision_per_class", "recall_per_class", "f1_per_class",
            "accuracy_per_class"]  # fmt: skip


def test_all_metrics_of_one_confusion_matrix_count_once() -> None:
    kind = metrics.collection(metrics.by_name([*BY_CLASS, "accuracy", "auc"], num_classes=4))
    assert metrics.names(kind) == ["loss", *BY_CLASS, "accuracy", "auc"]
    matrices = [leaf for leaf in jax.tree.leaves(kind.empty()) if leaf.shape == (4, 4)]
    assert len(matrices) == 1
    assert list(kind.empty().compute()) == metrics.names(kind)
    other = metrics.collection({"a": metrics.precision(4), "b": metrics.precision(5)})
    assert len([leaf for leaf in jax.tree.leaves(other.empty()) if leaf.ndim == 2]) == 2


def test_shared_metrics_have_the_same_values_as_separate_ones() -> None:
    logits = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    targets = np.random.default_rng(1).integers(0, 4, 30).astype(np.int32)
    given = metrics.by_name(BY_CLASS, num_classes=4)
    kind = metrics.collection(given)
    ones = np.ones(30, np.float32)

    @jax.jit
    def counted(logits: jax.Array, targets: jax.Array) -> Any:
        update = metrics.from_step(kind, outputs=logits, targets=targets, loss=ones, mask=ones > 0)
        each = {name: metric.from_model_output(logits=logits, targets=targets) for name, metric in given.items()}
        return kind.empty().merge(update), each

    merged, each = jax.device_get(counted(logits, targets))
    together = merged.compute()
    for name, metric in each.items():
        alone = metric.compute()
        np.testing.assert_array_equal(together[name], alone, err_msg=name)
    # No metric has the value of another, except that accuracy by class is recall if every class occurs.
    assert len({str(value) for value in together.values()}) == len(together) - 1


def test_vectors_and_matrices_reach_every_hook_of_a_training_run() -> None:
    import sklearn.metrics

    by_class = metrics.by_name([*BY_CLASS, "auc"], num_classes=CLASSES)
    model = compiled(PlainNet(rngs=nnx.Rngs(0)), metrics=[*by_class.values(), "calibration_error", "accuracy"])
    written = io.StringIO()
    bar = ProgressBar(2, rich.console.Console(file=written, width=200))
    data = images(16), labels(16)
    history = fit(model, *data, epochs=2, validation_data=data, callbacks=[bar, CSVLogger("log.csv")]).history
    assert all(np.shape(value) == (CLASSES, CLASSES) for value in history["confusion_matrix"])
    assert all(np.sum(value) == 16 for value in history["val_confusion_matrix"])
    assert json.loads(json.dumps(history)) == history
    assert [type(value) for value in history["f1"]] == [float, float]
    assert "val_f1" in written.getvalue()
    assert "confusion_matrix" not in written.getvalue()
    with open("log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    np.testing.assert_array_equal(json.loads(rows[1]["val_confusion_matrix"]), history["val_confusion_matrix"][1])

    found = model.evaluate(*data, batch_size=BATCH, verbose=0, return_dict=True)
    for name, value in found.items():
        np.testing.assert_array_equal(value, history[f"val_{name}"][-1], err_msg=name)
    predicted, y = model.predict(data[0], verbose=0).argmax(axis=1), data[1]
    np.testing.assert_array_equal(found["confusion_matrix"], sklearn.metrics.confusion_matrix(y, predicted))
    np.testing.assert_allclose(found["f1"], sklearn.metrics.f1_score(y, predicted, average="macro"), rtol=1e-12)
    np.testing.assert_allclose(found["accuracy"], (y == predicted).mean(), rtol=1e-6)


def test_several_devices_count_the_same_as_one() -> None:
    given = [*metrics.by_name([*BY_CLASS, "auc"], num_classes=CLASSES).values(), "calibration_error"]
    found = []
    for dispatch in ("jit", "sharded"):
        model = compiled(PlainNet(rngs=nnx.Rngs(0)), metrics=given, dispatch=dispatch)
        found.append(model.evaluate(images(20), labels(20), batch_size=BATCH, verbose=0, return_dict=True))
    for name, value in found[0].items():
        np.testing.assert_allclose(found[1][name], value, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("f1", r"resfit\.metrics\.f1\(num_classes=10\)"),
        ("recall_per_class", r"resfit\.metrics\.recall\(num_classes=10, per_class=True\)"),
        ("accuracy_per_class", r"resfit\.metrics\.accuracy_per_class\(num_classes=10\)"),
        ("auc", r"resfit\.metrics\.auc\(num_classes=10\)"),
    ],
)
def test_a_per_class_metric_name_requires_the_number_of_classes(name: str, remedy: str) -> None:
    with pytest.raises(CompileError, match=remedy):
        metrics.by_name([name])


@pytest.mark.parametrize("name", ["merge", "compute"])
def test_a_name_reserved_by_the_collection_raises(name: Any) -> None:
    with pytest.raises(CompileError, match=f"cannot be named '{name}'"):
        metrics.by_name({name: "accuracy"})
