"""Affine maps of images: matrices, and pixels sampled at mapped places."""

import jax
import jax.numpy as jnp
import numpy as np

from resfit.augment.masks import filling
from resfit.augment.transform import like, to_float
from resfit.errors import CompileError, LabelError

INTERPOLATIONS = ("nearest", "bilinear")


def identity(rows: int) -> jax.Array:
    """Return matrices (rows, 2, 3) that keep every pixel."""
    return jnp.broadcast_to(jnp.eye(2, 3, dtype=jnp.float32), (rows, 2, 3))


def matrices(
    angle: jax.Array, translate: tuple[jax.Array, jax.Array], scale: jax.Array, shear: tuple[jax.Array, jax.Array]
) -> jax.Array:
    """Return the places in the input of the pixels of the output, as torchvision's `affine` has them.

    Args:
      angle: clockwise, in degrees, (rows,), as all following ones.
      translate: to the right and down, in pixels.
      scale: the size of the result of one pixel.
      shear: along the horizontal and the vertical axis, in degrees.

    Returns:
      (rows, 2, 3) float32: places (x, y) from places (x, y, 1), counted from the center of the image.
    """
    turn, (along_x, along_y) = jnp.deg2rad(angle), (jnp.deg2rad(one) for one in shear)
    cos, tan = jnp.cos(along_y), jnp.tan(along_x)
    a, c = jnp.cos(turn - along_y) / cos, jnp.sin(turn - along_y) / cos
    b, d = -a * tan - jnp.sin(turn), -c * tan + jnp.cos(turn)
    inverse = jnp.stack([jnp.stack([d, -b], -1), jnp.stack([-c, a], -1)], 1) / scale[:, None, None]
    moved = -jnp.einsum("rij,rj->ri", inverse, jnp.stack(translate, -1))
    return jnp.concatenate([inverse, moved[..., None]], -1)


def sample(x: jax.Array, inverse: jax.Array, interpolation: str, fill: float) -> jax.Array:
    """Return images whose pixels come from mapped places.

    Args:
      x: images (rows, height, width, channels).
      inverse: a result of `matrices`.
      interpolation: "nearest", or "bilinear" between the centers of four pixels.
      fill: the value outside of the image.
    """
    places = _places(inverse, x.shape[1], x.shape[2])
    if interpolation == "nearest":
        pixels, inside = _pixels(x, *(jnp.round(one).astype(jnp.int32) for one in places))
        return jnp.where(inside[..., None], pixels, like(jnp.asarray(fill, jnp.float32), x))
    corners = [jnp.floor(one) for one in places]
    (right, down) = (one - corner for one, corner in zip(places, corners, strict=True))
    found = jnp.zeros((), to_float(x[:0]).dtype)
    for dx, of_x in ((0, 1 - right), (1, right)):
        for dy, of_y in ((0, 1 - down), (1, down)):
            pixels, inside = _pixels(x, *(one.astype(jnp.int32) + d for one, d in zip(corners, (dx, dy), strict=True)))
            # Pixels outside count as `fill`: the sum of the weights is one.
            weight = jnp.where(inside, (of_x * of_y).reshape(inside.shape), 0)
            found += weight[..., None] * (to_float(pixels) - fill)
    return like(found + fill, x)


def sample_masks(name: str, masks: jax.Array, inverse: jax.Array, mask_fill: int | None) -> jax.Array:
    """Return masks whose pixels come from the nearest mapped place.

    Raises:
      LabelError: without a label for pixels outside, or if the masks cannot hold it.
    """
    if mask_fill is None:
        raise LabelError(
            f"augment.{name} moves masks, of shape {masks.shape[:3]}, and got no label for pixels from outside of the "
            "image. Expected mask_fill=255 with the loss CrossEntropy(ignore_index=255), or mask_fill=0 if class 0 is "
            "the background."
        )
    places = _places(inverse, masks.shape[1], masks.shape[2])
    pixels, inside = _pixels(masks, *(jnp.round(one).astype(jnp.int32) for one in places))
    return jnp.where(inside[..., None], pixels, filling(name, masks, mask_fill))


def check_interpolation(name: str, interpolation: str) -> None:
    """Raise CompileError for an unknown interpolation."""
    if interpolation not in INTERPOLATIONS:
        raise CompileError(
            f"augment.{name} got interpolation={interpolation!r}. Expected one of {list(INTERPOLATIONS)}."
        )


def _places(inverse: jax.Array, height: int, width: int) -> tuple[jax.Array, jax.Array]:
    """Return the mapped places as columns and rows of the input, (rows, height * width) each."""
    y, x = (grid.reshape(-1).astype(np.float32) for grid in np.mgrid[:height, :width])
    middle = ((width - 1) / 2, (height - 1) / 2)
    centered = x - np.float32(middle[0]), y - np.float32(middle[1])
    across, along = (
        inverse[:, axis, 0, None] * centered[0]
        + inverse[:, axis, 1, None] * centered[1]
        + (inverse[:, axis, 2, None] + np.float32(middle[axis]))
        for axis in (0, 1)
    )
    return across, along


def _pixels(x: jax.Array, column: jax.Array, row: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the pixels at columns and rows, and True for each that is inside; others are those of the border."""
    n, height, width, channels = x.shape
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    index = jnp.clip(row, 0, height - 1) * width + jnp.clip(column, 0, width - 1)
    flat = x.reshape(n, height * width, channels)
    taken = jax.vmap(lambda image, places: image[places])(flat, index)
    return taken.reshape(x.shape), inside.reshape(n, height, width)
