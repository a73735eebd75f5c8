"""Metrics: any clu metric, exact for any number of batches."""

from typing import Any

import clu.metrics
import jax
import numpy as np
import pytest
from flax import nnx

from resfit import metrics
from resfit.errors import CompileError, LabelError
from tests.helpers import BATCH, CLASSES, PlainNet, compiled, fit, images, labels


def evaluated(names: Any, **arguments: Any) -> Any:
    """Return the result of evaluate and its logits, for 20 examples in batches of 8: the last batch is padded."""
    model = compiled(PlainNet(rngs=nnx.Rngs(0)), metrics=names, **arguments)
    found = model.evaluate(images(), labels(), batch_size=BATCH, verbose=0, return_dict=True)
    return found, model.predict(images(), verbose=0)


def top_k(logits: np.ndarray, y: np.ndarray, k: int) -> float:
    return float((np.argsort(-logits, axis=1, kind="stable")[:, :k] == y[:, None]).any(axis=1).mean())


def test_named_metrics_equal_numpy_over_padded_batches() -> None:
    found, logits = evaluated(["accuracy", "top_2_accuracy", "cross_entropy"])
    assert list(found) == ["loss", "accuracy", "top_2_accuracy", "cross_entropy"]
    np.testing.assert_allclose(found["accuracy"], top_k(logits, labels(), 1), rtol=1e-6)
    np.testing.assert_allclose(found["top_2_accuracy"], top_k(logits, labels(), 2), rtol=1e-6)
    np.testing.assert_allclose(found["cross_entropy"], found["loss"], rtol=1e-6)


def test_the_cross_entropy_metric_does_not_depend_on_the_loss() -> None:
    found, logits = evaluated(["cross_entropy"], loss=lambda outputs, y: 0 * outputs[:, 0])
    shifted = logits - logits.max(axis=1, keepdims=True)
    expected = (np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(20), labels()]).mean()
    assert found["loss"] == 0
    np.testing.assert_allclose(found["cross_entropy"], expected, rtol=1e-5)


def test_metric_classes_of_clu_and_functions_are_metrics() -> None:
    def margin(outputs: jax.Array, y: jax.Array) -> jax.Array:
        return outputs.max(axis=1) - outputs.min(axis=1)

    given = {
        "mean_loss": clu.metrics.Average.from_output("loss"),
        "clu_accuracy": clu.metrics.Accuracy,
        "accuracy": "acc",
        "margin": margin,
    }
    found, logits = evaluated(given)
    assert list(found) == ["loss", *given]
    np.testing.assert_allclose(found["mean_loss"], found["loss"], rtol=1e-6)
    assert found["clu_accuracy"] == found["accuracy"]
    np.testing.assert_allclose(found["margin"], (logits.max(axis=1) - logits.min(axis=1)).mean(), rtol=1e-5)
    history = fit(compiled(PlainNet(rngs=nnx.Rngs(0)), metrics=given), epochs=2).history
    assert set(history) == {"loss", *given}


@pytest.mark.representatives("uint8")
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.int32])
def test_accuracy_of_clu_accepts_labels_of_any_integer_dtype(dtype: Any) -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)), metrics={"theirs": clu.metrics.Accuracy, "ours": "accuracy"})
    for y in (labels().astype(dtype), np.eye(CLASSES, dtype=dtype)[labels()]):
        _, theirs, ours = model.evaluate(images(), y, verbose=0)
        assert theirs == ours == top_k(model.predict(images(), verbose=0), labels(), 1)


def test_top_k_with_k_above_the_number_of_classes_raises() -> None:
    with pytest.raises(LabelError, match="top_5_accuracy got a network with 3 classes"):
        evaluated(["top_5_accuracy"])
    with pytest.raises(LabelError, match="one binary output"):
        metrics.top_k_accuracy(2).from_model_output(logits=np.zeros((4, 1), np.float32), targets=np.zeros(4, np.int32))


def test_ties_go_to_the_lower_class_so_that_equal_logits_are_not_all_correct() -> None:
    made = jax.jit(metrics.top_k_accuracy(2).from_model_output)

    def share(target: int) -> float:
        metric = made(logits=np.zeros((2, 4), np.float32), targets=np.full(2, target, np.int32))
        return float(jax.device_get(metric).compute())

    assert [share(target) for target in range(4)] == [1, 1, 0, 0]


def accuracy(logits: np.ndarray, targets: np.ndarray) -> float:
    metric = jax.jit(metrics.Accuracy.from_model_output)(logits=logits, targets=targets)
    return float(jax.device_get(metric).compute())


def test_a_row_of_nan_is_never_correct() -> None:
    logits = np.float32([[np.nan] * 3, [0.0, 1.0, 0.0]])
    assert accuracy(logits, np.int32([0, 1])) == 0.5


def test_binary_accuracy_uses_the_sign_and_soft_targets_their_largest_class() -> None:
    binary = accuracy(np.float32([[-1.0], [2.0], [3.0]]), np.int32([0, 0, 1]))
    np.testing.assert_allclose(binary, 2 / 3, rtol=1e-6)
    assert accuracy(np.float32([[2.0, 1.0], [2.0, 1.0]]), np.float32([[0.6, 0.4], [0.4, 0.6]])) == 0.5


def running(metric: Any, values: np.ndarray) -> float:
    def add(sums: Any, batch: jax.Array) -> Any:
        return sums.merge(metric.from_model_output(batch)), None

    return float(jax.jit(lambda batches: jax.lax.scan(add, metric.empty(), batches)[0])(values).compute())


def test_a_mean_is_exact_over_many_batches_where_a_plain_sum_drifts() -> None:
    values = np.full((40_000, 128), 0.1, np.float32)
    expected = float(np.float32(0.1))
    assert abs(running(metrics.Mean, values) - expected) < 1e-7  # half a unit in the last place of a float32
    assert abs(running(clu.metrics.Average, values) - expected) > 1e-6  # the value of clu's metric


def test_a_function_that_returns_a_mean_raises() -> None:
    with pytest.raises(LabelError, match=r"'mean' returned shape \(\)\. Expected one value per example, \(8,\)"):
        compiled(PlainNet(rngs=nnx.Rngs(0)), metrics=[mean]).test_on_batch(images(8), labels(8))


def mean(outputs: jax.Array, y: jax.Array) -> jax.Array:
    return outputs.mean()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["fid"], "Unknown metric 'fid'"),
        (["top_0_accuracy"], "Unknown metric 'top_0_accuracy'"),
        (["accuracy", "accuracy"], "Two metrics are named 'accuracy'"),
        ({"loss": "accuracy"}, "cannot be named 'loss'"),
        ([3], "got 3"),
        ({"all": clu.metrics.CollectingMetric.from_outputs(("loss",))}, "CollectingMetric.*model.predict"),
        ([type("Mine", (clu.metrics.Average,), {})], "sums of the metric Mine.*Write @flax.struct.dataclass above"),
        ([type("Own", (clu.metrics.Metric,), {})], "sums of the metric Own.*Write @flax.struct.dataclass above"),
        ([int], "class 'int'"),
        ([lambda outputs, y: outputs[:, 0]], "cannot be named '<lambda>'.*dict of names"),
        ({"my metric": "accuracy"}, "cannot be named 'my metric'"),
        ({"_hidden": "accuracy"}, "cannot be named '_hidden'"),
        ({"merge": "accuracy"}, "cannot be named 'merge'"),
        ({"class": "accuracy"}, "cannot be named 'class'"),
    ],
)
def test_invalid_metrics_raise(given: Any, message: str) -> None:
    with pytest.raises(CompileError, match=message):
        metrics.by_name(given)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (None, []),
        ("accuracy", ["accuracy"]),
        (["acc", "top_3_accuracy"], ["acc", "top_3_accuracy"]),
        ({"a": "ce"}, ["a"]),
        ([clu.metrics.Accuracy], ["Accuracy"]),
        (mean, ["mean"]),
    ],
)
def test_metrics_keep_their_names_and_order(given: Any, names: list[str]) -> None:
    assert list(metrics.by_name(given)) == names
    assert metrics.names(metrics.collection(metrics.by_name(given))) == ["loss", *names]


def test_the_metrics_of_clu_equal_their_formulas() -> None:
    """Std calls jnp.clip with an argument that JAX removed; resfit repairs the call."""
    names = {
        "std": clu.metrics.Std.from_output("loss"),
        "mean": clu.metrics.Average.from_output("loss"),
        "last": clu.metrics.LastValue.from_output("loss"),
    }
    found, logits = evaluated(names, loss=lambda logits, y: logits[:, 0])
    np.testing.assert_allclose(found["std"], logits[:, 0].std(), rtol=1e-4)
    np.testing.assert_allclose(found["mean"], logits[:, 0].mean(), rtol=1e-4)
    assert np.isfinite(found["last"])


def test_accuracy_is_a_default_metric_for_classes_only() -> None:
    from resfit import losses

    assert metrics.automatic(losses.cross_entropy) == {"accuracy": metrics.Accuracy}
    assert metrics.automatic(losses.mean_squared_error) == {}
    assert metrics.automatic(None) == {}
