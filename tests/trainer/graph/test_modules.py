"""Any nnx.Module trains in the right mode, for every way in which a module can take its mode."""

import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import reduce
from flax import nnx

import resfit
from resfit.errors import ModuleError
from resfit.nets.modes import switched
from resfit.trainer.graph.module_plan import plan_module
from resfit.trainer.state import user_module
from tests.helpers import CLASSES, PlainNet, TinyNet, compiled, differ, fit, flags, images, labels, values


class Keyword(TinyNet):
    """The base of networks that pass their mode on as an argument, with flags that are wrong on purpose."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        super().__init__(rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.9, use_running_average=True, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, deterministic=True, rngs=rngs)

    def run(self, x: jax.Array, train: bool) -> jax.Array:
        x = nnx.relu(self.norm(self.conv(x), use_running_average=not train))
        return self.head(self.dropout(reduce(x, "n h w c -> n c", "mean"), deterministic=not train))


class Train(Keyword):
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        return self.run(x, train)


class TrainTrueByDefault(Keyword):
    def __call__(self, x: jax.Array, *, train: bool = True) -> jax.Array:
        return self.run(x, train)


class TrainPositional(Keyword):
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return self.run(x, train)


class Training(Keyword):
    def __call__(self, x: jax.Array, training: bool = False) -> jax.Array:
        return self.run(x, training)


class Deterministic(Keyword):
    def __call__(self, x: jax.Array, *, deterministic: bool) -> jax.Array:
        return self.run(x, not deterministic)


class UseRunningAverage(Keyword):
    def __call__(self, x: jax.Array, use_running_average: bool = True) -> jax.Array:
        return self.run(x, not use_running_average)


class ModesOnly(Keyword):
    """Flags that say "evaluate" and no argument: only a copy of the graph in training mode trains it."""

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.norm(self.conv(x)))
        return self.head(self.dropout(reduce(x, "n h w c -> n c", "mean")))


class TrainReachesOnlyDropout(Keyword):
    """A network that passes `train` to Dropout only: the flag of BatchNorm must be right too."""

    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        x = nnx.relu(self.norm(self.conv(x)))
        return self.head(self.dropout(reduce(x, "n h w c -> n c", "mean"), deterministic=not train))


class Gate(nnx.Module):
    """A layer with a bare `deterministic` attribute and no set_view, which adds one in training only."""

    def __init__(self) -> None:
        self.deterministic = True

    def __call__(self, x: jax.Array) -> jax.Array:
        return x if self.deterministic else x + 1


MODES = [
    Train,
    TrainTrueByDefault,
    TrainPositional,
    Training,
    Deterministic,
    UseRunningAverage,
    ModesOnly,
    TrainReachesOnlyDropout,
]


@pytest.mark.representatives("Train", "Deterministic", "ModesOnly", "TrainReachesOnlyDropout")
@pytest.mark.parametrize("kind", MODES)
def test_a_module_trains_and_evaluates_in_the_right_mode_however_it_is_told(kind: Any) -> None:
    module = kind(rngs=nnx.Rngs(0))
    came_with = flags(module)
    model = compiled(module)
    before = values(module)
    x, y = images(16), labels(16)
    predicted = model.predict(x, batch_size=8, verbose=0)
    evaluated = model.evaluate(x, y, batch_size=8, verbose=0)
    assert differ(before, values(module)) == set()
    assert model.predict(x, batch_size=8, verbose=0).tolist() == predicted.tolist()  # no dropout, no batch statistics
    row = model.predict(x[:1], batch_size=8, verbose=0)
    np.testing.assert_allclose(row, predicted[:1], atol=1e-6)

    fit(model, x, y)
    assert {"norm.mean", "norm.var", "conv.kernel", "head.kernel"} <= differ(before, values(module))
    assert flags(module) == came_with
    assert model.evaluate(x, y, batch_size=8, verbose=0) != evaluated


@pytest.mark.representatives("ModesOnly")
@pytest.mark.parametrize("kind", [Train, ModesOnly])
def test_dropout_is_on_in_training_with_another_mask_in_every_step(kind: Any) -> None:
    # With a learning rate of zero, the losses of two steps differ only by the mask.
    model = compiled(kind(rngs=nnx.Rngs(0)), learning_rate=0.0)
    x, y = images(8), labels(8)
    losses = [model.train_on_batch(x, y)[0] for _ in range(3)]
    assert len(set(losses)) == 3
    assert len({model.test_on_batch(x, y)[0] for _ in range(2)}) == 1


def test_two_dropout_layers_of_one_module_draw_different_masks() -> None:
    class TwoMasks(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.a, self.b = nnx.Dropout(0.5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
            self.scale = nnx.Param(jnp.ones(()))

        def __call__(self, x: jax.Array) -> jax.Array:
            return jnp.stack([self.a(x), self.b(x)], axis=1) * self.scale[...]

    class Agreement(resfit.Model):
        def compute_loss(self, module: Any, x: Any, y: Any, *, key: jax.Array, train: bool) -> Any:
            masks = module(x)
            return (masks[:, 0] == masks[:, 1]).mean(axis=1), masks

    model = compiled(TwoMasks(nnx.Rngs(0)), kind=Agreement)
    agreement = model.train_on_batch(np.ones((8, 256), np.float32))
    assert 0.4 < agreement < 0.6  # equal masks give 1
    assert model.test_on_batch(np.ones((8, 256), np.float32)) == 1.0


def test_a_layer_with_a_bare_deterministic_attribute_gets_its_mode() -> None:
    class Net(PlainNet):
        def __init__(self, rngs: nnx.Rngs) -> None:
            super().__init__(rngs=rngs)
            self.gate = Gate()

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.gate(super().__call__(x))

    class Shift(resfit.Model):
        def compute_loss(self, module: Any, x: Any, y: Any, *, key: jax.Array, train: bool) -> Any:
            outputs = module(x)
            return outputs[:, 0] - x.reshape(len(x), -1) @ module.head.kernel[:, 0] - module.head.bias[0], outputs

    model = compiled(Net(nnx.Rngs(0)), kind=Shift, learning_rate=0.0)
    np.testing.assert_allclose(model.train_on_batch(images(8)), 1, atol=1e-5)
    np.testing.assert_allclose(model.test_on_batch(images(8)), 0, atol=1e-5)
    assert model.module.gate.deterministic


def test_mode_attributes_of_every_name_are_set_if_they_are_flags() -> None:
    gate = Gate()
    gate.training = False
    for train in (True, False):
        now = switched(gate, train=train)
        assert (now.training, now.deterministic) == (train, not train)
    assert (gate.training, gate.deterministic) == (False, True)
    gate.training = None
    assert switched(gate, train=True).training is None


def test_a_layer_with_its_own_set_view_gets_its_mode() -> None:
    class Viewed(nnx.Module):
        def set_view(self, use_running_average: bool | None = None) -> None:
            self.moves = not use_running_average

    assert [switched(Viewed(), train=train).moves for train in (True, False)] == [True, False]


def test_a_module_without_batch_norm_or_randomness_trains() -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)))
    history = fit(model, epochs=5).history["loss"]
    assert history[-1] < history[0]


@nnx.jit
def bare_call(module: nnx.Module, x: jax.Array) -> jax.Array:
    return module(x)


@pytest.mark.slow
def test_a_residual_network_trains_and_a_plain_call_of_it_still_evaluates() -> None:
    net = resfit.create_model("resnet20", num_classes=CLASSES, in_channels=1, depths=(1,), widths=(4,))
    model = compiled(net)
    before = values(net)
    fit(model, images(8), labels(8))
    after = values(net)
    assert any(name.endswith("mean") for name in differ(before, after))
    np.testing.assert_allclose(bare_call(net, images(8)), model.predict(images(8), verbose=0), atol=1e-5)
    assert differ(after, values(net)) == set()


class ForgetsTrain(nnx.Module):
    def __init__(self) -> None:
        self.net = resfit.create_model("resnet20", num_classes=CLASSES, in_channels=1, depths=(1,), widths=(4,))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.net(x)


def test_a_wrapper_that_does_not_pass_train_on_still_trains(caplog: pytest.LogCaptureFixture) -> None:
    module = ForgetsTrain()
    model = compiled(module)
    before = values(module)
    with caplog.at_level(logging.WARNING, "resfit"):
        fit(model, images(8), labels(8))
    assert {name for name in before if name.endswith((".mean", ".var"))} <= differ(before, values(module))
    assert caplog.text == ""
    after = values(module)
    np.testing.assert_allclose(bare_call(module, images(8)), model.predict(images(8), verbose=0), atol=1e-5)
    assert differ(after, values(module)) == set()


def test_norms_in_evaluation_mode_in_a_training_step_give_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    class AlwaysEvaluates(TinyNet):
        def __call__(self, x: jax.Array) -> jax.Array:
            x = nnx.relu(self.norm(self.conv(x), use_running_average=True))
            return self.head(reduce(x, "n h w c -> n c", "mean"))

    with caplog.at_level(logging.WARNING, "resfit"):
        fit(compiled(AlwaysEvaluates(rngs=nnx.Rngs(0))), images(8), labels(8))
    assert "leaves every BatchNorm statistic unchanged" in caplog.text
    assert "train=train" in caplog.text


# flax deprecates sow outside nnx.capture; modules that do it are still about.
ignore_sow = pytest.mark.filterwarnings("ignore:Using 'Module.sow:DeprecationWarning")


class Sows(TinyNet):
    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.conv(x)
        self.sow(nnx.Intermediate, "features", x)
        return self.head(reduce(nnx.relu(self.norm(x)), "n h w c -> n c", "mean"))


@ignore_sow
def test_a_module_that_sows_intermediates_trains() -> None:
    module = Sows(rngs=nnx.Rngs(0))
    model = compiled(module)
    before = values(module)
    fit(model, images(8), labels(8))
    assert "norm.mean" in differ(before, values(module))
    assert not hasattr(module, "features")


@ignore_sow
def test_values_sowed_by_a_call_of_the_user_do_not_affect_training() -> None:
    module = Sows(rngs=nnx.Rngs(0))
    bare_call(module, images(2))  # before the model is made
    model = compiled(module)
    fit(model, images(8), labels(8))
    bare_call(module, images(2))  # and between two calls
    fit(model, images(8), labels(8))
    bare_call(module, images(2))
    assert model.predict(images(8), verbose=0).shape == (8, CLASSES)
    assert len(module.features.get_raw_value()) == 3


def test_a_raw_array_that_the_call_updates_is_carried() -> None:
    class Counts(PlainNet):
        def __init__(self, rngs: nnx.Rngs) -> None:
            super().__init__(rngs=rngs)
            self.calls = nnx.data(jnp.zeros(()))
            self.table = nnx.data([np.full(3, 2.0, np.float32)])

        def __call__(self, x: jax.Array) -> jax.Array:
            self.calls = self.calls + 1
            return super().__call__(x) * self.table[0].reshape(1, 3)

    module = Counts(nnx.Rngs(0))
    model = compiled(module)
    fit(model, images(16), labels(16), epochs=2)
    assert float(module.calls) == 4
    np.testing.assert_array_equal(module.table[0], 2)
    model.predict(images(8), verbose=0)
    assert float(module.calls) == 4
    module.calls = jnp.full((), 100.0)
    fit(model, images(16), labels(16))
    assert float(module.calls) == 102


def test_tied_weights_stay_tied_and_get_the_sum_of_their_gradients() -> None:
    class Tied(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.a = nnx.Linear(2, 2, use_bias=False, rngs=rngs)
            self.b = nnx.Linear(2, 2, use_bias=False, rngs=rngs)
            self.b.kernel = self.a.kernel

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.b(self.a(x))

    module = Tied(nnx.Rngs(0))
    kernel = np.array(module.a.kernel[...])
    model = compiled(module, optimizer=_plain_sgd(), learning_rate=None, loss="mean_squared_error")
    x, y = np.array([[1.0, 2.0]], np.float32), np.array([[0.5, -1.0]], np.float32)
    model.train_on_batch(x, y)
    residual = x @ kernel @ kernel - y  # loss = mean(residual**2) = residual @ residual / 2
    gradient = x.T @ (residual @ kernel.T) + (x @ kernel).T @ residual
    assert module.a.kernel is module.b.kernel
    np.testing.assert_allclose(module.a.kernel[...], kernel - 0.1 * gradient, rtol=1e-5)


def test_a_parameter_that_the_call_rewrites_is_updated_from_its_new_value() -> None:
    class Rewrites(nnx.Module):
        def __init__(self) -> None:
            self.scale = nnx.Param(jnp.array([8.0]))

        def __call__(self, x: jax.Array) -> jax.Array:
            self.scale[...] = self.scale[...] / 2
            return x * self.scale[...].reshape(1, 1)

    model = compiled(Rewrites(), optimizer=_plain_sgd(), learning_rate=None, loss="mean_squared_error")
    model.train_on_batch(np.ones((1, 1), np.float32), np.zeros((1, 1), np.float32))
    # The loss is (scale / 2)**2 with gradient scale / 2 = 4, and the step starts at the rewritten 4.
    np.testing.assert_allclose(model.module.scale[...], [4 - 0.1 * 4], rtol=1e-6)


@pytest.mark.slow
def test_spectral_norm_trains_and_evaluates_without_moving() -> None:
    class Spectral(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.head = nnx.SpectralNorm(nnx.Linear(64, CLASSES, rngs=rngs), rngs=rngs)

        def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
            return self.head(x.reshape(len(x), -1), update_stats=train)

    module = Spectral(nnx.Rngs(0))
    model = compiled(module)
    history = fit(model, images(8), labels(8), epochs=5).history["loss"]
    assert history[-1] < history[0]
    before = values(module)
    model.evaluate(images(8), labels(8), verbose=0)
    assert differ(before, values(module)) == set()


def test_a_variable_created_in_the_call_raises_with_its_name() -> None:
    class Grows(PlainNet):
        def __call__(self, x: jax.Array) -> jax.Array:
            if not hasattr(self, "offset"):
                self.offset = nnx.Param(jnp.zeros(CLASSES))
            return super().__call__(x) + self.offset[...].reshape(1, -1)

    module = Grows(rngs=nnx.Rngs(0))
    model = compiled(module)
    before = values(module)
    with pytest.raises(ModuleError, match=r"'offset' \(Param\).*__init__"):
        fit(model)
    assert differ(before, values(module)) == set()


def test_a_variable_removed_in_the_call_raises_with_its_name() -> None:
    class Shrinks(PlainNet):
        def __call__(self, x: jax.Array) -> jax.Array:
            outputs = super().__call__(x)
            del self.head.bias
            return outputs

    with pytest.raises(ModuleError, match=r"head\.bias"):
        fit(compiled(Shrinks(rngs=nnx.Rngs(0))))


@pytest.mark.parametrize(
    "module", [lambda x: x, jnp.zeros(3), TinyNet, None], ids=["function", "array", "class", "None"]
)
def test_an_object_that_is_not_a_module_raises(module: Any) -> None:
    with pytest.raises(ModuleError, match=r"Expected a flax\.nnx\.Module, got"):
        resfit.Model(module)


def test_a_variable_without_an_array_raises_with_its_name() -> None:
    module = PlainNet(rngs=nnx.Rngs(0))
    module.extra = nnx.Variable({"a": jnp.zeros(2), "b": jnp.zeros(3)})
    with pytest.raises(ModuleError, match=r"'extra' \(Variable\) holds a dict"):
        resfit.Model(module)


def _plain_sgd() -> Any:
    import optax

    return optax.sgd(0.1)


@pytest.mark.slow
def test_a_custom_residual_block_trains_although_its_call_cannot_be_overridden() -> None:
    block = resfit.nets.BasicBlock(1, 3, rngs=nnx.Rngs(0))

    class Pooled(resfit.Model):
        def compute_loss(self, module, x, y, *, key, train):
            logits = module(x).mean(axis=(1, 2))
            return resfit.losses.cross_entropy(logits, y), logits

    model = compiled(block, kind=Pooled, metrics=None)
    before = values(block)
    fit(model, images(8), labels(8))
    assert any(not np.array_equal(before[name], now) for name, now in values(block).items() if name.endswith("mean"))
    model.predict(images(8), verbose=0)


def test_equal_layers_share_a_plan() -> None:
    one, same, other = (plan_module(nnx.Linear(2, outputs, rngs=nnx.Rngs(0))) for outputs in (3, 3, 4))
    assert one is same
    assert one is not other


def test_compile_plans_a_module_again_only_after_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[Any] = []
    made = user_module.plan_module
    monkeypatch.setattr(user_module, "plan_module", lambda *arguments: plans.append(arguments) or made(*arguments))
    # Sharded like a new model: a plan depends on the devices where convolutions know how batches are split.
    model = compiled(TinyNet(rngs=nnx.Rngs(0)), dispatch="sharded")
    assert len(plans) == 1
    model.compile("adam", dispatch="sharded")
    assert len(plans) == 1
    model.compile("adam", dispatch="sharded", precision="bfloat16")
    model.freeze("conv")
    model.compile("adam", dispatch="sharded", precision="bfloat16")
    model.module.head.kernel.set_value(jnp.zeros((5, 3)))
    model.compile("adam", dispatch="sharded", precision="bfloat16")
    model.module.head = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
    model.compile("adam", dispatch="sharded", precision="bfloat16")
    assert len(plans) == 5
