import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from resfit.errors import InputShapeError, SpecError
from resfit.nets import BatchNorm, GroupNorm
from tests.helpers import call

X = np.random.default_rng(0).normal([1, -2], 3, (4, 3, 5, 2)).astype(np.float32)
MASK = (np.arange(4) < 3).reshape(4, 1, 1, 1)


def norm(**kwargs: bool | str) -> BatchNorm:
    return BatchNorm(2, **kwargs, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("mask", [None, MASK])
def test_batch_norm_equals_flax(mask: jax.Array | None) -> None:
    ours, theirs = norm(), nnx.BatchNorm(2, momentum=0.9, epsilon=1e-5, rngs=nnx.Rngs(0))

    @nnx.jit
    def three_calls(layer: nnx.BatchNorm) -> list[tuple[jax.Array, ...]]:
        return [
            (layer(X, evaluating, mask=mask), layer.mean[...], layer.var[...]) for evaluating in (False, True, False)
        ]

    for layer in (ours, theirs):
        layer.scale.set_value(jnp.asarray(np.float32([2.0, -1.0])))
        layer.bias.set_value(jnp.asarray(np.float32([0.5, 3.0])))
    for (y, mean, var), (expected, *statistics) in zip(three_calls(ours), three_calls(theirs), strict=True):
        np.testing.assert_allclose(y, expected, atol=1e-5)
        np.testing.assert_allclose(mean, statistics[0], rtol=1e-6)
        np.testing.assert_allclose(var, statistics[1], rtol=1e-6)


@pytest.mark.parametrize("mask", [None, MASK])
@pytest.mark.parametrize("unbiased", [False, True])
def test_the_running_variance_is_of_the_kind_asked_for(unbiased: bool, mask: jax.Array | None) -> None:
    layer = norm(unbiased=unbiased)
    nnx.jit(lambda layer: layer(X, use_running_average=False, mask=mask))(layer)
    seen = np.asarray(X if mask is None else X[:3], np.float64)
    np.testing.assert_allclose(layer.mean[...], 0.1 * seen.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(layer.var[...], 0.9 + 0.1 * seen.var((0, 1, 2), ddof=int(unbiased)), rtol=1e-5)


def test_the_batch_is_normalized_by_the_biased_variance_in_both_forms() -> None:
    np.testing.assert_array_equal(
        *(call(norm(unbiased=unbiased), X, use_running_average=False) for unbiased in (True, False))
    )


def test_one_value_per_channel_with_unbiased_variance_raises() -> None:
    with pytest.raises(InputShapeError, match=r"\(1, 1, 1, 2\).*unbiased=False"):
        norm(unbiased=True)(X[:1, :1, :1], use_running_average=False)
    assert np.isfinite(call(norm(unbiased=False), X[:1, :1, :1], use_running_average=False)).all()


@pytest.mark.parametrize("unbiased", [False, True])
def test_statistics_over_a_device_axis_equal_those_of_the_whole_batch(unbiased: bool) -> None:
    whole, parts = norm(unbiased=unbiased), norm(unbiased=unbiased)
    expected = call(whole, X, use_running_average=False)
    parts.axis_name = "data"
    graph, state = nnx.split(parts)

    def per_device(state: nnx.State, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        layer = nnx.merge(graph, state)
        return layer(x, use_running_average=False), layer.var[...]

    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    by_row, everywhere = PartitionSpec("data"), PartitionSpec()
    sharded = jax.shard_map(per_device, mesh=mesh, in_specs=(everywhere, by_row), out_specs=(by_row, everywhere))
    y, var = jax.jit(sharded)(nnx.as_pure(state), X)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_allclose(var, whole.var[...], rtol=1e-5)


def test_statistics_are_float32_in_bfloat16() -> None:
    layer = norm(dtype="bfloat16", param_dtype="bfloat16")
    layer.mean.set_value(jnp.asarray(np.float32([100.25, 0.0])))  # between two bfloat16 numbers, 100 and 100.5
    y = call(layer, np.full((1, 1, 1, 2), 100.25, np.float32))
    assert y.dtype == jnp.bfloat16
    assert layer.mean.dtype == layer.var.dtype == jnp.float32
    assert layer.scale.dtype == jnp.bfloat16
    assert np.asarray(y)[0, 0, 0, 0] == 0  # flax's layer rounds the mean first, an error of a quarter
    rounded = nnx.BatchNorm(2, use_running_average=True, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    rounded.mean.set_value(layer.mean[...])
    assert call(rounded, np.full((1, 1, 1, 2), 100.25, jnp.bfloat16)).dtype == jnp.bfloat16


def test_a_new_norm_evaluates_and_follows_nnx_modes() -> None:
    layer = norm()
    call(layer, X)
    np.testing.assert_array_equal(layer.mean[...], 0)
    call(nnx.view(layer, use_running_average=False), X)
    moved = np.asarray(layer.mean[...])
    assert (moved != 0).all()
    layer.train()
    call(layer, X)
    assert (np.asarray(layer.mean[...]) != moved).all()


def test_a_norm_with_zero_scale_returns_its_bias() -> None:
    np.testing.assert_array_equal(call(norm(zero_scale=True), X, use_running_average=False), 0)


# --- group norm -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 64, *(pytest.param(n, marks=pytest.mark.slow) for n in (8, 32, 96))])
def test_a_group_norm_is_the_formula_over_contiguous_channels(channels: int) -> None:
    """The formula of PyTorch and timm: 32 groups of neighbors, the biased variance, 1e-5."""
    layer = GroupNorm(channels, rngs=nnx.Rngs(0))
    scale, bias = (np.random.default_rng(i).normal(size=channels) for i in (1, 2))
    layer.scale.set_value(jnp.asarray(scale.astype(np.float32)))
    layer.bias.set_value(jnp.asarray(bias.astype(np.float32)))
    x = np.random.default_rng(0).normal(size=(2, 3, 4, channels)) * 2 + 1
    groups = min(32, channels)
    parts = x.reshape(2, 12, groups, channels // groups)
    mean, var = parts.mean((1, 3), keepdims=True), parts.var((1, 3), keepdims=True)
    expected = ((parts - mean) / np.sqrt(var + 1e-5)).reshape(x.shape) * scale + bias
    for evaluating in (None, True, False):
        found = nnx.jit(lambda layer, x, evaluating=evaluating: layer(x, evaluating))(layer, x.astype(np.float32))
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_a_group_norm_is_exact_for_values_far_from_zero() -> None:
    """E[x^2] - E[x]^2 in float32 has no correct digit here."""
    x = (np.random.default_rng(0).normal(size=(2, 8, 8, 64)) + 3000).astype(np.float32)
    parts = x.astype(np.float64).reshape(2, 64, 32, 2)
    mean, var = parts.mean((1, 3), keepdims=True), parts.var((1, 3), keepdims=True)
    expected = ((parts - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)
    np.testing.assert_allclose(call(GroupNorm(64, rngs=nnx.Rngs(0)), x), expected, atol=5e-3)


def test_a_group_norm_normalizes_each_image_separately_and_holds_no_statistics() -> None:
    layer = GroupNorm(64, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(3, 4, 4, 64)).astype(np.float32)
    alone = nnx.jit(lambda layer, x: layer(x, False))
    np.testing.assert_allclose(np.asarray(alone(layer, x))[:1], alone(layer, x[:1]), atol=1e-6)
    assert not jax.tree.leaves(nnx.state(layer, nnx.BatchStat))
    # A negative control: batch norm depends on all images.
    batch = BatchNorm(64, rngs=nnx.Rngs(0))
    assert not np.allclose(np.asarray(alone(batch, x))[:1], alone(batch, x[:1]), atol=1e-2)


def test_a_group_norm_computes_in_float32_and_returns_its_dtype() -> None:
    layer = GroupNorm(32, dtype="bfloat16", param_dtype="bfloat16", rngs=nnx.Rngs(0))
    x = np.full((1, 8, 8, 32), 1000.0, jnp.bfloat16)
    x[:, ::2] = 1008  # neighbors in bfloat16
    y = call(layer, x)
    assert y.dtype == layer.scale.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.abs(np.asarray(y, np.float32)), 1, atol=0.01)


def test_a_group_norm_with_zero_scale_returns_its_bias_and_wrong_widths_raise() -> None:
    np.testing.assert_array_equal(call(GroupNorm(2, zero_scale=True, rngs=nnx.Rngs(0)), X), 0)
    with pytest.raises(SpecError, match=r"48 channels.*multiple of 32"):
        GroupNorm(48, rngs=nnx.Rngs(0))
