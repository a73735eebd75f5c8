"""Convolutions with standardized kernels, as in Big Transfer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from resfit.errors import ModuleError, SpecError
from resfit.nets import Layers, ResNet, ResNetSpec, create_model, fold_batch_norm
from resfit.trainer.graph.layer_options import compute_in
from tests.helpers import call

STANDARDIZED = Layers(weight_standardization=True)
X = np.random.default_rng(0).normal(size=(2, 6, 7, 8)).astype(np.float32)


def convolution(layers: Layers, offset: float = 3.0, **arguments: int) -> nnx.Conv:
    """Return a convolution whose kernel has another mean and scale than a new one."""
    conv = layers.conv(8, 4, kernel=3, rngs=nnx.Rngs(0), **arguments)
    conv.kernel.set_value(jnp.asarray(np.asarray(conv.kernel[...]) * np.float32(5) + np.float32(offset)))
    return conv


@pytest.mark.parametrize("groups", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_it_equals_a_plain_convolution_with_a_kernel_of_mean_0_and_variance_1(groups: int) -> None:
    conv, plain = convolution(STANDARDIZED, groups=groups), convolution(Layers(), groups=groups)
    kernel = np.asarray(conv.kernel[...], np.float64)
    kernel = (kernel - kernel.mean((0, 1, 2))) / np.sqrt(kernel.var((0, 1, 2)) + 1e-8)
    before = np.asarray(call(plain, X))
    plain.kernel.set_value(jnp.asarray(kernel.astype(np.float32)))
    np.testing.assert_allclose(call(conv, X), call(plain, X), rtol=1e-4, atol=1e-4)
    assert not np.allclose(before, call(plain, X), atol=1e-2)  # a negative control
    assert type(conv) is nnx.Conv


def test_a_compute_dtype_of_16_bits_standardizes_in_float32() -> None:
    """In bfloat16, kernels of mean 300 and deviation 1 would have no digits of their deviation left."""
    conv = convolution(STANDARDIZED, offset=300.0)
    expected = np.asarray(call(conv, X))
    compute_in(conv, "bfloat16")
    found = call(conv, X)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(found, np.float32), expected, atol=0.03 * np.abs(expected).max())


def test_a_kernel_of_zeros_raises_when_the_network_is_built() -> None:
    with pytest.raises(SpecError, match=r"kernel of zeros.*zero_init_last=False"):
        create_model("resnetv2_50", num_classes=3, depths=(1,), widths=(8,), weight_standardization=True)


def test_the_space_to_depth_stem_cannot_standardize() -> None:
    with pytest.raises(SpecError, match=r"SpaceToDepthStem received weight_standardization=True.*stem='imagenet'"):
        create_model(
            "resnet18", num_classes=3, depths=(1,), widths=(8,), stem="space_to_depth", weight_standardization=True
        )


def test_a_norm_after_a_standardized_convolution_is_not_folded() -> None:
    spec = ResNetSpec((1,), (8,), stem="cifar", num_classes=3, weight_standardization=True)
    net = nnx.eval_shape(lambda: ResNet(spec, rngs=nnx.Rngs(0)))
    with pytest.raises(ModuleError, match="nothing to fold"):
        fold_batch_norm(net, jax.ShapeDtypeStruct((1, 8, 8, 3), "float32"))
