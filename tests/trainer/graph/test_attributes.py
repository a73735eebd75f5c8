"""Errors and warnings of plain attributes that a call writes; attributes that Flax and resfit write give none."""

import collections
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import resfit
from resfit.errors import ModuleError
from resfit.trainer.graph.attributes import called
from tests.helpers import PlainNet, compiled, images, labels


@dataclasses.dataclass
class Constants:
    """Objects whose comparison raises."""

    array: Any


@dataclasses.dataclass
class Settings:
    """Settings of a network."""

    steps: dict[str, int]


class Writes(PlainNet):
    def __init__(self) -> None:
        super().__init__(rngs=nnx.Rngs(0))
        self.calls, self.last, self.flag = 0, None, False
        self.seen = nnx.static([])
        self.sizes = nnx.static({})
        self.inner = nnx.data({("a", 1): [nnx.Sequential()]})
        self.constants = nnx.static(Constants(np.ones(2)))
        self.settings = Settings({"calls": 0})
        self.recent = collections.deque()
        self.dropout = nnx.Dropout(0.5, deterministic=False)

    @functools.cached_property
    def scale(self) -> float:
        return 2.0

    def __call__(self, x: Any) -> Any:
        self.write(x)
        return super().__call__(x)

    def write(self, x: Any) -> None: ...


def count(self: Any, x: Any) -> None:
    self.calls += 1


def keep(self: Any, x: Any) -> None:
    self.last = x.mean()


def switch(self: Any, x: Any) -> None:
    self.flag = True


def append(self: Any, x: Any) -> None:
    self.seen.append(x.shape)


def insert(self: Any, x: Any) -> None:
    self.sizes[x.shape] = 1


def create(self: Any, x: Any) -> None:
    self.shape = x.shape


def nested_count(self: Any, x: Any) -> None:
    part = self.inner["a", 1][0]
    part.calls = getattr(part, "calls", 0) + 1


def kept_as_it_was(self: Any, x: Any) -> None:
    self.calls = 0
    self.seen = list(self.seen)


def renew(self: Any, x: Any) -> None:
    self.constants = nnx.static(Constants(np.ones(2)))


def set_mode(self: Any, x: Any) -> None:
    self.dropout.deterministic = True
    self.training = False


def compute_once(self: Any, x: Any) -> None:
    assert self.scale == 2.0


def alternate(self: Any, x: Any) -> None:
    self.flag = not self.flag


def keep_inside(self: Any, x: Any) -> None:
    self.sizes["last"] = [x.mean()]


def cache(self: Any, x: Any) -> None:
    if self.last is None:
        self.last = tuple(range(x.shape[1]))


def compute_again(self: Any, x: Any) -> None:
    self.last = tuple(range(x.shape[1]))


def count_inside(self: Any, x: Any) -> None:
    self.settings.steps["calls"] += 1


def append_inside(self: Any, x: Any) -> None:
    self.sizes.setdefault("all", []).append(x.shape)


def queue(self: Any, x: Any) -> None:
    self.recent.append(x.shape)


def cache_array(self: Any, x: Any) -> None:
    self.sizes.setdefault(x.shape, np.ones(x.shape[1:]))


# The attribute that each write must name, in an error or in a warning.
ERRORS = {count: "calls", keep: "last", append: "seen", nested_count: "inner.('a', 1).0.calls", alternate: "flag",
          keep_inside: "sizes", count_inside: "settings", append_inside: "sizes", queue: "recent"}  # fmt: skip
WARNINGS = {switch: "flag", insert: "sizes", create: "shape", cache_array: "sizes", cache: "last",
            compute_again: "last"}  # fmt: skip
SILENT_WRITES = [kept_as_it_was, renew, set_mode, compute_once]


def written(write: Any) -> Any:
    return type("Net", (Writes,), {"write": write})()


def warned(log: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in log.records if "plain attribute" in record.getMessage()]


def call_in_trace(write: Any) -> None:
    graph, state = nnx.split(written(write))

    def run(state: Any, x: Any) -> Any:
        return called(lambda: nnx.merge(graph, state), lambda module: module(x))[1]

    jax.eval_shape(run, state, images(2))


@pytest.mark.parametrize("write", ERRORS)
def test_a_call_that_writes_an_array_or_another_value_each_time_raises(write: Any) -> None:
    with pytest.raises(ModuleError) as error:
        call_in_trace(write)
    assert f"writes the plain attribute {ERRORS[write]!r}" in str(error.value)
    assert "nnx.Variable" in str(error.value)


@pytest.mark.parametrize("write", WARNINGS)
def test_a_call_that_writes_the_same_value_each_time_warns(write: Any, caplog: pytest.LogCaptureFixture) -> None:
    call_in_trace(write)
    assert len(warned(caplog)) == 1
    assert f"writes the plain attribute {WARNINGS[write]!r}" in warned(caplog)[0]


@pytest.mark.parametrize("write", SILENT_WRITES)
def test_modes_cached_properties_and_equal_values_are_silent(write: Any, caplog: pytest.LogCaptureFixture) -> None:
    call_in_trace(write)
    assert not warned(caplog)


@pytest.mark.parametrize("dispatch", ["jit", pytest.param("eager", marks=pytest.mark.slow)])
@pytest.mark.parametrize("write", [count, pytest.param(keep, marks=pytest.mark.slow)])
def test_training_evaluation_and_prediction_raise_for_a_counter(write: Any, dispatch: str) -> None:
    model = compiled(written(write), dispatch=dispatch)
    for call in (model.train_on_batch, model.test_on_batch, lambda x, y: model.predict_on_batch(x)):
        for _ in range(2):  # the error must not be lost with the trace
            with pytest.raises(ModuleError, match=f"plain attribute.*'{ERRORS[write]}'.*nnx.Variable"):
                call(images(4), labels(4))
    assert model.module.calls == 0


@pytest.mark.parametrize("dispatch", ["jit", pytest.param("eager", marks=pytest.mark.slow)])
def test_a_cache_warns_once_in_each_kind_of_step(dispatch: str, caplog: pytest.LogCaptureFixture) -> None:
    model = compiled(written(cache), dispatch=dispatch)
    for call in (model.train_on_batch, model.test_on_batch, lambda x, y: model.predict_on_batch(x)):
        caplog.clear()
        for _ in range(2):
            call(images(4), labels(4))
        assert len(warned(caplog)) == 1
        assert "before None, after (0, 1, 2, 3, 4, 5, 6, 7)" in warned(caplog)[0]


def test_a_call_does_not_fill_a_cache_of_the_own_module() -> None:
    model = compiled(written(cache_array))
    for _ in range(2):
        model.predict_on_batch(images(4))
    assert model.module.sizes == {}


class KeepsIntermediates(nnx.Module):
    def __call__(self, x: Any) -> Any:
        self.activations = nnx.Intermediate(x)
        return x


def attention() -> Any:
    module = nnx.MultiHeadAttention(2, 4, decode=True, rngs=nnx.Rngs(0))
    module.init_cache((2, 3, 4))
    return module


def linen_net() -> Any:
    module = linen.Sequential([linen.Dense(3), linen.LayerNorm()])
    return nnx.bridge.ToNNX(module, rngs=nnx.Rngs(0)).lazy_init(jnp.ones((2, 4)))


SILENT = {
    "batch_norm": (lambda: nnx.BatchNorm(4, rngs=nnx.Rngs(0)), (2, 4)),
    "dropout": (lambda: nnx.Dropout(0.5, rngs=nnx.Rngs(0)), (2, 4)),
    "decoding": (attention, (2, 1, 4)),
    "intermediate": (KeepsIntermediates, (2, 4)),
    "linen": (linen_net, (2, 4)),
    "recurrent": (lambda: nnx.RNN(nnx.LSTMCell(4, 4, rngs=nnx.Rngs(0))), (2, 3, 4)),
    "lora": (lambda: nnx.LoRA(4, 2, 4, rngs=nnx.Rngs(0)), (2, 4)),
    "weight_norm": (lambda: nnx.WeightNorm(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0)), (2, 4)),
    "spectral_norm": (lambda: nnx.SpectralNorm(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0)), (2, 4)),
    "resfit": (
        lambda: resfit.create_model(
            "resnet20", num_classes=3, depths=(1,), widths=(4,), drop_path=0.5, head_dropout=0.5, remat="block", rngs=0
        ),
        (2, 8, 8, 3),
    ),
}  # fmt: skip


@pytest.mark.representatives("batch_norm", "intermediate", "linen", "resfit")
@pytest.mark.parametrize("name", SILENT)
def test_attributes_that_flax_layers_write_do_not_warn(name: str, caplog: pytest.LogCaptureFixture) -> None:
    make, shape = SILENT[name]
    graph, state = nnx.split(make())

    def make(state: Any) -> Any:
        module: Any = nnx.merge(graph, state)
        module.train()
        return module

    def call(state: Any, x: Any) -> Any:
        return called(lambda: make(state), lambda module: module(x))[1]

    jax.eval_shape(call, state, jnp.ones(shape))
    assert not warned(caplog)
