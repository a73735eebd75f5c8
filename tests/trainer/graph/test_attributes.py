"""Warnings of plain attributes that a call writes; attributes that Flax and resfit write give none."""

import dataclasses
import functools
import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import resfit
from resfit.trainer.graph.attributes import watched
from tests.helpers import PlainNet, compiled, images, labels


@dataclasses.dataclass
class Constants:
    """Objects whose comparison raises."""

    array: Any


class Writes(PlainNet):
    def __init__(self) -> None:
        super().__init__(rngs=nnx.Rngs(0))
        self.calls, self.last, self.flag = 0, None, False
        self.seen = nnx.static([])
        self.sizes = nnx.static({})
        self.inner = nnx.data({("a", 1): [nnx.Sequential()]})
        self.constants = nnx.static(Constants(np.ones(2)))
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


def nested(self: Any, x: Any) -> None:
    self.inner["a", 1][0].calls = 1


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


WRITES = {count: "calls", keep: "last", switch: "flag", append: "seen", insert: "sizes", create: "shape",
          nested: "inner.('a', 1).0.calls", kept_as_it_was: "", renew: "constants", set_mode: "",
          compute_once: ""}  # fmt: skip


def warned(log: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in log.records if "plain attribute" in record.getMessage()]


@pytest.mark.parametrize("write", WRITES)
def test_a_call_that_writes_a_plain_attribute_warns_and_names_it(write: Any, caplog: pytest.LogCaptureFixture) -> None:
    module = type("Net", (Writes,), {"write": write})()
    with caplog.at_level(logging.WARNING, "resfit"), watched(module):
        module(images(2))
    expected = f"writes the plain attribute {WRITES[write]!r}"
    messages = warned(caplog)
    assert len(messages) == bool(WRITES[write])
    assert all(expected in message and "nnx.Variable" in message for message in messages)


@pytest.mark.parametrize("dispatch", ["jit", pytest.param("eager", marks=pytest.mark.slow)])
def test_training_evaluation_and_prediction_each_warn_once_of_a_counter(
    dispatch: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = compiled(type("Net", (Writes,), {"write": count})(), dispatch=dispatch)
    for call in (model.train_on_batch, model.test_on_batch, lambda x, y: model.predict_on_batch(x)):
        caplog.clear()
        for _ in range(2):
            call(images(4), labels(4))
        assert len(warned(caplog)) == 1
        assert "before 0, after 1" in warned(caplog)[0]
    assert model.module.calls == 0


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

    def call(state: Any, x: Any) -> Any:
        module: Any = nnx.merge(graph, state)
        module.train()
        with watched(module):
            return module(x)

    jax.eval_shape(call, state, jnp.ones(shape))
    assert not warned(caplog)
