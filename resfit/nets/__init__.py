"""The networks: plain Flax NNX modules, usable without the trainer.

`create_model` builds a network of the zoo by name, `ResNet` one from a `ResNetSpec`, and `Residual` turns any branch of
your own into a residual block. Images are (batch, height, width, channels). `net(x)` evaluates, `net(x, train=True)`
trains.
"""

from resfit.nets.blocks import BasicBlock, BottleneckBlock
from resfit.nets.count import count_multiply_adds, count_params
from resfit.nets.head import ClassifierHead
from resfit.nets.layers import Layers
from resfit.nets.norm import BatchNorm
from resfit.nets.pool import global_average_pool, max_pool
from resfit.nets.residual import Residual
from resfit.nets.resnet import ResNet
from resfit.nets.shortcut import IdentityShortcut, PadShortcut, ProjectionShortcut
from resfit.nets.spec import ResNetSpec
from resfit.nets.stem import CifarStem, ImageNetStem
from resfit.nets.zoo import ZOO, ZooRow, create_model, list_models

__all__ = [
    "ZOO",
    "BasicBlock",
    "BatchNorm",
    "BottleneckBlock",
    "CifarStem",
    "ClassifierHead",
    "IdentityShortcut",
    "ImageNetStem",
    "Layers",
    "PadShortcut",
    "ProjectionShortcut",
    "ResNet",
    "ResNetSpec",
    "Residual",
    "ZooRow",
    "count_multiply_adds",
    "count_params",
    "create_model",
    "global_average_pool",
    "list_models",
    "max_pool",
]
