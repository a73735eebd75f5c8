"""Figures of a run, made with matplotlib. Needs `resfit[plot]`.

A notebook displays a Figure, also without pyplot. `figure.savefig("curves.png")` writes a Figure to a file.
"""

from typing import TYPE_CHECKING

from resfit._utils.words import no_attribute
from resfit.plots.classification import confusion_matrix, mistakes
from resfit.plots.images import batch
from resfit.plots.network import block_statistics, grad_cam
from resfit.plots.training import curves, learning_rate_schedule, learning_rate_search, trials

__all__ = [
    "batch",
    "block_statistics",
    "confusion_matrix",
    "curves",
    "grad_cam",
    "learning_rate_schedule",
    "learning_rate_search",
    "mistakes",
    "trials",
]

if not TYPE_CHECKING:  # a type checker would accept every name
    __getattr__ = no_attribute(__name__, "plots")
