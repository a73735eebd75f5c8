import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

from resfit.backends.cpu_barrier import tracing_for
from resfit.nets import BasicBlock, average_pool, blur_pool, global_average_pool, max_pool


@pytest.mark.representatives("size0-3-2")
@pytest.mark.parametrize(
    ("size", "window", "strides"),
    [
        ((7, 8), 3, 2),
        ((9, 4), 5, 3),
        pytest.param((1, 2), 3, 2, marks=pytest.mark.slow),
        pytest.param((5, 5), 1, 2, marks=pytest.mark.slow),
    ],
)
def test_max_pool_and_its_gradient_equal_flax(size: tuple[int, int], window: int, strides: int) -> None:
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

    # After a ReLU many values are equal, and the gradient depends on which of them counts as the maximum.
    x = np.maximum(image(size), 0)
    cotangents = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
    (y, gradient), (expected, expected_gradient) = values_and_gradients(x, cotangents)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-6)


def far_apart() -> np.ndarray:
    """Return an image whose values differ so much that a small step changes no maximum."""
    values = np.random.default_rng(0).permutation(2 * 5 * 6 * 3)
    return values.reshape(2, 5, 6, 3).astype(np.float32)


@pytest.mark.slow
def test_max_pool_has_derivatives_of_any_order_and_direction() -> None:
    """They equal those of a maximum over shifted images, which JAX differentiates."""

    def shifted(x: jax.Array) -> jax.Array:
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
        height, width = x.shape[1:3]
        return jnp.stack([padded[:, i : i + height : 2, j : j + width : 2] for i in range(3) for j in range(3)]).max(0)

    @jax.jit
    def derivatives(x: jax.Array, v: jax.Array) -> Any:
        def of(pool: Any) -> Any:
            def loss(x: jax.Array) -> jax.Array:
                return jnp.sin(pool(x)).sum()

            return (
                jax.jvp(pool, (x,), (v,))[1],
                jax.jvp(jax.grad(loss), (x,), (v,))[1],
                jax.grad(lambda x: (jax.grad(loss)(x) * v).sum())(x),
                jax.vmap(jax.grad(lambda x: loss(x[None])))(x),
            )

        return of(max_pool), of(shifted)

    ours, theirs = derivatives(far_apart(), np.cos(far_apart()))
    for found, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.slow
def test_the_derivatives_of_max_pool_are_those_of_finite_differences() -> None:
    with jax.enable_x64():
        check_grads(lambda x: max_pool(x) ** 2, (far_apart().astype("float64"),), order=2)


def test_the_gradient_of_max_pool_keeps_a_byte_for_each_output() -> None:
    # Outside of a trace the residuals are arrays, and a compiled function is one program.
    y, pull = jax.vjp(jax.jit(max_pool), np.ones((2, 8, 8, 3), np.float32))
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(pull)) == y.size


def test_the_gradient_of_max_pool_in_bfloat16_is_summed_in_float32_on_a_cpu() -> None:
    def gradient(x: jax.Array, cotangents: jax.Array) -> jax.Array:
        return jax.vjp(max_pool, x)[1](cotangents)[0]

    rng = np.random.default_rng(0)
    x, cotangents = (jnp.asarray(rng.normal(size=(2, side, side, 16)), jnp.bfloat16) for side in (9, 5))
    with tracing_for(["cpu"]):
        lowered = jax.jit(gradient).lower(x, cotangents)
    expected = jax.jit(gradient)(x.astype(jnp.float32), cotangents.astype(jnp.float32))
    np.testing.assert_array_equal(lowered.compile()(x, cotangents), expected.astype(jnp.bfloat16))


def test_max_pool_pads_with_minus_infinity() -> None:
    np.testing.assert_array_equal(jax.jit(max_pool)(np.full((1, 2, 2, 1), -5.0, np.float32)), -5.0)


def test_max_pool_propagates_nan() -> None:
    pool = jax.jit(functools.partial(max_pool, strides=3))
    for position in range(3):
        x = np.zeros((1, 1, 3, 1), np.float32)
        x[0, 0, position, 0] = np.nan
        assert np.isnan(pool(x)).any() == (position < 2)  # one window, over pixels 0 and 1


def test_max_pool_needs_no_select_and_scatter() -> None:
    def programs(pool: object) -> str:
        return str(jax.make_jaxpr(jax.grad(lambda x: pool(x).sum()))(jnp.ones((1, 4, 4, 1))))

    assert "select_and_scatter" not in programs(max_pool)
    assert "select_and_scatter" in programs(lambda x: nnx.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1))))


def test_global_average_pool_is_the_mean_over_pixels() -> None:
    x = image((3, 4))
    np.testing.assert_allclose(jax.jit(global_average_pool)(x), np.mean(x, axis=(1, 2)), atol=1e-6)


def image(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)


def average_by_hand(x: np.ndarray, strides: tuple[int, int]) -> np.ndarray:
    """AvgPool2d(2, strides, ceil_mode=True, count_include_pad=False), and timm's AvgPool2dSame where it does not step.

    Of the pixels that are there; but a window that does not step counts the zeros beyond the edge.
    """
    n, height, width, channels = x.shape
    out = np.zeros((n, -(-height // strides[0]), -(-width // strides[1]), channels))
    for i, j in np.ndindex(*out.shape[1:3]):
        top, left = i * strides[0], j * strides[1]
        window = x[:, top : top + 2, left : left + 2]
        rows = 2 if strides[0] == 1 else window.shape[1]
        columns = 2 if strides[1] == 1 else window.shape[2]
        out[:, i, j] = window.sum((1, 2)) / (rows * columns)
    return out


@pytest.mark.representatives("size1")
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (4, 5), (7, 6)])
def test_average_pool_equals_torch_and_timm(size: tuple[int, int]) -> None:
    x = image(size)
    every: list[Any] = [(2, 2), (1, 1), (2, 1), (1, 2), 2, 1]
    for strides, found in zip(every, jax.jit(lambda x: [average_pool(x, strides=s) for s in every])(x), strict=True):
        expected = average_by_hand(x, strides if isinstance(strides, tuple) else (strides, strides))
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_average_pool_ignores_padding_at_the_edge() -> None:
    """A negative control: counting zeros or dropping the last pixels gives another edge."""

    @jax.jit
    def pools(x: jax.Array) -> Any:
        return average_pool(x), *(nnx.avg_pool(x, (2, 2), (2, 2), padding) for padding in ("SAME", "VALID"))

    found, with_zeros, without_the_last = pools(np.ones((1, 5, 5, 1), np.float32))
    np.testing.assert_array_equal(found, np.ones((1, 3, 3, 1)))
    assert np.min(with_zeros) < 1
    assert without_the_last.shape[1] == 2


@pytest.mark.representatives("size0-2", "size2-1")
@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("size", [(2, 3), (6, 7), (8, 5)])
def test_blur_pool_equals_a_binomial_convolution_of_the_reflected_image(size: tuple[int, int], strides: int) -> None:
    x = image(size)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    taps = np.outer([1, 2, 1], [1, 2, 1]) / 16
    blurred = sum(taps[i, j] * padded[:, i : i + size[0], j : j + size[1]] for i in range(3) for j in range(3))
    found = jax.jit(functools.partial(blur_pool, strides=strides))(x)
    np.testing.assert_allclose(found, blurred[:, ::strides, ::strides], atol=1e-6)


def test_blurring_keeps_a_constant_and_removes_a_checkerboard() -> None:
    board = (np.indices((6, 6)).sum(0) % 2).astype(np.float32).reshape(1, 6, 6, 1)
    np.testing.assert_allclose(jax.jit(blur_pool)(board), 0.5)
    assert set(np.unique(board[:, ::2, ::2])) == {0.0}  # a stride without blur
    np.testing.assert_allclose(jax.jit(blur_pool)(np.full((1, 5, 4, 1), 3.0, np.float32)), 3.0)


@pytest.mark.parametrize("pool", [average_pool, blur_pool])
def test_pools_keep_the_dtype(pool: Any) -> None:
    assert jax.eval_shape(pool, jax.ShapeDtypeStruct((1, 4, 4, 1), jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("antialias", ["blur", "avg"])
def test_an_anti_aliased_block_steps_once(antialias: str) -> None:
    block = BasicBlock(4, 4, strides=2, antialias=antialias, rngs=nnx.Rngs(0))
    found = nnx.eval_shape(lambda block: block(jnp.zeros((1, 8, 8, 4))), block)
    assert found.shape == (1, 4, 4, 4)
