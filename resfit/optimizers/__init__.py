"""Optimizers of optax with the learning rate in their state, so that a new learning rate does not recompile.

`compile(optimizer=...)` takes a name, a result of a function of this subpackage, any optax GradientTransformation, or a
function such as `optax.adamw`, which `compile` calls with the learning rate. `clip`, `by_part`, `by_depth`, `sam` and
`skip_non_finite` wrap any GradientTransformation.
"""

from typing import TYPE_CHECKING

from resfit._utils.keywords import check_constructors
from resfit._utils.words import no_attribute
from resfit.optimizers.clipping import clip
from resfit.optimizers.finite import Skips, skip_non_finite, skips
from resfit.optimizers.injected_learning_rate import LearningRate, index_of_rate
from resfit.optimizers.masks import no_decay_on_norms_and_biases
from resfit.optimizers.named import adam, adamw, lamb, lars, muon, rmsprop, sgd
from resfit.optimizers.parts import by_depth, by_part
from resfit.optimizers.resolve import default_rate, get
from resfit.optimizers.sharpness import sam

__all__ = [
    "LearningRate",
    "Skips",
    "adam",
    "adamw",
    "by_depth",
    "by_part",
    "clip",
    "default_rate",
    "get",
    "index_of_rate",
    "lamb",
    "lars",
    "muon",
    "no_decay_on_norms_and_biases",
    "rmsprop",
    "sam",
    "sgd",
    "skip_non_finite",
    "skips",
]

check_constructors(__name__)

if not TYPE_CHECKING:  # a type checker would accept every name
    __getattr__ = no_attribute(__name__, "optimizer")
