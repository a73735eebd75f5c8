"""resfit: train, evaluate and ship ResNets, and any other Flax NNX image model, on JAX."""

import importlib.metadata
from typing import TYPE_CHECKING

from resfit import (
    augment,
    callbacks,
    data,
    distributed,
    errors,
    losses,
    metrics,
    nets,
    optimizers,
    plots,
    preprocess,
    recipes,
    schedules,
    transforms,
    weights,
)
from resfit._utils.words import no_attribute
from resfit.backends.caches import clear_caches
from resfit.diagnostics.doctor import doctor
from resfit.diagnostics.dry_run import dry_run
from resfit.diagnostics.grad_cam import grad_cam
from resfit.diagnostics.lr_finder import find_learning_rate
from resfit.diagnostics.recalibrate import recalibrate
from resfit.distillation import Distiller
from resfit.ensemble import Each, Ensemble
from resfit.export.exported import load_exported
from resfit.model import Model
from resfit.nets import list_models
from resfit.transforms import transforms_for
from resfit.transforms.class_names import imagenet_class_names, top_k
from resfit.tuning import search
from resfit.weights.pretrained import create_model

__version__ = importlib.metadata.version("resfit")

load = load_model = Model.load
from_hub = Model.from_hub

__all__ = [
    "Distiller",
    "Each",
    "Ensemble",
    "Model",
    "augment",
    "callbacks",
    "clear_caches",
    "create_model",
    "data",
    "distributed",
    "doctor",
    "dry_run",
    "errors",
    "find_learning_rate",
    "from_hub",
    "grad_cam",
    "imagenet_class_names",
    "list_models",
    "load",
    "load_exported",
    "load_model",
    "losses",
    "metrics",
    "nets",
    "optimizers",
    "plots",
    "preprocess",
    "recalibrate",
    "recipes",
    "schedules",
    "search",
    "top_k",
    "transforms",
    "transforms_for",
    "weights",
]

if not TYPE_CHECKING:  # a type checker would accept every name
    __getattr__ = no_attribute(__name__, "package", "networks", "members", modules=("sklearn", "testing"))
