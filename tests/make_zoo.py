"""Write docs/zoo.md: `make zoo`. `tests/nets/test_zoo_page.py` compares the page with the table and the oracles."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from resfit.nets import ZOO
from tests import make_onnx

PAGE = Path(__file__).parents[1] / "docs" / "zoo.md"
GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "variants.json").read_text())

IN_RESNET = sum(not name.startswith("legacy") for name in GOLDEN["members"])
ONNX: dict[str, Any] = json.loads(make_onnx.GOLDEN.read_text())
HEAD = ("network", "parameters", "multiply-adds", "pixels", "oracle", "difference", "ONNX", "weight files", "source")

INTRO = f"""\
# The zoo

`resfit.create_model` builds these networks by name. The numbers of parameters are exact. The multiply-adds are those of
the convolutions and dense layers for one image with the given number of pixels per side. Tests count both, and compare
them with the network of the oracle.

The *oracle* is the network that torchvision or timm builds by the same name, without other arguments. `resfit.weights`
reads and writes the names and shapes of its state dict, strictly. The *difference* is the largest difference between
our logits and those of the oracle, divided by the largest logit of the oracle, for whole networks with the same
weights, in evaluation, for two images of 64 pixels per side. `tests/weights/` also compares networks of five blocks of
every kind at other sizes and in training steps. Networks without an oracle are compared with arithmetic and with the
numbers in their papers.

The column *ONNX* is the largest difference between the logits of the exported file and those of `predict`, divided by
the largest logit: the larger one of onnxruntime {ONNX["versions"]["onnxruntime"]} and OpenVINO
{ONNX["versions"]["openvino"]}, in float32, in batches of one and of five images of 64 pixels per side (32 for the
networks of CIFAR), with weights whose branches all count. All images have the same class in all three. The logits of
`ecaresnet269d` are the most sensitive ones: a change of the images by half a unit in the last place of float32 changes
them by 9e-5 of the largest one.
It was measured for {len(ONNX["networks"])} of {len(make_onnx.MEASURED)} networks; `resnetv2_152x4_bit` has more weights
than the 2 GiB of an ONNX file. `python -m tests.make_onnx` measures this column (two cores of an AMD EPYC,
{ONNX["date"]}, Python {ONNX["versions"]["python"]}, jax {ONNX["versions"]["jax"]}, onnx {ONNX["versions"]["onnx"]},
commit {ONNX["commit"]}).

{len(GOLDEN["members"])} of these networks have the name that timm 1.0.31 gives them. Its ResNet family has 177 names:
101 in the modules `resnet` and `resnetv2`, of which {IN_RESNET} are here; 9 legacy SE networks in `senet`,
of which 6 are here; and 67 relatives in `byobnet`, `byoanet`, `nfnet`, `res2net`, `resnest`, `sknet`,
`cspnet` and `tresnet`.

Every network accepts the fields of `ResNetSpec`: `create_model("resnet50d", num_classes=10, squeeze=1 / 16,
drop_path=0.1)`.

The [benchmarks](benchmarks.md) compare the speed on one CPU with torchvision's and timm's networks, and list compile
times by depth.

`make zoo` writes this page, with torch {GOLDEN["versions"]["torch"]}, torchvision
{GOLDEN["versions"]["torchvision"]} and timm {GOLDEN["versions"]["timm"]} as the oracles.
"""


def row(name: str, difference: str) -> tuple[str, ...]:
    """Return the row of a network."""
    member, golden = ZOO[name], GOLDEN["members"].get(name)
    return (
        f"`{name}`",
        f"{member.parameters:,}",
        f"{member.multiply_adds:,}",
        str(member.image_size),
        golden["source"].split("+")[0] if golden else "",
        difference,
        f"{make_onnx.relative(ONNX['networks'][name]):.0e}" if name in ONNX["networks"] else "",
        f"{golden['source'].split()[0]} `{name}`" if golden else "",
        member.source,
    )


def page(differences: Mapping[str, float]) -> str:
    """Return the page, given the difference of each network with an oracle."""
    lines = ["| " + " | ".join(HEAD) + " |", "|---" + "|---:" * 3 + "|---|---:|---:|---|---|"]
    for name in ZOO:
        difference = f"{differences[name]:.0e}" if name in GOLDEN["members"] else ""
        lines.append("| " + " | ".join(row(name, difference)) + " |")
    return INTRO + "\n" + "\n".join(lines) + "\n"


def differences() -> dict[str, float]:
    """Return the largest difference of logits over the oracle's largest logit, for each network with an oracle."""
    import jax

    from tests.weights import test_variants

    cache = Path(__file__).parents[1] / ".cache" / "jax"
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return {name: test_variants.difference(name) for name in GOLDEN["members"]}


if __name__ == "__main__":
    PAGE.write_text(page(differences()))
