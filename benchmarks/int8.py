"""Prediction of a ResNet-50 in float32, bfloat16 and int8: `python -m benchmarks.int8` (some minutes).

All contestants predict the same uint8 images in turns, each on one thread of one core. The time is the processor time
of the process, so that other programs count less. The benchmark reports images per second of processor time, and the
median and quartiles of the ratios of neighboring turns to `predict` in float32. Contestants whose package is not
installed are left out. The extra `resfit[onnx]` is required; openvino and torch with torchvision are optional.
"""

import argparse
import importlib.util
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Predict = Callable[[np.ndarray], Any]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--turns", type=int, default=16)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before the libraries count the cores

    contestants = _contestants(arguments.network, arguments.size)
    for rows in arguments.batches:
        x = np.random.default_rng(0).integers(0, 256, (rows, arguments.size, arguments.size, 3), np.uint8)
        seconds: dict[str, list[float]] = {name: [] for name in contestants}
        for turn in range(-2, arguments.turns):  # the first two turns compile and warm up
            for name, predict in contestants.items():
                begun = time.process_time()
                predict(x)
                if turn >= 0:
                    seconds[name].append(time.process_time() - begun)
        print(f"{arguments.network}, {rows} images of {arguments.size} pixels, {arguments.turns} turns")
        reference = seconds[next(iter(contestants))]
        for name, times in seconds.items():
            low, middle, high = statistics.quantiles([a / b for a, b in zip(reference, times, strict=True)], n=4)
            speed = rows / statistics.median(times)
            print(
                f"  {name:28} {speed:6.1f} images/s  {middle:.2f} times predict ({low:.2f} to {high:.2f})", flush=True
            )


def _contestants(network: str, size: int) -> dict[str, Predict]:
    import resfit

    net = resfit.create_model(network, num_classes=1000)
    found: dict[str, Predict] = {}
    for precision in ("float32", "bfloat16"):
        model = resfit.Model(net)
        model.compile(precision=precision)
        found[f"resfit predict, {precision}"] = model.predict_on_batch
    model = resfit.Model(net)
    rows = np.random.default_rng(1).integers(0, 256, (16, size, size, 3), np.uint8)
    small = model.quantize(rows)
    with tempfile.TemporaryDirectory() as folder:
        for suffix in ("npz", "onnx"):
            model.export(Path(folder) / f"net.{suffix}", input_shape=(size, size, 3), input_dtype="uint8")
            print(f"net.{suffix}: {(Path(folder) / f'net.{suffix}').stat().st_size / 1e6:.1f} MB")
        program = resfit.load_exported(Path(folder) / "net.npz")
        whole = resfit.load_exported(Path(folder) / "net.onnx")
    print(f"int8: {len(small.content) / 1e6:.1f} MB")
    found["jax, exported program"] = lambda x: np.asarray(program(x))
    for name, loaded in (("float32", whole), ("int8", small)):
        found[f"onnxruntime, {name}"] = _onnxruntime(loaded.content)
    if importlib.util.find_spec("openvino") is not None:
        for name, loaded in (("float32", whole), ("int8", small)):
            found[f"OpenVINO, {name}"] = _openvino(loaded.content)
    if importlib.util.find_spec("torchvision") is not None:
        found["PyTorch eager, float32"] = _torch(network)
    return found


def _onnxruntime(content: bytes) -> Predict:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"images": x})


def _openvino(content: bytes) -> Predict:
    import openvino

    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    core = openvino.Core()
    program = core.compile_model(core.read_model(content), "CPU", settings)
    return lambda x: program([x])


def _torch(network: str) -> Predict:
    import torch
    import torchvision

    torch.set_num_threads(1)
    net = getattr(torchvision.models, network)().eval()

    def predict(x: np.ndarray) -> Any:
        with torch.inference_mode():
            return net(torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255)

    return predict


if __name__ == "__main__":
    main()
