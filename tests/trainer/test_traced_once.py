"""A second Model of equal architecture and equal compile arguments is neither traced nor lowered nor compiled."""

import dataclasses
import logging
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import resfit
from resfit.backends import program_cache as programs
from tests.helpers import BATCH, PlainNet, assert_same, compiled, counting, fit, images, labels, values

TRACE = "/jax/core/compile/jaxpr_trace_duration"
LOWER = "/jax/core/compile/jaxpr_to_mlir_module_duration"


def squared(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Return a custom loss, (batch,)."""
    return ((jax.nn.softmax(logits) - jax.nn.one_hot(targets, logits.shape[1])) ** 2).sum(axis=1)


def run(start: int = 0, **arguments: Any) -> resfit.Model:
    model: resfit.Model = compiled(PlainNet(rngs=nnx.Rngs(start)), **arguments)
    fit(model, images(16), labels(16), validation_data=(images(16), labels(16)))
    model.predict(images(16), batch_size=BATCH, verbose=0)
    return model


EQUAL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "same arguments": ({}, {}),
    "another learning rate": ({"learning_rate": 0.1}, {"learning_rate": 0.01}),
    "another seed": ({}, {"seed": 7}),
    "adamw, bfloat16, averages, slices": (
        arguments := {"optimizer": "adamw", "precision": "bfloat16", "ema": 0.9, "gradient_accumulation_steps": 2},
        arguments,
    ),
    "loss with options, metrics": (
        {"loss": resfit.losses.CrossEntropy(0.1), "metrics": ["accuracy", "top_2_accuracy"]},
        {"loss": resfit.losses.CrossEntropy(0.1), "metrics": ["accuracy", "top_2_accuracy"]},
    ),
    "custom loss": ({"loss": squared}, {"loss": squared}),
    "schedule by name": ({"learning_rate": "cosine"}, {"learning_rate": "cosine"}),
    "chain of optax": (
        {"optimizer": optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)), "learning_rate": None},
        {"optimizer": optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)), "learning_rate": None},
    ),
    "sharded": ({"dispatch": "sharded"}, {"dispatch": "sharded"}),
    "pmap": ({"dispatch": "pmap"}, {"dispatch": "pmap"}),
}


@pytest.mark.representatives("loss with options, metrics")
@pytest.mark.parametrize("name", EQUAL)
def test_the_second_model_is_not_traced(name: str) -> None:
    first, second = EQUAL[name]
    run(**first)
    run(start=1, **second)  # its optimizer can begin with other constants
    with counting(TRACE, LOWER) as found:
        model = run(start=2, **second)
    # JAX traces the abstract state of the optimizer, once for each model.
    assert LOWER not in found
    assert found.count(TRACE) <= 3
    programs.PROGRAMS.clear()
    assert_same(values(model.module), values(run(start=2, **second).module))


def test_another_learning_rate_makes_the_state_of_the_optimizer_by_the_same_program() -> None:
    run()
    with counting(LOWER) as found:
        model = run(start=1, learning_rate=0.5)
    assert found == []
    assert model.learning_rate == 0.5


def test_a_network_of_the_zoo_is_not_traced_again() -> None:
    spec = resfit.nets.ResNetSpec(block="basic", depths=(1,), widths=(4,), stem="cifar", num_classes=3, in_channels=1)
    for repeat in range(2):
        model = resfit.Model(resfit.nets.ResNet(spec, rngs=nnx.Rngs(repeat)))
        model.compile("sgd", learning_rate=0.1, dispatch="jit")
        with counting(TRACE, LOWER) as found:
            model.train_on_batch(images(8), labels(8))
    assert LOWER not in found


class Before(NamedTuple):
    m: Any
    v: Any


class After(NamedTuple):
    v: Any
    m: Any


def step_of_m(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    return jax.tree.map(lambda gradient: -state.m * gradient, gradients), state


def beginning(kind: Any) -> optax.GradientTransformation:
    """Return an optimizer whose update is the same function for each kind of state."""
    return optax.GradientTransformation(lambda params: kind(m=jnp.float32(0.1), v=jnp.float32(0.3)), step_of_m)


DIFFERENT: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "weight decay": ({"optimizer": resfit.optimizers.sgd}, {"optimizer": optax.sgd}),
    "loss": ({"loss": resfit.losses.CrossEntropy(0.1)}, {"loss": resfit.losses.CrossEntropy(0.3)}),
    "augmentation": ({"augment": [resfit.augment.flip(0.5)]}, {"augment": [resfit.augment.flip(0.2)]}),
    "decay of averages": ({"ema": 0.9}, {"ema": 0.5}),
    "metrics": ({"metrics": ["accuracy"]}, {"metrics": ["top_2_accuracy"]}),
    "state of the optimizer": (
        {"optimizer": beginning(Before), "learning_rate": None},
        {"optimizer": beginning(After), "learning_rate": None},
    ),
    "preprocessing": ({"preprocess": None}, {"preprocess": lambda x: 2 * x}),
}  # fmt: skip


@pytest.mark.representatives("loss")
@pytest.mark.parametrize("name", DIFFERENT)
def test_other_compile_arguments_are_traced(name: str) -> None:
    first, second = (compiled(PlainNet(rngs=nnx.Rngs(0)), **arguments) for arguments in DIFFERENT[name])
    first.train_on_batch(images(8), labels(8))
    with counting(TRACE, LOWER) as found:
        second.train_on_batch(images(8), labels(8))
    assert LOWER in found


SCALE = 1.0


class Scaled(PlainNet):
    """A network that reads a global, which the user changes between two models."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return SCALE * super().__call__(x)


def test_a_global_that_a_module_reads_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = []
    for scale in (1.0, 3.0, 1.0):
        monkeypatch.setitem(globals(), "SCALE", scale)
        outputs.append(resfit.Model(Scaled(rngs=nnx.Rngs(0))).predict(images(8), verbose=0))
    np.testing.assert_allclose(outputs[1], 3 * outputs[0], rtol=1e-6)
    np.testing.assert_array_equal(outputs[0], outputs[2])


@dataclasses.dataclass(frozen=True)
class Times:
    """An activation that is equal to others with different results."""

    factor: float = dataclasses.field(compare=False)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.factor * x


def flat(x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0], -1)


def test_layers_of_flax_that_seem_equal_are_compared_by_content() -> None:
    models = [resfit.Model(nnx.Sequential(flat, nnx.Linear(64, 3, rngs=nnx.Rngs(0)), Times(n))) for n in (1.0, 3.0)]
    first, second = (model.predict(images(8), verbose=0) for model in models)
    np.testing.assert_allclose(second, 3 * first, rtol=1e-6)


class Own(resfit.Model):
    """A model whose step reads an attribute of the model."""

    weight = 1.0

    def compute_loss(self, module: Any, x: Any, y: Any, *, key: jax.Array, train: bool) -> tuple[jax.Array, Any]:
        each, outputs = super().compute_loss(module, x, y, key=key, train=train)
        return self.weight * each, outputs


def test_an_overridden_step_is_traced_for_each_model() -> None:
    losses = []
    for weight in (1.0, 2.0):
        model = compiled(PlainNet(rngs=nnx.Rngs(0)), kind=Own)
        model.weight = weight
        losses.append(model.evaluate(images(8), labels(8), verbose=0, return_dict=True)["loss"])
    assert losses[1] == pytest.approx(2 * losses[0])


class OneMode(PlainNet):
    """A network whose norm always keeps one mode. resfit warns when it traces a step of the other mode."""

    def __init__(self, evaluates: bool, *, rngs: nnx.Rngs) -> None:
        super().__init__(rngs=rngs)
        self.norm = nnx.BatchNorm(64, rngs=rngs)
        self.evaluates = evaluates

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.norm(x.reshape(x.shape[0], -1), use_running_average=self.evaluates))


@pytest.mark.representatives("True-train_on_batch-leaves every BatchNorm statistic unchanged")
@pytest.mark.parametrize(
    ("evaluates", "method", "says"),
    [
        (True, "train_on_batch", "leaves every BatchNorm statistic unchanged"),
        (False, "test_on_batch", "moves in evaluation too"),
    ],
)
def test_a_warning_of_the_trace_is_given_for_each_model(
    evaluates: bool, method: str, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "resfit"):
            getattr(compiled(OneMode(evaluates, rngs=nnx.Rngs(0))), method)(images(8), labels(8))
        assert says in caplog.text


def test_settings_of_jax_are_not_mixed() -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)))
    plain = model.predict(images(8), verbose=0)
    with jax.default_matmul_precision("bfloat16"), counting(TRACE, LOWER) as found:
        compiled(PlainNet(rngs=nnx.Rngs(0))).predict(images(8), verbose=0)
    assert LOWER in found
    np.testing.assert_array_equal(compiled(PlainNet(rngs=nnx.Rngs(0))).predict(images(8), verbose=0), plain)


def test_settings_of_flax_are_not_mixed() -> None:
    for shard in (False, True):
        with counting(TRACE, LOWER) as found, nnx.use_eager_sharding(shard):
            compiled(PlainNet(rngs=nnx.Rngs(0))).predict(images(8), verbose=0)
    assert LOWER in found


def test_a_class_made_for_each_model_does_not_accumulate_keys() -> None:
    for _ in range(2 * programs._KEYS):

        class Net(PlainNet):
            pass

        resfit.Model(Net(rngs=nnx.Rngs(0))).predict(images(8), verbose=0)
    assert len(programs.PROGRAMS.traced) <= programs._KEYS * len(programs.PROGRAMS)


def test_labels_are_checked_against_the_outputs_of_a_program_that_was_not_traced() -> None:
    run()
    with pytest.raises(resfit.errors.LabelError, match="3"):
        compiled(PlainNet(rngs=nnx.Rngs(0))).fit(images(16), labels(16) + 2, batch_size=BATCH, verbose=0)
    assert jnp.isfinite(run().evaluate(images(16), labels(16), verbose=0)[0])
