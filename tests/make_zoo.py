"""Writes docs/zoo.md: `make zoo`. `tests/nets/test_zoo_page.py` holds the page against the table and the oracles."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from resfit.nets import ZOO, ResNetSpec

PAGE = Path(__file__).parents[1] / "docs" / "zoo.md"
GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "variants.json").read_text())
PLAIN: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "torch_oracle.json").read_text())

HEAD = ("network", "parameters", "multiply-adds", "pixels", "oracle", "difference", "weight files", "source")

INTRO = f"""\
# The zoo

What `resfit.create_model` builds by name. Parameters are exact, and multiply-adds those of the convolutions and dense
layers for one image of so many pixels a side; tests count both, and compare them with what the oracle's own network
holds and computes.

*Oracle* is the network of the same name in torchvision or timm: the names and shapes of its state dict are those that
`resfit.weights` reads and writes, strictly. *Difference* is the largest between our logits and theirs, over their
largest, in evaluation, at two sizes of image: of the whole ResNet-18 and ResNet-50 for plain networks, of five blocks
of the same kind with the same weights for all others (ResNeXt with 32 groups of 4). Training steps are compared as
well, in `tests/weights/`. Networks without an oracle are compared with arithmetic and the numbers that their papers
print.

Every member takes what `ResNetSpec` has: `create_model("resnet50d", num_classes=10, squeeze=1 / 16, drop_path=0.1)`.

How long they take beside torchvision's and timm's on one CPU, and to compile by depth, is among the
[benchmarks](benchmarks.md).

This page is made by `make zoo`, with torch {GOLDEN["versions"]["torch"]}, torchvision
{GOLDEN["versions"]["torchvision"]} and timm {GOLDEN["versions"]["timm"]} as the oracles.
"""


def kind(spec: ResNetSpec) -> dict[str, Any]:
    """The fields of a spec that decide what is computed, but for its size; those at their defaults are left out."""
    sizes = {"depths", "widths", "num_classes", "in_channels", "unbiased_variance", "dropout", "stem_width"}
    return {
        field.name: getattr(spec, field.name)
        for field in dataclasses.fields(spec)
        if field.name not in sizes and (field.name == "block" or getattr(spec, field.name) != field.default)
    }


def variant_of(name: str) -> str | None:
    """The thin network of the golden files that is of a member's kind, or None."""
    if name not in GOLDEN["members"]:
        return None
    found = kind(ZOO[name].spec)
    if found in ({"block": "basic"}, {"block": "bottleneck"}):
        return {"basic": "resnet18", "bottleneck": "resnet50"}[found["block"]]
    # Groups are of other numbers in other members: the same kind.
    for variant, golden in GOLDEN["variants"].items():
        if _alike(golden["spec"], found):
            return variant
    return None


def _alike(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    numbers = {"groups", "width_per_group"}
    same = {name: value for name, value in a.items() if name not in numbers} == {
        name: value for name, value in b.items() if name not in numbers
    }
    return same and all((name in a) == (name in b) for name in numbers)


def row(name: str, difference: str) -> tuple[str, ...]:
    """A member's row."""
    member, golden = ZOO[name], GOLDEN["members"].get(name)
    return (
        f"`{name}`",
        f"{member.parameters:,}",
        f"{member.multiply_adds:,}",
        str(member.image_size),
        golden["source"].split("+")[0] if golden else "",
        difference,
        f"{golden['source'].split()[0]} `{name}`" if golden else "",
        member.source,
    )


def page(differences: Mapping[str, float]) -> str:
    """The page, given the difference of each thin network."""
    lines = ["| " + " | ".join(HEAD) + " |", "|---" + "|---:" * 3 + "|---|---:|---|---|"]
    for name in ZOO:
        variant = variant_of(name)
        lines.append("| " + " | ".join(row(name, "" if variant is None else f"{differences[variant]:.0e}")) + " |")
    return INTRO + "\n" + "\n".join(lines) + "\n"


def differences() -> dict[str, float]:
    """For each thin network, the largest difference of logits over the oracle's largest logit."""
    import jax
    import numpy as np
    from flax import nnx

    from tests.weights import test_torch_oracle, test_variants

    cache = Path(__file__).parents[1] / ".cache" / "jax"
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    needed = {variant_of(name) for name in ZOO} - {None}
    found: dict[str, float] = {}
    for golden, filled in ((GOLDEN["variants"], test_variants.filled), (PLAIN, test_torch_oracle.filled)):
        for variant in golden:
            if variant not in needed:
                continue
            net = filled(variant)
            for run in golden[variant]["runs"]:
                x = test_torch_oracle.images(2, run["size"])
                logits = np.asarray(nnx.jit(lambda net, x: net(x, train=False))(net, x))
                expected = np.asarray(run["eval_logits"])
                worst = float(np.abs(logits - expected).max() / np.abs(expected).max())
                found[variant] = max(found.get(variant, 0.0), worst)
    return found


if __name__ == "__main__":
    PAGE.write_text(page(differences()))
