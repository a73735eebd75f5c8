"""Labels of pixels: the loss of an example is the mean over its pixels, without those that are ignored."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resfit import losses
from resfit.errors import CompileError, LabelError, LossError
from resfit.losses import BinaryCrossEntropy, CrossEntropy, Focal
from tests.levels import only

LOSSES: dict[str, Any] = {
    "cross_entropy": losses.cross_entropy,
    "smoothed": CrossEntropy(label_smoothing=0.1),
    "focal": Focal(),
    "one against the rest": BinaryCrossEntropy(),
}


def batch(channels: int = 4, dtype: Any = np.uint8, size: tuple[int, ...] = (3, 5, 2)) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    logits = random.normal(size=(*size, channels)).astype(np.float32)
    return logits, random.integers(0, max(channels, 2), size).astype(dtype)


def one_by_one(loss: Any, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the loss of each pixel, computed as that of an example."""
    return np.asarray(loss(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))).reshape(labels.shape)


@pytest.mark.parametrize("name", only(("cross_entropy", "focal"), LOSSES))
@pytest.mark.parametrize("channels", only((4,), (4, 1)))
def test_the_loss_of_an_image_is_the_mean_over_its_pixels(name: str, channels: int) -> None:
    logits, labels = batch(channels)
    expected = one_by_one(LOSSES[name], logits, labels).mean(axis=(1, 2))
    for form in (labels, labels[..., None], labels.astype(np.int32)):
        np.testing.assert_allclose(LOSSES[name](logits, jnp.asarray(form)), expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(3, 7), (2, 3, 2, 4)], ids=["a sequence", "a volume"])
def test_any_number_of_axes_between_batch_and_classes_are_pixels(size: tuple[int, ...]) -> None:
    logits, labels = batch(size=size)
    expected = one_by_one(losses.cross_entropy, logits, labels).reshape(size[0], -1).mean(axis=1)
    np.testing.assert_allclose(losses.cross_entropy(jnp.asarray(logits), jnp.asarray(labels)), expected, rtol=1e-5)


def test_targets_of_every_pixel_equal_class_numbers() -> None:
    logits, labels = batch()
    soft = losses.cross_entropy(logits, jnp.asarray(np.eye(4, dtype=np.float32)[labels]))
    np.testing.assert_allclose(soft, losses.cross_entropy(logits, jnp.asarray(labels)), rtol=1e-5)


@pytest.mark.parametrize("kind", only((CrossEntropy,), (CrossEntropy, Focal, BinaryCrossEntropy)))
@pytest.mark.parametrize(
    ("channels", "dtype", "index"),
    only([(4, np.uint8, 255)], [(4, np.uint8, 255), (4, np.int8, -1), (1, np.float32, 255)]),
)
def test_ignored_pixels_count_neither_in_the_sum_nor_in_the_number(
    kind: Any, channels: int, dtype: Any, index: int
) -> None:
    logits, labels = batch(channels, dtype)
    each = one_by_one(kind(), logits, labels)
    ignored = np.random.default_rng(1).random(labels.shape) < 0.4
    ignored[1] = True  # an image without any label
    labels = np.where(ignored, np.asarray(index, dtype), labels)
    loss, gradient = jax.value_and_grad(lambda logits: kind(ignore_index=index)(logits, labels).sum())(logits)
    expected = [image[valid].mean() if valid.any() else 0 for image, valid in zip(each, ~ignored, strict=True)]
    np.testing.assert_allclose(kind(ignore_index=index)(logits, labels), expected, rtol=1e-5)
    np.testing.assert_allclose(loss, sum(expected), rtol=1e-5)
    assert not np.asarray(gradient)[ignored].any()


@pytest.mark.parametrize(
    "loss",
    [
        CrossEntropy(ignore_index=3),
        pytest.param(losses.cross_entropy, marks=pytest.mark.slow),
        pytest.param(losses.binary_cross_entropy, marks=pytest.mark.slow),
    ],
)
def test_weights_of_pixels_multiply_their_losses_and_not_the_number(loss: Any) -> None:
    channels = 1 if loss is losses.binary_cross_entropy else 4
    logits, labels = batch(channels)
    weight = np.random.default_rng(2).random(labels.shape).astype(np.float32)
    valid = labels != (3 if isinstance(loss, CrossEntropy) else -1)
    each = one_by_one(losses.cross_entropy, logits, labels) * weight * valid
    expected = each.sum(axis=(1, 2)) / valid.sum(axis=(1, 2))
    for form in (weight, weight[..., None]):
        np.testing.assert_allclose(losses.weighted(loss, logits, labels, jnp.asarray(form)), expected, rtol=1e-5)


def shape(*sizes: int, dtype: Any = jnp.uint8) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


@pytest.mark.parametrize(
    ("loss", "labels", "says"),
    [
        (losses.cross_entropy, shape(2, 64, 48), r"8 x 6 pixels of outputs and 64 x 48 labels.*len\(x\), 64, 48, 3\)"),
        (losses.cross_entropy, shape(2, 6, 8), "8 x 6 pixels of outputs and 6 x 8 labels"),
        (losses.cross_entropy, shape(2, 8, 6, 5), r"one class number for each pixel, \(2, 8, 6\)"),
        (losses.cross_entropy, shape(2), "without global pooling"),
        (losses.mean_squared_error, shape(2, 6, 8, 3), r"\(2, 6, 8, 3\).*Expected the same shape"),
        (CrossEntropy(ignore_index=255), shape(2, 8, 6, 3), "Expected class numbers"),
        (BinaryCrossEntropy(), shape(2, 8, 6, 3), "multi_label=True"),
    ],
)
def test_labels_of_another_size_raise_with_both_sizes_and_the_remedy(loss: Any, labels: Any, says: str) -> None:
    with pytest.raises(LabelError, match=says):
        jax.eval_shape(loss, shape(2, 8, 6, 3, dtype=jnp.float32), labels)


def test_masks_without_a_channel_of_the_outputs_raise_instead_of_being_read_as_targets() -> None:
    with pytest.raises(LabelError, match=r"could be masks.*\(2, 8, 6, 1\)"):
        jax.eval_shape(losses.cross_entropy, shape(2, 8, 6, dtype=jnp.float32), shape(2, 8, 6))


def test_an_ignore_index_is_an_integer_and_needs_labels_of_pixels() -> None:
    with pytest.raises(CompileError, match=r"ignore_index=0\.5.*255"):
        CrossEntropy(ignore_index=0.5)  # type: ignore[arg-type]
    with pytest.raises(LabelError, match=r"ignore_index=255.*\(2, 3\).*sample_weight 0"):
        jax.eval_shape(CrossEntropy(ignore_index=255), shape(2, 3, dtype=jnp.float32), shape(2))


def test_a_custom_loss_raises_for_weights_of_pixels() -> None:
    with pytest.raises(LossError, match="custom loss"):
        losses.weighted(lambda logits, labels: logits, *batch(), jnp.ones((3, 5, 2)))


def test_the_text_of_a_loss_is_that_of_checkpoints_without_ignore_index() -> None:
    assert repr(CrossEntropy(0.1)) == "CrossEntropy(label_smoothing=0.1)"
    assert repr(CrossEntropy(0.1, ignore_index=255)) == "CrossEntropy(label_smoothing=0.1, ignore_index=255)"
    assert repr(Focal()) == "Focal(gamma=2.0, alpha=None)"


@pytest.mark.parametrize(
    ("loss", "labels", "channels", "says"),
    [
        (losses.cross_entropy, np.uint8([[[0, 1], [2, 255]]]), 3, "from 0 to 255.*ignore_index=255"),
        (CrossEntropy(ignore_index=255), np.uint8([[[0, 1], [3, 255]]]), 3, "from 0 to 3"),
        (CrossEntropy(ignore_index=255), np.int16([[[0, 1], [-1, 255]]]), 3, "from -1 to 1"),
        (losses.cross_entropy, np.uint8([[[0, 255]]]), 1, "one binary output.*y > 0"),
        (losses.cross_entropy, np.float32([[[[0.5, 0.5, 0.5]]]]), 3, "sums to 1.5"),
        (losses.binary_cross_entropy, np.float32([[[[0.5, 2, 0.5]]]]), 3, "from 0.5 to 2.0"),
    ],
)
def test_values_of_pixels_are_checked_on_the_host(loss: Any, labels: np.ndarray, channels: int, says: str) -> None:
    with pytest.raises(LabelError, match=says):
        losses.check(loss, labels, (2, *labels.shape[1:3], channels))


def test_valid_values_of_pixels_pass_the_check() -> None:
    losses.check(CrossEntropy(ignore_index=255), np.uint8([[[0, 1], [2, 255]], [[255] * 2] * 2]), (2, 2, 2, 3))
    losses.check(CrossEntropy(ignore_index=255), np.full((1, 2, 2), 255), (2, 2, 2, 3))
    losses.check(losses.cross_entropy, np.array([[[True, False]]]), (2, 1, 2, 1))
