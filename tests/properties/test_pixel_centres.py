"""The branch and the shortcut of a block look at the same pixels; with padding 'SAME' they do not.

Every kernel of the branch is set to pass on its central tap alone, so that the branch returns the pixels its windows
are centred on. Those must be the ones that a strided 1x1 shortcut takes.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import event, given, settings
from hypothesis import strategies as st

from resfit.nets import ImageNetStem, PadShortcut
from resfit.nets.spec import BLOCKS


def pass_on_the_centre(conv: nnx.Conv) -> None:
    height, width, n_in, n_out = conv.kernel.shape
    kernel = np.zeros((height, width, n_in, n_out), np.float32)
    kernel[height // 2, width // 2] = np.eye(n_in, n_out)
    conv.kernel.set_value(jnp.asarray(kernel))


def numbered(size: tuple[int, int], channels: int) -> np.ndarray:
    """An image in which every pixel has its own positive number."""
    pixels = 1.0 + np.arange(size[0] * size[1], dtype=np.float32).reshape(1, *size, 1)
    return pixels.repeat(channels, axis=-1)


def sampled_by_branch(kind: str, strides: int, size: tuple[int, int], padding: Any = None) -> np.ndarray:
    """What the branch of a block of one channel returns, its convolutions with their own padding or another."""

    @jax.jit
    def branch_of(image: jax.Array) -> jax.Array:
        branch = BLOCKS[kind](1, 1, strides=strides, zero_init_last=False, rngs=nnx.Rngs(0)).branch
        for _, module in nnx.iter_modules(branch):
            if isinstance(module, nnx.Conv):
                pass_on_the_centre(module)
                module.padding = module.padding if padding is None else padding
        return branch(image, train=False)

    return np.asarray(branch_of(numbered(size, 1)))[..., :1]


def sampled_by_shortcut(strides: int, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(jax.jit(PadShortcut(1, 1, strides=(strides, strides)).__call__)(numbered(size, 1)))


SIZES = st.tuples(st.integers(1, 7), st.integers(1, 7))


@settings(max_examples=20)
@given(st.sampled_from(sorted(BLOCKS)), st.integers(1, 3), SIZES)
def test_branch_and_shortcut_sample_the_same_pixels(kind: str, strides: int, size: tuple[int, int]) -> None:
    np.testing.assert_allclose(sampled_by_branch(kind, strides, size), sampled_by_shortcut(strides, size), rtol=1e-4)


def first_centre_with_same(kernel: int, strides: int, size: int) -> int:
    """The pixel on which XLA's 'SAME' centres the first window."""
    total = max((-(-size // strides) - 1) * strides + kernel - size, 0)
    return kernel // 2 - total // 2


@settings(max_examples=20)
@given(st.integers(1, 3), SIZES)
def test_with_same_padding_they_do_not(strides: int, size: tuple[int, int]) -> None:
    """The negative control: exactly where 'SAME' pads unevenly, the property above is violated."""
    branch, shortcut = sampled_by_branch("basic", strides, size, padding="SAME"), sampled_by_shortcut(strides, size)
    shifted = any(first_centre_with_same(3, strides, n) for n in size)
    event("shifted" if shifted else "aligned")
    assert shifted != np.allclose(branch, shortcut, rtol=1e-4)


@pytest.mark.parametrize("size", [4, 6, 8])
def test_same_padding_is_off_by_one_pixel_wherever_an_even_size_is_halved(size: int) -> None:
    branch = sampled_by_branch("basic", 2, (size, size), padding="SAME")
    np.testing.assert_allclose(branch, numbered((size, size), 1)[:, 1::2, 1::2], rtol=1e-4)


@pytest.mark.parametrize("size", [7, 8])
def test_the_stem_samples_every_second_pixel_from_the_first(size: int) -> None:
    stem = ImageNetStem(1, 1, rngs=nnx.Rngs(0))
    pass_on_the_centre(stem.conv)
    image = numbered((size, size), 1)
    np.testing.assert_allclose(stem.conv(jnp.asarray(image)), image[:, ::2, ::2], rtol=1e-6)


def test_the_whole_net_keeps_the_first_pixel_first() -> None:
    """Shifts add up over stages: with 'SAME' the grid of the last stage is 7 pixels off here, with ours 0."""
    strides_and_kernels = [(7, 2), (3, 2), (3, 2)]
    for padding, expected in ((None, 0), ("SAME", 7)):
        x = jax.nn.one_hot(jnp.arange(64), 64).reshape(1, 64, 1, 64)  # channel c is pixel c
        for kernel, strides in strides_and_kernels:
            pad: Any = padding or ((kernel // 2, kernel // 2), (0, 0))
            conv = nnx.Conv(64, 64, (kernel, 1), (strides, 1), padding=pad, use_bias=False, rngs=nnx.Rngs(0))
            pass_on_the_centre(conv)
            x = conv(x)
        assert int(x[0, 0, 0].argmax()) == expected
