"""Checks of the inputs of a network."""

from typing import Any

from resfit.errors import RankError


def check_rank(x: Any, channels: int) -> None:
    """Raise if x is not an array of four axes."""
    if not hasattr(x, "ndim"):
        raise RankError(
            f"ResNet received a {type(x).__name__} of {len(x) if hasattr(x, '__len__') else 1} entries as its "
            f"input. Expected one array of images, (batch, height, width, {channels}). Pass labels as y; for several "
            "inputs, write a custom module."
        )
    if x.ndim == 4:
        return
    hint = "Reshape the input."
    if x.ndim == 3 and x.shape[-1] == channels:
        hint = f"Add the batch axis: x[None], of shape {(1, *x.shape)}."
    elif x.ndim == 3:
        hint = f"Add a channel axis to gray images: x[..., None], of shape {(*x.shape, 1)}" + (
            "." if channels == 1 else ", and build the network with in_channels=1."
        )
    elif x.ndim == 2:
        hint = f"Reshape flat pixels to images: x.reshape(-1, height, width, {channels})."
    raise RankError(
        f"ResNet received an input of {x.ndim} axes, of shape {x.shape}. Expected (batch, height, width, "
        f"{channels}). {hint}"
    )
