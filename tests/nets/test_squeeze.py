"""Squeeze and excitation and efficient channel attention against their formulas."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from resfit.errors import SpecError
from resfit.nets import BasicBlock, EfficientChannelAttention, Layers, SqueezeExcite
from tests.helpers import call

X = np.random.default_rng(0).normal(size=(2, 3, 5, 16)).astype(np.float32)


def test_squeeze_excite_equals_its_formula() -> None:
    layer = SqueezeExcite(16, 1 / 2, rngs=nnx.Rngs(0))
    w1, b1, w2, b2 = (
        np.asarray(v[...], np.float64) for v in (layer.fc1.kernel, layer.fc1.bias, layer.fc2.kernel, layer.fc2.bias)
    )
    x = np.asarray(X, np.float64)
    hidden = np.maximum(x.mean((1, 2)) @ w1 + b1, 0)
    factors = 1 / (1 + np.exp(-(hidden @ w2 + b2)))
    np.testing.assert_allclose(call(layer, X), x * factors[:, None, None, :], rtol=1e-5)
    assert (factors.std(1) > 0).all()


@pytest.mark.representatives("64-0.0625-8", "120-0.25-32")
@pytest.mark.parametrize(
    ("channels", "ratio", "inner"),
    [(64, 1 / 16, 8), (256, 1 / 16, 16), (512, 1 / 16, 32), (64, 1 / 4, 16), (16, 1 / 16, 8), (120, 1 / 4, 32)],
)
def test_the_inner_width_is_a_multiple_of_eight(channels: int, ratio: float, inner: int) -> None:
    """The rule is make_divisible of timm: half of eight rounds up, and eight is the minimum."""
    layer = nnx.eval_shape(lambda: SqueezeExcite(channels, ratio, rngs=nnx.Rngs(0)))
    assert (layer.fc1.out_features, layer.fc2.out_features) == (inner, channels)


def test_squeeze_excite_scales_the_branch_and_not_the_shortcut() -> None:
    block = BasicBlock(16, 16, squeeze=1 / 2, zero_init_last=False, rngs=nnx.Rngs(0))

    @nnx.jit
    def weighed(block: BasicBlock, x: jax.Array) -> tuple[jax.Array, ...]:
        branch = block.branch(x)
        return block(x), nnx.relu(block.squeeze(branch) + x), nnx.relu(block.squeeze(branch + x))

    found, expected, wrong = weighed(block, X)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert not np.allclose(found, wrong, atol=1e-3)  # a negative control


def test_squeeze_excite_has_the_dtypes_of_the_layers() -> None:
    layer = SqueezeExcite(16, 1 / 2, layers=Layers(dtype="bfloat16"), rngs=nnx.Rngs(0))
    assert nnx.eval_shape(lambda layer, x: layer(x), layer, X.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    assert layer.fc1.kernel.dtype == jnp.float32


@pytest.mark.parametrize(("channels", "size"), [(16, 3), (64, 3), (256, 5), (2048, 7)])
def test_efficient_channel_attention_equals_its_formula(channels: int, size: int) -> None:
    layer = EfficientChannelAttention(channels, rngs=nnx.Rngs(0))
    kernel = np.asarray(layer.conv.kernel[...], np.float64).ravel()
    assert kernel.shape == (size,)
    x = np.random.default_rng(0).normal(size=(2, 2, 3, channels))
    means = np.pad(x.mean((1, 2)), ((0, 0), (size // 2, size // 2)))
    factors = 1 / (1 + np.exp(-sum(kernel[i] * means[:, i : i + channels] for i in range(size))))
    np.testing.assert_allclose(call(layer, x.astype(np.float32)), x * factors[:, None, None, :], rtol=1e-4)
    assert (factors.std(1) > 0).all()


@pytest.mark.parametrize("squeeze", [1.5, -0.25, "se", float("nan")])
def test_an_unknown_gate_raises(squeeze: Any) -> None:
    with pytest.raises(SpecError, match=r"squeeze=.*Expected a ratio between 0 and 1, 'eca'"):
        BasicBlock(16, 16, squeeze=squeeze, rngs=nnx.Rngs(0))
