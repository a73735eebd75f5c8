"""Training recipes by name: the hyperparameters of papers and reference scripts, each with its source.

A `TrainingRecipe` is data. Its methods return the arguments of `create_model`, `compile`, `fit` and the data functions:

    recipe = resfit.recipes.get("rsb-a3").replace(batch_size=256)
    net = resfit.create_model("resnet50", num_classes=1000, **recipe.network_arguments())
    model = resfit.Model(net)
    model.compile(**recipe.compile_arguments(), precision="auto")
    train = resfit.data.folder("imagenet/train", **recipe.train_data_arguments())
    val = resfit.data.folder("imagenet/val", **recipe.test_data_arguments())
    model.fit(train, validation_data=val, **recipe.fit_arguments())
"""

from typing import TYPE_CHECKING

from resfit._utils.words import no_attribute
from resfit.recipes.table import get, names
from resfit.recipes.training_recipe import TrainingRecipe

__all__ = ["TrainingRecipe", "get", "names"]

if not TYPE_CHECKING:  # a type checker would accept every name
    __getattr__ = no_attribute(__name__)
