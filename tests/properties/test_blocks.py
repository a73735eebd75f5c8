"""Blocks over the full range of kinds, channels, widths, strides, sizes, batches and options.

Shapes come from abstract evaluation, so hundreds of examples take seconds. Values are computed for a few.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import event, given
from hypothesis import strategies as st

from resfit.errors import ShortcutShapeError, SpecError
from resfit.nets import (
    SHORTCUTS,
    ConvShortcut,
    IdentityShortcut,
    Layers,
    PadShortcut,
    PooledConvShortcut,
    PooledShortcut,
    ProjectionShortcut,
    Residual,
    WideProjectionShortcut,
    count_params,
)
from resfit.nets.recompute import recomputed
from resfit.nets.registry import BLOCKS
from tests.helpers import fewer_examples

KINDS = tuple(BLOCKS)  # the blocks of resfit; other tests can register more
EXPANSION = {
    "basic": 1,
    "bottleneck": 4,
    "bottleneck_v1": 4,
    "bottleneck_senet": 4,
    "preact_basic": 1,
    "preact_bottleneck": 4,
}
PREACTIVATED = {"preact_basic", "preact_bottleneck"}
PROJECTIONS = {
    "auto": ProjectionShortcut,
    "A": PadShortcut,
    "B": ProjectionShortcut,
    "B3": WideProjectionShortcut,
    "D": PooledShortcut,
    "conv": ConvShortcut,
    "D_conv": PooledConvShortcut,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dilated": {"dilation": 2},
    "first of a dilated stage": {"dilation": 4, "first_dilation": 2},
    "squeezed": {"squeeze": 1 / 4},
    "attentive": {"squeeze": "eca"},
    "stochastic depth": {"drop_path": 0.5},
}
BLURRED: dict[str, dict[str, Any]] = {
    "blurred": {"antialias": "blur"},
    "blurred, dilated": {"antialias": "blur", "dilation": 2, "first_dilation": 1},
    "averaged": {"antialias": "avg"},
}
GROUPED: dict[str, dict[str, Any]] = {
    "two groups": {"groups": 2, "width_per_group": 64},
    "wide": {"width_per_group": 128},
}
OPTIONS_OF = {
    "basic": OPTIONS | BLURRED,
    "bottleneck": OPTIONS | BLURRED | GROUPED,
    "bottleneck_v1": OPTIONS | GROUPED,
    "bottleneck_senet": OPTIONS | {"wide": GROUPED["wide"]},
    "preact_basic": OPTIONS | {"dropout": {"dropout": 0.5}},
    "preact_bottleneck": OPTIONS | GROUPED,
}


@dataclass(frozen=True)
class Case:
    """A block and an input for it."""

    kind: str
    in_channels: int
    width: int
    strides: int
    shortcut: str
    option: str
    size: tuple[int, int]
    batch: int

    @property
    def asked(self) -> dict[str, Any]:
        return OPTIONS_OF[self.kind][self.option]

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
        arguments = {"strides": self.strides, "shortcut": self.shortcut, "rngs": nnx.Rngs(0), **self.asked, **kwargs}
        return build(self.in_channels, self.width, **arguments)


@st.composite
def cases(draw: st.DrawFn, *, kinds: tuple[str, ...] = KINDS, pixels: int = 20, strides: int = 4) -> Case:
    kind = draw(st.sampled_from(kinds))
    width = draw(st.integers(1, 6))
    # Half of the cases have the channels of an identity, which are rare among arbitrary ones.
    in_channels = draw(st.just(width * EXPANSION[kind]) | st.integers(1, width * EXPANSION[kind]))
    shortcut = draw(st.sampled_from(sorted(PROJECTIONS)))
    option = draw(st.sampled_from(sorted(OPTIONS_OF[kind])))
    sides = st.integers(2 if option in BLURRED else 1, pixels)  # a single pixel has no edge to reflect
    return Case(
        kind,
        in_channels,
        width,
        draw(st.integers(1, min(strides, 2) if shortcut in ("D", "D_conv") or option == "averaged" else strides)),
        shortcut,
        option,
        draw(st.tuples(sides, sides)),
        draw(st.integers(1, 5)),
    )


def call(block: nnx.Module, x: Any, train: bool | None) -> Any:
    return block(x, train=train)


def test_all_blocks_of_resfit_are_tested() -> None:
    assert set(KINDS) >= set(EXPANSION)
    assert set(PROJECTIONS) == {"auto", *SHORTCUTS}


def parameters(case: Case) -> int:
    """Return the number of parameters by arithmetic."""
    a, w, out = case.in_channels, case.width, case.out_channels
    groups = case.asked.get("groups", 1)
    inner = w * case.asked.get("width_per_group", 64) * groups // 64
    grouped = 9 * inner * inner // groups
    narrow = -(-inner // 2)  # of SENet-154
    branch = {
        "basic": 9 * a * w + 9 * w * w + 4 * w,
        "preact_basic": 2 * a + 9 * a * w + 2 * w + 9 * w * w,
        "bottleneck": a * inner + grouped + inner * out + 4 * inner + 2 * out,
        "bottleneck_senet": a * narrow + 9 * narrow * inner // groups + inner * out + 2 * narrow + 2 * inner + 2 * out,
        "preact_bottleneck": 2 * a + a * inner + 2 * inner + grouped + 2 * inner + inner * out,
    }[case.kind.removesuffix("_v1")]
    has_norm = case.shortcut not in ("conv", "D_conv")
    wide = case.shortcut == "B3" and (case.strides > 1 or "dilation" in case.asked)
    projection = 0 if case.keeps_shape or case.shortcut == "A" else (9 if wide else 1) * a * out + 2 * out * has_norm
    squeezed = max(8, (out + 16) // 32 * 8)  # a fourth of the channels, to the next multiple of eight
    ratio = case.asked.get("squeeze")
    excitation = 3 if ratio == "eca" else 2 * out * squeezed + squeezed + out if ratio else 0
    return branch + projection + excitation


@pytest.mark.representatives("bottleneck", "preact_basic")
@pytest.mark.parametrize("kind", KINDS)
@fewer_examples(2)
@given(data=st.data(), train=st.booleans())
def test_output_shape_shortcut_and_parameters_equal_the_formulas(kind: str, data: st.DataObject, train: bool) -> None:
    case = data.draw(cases(kinds=(kind,)))
    event("identity" if case.keeps_shape else "other")
    block = nnx.eval_shape(case.build)
    assert type(block.shortcut) is (IdentityShortcut if case.keeps_shape else PROJECTIONS[case.shortcut])
    assert count_params(block) == parameters(case)
    x = jax.ShapeDtypeStruct(case.input_shape, jnp.float32)
    assert nnx.eval_shape(lambda block, x: call(block, x, train), block, x).shape == case.output_shape


def with_numbers(block: Residual) -> Residual:
    """Fill a block that was built abstractly, without compiling an initializer for each shape."""
    generator = np.random.default_rng(0)
    constants = {"mean": np.zeros, "bias": np.zeros, "var": np.ones, "scale": np.ones}
    for path, node in nnx.iter_graph(block):
        if isinstance(node, nnx.RngKey):
            node.set_value(jax.random.key(0))
        elif isinstance(node, nnx.RngCount):
            node.set_value(jnp.uint32(0))
        elif isinstance(node, nnx.Variable):
            shape = node.get_value().shape
            node.set_value(jnp.asarray(constants.get(str(path[-1]), generator.standard_normal)(shape), jnp.float32))
    return block


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_has_no_stride_dilation_or_groups_by_default(kind: str) -> None:
    spelled_out: dict[str, Any] = {"strides": 1, "dilation": 1}
    if EXPANSION[kind] > 1:
        spelled_out |= {"groups": 1, "width_per_group": 64}
    default, same = (
        nnx.eval_shape(lambda arguments=arguments: BLOCKS[kind](8, 8, **arguments, rngs=nnx.Rngs(0)))
        for arguments in ({}, spelled_out)
    )
    assert nnx.graphdef(default) == nnx.graphdef(same)


def last_parameter(block: Residual) -> nnx.Variable[Any]:
    """Return the variable that starts at zero: the last scale, or the last kernel if no norm follows it."""
    branch = block.branch
    if block.before is not None:
        return (branch.conv3 if hasattr(branch, "conv3") else branch.conv2).kernel
    return (branch.norm3 if hasattr(branch, "norm3") else branch.norm2).scale


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_parameter_starts_at_zero_unless_disabled(kind: str) -> None:
    for zero in (True, False):
        block = BLOCKS[kind](4, 4, strides=1, zero_init_last=zero, rngs=nnx.Rngs(0))
        zeros = [
            variable
            for path, variable in nnx.to_flat_state(nnx.state(block, nnx.Param))
            if path[-1] != "bias" and not np.any(variable.get_raw_value())
        ]
        expected = [last_parameter(block).get_raw_value()] if zero else []
        assert [variable.get_raw_value() is value for variable, value in zip(zeros, expected, strict=True)] == [
            True
        ] * len(expected)


@pytest.mark.representatives("basic", "preact_bottleneck")
@pytest.mark.parametrize("kind", KINDS)
@fewer_examples(20)
@given(data=st.data(), train=st.booleans())
def test_with_a_last_parameter_of_zero_a_block_is_its_activated_shortcut(
    kind: str, data: st.DataObject, train: bool
) -> None:
    case = data.draw(cases(kinds=(kind,), pixels=4, strides=2))
    block = with_numbers(nnx.eval_shape(case.build))
    last = last_parameter(block)
    last.set_value(0 * last[...])

    @nnx.jit
    def values(block: Residual, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        copy = nnx.clone(block)
        if block.before is None:
            return call(copy, x, train), nnx.relu(call(nnx.clone(block.shortcut), x, train))
        # The identity receives x itself; a projection receives the input of the branch. No activation follows the sum.
        seen = x if case.keeps_shape else call(nnx.clone(block.before), x, train)
        return call(copy, x, train), call(nnx.clone(block.shortcut), seen, train)

    output, shortcut = values(block, jax.random.normal(jax.random.key(0), case.input_shape))
    np.testing.assert_allclose(output, shortcut, atol=1e-6)


@pytest.mark.representatives("preact_basic")
@pytest.mark.parametrize("kind", sorted(PREACTIVATED))
def test_a_projection_of_the_input_before_the_activation_is_detected(kind: str) -> None:
    """The negative control of the test above."""
    block = with_numbers(nnx.eval_shape(Case(kind, 3, 2, 2, "conv", "plain", (4, 4), 2).build))
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))

    @nnx.jit
    def both(block: Residual, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return block.shortcut(block.before(x, train=False)), block.shortcut(x)

    seen, unseen = both(block, x)
    assert not np.allclose(seen, unseen, atol=1e-2)
    kept = with_numbers(nnx.eval_shape(Case(kind, 2 * EXPANSION[kind], 2, 1, "conv", "plain", (4, 4), 2).build))
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 2 * EXPANSION[kind]))
    last = last_parameter(kept)
    last.set_value(0 * last[...])
    output, before = nnx.jit(lambda block, x: (block(x, train=False), block.before(x, train=False)))(kept, x)
    np.testing.assert_array_equal(output, x)  # also for negative values
    assert not np.allclose(before, x, atol=1e-2)


def norms(case: Case) -> int:
    """Return the number of norms in a block."""
    branch = 3 if "bottleneck" in case.kind else 2
    return branch + (not case.keeps_shape and case.shortcut not in ("A", "conv", "D_conv"))


@pytest.mark.representatives("basic", "preact_bottleneck")
@pytest.mark.parametrize("kind", KINDS)
@fewer_examples(20)
@given(data=st.data())
def test_statistics_change_in_training_only(kind: str, data: st.DataObject) -> None:
    case = data.draw(cases(kinds=(kind,), pixels=4, strides=2))

    def variances(block: nnx.Module) -> list[jax.Array]:
        return [m.var[...] for _, m in nnx.iter_modules(block) if isinstance(m, nnx.BatchNorm)]

    @nnx.jit
    def histories(block: Residual, x: jax.Array) -> list[list[jax.Array]]:
        history = [variances(block)]
        for train in (False, None, True):
            call(block, x, train)
            history.append(variances(block))
        block.train()  # a bare call follows the flags
        call(block, x, None)
        return [*history, variances(block)]

    block = with_numbers(nnx.eval_shape(case.build))
    new, evaluated, bare, trained, trained_by_flags = histories(
        block, jax.random.normal(jax.random.key(0), case.input_shape)
    )
    assert len(new) == norms(case)
    assert all(map(np.array_equal, new, evaluated))
    assert all(map(np.array_equal, new, bare))
    assert not any(map(np.array_equal, new, trained))
    assert not any(map(np.array_equal, trained, trained_by_flags))


@pytest.mark.representatives("bottleneck")
@pytest.mark.parametrize("kind", KINDS)
@fewer_examples(20)
@given(data=st.data(), train=st.booleans())
def test_a_recomputed_block_equals_the_original_block(kind: str, data: st.DataObject, train: bool) -> None:
    case = data.draw(cases(kinds=(kind,), pixels=4, strides=2))

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


REFUSED: dict[str, tuple[str, dict[str, Any], type[Exception], str]] = {
    "a bottleneck of no channels": (
        "bottleneck",
        {"width_per_group": 1},
        SpecError,
        "0.0625 channels.*width of 64 or more",
    ),
    "blur behind a strided 1x1": ("bottleneck_v1", {"antialias": "blur"}, SpecError, "stride_on='1x1'"),
    "an anti-aliasing average over three pixels": (
        "basic",
        {"antialias": "avg", "strides": 3},
        SpecError,
        "antialias='avg' and strides=3.*Expected",
    ),
    "an unknown anti-aliasing": ("basic", {"antialias": "gauss"}, SpecError, "Expected one of .None, 'avg', 'blur'."),
    "an average over three pixels": ("basic", {"shortcut": "D", "strides": 3}, ShortcutShapeError, "Expected 1 or 2"),
}


@pytest.mark.parametrize(("kind", "asked", "error", "says"), REFUSED.values(), ids=REFUSED)
def test_an_invalid_option_of_a_block_raises(kind: str, asked: dict[str, Any], error: Any, says: str) -> None:
    with pytest.raises(error, match=says):
        BLOCKS[kind](4, 4, rngs=nnx.Rngs(0), **asked)


def test_groups_must_divide_the_input_and_output_channels() -> None:
    for channels in ((6, 8), (8, 6)):
        with pytest.raises(SpecError, match=rf"from {channels[0]} to {channels[1]} channels received groups=4"):
            Layers().conv(*channels, kernel=3, groups=4, rngs=nnx.Rngs(0))


def test_a_block_applies_its_dilation() -> None:
    """The first block of a stage keeps the dilation of the previous stage, as in timm and torchvision."""
    for kind in KINDS:
        branch = BLOCKS[kind](8, 8, dilation=4, first_dilation=2, rngs=nnx.Rngs(0)).branch
        found = [
            conv.kernel_dilation
            for _, conv in nnx.iter_modules(branch)
            if isinstance(conv, nnx.Conv) and conv.kernel_size == (3, 3)
        ]
        assert sorted(np.broadcast_to(d, 2).tolist() for d in found) == (
            [[2, 2], [4, 4]] if "basic" in kind else [[2, 2]]
        )
        conv = branch.conv1 if "basic" in kind else branch.conv2
        assert np.broadcast_to(conv.kernel_dilation, 2).tolist() == [2, 2]


@dataclass(frozen=True)
class Joint:
    """A convolution as a branch, with a candidate for its shortcut."""

    in_channels: int
    kernel: int
    strides: int
    padding: tuple[int, int]
    out_channels: int
    expected_channels: int  # the input channels that the block is built for
    shortcut: str | tuple[int, int, int]  # an option, or a 1x1 convolution: channels in and out, stride

    @property
    def fits(self) -> bool:
        """Return True if branch and shortcut agree for every image, by arithmetic.

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


@given(joints(), st.tuples(st.integers(6, 40), st.integers(6, 40)))
def test_every_inconsistent_shape_and_no_other_raises_when_built(joint: Joint, size: tuple[int, int]) -> None:
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
