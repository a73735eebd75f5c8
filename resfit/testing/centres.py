"""Where a part of a network looks: the pixels of its input that each pixel of its output depends on, by trying."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from resfit.testing.findings import Wrong


def check_centres(
    module: nnx.Module, call: Callable[[Any, jax.Array], jax.Array], channels: int, strides: int, size: tuple[int, int]
) -> str | None:
    """Output pixel i must be centred on input pixel i * strides, to half a pixel.

    Parameters become random positive ones, so that nothing cancels and no ReLU is silent. Then each row, and each
    column, of an image is changed in turn.

    Args:
        module: to call a copy of.
        call: (module, images) -> images.
        channels: of the images.
        strides: step of the module in pixels.
        size: height and width of the images; an even and an odd one show what rounds in two ways.

    Returns:
        Why nothing could be seen, or None.

    Raises:
        Wrong: if it is centred elsewhere.
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
    looked_at = 0
    for axis, depends in zip(("height", "width"), by_axis, strict=True):
        for i, field in enumerate(depends.T):
            seen = np.flatnonzero(field)
            if not len(seen) or seen[0] < strides or seen[-1] >= len(field) - strides:
                continue  # it may look over the edge, or looks at the whole image
            looked_at += 1
            offset = (seen[0] + seen[-1]) / 2 - strides * i
            if abs(offset) > 0.5 and offset != (strides - 1) / 2:  # the centre of a patch of its own
                raise Wrong(
                    f"output pixel {i} along the {axis} looks at the input's pixels {seen[0]} to {seen[-1]}, which is "
                    f"{abs(offset):g} pixels beside its place, {strides * i}, where the shortcut looks. Expected a "
                    "padding of dilation * (kernel // 2) on both sides, as layers.conv has it, and not 'SAME'"
                )
    return None if looked_at else "every output pixel depends on the edge of the image: where it looks was not checked"
