"""An outline detects every change of a part without walking the module, and reads current values."""

import dataclasses
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


@dataclasses.dataclass
class Settings:
    gain: float


class Configured(TinyNet):
    def __init__(self) -> None:
        super().__init__(rngs=nnx.Rngs(0))
        self.config, self.settings, self.cache = {"gains": [1.0]}, Settings(1.0), nnx.static({})

    def __call__(self, x: Any) -> Any:
        self.cache.setdefault(x.shape, np.ones(x.shape[1:]))
        return super().__call__(x) * self.config["gains"][0] * self.settings.gain


@pytest.mark.parametrize(
    "change",
    [lambda net: net.config["gains"].__setitem__(0, 2.0), lambda net: setattr(net.settings, "gain", 2.0)],
    ids=["a list in a dict", "a dataclass"],
)
def test_a_setting_inside_an_attribute_changes_only_with_another_compile(change: Any) -> None:
    module = Configured()
    model, x = resfit.Model(module), images(4)
    before = model.predict(x, verbose=0)
    module.cache[1, 2] = 3  # a cache that gains an entry is no setting
    np.testing.assert_array_equal(model.predict(x, verbose=0), before)
    change(module)
    with pytest.raises(ModuleError, match="a setting of a layer was changed"):
        model.predict(x, verbose=0)
    model.compile()
    np.testing.assert_allclose(model.predict(x, verbose=0), 2 * before, rtol=1e-6)


def test_settings_that_refer_to_each_other_are_compared() -> None:
    module = Configured()
    module.config["all"] = module.config
    outline = Outline(module)
    assert not outline.content_changed()
    module.config["gains"].append(2.0)
    assert outline.content_changed()


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
