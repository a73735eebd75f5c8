"""An outline detects every change of a part without walking the module, and reads current values."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import resfit
from resfit.errors import ModuleError
from resfit.trainer.graph.outline import Outline
from resfit.trainer.graph.slots import module_leaves
from tests import levels
from tests.helpers import TinyNet, compiled, images
from tests.variants import VARIANTS, network


def net() -> Any:
    return TinyNet(rngs=nnx.Rngs(0))


CHANGES: dict[str, Callable[[Any], Any]] = {
    "another layer": lambda net: setattr(net, "head", nnx.Linear(4, 3, rngs=nnx.Rngs(1))),
    "a layer more": lambda net: setattr(net, "more", nnx.Linear(4, 3, rngs=nnx.Rngs(1))),
    "a layer less": lambda net: delattr(net, "head"),
    "a setting": lambda net: setattr(net.norm, "epsilon", 1e-3),
    "a mode": lambda net: net.eval(),
    "another Variable": lambda net: setattr(net.head, "kernel", nnx.Param(jnp.ones((4, 3)))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_detected(change: str) -> None:
    module = net()
    outline = Outline(module)
    assert outline.is_unchanged()
    CHANGES[change](module)
    assert not outline.is_unchanged()


SLOW = {"basic, option A", "SE", "D", "group norm"}


@pytest.mark.parametrize("variant", levels.only(["wide, dropout"], VARIANTS, SLOW))
def test_its_leaves_are_those_of_the_module_with_current_values(variant: str) -> None:
    module = network(variant)
    outline = Outline(module)
    assert [path for path, _ in outline.leaves] == [path for path, _ in module_leaves(module)]
    for path, leaf in outline.leaves:
        if isinstance(leaf, nnx.Param):
            leaf.set_raw_value(jax.device_put(np.asarray(leaf.get_raw_value()) + 1))
        assert leaf.get_raw_value() is dict(module_leaves(module))[path].get_raw_value()
    assert outline.is_unchanged()


def test_an_unknown_container_is_walked_every_time() -> None:
    class Holds(nnx.Module):
        def __init__(self) -> None:
            self.parts = nnx.data({"a": nnx.Param(jnp.ones(2))})

    outline = Outline(Holds())
    assert not outline.is_unchanged()
    assert not outline.readable


def test_values_and_layers_that_are_assigned_between_two_calls_count() -> None:
    model = compiled(net())
    x = images()
    first = model.predict(x, verbose=0)
    np.testing.assert_array_equal(model.predict(x, verbose=0), first)
    model.module.head.bias[...] += 1.0
    np.testing.assert_allclose(model.predict(x, verbose=0), first + 1, rtol=1e-5)
    model.fit(x, np.arange(20) % 3, batch_size=8, verbose=0)
    assert not np.allclose(model.predict(x, verbose=0), first + 1)
    model.module.head = nnx.Linear(4, 7, rngs=nnx.Rngs(2))
    with pytest.raises(ModuleError):
        model.predict(x, verbose=0)
    assert resfit.Model(net()).predict(x, verbose=0).shape == (20, 3)
