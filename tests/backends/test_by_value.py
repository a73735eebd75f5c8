"""Descriptions of functions by value: equal for functions that compute the same, and none if that is unknown."""

import collections
import contextvars
import datetime
import enum
import functools
import itertools
import math
import operator
import threading
import types
import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import resfit
from resfit.backends.by_value import NotByValueError, by_value
from resfit.trainer.graph.module_plan import plan_module
from tests.helpers import TinyNet


def namespace(source: str, **names: Any) -> dict[str, Any]:
    """Return the globals of a script that was run, as a user's module or notebook has them."""
    found = {"__name__": "script", "jnp": jnp, "np": np, "nnx": nnx, "jax": jax, **names}
    exec(source, found)
    return found


def power(n: Any) -> Callable[[Any], Any]:
    return lambda x: x**n


class Hidden:
    """An object whose attribute has a private name."""

    __slots__ = ("__n",)

    def __init__(self, n: int) -> None:
        self.__n = n

    def __call__(self, x: Any) -> Any:
        return self.__n * x


class Text(str):
    n: int


def text(n: int) -> Text:
    made = Text("a")
    made.n = n
    return made


def ordered(last: str) -> collections.OrderedDict[str, int]:
    made = collections.OrderedDict(a=1, b=2)
    made.move_to_end(last)
    return made


class Zero(functools.partial[Any]):
    def __call__(self, x: Any) -> Any:
        return 0 * x


def mixed(*, train: bool) -> type:
    class Counter(itertools.count if train else itertools.repeat):  # type: ignore[misc]
        """An object with Python attributes, and a number that no attribute shows."""

    return Counter


def tree(n: int) -> list[Any]:
    shared = [0]
    return [shared, shared if n == 1 else [0]]


NOBODY = object()
Color = enum.Enum("Color", ["RED"])
PAIR = collections.namedtuple("PAIR", "a b")


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
    "resnet": lambda: plan_module(resfit.create_model("resnet20", num_classes=3)),
    "custom module": lambda: plan_module(TinyNet(rngs=nnx.Rngs(0))),
    "global": lambda: namespace("SCALE = 2\ndef f(x): return SCALE * x")["f"],
    "global function": lambda: namespace("def g(x): return x + 1\ndef f(x): return g(x)")["f"],
    "named tuple of the user's": lambda: power(PAIR(1, 2.0)),
    "enum": lambda: power(Color.RED),
    "mode by argument": lambda: plan_module(Modal(rngs=nnx.Rngs(0))),
    "structure": lambda: jax.tree.structure({"a": (1, None), "b": PAIR(1, [2])}),
    "sentinel": lambda: power(NOBODY),
    "optional": lambda: power(int | None),
    "recursion": lambda: namespace("def f(n): return n * f(n - 1) if n else 1")["f"],
}


class Modal(nnx.Module):
    """A network that takes its mode as an argument."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x: Any, train: bool = False) -> Any:
        return self.head(x) if train else 2 * self.head(x)


@pytest.mark.parametrize("name", EQUAL)
def test_equal_things_made_twice_have_equal_descriptions(name: str) -> None:
    first, second = EQUAL[name](), EQUAL[name]()
    assert by_value(first) == by_value(second)
    assert hash(by_value(first)) == hash(by_value(second))


SCALED = "class Scaled:\n  SCALE = {}\n  def __call__(self, x): return self.SCALE * x\ndef f(x): return Scaled()(x)"


def config_with(scale: float) -> types.ModuleType:
    module = types.ModuleType("config")
    module.SCALE = scale  # type: ignore[attr-defined]
    return module


def scripts(source: str, **names: Any) -> tuple[Any, ...]:
    return tuple(namespace(source.replace("NUMBER", str(n)), **names)["f"] for n in (1, 2))


READS = "SCALE = NUMBER\nimport enum, functools\n"

DIFFERENT: dict[str, tuple[Any, ...]] = {
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
    "network": (plan_module(TinyNet(3, rngs=nnx.Rngs(0))), plan_module(TinyNet(4, rngs=nnx.Rngs(0)))),
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
    "global of a function that wraps jax's": scripts(
        READS + "@functools.wraps(jnp.sin)\ndef f(x): return SCALE * x"
    ),
    "global of a method of an enum": scripts(
        READS + "class A(enum.Enum):\n  B = 1\n  def __call__(self, x): return SCALE * x\nf = A.B"
    ),
    "global of a kind of property": scripts(
        READS + "class P(property):\n  def __get__(self, *_): return SCALE\nclass A:\n  scale = P()\nf = A()"
    ),
    "global of a metaclass": scripts(
        READS + "class M(type):\n  def __call__(cls, x): return SCALE * x\nclass f(metaclass=M): pass"
    ),
    "attribute of a base class": scripts("class A:\n  SCALE = NUMBER\nclass B(A): pass\nf = B()"),
    "default of a dict": tuple(power(collections.defaultdict(kind)) for kind in (int, float)),
    "order that a dict was given": tuple(map(power, map(ordered, "ab"))),
    "limit of a deque": tuple(power(collections.deque([1], n)) for n in (1, 2)),
    "order of a set": (power({1, 9}), power({9, 1})),
    "hidden slot": (Hidden(1), Hidden(2)),
    "attribute of a text": (power(text(1)), power(text(2))),
    "attribute of a partial": (functools.partial(power), Zero(power)),
    "sign of a complex zero": (power(0j), power(complex(-0.0, 0))),
    "end of a range": (power(range(0, 3, 2)), power(range(0, 4, 2))),
    "type in a slice": (power(slice(0, 1)), power(slice(0, True))),
    "one list twice": (power(tree(1)), power(tree(2))),
    "sentinels": (power((NOBODY, NOBODY)), power((NOBODY, object()))),
    "structures": (jax.tree.structure((1, None)), jax.tree.structure((None, 1))),
    "list that grew": tuple(namespace(f"SEEN = [0] * {n}\ndef f(x): return x + len(SEEN)")["f"] for n in (1, 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", DIFFERENT)
def test_different_things_have_different_descriptions(name: str) -> None:
    first, second = DIFFERENT[name]
    assert by_value(first) != by_value(second)


def test_a_global_of_a_method_that_replaces_a_layer_s_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = scripts("SCALE = NUMBER\ndef f(self, x): return SCALE * x")
    found = []
    for call in calls:
        monkeypatch.setattr(nnx.Linear, "__call__", call)
        found.append(by_value(plan_module(TinyNet(rngs=nnx.Rngs(0)))))
    assert found[0] != found[1]


def test_a_method_of_a_layer_that_is_replaced_gives_another_description(monkeypatch: pytest.MonkeyPatch) -> None:
    def call(self: nnx.Linear, x: Any) -> Any:
        return x

    before = by_value(plan_module(TinyNet(rngs=nnx.Rngs(0))))
    monkeypatch.setattr(nnx.Linear, "__call__", call)
    assert by_value(plan_module(TinyNet(rngs=nnx.Rngs(0)))) != before


class Odd(type):
    def __eq__(cls, other: object) -> bool:
        raise RuntimeError


def deep() -> list[Any]:
    nested: list[Any] = []
    for _ in range(10_000):
        nested = [nested]
    return nested


def before_assignment() -> Callable[[], Any]:
    def function() -> Any:
        return late

    if NOBODY is None:
        late = 1
    return function


@functools.lru_cache
def kept() -> int:
    return 1


LOCAL = threading.local()
LOCAL.scale = 1

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
    "assignment to a variable of a function around": namespace(
        "def g(n):\n  def f(x):\n    nonlocal n\n    n = n + 1\n    return x\n  return f\nf = g(0)"
    )["f"],
    "numpy under another name": namespace("def f(x):\n  other = np\n  return x + other.random.normal()")["f"],
    "clock of a class": namespace("def f(x): return x * now().second", now=datetime.datetime.now)["f"],
    "counter with attributes": mixed(train=True)(),
    "iterator with attributes": mixed(train=False)(1),
    "attribute of a thread": LOCAL,
    "context": contextvars.ContextVar("context"),
    "cached result": kept,
    "empty cell": before_assignment(),
    "deep nesting": deep(),
    "class that is not compared": Odd("Odd", (), {}),
    "dead proxy": weakref.proxy(TinyNet(rngs=nnx.Rngs(0))),
    "array of the user's class": np.zeros(3).view(type("Array", (np.ndarray,), {})),
    "jitted function": namespace("@jax.jit\ndef g(x): return x\ndef f(x): return g(x)")["f"],
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_things_that_can_change_unseen_have_no_description(name: str) -> None:
    with pytest.raises(NotByValueError):
        by_value(UNKNOWN[name])


def test_a_traced_value_has_no_description() -> None:
    def look(x: jax.Array) -> jax.Array:
        with pytest.raises(NotByValueError, match="an array of float32"):
            by_value(power(x))
        return x

    jax.make_jaxpr(look)(1.0)


def test_an_object_that_reaches_too_many_others_has_no_description(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = [float(n) for n in range(100)]
    assert by_value(numbers)
    monkeypatch.setattr("resfit.backends.by_value._MOST", 100)
    with pytest.raises(NotByValueError, match="more than 100 others"):
        by_value(numbers)
