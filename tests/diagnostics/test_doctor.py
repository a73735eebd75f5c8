"""The doctor reports each mistake at its place, and no problem in a correct model."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from einops import rearrange, reduce
from flax import nnx

import resfit
from resfit.diagnostics.doctor_report import DoctorReport
from resfit.errors import NotCompiledError
from resfit.nets.probe import parts
from tests import levels
from tests.helpers import CLASSES, PlainNet, TinyNet, compiled, differ, fit, flags, labels, state_of, values

N = 48


def data(classes: int = CLASSES) -> tuple[np.ndarray, np.ndarray]:
    """Return images whose class is the brightness of one row."""
    y = labels(N, classes)
    x = np.random.default_rng(0).normal(size=(N, 8, 8, 1)).astype(np.float32)
    x[np.arange(N), y] += 3
    return x, y


def residual(**spec: Any) -> resfit.nets.ResNet:
    settings: dict[str, Any] = {"depths": (1, 1), "widths": (4, 8), "stem": "cifar", "in_channels": 1, **spec}
    return resfit.nets.ResNet(resfit.nets.ResNetSpec(block="basic", num_classes=CLASSES, **settings), rngs=nnx.Rngs(0))


def tiny() -> nnx.Module:
    return TinyNet(rngs=nnx.Rngs(0))


def problems(report: DoctorReport) -> list[str]:
    return [check.name for check in report.problems]


class Ending(TinyNet):
    """A network with a function after its logits."""

    def __init__(self, ending: Callable[[jax.Array], jax.Array], classes: int = CLASSES) -> None:
        super().__init__(classes, rngs=nnx.Rngs(0))
        self.ending = ending

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.ending(super().__call__(x))


class Deep(nnx.Module):
    """Dense layers of one width, without a norm, with initial values of a given size."""

    def __init__(self, gain: float, depth: int = 6) -> None:
        start = nnx.initializers.variance_scaling(gain, "fan_in", "normal")
        rngs = nnx.Rngs(0)
        self.layers = nnx.List([nnx.Linear(64, 64, kernel_init=start, rngs=rngs) for _ in range(depth)])
        self.head = nnx.Linear(64, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = rearrange(x, "n h w c -> n (h w c)")
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.head(x)


class LayerNormed(nnx.Module):
    """A network with small outputs for inputs of any scale, without an activation at the end."""

    def __init__(self) -> None:
        self.norm = nnx.LayerNorm(64, rngs=nnx.Rngs(0))
        start = nnx.initializers.normal(0.02)
        self.head = nnx.Linear(64, CLASSES, kernel_init=start, rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.norm(rearrange(x, "n h w c -> n (h w c)")))


class CutOff(TinyNet):
    """A network that stops gradients at the norm."""

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jax.lax.stop_gradient(self.norm(self.conv(x)))
        return self.head(reduce(nnx.relu(x), "n h w c -> n c", "mean"))


class AlwaysEvaluating(TinyNet):
    """A network that does not pass `train` to its norm."""

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.norm(self.conv(x), use_running_average=True))
        return self.head(reduce(x, "n h w c -> n c", "mean"))


def died() -> nnx.Module:
    net = residual()
    net.stage1.blocks[0].branch.norm2.bias[...] = jnp.full(4, -1e3)
    return net


NETS = {
    "residual": residual,
    "option A": lambda: residual(shortcut="A"),
    "bottleneck": lambda: resfit.create_model("resnet50", num_classes=CLASSES, in_channels=1, stem="cifar",
                                              depths=(1, 1), widths=(2, 4)),
    "nnx.BatchNorm by flags": tiny,
    "nnx.LayerNorm": LayerNormed,
    "no norm": lambda: PlainNet(rngs=nnx.Rngs(0)),
    "deep, started rightly": lambda: Deep(2.0),
}  # fmt: skip


@pytest.mark.representatives("nnx.BatchNorm by flags")
@pytest.mark.parametrize("name", levels.only(["nnx.BatchNorm by flags", "no norm"], NETS))
def test_a_correct_model_has_no_problem(name: str) -> None:
    x, y = data()
    model = compiled(NETS[name](), learning_rate=0.02)
    fresh = resfit.doctor(model, x, y)
    assert problems(fresh) == [], str(fresh)
    fit(model, x, y, epochs=8)
    trained = resfit.doctor(model, x, y)
    assert problems(trained) == [], str(trained)
    assert trained["evaluation"].status == "ok"
    assert trained.blocks


# What was done wrong -> (network, x, y, the only checks that may find it, words of what they say)
WRONG: dict[str, tuple[Callable[[], Any], Callable[[Any, Any], tuple[Any, Any]], list[str], str]] = {
    "images from 0 to 255 as floats": (residual, lambda x, y: (x * 60 + 128, y), ["inputs"], "uint8"),
    "scaled twice": (residual, lambda x, y: (x / 255, y), ["inputs"], "divided by 255 twice"),
    "a NaN among the pixels": (
        PlainNet, lambda x, y: (np.where(np.arange(64).reshape(8, 8, 1) == 5, np.nan, x), y),
        ["inputs", "blocks", "gradients", "evaluation"], "hold NaN",
    ),
    "labels from 1": (tiny, lambda x, y: (x, y + 1), ["labels"], "y - 1"),
    "labels from 1 and one class too many": (
        lambda: TinyNet(CLASSES + 1, rngs=nnx.Rngs(0)), lambda x, y: (x, y + 1), ["labels"], "start at 1"),
    "a class that never occurs": (tiny, lambda x, y: (x, 2 * (y // 2)), ["labels"], "class 1"),
    "one-hot labels without a class": (
        residual, lambda x, y: (x, np.eye(CLASSES, dtype=np.float32)[2 * (y // 2)]), ["labels"], "class 1"),
    "softmax at the end": (lambda: Ending(nnx.softmax), lambda x, y: (x, y), ["last layer"], "a softmax"),
    "sigmoid at the end": (lambda: Ending(nnx.sigmoid), lambda x, y: (x, y), ["last layer"], "a sigmoid"),
    "tanh at the end": (lambda: Ending(jnp.tanh), lambda x, y: (x, y), ["last layer"], "a tanh"),
    "relu at the end": (lambda: Ending(nnx.relu), lambda x, y: (x, y), ["last layer"], "a ReLU"),
    "a batch of one": (residual, lambda x, y: (x[:1], y[:1]), ["batch size"], "batch_size of 8"),
    "a dead block": (died, lambda x, y: (x, y), ["blocks", "gradients"], "stage1.blocks.0, stage2.blocks.0 is zero"),
    "started too large": (lambda: Deep(200.0), lambda x, y: (x, y), ["blocks", "gradients"], "explode"),
    "started too small": (lambda: Deep(0.002), lambda x, y: (x, y), ["gradients"], "vanish"),
    "a stopped gradient": (lambda: CutOff(rngs=nnx.Rngs(0)), lambda x, y: (x, y), ["gradients"], "reaches conv, norm"),
    "the forgotten train flag": (
        lambda: AlwaysEvaluating(rngs=nnx.Rngs(0)), lambda x, y: (x, y), ["statistics"], "train=train"),
}  # fmt: skip


SLOW = {"scaled twice", "labels from 1 and one class too many", "one-hot labels without a class", "sigmoid at the end",
        "tanh at the end", "started too large"}  # fmt: skip


@pytest.mark.representatives(
    "a NaN among the pixels",
    "labels from 1",
    "a class that never occurs",
    "a stopped gradient",
    "the forgotten train flag",
)
@pytest.mark.parametrize("mistake", levels.only(WRONG.keys() - SLOW, WRONG))
def test_only_the_check_of_a_mistake_reports_it_and_names_a_remedy(mistake: str) -> None:
    build, spoil, expected, words = WRONG[mistake]
    net = build(rngs=nnx.Rngs(0)) if build is PlainNet else build()
    report = resfit.doctor(compiled(net), *spoil(*data()))
    assert set(problems(report)) <= set(expected), str(report)
    assert expected[0] in problems(report), str(report)
    assert words in " ".join(f"{check.found} {check.fix}" for check in report.problems)
    assert all(check.fix for check in report.problems)


@pytest.mark.slow
def test_running_statistics_that_do_not_fit_are_reported_and_the_remedy_works() -> None:
    x, y = data()
    model = compiled()
    fit(model, x, y, epochs=8)
    model.module.norm.mean[...] -= 50.0
    assert problems(resfit.doctor(model, x, y)) == ["evaluation"]
    resfit.recalibrate(model, x)
    assert problems(resfit.doctor(model, x, y)) == []


@pytest.mark.slow
def test_statistics_frozen_on_purpose_are_not_a_problem() -> None:
    model = resfit.Model(TinyNet(rngs=nnx.Rngs(0)))
    model.freeze("norm")
    model.compile("sgd")
    assert problems(resfit.doctor(model, *data())) == []


@pytest.mark.slow
def test_a_teacher_without_a_gradient_is_not_a_problem() -> None:
    model = resfit.Distiller(TinyNet(rngs=nnx.Rngs(0)), TinyNet(rngs=nnx.Rngs(5)))
    model.compile("sgd")
    report = resfit.doctor(model, *data())
    assert any(block.name.startswith("teacher") and block.gradient == 0 for block in report.blocks)
    assert problems(report) == [], str(report)


def test_blocks_are_in_the_order_of_their_calls_with_the_right_numbers() -> None:
    x, y = data()
    net = TinyNet(rngs=nnx.Rngs(0))
    blocks = resfit.doctor(compiled(net), x, y).blocks
    assert [block.name for block in blocks] == ["conv", "norm", "head"]
    copy = nnx.clone(net)
    copy.train()
    conv, out = nnx.jit(lambda net: (net.conv(x), net(x)))(copy)
    assert blocks[0].rms == pytest.approx(np.sqrt(np.square(conv).mean()), rel=1e-5)
    by_logits = jax.jit(jax.grad(lambda z: optax.softmax_cross_entropy_with_integer_labels(z, y).mean()))(out)
    assert blocks[2].gradient == pytest.approx(np.linalg.norm(by_logits), rel=1e-4)
    assert [block.dead for block in blocks] == [0, 0, 0]


def test_parts_are_residual_blocks_and_the_modules_beside_them() -> None:
    assert sorted(parts(residual())) == ["head", "stage1.blocks.0", "stage2.blocks.0", "stem"]
    assert sorted(parts(Deep(1.0, depth=2))) == ["head", "layers.0", "layers.1"]


def test_doctor_does_not_change_the_model() -> None:
    model = compiled(dispatch="sharded")
    fit(model, *data())
    before, modes, leaves = values(model.module), flags(model.module), [np.array(a) for a in state_of(model).leaves]
    resfit.doctor(model, *data())
    assert differ(before, values(model.module)) == set()
    assert flags(model.module) == modes
    for old, new in zip(leaves, state_of(model).leaves, strict=True):
        np.testing.assert_array_equal(old, new)


def test_the_report_is_a_table_of_each_problem_and_its_remedy() -> None:
    x, y = data()
    report = resfit.doctor(compiled(), x * 60 + 128, y + 1)
    assert repr(report) == f"<DoctorReport: 2 problems found in {len(report.checks)} checks>"
    assert re.search(r"^<pre>2 problems found.*y - 1.*</pre>$", report._repr_html_(), re.DOTALL)
    text = str(report)
    assert text.startswith("2 problems found")
    assert "y - 1" in " ".join(text.split())
    assert "No problem found" in str(resfit.doctor(compiled(), x, y))


def test_a_model_that_is_not_compiled_raises() -> None:
    with pytest.raises(NotCompiledError, match="before doctor"):
        resfit.doctor(resfit.Model(PlainNet(rngs=nnx.Rngs(0))), *data())
