"""Measure the ONNX file of every network of the zoo for tests/golden/onnx.json, which docs/zoo.md shows.

Each network gets weights of its own names, images of 64 x 64 pixels (32 x 32 for those of CIFAR), which do not change
the operations, and batches of one and of five. The file is saved after each network: a later run goes on from there.
`.venv-originals/bin/python -m tests.make_onnx` runs it after `make originals`; with names it measures these again.
"""

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np

import resfit
from resfit import weights
from resfit.export.onnx import exporter, file
from resfit.nets import ZOO
from resfit.preprocess import Normalize
from tests.weights.test_torch_oracle import drawn

GOLDEN = Path(__file__).parent / "golden" / "onnx.json"
RUNTIMES = ("onnxruntime", "openvino")
BAR = 1e-4  # of the largest logit
# In this network of 269 layers, logits grow to 1,361, and rounding with them: a change of the images by half a unit in
# the last place of float32 changes the logits by 9e-5 of the largest one.
BARS = {"ecaresnet269d": 2e-4}
MEASURED = tuple(name for name in ZOO if 4 * ZOO[name].parameters < file.LARGEST_FILE)


def tame(fresh: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return weights whose branches count, and stay small: with large ones, rounding grows from block to block.

    The scales that begin at zero, which would hide the branches, get a fifth of the others.
    """
    drawings = {name: drawn(name, array.shape) for name, array in fresh.items()}
    hidden = {name for name, array in fresh.items() if name.endswith("weight") and not np.asarray(array).any()}
    return {name: array * np.float32(0.2 if name in hidden else 1) for name, array in drawings.items()}


def measure(name: str) -> dict[str, Any]:
    """Return the largest difference of each runtime from predict, the largest logit, and the share of equal classes."""
    side = min(64, ZOO[name].image_size)
    net = resfit.create_model(name, num_classes=10)
    weights.load_state_dict(net, tame(weights.state_dict(net)))
    settings = exporter.Settings(
        Normalize((0.5,) * 3, (0.25,) * 3), None, "float32", 0, "logits", "raw", class_names=None, multi_label=False
    )
    network = exporter.written(net, jax.ShapeDtypeStruct((side, side, 3), np.dtype("uint8")), settings)
    content = file.content(network.graph, network.metadata)
    x = np.random.default_rng(0).integers(0, 256, (5, side, side, 3), np.uint8)
    expected = np.asarray(network.original(x))
    outputs = {runtime: [globals()[f"_{runtime}"](content, x[:rows]) for rows in (1, 5)] for runtime in RUNTIMES}
    found: dict[str, Any] = {
        runtime: max(exporter.differences([part], [expected[: len(part)]])["largest_difference"] for part in parts)
        for runtime, parts in outputs.items()
    }
    same = [
        (part.argmax(-1) == expected[: len(part)].argmax(-1)).mean() for parts in outputs.values() for part in parts
    ]
    return found | {"largest_logit": float(np.abs(expected).max()), "same_class": float(min(same))}


def _onnxruntime(content: bytes, x: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": x})[0]


def _openvino(content: bytes, x: np.ndarray) -> np.ndarray:
    """Compute in float32: by default OpenVINO computes in bfloat16 where the CPU can."""
    import openvino

    core = openvino.Core()
    program = core.compile_model(core.read_model(content), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.asarray(program([x])[0])


def relative(row: dict[str, Any]) -> float:
    """Return the largest difference of a row over its largest logit."""
    return max(row[runtime] for runtime in RUNTIMES) / row["largest_logit"]


def main(names: list[str]) -> None:
    """Measure these networks, or those that the file lacks."""
    found = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {"networks": {}}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], check=True, capture_output=True, text=True).stdout
    versions = {package: importlib.metadata.version(package) for package in ("jax", "onnx", *RUNTIMES)}
    found |= {"commit": commit.strip(), "versions": versions | {"python": platform.python_version()}}
    for name in names or sorted(set(MEASURED) - set(found["networks"]), key=lambda name: ZOO[name].parameters):
        found["networks"][name] = row = measure(name)
        found["date"] = str(datetime.datetime.now(datetime.UTC).date())
        GOLDEN.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
        print(name, f"{relative(row):.1e}", row, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
