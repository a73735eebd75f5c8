"""Optimizers that train at other parameters than those to evaluate with."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import optax.contrib
import pytest
from flax import nnx

import resfit
from resfit.errors import CompileError
from tests.helpers import PlainNet, assert_close, assert_same, compiled, fit, images, labels, state_of, values
from tests.levels import only
from tests.optimizers.by_numpy import each, gradients, start

SGD = optax.sgd(0.1)
FREE = optax.contrib.schedule_free_sgd(0.1)
LABELS = {"head": {"kernel": "a", "bias": "b"}}
OPTIMIZERS = {
    "schedule_free": FREE,
    "in MultiSteps": optax.MultiSteps(FREE, 2),
    "in a chain": optax.chain(optax.clip_by_global_norm(1.0), FREE),
    "for a part": optax.partition({"a": FREE, "b": SGD}, LABELS),
    "a function": optax.contrib.schedule_free_adamw,
    "lookahead": optax.lookahead(SGD, 4, 0.5),
    "sam": optax.contrib.sam(SGD, SGD, sync_period=2),
}


def trained(name: str = "schedule_free", **arguments: Any) -> Any:
    optimizer = OPTIMIZERS[name]
    rate = 0.1 if not isinstance(optimizer, tuple | optax.MultiSteps) else None
    model = compiled(PlainNet(rngs=nnx.Rngs(0)), optimizer=optimizer, learning_rate=rate, **arguments)
    fit(model, images(), labels())  # three steps
    return model


def raw(model: Any) -> list[np.ndarray]:
    return [np.array(array) for array in state_of(model).arrays.params]


def by_hand(optimizer: Any, steps: int = 3) -> tuple[Any, Any]:
    """Return optax's state and the parameters after steps of a plain loop over one batch."""
    graph, params = nnx.split(PlainNet(rngs=nnx.Rngs(0)))
    x, y = images(8), labels(8)

    def loss(params: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(nnx.merge(graph, params)(x), y).mean()

    state = optimizer.init(params)
    for _ in range(steps):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
    return state, params


@pytest.mark.slow
def test_schedule_free_evaluates_at_the_parameters_of_the_function_of_optax() -> None:
    state, params = by_hand(FREE)
    model = compiled(PlainNet(rngs=nnx.Rngs(0)), optimizer=FREE, learning_rate=None)
    fit(model, images(8), labels(8), epochs=3, shuffle=False)
    assert_close(jax.tree.leaves(params), raw(model))
    assert_close(jax.tree.leaves(optax.contrib.schedule_free_eval_params(state, params)), model.get_weights())


@pytest.mark.slow
def test_a_transformation_after_schedule_free_leaves_its_evaluation_parameters() -> None:
    optimizer = optax.chain(FREE, optax.scale(0.5))
    state, params = by_hand(optimizer)
    model = compiled(PlainNet(rngs=nnx.Rngs(0)), optimizer=optimizer, learning_rate=None)
    fit(model, images(8), labels(8), epochs=3, shuffle=False)
    assert_close(jax.tree.leaves(params), raw(model))
    assert_close(jax.tree.leaves(optax.contrib.schedule_free_eval_params(state[0], params)), model.get_weights())


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.contrib.schedule_free_sgd(0.1, b1=0.0),
        optax.chain(optax.clip(1.0), optax.contrib.schedule_free(SGD, 0.1, b1=-0.5)),
        optax.inject_hyperparams(optax.contrib.schedule_free_sgd)(learning_rate=0.1, b1=0.0),
    ],
    ids=["0", "negative, in a chain", "injected"],
)
def test_schedule_free_without_averages_raises_in_compile(optimizer: Any) -> None:
    with pytest.raises(CompileError, match=r"schedule_free got b1=-?0.*Expected b1 above 0"):
        compiled(PlainNet(rngs=nnx.Rngs(0)), optimizer=optimizer, learning_rate=None)


def test_lookahead_trains_as_by_hand_and_evaluates_at_the_slow_parameters() -> None:
    graph, start = nnx.split(PlainNet(rngs=nnx.Rngs(0)))
    optimizer = optax.lookahead(SGD, 2, 0.5)
    params = optax.LookaheadParams.init_synced(start)
    state, (x, y) = optimizer.init(params), (images(8), labels(8))

    def loss(fast: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(nnx.merge(graph, fast)(x), y).mean()

    for _ in range(3):
        updates, state = optimizer.update(jax.grad(loss)(params.fast), state, params)
        params = optax.apply_updates(params, updates)
    model = compiled(PlainNet(rngs=nnx.Rngs(0)), optimizer=optimizer, learning_rate=None)
    fit(model, images(8), labels(8), epochs=3, shuffle=False)
    assert_close(jax.tree.leaves(params.fast), raw(model))
    assert_close(jax.tree.leaves(params.slow), model.get_weights())


def test_lookahead_equals_its_published_rule_in_numpy() -> None:
    optimizer = optax.lookahead(resfit.optimizers.sgd(0.1, momentum=0.0), sync_period=2, slow_step_size=0.5)
    model = compiled(PlainNet(rngs=nnx.Rngs(0)), optimizer=optimizer, learning_rate=None)
    slow = fast = start(*model.get_weights())
    for rate, steps in ((0.1, 3), (0.05, 4)):
        model.learning_rate = rate
        fit(model, images(8), labels(8), epochs=steps, shuffle=False)
    for step in range(7):  # Zhang et al. (arXiv 1907.08610), algorithm 1
        rate = 0.1 if step < 3 else 0.05
        fast = each(lambda p, g: p - rate * g, fast, gradients(fast))  # noqa: B023
        if step % 2:
            slow = fast = each(lambda p, q: p + 0.5 * (q - p), slow, fast)
    assert_close(raw(model), fast, 1e-5)
    assert_close(model.get_weights(), slow, 1e-5)


def test_schedule_free_equals_its_published_rule_in_numpy() -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)), optimizer=optax.contrib.schedule_free_sgd, learning_rate=0.1)
    x = y = z = start(*model.get_weights())
    for rate, steps in ((0.1, 3), (0.05, 3)):
        model.learning_rate = rate
        fit(model, images(8), labels(8), epochs=steps, shuffle=False)
    for step in range(6):  # Defazio et al. (arXiv 2405.15682), equations 3 to 5; the weight of a step is max(rate)^2
        rate, share = 0.1 if step < 3 else 0.05, 1 / (step + 1)
        z = each(lambda p, g: p - rate * g, z, gradients(y))  # noqa: B023
        x = each(lambda p, q: (1 - share) * p + share * q, x, z)  # noqa: B023
        y = each(lambda p, q: 0.1 * p + 0.9 * q, z, x)
    assert_close(raw(model), y, 2e-5)
    assert_close(model.get_weights(), x, 2e-5)


def test_sam_evaluates_at_the_parameters_before_the_adversarial_step() -> None:
    before = compiled(PlainNet(rngs=nnx.Rngs(0)), optimizer=OPTIMIZERS["sam"], learning_rate=None)
    start = before.get_weights()
    fit(before, images(8), labels(8))
    assert_same(before.get_weights(), start)
    assert any((a != b).any() for a, b in zip(raw(before), start, strict=True))
    fit(before, images(8), labels(8))
    assert_same(before.get_weights(), raw(before))


@pytest.mark.parametrize("name", only(["schedule_free"], OPTIMIZERS))
def test_evaluate_predict_save_and_export_use_the_evaluation_parameters(name: str, tmp_path: Path) -> None:
    model, x = trained(name), images()
    weights, training = model.get_weights(), raw(model)
    assert any((a != b).any() for a, b in zip(weights, training, strict=True))
    plain = compiled(PlainNet(rngs=nnx.Rngs(1)))
    plain.set_weights(weights)
    expected = plain.predict(x, verbose=0)
    assert_close(model.predict(x, verbose=0), expected)
    assert model.evaluate(x, labels(), verbose=0) == plain.evaluate(x, labels(), verbose=0)
    assert_same(list(values(model.module).values()), list(values(plain.module).values()))
    model.save(tmp_path / "model.safetensors")
    loaded = resfit.load(tmp_path / "model.safetensors", module=PlainNet(rngs=nnx.Rngs(2)))
    assert_close(loaded.predict(x, verbose=0), expected)
    model.export(tmp_path / "model.npz")
    assert_close(resfit.load_exported(tmp_path / "model.npz").predict(x), expected)
    assert_same(raw(model), training)


@pytest.mark.parametrize("name", only(["schedule_free"], OPTIMIZERS))
def test_reading_the_module_does_not_change_the_training(name: str) -> None:
    read, left = trained(name), trained(name)
    nnx.update(read.module, nnx.state(read.module))  # rebinds every Variable
    read.set_weights(read.get_weights())
    for model in (read, left):
        fit(model, images(), labels())
    assert_same(raw(read), raw(left))
    assert_same(read.get_weights(), left.get_weights())


@pytest.mark.parametrize("name", only(["schedule_free"], OPTIMIZERS))
def test_weights_that_are_set_are_evaluated_and_trained_from(name: str) -> None:
    model = trained(name)
    new = [array + 1 for array in model.get_weights()]
    model.set_weights(new)
    assert_same(model.get_weights(), new)
    assert_same(raw(model), new)
    model.module.head.kernel[...] = np.full_like(new[1], 2.0)
    assert_same(model.get_weights(), [new[0], np.full_like(new[1], 2.0)])
    fit(model, images(), labels())
    assert all(np.isfinite(array).all() for array in model.get_weights())


def test_a_resumed_run_continues_from_the_training_parameters(tmp_path: Path) -> None:
    def run(folder: str, epochs: int, **arguments: Any) -> Any:
        model = compiled(PlainNet(rngs=nnx.Rngs(0)), optimizer=FREE, learning_rate=None)
        saving = resfit.callbacks.Checkpoint(tmp_path / folder)
        fit(model, images(), labels(), epochs=epochs, callbacks=[saving], **arguments)
        return model

    run("a", 1)
    resumed, whole = run("a", 2, resume=True), run("b", 2)
    assert_same(raw(resumed), raw(whole))
    assert_same(resumed.get_weights(), whole.get_weights())


def test_early_stopping_restores_the_parameters_that_it_measured() -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)), optimizer=FREE, learning_rate=None)
    stop = resfit.callbacks.EarlyStopping("val_loss", patience=0, mode="max", restore_best_weights=True)
    history = fit(model, images(), labels(), epochs=4, validation_data=(images(), labels()), callbacks=[stop])
    best = model.evaluate(images(), labels(), verbose=0, return_dict=True)["loss"]
    assert best == pytest.approx(max(history.history["val_loss"]), rel=1e-6)


@pytest.mark.parametrize("name", only(["schedule_free"], OPTIMIZERS))
def test_swapping_the_averages_in_between_epochs_does_not_change_the_training(name: str) -> None:
    def run(*callbacks: Any) -> Any:
        optimizer = OPTIMIZERS[name]
        rate = 0.1 if not isinstance(optimizer, tuple | optax.MultiSteps) else None
        model = compiled(PlainNet(rngs=nnx.Rngs(0)), optimizer=optimizer, learning_rate=rate, ema=0.9)
        fit(model, images(8), labels(8), epochs=3, callbacks=callbacks)
        return model

    swapped, left = run(resfit.callbacks.SwapEMAWeights(swap_on_epoch=True)), run()
    assert_same(raw(swapped), raw(left))
    assert_same(swapped.get_weights(), left.get_weights())
    assert_same(swapped.get_weights("ema"), left.get_weights("ema"))
