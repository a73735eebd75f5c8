"""Networks as a whole: rows are independent in evaluation, and gradients reach the first layer of the deepest."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from resfit.nets import ResNet, ResNetSpec, count_multiply_adds
from resfit.nets.spec import BLOCKS


@st.composite
def specs(draw: st.DrawFn) -> ResNetSpec:
    stages = draw(st.integers(1, 3))
    counts = st.lists(st.integers(1, 3), min_size=stages, max_size=stages)
    return ResNetSpec(
        depths=draw(counts),
        widths=sorted(draw(counts)),
        block=draw(st.sampled_from(sorted(BLOCKS))),
        stem=draw(st.sampled_from(["imagenet", "cifar"])),
        shortcut=draw(st.sampled_from(["A", "B"])),
        num_classes=draw(st.integers(1, 4)),
        in_channels=draw(st.integers(1, 4)),
    )


@settings(max_examples=30)
@given(specs(), st.tuples(st.integers(64, 70), st.integers(64, 70)), st.booleans())
def test_every_spec_gives_logits_in_every_mode(spec: ResNetSpec, size: tuple[int, int], train: bool) -> None:
    net = nnx.eval_shape(lambda: ResNet(spec, rngs=nnx.Rngs(0)))
    x = jax.ShapeDtypeStruct((2, *size, spec.in_channels), jnp.float32)
    logits = nnx.eval_shape(lambda net, x: net(x, train=train), net, x)
    assert (logits.shape, logits.dtype) == ((2, spec.num_classes), jnp.float32)
    assert ResNetSpec.from_dict(spec.to_dict()) == spec
    assert count_multiply_adds(net, (*size, spec.in_channels)) > 0


@settings(max_examples=5)
@given(st.integers(0, 4), st.integers(0, 99))
def test_evaluating_a_row_does_not_depend_on_the_other_rows(row: int, seed: int) -> None:
    net = ResNet(ResNetSpec(depths=(1, 1), widths=(4, 8), stem="cifar", num_classes=3), rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(seed), (5, 6, 6, 3))
    others = 100 * jax.random.normal(jax.random.key(seed + 1), x.shape)
    keep = (jnp.arange(5) == row).reshape(5, 1, 1, 1)
    mixed = jnp.where(keep, x, others)

    @nnx.jit(static_argnames="train")
    def logits(net: ResNet, x: jax.Array, *, train: bool) -> jax.Array:
        return nnx.clone(net)(x, train=train)

    np.testing.assert_allclose(logits(net, mixed, train=False)[row], logits(net, x, train=False)[row], atol=1e-5)
    # A negative control: in training every row is normalised by all.
    assert not np.allclose(logits(net, mixed, train=True)[row], logits(net, x, train=True)[row], atol=1e-3)


class Nothing(nnx.Module):
    """A shortcut that leads nowhere."""

    def __init__(self, real: nnx.Module) -> None:
        self.real = real

    def __call__(self, x: jax.Array, *, train: bool | None = None) -> jax.Array:
        output: Any = self.real(x, train=train)
        return 0 * output


def gradient_of_first_convolution(depth: int, *, shortcuts: bool) -> float:
    """Norm of the loss's gradient, for a net of 6 * depth + 2 layers. Not jitted: compiling it would take minutes."""
    spec = ResNetSpec(depths=(depth,) * 3, widths=(2, 4, 8), stem="cifar", shortcut="A", num_classes=3)
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


def test_gradients_reach_the_first_convolution_of_a_110_layer_net() -> None:
    deep, shallow = (gradient_of_first_convolution(depth, shortcuts=True) for depth in (18, 1))
    assert 0.1 < deep / shallow < 10
    assert gradient_of_first_convolution(1, shortcuts=False) == 0  # the negative control
