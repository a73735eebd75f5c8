"""Conversions between the kernel layouts of resfit and other libraries."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from einops import rearrange

from resfit.errors import WeightsError

Array = np.ndarray[Any, np.dtype[Any]]


class AxisLayout(NamedTuple):
    """A pair of layouts of the same numbers: resfit's and another library's.

    Attributes:
        outwards: convert an array from resfit's layout to the other one.
        inwards: convert an array from the other layout to resfit's.
        shape: convert a shape from resfit's layout to the other one.
    """

    outwards: Callable[[Array], Array]
    inwards: Callable[[Array], Array]
    shape: Callable[[tuple[int, ...]], tuple[int, ...]]


def _axes(here: str, there: str) -> AxisLayout:
    """Return the conversion between two orders of axes in einops notation."""

    def shape(sizes: tuple[int, ...]) -> tuple[int, ...]:
        named = dict(zip(here.split(), sizes, strict=True))
        return tuple(named.get(axis, 1) for axis in there.split())

    return AxisLayout(
        lambda value: rearrange(value, f"{here} -> {there}"),
        lambda value: rearrange(value, f"{there} -> {here}"),
        shape,
    )


AS_IT_IS = AxisLayout(lambda value: value, lambda value: value, lambda shape: shape)
BY_RANK: Mapping[int, AxisLayout] = MappingProxyType(
    {4: _axes("h w i o", "o i h w"), 3: _axes("w i o", "o i w"), 2: _axes("i o", "o i")}
)
DENSE_AS_CONVOLUTION = _axes("i o", "o i 1 1")  # a dense layer that is a 1x1 convolution in the other library


def _from_blocks(kernel: Array) -> Array:
    """Convert a (4, 4, 4 in, out) kernel over blocks of 2x2 pixels to (out, in, 7, 7) over pixels."""
    pixels = rearrange(kernel, "h w (i j c) o -> o c (h i) (w j)", i=2, j=2)
    if pixels[:, :, 0].any() or pixels[:, :, :, 0].any():
        raise WeightsError(
            "The 8x8 kernel of the space-to-depth stem has nonzero values in the row and column that a 7x7 kernel "
            "lacks, because it was trained. Expected zeros there. Save the network with Model.save, or train with "
            "stem='imagenet'."
        )
    return pixels[:, :, 1:, 1:]


def _to_blocks(kernel: Array) -> Array:
    padded = np.pad(kernel, ((0, 0), (0, 0), (1, 0), (1, 0)))
    return rearrange(padded, "o c (h i) (w j) -> h w (i j c) o", i=2, j=2)


SPACE_TO_DEPTH = AxisLayout(_from_blocks, _to_blocks, lambda shape: (shape[3], shape[2] // 4, 7, 7))
