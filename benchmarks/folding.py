"""The effect of folding BatchNorms: `python -m benchmarks.folding` (two minutes).

Two exported models that compute the same function, one of them with folded BatchNorms, predict the same batch in turns.
The time is the processor time of the process over all its threads, so that other programs count less. The benchmark
reports the medians, and the median and quartiles of the ratios of neighboring turns.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

import resfit


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--turns", type=int, default=30)
    arguments = parser.parse_args()

    model = resfit.Model(resfit.create_model(arguments.network, num_classes=1000))
    shape = (arguments.size, arguments.size, 3)
    x = np.random.default_rng(0).normal(size=(arguments.batch, *shape)).astype(np.float32)
    exported = []
    with tempfile.TemporaryDirectory() as folder:
        for fold in (False, True):
            path = Path(folder) / f"{fold}.npz"
            model.export(path, input_shape=shape, input_dtype="float32", fold_batch_norm=fold)
            exported.append(resfit.load_exported(path))
    first = [np.asarray(each(x)) for each in exported]
    seconds: list[list[float]] = [[], []]
    for turn in range(arguments.turns):
        for which in (0, 1) if turn % 2 else (1, 0):
            begun = time.process_time()
            jax.block_until_ready(exported[which](x))
            seconds[which].append(time.process_time() - begun)
    ratios = [folded / whole for whole, folded in zip(*seconds, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"{arguments.network}, {arguments.batch} images of {arguments.size} pixels, {arguments.turns} turns")
    for name, times in zip(("as trained", "folded"), seconds, strict=True):
        print(f"{name}: {1000 * statistics.median(times):.0f} ms of CPU time")
    print(f"folded over as trained: {middle:.3f} (quartiles {low:.3f} and {high:.3f})")
    print(f"largest difference of logits: {np.abs(first[0] - first[1]).max():.1e} of {np.abs(first[0]).max():.2f}")


if __name__ == "__main__":
    main()
