"""Residual: one addition, one activation after it, and a shortcut that is checked when the block is built."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from einops import rearrange
from flax import nnx

from resfit.errors import BlockError, ShortcutShapeError
from resfit.nets import (
    BasicBlock,
    BottleneckBlock,
    IdentityShortcut,
    Layers,
    PadShortcut,
    ProjectionShortcut,
    Residual,
)
from tests.helpers import call

X = np.random.default_rng(0).normal(size=(2, 6, 7, 4)).astype(np.float32)


def conv(in_channels: int, out_channels: int, kernel: int = 3, strides: Any = 1, padding: Any = None) -> nnx.Conv:
    padding = kernel // 2 if padding is None else padding
    return nnx.Conv(in_channels, out_channels, (kernel, kernel), strides, padding=padding, rngs=nnx.Rngs(1))


def residual(branch: nnx.Module, shortcut: Any = "auto", **kwargs: Any) -> Residual:
    return Residual(branch, shortcut, in_channels=4, rngs=nnx.Rngs(2), **kwargs)


class ChannelsFirst(nnx.Module):
    def __call__(self, x: jax.Array) -> jax.Array:
        return rearrange(x, "n h w c -> n c h w")


class Flatten(nnx.Module):
    def __call__(self, x: jax.Array) -> jax.Array:
        return rearrange(x, "n h w c -> n (h w c)")


class Two(nnx.Module):
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return x, x


class Broken(nnx.Module):
    def __call__(self, x: jax.Array) -> jax.Array:
        return self.there_is_no_such_layer(x)


def test_the_activation_follows_the_addition() -> None:
    branch = conv(4, 4)
    expected = np.maximum(np.asarray(call(branch, X)) + X, 0)
    np.testing.assert_array_equal(call(residual(branch), X), expected)
    assert (expected == 0).any()
    assert (np.asarray(call(residual(branch, activation=lambda x: x), X)) < 0).any()


@pytest.mark.parametrize(
    ("make_branch", "shortcut", "kind", "strides"),
    [
        (lambda: conv(4, 4), "auto", IdentityShortcut, None),
        (lambda: conv(4, 4), "identity", IdentityShortcut, None),
        (lambda: conv(4, 4), "A", IdentityShortcut, None),
        (lambda: conv(4, 8), "auto", ProjectionShortcut, (1, 1)),
        (lambda: conv(4, 4, strides=2), "auto", ProjectionShortcut, (2, 2)),
        (lambda: conv(4, 2, strides=3), "B", ProjectionShortcut, (3, 3)),
        (lambda: conv(4, 8, strides=(2, 1)), "auto", ProjectionShortcut, (2, 1)),
        (lambda: conv(4, 8, strides=2), "A", PadShortcut, (2, 2)),
    ],
)
def test_the_shortcut_follows_from_the_shapes(
    make_branch: Callable[[], nnx.Module], shortcut: str, kind: type, strides: Any
) -> None:
    branch = make_branch()
    block = residual(branch, shortcut)
    assert type(block.shortcut) is kind
    if kind is ProjectionShortcut:
        assert block.shortcut.conv.strides == strides
    found, expected = (nnx.eval_shape(lambda module, x: module(x), module, X).shape for module in (block, branch))
    assert found == expected
    assert block.out_channels == expected[-1]


MISFITS: dict[str, Callable[[], tuple[nnx.Module, Any]]] = {
    "identity across channels": lambda: (conv(4, 8), "identity"),
    "identity across strides": lambda: (conv(4, 4, strides=2), "identity"),
    "option A takes no channels away": lambda: (conv(4, 2), "A"),
    "a window without padding": lambda: (conv(4, 4, padding="VALID"), "auto"),
    "a size rounded down": lambda: (conv(4, 4, kernel=2, strides=2, padding=0), "auto"),
    "one size of three rounded up": lambda: (conv(4, 4, kernel=2, strides=3, padding=1), "auto"),
    "a branch for other channels": lambda: (conv(5, 4), "auto"),
    "channels first": lambda: (ChannelsFirst(), "auto"),
    "no image": lambda: (Flatten(), "auto"),
    "no array": lambda: (Two(), "auto"),
    "a shortcut of one's own with another stride": lambda: (conv(4, 8, strides=2), conv(4, 8, kernel=1)),
    "a shortcut of one's own for other channels": lambda: (conv(4, 4), conv(5, 4)),
}


@pytest.mark.parametrize("parts", MISFITS.values(), ids=MISFITS)
def test_branch_and_shortcut_of_different_shapes_raise_when_built(parts: Callable[[], tuple[nnx.Module, Any]]) -> None:
    branch, shortcut = parts()
    with pytest.raises(ShortcutShapeError, match=r"Residual.*Expected") as raised:
        residual(branch, shortcut)
    assert type(raised.value) is ShortcutShapeError


def test_the_shape_error_names_block_shapes_and_remedy() -> None:
    with pytest.raises(ShortcutShapeError) as raised:
        BasicBlock(4, 8, strides=2, shortcut="identity", rngs=nnx.Rngs(0))
    for expected in ("BasicBlock", "(1, 32, 33, 8)", "(1, 64, 65, 4)", "IdentityShortcut", "shortcut='auto'"):
        assert expected in str(raised.value)


def test_a_projection_without_rngs_raises_and_an_identity_needs_none() -> None:
    Residual(conv(4, 4), in_channels=4)
    Residual(conv(4, 8), "A", in_channels=4)
    with pytest.raises(ShortcutShapeError, match=r"rngs=nnx\.Rngs"):
        Residual(conv(4, 8), in_channels=4)


def test_an_error_inside_a_branch_is_raised_unchanged() -> None:
    with pytest.raises(AttributeError, match="there_is_no_such_layer"):
        residual(Broken())


def test_unknown_shortcuts_and_functions_raise() -> None:
    with pytest.raises(BlockError, match=r"'C'.*'auto'"):
        residual(conv(4, 4), "C")
    with pytest.raises(BlockError, match=r"function.*nnx\.Sequential"):
        residual(nnx.relu)
    with pytest.raises(BlockError, match="shortcut"):
        residual(conv(4, 4), nnx.relu)


def test_a_subclass_cannot_bypass_the_addition() -> None:
    with pytest.raises(BlockError, match="Early defines __call__"):

        class Early(Residual):
            def __call__(self, x: jax.Array, *, train: bool | None = None) -> jax.Array:
                return x + self.activation(self.branch(x))


def test_a_subclass_defines_only_its_branch() -> None:
    class Pointwise(Residual):
        def __init__(self, channels: int, *, rngs: nnx.Rngs) -> None:
            super().__init__(nnx.Conv(channels, channels, (1, 1), rngs=rngs), in_channels=channels, rngs=rngs)

    block = Pointwise(4, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(call(block, X), np.maximum(X + np.asarray(call(block.branch, X)), 0))


def test_building_a_block_changes_no_statistic_of_the_branch() -> None:
    branch = nnx.Sequential(conv(4, 4), nnx.BatchNorm(4, rngs=nnx.Rngs(0)))  # flax's norm starts in training mode
    residual(branch)
    norm = branch.layers[1]
    assert not norm.use_running_average
    np.testing.assert_array_equal(norm.mean[...], 0)


# Custom branches take their mode from flags, from a keyword, or from a keyword that reaches only one layer.


class ByFlags(nnx.Module):
    def __init__(self) -> None:
        self.norm = nnx.BatchNorm(4, rngs=nnx.Rngs(0))
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.dropout(self.norm(x))


class ByTrain(ByFlags):
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return self.dropout(self.norm(x, use_running_average=not train), deterministic=not train)


class ByDeterministic(ByFlags):
    def __call__(self, x: jax.Array, deterministic: bool = False) -> jax.Array:
        return self.dropout(self.norm(x), deterministic=deterministic)


class ByAttribute(nnx.Module):
    """A layer with a flag that `nnx.view` does not set."""

    def __init__(self) -> None:
        self.norm = nnx.BatchNorm(4, use_running_average=None, rngs=nnx.Rngs(0))
        self.deterministic = False

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(x, use_running_average=self.deterministic)


@pytest.mark.parametrize("kind", [ByFlags, ByTrain, ByDeterministic, ByAttribute])
def test_train_decides_for_every_layer_of_a_branch(kind: type[Any]) -> None:
    branch = kind()
    flags = {path: vars(module).copy() for path, module in nnx.iter_modules(branch)}
    block = residual(branch)
    first, second = call(block, X, train=False), call(block, X, train=False)
    np.testing.assert_array_equal(first, second)  # no dropout
    np.testing.assert_array_equal(branch.norm.mean[...], 0)  # no statistic changed
    trained = call(block, X, train=True)
    assert (np.asarray(branch.norm.mean[...]) != 0).all()
    assert not np.allclose(trained, first)
    for path, module in nnx.iter_modules(branch):  # the flags of the branch are unchanged
        for name in ("use_running_average", "deterministic"):
            assert vars(module).get(name) == flags[path].get(name)


def test_a_call_without_mode_follows_the_flags_of_the_branch() -> None:
    branch = ByFlags()
    block = residual(branch)
    block.eval()
    call(block, X)
    np.testing.assert_array_equal(branch.norm.mean[...], 0)
    block.train()
    call(block, X)
    assert (np.asarray(branch.norm.mean[...]) != 0).all()


def test_train_reaches_the_norms_of_a_branch_and_of_a_projection() -> None:
    block = BottleneckBlock(4, 4, rngs=nnx.Rngs(0))
    means = [norm.mean for norm in (block.shortcut.norm, block.branch.norm1, block.branch.norm2)]
    call(block, X, train=False)
    assert not any(np.asarray(mean[...]).any() for mean in means)
    call(block, X, train=True)
    assert all(np.asarray(mean[...]).any() for mean in means)


def test_statistics_change_under_jit_and_grad() -> None:
    block = BasicBlock(4, 8, rngs=nnx.Rngs(0), layers=Layers(unbiased_variance=True))
    nnx.jit(nnx.grad(lambda block, x: block(x, train=True).sum()))(block, X)
    for norm in (block.branch.norm1, block.branch.norm2, block.shortcut.norm):
        assert (np.asarray(norm.mean[...]) != 0).any()


def test_a_branch_with_an_attribute_without_a_hash_is_checked_too() -> None:
    class Marked(nnx.Module):
        def __init__(self, out_channels: int) -> None:
            self.names = {"a", "b"}
            self.conv = conv(4, out_channels)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.conv(x)

    with pytest.raises(TypeError, match="unhashable"):
        hash(nnx.graphdef(Marked(4)))
    assert residual(Marked(4)).out_channels == 4
    with pytest.raises(ShortcutShapeError):
        residual(Marked(8), "identity")


def test_equal_branches_are_evaluated_once_and_others_again() -> None:
    calls = []

    class Counted(nnx.Module):
        def __init__(self, strides: int) -> None:
            self.conv = conv(4, 4, strides=strides)

        def __call__(self, x: jax.Array) -> jax.Array:
            calls.append(x.shape)
            return self.conv(x)

    shortcuts = [type(residual(Counted(strides)).shortcut) for strides in (1, 1, 2)]
    assert shortcuts == [IdentityShortcut, IdentityShortcut, ProjectionShortcut]
    assert len(calls) == 4  # two images for each kind of branch
