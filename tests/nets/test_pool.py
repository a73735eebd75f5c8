import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from resfit.nets import global_average_pool, max_pool


@pytest.mark.parametrize(
    ("size", "window", "strides"), [((1, 2), 3, 2), ((7, 8), 3, 2), ((9, 4), 5, 3), ((5, 5), 1, 2)]
)
def test_max_pool_and_its_gradient_are_those_of_flax(size: tuple[int, int], window: int, strides: int) -> None:
    pad = window // 2

    def ours(x: jax.Array) -> jax.Array:
        return max_pool(x, window=window, strides=strides)

    def theirs(x: jax.Array) -> jax.Array:
        return nnx.max_pool(x, (window, window), (strides, strides), ((pad, pad), (pad, pad)))

    @jax.jit
    def values_and_gradients(x: jax.Array, cotangents: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
        pulled = [
            (y, pull(cotangents[:, : y.shape[1], : y.shape[2]])) for y, pull in (jax.vjp(ours, x), jax.vjp(theirs, x))
        ]
        return [(y, gradient) for y, (gradient,) in pulled]

    # After a ReLU many values are equal, and the gradient of equal values is a matter of choice.
    x = nnx.relu(jax.random.normal(jax.random.key(0), (2, *size, 3)))
    (y, gradient), (expected, expected_gradient) = values_and_gradients(
        x, jax.random.normal(jax.random.key(1), x.shape)
    )
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-6)


def test_max_pool_pads_with_less_than_any_value() -> None:
    np.testing.assert_array_equal(max_pool(jnp.full((1, 2, 2, 1), -5.0)), -5.0)


def test_max_pool_hides_no_nan() -> None:
    for position in range(3):
        x = jnp.zeros((1, 1, 3, 1)).at[0, 0, position, 0].set(jnp.nan)
        assert jnp.isnan(max_pool(x, strides=3)).any() == (position < 2)  # one window, over pixels 0 and 1


def test_max_pool_needs_no_select_and_scatter() -> None:
    def programs(pool: object) -> str:
        return str(jax.make_jaxpr(jax.grad(lambda x: pool(x).sum()))(jnp.ones((1, 4, 4, 1))))

    assert "select_and_scatter" not in programs(max_pool)
    assert "select_and_scatter" in programs(lambda x: nnx.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1))))


def test_global_average_pool_is_the_mean_over_pixels() -> None:
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
    np.testing.assert_allclose(global_average_pool(x), np.mean(np.asarray(x), axis=(1, 2)), atol=1e-6)
