"""A student learns from a teacher that does not change and always runs in evaluation mode."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from einops import rearrange
from flax import nnx

import resfit
from resfit import losses
from resfit.errors import CompileError, LabelError, ModuleError
from tests import levels
from tests.helpers import (
    CLASSES,
    PlainNet,
    TinyNet,
    call,
    counting_compilations,
    differ,
    fit,
    flags,
    images,
    labels,
    values,
)


class Wavering(nnx.Module):
    """A network with BatchNorm and Dropout. NNX's flags set its mode, or the keyword of a subclass."""

    def __init__(self, classes: int = CLASSES, *, rngs: nnx.Rngs) -> None:
        self.norm = nnx.BatchNorm(64, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(64, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.dropout(self.norm(rearrange(x, "n h w c -> n (h w c)"))))


class WaveringWhenTold(Wavering):
    def __call__(self, x: jax.Array, *, training: bool = True) -> jax.Array:
        x = self.norm(rearrange(x, "n h w c -> n (h w c)"), use_running_average=not training)
        return self.head(self.dropout(x, deterministic=not training))


TEACHERS = {"plain": PlainNet, "by its flags": Wavering, "by a keyword": WaveringWhenTold}


def evaluated(module: nnx.Module, x: np.ndarray) -> np.ndarray:
    """Return the outputs of a module in evaluation mode, set by its flags and its keyword."""
    copy = nnx.clone(module)
    copy.eval()
    return np.asarray(call(copy, x, training=False) if isinstance(module, WaveringWhenTold) else call(copy, x))


def distiller(teacher: nnx.Module, **arguments: Any) -> resfit.Distiller:
    model = resfit.Distiller(PlainNet(rngs=nnx.Rngs(0)), teacher, **arguments)
    model.compile(optax.sgd, learning_rate=0.5, metrics=["accuracy"], dispatch="jit")
    return model


def loss_of(logits: jax.Array, y: np.ndarray, said: np.ndarray, temperature: float, weight: float) -> jax.Array:
    hard = optax.softmax_cross_entropy_with_integer_labels(logits, y)
    student, teacher = (jax.nn.log_softmax(z / temperature) for z in (logits, said))
    soft = temperature**2 * optax.kl_divergence(student, jnp.exp(teacher))
    return (weight * hard + (1 - weight) * soft).mean()


@pytest.mark.representatives("by its flags")
@pytest.mark.parametrize("kind", TEACHERS)
def test_a_step_equals_that_of_the_mixed_loss_with_a_teacher_in_evaluation_mode(kind: str) -> None:
    teacher = TEACHERS[kind](rngs=nnx.Rngs(5))
    x, y = images(8), labels(8)
    model = distiller(teacher, temperature=2.0, label_weight=0.3)
    graph, params = nnx.split(nnx.clone(model.module.student))
    said = evaluated(teacher, x)

    def loss(params: Any) -> jax.Array:
        return loss_of(nnx.merge(graph, params)(x), y, said, 2.0, 0.3)

    expected, slope = jax.jit(jax.value_and_grad(loss))(params)
    found = model.train_on_batch(x, y, return_dict=True)
    np.testing.assert_allclose(found["loss"], expected, rtol=1e-5)
    stepped = jax.tree.map(lambda p, g: np.asarray(p) - np.float32(0.5) * np.asarray(g), params, slope)
    after = nnx.state(model.module.student)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), after, stepped)


@pytest.mark.parametrize("kind", levels.only(["by its flags"], TEACHERS))
def test_the_teacher_does_not_change_and_keeps_its_arrays(kind: str) -> None:
    teacher = TEACHERS[kind](rngs=nnx.Rngs(5))
    before, said, modes = values(teacher), evaluated(teacher, images(8)), flags(teacher)
    model = distiller(teacher)
    fit(model)
    assert differ(before, values(teacher)) == set()
    np.testing.assert_array_equal(evaluated(teacher, images(8)), said)
    assert flags(teacher) == modes


def test_the_teacher_is_not_a_constant_of_the_compiled_step() -> None:
    teacher, x, y = PlainNet(rngs=nnx.Rngs(5)), images(8), labels(8)
    model = distiller(teacher, label_weight=0.0)
    before = model.test_on_batch(x, y)[0]
    for variable in (model.module.teacher.head.kernel, model.module.teacher.head.bias):
        variable.set_value(jnp.asarray(np.zeros(variable.shape, np.float32)))
    with counting_compilations() as compilations:
        after = model.test_on_batch(x, y)[0]
    assert compilations == []
    uniform = np.zeros((8, CLASSES), np.float32)
    expected = jax.jit(lambda logits: loss_of(logits, y, uniform, 4.0, 0.0))(model.predict(x, verbose=0))
    np.testing.assert_allclose(after, expected, rtol=1e-5)
    assert abs(before - after) > 1e-3


def test_a_clone_of_the_student_can_teach_it() -> None:
    student = PlainNet(rngs=nnx.Rngs(0))
    teacher = nnx.clone(student)
    model = resfit.Distiller(student, teacher, label_weight=0.0)
    model.compile(optax.sgd, learning_rate=0.5, metrics=None, dispatch="jit")
    assert abs(model.train_on_batch(images(8), labels(8))) < 1e-6  # both have the same outputs at the start
    assert resfit.Model(student).predict(images(8), verbose=0).shape == (8, CLASSES)


def test_predictions_are_those_of_the_student_and_its_statistics_are_updated() -> None:
    student = TinyNet(rngs=nnx.Rngs(0))
    model = resfit.Distiller(student, TinyNet(rngs=nnx.Rngs(5)))
    model.compile(optax.sgd, learning_rate=0.1, dispatch="jit")
    before = values(student)
    model.train_on_batch(images(8), labels(8))
    assert {"norm.mean", "norm.var"} <= differ(before, values(student))
    np.testing.assert_allclose(model.predict(images(8), verbose=0), evaluated(student, images(8)), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_freezing_parts_of_the_student_keeps_the_teacher_frozen() -> None:
    model = resfit.Distiller(TinyNet(rngs=nnx.Rngs(0)), TinyNet(rngs=nnx.Rngs(5)))
    model.freeze("student.conv", batch_norm=False)
    model.compile(optax.sgd, learning_rate=0.1, dispatch="jit")
    before = values(model.module)
    model.train_on_batch(images(8), labels(8))
    same = before.keys() - differ(before, values(model.module))
    assert same == {path for path in before if path.startswith(("teacher.", "student.conv."))}


def test_invalid_arguments_raise() -> None:
    net = PlainNet(rngs=nnx.Rngs(0))
    with pytest.raises(ModuleError, match=r"one object.*nnx\.clone"):
        resfit.Distiller(net, net)
    other = PlainNet(rngs=nnx.Rngs(1))
    with pytest.raises(CompileError, match="temperature=0"):
        resfit.Distiller(net, other, temperature=0)
    with pytest.raises(CompileError, match=r"label_weight=1\.5"):
        resfit.Distiller(net, other, label_weight=1.5)
    model = distiller(PlainNet(CLASSES + 1, rngs=nnx.Rngs(1)))
    with pytest.raises(LabelError, match=r"\(8, 3\) and the teacher's \(8, 4\)"):
        model.train_on_batch(images(8), labels(8))


def test_the_comparison_detects_a_teacher_in_training_mode() -> None:
    teacher, x = Wavering(rngs=nnx.Rngs(5)), images(8)
    wavering = nnx.clone(teacher)
    wavering.train()
    student, loss = np.zeros((8, CLASSES), np.float32), jax.jit(losses.distillation)
    found, expected = (np.asarray(loss(student, said)) for said in (call(wavering, x), evaluated(teacher, x)))
    assert np.abs(found - expected).max() > 1e-3
