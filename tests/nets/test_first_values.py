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

from resfit.nets import Layers, ResNet, ResNetSpec, first_values
from resfit.nets.first_values import FirstValues
from resfit.nets.keys import LayerKeys
from tests import levels
from tests.helpers import assert_same, counting_compilations, differ, values
from tests.variants import VARIANTS
from tests.variants import spec as variant_spec

BASIC = ResNetSpec(depths=(3, 1), widths=(4, 8), stem="cifar", num_classes=5)
BOTTLENECK = ResNetSpec(depths=(1, 2), widths=(4, 6), block="bottleneck", num_classes=3, in_channels=1)


def assert_equal_but_for_the_last_bit(a: Any, b: Any) -> None:
    jax.tree.map(lambda u, v: np.testing.assert_array_max_ulp(np.asarray(u), np.asarray(v), 2), a, b)


def built_plainly(spec: ResNetSpec, rngs: nnx.Rngs, monkeypatch: pytest.MonkeyPatch) -> ResNet:
    """The network, whose layers are all built one by one and draw where they are built."""
    with monkeypatch.context() as patch:
        patch.setattr(FirstValues, "possible", staticmethod(lambda base: False))
        return ResNet(spec, rngs=rngs)


QUICK = ("space to depth", "group norm")
SLOW = (
    "v1",
    "SE",
    "v2, bottleneck",
    "T",
    "RS",
    "ResNeXt",
    "wide, dropout",
    "dropout before the last layer",
    "dilated, D",
)
SPECS = [BASIC, BOTTLENECK, ResNetSpec(depths=(1,), widths=(4,), stem="cifar", shortcut="A")]


@pytest.mark.parametrize(
    ("spec", "rows"),
    [
        pytest.param(spec, rows, marks=() if (i, rows) in ((0, 3), (1, 1024)) else pytest.mark.slow)
        for i, spec in enumerate(SPECS)
        for rows in (3, 1024)
    ]
    + [
        pytest.param(variant_spec(name, depths=(1, 3)), 1024, id=name, marks=marks)
        for name, marks in ((row.values[0], row.marks) for row in levels.only(QUICK, VARIANTS, SLOW))
    ],
)
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
    bias = jax.random.uniform(jax.random.fold_in(base, 4 + 3 * 6 + 6 + 3 + 1), (5,), jnp.float32, -(8**-0.5), 8**-0.5)
    assert_equal_but_for_the_last_bit(net.head.dense.bias[...], bias)


class _Given(nnx.Rngs):
    """Gives one key, whatever is asked for."""

    def __init__(self, key: jax.Array) -> None:
        self.key = key

    def params(self) -> jax.Array:
        return self.key


def test_blocks_of_a_stage_share_neither_values_nor_streams_of_random_keys() -> None:
    """Blocks that repeat are built once and copied, but for those that drew from the keys themselves."""
    fields = {"depths": (3,), "widths": (8,), "stem": "cifar_conv", "squeeze": 1 / 4, "zero_init_last": False}
    net = ResNet(ResNetSpec(block="preact_basic", dropout=0.5, **fields), rngs=nnx.Rngs(0))  # type: ignore[arg-type]
    for blocks in (net.stage1.blocks, ResNet(ResNetSpec(**fields), rngs=nnx.Rngs(0)).stage1.blocks):  # type: ignore[arg-type]
        held = [
            {path: leaf for path, leaf in nnx.to_flat_state(nnx.state(block)) if path[-1] in ("kernel", "key")}
            for block in blocks
        ]
        for path, leaf in held[0].items():
            raw = [np.asarray(jax.random.key_data(v) if path[-1] == "key" else v) for v in (
                block[path].get_raw_value() for block in held
            )]  # fmt: skip
            assert not np.array_equal(raw[0], raw[1]), path
            assert not np.array_equal(raw[1], raw[2]), path
            assert leaf.get_raw_value() is not held[1][path].get_raw_value()


def test_layers_of_flax_draw_in_our_blocks_as_anywhere() -> None:
    """Their initializers know no turns; and a block that drew for itself is built anew, not copied."""
    rngs = LayerKeys(nnx.Rngs(0))

    def build() -> nnx.Module:
        return nnx.Sequential(
            nnx.Conv(2, 2, (1, 1), rngs=rngs), Layers().conv(2, 2, kernel=1, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
        )

    first, second, third = made = rngs.repeat(build, 3)
    rngs.finish(nnx.List(made))
    for layer in (0, 1):
        kernels = [np.asarray(block.layers[layer].kernel[...]) for block in (first, second, third)]  # type: ignore[attr-defined]
        assert np.isfinite(kernels).all()
        assert not np.array_equal(kernels[0], kernels[1])
        assert not np.array_equal(kernels[1], kernels[2])


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
    spec = ResNetSpec(depths=(2,), widths=(4,), stem="cifar", num_classes=5)
    net = ResNet(spec, rngs=nnx.Rngs(3))
    abstract = nnx.eval_shape(lambda: ResNet(spec, rngs=nnx.Rngs(3)))
    assert jax.tree.leaves(nnx.state(abstract)) == [
        jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(nnx.state(net))
    ]
    assert nnx.graphdef(abstract) == nnx.graphdef(net)
    traced = jax.jit(lambda: nnx.state(ResNet(spec, rngs=nnx.Rngs(3))))()
    for leaf, expected in zip(jax.tree.leaves(traced), jax.tree.leaves(nnx.state(net)), strict=True):
        np.testing.assert_allclose(leaf, expected, rtol=1e-6)  # compiled as one, XLA may round otherwise
