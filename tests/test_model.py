"""`Model` as a user sees it: fit, evaluate, predict, and a module that remains the user's."""

import functools
import inspect
import logging
import types
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import clu.metrics
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import resfit
from resfit.callbacks import Callback
from resfit.errors import CallbackError, CompileError, DataError, LabelError, ModuleError, NotCompiledError, StepFailed
from resfit.trainer.loop import input_stall
from tests.helpers import (
    BATCH,
    CLASSES,
    PlainNet,
    Recorder,
    TinyNet,
    assert_close,
    assert_same,
    compiled,
    differ,
    fit,
    flags,
    images,
    labels,
    state_of,
    values,
)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def cross_entropy(logits: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the loss of each row, (n,), in NumPy and float64."""
    return -log_softmax(np.asarray(logits, np.float64))[np.arange(len(y)), y]


@functools.cache
def ready() -> Any:
    """Return one model for all tests that do not depend on its values, so that its steps are traced once."""
    return compiled()


@nnx.jit
def forward(module: Any, x: Any) -> Any:
    """Return the outputs of the module, with one program instead of one for each operation."""
    return module(x)


# --- the module remains the user's ------------------------------------------------------------------------------------

ACTIONS: dict[str, Callable[[resfit.Model], Any]] = {
    "fit": fit,
    "evaluate": lambda model: model.evaluate(images(), labels(), verbose=0),
    "predict": lambda model: model.predict(images(), verbose=0),
    "train_on_batch": lambda model: model.train_on_batch(images(8), labels(8)),
    "test_on_batch": lambda model: model.test_on_batch(images(8), labels(8)),
    "predict_on_batch": lambda model: model.predict_on_batch(images(8)),
}


@pytest.mark.representatives(
    "fit evaluate predict fit-came in training mode", "predict train_on_batch evaluate-came in evaluation mode"
)
@pytest.mark.parametrize("train", [True, False], ids=["came in training mode", "came in evaluation mode"])
@pytest.mark.parametrize(
    "actions",
    [["fit", "evaluate", "predict", "fit"], ["predict", "train_on_batch", "evaluate"], ["evaluate", "test_on_batch"]],
    ids=" ".join,
)
def test_the_module_keeps_its_flags_after_any_calls_in_any_order(actions: list[str], train: bool) -> None:
    module = TinyNet(rngs=nnx.Rngs(0))
    module.train() if train else module.eval()
    came_with = flags(module)
    model = compiled(module)
    for action in actions:
        ACTIONS[action](model)
        assert flags(module) == came_with
    assert model.module is module


@pytest.mark.parametrize("action", ["evaluate", "predict", "test_on_batch", "predict_on_batch"])
def test_evaluate_and_predict_change_nothing(action: str) -> None:
    model = ready()
    fit(model)
    before = values(model.module)
    ACTIONS[action](model)
    assert differ(before, values(model.module)) == set()


@pytest.mark.parametrize("action", ["fit", "train_on_batch"])
def test_training_changes_parameters_and_statistics_in_the_users_module(action: str) -> None:
    module = TinyNet(rngs=nnx.Rngs(0))
    before = values(module)
    ACTIONS[action](compiled(module))
    assert differ(before, values(module)) == set(before)


class BrokenError(RuntimeError):
    pass


def raise_in(hook: str, at: int = 1) -> Callback:
    """Return a callback that raises in the second call of a hook, or in the only one."""
    calls: list[None] = []

    def method(*_: Any) -> None:
        calls.append(None)
        if len(calls) > at:
            raise BrokenError

    callback = Callback()
    setattr(callback, hook, method)
    return callback


def broken_data() -> Iterator[Any]:
    yield images(8), labels(8)
    raise BrokenError


@pytest.mark.representatives("batch end", "data")
@pytest.mark.parametrize(
    ("fail", "steps"),
    [
        (lambda model: fit(model, callbacks=[raise_in("on_train_batch_end")]), 2),
        (lambda model: fit(model, callbacks=[raise_in("on_train_batch_begin")]), 1),
        (lambda model: fit(model, callbacks=[raise_in("on_epoch_begin", 0)]), 0),
        (lambda model: fit(model, callbacks=[raise_in("on_train_begin", 0)]), 0),
        (lambda model: fit(model, broken_data(), None, batch_size=None), 1),
    ],
    ids=["batch end", "batch begin", "epoch begin", "train begin", "data"],
)
def test_after_an_exception_the_module_holds_the_last_completed_step(fail: Any, steps: int) -> None:
    module = TinyNet(rngs=nnx.Rngs(0))
    module.eval()
    came_with, before = flags(module), values(module)
    model = compiled(module)
    with pytest.raises(BrokenError):
        fail(model)
    assert flags(module) == came_with
    assert state_of(model).steps() == steps
    assert differ(before, values(module)) == (set(before) if steps else set())
    assert_close(model.predict(images(), verbose=0), forward(module, images()))
    fit(model)  # the training can continue
    assert state_of(model).steps() == steps + 3


def test_an_exception_while_tracing_leaves_everything_unchanged() -> None:
    module = TinyNet(rngs=nnx.Rngs(0))
    before = values(module)
    model = compiled(module)
    with pytest.raises((TypeError, ValueError)):
        fit(model, np.zeros((8, 8, 8, 2), np.float32), labels(8))  # two channels for a network with one
    assert differ(before, values(module)) == set()
    fit(model)


@pytest.mark.parametrize("action", ["evaluate", "predict"])
def test_an_exception_in_evaluate_or_predict_leaves_the_module_unchanged(action: str) -> None:
    module = TinyNet(rngs=nnx.Rngs(0))
    came_with, before = flags(module), values(module)
    model = compiled(module)
    hook = {"evaluate": "on_test_batch_end", "predict": "on_predict_batch_end"}[action]
    arguments = {"evaluate": (images(), labels()), "predict": (images(),)}[action]
    seen: list[BaseException] = []
    watcher = Callback()
    watcher.on_exception = seen.append  # type: ignore[method-assign]
    with pytest.raises(BrokenError):
        getattr(model, action)(*arguments, batch_size=BATCH, verbose=0, callbacks=[raise_in(hook), watcher])
    assert [type(e) for e in seen] == [BrokenError]
    assert flags(module) == came_with
    assert differ(before, values(module)) == set()


def test_arrays_taken_from_the_module_stay_readable() -> None:
    module = TinyNet(rngs=nnx.Rngs(0))
    held, clone, first = nnx.as_pure(nnx.state(module)), nnx.clone(module), module.head.kernel[...]
    expected = values(module)
    model = compiled(module)
    fit(model)
    after_fit = model.module.head.kernel[...]
    copied = np.array(after_fit)
    fit(model, epochs=2)
    assert differ(expected, values(clone)) == set()
    assert np.array_equal(first, expected["head.kernel"])
    assert np.array_equal(held["head"]["kernel"], expected["head.kernel"])
    assert np.array_equal(after_fit, copied)


def test_arrays_taken_by_a_callback_stay_readable_during_training() -> None:
    class Keeps(Callback):
        def __init__(self) -> None:
            self.kept: list[tuple[Any, np.ndarray]] = []

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            kernel = self.model.module.head.kernel[...]
            self.kept.append((kernel, np.array(kernel)))

    keeps = Keeps()
    fit(compiled(), epochs=2, callbacks=[keeps])
    assert len(keeps.kept) == 6
    for kernel, copy in keeps.kept:
        np.testing.assert_array_equal(kernel, copy)
    assert len({copy.tobytes() for _, copy in keeps.kept}) == 6


def test_a_teacher_that_is_a_clone_of_the_student_is_not_changed_by_its_training() -> None:
    student = TinyNet(rngs=nnx.Rngs(0))
    teacher = nnx.clone(student)  # shares the arrays
    before = values(teacher)
    fit(compiled(student))
    teacher.eval()
    assert np.isfinite(np.asarray(forward(teacher, images()))).all()
    assert differ(before, values(teacher)) == set()


def test_two_models_of_one_module_share_its_training() -> None:
    module = TinyNet(rngs=nnx.Rngs(0))
    a, b = compiled(module), compiled(module)
    fit(a)
    trained = values(module)
    np.testing.assert_array_equal(a.predict(images(), verbose=0), b.predict(images(), verbose=0))
    fit(b)
    assert differ(trained, values(module)) == set(trained)
    np.testing.assert_array_equal(a.predict(images(), verbose=0), b.predict(images(), verbose=0))
    assert_same(a.get_weights(), b.get_weights())


def test_values_assigned_between_two_calls_are_used() -> None:
    model = compiled()
    fit(model)
    model.module.head.kernel[...] = jnp.zeros((4, CLASSES))
    model.module.head.bias.set_value(np.array([1.0, 2.0, 3.0]))  # NumPy, and of another dtype
    np.testing.assert_allclose(model.predict(images(), verbose=0), np.tile([1.0, 2.0, 3.0], (20, 1)), rtol=1e-6)
    model.compile("sgd", learning_rate=0.0, dispatch="jit")
    fit(model)
    np.testing.assert_array_equal(model.module.head.bias[...], np.float32([1, 2, 3]))


def test_training_continues_from_values_that_a_callback_assigns() -> None:
    class Resets(Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if batch == 1:
                self.model.module.head.kernel[...] = jnp.full((4, CLASSES), 0.5)

    model = compiled(learning_rate=0.0)
    fit(model, callbacks=[Resets()])
    np.testing.assert_array_equal(model.module.head.kernel[...], 0.5)


def test_losing_a_value_assigned_to_an_outdated_module_warns(
    caplog: pytest.LogCaptureFixture,
) -> None:
    module = TinyNet(rngs=nnx.Rngs(0))

    class BehindTheModelsBack(Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            module.head.bias[...] = jnp.full(CLASSES, 7.0)  # not self.model.module

    with caplog.at_level(logging.WARNING, "resfit"):
        fit(compiled(module), callbacks=[BehindTheModelsBack()])
    assert "The new value of ['head.bias'] in the module is lost" in caplog.text
    assert "model.module" in caplog.text


def test_an_assigned_array_of_another_shape_raises_with_its_name() -> None:
    model = compiled()
    model.module.head.bias = nnx.Param(jnp.zeros(5))
    with pytest.raises(ModuleError, match=r"'head\.bias'.*shape \(5,\).*\(3,\)"):
        model.predict(images(), verbose=0)


def test_a_variable_added_after_compile_raises() -> None:
    model = compiled()
    model.module.extra = nnx.Param(jnp.zeros(5))
    with pytest.raises(ModuleError, match=r"added.*compile"):
        fit(model)


def test_set_weights_is_the_inverse_of_get_weights_and_copies() -> None:
    model = compiled()
    start = model.get_weights()
    fit(model)
    assert not np.array_equal(model.get_weights()[0], start[0])
    mine = [array.copy() for array in start]
    model.set_weights(mine)
    for array in mine:
        array[...] = np.nan
    assert_same(model.get_weights(), start)
    assert_same(values(model.module), values(TinyNet(rngs=nnx.Rngs(0))))
    with pytest.raises(ModuleError, match=r"Got .* arrays for the .* of this module"):
        model.set_weights(start[:-1])


def test_a_step_that_fails_on_the_device_leaves_a_usable_module() -> None:
    armed: list[bool] = []

    def explode(x: np.ndarray) -> np.ndarray:
        if armed:
            raise BrokenError
        return x

    class Net(PlainNet):
        def __call__(self, x: jax.Array) -> jax.Array:
            x = jax.pure_callback(explode, jax.ShapeDtypeStruct(x.shape, x.dtype), jax.lax.stop_gradient(x))
            return super().__call__(x)

    class Arms(Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if batch == 1:
                float(logs["loss"])
                armed.append(True)

    module, x, y = Net(rngs=nnx.Rngs(0)), images(16), labels(16)
    model = compiled(module)
    before = values(module)
    with pytest.raises(StepFailed, match="module returns to the values it last held"):
        fit(model, x, y, callbacks=[Arms()], epochs=5)
    armed.clear()
    assert all(np.isfinite(value).all() for value in values(module).values())
    history = fit(model, x, y, epochs=2)
    assert np.isfinite(history.history["loss"]).all()
    assert differ(before, values(module)) == set(before)


# --- evaluate and predict ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained() -> Any:
    model = compiled(metrics=["accuracy", "cross_entropy"])
    fit(model, images(40), labels(40))
    return model


def test_evaluate_equals_a_formula_in_numpy_for_every_batch_size(trained: Any) -> None:
    x, y = images(61, seed=3), labels(61)
    module = nnx.clone(trained.module)
    module.eval()
    logits = np.asarray(forward(module, x))
    expected = [cross_entropy(logits, y).mean(), (logits.argmax(axis=1) == y).mean(), cross_entropy(logits, y).mean()]
    for batch_size in (7, 64):
        found = trained.evaluate(x, y, batch_size=batch_size, verbose=0)
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)
    one, other = (trained.evaluate(x, y, batch_size=size, verbose=0) for size in (7, 64))
    np.testing.assert_allclose(one, other, atol=1e-5, rtol=0)


def test_evaluate_weights_the_loss_and_not_the_metrics(trained: Any) -> None:
    x, y = images(21, seed=3), labels(21)
    weight = np.random.default_rng(0).uniform(0, 3, 21)
    logits = trained.predict(x, verbose=0)
    expected = (weight * cross_entropy(logits, y)).sum() / 21  # by the number of examples, as in Keras
    found = trained.evaluate(x, y, batch_size=BATCH, sample_weight=weight, verbose=0, return_dict=True)
    np.testing.assert_allclose(found["loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(found["accuracy"], (logits.argmax(axis=1) == y).mean(), rtol=1e-6)
    np.testing.assert_allclose(found["cross_entropy"], cross_entropy(logits, y).mean(), rtol=1e-5)


def test_evaluate_returns_the_same_as_keras() -> None:
    model = compiled(metrics=["cross_entropy", "accuracy"])
    listed = model.evaluate(images(), labels(), verbose=0)
    named = model.evaluate(images(), labels(), verbose=0, return_dict=True)
    assert list(named) == ["loss", "cross_entropy", "accuracy"]  # the order of compile
    assert listed == list(named.values())
    assert all(type(value) is float for value in listed)
    model.compile("sgd", metrics=None, dispatch="jit")
    assert type(model.evaluate(images(), labels(), verbose=0)) is float
    assert list(fit(model, images(8), labels(8)).history) == ["loss"]


def test_steps_limits_evaluate_and_predict_to_the_first_batches(trained: Any) -> None:
    x, y = images(), labels()
    assert trained.evaluate(x, y, BATCH, steps=2, verbose=0) == trained.evaluate(x[:16], y[:16], BATCH, verbose=0)
    np.testing.assert_array_equal(
        trained.predict(x, BATCH, steps=1, verbose=0), trained.predict(x[:8], BATCH, verbose=0)
    )


def test_predict_keeps_the_structure_of_the_outputs() -> None:
    class Two(PlainNet):
        def __call__(self, x: jax.Array) -> Any:
            return {"logits": super().__call__(x), "mean": x.mean(axis=(1, 2, 3))}

    predicted = resfit.Model(Two(rngs=nnx.Rngs(0))).predict(images(), batch_size=BATCH, verbose=0)
    assert {name: array.shape for name, array in predicted.items()} == {"logits": (20, CLASSES), "mean": (20,)}
    assert all(type(array) is np.ndarray for array in predicted.values())
    np.testing.assert_allclose(predicted["mean"], images().mean(axis=(1, 2, 3)), atol=1e-6)


def test_predict_on_batch_and_test_on_batch_equal_predict_and_evaluate(trained: Any) -> None:
    x, y = images(8), labels(8)
    np.testing.assert_allclose(trained.predict_on_batch(x), trained.predict(x, verbose=0), atol=1e-6)
    np.testing.assert_allclose(trained.test_on_batch(x, y), trained.evaluate(x, y, verbose=0), rtol=1e-6)
    assert trained.test_on_batch(x, y, return_dict=True).keys() == {"loss", "accuracy", "cross_entropy"}


def test_predict_works_without_compile_and_other_methods_require_it() -> None:
    model = resfit.Model(PlainNet(rngs=nnx.Rngs(0)))
    assert model.predict(images(), verbose=0).shape == (20, CLASSES)
    for action in ("fit", "evaluate", "train_on_batch", "test_on_batch"):
        with pytest.raises(NotCompiledError, match=rf"Call model\.compile\(\.\.\.\) before {action}"):
            ACTIONS[action](model)
    with pytest.raises(NotCompiledError, match="learning rate"):
        _ = model.learning_rate


@pytest.mark.parametrize(("outputs", "weights"), [(3, {1: 1.0, 2: 1.0, 3: 5.0}), (1, {1: 1.0, 2: 5.0})])
def test_class_weight_for_a_class_without_an_output_raises_before_a_step(outputs: int, weights: Any) -> None:
    model = compiled(nnx.Linear(4, outputs, rngs=nnx.Rngs(0)), kind=resfit.Model)
    before = values(model.module)
    x, y = images(8).reshape(8, -1)[:, :4], labels(8) % min(outputs + 1, 3)
    for use in (model.fit, model.train_on_batch):
        with pytest.raises(DataError, match=f"names the class {max(weights)}, and the network has {outputs} outputs"):
            use(x, y, class_weight=weights)
    assert_same(values(model.module), before)


@pytest.mark.parametrize("steps", [0, -1, 2.0, "2", True])
def test_steps_of_an_evaluation_or_prediction_that_are_no_positive_integer_raise(steps: Any, trained: Any) -> None:
    for use in (trained.evaluate, trained.predict):
        data = (images(), labels()) if use == trained.evaluate else (images(),)
        with pytest.raises(DataError, match="Expected steps to be a positive integer, or None for all batches, got"):
            use(*data, steps=steps, verbose=0)


@pytest.mark.parametrize("value", ["no", None, 2])
def test_a_drop_remainder_that_is_no_bool_raises(value: Any) -> None:
    with pytest.raises(DataError, match="Expected drop_remainder to be True or False"):
        fit(compiled(), drop_remainder=value)


NEED_COMPILE = ("learning_rate", "metrics_names", "keep_last_step")


def test_tools_can_examine_a_model_before_compile() -> None:
    model = resfit.Model(PlainNet(rngs=nnx.Rngs(0)))
    assert [getattr(model, name, None) for name in NEED_COMPILE] == [None] * 3
    found = dict(inspect.getmembers(model))
    assert "fit" in found
    assert not found.keys() & set(NEED_COMPILE)
    mock.create_autospec(model).fit(images(), labels())
    assert dict(inspect.getmembers(compiled())).keys() >= set(NEED_COMPILE)


@pytest.mark.parametrize("value", [lambda step: 0.1, {"rate": 0.1}, "0.1", None])
def test_a_learning_rate_that_is_no_number_raises(value: Any) -> None:
    model = compiled()
    with pytest.raises(CompileError, match=r"Expected model\.learning_rate to be a number"):
        model.learning_rate = value


# --- weights of examples ----------------------------------------------------------------------------------------------


def test_training_weights_the_loss_by_the_formula() -> None:
    x, y = images(8), labels(8)
    weight = np.random.default_rng(0).uniform(0, 3, 8).astype(np.float32)

    def loss_of(kernel: jax.Array) -> jax.Array:
        logits = x.reshape(8, -1) @ kernel
        return (weight * optax.softmax_cross_entropy_with_integer_labels(logits, y)).sum() / 8

    module = PlainNet(rngs=nnx.Rngs(0))
    kernel = module.head.kernel[...]
    expected, gradient = jax.jit(jax.value_and_grad(loss_of))(kernel)
    model = compiled(module, optimizer=optax.sgd(1.0), learning_rate=None)
    loss, _ = model.train_on_batch(x, y, sample_weight=weight)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(module.head.kernel[...], kernel - gradient, rtol=1e-4, atol=1e-6)


def test_class_weight_is_the_sample_weight_of_each_class() -> None:
    x, y = images(16), labels(16)
    one, other = compiled(), compiled()
    fit(one, x, y, class_weight={0: 2.0, 2: 0.5})
    fit(other, x, y, sample_weight=np.array([2.0, 1.0, 0.5])[y])
    assert_same(values(one.module), values(other.module))
    assert one.history.history == other.history.history


def test_an_example_of_weight_zero_has_no_effect() -> None:
    x, y = images(8), labels(8)
    weight = np.ones(8)
    weight[3] = 0
    one, other = compiled(PlainNet(rngs=nnx.Rngs(0))), compiled(PlainNet(rngs=nnx.Rngs(0)))
    one.train_on_batch(x, y, sample_weight=weight)
    wild = x.copy()
    wild[3] *= 100
    other.train_on_batch(wild, y, sample_weight=weight)
    assert_close(values(one.module), values(other.module), 1e-6)


# --- the arguments of fit ---------------------------------------------------------------------------------------------


class Batches(Callback):
    """Record the batches of a fit from the labels, for a loss that reports them."""

    def __init__(self) -> None:
        self.epochs: list[list[int]] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epochs.append([])

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.epochs[-1].append(int(logs.batch_loss))


def numbered() -> Any:
    """Return a model whose loss is a sum of powers of two, which identifies the examples of a batch."""

    class Numbers(resfit.Model):
        def compute_loss(self, module: Any, x: Any, y: Any, *, key: jax.Array, train: bool) -> Any:
            return 0 * module(x)[:, 0] + 2.0**y * len(y), y

    return compiled(PlainNet(rngs=nnx.Rngs(0)), kind=Numbers)


def members(batch: int) -> set[int]:
    return {i for i in range(24) if batch >> i & 1}


def test_every_example_occurs_once_an_epoch_in_a_new_order() -> None:
    model, batches = numbered(), Batches()
    fit(model, images(20), np.arange(20), epochs=3, callbacks=[batches])
    cut = [[members(batch) for batch in epoch] for epoch in batches.epochs]
    for epoch in cut:
        assert [len(batch) for batch in epoch] == [8, 8, 4]
        assert set.union(*epoch) == set(range(20))
    assert cut[0] != cut[1] != cut[2] != cut[0]


def test_without_shuffling_the_order_is_that_of_the_arrays() -> None:
    batches = Batches()
    fit(numbered(), images(20), np.arange(20), epochs=2, shuffle=False, callbacks=[batches])
    expected = [set(range(8)), set(range(8, 16)), set(range(16, 20))]
    assert [[members(batch) for batch in epoch] for epoch in batches.epochs] == [expected] * 2


def test_validation_split_takes_the_last_fraction_before_shuffling() -> None:
    model, batches = numbered(), Batches()
    history = fit(model, images(20), np.arange(20), validation_split=0.25, callbacks=[batches])
    assert set.union(*map(members, batches.epochs[0])) == set(range(15))
    expected = np.float32(sum(2.0**i * 5 for i in range(15, 20))) / 5  # one padded batch of eight
    np.testing.assert_allclose(history.history["val_loss"], [expected / 5 * 8], rtol=1e-6)


def test_validation_equals_evaluate_on_the_same_data() -> None:
    x, y = images(9, seed=5), labels(9)
    weight = np.linspace(0, 2, 9)
    model = compiled()
    history = fit(model, validation_data=(x, y), epochs=2).history
    assert [history["val_loss"][-1], history["val_accuracy"][-1]] == model.evaluate(x, y, BATCH, verbose=0)
    history = fit(model, validation_data=(x, y, weight), validation_batch_size=4).history
    expected = model.evaluate(x, y, batch_size=4, sample_weight=weight, verbose=0)
    assert [history["val_loss"][-1], history["val_accuracy"][-1]] == expected


def test_validation_data_overrides_validation_split() -> None:
    recorder = Recorder()
    fit(ready(), validation_split=0.5, validation_data=(images(8), labels(8)), callbacks=[recorder])
    assert recorder.names().count("on_train_batch_end") == 3


@pytest.mark.parametrize(
    ("frequency", "expected"),
    [(1, [0, 1, 2, 3, 4]), (True, [0, 1, 2, 3, 4]), (2, [1, 3]), (3, [2]), (9, []), ([1, 5], [0, 4]), ([2], [1])],
)
def test_validation_freq_counts_epochs_from_one(frequency: Any, expected: list[int]) -> None:
    history = fit(ready(), epochs=5, validation_data=(images(8), labels(8)), validation_freq=frequency)
    assert history.epochs.get("val_loss", []) == expected


def test_initial_epoch_and_epochs_number_epochs_as_keras_does() -> None:
    recorder = Recorder()
    history = fit(ready(), initial_epoch=3, epochs=5, callbacks=[recorder])
    assert history.epoch == [3, 4]
    assert [entry[1] for entry in recorder.trace if entry[0] == "on_epoch_begin"] == [3, 4]
    assert recorder.params == {"verbose": 0, "epochs": 5, "steps": 3}


def test_steps_per_epoch_splits_consecutive_passes_without_gaps() -> None:
    model, batches = numbered(), Batches()
    history = fit(model, images(20), np.arange(20), steps_per_epoch=2, epochs=3, callbacks=[batches])
    assert [len(epoch) for epoch in batches.epochs] == [2, 2, 2]
    flat = [members(batch) for epoch in batches.epochs for batch in epoch]
    assert set.union(*flat[:3]) == set.union(*flat[3:]) == set(range(20))
    assert history.params["steps"] == 2


def test_validation_steps_uses_the_first_batches_in_every_epoch() -> None:
    x, y = images(), labels()
    recorder = Recorder()
    history = fit(
        compiled(PlainNet(rngs=nnx.Rngs(0)), learning_rate=0.0), x[:8], y[:8], epochs=2, validation_data=(x, y),
        validation_steps=2, callbacks=[recorder],
    )  # fmt: skip
    assert recorder.names().count("on_test_batch_end") == 4
    assert history.history["val_loss"][0] == history.history["val_loss"][1]


@pytest.mark.parametrize("n", [9, 17])
def test_a_single_last_row_is_left_out_under_batch_norm_with_one_warning(
    n: int, caplog: pytest.LogCaptureFixture
) -> None:
    model, recorder = compiled(), Recorder()
    with caplog.at_level(logging.WARNING, "resfit"):
        fit(model, images(n), labels(n), epochs=3, callbacks=[recorder])
    assert recorder.names().count("on_train_batch_end") == 3 * (n // 8)
    assert len(caplog.records) == 1
    assert "1 example(s), too few for BatchNorm" in caplog.text
    assert f"{n} examples, batch_size=8" in caplog.text


def test_a_single_last_row_is_trained_without_batch_norm(caplog: pytest.LogCaptureFixture) -> None:
    batches = Batches()
    with caplog.at_level(logging.WARNING, "resfit"):
        fit(numbered(), images(9), np.arange(9), shuffle=False, callbacks=[batches])
    assert [members(batch) for batch in batches.epochs[0]] == [set(range(8)), {8}]
    assert caplog.text == ""


def test_drop_remainder_leaves_out_the_remainder_and_raises_if_no_batch_is_left() -> None:
    batches = Batches()
    fit(numbered(), images(20), np.arange(20), drop_remainder=True, shuffle=False, callbacks=[batches])
    assert [members(batch) for batch in batches.epochs[0]] == [set(range(8)), set(range(8, 16))]
    for n in (4, 5):
        with pytest.raises(DataError, match=f"{n} examples and batch_size=8 leaves no batch"):
            fit(numbered(), images(n), np.arange(n), drop_remainder=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size.*positive integer, got 0"),
        ({"batch_size": 2.5}, "batch_size.*positive integer, got 2.5"),
        ({"validation_data": (images(8), labels(8)), "validation_batch_size": 0}, "batch_size.*got 0"),
        ({"steps_per_epoch": 0}, "Expected steps_per_epoch to be a positive integer.*got 0"),
        ({"validation_split": 1.5}, "between 0 and 1, got 1.5"),
        ({"validation_split": 0.99}, "leaves one part empty"),
        ({"validation_data": (images(8),)}, "a tuple of 1 entries"),
        ({"validation_data": (images(8), labels(8)), "validation_freq": 0}, "positive number of epochs, got 0"),
        ({"verbose": 3}, "'auto', 0, 1 or 2, got 3"),
        ({"sample_weight": np.ones(19)}, r"lengths \{.*'x': 20.*'sample_weight': 19"),
        ({"sample_weight": -np.ones(20)}, "negative or non-finite"),
        ({"sample_weight": np.ones((20, 2))}, r"shape \(examples,\), got shape \(20, 2\)"),
        ({"sample_weight": np.ones(20), "class_weight": {0: 1.0}}, "both class_weight and sample_weight"),
        ({"class_weight": {-1: 2.0}}, "Expected class numbers from 0"),
        ({"class_weight": {0: np.nan}}, "finite weights"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_an_invalid_argument_of_fit_raises(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        fit(compiled(PlainNet(rngs=nnx.Rngs(0))), **arguments)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (images(0), labels(0), "no examples"),
        (images(8), labels(7), "one entry per example.*'x': 8, 'y': 7"),
        (images(8), None, "There are no labels"),
        (images(8), np.array(["cat"] * 8), "np.unique"),
        (np.array([None] * 8), labels(8), "object"),
        (3, labels(8), "x is 3"),
        (images(8).astype(np.int64), labels(8), r"uint8.*astype\('uint8'\)"),
    ],
    ids=["no examples", "other counts", "no labels", "strings", "objects", "a number", "int64 images"],
)
def test_data_that_cannot_be_trained_raise(x: Any, y: Any, message: str) -> None:
    model = ready()
    before = values(model.module)
    with pytest.raises(DataError, match=message):
        model.fit(x, y, batch_size=BATCH, verbose=0)
    assert differ(before, values(model.module)) == set()


def test_class_weight_without_labels_raises() -> None:
    with pytest.raises(DataError, match="class_weight needs labels"):
        ready().fit(images(8), class_weight={0: 1.0}, verbose=0)


# --- labels -----------------------------------------------------------------------------------------------------------


def soft(y: np.ndarray, off: float) -> np.ndarray:
    return np.eye(CLASSES, dtype=np.float32)[y] * (1 - off * CLASSES) + off


GOOD_LABELS: dict[str, Callable[[np.ndarray], Any]] = {
    "int32": lambda y: y,
    "column": lambda y: y[:, None],
    "uint8": lambda y: y.astype(np.uint8),
    "int64": lambda y: y.astype(np.int64),
    "jax": jnp.asarray,
    "list": lambda y: y.tolist(),
    "one-hot": lambda y: soft(y, 0.0),
    "integer one-hot": lambda y: soft(y, 0.0).astype(np.int32),
    "boolean one-hot": lambda y: soft(y, 0.0).astype(bool),
}


@pytest.mark.representatives("column", "uint8", "one-hot", "list")
@pytest.mark.parametrize("form", GOOD_LABELS)
def test_the_form_of_class_labels_does_not_matter(form: str) -> None:
    x, y = images(8), labels(8)
    model = ready()
    logits = model.predict(x, verbose=0)
    loss, accuracy = model.evaluate(x, GOOD_LABELS[form](y), verbose=0)
    np.testing.assert_allclose(loss, cross_entropy(logits, y).mean(), rtol=1e-5)
    np.testing.assert_allclose(accuracy, (logits.argmax(axis=1) == y).mean(), rtol=1e-6)


def test_soft_targets_give_their_cross_entropy() -> None:
    x, y = images(8), soft(labels(8), 0.1)
    model = ready()
    logits = np.asarray(model.predict(x, verbose=0), np.float64)
    np.testing.assert_allclose(
        model.evaluate(x, y, verbose=0)[0], -(y * log_softmax(logits)).sum(axis=1).mean(), rtol=1e-5
    )


@pytest.mark.representatives("True-int32", "False-bool")
@pytest.mark.parametrize("form", [np.float32, np.int32, bool])
@pytest.mark.parametrize("column", [True, False])
def test_one_output_is_binary(form: Any, column: bool) -> None:
    x, y = images(8), (labels(8) > 0).astype(form)
    model = compiled(PlainNet(1, rngs=nnx.Rngs(0)))
    logits = model.predict(x, verbose=0)[:, 0]
    loss, accuracy = model.evaluate(x, y[:, None] if column else y, verbose=0)
    sign = np.where(y, 1, -1)
    np.testing.assert_allclose(loss, np.log1p(np.exp(-sign * logits)).mean(), rtol=1e-5)
    np.testing.assert_allclose(accuracy, ((logits > 0) == (sign > 0)).mean(), rtol=1e-6)


def test_ten_integer_labels_against_ten_times_ten_logits_are_class_numbers() -> None:
    x, y = images(10), np.arange(10)[::-1].copy()
    model = compiled(PlainNet(10, rngs=nnx.Rngs(0)))
    logits = model.predict(x, verbose=0)
    np.testing.assert_allclose(
        model.evaluate(x, y, batch_size=10, verbose=0)[0], cross_entropy(logits, y).mean(), rtol=1e-5
    )


BAD_LABELS: dict[str, tuple[Callable[[np.ndarray], Any], str]] = {
    "starting at one": (lambda y: y + 1, "run from 1 to 3.*3 outputs.*y - 1"),
    "out of range": (lambda y: y + 4 * (y == 2), "run from 0 to 6.*num_classes=7"),
    "negative": (lambda y: np.where(y == 1, -1, y), "run from -1 to 2.*sample_weight 0"),
    "float class numbers": (lambda y: y.astype(np.float32), r"must be integers.*astype\('int32'\)"),
    "NaN": (lambda y: np.where(y[:, None] == 1, np.nan, soft(y, 0.0)), "NaN or infinity"),
    "targets that do not sum to one": (lambda y: soft(y, 0.0) * 2, "sums to 2.*binary_cross_entropy"),
    "negative targets": (lambda y: np.array([[2, -1, 0]] * len(y), np.float32), r"smallest value -1"),
    "too many columns": (lambda y: np.eye(5, dtype=np.float32)[y], r"as many columns.*\(3\)"),
    "three axes": (lambda y: np.zeros((len(y), 2, 2)), "class numbers or"),
    "boolean class numbers": (lambda y: y > 0, "must be integers"),
    "a dict": (lambda y: {"a": y}, "one array of labels.*compute_loss"),
    "none": (lambda y: None, "There are no labels"),
}


@pytest.mark.parametrize("name", BAD_LABELS)
def test_invalid_labels_raise_before_a_step_and_leave_the_model_usable(name: str) -> None:
    form, message = BAD_LABELS[name]
    model = ready()
    before, steps = values(model.module), state_of(model).steps()
    for call in (fit, lambda model, x, y: model.evaluate(x, y, batch_size=BATCH, verbose=0)):
        with pytest.raises(LabelError, match=message):
            call(model, images(), form(labels()))
    assert differ(before, values(model.module)) == set()
    assert state_of(model).steps() == steps
    fit(model)


@pytest.mark.parametrize("call", ["train_on_batch", "test_on_batch"])
def test_invalid_labels_raise_in_calls_for_one_batch(call: str) -> None:
    model = ready()
    getattr(model, call)(images(8), labels(8))
    before = values(model.module)
    with pytest.raises(LabelError, match="y - 1"):
        getattr(model, call)(images(8), labels(8) + 1)
    assert differ(before, values(model.module)) == set()


def test_a_wrong_label_in_any_batch_of_the_dataset_is_found_before_the_first_step() -> None:
    y = labels(20)
    y[19] = 7
    model = compiled()
    with pytest.raises(LabelError, match="num_classes=8"):
        fit(model, images(20), y, shuffle=False)
    assert state_of(model).steps() == 0


def test_a_wrong_label_in_a_later_batch_of_an_iterable_is_found_in_that_batch() -> None:
    model = compiled()
    with pytest.raises(LabelError, match="y - 1"):
        fit(model, [(images(8), labels(8)), (images(8), labels(8) + 1)], None)
    assert state_of(model).steps() == 1


@pytest.mark.parametrize("binary", [np.array([0, 2] * 4), np.array([-1, 1] * 4)])
def test_binary_labels_other_than_zero_and_one_raise(binary: np.ndarray) -> None:
    with pytest.raises(LabelError, match="one binary output"):
        compiled(PlainNet(1, rngs=nnx.Rngs(0))).train_on_batch(images(8), binary)


# --- compute_loss -----------------------------------------------------------------------------------------------------


def test_two_inputs_and_two_heads() -> None:
    class TwoHeads(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.image = nnx.Linear(64, 4, rngs=rngs)
            self.kind, self.size = nnx.Linear(5, CLASSES, rngs=rngs), nnx.Linear(5, 1, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            features = self.image(x["image"].reshape(len(x["image"]), -1))
            features = jnp.concatenate([features, x["weight"][:, None]], axis=1)
            return {"kind": self.kind(features), "size": self.size(features)[:, 0]}

    class TwoTasks(resfit.Model):
        def compute_loss(self, module: Any, x: Any, y: Any, *, key: jax.Array, train: bool) -> Any:
            outputs = module(x)
            kind = optax.softmax_cross_entropy_with_integer_labels(outputs["kind"], y["kind"])
            return kind + (outputs["size"] - y["size"]) ** 2, outputs

    x = {"image": images(), "weight": np.arange(20, dtype=np.float32) / 20}
    y = {"kind": labels(), "size": np.linspace(0, 1, 20, dtype=np.float32)}
    metrics = {"kind": lambda outputs, y: (outputs["kind"].argmax(axis=1) == y["kind"]).astype(jnp.float32)}
    model = compiled(TwoHeads(nnx.Rngs(0)), kind=TwoTasks, metrics=metrics, learning_rate=0.02)
    history = fit(model, x, y, epochs=4, validation_split=0.2).history
    assert history["loss"][-1] < history["loss"][0]
    outputs = model.predict(x, batch_size=7, verbose=0)
    expected = cross_entropy(outputs["kind"], y["kind"]) + (outputs["size"] - y["size"]) ** 2
    loss, accuracy = model.evaluate(x, y, batch_size=BATCH, verbose=0)
    np.testing.assert_allclose(loss, expected.mean(), rtol=1e-5)
    np.testing.assert_allclose(accuracy, (outputs["kind"].argmax(axis=1) == y["kind"]).mean(), rtol=1e-6)


def test_a_teacher_in_compute_loss_is_not_trained() -> None:
    class Distilled(resfit.Model):
        teacher: Any

        def compute_loss(self, module: Any, x: Any, y: Any, *, key: jax.Array, train: bool) -> Any:
            logits = module(x)
            targets = jax.nn.softmax(jax.lax.stop_gradient(self.teacher(x)))
            return optax.softmax_cross_entropy(logits, targets), logits

    teacher = TinyNet(rngs=nnx.Rngs(7))
    teacher.eval()
    before = values(teacher)
    model = compiled(PlainNet(rngs=nnx.Rngs(0)), kind=Distilled)
    model.teacher = teacher
    history = fit(model, images(16), None, epochs=5).history
    assert history["loss"][-1] < history["loss"][0]
    assert differ(before, values(teacher)) == set()
    assert list(history) == ["loss"]


def test_a_loss_can_ignore_labels() -> None:
    class Autoencoder(resfit.Model):
        def compute_loss(self, module: Any, x: Any, y: Any, *, key: jax.Array, train: bool) -> Any:
            assert y is None
            outputs = module(x + 0.01 * jax.random.normal(key, x.shape))
            return ((outputs - x.reshape(len(x), -1)) ** 2).mean(axis=1), outputs

    model = compiled(PlainNet(64, rngs=nnx.Rngs(0)), kind=Autoencoder, optimizer="adam", learning_rate=0.01)
    history = fit(model, images(), None, epochs=5, validation_split=0.2).history
    assert history["loss"][-1] < history["loss"][0]
    assert len(history["val_loss"]) == 5


def test_compute_loss_can_extend_that_of_its_base_class() -> None:
    class Penalised(resfit.Model):
        def compute_loss(self, module: Any, x: Any, y: Any, *, key: jax.Array, train: bool) -> Any:
            losses, outputs = super().compute_loss(module, x, y, key=key, train=train)
            return losses + (module.head.kernel[...] ** 2).sum(), outputs

    module = PlainNet(rngs=nnx.Rngs(0))
    plain, penalised = compiled(module), compiled(module, kind=Penalised, metrics=["accuracy"])
    penalty = (np.asarray(module.head.kernel[...]) ** 2).sum()
    loss, accuracy = plain.evaluate(images(), labels(), verbose=0)
    np.testing.assert_allclose(penalised.evaluate(images(), labels(), verbose=0), [loss + penalty, accuracy], rtol=1e-5)


# --- compile ----------------------------------------------------------------------------------------------------------


def test_compile_keeps_the_variables_and_resets_the_optimizer() -> None:
    model = compiled()
    fit(model)
    trained = values(model.module)
    model.compile("sgd", learning_rate=0.5, metrics=["accuracy", "cross_entropy"], dispatch="jit")
    assert differ(trained, values(model.module)) == set()
    assert state_of(model).steps() == 0
    assert model.learning_rate == 0.5
    assert list(fit(model, images(16), labels(16)).history) == ["loss", "accuracy", "cross_entropy"]


def test_compile_during_fit_raises_and_works_after_it() -> None:
    class Compiles(resfit.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.model.compile("adam", dispatch="jit")

    model = compiled()
    with pytest.raises(CompileError, match="while fit is running"):
        fit(model, callbacks=[Compiles()])
    model.compile("adam", dispatch="jit")
    fit(model, images(8), labels(8))


def test_a_compile_that_fails_leaves_the_model_unchanged() -> None:
    model = compiled()
    fit(model)
    with pytest.raises(CompileError, match="built with its own rate"):
        model.compile(optax.adam(0.1), learning_rate=0.5)
    assert model.learning_rate == pytest.approx(0.1)
    fit(model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"optimizer": "adagrad"}, "Unknown optimizer 'adagrad'.*'sgd', 'adam', 'adamw'"),
        ({"optimizer": optax.lamb}, "function lamb.*learning_rate="),
        ({"optimizer": 3}, "optimizer of type builtins.int"),
        ({"learning_rate": "cosinus"}, "learning-rate"),
        ({"loss": "logistic"}, "Unknown loss 'logistic'"),
        ({"loss": 3}, "got int"),
        ({"metrics": ["dice"]}, "Unknown metric 'dice'"),
        ({"preprocess": "imagenet"}, "'auto', None or a function"),
        ({"augment": "flip"}, "augment"),
        ({"augment": [3]}, "augment.*got 3"),
        ({"dispatch": "tpu"}, "Unknown dispatch 'tpu'.*'jit', 'sharded', 'pmap', 'eager'"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_an_invalid_argument_of_compile_raises(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(CompileError, match=message):
        resfit.Model(PlainNet(rngs=nnx.Rngs(0))).compile(**arguments)


def test_a_single_learning_rate_can_be_set_and_otherwise_the_error_gives_the_reason() -> None:
    module = PlainNet(rngs=nnx.Rngs(0))
    model = compiled(module)
    before = values(module)
    model.learning_rate = 0
    fit(model, images(8), labels(8))
    assert differ(before, values(module)) == set()
    model.learning_rate = np.float64(0.2)
    assert model.learning_rate == pytest.approx(0.2)

    model.compile(optax.sgd(0.1), dispatch="jit")
    with pytest.raises(CompileError, match=r"Cannot read the learning rate.*optax object"):
        _ = model.learning_rate
    with pytest.raises(CompileError, match="Cannot set the learning rate"):
        model.learning_rate = 0.1
    model.compile(optax.inject_hyperparams(optax.sgd)(learning_rate=0.3), dispatch="jit")
    assert model.learning_rate == pytest.approx(0.3)
    model.compile("sgd", learning_rate=optax.constant_schedule(0.4), dispatch="jit")
    assert model.learning_rate == pytest.approx(0.4)
    with pytest.raises(CompileError, match="follows a schedule"):
        model.learning_rate = 0.1


# --- iterables --------------------------------------------------------------------------------------------------------


def batches(n: int = 3) -> list[Any]:
    return [(images(8, seed=i), labels(8, seed=i)) for i in range(n)]


def forever() -> Iterator[Any]:
    while True:
        yield from batches()


def test_a_list_of_batches_is_one_pass_per_epoch() -> None:
    recorder = Recorder()
    model = compiled()
    model.fit(batches(), epochs=2, verbose=0, validation_data=batches(2), callbacks=[recorder])
    assert recorder.names().count("on_train_batch_end") == 6
    assert recorder.names().count("on_test_batch_end") == 4
    assert recorder.params["steps"] == 3
    np.testing.assert_allclose(
        model.evaluate(batches(), verbose=0),
        model.evaluate(*(np.concatenate(part) for part in zip(*batches(), strict=True)), verbose=0),
        rtol=1e-5,
    )


def test_endless_generators_with_steps_continue_across_epochs() -> None:
    recorder = Recorder()
    ready().fit(
        forever(), steps_per_epoch=3, epochs=2, validation_data=forever(), validation_steps=4, verbose=0,
        callbacks=[recorder],
    )  # fmt: skip
    assert recorder.names().count("on_train_batch_end") == 6
    assert recorder.names().count("on_test_batch_end") == 8


def test_a_limited_evaluation_takes_no_further_batch_from_a_generator() -> None:
    source = iter(batches(3))
    model = ready()
    model.evaluate(source, steps=2, verbose=0)
    assert len(list(source)) == 1


def test_an_exhausted_generator_raises() -> None:
    model = compiled()
    with pytest.raises(DataError, match="generator is an iterator, and all its batches have been used"):
        model.fit((batch for batch in batches()), epochs=2, verbose=0)
    assert state_of(model).steps() == 3
    with pytest.raises(DataError, match="yielded no batch"):
        model.fit(iter(()), verbose=0)
    with pytest.raises(DataError, match=r"list has no batches|no examples"):
        model.fit([], verbose=0)


def test_an_iterable_can_contain_weights_and_does_not_accept_labels_beside_it() -> None:
    x, y = images(8), labels(8)
    weight = np.linspace(0, 2, 8)
    one, other = compiled(), compiled()
    one.fit([(x, y, weight)], verbose=0)
    other.fit(x, y, sample_weight=weight, batch_size=8, shuffle=False, verbose=0)
    assert_same(values(one.module), values(other.module))
    for arguments in ({"y": y}, {"sample_weight": weight}):
        with pytest.raises(DataError, match="makes its own batches"):
            one.fit(batches(), verbose=0, **arguments)
    with pytest.raises(DataError, match="Expected arrays, or image files"):
        one.fit(batches(), verbose=0, validation_split=0.5)
    with pytest.raises(DataError, match="tuple of 4 entries"):
        one.fit([(x, y, weight, 1)], verbose=0)


def test_class_weight_weights_the_batches_of_an_iterable_like_arrays() -> None:
    x, y = images(16), labels(16)
    one, other = compiled(), compiled()
    weights = {0: 2.0, 2: 0.5}
    one.fit([(x[:8], y[:8]), (x[8:], y[8:])], class_weight=weights, verbose=0)
    other.fit(x, y, class_weight=weights, batch_size=8, shuffle=False, verbose=0)
    assert_same(values(one.module), values(other.module))
    with pytest.raises(DataError, match="both class_weight and sample_weight"):
        one.fit([(x, y, np.ones(16))], class_weight=weights, verbose=0)
    with pytest.raises(DataError, match="class_weight needs labels"):
        one.fit([x], class_weight=weights, verbose=0)


@pytest.mark.slow
def test_the_whole_dataset_on_the_device_trains_the_same() -> None:
    one, other = compiled(), compiled()
    fit(one, epochs=2, cache="device")
    fit(other, epochs=2)
    # Two programs: XLA can fuse the gather of the batch into the step, which changes the last bit on some processors.
    assert_close(values(one.module), values(other.module), 1e-5)
    spread, other = compiled(dispatch="sharded"), compiled()
    fit(spread, images(16), labels(16), epochs=2, cache="device")
    fit(other, images(16), labels(16), epochs=2)
    assert_close(values(spread.module), values(other.module), 1e-4)
    with pytest.raises(DataError, match="None or 'device', got 'disk'"):
        fit(one, cache="disk")
    with pytest.raises(DataError, match="examples with random access"):
        one.fit([(images(), labels())], cache="device", verbose=0)


def test_a_function_that_returns_a_new_iterator_is_called_in_every_epoch() -> None:
    def fresh() -> Iterator[Any]:
        yield images(8), labels(8)
        yield images(8, seed=2), labels(8, seed=2)

    one, other = compiled(), compiled()
    one.fit(fresh, epochs=3, verbose=0)
    other.fit(list(fresh()), epochs=3, verbose=0)
    assert_same(values(one.module), values(other.module))


def test_the_share_of_time_spent_waiting_for_data_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr(input_stall, "time", types.SimpleNamespace(perf_counter=lambda: clock.now))

    def slow() -> Iterator[Any]:
        for _ in range(4):
            clock.now += 3
            yield images(8), labels(8)

    class Steps(Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            assert logs["loss"] > 0  # the step is done, so the wait for the next batch counts
            clock.now += 1

    model = ready()
    history = model.fit(slow, epochs=2, verbose=0, callbacks=[Steps()])
    assert history.timings["data_wait"] == [0.75, 0.75]
    assert model.data_wait == 0.75


def test_the_report_of_the_data_is_in_the_logs_of_the_epoch() -> None:
    class Reporting(resfit.data.ArrayBatches):
        @property
        def report(self) -> dict[str, float]:
            return {"bad_records": 3.0}

        @report.setter
        def report(self, _: Any) -> None: ...

    history = compiled().fit(Reporting(images(), labels(), batch_size=8), verbose=0)
    assert history.history["bad_records"] == [3.0]


def test_batches_of_resfit_are_accepted_as_data() -> None:
    data = resfit.data.ArrayBatches(images(), labels(), batch_size=BATCH, seed=0)
    one, other = compiled(), compiled()
    one.fit(data, epochs=2, verbose=0)
    fit(other, epochs=2)
    assert_same(values(one.module), values(other.module))


def test_callbacks_must_derive_from_callback() -> None:
    class Foreign:
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None: ...

    with pytest.raises(resfit.errors.CallbackError, match=r"Foreign.*resfit\.callbacks\.Callback"):
        fit(ready(), callbacks=[Foreign()])


def test_predict_returns_probabilities_and_labels_on_request() -> None:
    model, x = ready(), images(11)
    logits = model.predict(x, batch_size=4, verbose=0)
    scores = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = model.predict(x, batch_size=4, verbose=0, outputs="probabilities")
    np.testing.assert_allclose(probabilities, scores / scores.sum(axis=1, keepdims=True), rtol=1e-5)
    np.testing.assert_array_equal(model.predict(x, batch_size=4, verbose=0, outputs="labels"), logits.argmax(axis=1))
    with pytest.raises(resfit.errors.CompileError, match="'labels'"):
        model.predict(x, verbose=0, outputs="classes")


def test_predict_batches_yields_every_row_in_order_and_can_be_stopped_early() -> None:
    model, x = ready(), images(11)
    parts = list(model.predict_batches(x, 4))
    assert [len(part) for part in parts] == [4, 4, 3]
    np.testing.assert_array_equal(np.concatenate(parts), model.predict(x, batch_size=4, verbose=0))
    for part in model.predict_batches(x, 4):
        assert len(part) == 4
        break


def test_a_layer_setting_changed_after_compile_raises_and_is_not_silently_ignored() -> None:
    model = compiled()
    fit(model)
    model.module.norm.momentum = 0.5
    for use in (
        lambda: fit(model),
        lambda: model.evaluate(images(), labels(), verbose=0),
        lambda: model.predict(images()),
    ):
        with pytest.raises(resfit.errors.ModuleError, match="compile"):
            use()
    before = model.get_weights()
    model.compile("sgd", learning_rate=0.1, dispatch="jit")
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    fit(model, images(8), labels(8))


def test_mode_flags_changed_between_calls_do_not_count_as_a_change_of_the_module() -> None:
    model = compiled()
    fit(model)
    model.module.eval()
    fit(model)
    model.module.train()
    model.evaluate(images(), labels(), verbose=0)


def test_predict_requires_one_output_per_row() -> None:
    class Total(nnx.Module):
        def __call__(self, x: jax.Array) -> jax.Array:
            return x.sum()

    with pytest.raises(resfit.errors.ModuleError, match="one output per row"):
        resfit.Model(Total()).predict(images(), verbose=0)


def test_one_callback_does_not_need_a_list() -> None:
    history = resfit.callbacks.History()
    fit(ready(), callbacks=history)
    assert len(history.history["loss"]) == 1


class EmptyFails(clu.metrics.Average):
    @classmethod
    def empty(cls) -> Any:
        raise RuntimeError("no sums")


def test_a_compile_that_fails_leaves_the_compiled_model_unchanged() -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)), loss=lambda logits, y: ((logits - y) ** 2).mean(axis=-1), metrics=[])
    x, y = images(8), np.eye(CLASSES, dtype=np.float32)[labels(8)]
    y[0] = 1
    before = model.evaluate(x, y, verbose=0)
    with pytest.raises(RuntimeError, match="no sums"):
        model.compile("sgd", loss="cross_entropy", metrics=[EmptyFails])
    assert model.evaluate(x, y, verbose=0) == before
    fit(model, x, y)


def test_a_fit_with_invalid_callbacks_keeps_the_history_of_the_last_fit() -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)))
    history = fit(model)
    for wrong in ({"callbacks": [print]}, {"verbose": 3}):
        with pytest.raises((CallbackError, DataError)):
            fit(model, **wrong)
        assert model.history is history
