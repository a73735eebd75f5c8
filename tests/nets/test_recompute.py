"""Rematerialization: less memory and the same results."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import resfit
from resfit.backends.program_cache import compiled as compile_program
from resfit.diagnostics.summary import summarize
from resfit.errors import SpecError
from resfit.nets import ResNet, ResNetSpec, count_multiply_adds
from resfit.nets.recompute import recomputed
from resfit.nets.registry import BLOCKS
from resfit.trainer.devices.memory import step_memory
from tests import levels
from tests.helpers import (
    assert_close,
    assert_same,
    call,
    compiled,
    compiled_of,
    counting_compilations,
    fit,
    images,
    labels,
    values,
)

KINDS = ("block", "stage")


def net(remat: str | None, **overrides: Any) -> ResNet:
    spec = {"depths": (2, 1), "widths": (4, 8), "stem": "cifar", "num_classes": 3, "in_channels": 1, **overrides}
    return ResNet(ResNetSpec(**spec, remat=remat), rngs=nnx.Rngs(0))


class NoisyBranch(nnx.Module):
    def __init__(self, channels: int, *, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(channels, channels, (3, 3), padding=1, rngs=rngs)
        self.norm = nnx.BatchNorm(channels, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.dropout(self.norm(self.conv(x)))


def noisy_net(remat: str | None) -> ResNet:
    """Return a network whose custom block has dropout."""
    module = net(remat, depths=(1,), widths=(4,))
    module.stage1.blocks[0] = resfit.nets.Residual(NoisyBranch(4, rngs=nnx.Rngs(5)), in_channels=4)
    return module


# --- the same results -------------------------------------------------------------------------------------------------


@functools.cache
def everything(remat: str | None, train: bool, block: str) -> Any:
    """Return loss, logits, updated statistics and gradients of one call."""

    @nnx.jit
    def run(module: ResNet, x: jax.Array) -> Any:
        def loss(module: ResNet) -> Any:
            logits = module(x, train=train)
            return (logits**2).sum(), logits

        graph, params, rest = nnx.split(module, nnx.Param, ...)
        rest = nnx.as_pure(rest)

        def of(params: Any) -> Any:
            copy = nnx.merge(graph, params, rest)
            value, logits = loss(copy)
            return value, (logits, nnx.as_pure(nnx.state(copy, nnx.BatchStat)))

        return jax.value_and_grad(of, has_aux=True)(nnx.as_pure(params))

    return run(net(remat, depths=(1, 1), block=block, zero_init_last=False), images(4))


CASES = [(*case, block) for block in BLOCKS for case in (("block", True), ("stage", True), ("block", False))]
# Slow: every block, both kinds, both modes.
SLOW = {(*case, block) for *case, block in CASES if case == ["stage", True] or block == "bottleneck"}


@pytest.mark.parametrize(("remat", "train", "block"), levels.only({("block", True, "basic")}, CASES, SLOW))
def test_outputs_gradients_and_statistics_do_not_depend_on_remat(remat: str, train: bool, block: str) -> None:
    plain, lean = everything(None, train, block), everything(remat, train, block)
    if block.startswith("preact"):
        assert_close(lean, plain)  # without a barrier, newer versions of XLA fuse two blocks
    else:
        assert_same(lean, plain)
    moved = [bool(np.all(np.asarray(a) == 0) or np.all(np.asarray(a) == 1)) for a in jax.tree.leaves(lean[0][1][1])]
    assert any(moved) is not train  # statistics change in training only


@pytest.mark.parametrize(
    ("remat", "dispatch", "precision"),
    [
        pytest.param("block", "jit", "float32", marks=pytest.mark.exhaustive),
        pytest.param("stage", "jit", "float32", marks=pytest.mark.slow),
        pytest.param("block", "sharded", "float32", marks=pytest.mark.slow),
        pytest.param("stage", "sharded", "bfloat16", marks=pytest.mark.exhaustive),
    ],
)
def test_training_with_remat_is_bit_for_bit_the_same_in_float32(remat: str, dispatch: str, precision: str) -> None:
    """With dropout, statistics and a partial batch. In bfloat16, XLA chooses where to round."""
    found = []
    for kind in (None, remat):
        model = compiled(noisy_net(kind), dispatch=dispatch, precision=precision)
        fit(model, images(12), labels(12))
        found.append((model.history.history["loss"], values(model.module)))
    if precision == "float32":
        assert_same(found[1], found[0])
    else:
        assert_close(found[1], found[0], 2e-2)


@pytest.mark.slow
@pytest.mark.parametrize("remat", [KINDS[0], pytest.param(KINDS[1], marks=pytest.mark.slow)])
def test_remat_works_in_eager_mode(remat: str) -> None:
    module, other = noisy_net(remat), noisy_net(None)
    assert_close(module(images(2), train=True), call(other, images(2), train=True), 1e-6)
    assert_close(values(module), values(other), 1e-6)
    assert module.stage1.blocks[0].branch.dropout.rngs.count[...] == 1  # changed once


# --- less memory ------------------------------------------------------------------------------------------------------


@functools.cache
def temporary_memory(remat: str | None, slices: int = 1) -> int:
    """Return the temporary bytes of the training step of a deep and thin network."""
    model = compiled(net(remat, depths=(5,), widths=(4,)), gradient_accumulation_steps=slices)
    return compiled_of(model).trainer.memory(resfit.data.Batch(images(16), labels(16), None, None, 16))[0].temporary


@pytest.mark.slow
def test_a_training_step_needs_much_less_memory() -> None:
    assert temporary_memory("block") < 0.5 * temporary_memory(None)


@pytest.mark.slow
def test_remat_and_accumulation_together_need_even_less_memory() -> None:
    assert temporary_memory(None, 4) < 0.5 * temporary_memory(None)
    assert temporary_memory("block", 4) < 0.75 * min(temporary_memory(None, 4), temporary_memory("block"))


def test_the_memory_is_saved_by_barriers_that_the_compiler_leaves_in() -> None:
    """Without barriers, XLA merges the repeated computation with the first one and saves nothing."""

    def temporary(barriers: bool) -> int:
        def layers(x: jax.Array, w: jax.Array) -> jax.Array:
            for _ in range(3):
                x = jnp.tanh(x @ w)
            return x

        def loss(w: jax.Array, x: jax.Array) -> jax.Array:
            for _ in range(6):
                x = jax.checkpoint(layers, prevent_cse=barriers)(x, w)
            return x.sum()

        lowered = jax.jit(jax.grad(loss)).lower(np.ones((16, 16), np.float32), np.ones((512, 16), np.float32))
        return step_memory(
            compile_program(lowered, jax.devices()[:1], {"xla_cpu_enable_fast_math": False}).run
        ).temporary

    assert temporary(True) < 0.7 * temporary(False)


@pytest.mark.slow
def test_a_custom_module_saves_memory_with_nnx_remat() -> None:
    class Deep(nnx.Module):
        def __init__(self, lean: bool) -> None:
            self.lean = lean
            self.layers = nnx.List([NoisyBranch(4, rngs=nnx.Rngs(i)) for i in range(4)])
            self.head = nnx.Linear(4, 3, rngs=nnx.Rngs(0))

        def __call__(self, x: jax.Array) -> jax.Array:
            x = jnp.broadcast_to(x, (*x.shape[:3], 4))
            for layer in self.layers:
                x = nnx.remat(lambda layer, x: layer(x))(layer, x) if self.lean else layer(x)
            return self.head(x.mean((1, 2)))

    found = []
    for lean in (False, True):
        model = compiled(Deep(lean))
        memory, _ = compiled_of(model).trainer.memory(resfit.data.Batch(images(16), labels(16), None, None, 16))
        fit(model, images(16), labels(16), batch_size=16)  # the same program
        found.append((memory.temporary, values(model.module)))
    assert found[1][0] < 0.6 * found[0][0]
    assert_same(found[1][1], found[0][1])


# --- nothing else is different ----------------------------------------------------------------------------------------


def test_unchanged_variables_keep_their_arrays() -> None:
    branch = NoisyBranch(4, rngs=nnx.Rngs(0))
    before = {path: leaf.get_raw_value() for path, leaf in nnx.to_flat_state(nnx.state(branch))}
    recomputed(lambda branch, x: branch(x), branch, np.ones((2, 4, 4, 4), np.float32))
    after = {path: leaf.get_raw_value() for path, leaf in nnx.to_flat_state(nnx.state(branch))}
    moved = {path for path in before if after[path] is not before[path]}
    assert moved == {("norm", "mean"), ("norm", "var"), ("dropout", "rngs", "count")}


def test_variables_that_a_call_creates_are_kept() -> None:
    class Leaves(nnx.Module):
        def __call__(self, x: jax.Array) -> jax.Array:
            self.seen = nnx.Intermediate(x + 1)
            return x

    module = Leaves()
    recomputed(lambda module, x: module(x), module, np.zeros(2, np.float32))
    assert type(module.seen) is nnx.Intermediate
    np.testing.assert_array_equal(module.seen[...], 1)


@pytest.mark.parametrize("remat", [KINDS[0], pytest.param(KINDS[1], marks=pytest.mark.slow)])
def test_remat_is_saved_and_absent_in_older_files(remat: str, tmp_path: Path) -> None:
    model = resfit.Model(net(remat))
    model.save(tmp_path / "net.safetensors")
    loaded: Any = resfit.load(tmp_path / "net.safetensors")
    assert loaded.module.spec == model.module.spec  # type: ignore[attr-defined]
    assert loaded.module.stage1.remat == remat
    assert_same(loaded.predict(images(8), verbose=0), model.predict(images(8), verbose=0))
    older = {name: value for name, value in model.module.spec.to_dict().items() if name != "remat"}  # type: ignore[attr-defined]
    assert ResNetSpec.from_dict(older).remat is None


def test_create_model_accepts_remat_and_unknown_parts_raise() -> None:
    assert resfit.create_model("resnet20", num_classes=3, remat="stage").spec.remat == "stage"
    with pytest.raises(SpecError, match=r"remat='layer'.*\[None, 'block', 'stage'\]"):
        resfit.create_model("resnet20", num_classes=3, remat="layer")


@pytest.mark.slow
def test_summary_and_grad_cam_do_not_depend_on_remat() -> None:
    found, maps = [], []
    for kind in (None, *KINDS):
        module = net(kind, depths=(1,), widths=(4,))
        found.append((str(summarize(module, (8, 8, 1))), count_multiply_adds(module, (8, 8, 1))))
        maps.append(resfit.grad_cam(resfit.Model(module), images(2), "stage1.blocks.0"))
    assert found[1:] == [found[0]] * 2
    assert_close(maps[1:], [maps[0]] * 2, 1e-6)


@pytest.mark.slow
def test_what_looks_inside_a_network_sees_the_same() -> None:
    found = []
    for kind in (None, *KINDS):
        module = net(kind, depths=(1,), widths=(4,))
        model = compiled(module)
        model.keep_last_step = True
        fit(model)
        found.append(
            (
                resfit.grad_cam(model, images(2), "stage1.blocks.0"),
                [line for line in str(resfit.doctor(model, images(8), labels(8))).splitlines() if "block" in line],
            )
        )
        assert model.first_non_finite() is None
    for cam, *others in found[1:]:
        assert_close(cam, found[0][0], 1e-6)
        assert others == list(found[0][1:])


@pytest.mark.slow
def test_a_second_model_of_the_same_spec_compiles_nothing() -> None:
    fit(compiled(net("block", depths=(1,), widths=(4,))))
    with counting_compilations(known_programs=True) as compilations:
        fit(compiled(net("block", depths=(1,), widths=(4,))))
    assert compilations == []
