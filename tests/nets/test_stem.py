"""Stems: conversion of kernels, blurring, and the attributes of a stem."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from flax import nnx

from resfit import weights
from resfit.nets import STEMS, ImageNetStem, ResNet, ResNetSpec, SpaceToDepthStem, max_pool
from tests.helpers import call


def nets(dtype: str) -> tuple[ResNet, ResNet]:
    """Return the same network with both stems and the weights of the first."""
    plain, blocks = _built(dtype)
    return nnx.clone(plain), nnx.clone(blocks)


@functools.cache
def _built(dtype: str) -> tuple[ResNet, ResNet]:
    fields = {"depths": (1,), "widths": (8,), "num_classes": 3, "dtype": dtype, "param_dtype": dtype}
    plain, blocks = (
        ResNet(ResNetSpec(stem=stem, **fields), rngs=nnx.Rngs(i))  # type: ignore[arg-type]
        for i, stem in enumerate(("imagenet", "space_to_depth"))
    )
    weights.load_state_dict(blocks, weights.state_dict(plain))
    return plain, blocks


@pytest.mark.representatives("size0")
@pytest.mark.parametrize(
    "size", [(64, 64), (71, 69), *(pytest.param(size, marks=pytest.mark.slow) for size in ((65, 64), (66, 67)))]
)
def test_space_to_depth_is_the_7x7_convolution_exactly(size: tuple[int, int]) -> None:
    with jax.enable_x64(True):
        plain, blocks = nets("float64")
        x = jnp.asarray(np.random.default_rng(0).normal(size=(2, *size, 3)))
        expected, found = (np.asarray(call(net.stem, x, train=False)) for net in (plain, blocks))
    assert expected.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


def test_a_kernel_that_is_not_shifted_by_its_padding_would_be_another_convolution() -> None:
    """A negative control: zeros on the wrong side."""
    plain, blocks = nets("float32")
    kernel = np.asarray(blocks.stem.conv_of_blocks.kernel[...])
    pixels = rearrange(kernel, "h w (i j c) o -> (h i) (w j) c o", i=2, j=2)
    wrong = np.pad(pixels[1:, 1:], ((0, 1), (0, 1), (0, 0), (0, 0)))
    blocks.stem.conv_of_blocks.kernel.set_value(
        jnp.asarray(rearrange(wrong, "(h i) (w j) c o -> h w (i j c) o", i=2, j=2))
    )
    x = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype(np.float32)
    assert not np.allclose(call(blocks.stem, x), call(plain.stem, x), atol=1e-2)


def test_a_new_kernel_of_blocks_starts_as_a_7x7_one() -> None:
    """The same seed gives the same function. Taps outside of the 7x7 kernel are zero."""
    plain, blocks = (kind(3, 64, rngs=nnx.Rngs(0)) for kind in (ImageNetStem, SpaceToDepthStem))
    pixels = rearrange(np.asarray(blocks.conv_of_blocks.kernel[...]), "h w (i j c) o -> (h i) (w j) c o", i=2, j=2)
    np.testing.assert_array_equal(pixels[1:, 1:], plain.conv.kernel[...])
    assert not np.any(pixels[0])
    assert not np.any(pixels[:, 0])


def test_the_padding_of_the_4x4_kernel_is_dropped_when_written() -> None:
    plain, blocks = nets("float32")
    ours, theirs = weights.state_dict(blocks), weights.state_dict(plain)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])


@pytest.mark.representatives("imagenet", "cifar", "rs", "imagenet_conv")
@pytest.mark.parametrize("name", tuple(STEMS))
def test_strides_of_a_stem_match_its_output(name: str) -> None:
    """The last step of the Caffe stem drops an odd last row and column; all others round up."""
    stem = nnx.eval_shape(lambda: STEMS[name](3, 16, rngs=nnx.Rngs(0)))
    for size in ((64, 65), (66, 67)):
        expected = size
        for index, step in enumerate(STEMS[name].strides):
            more = 0 if name == "caffe" and index else step - 1
            expected = ((expected[0] + more) // step, (expected[1] + more) // step)
        x = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
        assert nnx.eval_shape(lambda stem, x: stem(x, train=True), stem, x).shape == (2, *expected, 16)


@pytest.mark.parametrize("size", [(64, 65), pytest.param((66, 67), marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["caffe", "bit"])
def test_the_edges_of_the_pools_of_caffe_and_of_bit_equal_flax(name: str, size: tuple[int, int]) -> None:
    """Of Caffe, a window starts at the first pixel; of Big Transfer, zeros surround the features."""
    stem = STEMS[name](3, 8, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(1, *size, 3)).astype(np.float32)

    @nnx.jit
    def both(stem: Any, x: jax.Array) -> tuple[jax.Array, ...]:
        if name == "caffe":
            features, edge = nnx.relu(stem.norm(stem.conv(x))), (0, 1)
        else:
            features, edge = jnp.pad(stem.conv(x), ((0, 0), (1, 1), (1, 1), (0, 0))), (0, 0)
        return stem(x), nnx.max_pool(features, (3, 3), (2, 2), (edge, edge)), max_pool(features)

    found, expected, usual = both(stem, x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert usual.shape != found.shape or not np.allclose(usual, found)  # a negative control


@pytest.mark.representatives("imagenet")
@pytest.mark.parametrize("name", ["imagenet", "deep", "deep_tiered"])
def test_a_blurring_stem_changes_less_with_the_position_of_the_image(name: str) -> None:
    """Shifting the image by two pixels changes blurred features less."""
    x = np.random.default_rng(0).normal(size=(4, 64, 64, 3)).astype(np.float32)
    moved = np.roll(x, 2, axis=2)

    def change(**asked: str) -> float:
        stem = STEMS[name](3, 16, rngs=nnx.Rngs(0), **asked)
        before, after = (np.asarray(call(stem, image, train=False))[:, 4:-4, 4:-4] for image in (x, moved))
        return float(np.abs(after - before).mean() / before.mean())

    assert change(antialias="blur") < 0.8 * change()


def test_a_stem_for_small_images_with_a_pool_does_not_warn_of_small_images() -> None:
    net = ResNet(ResNetSpec(depths=(1,), widths=(4,), stem="cifar_pool", num_classes=3), rngs=nnx.Rngs(0))
    assert nnx.eval_shape(lambda net, x: net(x), net, jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)).shape == (1, 3)
    assert nnx.eval_shape(lambda net, x: net.features(x)[0], net, jnp.ones((1, 33, 32, 3))).shape == (1, 17, 16, 4)


def test_an_averaging_stem_drops_an_odd_last_row_and_column_as_timm_does() -> None:
    stem = STEMS["imagenet"](3, 16, antialias="avg", rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(1, 65, 66, 3)).astype(np.float32)  # 33 x 33 pixels before the average
    found, convolved = nnx.jit(lambda stem, x: (stem(x), nnx.relu(stem.norm(stem.conv(x)))))(stem, x)
    assert found.shape == (1, 16, 16, 16)
    expected = np.asarray(convolved)[:, :32, :32].reshape(1, 16, 2, 16, 2, 16).mean((2, 4))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.representatives("cifar_conv-True", "imagenet-False")
@pytest.mark.parametrize(
    ("name", "bare"),
    [("imagenet_conv", True), ("cifar_conv", True), ("deep_conv", True), ("bit", True), ("imagenet", False)],
)
def test_stems_of_pre_activated_blocks_have_no_norm_and_no_activation(name: str, bare: bool) -> None:
    stem = STEMS[name](3, 16, rngs=nnx.Rngs(0))
    output = call(stem, -np.ones((1, 64, 64, 3), np.float32))
    assert bool((np.asarray(output) < 0).any()) is bare
    assert hasattr(stem, "norm") is not bare


def test_a_network_of_pre_activated_blocks_ends_in_a_norm_and_a_relu() -> None:
    spec = ResNetSpec(depths=(1, 1), widths=(8, 8), block="preact_basic", stem="cifar_conv", num_classes=3)
    net = ResNet(spec, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    net.norm.norm.bias.set_value(jnp.asarray(np.full(8, 0.5, np.float32)))
    ((last,), embedding, logits) = nnx.jit(lambda net, x: (net.features(x, stages=(2,)), net.embed(x), net(x)))(net, x)
    assert np.min(last) < 0
    expected = np.maximum(np.asarray(last) / np.sqrt(np.float32(1 + 1e-5)) + 0.5, 0).mean((1, 2))
    np.testing.assert_allclose(embedding, expected, atol=1e-5)
    np.testing.assert_allclose(logits, call(net.head.dense, expected), atol=1e-5)
    before = np.asarray(net.norm.norm.mean[...])
    call(net, x, train=True)
    assert (np.asarray(net.norm.norm.mean[...]) != before).all()
