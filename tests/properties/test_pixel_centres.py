"""The branch and the shortcut of a block sample the same pixels. With padding 'SAME' they do not.

Every kernel of the branch only passes on its central tap, so the branch returns the pixels at the centers of its
windows. These must be the pixels that a strided 1x1 shortcut takes.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import event, given
from hypothesis import strategies as st

from resfit.nets import (
    BLOCKS,
    SHORTCUTS,
    STEMS,
    ImageNetStem,
    PadShortcut,
    ResNet,
    ResNetSpec,
    average_pool,
    blur_pool,
)


def pass_on_the_centre(conv: nnx.Conv) -> None:
    height, width, n_in, n_out = conv.kernel.shape
    kernel = np.zeros((height, width, n_in, n_out), np.float32)
    kernel[height // 2, width // 2] = np.eye(n_in, n_out)
    conv.kernel.set_value(jnp.asarray(kernel))


def numbered(size: tuple[int, int], channels: int) -> np.ndarray:
    """Return an image in which every pixel has its own positive number."""
    pixels = 1.0 + np.arange(size[0] * size[1], dtype=np.float32).reshape(1, *size, 1)
    return pixels.repeat(channels, axis=-1)


def sampled_by_branch(kind: str, strides: int, size: tuple[int, int], padding: Any = None, **asked: Any) -> np.ndarray:
    """Return the output of the branch of a block of one channel, with its own padding or another one."""

    @jax.jit
    def branch_of(image: jax.Array) -> jax.Array:
        branch = BLOCKS[kind](1, 1, strides=strides, zero_init_last=False, rngs=nnx.Rngs(0), **asked).branch
        for _, module in nnx.iter_modules(branch):
            if isinstance(module, nnx.Conv):
                pass_on_the_centre(module)
                module.padding = module.padding if padding is None else padding
        return branch(image, train=False)

    return np.asarray(branch_of(numbered(size, 1)))[..., :1]


def sampled_by_shortcut(strides: int, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(jax.jit(PadShortcut(1, 1, strides=(strides, strides)).__call__)(numbered(size, 1)))


SIZES = st.tuples(st.integers(1, 7), st.integers(1, 7))


KINDS = tuple(BLOCKS)
DILATIONS = st.sampled_from([{}, {"dilation": 2}, {"dilation": 4, "first_dilation": 2}])


@given(st.sampled_from(KINDS), st.integers(1, 3), SIZES, DILATIONS)
def test_branch_and_shortcut_sample_the_same_pixels(
    kind: str, strides: int, size: tuple[int, int], dilation: dict[str, int]
) -> None:
    branch = sampled_by_branch(kind, strides, size, **dilation)
    np.testing.assert_allclose(branch, sampled_by_shortcut(strides, size), rtol=1e-4)


@pytest.mark.representatives("size0-basic")
@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
@pytest.mark.parametrize("size", [(8, 9), pytest.param((9, 8), marks=pytest.mark.slow)])
def test_a_blurred_branch_is_centered_on_the_same_pixels(kind: str, size: tuple[int, int]) -> None:
    """The pixel numbers are linear, so the mean of a window is its center, except at the reflected edge."""
    branch, shortcut = sampled_by_branch(kind, 2, size, antialias="blur"), sampled_by_shortcut(2, size)
    np.testing.assert_allclose(branch[:, 1:-1, 1:-1], shortcut[:, 1:-1, 1:-1], rtol=1e-4)
    image = jnp.asarray(numbered(size, 1))
    np.testing.assert_allclose(blur_pool(image)[:, 1:-1, 1:-1], image[:, 2:-2:2, 2:-2:2][:, : branch.shape[1] - 2])


@pytest.mark.parametrize("size", [(9, 7), *(pytest.param(size, marks=pytest.mark.slow) for size in ((8, 8), (7, 8)))])
def test_the_average_of_the_pooled_shortcut_starts_at_the_same_pixels(size: tuple[int, int]) -> None:
    """It is therefore shifted by half a pixel against the branch, with every stride."""
    image = numbered(size, 1)
    for strides in (1, 2):
        pooled = np.asarray(average_pool(jnp.asarray(image), strides=strides))
        inner = pooled[:, : size[0] // 2 - 1, : size[1] // 2 - 1]
        half = np.asarray(0.5 * size[1] + 0.5)  # half a pixel down is half a row of numbers; then half a pixel right
        expected = image[:, ::strides, ::strides][:, : inner.shape[1], : inner.shape[2]] + half
        np.testing.assert_allclose(inner, expected, rtol=1e-6)


def centres_of_stem(name: str, size: tuple[int, int], padding: Any = None, **asked: Any) -> np.ndarray:
    """Return the central pixels of the windows of a stem, including a max pool."""
    stem: Any = STEMS[name](1, 8, rngs=nnx.Rngs(0), **asked)
    for _, module in nnx.iter_modules(stem):
        if isinstance(module, nnx.Conv):
            if module.kernel_size == (4, 4):  # blocks of 2x2 pixels: the central pixel comes first in tap (2, 2)
                kernel = np.zeros(module.kernel.shape, np.float32)
                kernel[2, 2, 0, 0] = 1
                module.kernel.set_value(jnp.asarray(kernel))
            else:
                pass_on_the_centre(module)
                module.padding = module.padding if padding is None else padding
    image = numbered(size, 1)
    last = image.max() + 1
    call = jax.jit(lambda x: stem(x, train=False)[..., 0])
    return np.asarray(call(image) + last - call(last - image)) / 2


@pytest.mark.representatives("imagenet-size0")
@pytest.mark.parametrize("size", [(32, 33), pytest.param((35, 30), marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("imagenet", "deep", "cifar", "space_to_depth") else pytest.mark.slow)
        for name in STEMS
        if name != "caffe"  # whose windows are one pixel off, as in the networks that were made for Caffe
    ],
)
def test_every_stem_is_centered_on_the_pixels_of_its_stride(name: str, size: tuple[int, int]) -> None:
    step = math.prod(STEMS[name].strides)
    inner = (slice(None), slice(1, -2), slice(1, -2))
    expected = numbered(size, 1)[:, ::step, ::step, 0][inner]
    for asked in ({}, {"antialias": "blur"}) if name in ("imagenet", "deep", "deep_tiered") else ({},):
        np.testing.assert_allclose(centres_of_stem(name, size, **asked)[inner], expected, rtol=1e-3)
    # The negative control, for stems with a strided convolution.
    if name not in ("space_to_depth", "cifar_pool") and step > 1 and size[0] % 2 == 0:
        assert not np.allclose(centres_of_stem(name, size, padding="SAME")[inner], expected, rtol=1e-3)


@given(
    st.sampled_from(KINDS), st.sampled_from(tuple(STEMS)), st.sampled_from(tuple(SHORTCUTS)), st.sampled_from([4, 8])
)
def test_every_convolution_of_every_network_has_equal_padding_on_both_sides(
    block: str, stem: str, shortcut: str, stride: int
) -> None:
    steps = math.prod(STEMS[stem].strides)
    spec = ResNetSpec((1, 2), (8, 16), block=block, stem=stem, shortcut=shortcut, output_stride=steps * stride // 4)
    found = 0
    for path, conv in nnx.iter_modules(nnx.eval_shape(lambda: ResNet(spec, rngs=nnx.Rngs(0)))):
        if isinstance(conv, nnx.Conv) and path[-1] != "conv_of_blocks":
            found += 1
            dilation = np.broadcast_to(conv.kernel_dilation, 2)
            expected = [(d * (k // 2),) * 2 for d, k in zip(dilation, conv.kernel_size, strict=True)]
            assert list(map(tuple, conv.padding)) == expected, path
    assert found >= 6


def first_centre_with_same(kernel: int, strides: int, size: int) -> int:
    """Return the pixel on which XLA's 'SAME' centers the first window."""
    total = max((-(-size // strides) - 1) * strides + kernel - size, 0)
    return kernel // 2 - total // 2


@given(st.integers(1, 3), SIZES)
def test_with_same_padding_they_do_not_sample_the_same_pixels(strides: int, size: tuple[int, int]) -> None:
    """The negative control: the property above fails exactly where 'SAME' pads unevenly."""
    branch, shortcut = sampled_by_branch("basic", strides, size, padding="SAME"), sampled_by_shortcut(strides, size)
    shifted = any(first_centre_with_same(3, strides, n) for n in size)
    event("shifted" if shifted else "aligned")
    assert shifted != np.allclose(branch, shortcut, rtol=1e-4)


@pytest.mark.parametrize("size", [4, 6, 8])
def test_same_padding_is_off_by_one_pixel_for_every_even_size_with_stride_two(size: int) -> None:
    branch = sampled_by_branch("basic", 2, (size, size), padding="SAME")
    np.testing.assert_allclose(branch, numbered((size, size), 1)[:, 1::2, 1::2], rtol=1e-4)


@pytest.mark.parametrize("size", [7, 8])
def test_the_stem_samples_every_second_pixel_from_the_first(size: int) -> None:
    stem = ImageNetStem(1, 1, rngs=nnx.Rngs(0))
    pass_on_the_centre(stem.conv)
    image = numbered((size, size), 1)
    np.testing.assert_allclose(stem.conv(jnp.asarray(image)), image[:, ::2, ::2], rtol=1e-6)


def test_the_whole_network_keeps_the_position_of_the_first_pixel() -> None:
    """Shifts add up over stages: with 'SAME' the grid of the last stage is off by 7 pixels, and in resfit by 0."""
    strides_and_kernels = [(7, 2), (3, 2), (3, 2)]
    for padding, expected in ((None, 0), ("SAME", 7)):
        x = jax.nn.one_hot(jnp.arange(64), 64).reshape(1, 64, 1, 64)  # channel c is pixel c
        for kernel, strides in strides_and_kernels:
            pad: Any = padding or ((kernel // 2, kernel // 2), (0, 0))
            conv = nnx.Conv(64, 64, (kernel, 1), (strides, 1), padding=pad, use_bias=False, rngs=nnx.Rngs(0))
            pass_on_the_centre(conv)
            x = conv(x)
        assert int(x[0, 0, 0].argmax()) == expected
