"""A fit matches a careful hand-written loop, and is the same in every run."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import resfit
from resfit.errors import LossError
from tests.helpers import (
    BATCH,
    CLASSES,
    PlainNet,
    TinyNet,
    assert_close,
    assert_same,
    compiled,
    counting_compilations,
    fit,
    images,
    labels,
    values,
)

ROOT = Path(__file__).parents[2]


def by_hand(module: nnx.Module, optimizer: optax.GradientTransformation, batches: list[Any]) -> tuple[Any, list[float]]:
    """Train with a hand-written loop: nnx's functional API, jax.jit and optax, without resfit."""
    module.train()
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    params, rest = nnx.to_pure_dict(params), nnx.to_pure_dict(rest)
    state = optimizer.init(params)

    @jax.jit
    def step(params: Any, rest: Any, state: Any, x: jax.Array, y: jax.Array) -> Any:
        def loss_of(params: Any) -> Any:
            net = nnx.merge(graph, params, rest)
            loss = optax.softmax_cross_entropy_with_integer_labels(net(x), y).mean()
            return loss, nnx.to_pure_dict(nnx.state(net, nnx.Not(nnx.Param)))

        (loss, new_rest), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, new_state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), new_rest, new_state, loss

    losses = []
    for x, y in batches:
        params, rest, state, loss = step(params, rest, state, x, y)
        losses.append(float(loss))
    return nnx.merge(graph, params, rest), losses


class BatchLosses(resfit.callbacks.Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.losses.append(logs.batch_loss)


@pytest.mark.parametrize(
    ("argument", "optimizer"),
    [
        pytest.param("sgd", optax.sgd(0.1, momentum=0.9, nesterov=True), id="sgd"),
        pytest.param(optax.adam(0.01), optax.adam(0.01), id="adam", marks=pytest.mark.slow),
    ],
)
def test_fit_equals_a_hand_written_loop_with_a_ragged_last_batch(argument: Any, optimizer: Any) -> None:
    x, y = images(20), labels(20)
    cuts = [slice(i, i + BATCH) for i in (0, 8, 16)]  # 8, 8 and 4 examples
    expected, losses = by_hand(TinyNet(rngs=nnx.Rngs(0)), optimizer, [(x[c], y[c]) for c in cuts] * 2)

    model = compiled(optimizer=argument, learning_rate=0.1 if argument == "sgd" else None)
    recorder = BatchLosses()
    history = fit(model, x, y, epochs=2, shuffle=False, callbacks=[recorder])
    np.testing.assert_allclose(recorder.losses, losses, rtol=1e-5)
    assert_close(values(model.module), values(expected), 1e-5)
    weights = np.array([8, 8, 4])
    np.testing.assert_allclose(history.history["loss"][1], np.average(losses[3:], weights=weights), rtol=1e-5)


def test_adamw_by_name_decays_only_kernels() -> None:
    x, y = images(8), labels(8)
    mask = {"conv": {"kernel": True}, "head": {"bias": False, "kernel": True}, "norm": {"bias": False, "scale": False}}
    expected, _ = by_hand(TinyNet(rngs=nnx.Rngs(0)), optax.adamw(0.01, weight_decay=0.05, mask=mask), [(x, y)] * 3)
    model = compiled(optimizer="adamw", learning_rate=0.01)
    fit(model, x, y, epochs=3, shuffle=False)
    assert_close(values(model.module), values(expected), 1e-5)


def test_train_on_batch_is_the_step_of_fit() -> None:
    x, y = images(8), labels(8)
    one, other = compiled(), compiled()
    fit(one, x, y, epochs=2, shuffle=False)
    for _ in range(2):
        loss, accuracy = other.train_on_batch(x, y)
    assert_close(values(one.module), values(other.module))
    np.testing.assert_allclose([loss, accuracy], [one.history.history[n][-1] for n in ("loss", "accuracy")], rtol=1e-5)


# --- determinism ------------------------------------------------------------------------------------------------------


class Dropping(TinyNet):
    def __init__(self, *, rngs: nnx.Rngs) -> None:
        super().__init__(rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return super().__call__(self.dropout(x))


def noisy(key: jax.Array, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    return x + 0.1 * jax.random.normal(key, x.shape), y


def run(seed: int = 0, epochs: tuple[int, ...] = (2,)) -> tuple[dict[str, np.ndarray], list[float]]:
    """Return the weights and losses of a run with everything random in it: order, dropout, augmentation."""
    model = compiled(Dropping(rngs=nnx.Rngs(0)), seed=seed, augment=noisy)
    losses: list[float] = []
    for n in epochs:
        losses += fit(model, images(16), labels(16), epochs=n).history["loss"]
    return values(model.module), losses


def test_the_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    one, again, other = run(), run(), run(seed=1)
    assert_same(one, again)
    assert other[1] != one[1]
    assert not np.array_equal(one[0]["head.kernel"], other[0]["head.kernel"])


@pytest.mark.slow
def test_two_processes_with_the_same_seed_agree_bit_for_bit() -> None:
    program = (
        "import json, sys; sys.path.insert(0, '.'); import conftest; from tests.trainer.test_step import run\n"
        "for seed in (0, 1):\n"
        "    variables, losses = run(seed)\n"
        "    print(json.dumps([losses, {n: v.tobytes().hex() for n, v in variables.items()}]))"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    there = [json.loads(line) for line in done.stdout.splitlines()[-2:]]
    for (losses, variables), seed in zip(there, (0, 1), strict=True):
        here = run(seed)
        assert losses == here[1]
        assert variables == {name: array.tobytes().hex() for name, array in here[0].items()}
    assert there[0] != there[1]


def test_a_second_fit_continues_with_new_orders_and_keys() -> None:
    whole = run(epochs=(2,))
    assert_same(whole, run(epochs=(1, 1)))
    assert whole[1][0] != whole[1][1]


def test_compile_starts_orders_and_keys_again() -> None:
    x, y = images(16), labels(16)
    model = compiled(Dropping(rngs=nnx.Rngs(0)), learning_rate=0.0, augment=noisy)
    first, second = (fit(model, x, y).history["loss"] for _ in range(2))
    # A rate of zero keeps the parameters, and batch statistics do not depend on the running ones.
    model.compile("sgd", learning_rate=0.0, augment=noisy, dispatch="jit")
    assert fit(model, x, y).history["loss"] == first != second


def test_a_fit_that_trained_nothing_does_not_change_the_order_of_the_next_one() -> None:
    model, fresh = compiled(), compiled()
    with pytest.raises(resfit.errors.LabelError):
        fit(model, images(16), labels(16) + 1)
    for each in (model, fresh):
        fit(each, images(16), labels(16))
    assert_same(values(model.module), values(fresh.module))


# --- augmentation and preprocessing -----------------------------------------------------------------------------------


def test_augmentation_is_for_training_alone_in_order_and_before_preprocessing() -> None:
    seen: list[str] = []

    def double(key: jax.Array, x: jax.Array, y: jax.Array) -> Any:
        seen.append(f"double {x.dtype}")
        return x * 2, y

    def add(key: jax.Array, x: jax.Array, y: jax.Array) -> Any:
        seen.append("add")
        return x + jnp.asarray(1, x.dtype), y

    class Inputs(resfit.Model):
        def compute_loss(self, module: Any, x: Any, y: Any, *, key: jax.Array, train: bool) -> Any:
            return x.mean(axis=(1, 2, 3)) + train + 0 * module(x)[:, 0], x

    model = compiled(PlainNet(rngs=nnx.Rngs(0)), kind=Inputs, augment=[double, add])
    x = np.full((4, 8, 8, 1), 51, np.uint8)
    np.testing.assert_allclose(model.train_on_batch(x), 1 + 103 / 255, rtol=1e-6)
    assert seen == ["double uint8", "add"]
    np.testing.assert_allclose(model.test_on_batch(x), 51 / 255, rtol=1e-6)
    assert seen == ["double uint8", "add"]


def test_augmentations_get_different_keys_and_every_step_gives_new_keys() -> None:
    class Keys(resfit.Model):
        def compute_loss(self, module: Any, x: Any, y: Any, *, key: jax.Array, train: bool) -> Any:
            draws = jnp.concatenate([x.reshape(len(x), -1)[:, :2], jax.random.normal(key, (len(x), 1))], axis=1)
            return 0 * module(x)[:, 0], draws

    def first(key: jax.Array, x: jax.Array, y: Any) -> Any:
        return x.at[:, 0, 0, 0].set(jax.random.normal(key, x.shape[:1])), y

    def second(key: jax.Array, x: jax.Array, y: Any) -> Any:
        return x.at[:, 0, 1, 0].set(jax.random.normal(key, x.shape[:1])), y

    metrics = {f"draw{i}": lambda outputs, _, i=i: outputs[:, i] for i in range(3)}
    model = compiled(PlainNet(rngs=nnx.Rngs(0)), kind=Keys, augment=(first, second), metrics=metrics)
    steps = [model.train_on_batch(images(8))[1:] for _ in range(2)]
    assert len({value for step in steps for value in step}) == 6


# --- compilations -----------------------------------------------------------------------------------------------------


def test_a_fit_compiles_one_step_per_batch_shape_and_nothing_twice() -> None:
    model = compiled()
    validation = images(9, seed=5), labels(9)  # a full batch and a padded one
    with counting_compilations() as found:
        fit(model, epochs=5, validation_data=validation)
    assert len(found) == 3  # training with 8 and with 4 rows, evaluation

    with counting_compilations() as found:
        fit(model, epochs=2, validation_data=validation)
        model.evaluate(images(12), labels(12), batch_size=BATCH, verbose=0)
        model.learning_rate = 0.03
        fit(model)
        model.set_weights(model.get_weights())
        model.module.head.bias.set_value(np.zeros(CLASSES, np.float32))
        fit(model)
        assert model.learning_rate == pytest.approx(0.03)
    assert found == []


def test_predict_compiles_once_for_all_lengths() -> None:
    model = compiled()
    with counting_compilations() as found:
        for n in (20, 8, 13, 9):
            model.predict(images(n), batch_size=BATCH, verbose=0)
    assert len(found) == 1


def test_a_schedule_is_followed_exactly_and_compiles_nothing_more() -> None:
    rates: list[float] = []

    class Rates(resfit.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            rates.append(self.model.learning_rate)

    schedule = optax.linear_schedule(0.4, 0.0, 8)
    model = compiled(learning_rate=schedule)
    x, y = images(8), labels(8)
    with counting_compilations() as found:
        fit(model, x, y, epochs=4, shuffle=False, callbacks=[Rates()])
    assert len(found) == 1
    np.testing.assert_allclose(rates, [0.4 * (1 - i / 8) for i in range(4)], rtol=1e-6)
    expected, _ = by_hand(TinyNet(rngs=nnx.Rngs(0)), optax.sgd(schedule, momentum=0.9, nesterov=True), [(x, y)] * 4)
    assert_close(values(model.module), values(expected))


@pytest.mark.slow
def test_eight_bit_labels_and_images_and_their_wider_forms_train_alike() -> None:
    x = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1)).astype(np.uint8)
    one, other = compiled(), compiled()
    one.train_on_batch(x, labels(8).astype(np.uint8))
    other.train_on_batch((x / 255).astype(np.float64), labels(8).astype(np.int64))
    assert_close(values(one.module), values(other.module))


# --- what a loss must be ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            lambda outputs, y: ((outputs - y) ** 2).mean(),
            r"shape \(\).*one value per example, \(8,\).*Leave out the mean",
        ),
        (lambda outputs, y: (outputs - y) ** 2, r"shape \(8, 3\).*Average over the other axes"),
    ],
)
def test_a_loss_that_is_not_one_value_per_example_raises(loss: Any, message: str) -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)), loss=loss)
    with pytest.raises(LossError, match=message):
        model.train_on_batch(images(8), np.zeros((8, CLASSES), np.float32))


def test_a_function_is_a_loss() -> None:
    def absolute(outputs: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.abs(outputs - y).mean(axis=1)

    module = PlainNet(rngs=nnx.Rngs(0))
    model = compiled(module, loss=absolute)
    y = np.ones((8, CLASSES), np.float32)
    kernel, bias = values(module)["head.kernel"], values(module)["head.bias"]
    expected = np.abs(images(8).reshape(8, -1) @ kernel + bias - y).mean()
    np.testing.assert_allclose(model.test_on_batch(images(8), y), expected, rtol=1e-5)
