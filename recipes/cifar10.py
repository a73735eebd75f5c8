"""CIFAR-10 by named recipes: He's ResNets, a wide ResNet, and a short training in the spirit of airbench.

    python recipes/cifar10.py                                # ResNet-20; downloads 170 MB the first time
    python recipes/cifar10.py --data cifar-10-python.tar.gz  # an archive or folder, binary or Python, unpacked or not
    python recipes/cifar10.py --network wrn_28_10 --seeds 5
    python recipes/cifar10.py --fast                         # 10 epochs
    python recipes/cifar10.py --dry-run                      # memory, steps, time and cost of the run
    python recipes/cifar10.py --source huggingface           # uoft-cs/cifar10, or --data FOLDER with parquet files
    python recipes/cifar10.py --source tfds --data FOLDER    # prepared in the format array_record

Install with `pip install "resfit[recipes]"`, for the other sources with `"resfit[hf]"` or `"resfit[tfds]"`. Training on
all 50,000 images; accuracy on the 10,000 test images, used once, after the last epoch, with the weights of the last
epoch. Each run appends its lines to results/cifar10.csv, from which docs/results.md is made. If a run was stopped, also
by Ctrl-C, the same command resumes it. A run whose lines are in the file is not repeated.

Expected test accuracy, and the operations of a run: 6 times multiply-adds, images and epochs. The accuracies are the
numbers of the sources; resfit has not trained on CIFAR-10, because no machine of this project had its images:

    network    recipe          epochs  batch  accuracy  source                                      operations
    resnet20   he-cifar           164    128   91.25 %  He et al., arXiv 1512.03385, table 6        2.0e15
    resnet56   he-cifar           164    128   93.03 %  the same                                    6.2e15
    resnet110  he-cifar           164    128   93.39 %  the same, mean of 5 runs                    1.2e16
    wrn_28_10  wrn-cifar          200    128   96.00 %  Zagoruyko and Komodakis, arXiv 1605.07146   3.1e17
    --fast     airbench-cifar      10   1024            (airbench94, another network: 94.01 %)      5.7e14

A step of resnet20 in float32 takes 235 ms on two cores of an AMD EPYC with `resfit[cpu]` (docs/cpu.md), so its run
4.2 hours. `resfit.recipes.get(NAME).left_out` lists what differs from the source.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import numpy as np
from common import add_options, positive, require_writable, start
from runs import evaluated, find_results, folder_of, label, record, report, resumable

import resfit
from resfit import recipes
from resfit.errors import DataError, DownloadError
from resfit.nets import count_multiply_adds

# Network -> the recipe, and the accuracy and place in the source.
NETWORKS = {
    "resnet20": ("he-cifar", "91.25 % in table 6 of arXiv 1512.03385"),
    "resnet56": ("he-cifar", "93.03 % in table 6 of arXiv 1512.03385"),
    "resnet110": ("he-cifar", "93.39 %, the mean of 5 runs, in table 6 of arXiv 1512.03385"),
    "wrn_28_10": ("wrn-cifar", "96.00 % in table 5 of arXiv 1605.07146"),
    "resnet8 64-128-256": ("airbench-cifar", "94.01 % in arXiv 2404.00498, with another network"),
}
FAST = "resnet8 64-128-256"
WAYS = """Ways to get CIFAR-10:
  - With a network, run without --data: cifar-10-binary.tar.gz (170 MB) is downloaded into ~/.cache/resfit.
  - Copy cifar-10-binary.tar.gz or cifar-10-python.tar.gz of https://www.cs.toronto.edu/~kriz/cifar.html to this
    machine, and pass --data PATH: the archive, its folder, or the unpacked folder.
  - --source huggingface (pip install "resfit[hf]"): uoft-cs/cifar10 of the Hub, or --data FOLDER with its parquet
    files.
  - --source tfds (pip install "resfit[tfds]"): --data FOLDER, where TFDS prepared cifar10 in the format
    array_record."""
Split = tuple[np.ndarray, np.ndarray]


def read(source: str, data: Path | None) -> tuple[Split, Split]:
    """Return training and test images (n, 32, 32, 3) uint8 with their classes; exit if there are none."""
    try:
        if source == "archive":
            return resfit.data.load("cifar10", path=data)
        if source == "tfds":
            parts = [resfit.data.tfds("cifar10", split, data_dir=data) for split in ("train", "test")]
        else:
            import datasets

            found = datasets.load_dataset("uoft-cs/cifar10" if data is None else str(data))
            parts = [resfit.data.huggingface(found[split]) for split in ("train", "test")]
    except (DataError, DownloadError, OSError) as error:
        raise SystemExit(f"{error}\n\n{WAYS}") from error
    train, test = (part.take(slice(0, len(part)))[:2] for part in parts)
    return train, test


def network(name: str, recipe: recipes.TrainingRecipe, seed: int) -> Any:
    """Return a new network. The one of --fast has wide blocks: they learn more in an epoch than deep narrow ones."""
    if name == FAST:
        return resfit.create_model("resnet20", num_classes=10, depths=(1, 1, 1), widths=(64, 128, 256), rngs=seed)
    return resfit.create_model(name, num_classes=10, rngs=seed, **recipe.network_arguments())


def build(name: str, recipe: recipes.TrainingRecipe, seed: int, precision: str) -> resfit.Model:
    """Return the compiled model of a run."""
    model = resfit.Model(network(name, recipe, seed))
    model.compile(**recipe.compile_arguments(model.module), metrics=["accuracy"], seed=seed, precision=precision)
    return model


def run(name: str, recipe: recipes.TrainingRecipe, train: Split, test: Split, seed: int, options: Any) -> list[Any]:
    """Train with one seed unless the results have its lines, and return its lines."""
    called = label(recipe, options.precision)
    values = {"recipe": called, "network": name, "data": "cifar10 test", "seed": seed, "epochs": recipe.epochs}
    lines = find_results(options.results, __file__, **values)
    if not lines:
        out = folder_of(options.out, called, name, recipe.epochs, seed)
        elapsed, callbacks = resumable(out)
        model = build(name, recipe, seed, options.precision)
        cache = None if jax.default_backend() == "cpu" else "device"
        model.fit(*train, callbacks=callbacks, cache=cache, resume=True, verbose=2, **recipe.fit_arguments())
        # Only the source of --fast averages over six views of each image.
        accuracies = evaluated(model, *test, ["last epoch", "last epoch, flip+shift"][: 2 if name == FAST else 1])
        record(options.results, __file__, model, out, accuracies, **values, **elapsed.minutes())
        lines = find_results(options.results, __file__, **values)
    for line in lines:
        print(
            f"Seed {seed}, {line['evaluation']}: test accuracy {float(line['accuracy']):.2%}; {line['minutes']} "
            f"minutes, {line['cpu_minutes']} of CPU.",
            flush=True,
        )
    return lines


def main() -> None:
    """Train with each seed, and use the test images once for each, at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", choices=("archive", "huggingface", "tfds"), default="archive", help="(archive)")
    parser.add_argument("--data", type=Path, help="archive or folder of the images (default: the source's own)")
    parser.add_argument("--network", choices=[name for name in NETWORKS if name != FAST], help="(resnet20)")
    parser.add_argument("--fast", action="store_true", help=f"train {FAST} by the recipe airbench-cifar")
    parser.add_argument("--epochs", type=positive, help="passes over the images (the recipe's)")
    parser.add_argument("--batch-size", type=positive, help="the learning rate follows (the recipe's)")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="train N times, with seeds 0 to N - 1 (1)")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto", help="(auto)")
    parser.add_argument("--out", type=Path, default=Path("out/cifar10"), help="of checkpoints and models (out/cifar10)")
    add_options(parser)
    options = parser.parse_args()
    if options.fast and options.network:
        parser.error(f"got --fast and --network {options.network}. Expected one of them: --fast trains {FAST}")
    if options.seeds < 1:
        parser.error(f"got --seeds {options.seeds}; expected at least 1")
    if not options.dry_run:
        require_writable(parser, options.out, options.results)

    name = FAST if options.fast else options.network or "resnet20"
    named, published = NETWORKS[name]
    recipe = recipes.get(named).replace(epochs=options.epochs, batch_size=options.batch_size)
    train, test = read(options.source, options.data)
    operations = 6 * count_multiply_adds(network(name, recipe, 0), (32, 32, 3)) * len(train[0]) * recipe.epochs
    print(f"{name} by the recipe {recipe.name}: {recipe.epochs} epochs, {operations:.1e} operations.")
    print(f"Expected: the source has {published}. resfit has no result of its own; docs/results.md has them all.")
    if options.dry_run:
        plan = resfit.dry_run(build(name, recipe, 0, options.precision), *train, **recipe.fit_arguments())
        print(plan)
        print(f"cost       {plan.seconds / 3600 * plan.devices:,.2g} device hours for each seed")
        return
    lines = [line for seed in range(options.seeds) for line in run(name, recipe, train, test, seed, options)]
    print(f"\nMean of {options.seeds} seeds on {len(test[0])} images:")
    report(lines)


if __name__ == "__main__":
    start(main)
