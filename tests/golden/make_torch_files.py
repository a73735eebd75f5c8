"""Writes torch_files/: small files as torch.save writes them, for the reader that needs no PyTorch.

    python tests/golden/make_torch_files.py

Needs torch and numpy, and nothing else of this repository. README.md says what is in them.
"""

import argparse
import zlib
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).parent / "torch_files"

# A network of one basic block: ResNetSpec(depths=(1,), widths=(4,), stem="cifar", num_classes=3).
SHAPES = {"conv1.weight": (4, 3, 3, 3), "layer1.0.conv1.weight": (4, 4, 3, 3), "layer1.0.conv2.weight": (4, 4, 3, 3)}
for _norm in ("bn1", "layer1.0.bn1", "layer1.0.bn2"):
    SHAPES |= {f"{_norm}.{leaf}": (4,) for leaf in ("weight", "bias", "running_mean", "running_var")}
SHAPES |= {"fc.weight": (3, 4), "fc.bias": (3,)}


def drawn(name, shape):
    return torch.from_numpy(np.random.default_rng(zlib.crc32(name.encode())).uniform(0.5, 1.5, shape).astype("f4"))


def state(add=0.0, prefix=""):
    values = OrderedDict((prefix + name, drawn(name, shape) + add) for name, shape in SHAPES.items())
    values |= {
        f"{prefix}{name.removesuffix('.running_mean')}.num_batches_tracked": torch.tensor(7)
        for name in SHAPES
        if name.endswith(".running_mean")
    }
    return values


def checkpoint():
    """As timm's and torchvision's training scripts write: a model, its average, its optimizer and the arguments."""
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    parameter.sum().backward()
    optimizer.step()
    return {
        "epoch": 3,
        "arch": "resnet18",
        "state_dict": state(prefix="module."),
        "optimizer": optimizer.state_dict(),
        "args": argparse.Namespace(lr=0.1, output=Path("/runs/a"), classes={"cat", "dog"}),
        "state_dict_ema": state(add=1.0, prefix="_orig_mod.module.") | {"n_averaged": torch.tensor(5)},
        "rng": np.random.default_rng(0).integers(9, size=3),
        "best": np.float64(0.5),
    }


def views():
    """Tensors of every dtype, and several of one storage."""
    base = torch.arange(24.0).reshape(4, 6)
    return {
        "base": base,
        "transposed": base.t(),
        "rows": base[1:3],
        "every_second": base[:, 1::2],
        "scalar": base[2, 3],
        "empty": base[:0],
        "parameter": torch.nn.Parameter(base[3]),
        "channels_last": torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last),
    } | {
        str(dtype): torch.arange(5).to(dtype)
        for dtype in (
            torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
            torch.uint8, torch.bool,
        )
    }  # fmt: skip


def main():
    FOLDER.mkdir(exist_ok=True)
    for name, value in (
        ("state", state()),
        ("checkpoint", checkpoint()),
        ("views", views()),
        ("module", torch.nn.Linear(2, 2)),
        ("tensor", torch.ones(2)),
    ):
        torch.save(value, FOLDER / f"{name}.pth")
        torch.save(value, FOLDER / f"{name}_old.pth", _use_new_zipfile_serialization=False)


if __name__ == "__main__":
    main()
