"""A check of pixel centers: the input pixels that each output pixel depends on."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from resfit.testing.findings import Wrong


def check_centres(
    module: nnx.Module, call: Callable[[Any, jax.Array], jax.Array], channels: int, strides: int, size: tuple[int, int]
) -> str | None:
    """Raise unless output pixel i is centered on input pixel i * strides, to half a pixel.

    The check sets parameters to random positive values, so that nothing cancels and every ReLU is active. Then it
    changes each row and each column of an image.

    Args:
        module: the module; the check calls a copy.
        call: a function (module, images) -> images.
        channels: the number of channels of the images.
        strides: the stride of the module in pixels.
        size: height and width of the images. Pass an even and an odd size, which can round in different ways.

    Returns:
        The reason why no pixel could be checked, or None.

    Raises:
        Wrong: if an output pixel has another center.
    """
    generator = np.random.default_rng(0)
    graph, state = nnx.split(module)
    for _, variable in nnx.to_flat_state(state):
        if isinstance(variable, nnx.Param):
            shape = variable.get_raw_value().shape
            values = generator.uniform(0.5, 1.5, shape) / max(np.prod(shape[:-1]), 1)
            variable.set_raw_value(jax.numpy.asarray(values, jax.numpy.float32))
    image = generator.uniform(1, 2, (*size, channels)).astype(np.float32)
    images = np.repeat(image[None], 1 + sum(size), 0)
    for row in range(size[0]):
        images[1 + row, row] = 3 + generator.uniform(0, 3, images[0, row].shape)
    for column in range(size[1]):
        images[1 + size[0] + column, :, column] = 3 + generator.uniform(0, 3, images[0, :, column].shape)
    output = np.asarray(jax.jit(lambda state, x: call(nnx.merge(graph, state), x))(state, images), np.float64)
    differs = (np.abs(output - output[0]) > 1e-5 * np.abs(output[0])).any(-1)
    by_axis = (differs[1 : 1 + size[0]].any(2), differs[1 + size[0] :].any(1))  # (input pixel, output pixel)
    checked = 0
    for axis, depends in zip(("height", "width"), by_axis, strict=True):
        for i, field in enumerate(depends.T):
            seen = np.flatnonzero(field)
            if not len(seen) or seen[0] < strides or seen[-1] >= len(field) - strides:
                continue  # it may depend on padding, or on the whole image
            checked += 1
            offset = (seen[0] + seen[-1]) / 2 - strides * i
            if abs(offset) > 0.5 and offset != (strides - 1) / 2:  # the center of its patch
                raise Wrong(
                    f"output pixel {i} along the {axis} depends on the input pixels {seen[0]} to {seen[-1]}, whose "
                    f"center is {abs(offset):g} pixels from pixel {strides * i} of the shortcut. Expected a padding of "
                    "dilation * (kernel // 2) on both sides, as in layers.conv, and not 'SAME'"
                )
    return None if checked else "every output pixel depends on the edge of the image: pixel centers were not checked"
