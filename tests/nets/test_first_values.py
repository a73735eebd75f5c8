"""The first values of a network are those that plain flax layers would draw, from one compiled program.

With the jax of Python 3.11 (0.10) they are, bit for bit; later ones multiply by the scale in another order, which moves
last bits.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from resfit.nets import ResNet, ResNetSpec, first_values
from resfit.nets.first_values import FirstValues
from tests.helpers import assert_same, counting_compilations, differ, values

BASIC = ResNetSpec(depths=(3, 2), widths=(4, 8), stem="cifar", num_classes=5)
BOTTLENECK = ResNetSpec(depths=(2, 3), widths=(4, 6), block="bottleneck", num_classes=3, in_channels=1)


def assert_equal_but_for_the_last_bit(a: Any, b: Any) -> None:
    jax.tree.map(lambda u, v: np.testing.assert_array_max_ulp(np.asarray(u), np.asarray(v), 2), a, b)


def built_plainly(spec: ResNetSpec, rngs: nnx.Rngs, monkeypatch: pytest.MonkeyPatch) -> ResNet:
    """The network, whose layers are all built one by one and draw where they are built."""
    with monkeypatch.context() as patch:
        patch.setattr(FirstValues, "possible", staticmethod(lambda base: False))
        return ResNet(spec, rngs=rngs)


@pytest.mark.parametrize("spec", [BASIC, BOTTLENECK, ResNetSpec(depths=(1,), widths=(4,), stem="cifar", shortcut="A")])
@pytest.mark.parametrize("rows", [3, 1024])
def test_a_network_starts_with_the_values_of_layers_that_draw_one_by_one(
    spec: ResNetSpec, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first_values, "ROWS", rows)  # three: every kernel goes over the end of a call
    rngs, plain_rngs = nnx.Rngs(3), nnx.Rngs(3)
    net, plain = ResNet(spec, rngs=rngs), built_plainly(spec, plain_rngs, monkeypatch)
    assert_equal_but_for_the_last_bit(values(net), values(plain))
    assert_same(values(rngs), values(plain_rngs))
    assert nnx.graphdef(net) == nnx.graphdef(plain)
    assert differ(values(net), values(ResNet(spec, rngs=nnx.Rngs(4))))


def test_the_keys_are_folded_from_one_of_the_callers_in_the_order_of_the_layers() -> None:
    """The values themselves, by flax's own layers alone: recorded results of a seed depend on them."""
    base = nnx.Rngs(7).params()
    kaiming = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
    net = ResNet(BASIC, rngs=nnx.Rngs(7))

    def conv(kernel: Any, turn: int) -> None:
        layer = nnx.Conv(
            *kernel.shape[2:], (3, 3), use_bias=False, kernel_init=kaiming, rngs=_Given(jax.random.fold_in(base, turn))
        )
        assert_equal_but_for_the_last_bit(kernel[...], layer.kernel[...])

    conv(net.stem.conv.kernel, 1)
    conv(net.stage1.blocks[0].branch.conv1.kernel, 4)  # the stem's norm had a turn for its scale and its bias
    conv(net.stage1.blocks[2].branch.conv2.kernel, 4 + 2 * 6 + 3)  # a copied block
    bias = jax.random.uniform(
        jax.random.fold_in(base, 4 + 3 * 6 + 2 * 6 + 3 + 1), (5,), jnp.float32, -(8**-0.5), 8**-0.5
    )
    assert_equal_but_for_the_last_bit(net.head.dense.bias[...], bias)


class _Given(nnx.Rngs):
    """Gives one key, whatever is asked for."""

    def __init__(self, key: jax.Array) -> None:
        self.key = key

    def params(self) -> jax.Array:
        return self.key


def test_every_variable_has_an_array_of_its_own() -> None:
    """So that a loop of the user's may donate them."""
    leaves = jax.tree.leaves(nnx.state(ResNet(BASIC, rngs=nnx.Rngs(0))))
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)


def test_a_network_of_other_shapes_compiles_nothing_to_start() -> None:
    ResNet(BASIC, rngs=nnx.Rngs(0))
    with counting_compilations() as compilations:
        ResNet(BOTTLENECK, rngs=nnx.Rngs(1))
    assert compilations == []


def test_what_is_no_default_key_or_dtype_draws_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    half = ResNetSpec(depths=(2,), widths=(4,), stem="cifar", num_classes=5, param_dtype="bfloat16")
    assert_same(values(ResNet(half, rngs=nnx.Rngs(0))), values(built_plainly(half, nnx.Rngs(0), monkeypatch)))
    assert not FirstValues.possible(jax.random.key(0, impl="rbg"))
    assert FirstValues.possible(jax.random.key(0))
    with jax.threefry_partitionable(False):
        assert not FirstValues.possible(jax.random.key(0))


def test_a_network_can_be_built_inside_a_trace() -> None:
    net = ResNet(BASIC, rngs=nnx.Rngs(3))
    abstract = nnx.eval_shape(lambda: ResNet(BASIC, rngs=nnx.Rngs(3)))
    assert jax.tree.leaves(nnx.state(abstract)) == [
        jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(nnx.state(net))
    ]
    assert nnx.graphdef(abstract) == nnx.graphdef(net)
    traced = jax.jit(lambda: nnx.state(ResNet(BASIC, rngs=nnx.Rngs(3))))()
    for leaf, expected in zip(jax.tree.leaves(traced), jax.tree.leaves(nnx.state(net)), strict=True):
        np.testing.assert_allclose(leaf, expected, rtol=1e-6)  # compiled as one, XLA may round otherwise
