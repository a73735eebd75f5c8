"""The cost of feeding: arrays compared with plain slicing, and the time a step waits for data that is decoded.

    python -m benchmarks.data
    python -m benchmarks.data --fashion-mnist /usr/share/datasets/fashion-mnist

The first comparison is between resfit's batches of arrays, put on the device, and NumPy slicing with device_put, in
turns, in processor time. The second one needs the original files of Fashion-MNIST: it prepares them as a TFDS dataset,
trains a ResNet-20 on it for epochs of `--steps` batches of 128, and prints the share of time in which the device
waited.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import resfit
from benchmarks import interleaved
from resfit.data import Geometry, as_batches

SHAPES = {
    "32x32x3 b128": ((8192, 32, 32, 3), 128),
    "8x8x1 b32": ((8192, 8, 8, 1), 32),
    "224 b32": ((512, 224, 224, 3), 32),
}


def feeding(name: str, rounds: int) -> None:
    """Print the cost of a batch of arrays, in resfit and by hand."""
    shape, size = SHAPES[name]
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, shape, np.uint8), rng.integers(0, 10, shape[0]).astype(np.int32)
    batches = as_batches(x, y, geometry=Geometry(size, seed=0))

    def by_hand() -> None:
        order = np.random.default_rng((0, 0)).permutation(len(x))
        for first in range(0, len(x), size):
            rows = order[first : first + size]
            jax.block_until_ready(jax.device_put((x[rows], y[rows])))

    def ours() -> None:
        for batch in batches.epoch(0):
            jax.block_until_ready(jax.device_put((batch.x, batch.y)))

    contestants: dict[str, Callable[[], object]] = {"slicing": by_hand, "resfit": ours}
    interleaved.report(name, interleaved.measure(contestants, rounds, len(x) // size))


def waiting(files: str, steps: int) -> None:
    """Print the share of an epoch in which the device waited for a TFDS dataset."""
    with tempfile.TemporaryDirectory() as made:
        resfit.data.prepare_tfds("fashion_mnist", data_dir=made, path=files)
        data: Any = resfit.data.tfds("fashion_mnist", "train", data_dir=made)
        model = resfit.Model(resfit.create_model("resnet20", num_classes=10, in_channels=1))
        model.compile("sgd", learning_rate=0.1)
        history = model.fit(data, batch_size=128, epochs=3, steps_per_epoch=steps, verbose=0)
        shares = history.timings["data_wait"][1:]  # the first epoch compiles
        print(f"ResNet-20 b128 on Fashion-MNIST from TFDS: waited {statistics.median(shares):.2%} of an epoch's time")

        start = time.perf_counter()
        read = sum(batch.size for batch in as_batches(data, geometry=Geometry(128, seed=0)).epoch(0))
        print(f"the same dataset read alone: {read / (time.perf_counter() - start):.0f} images/s")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11, help="measured rounds of each, interleaved")
    parser.add_argument("--fashion-mnist", help="the folder of the four original files")
    parser.add_argument("--steps", type=int, default=60)
    arguments = parser.parse_args()
    print(f"jax {jax.__version__}, {jax.devices()[0].platform}, {len(jax.devices())} device(s)")
    for name in SHAPES:
        feeding(name, arguments.rounds)
    if arguments.fashion_mnist:
        waiting(arguments.fashion_mnist, arguments.steps)


if __name__ == "__main__":
    main()
