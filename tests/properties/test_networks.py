"""Whole networks: rows are independent in evaluation, and gradients reach the first layer of the deepest networks."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import event, given
from hypothesis import strategies as st

from resfit.errors import ShortcutShapeError, SpecError
from resfit.nets import BLOCKS, NORMS, SHORTCUTS, STEMS, ResNet, ResNetSpec, count_multiply_adds
from tests.helpers import fewer_examples

PARTS = {"block": tuple(BLOCKS), "stem": tuple(STEMS), "shortcut": tuple(SHORTCUTS), "norm": tuple(NORMS)}
UNCOMMON: dict[str, st.SearchStrategy[Any]] = {
    "groups": st.just(2),
    "width_per_group": st.sampled_from([4, 128]),
    "squeeze": st.sampled_from([1 / 16, 1.0]),
    "antialias": st.sampled_from(["avg", "blur"]),
    "output_stride": st.sampled_from([1, 2, 4, 8]),
    "dropout": st.just(0.5),
    "head_dropout": st.just(0.5),
    "drop_path": st.just(0.5),
    "remat": st.sampled_from(["block", "stage"]),
    "zero_init_last": st.just(False),
    "stem_width": st.just(8),
    "dtype": st.just("bfloat16"),
    "unbiased_variance": st.just(True),
}


@st.composite
def fields(draw: st.DrawFn) -> dict[str, Any]:
    """Draw the fields of a spec, including combinations that are not allowed."""
    stages = draw(st.integers(1, 3))
    return {
        "depths": draw(st.lists(st.integers(1, 3), min_size=stages, max_size=stages)),
        "widths": sorted(draw(st.lists(st.sampled_from([8, 16, 32]), min_size=stages, max_size=stages))),
        "num_classes": draw(st.integers(1, 4)),
        "in_channels": draw(st.integers(1, 4)),
        **{name: draw(st.sampled_from(parts)) for name, parts in PARTS.items()},
        **{name: draw(UNCOMMON[name]) for name in draw(st.sets(st.sampled_from(sorted(UNCOMMON)), max_size=4))},
    }


def why_not(fields: dict[str, Any]) -> str | None:
    """Return the reason why these fields cannot be combined, by the documentation alone."""
    block, stem = fields["block"], STEMS[fields["stem"]]
    if {"groups", "width_per_group"} & set(fields) and "bottleneck" not in block:
        return "only bottlenecks have groups"
    if fields.get("width_per_group") == 4 and fields["widths"][0] < 16:
        return "no channels are left"
    if fields.get("antialias") and block not in ("basic", "bottleneck", "bottleneck_senet"):
        return "the block cannot blur"
    if fields.get("antialias") and fields["stem"] not in ("imagenet", "deep", "deep_tiered", "cifar", "cifar_conv"):
        return "the stem cannot blur"
    if fields.get("dropout") and block != "preact_basic":
        return "the block has no dropout"
    stride = math.prod(stem.strides)
    if "output_stride" in fields and not stride <= fields["output_stride"] <= stride * 2 ** (len(fields["depths"]) - 1):
        return "the stages do not reach that stride"
    if fields["shortcut"] == "A" and fields.get("stem_width", 0) > fields["widths"][0] * (1 + 3 * (block != "basic")):
        return "zeros take no channels away"
    return None


@fewer_examples(2)
@given(fields(), st.tuples(st.integers(64, 70), st.integers(64, 70)), st.booleans())
def test_every_spec_gives_logits_in_every_mode_or_raises_for_a_documented_reason(
    fields: dict[str, Any], size: tuple[int, int], train: bool
) -> None:
    reason = why_not(fields)
    event(reason or "built")
    if reason is not None:
        with pytest.raises((SpecError, ShortcutShapeError), match="Expected"):
            nnx.eval_shape(lambda: ResNet(ResNetSpec(**fields), rngs=nnx.Rngs(0)))
        return
    spec = ResNetSpec(**fields)
    net = nnx.eval_shape(lambda: ResNet(spec, rngs=nnx.Rngs(0)))
    x = jax.ShapeDtypeStruct((2, *size, spec.in_channels), jnp.float32)
    logits = nnx.eval_shape(lambda net, x: net(x, train=train), net, x)
    assert (logits.shape, logits.dtype) == ((2, spec.num_classes), jnp.float32)
    assert ResNetSpec.from_dict(spec.to_dict()) == spec
    assert count_multiply_adds(net, (*size, spec.in_channels)) > 0
    last = nnx.eval_shape(lambda net, x: net.features(x, stages=(len(spec.depths),), train=train), net, x)[0]
    stride = spec.output_stride or math.prod(STEMS[spec.stem].strides) * 2 ** (len(spec.depths) - 1)
    if spec.stem == "caffe" or (spec.antialias == "avg" and spec.of_stem):  # their pooling drops an odd last row
        size = tuple(-(-side // 2) // 2 * 4 for side in size)
    assert last.shape[1:3] == tuple(-(-side // stride) for side in size)
    preactivated = spec.block.startswith("preact")
    assert (net.norm is not None) == preactivated


@functools.cache
def small() -> ResNet:
    return ResNet(ResNetSpec(depths=(1, 1), widths=(4, 8), stem="cifar", num_classes=3), rngs=nnx.Rngs(0))


@nnx.jit(static_argnames="train")
def logits(net: ResNet, x: jax.Array, *, train: bool) -> jax.Array:
    return nnx.clone(net)(x, train=train)


@given(st.integers(0, 4), st.integers(0, 99))
def test_the_evaluation_of_a_row_does_not_depend_on_the_other_rows(row: int, seed: int) -> None:
    net = small()
    generator = np.random.default_rng(seed)
    x, others = generator.normal(size=(2, 5, 6, 6, 3)).astype(np.float32)
    mixed = 100 * others
    mixed[row] = x[row]
    np.testing.assert_allclose(logits(net, mixed, train=False)[row], logits(net, x, train=False)[row], atol=1e-5)
    # A negative control: in training, all rows normalize each row.
    assert not np.allclose(logits(net, mixed, train=True)[row], logits(net, x, train=True)[row], atol=1e-3)


class Nothing(nnx.Module):
    """A shortcut that returns zeros."""

    def __init__(self, real: nnx.Module) -> None:
        self.real = real

    def __call__(self, x: jax.Array, *, train: bool | None = None) -> jax.Array:
        output: Any = self.real(x, train=train)
        return 0 * output


def gradient_of_first_convolution(depth: int, stages: int, *, shortcuts: bool) -> float:
    """Return the norm of the gradient for 2 * depth * stages + 2 layers. Compiling it would take minutes."""
    spec = ResNetSpec(depths=(depth,) * stages, widths=(2, 4, 8)[:stages], stem="cifar", shortcut="A", num_classes=3)
    net = ResNet(spec, rngs=nnx.Rngs(0))
    if not shortcuts:
        for stage in net.stages:
            for block in stage.blocks:
                block.shortcut = Nothing(block.shortcut)
    graph, params, rest = nnx.split(net, nnx.Param, ...)
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))

    def loss(params: nnx.State) -> jax.Array:
        logits = nnx.merge(graph, params, nnx.as_pure(rest))(x, train=True)
        return -jax.nn.log_softmax(logits)[:, 0].mean()

    return float(jnp.linalg.norm(jax.grad(loss)(params).stem.conv.kernel[...]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("depth", "stages"),
    [pytest.param(18, 1, id="38 layers"), pytest.param(18, 3, id="110 layers", marks=pytest.mark.slow)],
)
def test_gradients_reach_the_first_convolution_of_a_deep_net(depth: int, stages: int) -> None:
    deep, shallow = (gradient_of_first_convolution(d, stages, shortcuts=True) for d in (depth, 1))
    assert 0.1 < deep / shallow < 10
    assert gradient_of_first_convolution(1, stages, shortcuts=False) == 0  # the negative control
