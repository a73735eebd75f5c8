"""Augmentation in `Model`: in training steps only, on any devices, with every loss and metric."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import resfit
from resfit import augment, losses
from resfit.errors import CompileError, LabelError, RankError
from tests.helpers import CLASSES, PlainNet, TinyNet, assert_close, assert_same, compiled, fit, labels, values


def pictures(n: int = 20) -> np.ndarray:
    """Return (n, 8, 8, 1) uint8."""
    return np.random.default_rng(0).integers(0, 256, (n, 8, 8, 1), dtype=np.uint8)


class Watched(resfit.Model):
    """A model whose loss has two numbers for each image and label, which any other image would change."""

    seen: list[Any]

    def compute_loss(self, module: Any, x: Any, y: Any, *, key: jax.Array, train: bool) -> Any:
        self.seen = [*getattr(self, "seen", []), (train, x.shape, str(x.dtype), y.shape, str(y.dtype))]
        places = jnp.linspace(1, 2, x[0].size).reshape(1, *x.shape[1:])
        classes = y @ jnp.arange(y.shape[1], dtype=jnp.float32) if y.ndim == 2 else y
        return (x * places).mean(axis=(1, 2, 3)) + 10 * classes, module(x)


def watched(**arguments: Any) -> Any:
    return compiled(PlainNet(rngs=nnx.Rngs(0)), kind=Watched, metrics=None, learning_rate=0.0, **arguments)


FEW = [augment.pad_crop(2), augment.flip(), augment.mixup(0.4, CLASSES)]
EVERYTHING = [
    augment.color_jitter(),
    augment.pad_crop(2),
    augment.flip(),
    augment.random_resized_crop(8),
    augment.random_erasing(fill="noise"),
    augment.one_of(augment.mixup(0.4, CLASSES), augment.cutmix(1.0, CLASSES)),
]


def test_training_is_augmented_and_evaluation_is_not() -> None:
    model, plain = watched(augment=FEW), watched()
    x, y = pictures(8), labels(8)
    assert model.evaluate(x, y, verbose=0) == plain.evaluate(x, y, verbose=0)
    assert model.train_on_batch(x, y) != plain.train_on_batch(x, y)
    assert_same(model.predict(x, verbose=0), plain.predict(x, verbose=0))
    # Both receive preprocessed images. Only training has soft labels.
    shape, kinds = (8, 8, 8, 1), set(model.seen)
    assert (True, shape, "float32", (8, CLASSES), "float32") in kinds
    assert (False, shape, "float32", (8,), "int32") in kinds


def test_every_step_draws_new_random_numbers_and_the_same_seed_repeats_them() -> None:
    x, y = pictures(8), labels(8)
    runs = [
        [model.train_on_batch(x, y) for _ in range(3)] for model in (watched(augment=FEW, seed=s) for s in (1, 1, 2))
    ]
    assert runs[0] == runs[1]
    assert len({*runs[0], *runs[2]}) == 6


@pytest.mark.representatives("divided")
@pytest.mark.parametrize(
    ("n", "augments"),
    [
        pytest.param(8, FEW, id="divided"),
        pytest.param(8, EVERYTHING, id="every augmentation", marks=pytest.mark.slow),
        pytest.param(6, FEW, id="four devices do not divide six: each has the whole batch"),
    ],
)
def test_on_four_devices_the_images_equal_those_of_one(n: int, augments: Any) -> None:
    one, four = watched(augment=augments, dispatch="jit"), watched(augment=augments, dispatch="sharded")
    for _ in range(2):
        found = [model.train_on_batch(pictures(n), labels(n)) for model in (one, four)]
        np.testing.assert_allclose(found[0], found[1], rtol=1e-6)


@pytest.mark.slow
def test_eager_gives_the_same_images() -> None:
    """As test_dispatch.py checks for one augmentation."""
    jit, eager = (compiled(PlainNet(rngs=nnx.Rngs(0)), augment=FEW, dispatch=kind) for kind in ("jit", "eager"))
    for model in (jit, eager):
        model.train_on_batch(pictures(8), labels(8))
    assert_close(values(jit.module), values(eager.module))


def test_a_preset_is_selected_by_name() -> None:
    named, listed = watched(augment="cifar"), watched(augment=[augment.pad_crop(4), augment.flip()])
    x, y = pictures(8), labels(8)
    assert named.train_on_batch(x, y) == listed.train_on_batch(x, y) != watched(augment="none").train_on_batch(x, y)


@pytest.mark.slow
def test_a_network_of_resfit_provides_the_number_of_classes_to_mixup() -> None:
    net = resfit.create_model("resnet20", num_classes=CLASSES, in_channels=1, depths=(1,), widths=(4,))
    model = compiled(net, augment=[augment.one_of(augment.mixup(), augment.cutmix())])
    assert np.isfinite(model.train_on_batch(pictures(8), labels(8))).all()


def test_another_module_requires_the_number_of_classes() -> None:
    with pytest.raises(LabelError, match=r"this network is unknown.*mixup\(num_classes=10\)"):
        fit(compiled(PlainNet(rngs=nnx.Rngs(0)), augment=augment.mixup()), pictures(), labels())


LOSSES: dict[str, Any] = {
    "auto": "auto",
    "smoothed": losses.CrossEntropy(label_smoothing=0.1),
    "strikes back": losses.BinaryCrossEntropy(label_smoothing=0.1, target_threshold=0.2),
    "focal": "focal",
}
METRICS = ["accuracy", "top_2_accuracy", "cross_entropy", "calibration_error"]
BY_CLASS: dict[str, Any] = {
    "f1": resfit.metrics.f1(num_classes=CLASSES),
    "confusion": resfit.metrics.confusion_matrix(num_classes=CLASSES),
    "auc": resfit.metrics.auc(num_classes=CLASSES),
}


@pytest.mark.parametrize(
    "loss", ["auto", *(pytest.param(name, marks=pytest.mark.slow) for name in LOSSES if name != "auto")]
)
def test_every_loss_and_metric_accepts_soft_labels_in_training_and_class_numbers_in_evaluation(loss: str) -> None:
    metrics = {name: name for name in METRICS} | BY_CLASS
    model = compiled(
        PlainNet(rngs=nnx.Rngs(0)), loss=LOSSES[loss], metrics=metrics, augment=augment.mixup(1.0, CLASSES)
    )
    x, y = pictures(16), labels(16)
    trained = fit(model, x, y, validation_data=(x, y)).history
    assert set(trained) == {*metrics, "loss", *(f"val_{name}" for name in [*metrics, "loss"])}
    assert all(np.isfinite(value).all() for value in trained.values())
    assert np.sum(trained["confusion"]) == 16


@pytest.mark.slow
def test_one_binary_output_is_mixed_as_probabilities() -> None:
    model = compiled(PlainNet(1, rngs=nnx.Rngs(0)), augment=augment.cutmix(1.0, 1))
    history = fit(model, pictures(16), labels(16, 2), validation_data=(pictures(8), labels(8, 2)))
    assert np.isfinite(history.history["loss"] + history.history["val_loss"]).all()


def test_wrong_labels_raise_before_they_train_anything() -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)), augment=augment.mixup(1.0, CLASSES))
    before = values(model.module)
    with pytest.raises(LabelError, match="y - 1"):
        fit(model, pictures(), labels() + 1)
    assert_same(values(model.module), before)


@pytest.mark.slow
def test_training_at_another_size_than_evaluation_only_requires_a_pooling_network() -> None:
    model = compiled(TinyNet(rngs=nnx.Rngs(0)), augment=augment.random_resized_crop(6))
    history = fit(model, pictures(8), labels(8), validation_data=(pictures(8), labels(8)))
    assert np.isfinite(history.history["val_loss"]).all()


def test_inputs_that_are_not_images_raise_before_the_first_step() -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)), augment="cifar")
    with pytest.raises(RankError, match=r"augment.pad_crop got inputs of shape \(8, 64\)"):
        fit(model, pictures().reshape(20, 64), labels())


def test_compile_raises_if_augment_is_not_an_augmentation() -> None:
    with pytest.raises(CompileError, match="Unknown augment 'imagnet'"):
        compiled(PlainNet(rngs=nnx.Rngs(0)), augment="imagnet")
