"""Counts by abstract evaluation match arithmetic."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from resfit.nets import ResNet, ResNetSpec, count_multiply_adds, count_params
from resfit.nets.count import dense_operations


class Calls(nnx.Module):
    """A module around a function of its weight (8, 8) and its input."""

    def __init__(self, function: Callable[[jax.Array, jax.Array], jax.Array]) -> None:
        self.function = function
        self.weight = nnx.Param(jnp.ones((8, 8)))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.function(self.weight[...], x)


def scanned(weight: jax.Array, x: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda x, _: (x @ weight, None), x, length=5)[0]


def branched(weight: jax.Array, x: jax.Array) -> jax.Array:
    return jax.lax.cond(x.sum() > 0, lambda x: x @ weight, lambda x: x, x)


COUNTED = {
    "dense": (lambda: nnx.Linear(8, 3, rngs=nnx.Rngs(0)), (8,), 24),
    "convolution": (lambda: nnx.Conv(8, 3, (3, 5), padding="SAME", rngs=nnx.Rngs(0)), (4, 4, 8), 4 * 4 * 8 * 3 * 15),
    "strided": (lambda: nnx.Conv(8, 3, (3, 3), 2, padding=1, rngs=nnx.Rngs(0)), (5, 5, 8), 3 * 3 * 8 * 3 * 9),
    "grouped": (
        lambda: nnx.Conv(8, 4, (3, 3), feature_group_count=4, padding=1, rngs=nnx.Rngs(0)),
        (5, 5, 8),
        25 * 2 * 4 * 9,
    ),
    "transposed": (lambda: nnx.ConvTranspose(8, 3, (2, 2), (2, 2), rngs=nnx.Rngs(0)), (4, 4, 8), 4 * 4 * 8 * 3 * 4),
    "attention": (lambda: Calls(lambda w, x: x @ w @ jnp.swapaxes(x, -1, -2)), (5, 8), 5 * 8 * 8 + 5 * 5 * 8),
    "jitted": (lambda: Calls(jax.jit(lambda w, x: x @ w)), (8,), 64),
    "rematerialised": (lambda: Calls(jax.checkpoint(lambda w, x: x @ w)), (8,), 64),
    "scanned": (lambda: Calls(scanned), (8,), 5 * 64),
    "branched": (lambda: Calls(branched), (8,), 64),
    "elementwise": (lambda: Calls(lambda w, x: x * w.sum()), (8,), 0),
}


@pytest.mark.parametrize(("make", "shape", "expected"), COUNTED.values(), ids=COUNTED)
def test_multiply_adds_are_those_of_arithmetic(
    make: Callable[[], nnx.Module], shape: tuple[int, ...], expected: int
) -> None:
    assert count_multiply_adds(nnx.eval_shape(make), shape) == expected


def test_counting_keeps_the_mode_and_the_statistics() -> None:
    net = nnx.Sequential(
        nnx.Linear(4, 4, rngs=nnx.Rngs(0)), nnx.BatchNorm(4, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(0))
    )
    before = net.layers[2].rngs.count[...]
    assert count_multiply_adds(net, (4,)) == 16
    assert not net.layers[1].use_running_average
    assert not net.layers[2].deterministic
    assert (net.layers[1].mean[...] == 0).all()
    assert net.layers[2].rngs.count[...] == before


def test_shared_parameters_count_once() -> None:
    shared = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
    net = nnx.Sequential(shared, shared)
    assert count_params(net) == 12
    assert count_multiply_adds(net, (3,)) == 18


def names(module: nnx.Module, shape: tuple[int, ...], dtype: str = "float32") -> dict[int, int]:
    held: dict[int, int] = {}
    for operation in dense_operations(module, shape, dtype=dtype):
        held |= operation.activations
    return held


def test_activations_are_named_across_inner_programs_and_weights_are_not_activations() -> None:
    """The program is x @ w, and again inside a jit: input, middle and output have 8 floats each."""
    twice = Calls(lambda w, x: jax.jit(lambda w, y: y @ w)(w, x @ w))
    assert sorted(names(twice, (8,)).values()) == [32, 32, 32]


def test_an_array_that_is_read_twice_counts_once() -> None:
    assert sorted(names(Calls(lambda w, x: x @ w + x @ (2 * w)), (8,)).values()) == [32, 32, 32]


def test_activations_shrink_with_the_dtype() -> None:
    spec = ResNetSpec(depths=(1,), widths=(4,), stem="cifar", num_classes=3)
    wide, narrow = (
        nnx.eval_shape(
            lambda dtype=dtype: ResNet(ResNetSpec.from_dict(spec.to_dict() | {"dtype": dtype}), rngs=nnx.Rngs(0))
        )
        for dtype in ("float32", "bfloat16")
    )
    head = 4 * 4 + 4 * 3  # pooled features and logits stay float32
    assert sum(names(wide, (8, 8, 3)).values()) - head == 2 * (sum(names(narrow, (8, 8, 3)).values()) - head)
