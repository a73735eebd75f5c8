"""The ResNet of the Flax NNX tutorials trains unchanged, and each pitfall of their training loops has a test."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import resfit
from resfit.errors import DataError, LabelError
from tests.helpers import (
    BATCH,
    CLASSES,
    PlainNet,
    Recorder,
    TinyNet,
    call,
    compiled,
    differ,
    fit,
    images,
    labels,
    state_of,
    values,
)


class BasicBlock(nnx.Module):
    """A block as in the tutorials: 'SAME' padding, biases before the norms, flax's momentum, an optional projection."""

    def __init__(self, in_features: int, out_features: int, strides: int = 1, *, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(in_features, out_features, (3, 3), strides=strides, padding="SAME", rngs=rngs)
        self.bn1 = nnx.BatchNorm(out_features, rngs=rngs)
        self.conv2 = nnx.Conv(out_features, out_features, (3, 3), padding="SAME", rngs=rngs)
        self.bn2 = nnx.BatchNorm(out_features, rngs=rngs)
        if strides != 1 or in_features != out_features:
            self.proj = nnx.data(nnx.Conv(in_features, out_features, (1, 1), strides=strides, rngs=rngs))
        else:
            self.proj = nnx.data(None)

    def __call__(self, x: jax.Array) -> jax.Array:
        shortcut = x if self.proj is None else self.proj(x)
        out = nnx.relu(self.bn1(self.conv1(x)))
        return nnx.relu(self.bn2(self.conv2(out)) + shortcut)


class TutorialResNet(nnx.Module):
    """Stem, stages of blocks in an nnx.List (a Python list is an error in current flax), mean, dense layer."""

    def __init__(self, num_classes: int = CLASSES, *, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(1, 4, (3, 3), strides=1, padding="SAME", rngs=rngs)
        self.bn = nnx.BatchNorm(4, rngs=rngs)
        self.blocks = nnx.List([BasicBlock(4, 4, rngs=rngs), BasicBlock(4, 8, strides=2, rngs=rngs)])
        self.fc = nnx.Linear(8, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.bn(self.conv(x)))
        for block in self.blocks:
            x = block(x)
        return self.fc(jnp.mean(x, axis=(1, 2)))


def bright_or_dark(n: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """Return images whose class is their brightness: (n, 8, 8, 1) float32 and (n,) int32."""
    y = labels(n)
    return images(n) + 3 * y.reshape(-1, 1, 1, 1).astype(np.float32), y


@pytest.fixture(scope="module")
def tutorial() -> Any:
    """Train the class of the tutorial with three lines of resfit."""
    x, y = bright_or_dark()
    module = TutorialResNet(rngs=nnx.Rngs(0))
    model = resfit.Model(module)
    model.compile(optimizer="adam", learning_rate=0.01, dispatch="jit")
    history = model.fit(x, y, batch_size=BATCH, epochs=12, verbose=0)
    return module, model, history


def test_the_class_of_the_tutorial_trains_in_three_lines(tutorial: Any) -> None:
    _, _, history = tutorial
    assert history.history["loss"][-1] < 0.5 * history.history["loss"][0]
    assert history.history["accuracy"][-1] > 0.9


def test_pitfall_forgotten_train_flag_cannot_spoil_evaluation(tutorial: Any) -> None:
    module, model, _ = tutorial
    x, y = bright_or_dark()
    # Without a call of module.eval(), the module is still in training mode, and the evaluation is correct.
    assert not module.bn.use_running_average
    before = values(module)
    together = model.predict(x[:8], batch_size=8, verbose=0)
    alone = model.predict(x[:8], batch_size=1, verbose=0)
    np.testing.assert_allclose(together, alone, atol=1e-4)  # a row does not depend on the other rows
    model.evaluate(x, y, batch_size=BATCH, verbose=0)
    assert differ(before, values(module)) == set()
    # The negative control: in a bare call of the tutorial, a row depends on the others, and the statistics change.
    spoilt = nnx.clone(module)
    assert not np.allclose(np.asarray(call(spoilt, x[:8]))[:1], call(spoilt, x[:1]), atol=1e-2)
    assert any(name.endswith("mean") for name in differ(before, values(spoilt)))


def test_pitfall_forgotten_train_flag_cannot_freeze_the_statistics_of_training() -> None:
    module = TutorialResNet(rngs=nnx.Rngs(0))
    module.eval()  # left from an earlier look at an output
    before = values(module)
    fit(compiled(module, optimizer="adam", learning_rate=0.01), *bright_or_dark(8))
    moved = differ(before, values(module))
    assert {name for name in before if name.endswith((".mean", ".var"))} <= moved
    assert module.bn.use_running_average  # the flag of the user does not change


@pytest.mark.parametrize("momentum", [0.9, 0.99])
def test_the_running_statistics_follow_the_momentum_of_the_module(momentum: float) -> None:
    class Norm(nnx.Module):
        def __init__(self) -> None:
            self.norm = nnx.BatchNorm(1, momentum=momentum, rngs=nnx.Rngs(0))

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.norm(x).mean(axis=(1, 2))

    x = images(8) + 5
    model = compiled(Norm(), loss="mean_squared_error", learning_rate=0.0)
    fit(model, x, np.zeros((8, 1), np.float32), epochs=10)
    remembered = momentum**10
    np.testing.assert_allclose(model.module.norm.mean[...], (1 - remembered) * x.mean(), rtol=1e-4)
    np.testing.assert_allclose(model.module.norm.var[...], remembered + (1 - remembered) * x.var(), rtol=1e-4)


def test_ten_labels_against_ten_by_ten_logits_are_not_silently_wrong() -> None:
    x, y = images(10), np.arange(10, dtype=np.int32)
    model = compiled(PlainNet(10, rngs=nnx.Rngs(0)))
    logits = model.predict(x, verbose=0)
    right = np.mean(jax.jit(optax.softmax_cross_entropy_with_integer_labels)(logits, y))
    with jax.numpy_rank_promotion("allow"):
        wrong = np.mean(jax.jit(optax.softmax_cross_entropy)(logits, y))  # the tutorial's loss broadcasts silently
    found = model.evaluate(x, y, verbose=0)[0]
    np.testing.assert_allclose(found, right, rtol=1e-5)
    assert abs(found - wrong) > 1
    with pytest.raises(LabelError, match="must be integers"):
        model.evaluate(x, y.astype(np.float32), verbose=0)


def test_training_on_nothing_is_an_error_not_a_success() -> None:
    def rows_that_lack_the_column(rows: list[dict[str, Any]]) -> Any:
        for row in rows:
            if "image" in row:
                yield row["image"], row["label"]

    data = rows_that_lack_the_column([{"img": images(8), "label": labels(8)}] * 3)
    with pytest.raises(DataError, match="yielded no batch"):
        compiled().fit(data, epochs=1, verbose=0)


def test_the_last_batch_is_trained_and_counted() -> None:
    recorder = Recorder()
    model = compiled()
    fit(model, images(20), labels(20), callbacks=[recorder])
    assert recorder.names().count("on_train_batch_end") == 3
    assert state_of(model).steps() == 3


def test_the_mean_over_a_dataset_averages_examples_and_not_batches() -> None:
    x, y = images(9), labels(9)
    x[8] *= 50  # the only row of the last batch: a mean of batch means would give it eight times the weight
    model = compiled(PlainNet(rngs=nnx.Rngs(0)))
    logits = model.predict(x, verbose=0)
    losses = np.asarray(jax.jit(optax.softmax_cross_entropy_with_integer_labels)(logits, y))
    found = model.evaluate(x, y, batch_size=BATCH, verbose=0)[0]
    np.testing.assert_allclose(found, losses.mean(), rtol=1e-5)
    assert abs(found - (losses[:8].mean() + losses[8]) / 2) > 1


def test_augmentation_is_never_applied_in_evaluation() -> None:
    def blank(key: jax.Array, x: jax.Array, y: jax.Array) -> Any:
        return jnp.zeros_like(x), y

    plain, augmented = compiled(TinyNet(rngs=nnx.Rngs(0))), compiled(TinyNet(rngs=nnx.Rngs(0)), augment=blank)
    assert plain.evaluate(images(), labels(), verbose=0) == augmented.evaluate(images(), labels(), verbose=0)
    assert plain.train_on_batch(images(8), labels(8)) != augmented.train_on_batch(images(8), labels(8))
