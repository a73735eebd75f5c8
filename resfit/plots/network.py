"""Figures of what happens inside a network."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit._utils.checks import positive_int
from resfit._utils.keywords import checked
from resfit.errors import DataError
from resfit.plots.figure import finish, matplotlib_module, new_figure
from resfit.plots.training import TRAINING, VALIDATION

if TYPE_CHECKING:
    import matplotlib.figure

    from resfit.nets.probe import BlockStatistics


@checked("function arguments")
def block_statistics(blocks: "Sequence[BlockStatistics]") -> "matplotlib.figure.Figure":
    """Draw output size, gradient norm and dead channels of every block over the depth of the network.

    Args:
      blocks: the blocks of a report, `resfit.doctor(model, x, y).blocks`.

    Raises:
      DataError: if there are no blocks.

    Example:
      >>> from resfit.nets.probe import BlockStatistics
      >>> figure = block_statistics([BlockStatistics("stem", 1.0, 0.0, 0.1), BlockStatistics("head", 2.0, 0.0, 0.2)])
      >>> [axes.get_title(loc="left") for axes in figure.axes]
      ['output, root mean square', 'gradient, norm', 'dead channels, %']
    """
    if not blocks:
        raise DataError(
            "Got no blocks. Expected the blocks of a report of resfit.doctor. Pass resfit.doctor(model, x, y).blocks."
        )
    panels = (
        ("output, root mean square", [block.rms for block in blocks], TRAINING),
        ("gradient, norm", [block.gradient for block in blocks], VALIDATION),
        ("dead channels, %", [100 * block.dead for block in blocks], "#777777"),
    )
    depth = np.arange(len(blocks))
    figure = new_figure(10.5, min(1.6 + 0.26 * len(blocks), 14))
    for place, (title, values, color) in enumerate(panels, start=1):
        axes = figure.add_subplot(1, 3, place)
        axes.plot(values, depth, color=color, marker="o", markersize=4, linewidth=1.4)
        if title.startswith("dead"):
            axes.set_xlim(-4, 104)
        elif any(0 < value < math.inf for value in values):
            # A log scale of whole decades, so that a factor of two looks small.
            positive = [value for value in values if 0 < value < math.inf]
            axes.set_xscale("log", nonpositive="clip")
            low, high = (math.floor(math.log10(pick(positive))) for pick in (min, max))
            axes.set_xlim(10 ** (low - 0.1), 10 ** (high + 1.1))
            axes.xaxis.set_minor_formatter(matplotlib_module(".ticker").NullFormatter())
        axes.invert_yaxis()
        shown = range(0, len(blocks), math.ceil(len(blocks) / 50))
        axes.set_yticks(shown, [blocks[i].name if place == 1 else "" for i in shown])
        finish(axes, title)
    return figure


@checked("function arguments")
def grad_cam(images: Any, maps: Any, titles: Sequence[str] | None = None, count: int = 8) -> "matplotlib.figure.Figure":
    """Draw images, and below each image the same image with its class activation map.

    Args:
      images: (examples, height, width, channels) with 1 or 3 channels, uint8 or float in [0, 1].
      maps: maps (examples, height, width) of `resfit.grad_cam`, from 0 to 1.
      titles: one title per image.
      count: the largest number of images.

    Raises:
      DataError: if images, maps and titles do not fit together.

    Example:
      >>> figure = grad_cam(np.zeros((2, 8, 8, 1)), np.ones((2, 8, 8)), ["seven", "nine"])
      >>> [axes.get_title() for axes in figure.axes]
      ['seven', '', 'nine', '']
    """
    images, maps = np.asarray(images), np.asarray(maps)
    if images.ndim != 4 or images.shape[3] not in (1, 3) or maps.shape != images.shape[:3] or not len(images):
        raise DataError(
            f"Got images of shape {images.shape} and maps of shape {maps.shape}. Expected (examples, height, width, 1 "
            "or 3) and (examples, height, width). Pass the result of resfit.grad_cam for these images."
        )
    if titles is not None and len(titles) != len(images):
        raise DataError(f"Got {len(titles)} titles for {len(images)} images. Expected one for each.")
    shown = min(positive_int("count", count, DataError), len(images))
    figure = new_figure(1.5 * shown, 3.3)
    for i in range(shown):
        for row in (0, 1):
            axes = figure.add_subplot(2, shown, row * shown + i + 1)
            axes.imshow(images[i], cmap="gray", vmin=0, vmax=255 if images.dtype == np.uint8 else 1)
            if row:
                axes.imshow(maps[i], cmap="inferno", vmin=0, vmax=1, alpha=0.65, interpolation="bilinear")
            elif titles is not None:
                axes.set_title(titles[i], fontsize=9)
            axes.set_axis_off()
    return figure
