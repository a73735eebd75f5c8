"""Transformations of JAX and of NNX around a module that writes to its Variables, inside `compute_loss`."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import pytest
from flax import nnx

import resfit
from resfit.errors import ModuleError
from tests.helpers import TinyNet, assert_close, compiled, fit, images, labels
from tests.levels import only

Call = Callable[[Any, Any], Any]


def cross_entropy(module: Any, x: Any, y: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(module(x), y)


# (module to call, x, y) -> (losses, outputs), by the transformation.
def penalty(module: Any, x: Any, y: Any, grad: Any = jax.grad) -> Any:
    gradient = grad(lambda x: cross_entropy(module, x, y).sum())(x)
    return cross_entropy(module, x, y) + 0.1 * (gradient**2).sum((1, 2, 3)), module(x)


def tangent(module: Any, x: Any, y: Any) -> Any:
    outputs, change = jax.jvp(module, (x,), (jax.numpy.ones_like(x),))
    return cross_entropy(lambda _: outputs, x, y) + 0.01 * (change**2).sum(1), outputs


def through(transformation: Call) -> Any:
    def loss(module: Any, x: Any, y: Any) -> Any:
        outputs = transformation(module, x)
        return cross_entropy(lambda _: outputs, x, y), outputs

    return loss


LOSSES: dict[str, Any] = {
    "grad": penalty,
    "jvp": tangent,
    "vmap": through(lambda module, x: jax.vmap(lambda image: module(image[None])[0])(x)),
    "map": through(lambda module, x: jax.lax.map(lambda image: module(image[None])[0], x)),
    "checkpoint": through(lambda module, x: jax.checkpoint(lambda x: module(x))(x)),
    "jit": through(lambda module, x: jax.jit(lambda x: module(x))(x)),
    "scan": through(lambda module, x: jax.lax.scan(lambda _, image: (None, module(image[None])[0]), None, x)[1]),
    "cond": through(lambda module, x: jax.lax.cond(x.sum() > 0, module, module, x)),
}


def model_of(loss: Any, **arguments: Any) -> Any:
    class Custom(resfit.Model):
        def compute_loss(self, module: Any, x: Any, y: Any, *, key: Any, train: bool) -> Any:
            return loss(module, x, y)

    return compiled(TinyNet(rngs=nnx.Rngs(0)), kind=Custom, metrics=None, **arguments)


@pytest.mark.parametrize("name", only(["jvp", "checkpoint"], LOSSES))
def test_a_transformation_of_jax_around_batch_norm_raises_with_the_remedy(name: str) -> None:
    with pytest.raises(ModuleError, match=r"nnx\.grad\(lambda module, x.*nnx\.clone\(module\)"):
        fit(model_of(LOSSES[name]), images(8), labels(8))


@pytest.mark.parametrize("name", only(["vmap"], LOSSES))
def test_a_clone_of_the_module_works_inside_a_transformation(name: str) -> None:
    model = model_of(lambda module, x, y: LOSSES[name](lambda x: nnx.clone(module)(x), x, y))
    assert np.isfinite(fit(model, images(8), labels(8), epochs=2).history["loss"]).all()


def with_nnx_grad(module: Any, x: Any, y: Any) -> Any:
    gradient = nnx.grad(lambda module, x: cross_entropy(module, x, y).sum(), argnums=1)(module, x)
    return cross_entropy(module, x, y) + 0.1 * (gradient**2).sum((1, 2, 3)), module(x)


@pytest.mark.slow
def test_a_gradient_penalty_with_nnx_grad_trains_as_one_with_a_clone() -> None:
    """Three calls of the module in one step update the statistics three times, which changes no gradient."""
    clone, own = model_of(lambda module, x, y: penalty(lambda x: nnx.clone(module)(x), x, y)), model_of(with_nnx_grad)
    for model in (clone, own):
        fit(model, images(8), labels(8), epochs=2)
    assert_close(clone.get_weights()[:3], own.get_weights()[:3])
    assert any((old != new).any() for old, new in zip(clone.get_weights()[3:], own.get_weights()[3:], strict=True))


WITH_NNX: dict[str, Any] = {
    "remat": lambda module, x: nnx.remat(lambda module, x: module(x))(module, x),
    "jit": lambda module, x: nnx.jit(lambda module, x: module(x))(module, x),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_NNX)
def test_a_transformation_of_nnx_around_batch_norm_trains(name: str) -> None:
    history = fit(model_of(through(WITH_NNX[name])), images(8), labels(8), epochs=2).history
    assert np.isfinite(history["loss"]).all()


class Inside(TinyNet):
    """A module that transforms its own layers."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.checkpoint(super().__call__)(x)


def test_a_transformation_inside_the_module_raises_with_the_remedy() -> None:
    model = compiled(Inside(rngs=nnx.Rngs(0)))
    model.evaluate(images(8), labels(8), verbose=0)  # writes nothing
    with pytest.raises(ModuleError, match=r"nnx\.remat"):
        fit(model, images(8), labels(8))
