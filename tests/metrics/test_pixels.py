"""Metrics of dense outputs count pixels, exactly, and leave out padding and ignored pixels."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resfit import metrics
from resfit.errors import CompileError
from resfit.metrics.pixels import wide

SIZE, CLASSES = (5, 4, 3), 3
IGNORED = 255


def pixels(channels: int = CLASSES) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    labels = random.integers(0, max(2, channels), SIZE)
    return random.normal(size=(*SIZE, channels)).astype(np.float32), labels.astype(np.uint8)


def computed(given: Any, logits: Any, labels: Any, ignore_index: int | None = None) -> dict[str, Any]:
    """Return the values over two batches, of three and two examples, whose padding is wrong on purpose."""
    kind = metrics.collection(metrics.by_name(given, max(logits.shape[-1], 1)), ignore_index=ignore_index)
    sums = kind.empty()
    for rows in (slice(0, 3), slice(3, 6)):
        x, y = logits[rows], labels[rows]
        spare = 3 - len(x)
        x, y = (np.concatenate([a, np.zeros((spare, *a.shape[1:]), a.dtype)]) for a in (x, y))
        mask = jnp.arange(3) < 3 - spare
        sums = sums.merge(metrics.from_step(kind, outputs=x, targets=y, loss=jnp.ones(3), mask=mask))
    return jax.tree.map(np.asarray, sums.compute())


def counts(predicted: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    return np.bincount(labels.astype(int) * classes + predicted, minlength=classes**2).reshape(classes, classes)


NAMES = ["accuracy", "mean_iou", "iou_per_class", "confusion_matrix", "f1_per_class", "top_2_accuracy", "cross_entropy"]


@pytest.mark.parametrize("ignore_index", [None, IGNORED])
def test_values_equal_those_of_all_valid_pixels_as_one_array(ignore_index: int | None) -> None:
    logits, labels = pixels()
    if ignore_index is not None:
        labels[np.random.default_rng(1).random(SIZE) < 0.4] = IGNORED
        labels[1] = IGNORED
    found = computed(NAMES, logits, labels, ignore_index)
    valid = labels != IGNORED
    predicted, actual = logits.argmax(axis=-1)[valid], labels[valid]
    matrix = counts(predicted, actual, CLASSES)
    union = matrix.sum(axis=0) + matrix.sum(axis=1) - matrix.diagonal()
    np.testing.assert_array_equal(found["confusion_matrix"], matrix)
    np.testing.assert_array_equal(found["iou_per_class"], matrix.diagonal() / union)
    assert found["mean_iou"] == (matrix.diagonal() / union).mean()
    np.testing.assert_allclose(found["accuracy"], (predicted == actual).mean(), rtol=1e-6)
    top = [label in row for label, row in zip(actual, np.argsort(-logits[valid], axis=1)[:, :2], strict=True)]
    np.testing.assert_allclose(found["top_2_accuracy"], np.mean(top), rtol=1e-6)
    log_p = logits[valid] - np.log(np.exp(logits[valid]).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(found["cross_entropy"], -log_p[np.arange(len(actual)), actual].mean(), rtol=1e-5)
    assert found["loss"] == 1


@pytest.mark.parametrize("name", ["accuracy", "binary_accuracy"])
@pytest.mark.parametrize("ignore_index", [None, IGNORED])
def test_binary_masks_have_one_channel(name: str, ignore_index: int | None) -> None:
    logits, labels = pixels(1)
    if ignore_index is not None:
        labels[:, 0] = IGNORED
    found = computed([name, "mean_iou", "iou_per_class"], logits, labels, ignore_index)
    valid = labels != IGNORED
    matrix = counts((logits[..., 0] > 0)[valid], labels[valid], 2)
    shares = matrix.diagonal() / (matrix.sum(axis=0) + matrix.sum(axis=1) - matrix.diagonal())
    np.testing.assert_allclose(found[name], matrix.trace() / matrix.sum(), rtol=1e-6)
    np.testing.assert_array_equal(found["iou_per_class"], shares)
    assert found["mean_iou"] == shares.mean()


def test_mean_iou_leaves_out_classes_that_neither_occur_nor_are_predicted() -> None:
    logits = jnp.array([[2.0, 0.0, -1.0], [2.0, 0.0, -1.0], [0.0, 2.0, -1.0]])
    found = metrics.mean_iou(3).from_model_output(logits=logits, targets=jnp.array([0, 1, 1]))
    assert found.compute() == 0.5


def test_mean_iou_of_several_labels_is_the_mean_over_the_labels() -> None:
    logits, labels = jnp.array([[1.0, -1.0], [1.0, 1.0]]), jnp.array([[1, 0], [0, 1]])
    several = metrics.by_name(["mean_iou"], 2, multi_label=True)["mean_iou"]
    assert several.from_model_output(logits=logits, targets=labels).compute() == 0.75


def test_counts_beyond_32_bits_are_exact() -> None:
    narrow = metrics.confusion_matrix(2)
    metric: Any = wide(narrow)
    many = np.array([[2**31 - 1, 1], [2**30, 7]], np.int32)
    part = metric.empty().merge(metric._carried(narrow(jnp.asarray(many))))
    total = part
    for _ in range(9):
        total = total.merge(part)
    np.testing.assert_array_equal(total.compute(), 10 * many.astype(np.int64))


def test_metrics_with_the_same_counts_carry_them_once() -> None:
    kind = metrics.collection(metrics.by_name(["mean_iou", "iou_per_class"], 3))
    assert list(kind.fields) == ["loss", "mean_iou"]
    kind = metrics.collection(metrics.by_name(["mean_iou", "f1"], 3), ignore_index=255)
    assert list(kind.fields) == ["loss", "mean_iou"]


@pytest.mark.parametrize(
    ("name", "says"), [("mean_iou", r"mean_iou\(num_classes=10\)"), ("iou_per_class", "per_class=True")]
)
def test_without_a_number_of_classes_the_message_shows_the_call(name: str, says: str) -> None:
    with pytest.raises(CompileError, match=rf"resfit\.metrics\.mean_iou.*{says}|{says}"):
        metrics.by_name([name])


def test_a_function_reads_whole_images_and_a_clu_metric_of_labels_reads_pixels() -> None:
    import clu.metrics

    logits, labels = pixels()
    seen: list[tuple[int, ...]] = []

    def dice(outputs: Any, targets: Any) -> Any:
        seen.append((outputs.shape, targets.shape))
        return jnp.ones(len(targets))

    found = computed({"dice": dice, "clu": clu.metrics.Accuracy}, logits, labels)
    assert set(seen) == {((3, *SIZE[1:], CLASSES), (3, *SIZE[1:]))}
    np.testing.assert_allclose(found["clu"], (logits.argmax(axis=-1) == labels).mean(), rtol=1e-6)
