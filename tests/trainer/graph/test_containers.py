"""Arrays in any container that Flax walks are trained, saved, loaded and resumed."""

import collections
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, struct

import resfit
from resfit.errors import ModuleError
from resfit.trainer.graph.containers import assign
from tests.helpers import assert_same, compiled, fit, images, labels, values

Pair = collections.namedtuple("Pair", ["left", "right"])


@struct.dataclass
class Record:
    left: Any
    right: Any


@nnx.dataclass
class Node(nnx.Pytree):
    value: nnx.Variable[Any]


class Custom:
    """A pytree that only JAX knows."""

    def __init__(self, left: Any, right: Any) -> None:
        self.left, self.right = left, right


jax.tree_util.register_pytree_node(Custom, lambda node: ((node.left, node.right), None), lambda _, two: Custom(*two))

# Containers of two arrays each.
CONTAINERS: dict[str, Any] = {
    "dict": lambda a, b: nnx.data({"a": a, "b": b}),
    "dict_of_tuple_keys": lambda a, b: nnx.data({("kernel",): a, ("bias", 1): b}),
    "dict_of_int_keys": lambda a, b: nnx.data({3: a, 10: b}),
    "list": lambda a, b: nnx.data([a, b]),
    "tuple": lambda a, b: nnx.data((a, b)),
    "named_tuple": lambda a, b: nnx.data(Pair(a, b)),
    "nested": lambda a, b: nnx.data({"a": [({("b",): a},), b]}),
    "struct": lambda a, b: nnx.data(Record(a, b)),
    "custom": lambda a, b: nnx.data(Custom(a, b)),
    "nnx_list": lambda a, b: nnx.List([a, nnx.data(b)]),
    "nnx_dict": lambda a, b: nnx.Dict({"a": a, "b": b}),
    "node": lambda a, b: nnx.data((Node(nnx.BatchStat(a)), nnx.Variable(b))),
    "variables_by_tuple": lambda a, b: nnx.data({("kernel", "u"): nnx.BatchStat(a), ("kernel", "v"): nnx.Variable(b)}),
}


def of_containers(module: nnx.Module) -> dict[str, Any]:
    return {name: value for name, value in values(module).items() if name.partition(".")[0] in CONTAINERS}


class Holder(nnx.Module):
    """A network that holds every container, and adds one to every array in them in each training call."""

    def __init__(self, seed: int = 0) -> None:
        rngs = nnx.Rngs(seed)
        self.head = nnx.Linear(64, 3, rngs=rngs)
        self.weight_norm = nnx.WeightNorm(nnx.Linear(3, 3, rngs=rngs), rngs=rngs)
        self.spectral_norm = nnx.SpectralNorm(nnx.Linear(3, 3, rngs=rngs), rngs=rngs)
        for name, make in CONTAINERS.items():
            setattr(self, name, make(jnp.full((2,), float(seed)), jnp.full((3,), float(seed))))

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        total = jnp.zeros(())
        for name in CONTAINERS:
            flat = nnx.to_flat_state(nnx.state(getattr(self, name)))
            arrays = {
                path: leaf.get_raw_value() if isinstance(leaf, nnx.Variable) else jnp.asarray(leaf)
                for path, leaf in flat
            }
            total += sum((array.mean() for array in arrays.values()), start=jnp.zeros(()))
            if train:
                assign(self, {(name, *path): array + 1 for path, array in arrays.items()})
        return self.spectral_norm(self.weight_norm(self.head(x.reshape(x.shape[0], -1)))) * (1 + total)


class Fails(resfit.callbacks.Callback):
    """A callback that raises in the second epoch."""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch:
            raise ZeroDivisionError


@pytest.fixture(scope="module")
def trained() -> Any:
    """Return a model after two steps, with averages."""
    model = compiled(Holder(), ema=0.5)
    fit(model, images(16), labels(16))
    return model


@pytest.mark.parametrize("name", CONTAINERS)
def test_arrays_in_any_container_are_brought_up_to_date(trained: Any, name: str) -> None:
    found = {path: array for path, array in of_containers(trained.module).items() if path.startswith(f"{name}.")}
    assert len(found) == 2
    for array in found.values():
        assert set(array.ravel().tolist()) == {2.0}


def test_prediction_and_evaluation_do_not_change_a_module_of_all_containers(trained: Any) -> None:
    before = values(trained.module)
    trained.predict(images(8), verbose=0)
    trained.evaluate(images(8), labels(8), verbose=0)
    trained.evaluate(images(8), labels(8), weights="ema", verbose=0)
    assert_same(values(trained.module), before)


@pytest.mark.representatives("raw")
@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_arrays_in_any_container_are_saved_and_loaded(trained: Any, weights: str, tmp_path: Path) -> None:
    trained.save(tmp_path / "net.safetensors", weights=weights)
    loaded = resfit.load(tmp_path / "net.safetensors", module=Holder(seed=5))
    assert_same(loaded.get_weights(), trained.get_weights(weights=weights))
    assert type(loaded.module.named_tuple) is Pair
    assert type(loaded.module.struct) is Record


@pytest.mark.slow
def test_arrays_in_any_container_are_found_when_compiled_again() -> None:
    model = compiled(Holder())
    model.train_on_batch(images(8), labels(8))
    model.freeze("weight_norm", "tuple", "*.('kernel',)")
    model.compile("sgd", learning_rate=0.1, dispatch="jit")
    model.train_on_batch(images(8), labels(8))
    assert {float(array.max()) for array in of_containers(model.module).values()} == {2.0}
    model.summary(input_shape=(8, 8, 1))


def test_a_run_with_arrays_in_any_container_resumes_exactly(tmp_path: Path) -> None:
    x, y = images(16), labels(16)
    whole = compiled(Holder())
    fit(whole, x, y, epochs=2)
    checkpoint = resfit.callbacks.Checkpoint(tmp_path / "run")
    stopped = compiled(Holder())
    with pytest.raises(ZeroDivisionError):
        fit(stopped, x, y, epochs=2, callbacks=[checkpoint, Fails()])
    model = compiled(Holder())
    fit(model, x, y, epochs=2, callbacks=[checkpoint], resume=True)
    assert_same(model.get_weights(), whole.get_weights())


def test_a_variable_keeps_its_identity_when_its_tuple_is_assigned() -> None:
    module = nnx.Sequential()
    variable = nnx.Variable(jnp.zeros(2))
    module.held = nnx.data((variable, jnp.zeros(3)))
    assign(module, {("held", 0): jnp.ones(2), ("held", 1): jnp.ones(3)})
    assert module.held[0] is variable
    assert_same(module.held[1], jnp.ones(3))
    assert_same(variable[...], jnp.ones(2))


def test_two_arrays_with_one_dotted_name_raise() -> None:
    module = Holder()
    module.dict = nnx.data({"a.b": np.zeros(2), "a": {"b": np.zeros(2)}})
    with pytest.raises(ModuleError, match=r"Two arrays of the module have the name 'dict\.a\.b'.*Rename"):
        resfit.Model(module)
