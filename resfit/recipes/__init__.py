"""Training recipes by name: the hyperparameters of papers and reference scripts, each with its source.

A `TrainingRecipe` is data. Its methods return the arguments of `create_model`, of `compile` and `fit`, and of
`resfit.data.folder` and the other data functions, for training images and for test images.

Example:
  >>> import resfit
  >>> recipe = resfit.recipes.get("he-cifar").replace(epochs=10, batch_size=64)
  >>> net = resfit.create_model("resnet20", num_classes=10, **recipe.network_arguments())
  >>> model = resfit.Model(net)
  >>> model.compile(**recipe.compile_arguments())
  >>> recipe.fit_arguments()  # model.fit(x, y, **recipe.fit_arguments())
  {'epochs': 10, 'batch_size': 64, 'drop_remainder': True}
"""

from typing import TYPE_CHECKING

from resfit._utils.keywords import check_constructors
from resfit._utils.words import no_attribute
from resfit.recipes.table import get, names
from resfit.recipes.training_recipe import TrainingRecipe

__all__ = ["TrainingRecipe", "get", "names"]

check_constructors(__name__)

if not TYPE_CHECKING:  # a type checker would accept every name
    __getattr__ = no_attribute(__name__)
