"""Optimizers: plain optax, with the learning rate kept in the optimizer's state so that changing it never recompiles.

`compile(optimizer=...)` takes a name, one of the functions here, any optax GradientTransformation, or a function such
as `optax.adamw` whose `learning_rate` is filled in by `compile`. `clip`, `by_part`, `by_depth` and
`skip_non_finite` wrap any of them that is built.
"""

from resfit.optimizers.clipping import clip
from resfit.optimizers.finite import Skips, skip_non_finite, skips
from resfit.optimizers.injected_learning_rate import LearningRate, index_of_rate
from resfit.optimizers.masks import no_decay_on_norms_and_biases
from resfit.optimizers.named import adam, adamw, lamb, lars, rmsprop, sgd
from resfit.optimizers.parts import by_depth, by_part
from resfit.optimizers.resolve import default_rate, get

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
    "no_decay_on_norms_and_biases",
    "rmsprop",
    "sgd",
    "skip_non_finite",
    "skips",
]
