"""How the axes of a kernel lie here, and how in a PyTorch state dict."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from einops import rearrange

from resfit.errors import WeightsError

Array = np.ndarray[Any, np.dtype[Any]]


class Layout(NamedTuple):
    """Two ways to lay out the same numbers.

    Attributes:
        outwards: from resfit's to the other one.
        inwards: back.
        shape: of the other one, given resfit's.
    """

    outwards: Callable[[Array], Array]
    inwards: Callable[[Array], Array]
    shape: Callable[[tuple[int, ...]], tuple[int, ...]]


def _axes(here: str, there: str) -> Layout:
    """The same array with its axes in another order, as einops names them."""

    def shape(sizes: tuple[int, ...]) -> tuple[int, ...]:
        named = dict(zip(here.split(), sizes, strict=True))
        return tuple(named.get(axis, 1) for axis in there.split())

    return Layout(
        lambda value: rearrange(value, f"{here} -> {there}"),
        lambda value: rearrange(value, f"{there} -> {here}"),
        shape,
    )


AS_IT_IS = Layout(lambda value: value, lambda value: value, lambda shape: shape)
BY_RANK: Mapping[int, Layout] = MappingProxyType({4: _axes("h w i o", "o i h w"), 2: _axes("i o", "o i")})
DENSE_AS_CONVOLUTION = _axes("i o", "o i 1 1")  # a dense layer on pooled features, there a 1x1 convolution


def _from_blocks(kernel: Array) -> Array:
    """(4, 4, 4 in, out) over blocks of 2x2 pixels -> (out, in, 7, 7) over pixels."""
    pixels = rearrange(kernel, "h w (i j c) o -> o c (h i) (w j)", i=2, j=2)
    if pixels[:, :, 0].any() or pixels[:, :, :, 0].any():
        raise WeightsError(
            "The space-to-depth stem was trained on: its 8x8 kernel is not zero in the row and column that a 7x7 one "
            "lacks. Expected zeros there. Save it with Model.save, or train with stem='imagenet'."
        )
    return pixels[:, :, 1:, 1:]


def _to_blocks(kernel: Array) -> Array:
    padded = np.pad(kernel, ((0, 0), (0, 0), (1, 0), (1, 0)))
    return rearrange(padded, "o c (h i) (w j) -> h w (i j c) o", i=2, j=2)


SPACE_TO_DEPTH = Layout(_from_blocks, _to_blocks, lambda shape: (shape[3], shape[2] // 4, 7, 7))
