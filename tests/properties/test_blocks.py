"""Blocks over their whole range: kinds, channels, widths, strides, sizes, batches, options.

Shapes come from abstract evaluation, so hundreds of examples cost seconds; numbers are computed for few.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from hypothesis import event, given, settings
from hypothesis import strategies as st

from resfit.errors import ShortcutShapeError
from resfit.nets import IdentityShortcut, PadShortcut, ProjectionShortcut, Residual, count_params
from resfit.nets.recompute import recomputed
from resfit.nets.spec import BLOCKS

EXPANSION = {"basic": 1, "bottleneck": 4, "bottleneck_v1": 4}


@dataclass(frozen=True)
class Case:
    """A block and an input for it."""

    kind: str
    in_channels: int
    width: int
    strides: int
    option: str
    size: tuple[int, int]
    batch: int

    @property
    def out_channels(self) -> int:
        return self.width * EXPANSION[self.kind]

    @property
    def keeps_shape(self) -> bool:
        return self.strides == 1 and self.in_channels == self.out_channels

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.batch, *self.size, self.in_channels)

    @property
    def output_shape(self) -> tuple[int, ...]:
        return (self.batch, *(math.ceil(n / self.strides) for n in self.size), self.out_channels)

    def build(self, **kwargs: Any) -> Residual:
        build = BLOCKS[self.kind]
        return build(
            self.in_channels, self.width, strides=self.strides, shortcut=self.option, rngs=nnx.Rngs(0), **kwargs
        )


@st.composite
def cases(draw: st.DrawFn, *, pixels: int = 20, strides: int = 4) -> Case:
    kind = draw(st.sampled_from(sorted(BLOCKS)))
    width = draw(st.integers(1, 6))
    # Half of the time the channels that an identity needs: among arbitrary ones they are rare.
    in_channels = draw(st.just(width * EXPANSION[kind]) | st.integers(1, width * EXPANSION[kind]))
    return Case(
        kind,
        in_channels,
        width,
        draw(st.integers(1, strides)),
        draw(st.sampled_from(["auto", "A", "B"])),
        draw(st.tuples(st.integers(1, pixels), st.integers(1, pixels))),
        draw(st.integers(1, 5)),
    )


def call(block: nnx.Module, x: Any, train: bool | None) -> Any:
    return block(x, train=train)


@given(cases(), st.booleans())
def test_the_output_has_the_formulas_shape(case: Case, train: bool) -> None:
    block = nnx.eval_shape(case.build)
    x = jax.ShapeDtypeStruct(case.input_shape, jnp.float32)
    assert nnx.eval_shape(lambda block, x: call(block, x, train), block, x).shape == case.output_shape


@given(cases())
def test_the_shortcut_is_the_identity_exactly_when_shapes_agree(case: Case) -> None:
    block = nnx.eval_shape(case.build)
    event("identity" if case.keeps_shape else "other")
    other = PadShortcut if case.option == "A" else ProjectionShortcut
    assert type(block.shortcut) is (IdentityShortcut if case.keeps_shape else other)


@given(cases())
def test_the_parameters_are_as_many_as_the_formula_says(case: Case) -> None:
    a, w, out = case.in_channels, case.width, case.out_channels
    branch = 9 * a * w + 9 * w * w + 4 * w if case.kind == "basic" else a * w + 9 * w * w + w * out + 4 * w + 2 * out
    projection = 0 if case.keeps_shape or case.option == "A" else a * out + 2 * out
    assert count_params(nnx.eval_shape(case.build)) == branch + projection


def with_numbers(block: Residual) -> Residual:
    """Fills a block that was built abstractly, without compiling an initialiser for each of its shapes."""
    generator = np.random.default_rng(0)
    constants = {"mean": np.zeros, "bias": np.zeros, "var": np.ones, "scale": np.ones}
    for path, node in nnx.iter_graph(block):
        if isinstance(node, nnx.Variable):
            shape = node.get_value().shape
            node.set_value(jnp.asarray(constants.get(str(path[-1]), generator.standard_normal)(shape), jnp.float32))
    return block


@settings(max_examples=6)
@given(cases(pixels=4, strides=2), st.booleans())
def test_with_the_last_scale_zero_a_block_is_its_activated_shortcut(case: Case, train: bool) -> None:
    block = with_numbers(nnx.eval_shape(case.build))
    last = block.branch.norm2 if case.kind == "basic" else block.branch.norm3
    last.scale.set_value(0 * last.scale[...])

    @nnx.jit
    def values(block: Residual, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return call(nnx.clone(block), x, train), nnx.relu(call(nnx.clone(block.shortcut), x, train))

    output, shortcut = values(block, jax.random.normal(jax.random.key(0), case.input_shape))
    np.testing.assert_allclose(output, shortcut, atol=1e-6)


@settings(max_examples=6)
@given(cases(pixels=4, strides=2))
def test_statistics_move_in_training_and_only_there(case: Case) -> None:
    def variances(block: nnx.Module) -> list[jax.Array]:
        return [m.var[...] for _, m in nnx.iter_modules(block) if isinstance(m, nnx.BatchNorm)]

    @nnx.jit
    def histories(block: Residual, x: jax.Array) -> list[list[jax.Array]]:
        history = [variances(block)]
        for train in (False, None, True):
            call(block, x, train)
            history.append(variances(block))
        return history

    block = with_numbers(nnx.eval_shape(case.build))
    new, evaluated, bare, trained = histories(block, jax.random.normal(jax.random.key(0), case.input_shape))
    assert len(new) == 2 + (case.kind != "basic") + (not case.keeps_shape and case.option != "A")
    assert all(map(np.array_equal, new, evaluated))
    assert all(map(np.array_equal, new, bare))
    assert not any(map(np.array_equal, new, trained))


@settings(max_examples=6)
@given(cases(pixels=4, strides=2), st.booleans())
def test_a_block_computed_again_for_its_gradient_is_the_same_block(case: Case, train: bool) -> None:
    @nnx.jit
    def both(block: Residual, x: jax.Array) -> list[Any]:
        def run(again: bool, x: jax.Array) -> Any:
            copy = nnx.clone(block)
            output = recomputed(lambda block, x: call(block, x, train), copy, x) if again else call(copy, x, train)
            return (output**2).sum(), (output, nnx.as_pure(nnx.state(copy, nnx.BatchStat)))

        return [jax.value_and_grad(functools.partial(run, again), has_aux=True)(x) for again in (False, True)]

    block = with_numbers(nnx.eval_shape(case.build))
    plain, again = both(block, jax.random.normal(jax.random.key(0), case.input_shape))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), again, plain)


@dataclass(frozen=True)
class Joint:
    """A convolution for a branch, and what is to be its shortcut."""

    in_channels: int
    kernel: int
    strides: int
    padding: tuple[int, int]
    out_channels: int
    expected_channels: int  # what the block is told its input has
    shortcut: str | tuple[int, int, int]  # an option, or a 1x1 convolution: channels in and out, stride

    @property
    def fits(self) -> bool:
        """Whether branch and shortcut agree on every image, by arithmetic.

        floor((n + padding - kernel) / s) equals a 1x1 convolution's floor((n - 1) / t) for all n only if s = t and
        padding = kernel - 1.
        """
        if self.in_channels != self.expected_channels or sum(self.padding) != self.kernel - 1:
            return False
        if isinstance(self.shortcut, tuple):
            return self.shortcut == (self.in_channels, self.out_channels, self.strides)
        same = self.strides == 1 and self.in_channels == self.out_channels
        fits = {"identity": same, "A": same or self.out_channels >= self.in_channels, "auto": True}
        return fits[self.shortcut]

    def build(self) -> Residual:
        rngs = nnx.Rngs(0)
        branch = nnx.Conv(
            self.in_channels,
            self.out_channels,
            (self.kernel, self.kernel),
            self.strides,
            padding=(self.padding, self.padding),
            rngs=rngs,
        )
        shortcut: Any = self.shortcut
        if isinstance(shortcut, tuple):
            channels_in, channels_out, stride = shortcut
            shortcut = nnx.Conv(channels_in, channels_out, (1, 1), stride, padding=0, rngs=rngs)
        return Residual(branch, shortcut, in_channels=self.expected_channels, rngs=rngs)


@st.composite
def joints(draw: st.DrawFn) -> Joint:
    few, strides = st.integers(1, 3), st.integers(1, 6)
    channels, kernel, out, step = draw(few), draw(st.integers(1, 5)), draw(few), draw(strides)
    low = draw(st.integers(0, kernel - 1))
    padding = draw(st.just((low, kernel - 1 - low)) | st.tuples(st.integers(0, 4), st.integers(0, 4)))
    own = st.just((channels, out, step)) | st.tuples(few, few, strides)
    shortcut = draw(st.sampled_from(["auto", "identity", "A"]) | own)
    return Joint(channels, kernel, step, padding, out, draw(st.just(channels) | few), shortcut)


@settings(max_examples=300)
@given(joints(), st.tuples(st.integers(6, 40), st.integers(6, 40)))
def test_every_inconsistent_shape_is_refused_when_built_and_nothing_else_is(
    joint: Joint, size: tuple[int, int]
) -> None:
    event("fits" if joint.fits else "does not fit")
    try:
        block = nnx.eval_shape(joint.build)
    except ShortcutShapeError:
        assert not joint.fits
    else:
        assert joint.fits
        x = jax.ShapeDtypeStruct((2, *size, joint.in_channels), jnp.float32)
        expected = (2, *(math.ceil(n / joint.strides) for n in size), joint.out_channels)
        assert nnx.eval_shape(lambda block, x: block(x), block, x).shape == expected
