"""Memory over many models: nothing that a user's functions refer to stays alive with resfit."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import resfit
from resfit.backends.program_cache import PROGRAMS
from tests.helpers import PlainNet, assert_same, compiled, fit, images, labels
from tests.levels import only


class Table:
    """An object with an array on the device, which a function of the user refers to."""

    def __init__(self, value: float) -> None:
        self.array = jnp.full((8,), value)

    def zero(self) -> Any:
        return 0 * self.array.sum()


def with_own_step(table: Table) -> Any:
    class Own(resfit.Model):
        def compute_loss(self, module: Any, x: Any, y: Any, *, key: jax.Array, train: bool) -> Any:
            losses, outputs = super().compute_loss(module, x, y, key=key, train=train)
            return losses + table.zero(), outputs

    return compiled(PlainNet(rngs=nnx.Rngs(0)), kind=Own)


def with_argument(name: str, make: Callable[[Table], Any]) -> Callable[[Table], Any]:
    return lambda table: compiled(PlainNet(rngs=nnx.Rngs(0)), **{name: make(table)})


def cross_entropy(outputs: Any, targets: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(outputs, targets)


MODELS: dict[str, Callable[[Table], Any]] = {
    "loss": with_argument("loss", lambda table: lambda a, b: cross_entropy(a, b) + table.zero()),
    "metric": with_argument("metrics", lambda table: {"m": lambda a, b: cross_entropy(a, b) + table.zero()}),
    "augment": with_argument("augment", lambda table: lambda key, x, y: (x + table.zero(), y)),
    "preprocess": with_argument("preprocess", lambda table: lambda x: x + table.zero()),
    "schedule": with_argument("learning_rate", lambda table: lambda step: 0.1 + table.zero()),
    "compute_loss": with_own_step,
}


@pytest.mark.parametrize(
    ("kind", "models"),
    only([("loss", 3)], [("loss", 3), ("loss", 20), *((kind, 5) for kind in MODELS)]),
)
def test_arrays_of_a_users_functions_are_freed_with_the_model(kind: str, models: int) -> None:
    tables, arrays = [], []
    for i in range(models):
        table = Table(float(i))
        tables.append(weakref.ref(table))
        model = MODELS[kind](table)
        fit(model, images(8), labels(8))
        model.predict(images(8), verbose=0)
        del model, table
        gc.collect()
        arrays.append(len(jax.live_arrays()))
    assert [table() for table in tables] == [None] * models
    assert arrays[-1] <= arrays[0]


def test_clear_caches_frees_programs_and_models_work_on() -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)))
    fit(model)
    before = model.predict(images(), verbose=0)
    resfit.clear_caches()
    assert (len(PROGRAMS), PROGRAMS.size) == (0, 0)
    assert_same(model.predict(images(), verbose=0), before)
    fit(model)
