"""The networks: plain Flax NNX modules, usable without the trainer.

`create_model` builds a network of the zoo by name. `ResNet` builds one from a `ResNetSpec`. `Residual` turns a custom
branch into a residual block. Images are (batch, height, width, channels). `net(x)` evaluates; `net(x, train=True)`
trains.
"""

from typing import TYPE_CHECKING

from resfit._utils.keywords import check_constructors
from resfit._utils.words import no_attribute
from resfit.nets.blocks import BasicBlock, BottleneckBlock
from resfit.nets.count import count_multiply_adds, count_params
from resfit.nets.fold import FoldedNorm, fold_batch_norm
from resfit.nets.head import ClassifierHead
from resfit.nets.layers import Layers
from resfit.nets.norm import BatchNorm, GroupNorm
from resfit.nets.pool import average_pool, blur_pool, global_average_pool, max_pool
from resfit.nets.preact_blocks import PreActBasicBlock, PreActBottleneckBlock
from resfit.nets.registry import BLOCKS, NORMS, SHORTCUTS, STEMS, ZOO
from resfit.nets.residual import Residual
from resfit.nets.resnet import ResNet
from resfit.nets.shortcut import (
    ConvShortcut,
    IdentityShortcut,
    PadShortcut,
    PooledConvShortcut,
    PooledShortcut,
    ProjectionShortcut,
    WideProjectionShortcut,
)
from resfit.nets.spec import ResNetSpec
from resfit.nets.squeeze import EfficientChannelAttention, SqueezeExcite
from resfit.nets.stem import (
    BiTStem,
    CaffeStem,
    CifarConvStem,
    CifarPoolStem,
    CifarStem,
    DeepConvStem,
    DeepStem,
    DeepTieredConvStem,
    DeepTieredStem,
    ImageNetConvStem,
    ImageNetStem,
    ResNetRSStem,
    SpaceToDepthStem,
)
from resfit.nets.zoo import ZooRow, create_model, list_models

__all__ = [
    "BLOCKS",
    "NORMS",
    "SHORTCUTS",
    "STEMS",
    "ZOO",
    "BasicBlock",
    "BatchNorm",
    "BiTStem",
    "BottleneckBlock",
    "CaffeStem",
    "CifarConvStem",
    "CifarPoolStem",
    "CifarStem",
    "ClassifierHead",
    "ConvShortcut",
    "DeepConvStem",
    "DeepStem",
    "DeepTieredConvStem",
    "DeepTieredStem",
    "EfficientChannelAttention",
    "FoldedNorm",
    "GroupNorm",
    "IdentityShortcut",
    "ImageNetConvStem",
    "ImageNetStem",
    "Layers",
    "PadShortcut",
    "PooledConvShortcut",
    "PooledShortcut",
    "PreActBasicBlock",
    "PreActBottleneckBlock",
    "ProjectionShortcut",
    "ResNet",
    "ResNetRSStem",
    "ResNetSpec",
    "Residual",
    "SpaceToDepthStem",
    "SqueezeExcite",
    "WideProjectionShortcut",
    "ZooRow",
    "average_pool",
    "blur_pool",
    "count_multiply_adds",
    "count_params",
    "create_model",
    "fold_batch_norm",
    "global_average_pool",
    "list_models",
    "max_pool",
]

check_constructors(__name__, "network")

if not TYPE_CHECKING:  # a type checker would accept every name
    __getattr__ = no_attribute(__name__, "networks")
