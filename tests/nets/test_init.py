"""Initial values: equal seeds give equal values everywhere, layers are independent, and building compiles nothing."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from resfit.nets import BatchNorm, GroupNorm, Layers, ResNet, ResNetSpec
from resfit.nets.init import LayerKeys, kaiming_normal, uniform
from tests import levels
from tests.helpers import assert_same, counting_compilations, differ, values
from tests.variants import VARIANTS
from tests.variants import spec as variant_spec

BASIC = ResNetSpec(depths=(3, 1), widths=(4, 8), stem="cifar", num_classes=5)
BOTTLENECK = ResNetSpec(depths=(1, 2), widths=(4, 6), block="bottleneck", num_classes=3, in_channels=1)


def drawn(net: nnx.Module) -> dict[str, np.ndarray[Any, Any]]:
    """Return the values that are not constant."""
    return {name: value for name, value in values(net).items() if value.size > 1 and np.ptp(value)}


# --- seeds ----------------------------------------------------------------------------------------------------------


def test_equal_seeds_give_equal_networks_and_other_seeds_other_values() -> None:
    net = ResNet(BASIC, rngs=nnx.Rngs(3))
    assert_same(values(net), values(ResNet(BASIC, rngs=nnx.Rngs(3))))
    assert differ(values(net), values(ResNet(BASIC, rngs=nnx.Rngs(4)))) == drawn(net).keys()


@pytest.mark.slow
def test_another_process_draws_the_same_values() -> None:
    code = (
        "from flax import nnx; from resfit.nets import Layers; "
        "print(Layers().conv(2, 2, kernel=1, rngs=nnx.Rngs(3)).kernel[...].tolist())"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == str(Layers().conv(2, 2, kernel=1, rngs=nnx.Rngs(3)).kernel[...].tolist())


def test_every_device_gets_the_same_values() -> None:
    first, second = jax.devices()[:2]
    with jax.default_device(second):
        there = ResNet(BASIC, rngs=nnx.Rngs(3))
    assert {leaf.device for leaf in jax.tree.leaves(nnx.state(there))} == {second}
    here = ResNet(BASIC, rngs=nnx.Rngs(3))
    assert {leaf.device for leaf in jax.tree.leaves(nnx.state(here))} == {first}
    assert_same(values(here), values(there))


def test_a_network_draws_one_key_from_the_params_stream_of_its_user() -> None:
    rngs = nnx.Rngs(params=1, dropout=2)
    net = ResNet(BASIC, rngs=rngs)
    assert [int(rngs.params.count[...]), int(rngs.dropout.count[...])] == [1, 0]
    assert_same(values(net), values(ResNet(BASIC, rngs=nnx.Rngs(params=1))))
    assert differ(values(net), values(ResNet(BASIC, rngs=rngs))) == drawn(net).keys()  # the second key


@pytest.mark.representatives("split")
@pytest.mark.parametrize(
    "rngs",
    [
        lambda seed: nnx.Rngs(jax.random.key(seed, impl="rbg")),
        lambda seed: nnx.Rngs(jax.random.key(seed, impl="unsafe_rbg")),
        lambda seed: nnx.Rngs(jax.random.PRNGKey(seed)),
        lambda seed: nnx.Rngs(jax.random.split(jax.random.key(0), 8)[seed]),
        lambda seed: nnx.Rngs(params=nnx.Rngs(seed).params.fork()),
    ],
    ids=["rbg", "unsafe rbg", "old style", "split", "forked"],
)
def test_every_kind_of_key_seeds_a_network(rngs: Callable[[int], nnx.Rngs]) -> None:
    net = ResNet(BASIC, rngs=rngs(3))
    assert_same(values(net), values(ResNet(BASIC, rngs=rngs(3))))
    assert differ(values(net), values(ResNet(BASIC, rngs=rngs(4)))) == drawn(net).keys()


# --- distributions --------------------------------------------------------------------------------------------------


@pytest.mark.representatives("float32-False-True", "bfloat16-False-False", "float64-True-False")
@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize(
    ("dtype", "x64"), [("float32", False), ("bfloat16", False), ("float16", False), ("float64", True)]
)
def test_initializers_have_their_moments_bounds_and_dtypes(dtype: str, x64: bool, traced: bool) -> None:
    shape = (3, 3, 16, 64)

    def draw(initializer: Any) -> np.ndarray[Any, Any]:
        with jax.enable_x64(dtype == "float64"):
            call = lambda key: initializer(key, shape, jnp.dtype(dtype))  # noqa: E731
            found = (jax.jit(call) if traced else call)(jax.random.key(0))
            assert found.dtype == dtype
            return np.asarray(found, np.float64)

    normal, flat = draw(kaiming_normal), draw(uniform(0.25))
    deviation = np.sqrt(2 / (9 * 64))
    assert normal.std() == pytest.approx(deviation, rel=0.03)
    assert abs(normal.mean()) < 0.03 * deviation
    assert np.mean(abs(normal) > 2 * deviation) == pytest.approx(0.0455, abs=0.01)  # not uniform, not truncated
    assert flat.std() == pytest.approx(0.25 / np.sqrt(3), rel=0.03)
    assert 0.24 < abs(flat).max() <= 0.25


def test_grouped_kernels_count_all_outputs() -> None:
    kernel = Layers().conv(64, 64, kernel=3, groups=4, rngs=nnx.Rngs(0)).kernel[...]
    assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * 64)), rel=0.05)


@pytest.mark.parametrize(
    "variant",
    levels.only(("space to depth", "group norm"), VARIANTS, ("v2, bottleneck", "SE", "ResNeXt", "wide, dropout")),
)
def test_no_two_arrays_of_a_network_hold_the_same_values(variant: str) -> None:
    """Layers of one shape, in one block and in others, are independent."""
    net = ResNet(variant_spec(variant, depths=(1, 3)), rngs=nnx.Rngs(0))
    rows = [np.sort(value.ravel())[:8].tobytes() for value in drawn(net).values()]
    assert len(rows) > 5
    assert len(set(rows)) == len(rows)
    streams = [
        np.asarray(jax.random.key_data(leaf.get_raw_value())).tobytes()
        for path, leaf in nnx.to_flat_state(nnx.state(net, nnx.RngKey))
    ]
    assert len(set(streams)) == len(streams)


def test_flax_layers_of_a_custom_block_draw_from_the_keys_of_the_network() -> None:
    keys = LayerKeys(nnx.Rngs(0))
    layers = [nnx.Conv(2, 2, (1, 1), rngs=keys), Layers().conv(2, 2, kernel=1, rngs=keys), nnx.Linear(4, 1, rngs=keys)]
    kernels = [np.asarray(layer.kernel[...]).ravel() for layer in layers]
    assert len({kernel.tobytes() for kernel in kernels}) == 3
    again = nnx.Conv(2, 2, (1, 1), rngs=LayerKeys(nnx.Rngs(0)))
    np.testing.assert_array_equal(kernels[0], np.asarray(again.kernel[...]).ravel())


def test_a_custom_block_stacks_layers_by_split_rngs() -> None:
    keys = LayerKeys(nnx.Rngs(0))

    @nnx.split_rngs(splits=3)
    @nnx.vmap
    def stacked(rngs: nnx.Rngs) -> nnx.Linear:
        return nnx.Linear(2, 2, rngs=rngs)

    stacks = [np.asarray(stacked(keys).kernel[...]) for _ in range(2)]
    kernels = [*stacks[0], *stacks[1], np.asarray(nnx.Linear(2, 2, rngs=keys).kernel[...])]
    assert len({kernel.tobytes() for kernel in kernels}) == 7


def test_streams_that_layers_keep_are_ordinary_and_independent() -> None:
    keys = LayerKeys(nnx.Rngs(0))
    kept = [keys.params.fork(), keys.dropout.fork(), nnx.Dropout(0.5, rngs=keys).rngs]
    assert {type(stream) for stream in kept} == {nnx.RngStream}
    assert len({jax.random.key_data(stream.key[...]).tobytes() for stream in kept}) == 3
    assert keys.params.split(3).key.shape == (3,)
    assert keys.params.broadcast(2).key.shape == (2,)


# --- arrays and programs --------------------------------------------------------------------------------------------


def test_every_variable_has_an_array_of_its_own() -> None:
    """So that a custom loop can donate them."""
    leaves = jax.tree.leaves(nnx.state(ResNet(BASIC, rngs=nnx.Rngs(0))))
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)


def test_building_a_network_of_new_shapes_compiles_nothing() -> None:
    ResNet(BASIC, rngs=nnx.Rngs(0))
    with counting_compilations() as compilations:
        ResNet(BOTTLENECK, rngs=nnx.Rngs(1))
    assert compilations == []


@pytest.mark.parametrize("norm", [BatchNorm, GroupNorm])
def test_norms_draw_no_key(norm: Any) -> None:
    rngs = nnx.Rngs(0)
    norm(32, rngs=rngs)
    assert int(rngs.default.count[...]) == 0


# --- traces ---------------------------------------------------------------------------------------------------------


@pytest.mark.representatives("basic")
@pytest.mark.parametrize("spec", [BASIC, BOTTLENECK], ids=["basic", "bottleneck"])
def test_building_inside_a_trace_draws_from_the_same_distributions(spec: ResNetSpec) -> None:
    net = ResNet(spec, rngs=nnx.Rngs(3))
    abstract = nnx.eval_shape(lambda: ResNet(spec, rngs=nnx.Rngs(3)))
    assert nnx.graphdef(abstract) == nnx.graphdef(net)
    traced = nnx.jit(lambda: ResNet(spec, rngs=nnx.Rngs(3)))()
    for build in (abstract, traced):
        for leaf, expected in zip(jax.tree.leaves(nnx.state(build)), jax.tree.leaves(nnx.state(net)), strict=True):
            assert (leaf.shape, leaf.dtype) == (expected.shape, expected.dtype)
    assert drawn(traced).keys() == drawn(net).keys()


def test_vmap_over_split_keys_builds_different_networks() -> None:
    @nnx.split_rngs(splits=3)
    @nnx.vmap
    def build(rngs: nnx.Rngs) -> nnx.Conv:
        return Layers().conv(2, 2, kernel=3, rngs=rngs)

    kernels = np.asarray(build(nnx.Rngs(0)).kernel[...])
    assert kernels.shape == (3, 3, 3, 2, 2)
    assert len({kernel.tobytes() for kernel in kernels}) == 3


@pytest.mark.slow
def test_vmap_builds_an_ensemble_of_networks() -> None:
    nets = nnx.vmap(lambda key: ResNet(BASIC, rngs=nnx.Rngs(key)))(jax.random.split(jax.random.key(0), 2))
    kernel = np.asarray(nets.stem.conv.kernel[...])
    assert not np.array_equal(kernel[0], kernel[1])
