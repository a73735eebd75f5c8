"""Registered custom blocks, stems and norms work like those of resfit, and mistakes in them are found."""

from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import resfit
from resfit.callbacks import Checkpoint
from resfit.diagnostics.summary import summarize
from resfit.errors import BlockCheckError, BlockError, SpecError
from resfit.nets import BLOCKS, NORMS, STEMS, ZOO, Layers, Residual, count_multiply_adds, count_params
from resfit.testing import check_block, check_norm, check_stem
from tests import levels
from tests.faults.runs import Stops, interrupt, stopped
from tests.helpers import assert_same, values
from tests.own_parts import HalvingStem, InvertedBlock, channel_norm, registered

X = np.random.default_rng(0).normal(size=(12, 64, 64, 3)).astype(np.float32)
Y = np.arange(12, dtype=np.int32) % 3


# --- all registered parts are checked ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", levels.only(["basic"], BLOCKS))
def test_our_blocks_pass(name: str) -> None:
    report = check_block(BLOCKS[name])
    assert report.notes == ()
    assert len(report.checks) >= 10


@pytest.mark.parametrize("name", levels.only(["imagenet"], [name for name in STEMS if name != "caffe"]))
def test_our_stems_pass(name: str) -> None:
    assert check_stem(STEMS[name]).notes == ()


def test_the_stem_of_caffe_is_one_pixel_off_as_in_its_networks() -> None:
    with pytest.raises(BlockCheckError, match="whose center is 2 pixels"):
        check_stem(STEMS["caffe"])


@pytest.mark.parametrize("name", levels.only(["batch"], NORMS))
def test_our_norms_pass(name: str) -> None:
    check_norm(NORMS[name])


@pytest.mark.slow
def test_options_of_blocks_are_checked_too() -> None:
    check_block(BLOCKS["bottleneck"], groups=2, squeeze=1 / 4, drop_path=0.5, shortcut="A")
    check_block(BLOCKS["preact_basic"], dropout=0.5)


def test_the_receptive_field_of_a_block_that_sees_the_whole_image_is_noted() -> None:
    class Squeezed(Residual):
        def __init__(self, in_channels: int, width: int, *, strides: int, layers: Layers, rngs: nnx.Rngs) -> None:
            branch = Both(layers.conv(in_channels, width, kernel=1, strides=strides, rngs=rngs))
            super().__init__(branch, in_channels=in_channels, layers=layers, rngs=rngs)

    class Both(nnx.Module):
        def __init__(self, conv: nnx.Conv) -> None:
            self.conv = conv

        def __call__(self, x: jax.Array) -> jax.Array:
            y = self.conv(x)
            return y + y.mean((1, 2), keepdims=True)

    (note,) = check_block(Squeezed).notes
    assert "every output pixel depends on the edge" in note


# --- custom parts -----------------------------------------------------------------------------------------------------


def test_custom_parts_pass_the_checks_and_are_named_counted_and_described() -> None:
    check_block(InvertedBlock)
    check_stem(HalvingStem)
    check_norm(channel_norm)
    with registered():
        row = ZOO["inverted8"]
        net = nnx.eval_shape(lambda: resfit.create_model("inverted8", num_classes=3, dropout=0.2, drop_path=0.2))
        assert "inverted8" in resfit.list_models("inv*")
        assert count_params(net) == row.parameters
        assert count_multiply_adds(net, (64, 64, 3)) == row.multiply_adds
        assert f"{row.parameters:,}" in str(summarize(net, (64, 64, 3)))
        with pytest.raises(SpecError, match=r"antialias for block='inverted', which does not support it"):
            resfit.create_model("inverted8", num_classes=3, antialias="blur", stem="imagenet")


@pytest.mark.slow
def test_custom_parts_are_trained_resumed_and_saved_like_those_of_resfit(tmp_path: Path) -> None:
    check_block(InvertedBlock, dropout=0.5, squeeze=1 / 4)
    with registered():
        whole = fitted(tmp_path / "whole")
        with stopped(KeyboardInterrupt):
            fitted(tmp_path / "cut", Stops(2, interrupt))
        resumed = fitted(tmp_path / "cut", resume=True)
        assert_same(values(resumed.module), values(whole.module))
        whole.save(tmp_path / "net.safetensors")
        loaded: Any = resfit.load(tmp_path / "net.safetensors").module
        assert_same(values(loaded), values(whole.module))
    with pytest.raises(SpecError, match=r"block='inverted'.*Call resfit.nets.BLOCKS.register first"):
        resfit.load(tmp_path / "net.safetensors")


def fitted(folder: Path, *callbacks: Any, **arguments: Any) -> resfit.Model:
    model = resfit.Model(resfit.create_model("inverted8", num_classes=3, dropout=0.2, drop_path=0.2))
    model.compile("sgd", learning_rate=0.05, dispatch="jit")
    callbacks = (Checkpoint(folder, every=1), *callbacks)
    model.fit(X, Y, batch_size=4, epochs=1, verbose=0, callbacks=list(callbacks), **arguments)
    return model


def test_two_custom_blocks_share_no_values_and_no_dropout() -> None:
    with registered():
        net = resfit.create_model("inverted8", num_classes=3, depths=(3,), widths=(8,), dropout=0.5)
    first, second, third = net.stage1.blocks
    for a, b in ((first, second), (second, third)):
        assert not np.array_equal(a.branch.conv2.kernel[...], b.branch.conv2.kernel[...])
        assert a.branch.dropout.rngs.key[...] != b.branch.dropout.rngs.key[...]


# --- mistakes ---------------------------------------------------------------------------------------------------------


class Branch(nnx.Module):
    """One convolution and a norm, with a choice of mistakes."""

    def __init__(self, n: int, width: int, strides: int, layers: Layers, rngs: nnx.Rngs, mistake: str) -> None:
        self.mistake = mistake
        if mistake == "strides":
            strides = 1
        self.conv = layers.conv(n, width, kernel=3, strides=strides, rngs=rngs)
        if mistake == "padding":
            self.conv.padding = "SAME"
        if mistake == "dtype":
            self.conv.dtype = jnp.dtype("float32")
        self.norm: Any = layers.norm(width, rngs=rngs)
        if mistake == "dtype":
            self.norm = nnx.BatchNorm(width, use_running_average=True, rngs=rngs)
        if mistake == "flax":
            self.norm = nnx.BatchNorm(width, rngs=rngs)
        if mistake == "unused":
            self.never = layers.conv(width, width, kernel=1, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, deterministic=True, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool | None = None) -> Any:
        evaluating = None if train is None else not train
        if self.mistake == "always trains":
            evaluating = False
        if self.mistake == "never trains":
            evaluating = True
        x = self.norm(self.conv(x), evaluating)
        if self.mistake != "dropout":
            x = self.dropout(x, deterministic=evaluating)
        return x


def with_mistake(mistake: str) -> Any:
    class Own(Residual):
        def __init__(self, in_channels: int, width: int, *, strides: int, layers: Layers, rngs: nnx.Rngs) -> None:
            if mistake == "channels":
                width = width if strides == 1 else 2 * width
            branch = Branch(in_channels, width, strides, layers, rngs, mistake)
            super().__init__(branch, in_channels=in_channels, layers=layers, rngs=rngs)

    return Own


MISTAKES = {
    "strides": r"returns \(2, 16, 16, 8\) .* Expected \(2, 8, 8, 8\).*pass strides to",
    "channels": r"returns \(2, 8, 8, 16\) .*Expected \(2, 8, 8, 8\)",
    "padding": r"is 1 pixels from pixel.*and not 'SAME'",
    "dtype": r"with layers of dtype bfloat16 it returns float32\. Expected bfloat16",
    "flax": r"a call without a mode changes \['branch.norm.mean', 'branch.norm.var'\]",
    "always trains": r"a call in evaluation \(train=False\) changes \['branch.dropout.rngs.count', 'branch.norm.mean'",
    "never trains": r"in training \(train=True\) does not change \['branch.dropout.rngs.count', 'branch.norm.mean'",
    "dropout": r"does not change \['branch.dropout.rngs.count'\]",
    "unused": r"does not depend on \['branch.never.kernel'\]",
}


def test_the_block_passes_without_a_mistake() -> None:
    check_block(with_mistake("none"))


@pytest.mark.parametrize("mistake", levels.only(["strides", "always trains"], MISTAKES))
def test_a_mistake_in_a_block_is_found(mistake: str) -> None:
    with pytest.raises(BlockCheckError, match=MISTAKES[mistake]) as raised:
        check_block(with_mistake(mistake))
    assert str(raised.value).startswith("Own: ")


def test_a_block_that_performs_its_own_addition_raises() -> None:
    class Adds(nnx.Module):
        def __init__(self, in_channels: int, width: int, *, strides: int, layers: Layers, rngs: nnx.Rngs) -> None:
            self.conv = layers.conv(in_channels, width, kernel=3, rngs=rngs)

        def __call__(self, x: jax.Array, *, train: bool | None = None) -> jax.Array:
            return x + self.conv(x)

    with pytest.raises(BlockCheckError, match=r"it is a Adds\. Expected a resfit.nets.Residual"):
        check_block(Adds)  # type: ignore[arg-type]
    with pytest.raises(BlockError, match="Own defines __call__"):

        class Own(Residual):
            def __call__(self, x: jax.Array, *, train: bool | None = None) -> jax.Array:  # type: ignore[misc]
                return x


def test_the_error_of_a_block_is_reported() -> None:
    def build(in_channels: int, width: int, *, strides: int, layers: Layers, rngs: nnx.Rngs) -> Residual:
        raise ZeroDivisionError("in the middle")

    with pytest.raises(BlockCheckError, match=r"build: 1 problem.*\n- it raised ZeroDivisionError: in the middle"):
        check_block(build)


def test_mistakes_in_a_stem_are_found() -> None:
    class Silent(HalvingStem):
        strides: ClassVar[Any] = None

    class Lying(HalvingStem):
        strides: ClassVar[tuple[int, ...]] = (2, 2)

    class Shifted(HalvingStem):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.conv.padding = ((2, 0), (2, 0))

    class Making(HalvingStem):
        def __call__(self, x: jax.Array, *, train: bool | None = None) -> jax.Array:
            self.seen = nnx.Variable(x.mean())
            return super().__call__(x, train=train)

    for stem, says in (
        (Making, r"a call creates the variables \['seen'\]"),
        (Silent, r"Silent\.strides is None\. Expected the strides of its layers"),
        (Lying, r"returns \(2, 8, 8, 16\) .* Expected \(2, 4, 4, 16\).*set `strides`"),
        (Shifted, r"1 pixels from pixel"),
    ):
        with pytest.raises(BlockCheckError, match=says):
            check_stem(stem)


def test_mistakes_in_a_norm_are_found() -> None:
    def of_the_batch(channels: int, *, zero_scale: bool, layers: Layers, rngs: nnx.Rngs) -> Any:
        class OfTheBatch(nnx.Module):
            def __call__(self, x: jax.Array, evaluating: bool | None = None) -> jax.Array:
                return (x - x.mean((0, 1, 2), keepdims=True)).astype(layers.dtype)

        return OfTheBatch()

    def born_training(channels: int, *, zero_scale: bool, layers: Layers, rngs: nnx.Rngs) -> Any:
        return nnx.BatchNorm(channels, dtype=layers.dtype, rngs=rngs)

    with pytest.raises(BlockCheckError, match=r"(?s)2 problem.*zero_scale=True.*depends on the other images"):
        check_norm(of_the_batch)
    with pytest.raises(BlockCheckError, match=r"(?s)zero_scale=True|without a mode changes \['mean', 'var'\]"):
        check_norm(born_training)
