"""Descriptions of functions by value: equal where functions compute the same, and none where that is unknown."""

import functools
import math
import operator
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import resfit
from resfit.engine.by_value import NotByValueError, by_value
from resfit.engine.modes import plan
from tests.helpers import TinyNet


def namespace(source: str, **names: Any) -> dict[str, Any]:
    """Return the globals of a script that was run, as a user's module or notebook has them."""
    found = {"__name__": "script", "jnp": jnp, "np": np, "nnx": nnx, "jax": jax, **names}
    exec(source, found)
    return found


def power(n: Any) -> Callable[[Any], Any]:
    return lambda x: x**n


EQUAL: dict[str, Callable[[], Any]] = {
    "closure": lambda: power(2),
    "default": lambda: lambda x, n=2: x**n,
    "partial": lambda: functools.partial(operator.mul, 3.0),
    "method": lambda: resfit.losses.CrossEntropy(0.1).__call__,
    "small array": lambda: power(np.arange(3)),
    "sgd": lambda: optax.sgd(0.1),
    "chain": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, weight_decay=0.1)),
    "schedule": lambda: optax.adam(optax.cosine_decay_schedule(1e-3, 100)),
    "by part": lambda: optax.multi_transform({"a": optax.sgd(0.1)}, "a"),
    "resfit's optimizer": lambda: resfit.optimizers.lamb(0.1),
    "initializer": lambda: nnx.initializers.he_normal(),
    "activations": lambda: (jax.nn.relu, jnp.tanh, nnx.gelu, np.exp, math.sqrt, len, operator.add),
    "resnet": lambda: plan(resfit.create_model("resnet20", num_classes=3)),
    "custom module": lambda: plan(TinyNet(rngs=nnx.Rngs(0))),
    "global": lambda: namespace("SCALE = 2\ndef f(x): return SCALE * x")["f"],
    "global function": lambda: namespace("def g(x): return x + 1\ndef f(x): return g(x)")["f"],
    "recursion": lambda: namespace("def f(n): return n * f(n - 1) if n else 1")["f"],
}


@pytest.mark.parametrize("name", EQUAL)
def test_equal_things_that_are_made_twice_have_equal_descriptions(name: str) -> None:
    first, second = EQUAL[name](), EQUAL[name]()
    assert by_value(first) == by_value(second)
    assert hash(by_value(first)) == hash(by_value(second))


SCALED = "class Scaled:\n  SCALE = {}\n  def __call__(self, x): return self.SCALE * x\ndef f(x): return Scaled()(x)"


def config_with(scale: float) -> types.ModuleType:
    module = types.ModuleType("config")
    module.SCALE = scale  # type: ignore[attr-defined]
    return module


DIFFERENT: dict[str, tuple[Any, Any]] = {
    "closure": (power(2), power(3)),
    "type in a closure": (power(1), power(True)),
    "sign of zero": (power(0.0), power(-0.0)),
    "default": (lambda x, n=2: x**n, lambda x, n=3: x**n),
    "keyword of a partial": (functools.partial(power, n=2), functools.partial(power, n=3)),
    "array": (power(np.array([1, 2])), power(np.array([1, 3]))),
    "dtype of an array": (power(np.array([1, 2])), power(np.array([1.0, 2.0]))),
    "array's library": (power(np.float32(1)), power(jnp.float32(1))),
    "order of a dict": (power({"a": 1, "b": 2}), power({"b": 2, "a": 1})),
    "constant in the code": (lambda x: x + 1, lambda x: x + 2),
    "weight decay": (resfit.optimizers.sgd(0.1), resfit.optimizers.sgd(0.1, weight_decay=1e-4)),
    "loss": (resfit.losses.CrossEntropy(0.1), resfit.losses.CrossEntropy(0.2)),
    "activation": (jax.nn.relu, jax.nn.gelu),
    "network": (plan(TinyNet(3, rngs=nnx.Rngs(0))), plan(TinyNet(4, rngs=nnx.Rngs(0)))),
    "global": tuple(namespace(f"SCALE = {n}\ndef f(x): return SCALE * x")["f"] for n in (1, 2)),
    "global of an inner function": tuple(
        namespace(f"SCALE = {n}\ndef f(x): return (lambda y: SCALE * y)(x)")["f"] for n in (1, 2)
    ),
    "global function": tuple(
        namespace(f"def g(x): return x + {n}\ndef f(x): return g(x)")["f"] for n in (1, 2)
    ),
    "attribute of a module": tuple(
        namespace("def f(x): return config.SCALE * x", config=config_with(n))["f"] for n in (1, 2)
    ),
    "attribute of a class": tuple(namespace(SCALED.format(n))["f"] for n in (1, 2)),
    "attribute of a function": tuple(
        namespace(f"def g(x): return g.scale * x\ng.scale = {n}\ndef f(x): return g(x)")["f"] for n in (1, 2)
    ),
    "list that grew": tuple(namespace(f"SEEN = [0] * {n}\ndef f(x): return x + len(SEEN)")["f"] for n in (1, 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", DIFFERENT)
def test_different_things_have_different_descriptions(name: str) -> None:
    first, second = DIFFERENT[name]
    assert by_value(first) != by_value(second)


def test_a_method_of_a_layer_that_is_replaced_gives_another_description(monkeypatch: pytest.MonkeyPatch) -> None:
    def call(self: nnx.Linear, x: Any) -> Any:
        return x

    before = by_value(plan(TinyNet(rngs=nnx.Rngs(0))))
    monkeypatch.setattr(nnx.Linear, "__call__", call)
    assert by_value(plan(TinyNet(rngs=nnx.Rngs(0)))) != before


UNKNOWN: dict[str, Any] = {
    "large array": power(np.zeros(5000)),
    "masked array": power(np.ma.masked_array([1, 2], [0, 1])),
    "random numbers": namespace("def f(x): return x + np.random.normal()")["f"],
    "print": namespace("def f(x): print(x); return x")["f"],
    "file": namespace("def f(x): return x + len(open('scale.txt').read())")["f"],
    "import": namespace("def f(x):\n  import config\n  return config.SCALE * x")["f"],
    "assignment to a global": namespace("N = 0\ndef f(x):\n  global N\n  N = N + 1\n  return x")["f"],
    "environment": namespace("def f(x): return x * int(os.environ['SCALE'])", os=__import__("os"))["f"],
    "clock": namespace("def f(x): return x * time.time()", time=__import__("time"))["f"],
    "random generator": power(__import__("random").Random(0)),
    "iterator": power(iter([1, 2])),
    "bound method of a list": [].append,
    "missing name": namespace("def f(x): return missing * x")["f"],
    "jitted function": namespace("@jax.jit\ndef g(x): return x\ndef f(x): return g(x)")["f"],
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_can_change_unseen_has_no_description(name: str) -> None:
    with pytest.raises(NotByValueError):
        by_value(UNKNOWN[name])


def test_a_traced_value_has_no_description() -> None:
    def look(x: jax.Array) -> jax.Array:
        with pytest.raises(NotByValueError, match="an array of float32"):
            by_value(power(x))
        return x

    jax.make_jaxpr(look)(1.0)
