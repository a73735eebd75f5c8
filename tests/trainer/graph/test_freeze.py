"""Frozen parts do not train, and nothing else stops training."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import resfit
from resfit import optimizers
from resfit.errors import ModuleError, NotCompiledError
from resfit.trainer.graph.freezing import Freeze
from resfit.trainer.graph.module_plan import plan_module
from tests.helpers import CLASSES, TinyNet, assert_same, compiled, differ, fit, images, labels, state_of, values


def moved(module: nnx.Module, before: dict[str, np.ndarray]) -> set[str]:
    return {name for name, array in values(module).items() if not np.array_equal(array, before[name])}


def tiny_resnet() -> nnx.Module:
    spec = resfit.nets.ResNetSpec(depths=(1, 1), widths=(4, 4), stem="cifar", num_classes=CLASSES, in_channels=1)
    return resfit.nets.ResNet(spec, rngs=nnx.Rngs(0))


def trained(net: nnx.Module, *patterns: str, **options: bool) -> set[str]:
    model = resfit.Model(net)
    model.freeze(*patterns, **options)
    model.compile("sgd", learning_rate=0.1, dispatch="jit")
    before = values(net)
    model.fit(images(16), labels(16), batch_size=8, epochs=2, verbose=0)
    return moved(net, before)


def test_a_frozen_part_keeps_its_parameters_and_statistics_and_the_rest_trains() -> None:
    changed = trained(tiny_resnet(), "stem", "stage1")
    assert changed
    assert not any(name.startswith(("stem", "stage1")) for name in changed)
    assert {"head.dense.kernel", "stage2.blocks.0.branch.norm2.mean"} <= changed


def test_frozen_statistics_give_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    """The trained part has no norm: statistics that change elsewhere would hide the mistake."""
    assert "norm.mean" not in trained(TinyNet(classes=4, rngs=nnx.Rngs(0)), "norm")
    assert "unchanged" not in caplog.text


def test_statistics_of_a_frozen_part_still_move_with_batch_norm_false() -> None:
    changed = trained(TinyNet(rngs=nnx.Rngs(0)), "conv", "norm", batch_norm=False)
    assert changed == {"norm.mean", "norm.var", "head.kernel", "head.bias"}


def test_a_frozen_batch_norm_normalizes_by_its_running_statistics_in_training() -> None:
    net = resfit.nets.ResNet(dataclasses.replace(tiny_resnet().spec, depths=(1,), widths=(4,)), rngs=nnx.Rngs(0))
    seen: list[np.ndarray] = []

    class Spy(resfit.Model):
        def compute_loss(self, module, x, y, *, key, train):
            if train:
                jax.debug.callback(lambda features: seen.append(np.array(features)), module.stem(x))
            return super().compute_loss(module, x, y, key=key, train=train)

    x, y = images(8), labels(8)
    model = Spy(net)
    model.freeze("stem")
    model.compile("sgd", learning_rate=0.1, dispatch="jit", metrics=None)
    by_statistics, by_batch = (
        nnx.jit(lambda stem, x, train=train: stem(x, train=train))(nnx.clone(net.stem), x) for train in (False, True)
    )
    model.train_on_batch(x, y)
    jax.effects_barrier()
    np.testing.assert_allclose(seen[0], by_statistics, rtol=1e-5, atol=1e-6)
    assert not np.allclose(seen[0], by_batch, rtol=1e-2, atol=1e-2)


def test_frozen_parameters_have_no_optimizer_state() -> None:
    model = resfit.Model(tiny_resnet())
    model.compile("adam", dispatch="jit")
    everything = sum(leaf.size for leaf in state_of(model).leaves)
    model.freeze("stage*")
    model.compile("adam", dispatch="jit")
    frozen = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model.module.stage1, nnx.Param)))
    assert everything - sum(leaf.size for leaf in state_of(model).leaves) >= 2 * frozen > 0


def test_freeze_takes_effect_at_the_next_compile_and_fit_raises_before_it() -> None:
    model = compiled()
    model.freeze("conv")
    with pytest.raises(NotCompiledError):
        model.fit(images(8), labels(8), verbose=0)


@pytest.mark.slow
def test_freezing_nothing_trains_everything_again() -> None:
    net = TinyNet(rngs=nnx.Rngs(0))
    trained(net, "conv", "norm")
    assert {"conv.kernel", "norm.mean"} <= trained(net)


def test_a_pattern_that_matches_nothing_raises_and_lists_the_names() -> None:
    with pytest.raises(ModuleError, match=r"'stagex'.*'stage1'"):
        resfit.Model(tiny_resnet()).freeze("stagex")


class Pooled(nnx.Module):
    """A network without parameters."""

    def __call__(self, x: Any) -> Any:
        return x.mean(axis=(1, 2))


@pytest.mark.parametrize(
    ("make", "patterns", "why"),
    [
        (
            functools.partial(resfit.create_model, "resnet20", num_classes=3, depths=(1,), widths=(4,)),
            ["*"],
            r"frozen by freeze\('\*'\), so .* has nothing to train.*fewer patterns",
        ),
        (Pooled, [], r"Pooled has no floating-point nnx\.Param, so .* has nothing to train"),
    ],
    ids=["frozen", "none"],
)
def test_a_model_without_trained_parameters_evaluates_and_predicts_and_does_not_train(
    make: Any, patterns: list[str], why: str
) -> None:
    model = resfit.Model(make())
    model.freeze(*patterns)
    model.compile("adam", ema=0.9)
    x, y = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype("float32"), np.arange(4) % 3
    outputs = model.predict(x, verbose=0)
    loss = -jax.nn.log_softmax(outputs)[np.arange(4), y].mean()
    assert model.evaluate(x, y, verbose=0)[0] == pytest.approx(float(loss), rel=1e-5)
    np.testing.assert_array_equal(model.predict(x, verbose=0, weights="ema"), outputs)
    for train in (
        lambda: model.fit(x, y, verbose=0),
        lambda: model.train_on_batch(x, y),
        lambda: resfit.find_learning_rate(model, x, y, steps=3),
        lambda: resfit.doctor(model, x, y),
    ):
        with pytest.raises(ModuleError, match=why):
            train()


class TiedNet(nnx.Module):
    """A network with one kernel in two layers, and one norm at two places."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.a = nnx.Linear(64, 64, use_bias=False, rngs=rngs)
        self.b = nnx.Linear(64, 64, rngs=rngs)
        self.b.kernel = self.a.kernel
        self.norm = nnx.BatchNorm(64, momentum=0.9, rngs=rngs)
        self.same = nnx.data({"norm": (self.norm,)})
        self.head = nnx.Linear(64, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.b(nnx.tanh(self.a(x.reshape(len(x), -1))))
        return self.head(self.same["norm"][0](nnx.tanh(self.norm(x))))


def test_a_pattern_matches_every_path_of_a_shared_part() -> None:
    def frozen(*patterns: str) -> set[str]:
        return {slot.name for slot in plan_module(TiedNet(), Freeze(patterns)).slots if slot.frozen}

    norm = {"norm.bias", "norm.scale", "norm.mean", "norm.var"}
    assert frozen("a") == {"a.kernel"}
    assert frozen("b") == {"a.kernel", "b.bias"}
    assert frozen("b.kernel") == {"a.kernel"}
    assert frozen("norm") == frozen("same") == frozen("same.norm.*") == norm


def test_freezing_the_second_path_keeps_a_tied_kernel_and_the_statistics_of_a_shared_norm() -> None:
    module = TiedNet()
    model = resfit.Model(module)
    model.freeze("b.kernel", "same")
    before = values(module)
    model.compile("sgd", learning_rate=0.1, dispatch="jit")
    model.train_on_batch(images(8), labels(8))
    assert differ(before, values(module)) == {"b.bias", "head.kernel", "head.bias"}


@pytest.mark.slow
def test_a_learning_rate_by_part_matches_every_path_of_a_tied_kernel() -> None:
    module = TiedNet()
    before = values(module)
    parts = {"b.kernel": 0.0, "same.*": 0.0, "*": 1.0}
    compiled(module, optimizer=optimizers.by_part(parts, optimizers.sgd(0.1)), learning_rate=None).train_on_batch(
        images(8), labels(8)
    )
    assert differ(before, values(module)) == {"b.bias", "head.kernel", "head.bias", "norm.mean", "norm.var"}


# --- filters of NNX ---------------------------------------------------------------------------------------------------


class Adapted(nnx.Module):
    """A network with two LoRA adapters, a BatchNorm and a Dropout."""

    def __init__(self, seed: int = 0) -> None:
        rngs = nnx.Rngs(seed)
        self.dense = nnx.LoRALinear(64, 4, lora_rank=2, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.head = nnx.LoRA(4, 2, CLASSES, base_module=nnx.Linear(4, CLASSES, rngs=rngs), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.dropout(self.norm(self.dense(x.reshape(x.shape[0], -1)))))


ADAPTERS = {"dense.lora.lora_a", "dense.lora.lora_b", "head.lora_a", "head.lora_b"}
BASE = {"dense.kernel", "dense.bias", "norm.scale", "norm.bias", "head.base_module.kernel", "head.base_module.bias"}
STATISTICS = {"norm.mean", "norm.var"}
EVERYTHING = ADAPTERS | BASE | STATISTICS

FILTERS: list[tuple[Any, set[str]]] = [
    (nnx.Not(nnx.LoRAParam), BASE | STATISTICS),
    (nnx.All(nnx.Param, nnx.Not(nnx.LoRAParam)), BASE),
    (nnx.LoRAParam, ADAPTERS),
    (nnx.PathContains("dense"), {name for name in EVERYTHING if name.startswith("dense")}),
    (lambda path, variable: path[-1] == "bias", {name for name in EVERYTHING if name.endswith("bias")}),
    (nnx.Any(nnx.BatchStat, nnx.PathContains("head")), STATISTICS | {name for name in EVERYTHING if "head" in name}),
    ([nnx.BatchStat, nnx.LoRAParam], STATISTICS | ADAPTERS),
    (..., EVERYTHING),
]


@pytest.mark.parametrize(("given", "expected"), FILTERS)
def test_a_filter_of_nnx_freezes_the_variables_that_it_matches(given: Any, expected: set[str]) -> None:
    def frozen(*filters: Any, batch_norm: bool = True) -> set[str]:
        freeze = Freeze.of(filters, batch_norm=batch_norm)
        hash(freeze)
        return {slot.name for slot in plan_module(Adapted(), freeze).slots if slot.frozen}

    assert frozen(given) == expected
    assert frozen(given, batch_norm=False) == expected - STATISTICS
    assert frozen(given, "norm") == expected | STATISTICS | {"norm.scale", "norm.bias"}


@pytest.mark.parametrize("given", [("norm",), ("norm.*",), (nnx.PathContains("norm"),), (nnx.BatchStat,)])
def test_a_norm_whose_statistics_are_all_frozen_normalizes_by_them(given: tuple[Any, ...]) -> None:
    module = TinyNet(rngs=nnx.Rngs(0))
    plan = plan_module(module, Freeze.of(given, batch_norm=True))
    params, carried = (
        [dict(nnx.to_flat_state(nnx.state(module)))[slot.path][...] for slot in plan.slots if slot.kind == kind]
        for kind in ("param", "carried")
    )
    train = plan.assemble(params, carried, jax.random.key(0), train=True)
    assert train.norm.use_running_average


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["conv", "norm"], r"one argument for each pattern: freeze\(\*\['conv', 'norm'\]\)"),
        (nnx.BatchNorm, "the class BatchNorm.*filters of NNX on Variables"),
        (nnx.Linear(1, 1, rngs=nnx.Rngs(0)), "an object of Linear.*dotted paths"),
        (3, "an object of int"),
        (nnx.LoRAParam, r"No Variable.*LoRAParam.*its Variables are \['BatchStat', 'Param'\].*'conv', 'head', 'norm'"),
    ],
)
def test_a_filter_that_cannot_match_raises_and_names_what_would(given: Any, words: str) -> None:
    with pytest.raises(ModuleError, match=words):
        resfit.Model(TinyNet(rngs=nnx.Rngs(0))).freeze(given)


def adapters_only(seed: int = 0) -> resfit.Model:
    model = resfit.Model(Adapted(seed))
    model.freeze(nnx.Not(nnx.LoRAParam))
    model.compile("adam", learning_rate=0.05, dispatch="jit")
    return model


def test_a_lora_run_trains_only_the_adapters_and_is_saved_and_resumed(tmp_path: Path) -> None:
    x, y = images(8), labels(8)
    whole, model, again = adapters_only(), adapters_only(), adapters_only(seed=1)
    before = values(whole.module)
    fit(whole, x, y, epochs=2)
    assert differ(before, values(whole.module)) == ADAPTERS
    fit(model, x, y, epochs=1, callbacks=[resfit.callbacks.Checkpoint(tmp_path / "run")])
    fit(again, x, y, epochs=2, callbacks=[resfit.callbacks.Checkpoint(tmp_path / "run")], resume=True)
    assert_same(values(again.module), values(whole.module))
    again.save(tmp_path / "net.safetensors")
    loaded = resfit.load(tmp_path / "net.safetensors", module=Adapted(2))
    assert_same(values(loaded.module), values(whole.module))
