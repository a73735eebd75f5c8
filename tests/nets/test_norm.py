import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from resfit.errors import InputShapeError
from resfit.nets import BatchNorm

X = 3 * jax.random.normal(jax.random.key(0), (4, 3, 5, 2)) + jnp.array([1.0, -2.0]).reshape(1, 1, 1, 2)
MASK = (jnp.arange(4) < 3).reshape(4, 1, 1, 1)


def norm(**kwargs: bool | str) -> BatchNorm:
    return BatchNorm(2, **kwargs, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("mask", [None, MASK])
def test_it_computes_what_flax_computes(mask: jax.Array | None) -> None:
    ours, theirs = norm(), nnx.BatchNorm(2, momentum=0.9, epsilon=1e-5, rngs=nnx.Rngs(0))
    for layer in (ours, theirs):
        layer.scale[...] = jnp.array([2.0, -1.0])
        layer.bias[...] = jnp.array([0.5, 3.0])
    for evaluating in (False, True, False):
        np.testing.assert_allclose(ours(X, evaluating, mask=mask), theirs(X, evaluating, mask=mask), atol=1e-5)
        np.testing.assert_allclose(ours.mean[...], theirs.mean[...], rtol=1e-6)
        np.testing.assert_allclose(ours.var[...], theirs.var[...], rtol=1e-6)


@pytest.mark.parametrize("mask", [None, MASK])
@pytest.mark.parametrize("unbiased", [False, True])
def test_the_running_variance_is_of_the_kind_asked_for(unbiased: bool, mask: jax.Array | None) -> None:
    layer = norm(unbiased=unbiased)
    layer(X, use_running_average=False, mask=mask)
    seen = np.asarray(X if mask is None else X[:3], np.float64)
    np.testing.assert_allclose(layer.mean[...], 0.1 * seen.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(layer.var[...], 0.9 + 0.1 * seen.var((0, 1, 2), ddof=int(unbiased)), rtol=1e-5)


def test_the_batch_is_normalised_by_the_biased_variance_in_both_kinds() -> None:
    np.testing.assert_array_equal(norm(unbiased=True)(X, False), norm(unbiased=False)(X, False))


def test_one_value_has_no_unbiased_variance() -> None:
    with pytest.raises(InputShapeError, match=r"\(1, 1, 1, 2\).*unbiased=False"):
        norm(unbiased=True)(X[:1, :1, :1], use_running_average=False)
    assert jnp.isfinite(norm(unbiased=False)(X[:1, :1, :1], use_running_average=False)).all()


@pytest.mark.parametrize("unbiased", [False, True])
def test_statistics_over_a_device_axis_are_those_of_the_whole_batch(unbiased: bool) -> None:
    whole, parts = norm(unbiased=unbiased), norm(unbiased=unbiased)
    expected = whole(X, use_running_average=False)
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
    layer.mean[...] = jnp.array([100.25, 0.0])  # between two bfloat16 numbers, 100 and 100.5
    y = layer(jnp.full((1, 1, 1, 2), 100.25, jnp.float32))
    assert y.dtype == jnp.bfloat16
    assert layer.mean.dtype == layer.var.dtype == jnp.float32
    assert layer.scale.dtype == jnp.bfloat16
    assert y[0, 0, 0, 0] == 0  # flax's own layer rounds the mean first, and is off by a quarter
    rounded = nnx.BatchNorm(2, use_running_average=True, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    rounded.mean[...] = layer.mean[...]
    assert rounded(jnp.full((1, 1, 1, 2), 100.25, jnp.bfloat16)).dtype == jnp.bfloat16


def test_a_new_norm_evaluates_and_its_modes_are_those_of_nnx() -> None:
    layer = norm()
    layer(X)
    np.testing.assert_array_equal(layer.mean[...], 0)
    nnx.view(layer, use_running_average=False)(X)
    moved = layer.mean[...]
    assert (moved != 0).all()
    layer.train()
    layer(X)
    assert (layer.mean[...] != moved).all()


def test_a_zero_scale_starts_at_the_bias_alone() -> None:
    np.testing.assert_array_equal(norm(zero_scale=True)(X, use_running_average=False), 0)
