"""Why networks are residual: plain and residual nets of 20, 56 and 110 layers, and how well each fits real images.

    python recipes/depth.py            # three seeds
    python recipes/depth.py --seeds 1

Figure 6 of He et al. 2015 (arXiv:1512.03385) in small: the paper's networks for CIFAR at half their width, 16 epochs
long, on the first 3,000 training images of Fashion-MNIST, shrunk to 14 x 14 pixels. The share of the training images
that are misread while they are trained on, in the last epoch, mean of three seeds, and its range:

    layers  plain                     residual
    20       4.62 % (3.70 to 5.60)     6.83 % (5.37 to 7.68)
    56      45.03 % (41.61 to 48.64)   4.18 % (2.48 to 6.18)
    110     88.78 % (88.08 to 89.27)   3.86 % (2.79 to 4.59)

A plain net fits the worse the deeper it is, and not by overfitting: these are the images it is trained on. With 110
layers it is hardly better than chance, 90 %. A residual net fits the better the deeper it is.

The residual nets start from blocks that do nothing (see `build`), so that those of 20 layers are behind the plain ones.
With all scales at one, as the plain nets have to start, and those of the paper did, residual-20 came to 0.10 % and
residual-56 to 0.17 %, but residual-110, for which this rate is too high at first, to 0.24, 6.45 and 10.39 %, by seed.

All of it takes 24 minutes by the clock and 35 of CPU, compiling included, on 2 cores of an Intel Xeon (jax 0.10.2),
shared with other work at a load average of 2 to 12. There glibc was told to keep memory for the next step:
MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=4000000000 MALLOC_ARENA_MAX=1 python recipes/depth.py
"""

import argparse
import json
import time
from pathlib import Path

import jax
import matplotlib as mpl
import numpy as np
from einops import reduce
from flax import nnx

import resfit
from resfit.nets import ResNet, ResNetSpec

mpl.use("Agg")
import matplotlib.pyplot as plt

BATCH = 128
# Okabe and Ito's colours, told apart by colour-blind readers too; the line styles do it in black and white.
COLORS, STYLES = ("#E69F00", "#0072B2", "#000000"), (":", "--", "-")

Errors = dict[str, dict[int, list[list[float]]]]  # kind of net -> layers -> for each seed, one share for each epoch


class PlainNet(ResNet):
    """A residual network walked without its shortcuts: the same layers in the same order, and no addition."""

    def __call__(self, x: jax.Array, *, train: bool | None = None) -> jax.Array:
        """Classifies images (batch, height, width, channels) as `ResNet` does."""
        x = self.stem(x, train=train)
        for stage in self.stages:
            for block in stage.blocks:
                x = nnx.relu(block.branch(x, train=train))
        return self.head(x)


KINDS = {"plain": PlainNet, "residual": ResNet}


def data(path: Path | None, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first training images, shrunk to (count, 14, 14, 1) of mean 0 and deviation 1, and their labels (count,)."""
    (images, labels), _ = resfit.data.load("fashion_mnist", path=path)
    small = reduce(images[:count].astype("float32"), "n (h a) (w b) c -> n h w c", "mean", a=2, b=2)
    return (small - small.mean()) / small.std(), labels[:count]


def build(kind: str, depth: int, seed: int) -> nnx.Module:
    """He's CIFAR network of 6n + 2 layers at half its width, or the plain network of the same layers.

    Option-A shortcuts have no parameters, so both kinds have equally many, and equal kernels to begin with. The last
    norm of a residual block starts with its scale at zero, so that a new net passes its images on unchanged, however
    deep: the library's default. A plain net would pass nothing on, so there all scales start at one.
    """
    blocks = (depth - 2) // 6
    spec = ResNetSpec(
        depths=(blocks,) * 3,
        widths=(8, 16, 32),
        stem="cifar",
        shortcut="A",
        zero_init_last=kind == "residual",
        num_classes=10,
        in_channels=1,
    )
    return KINDS[kind](spec, rngs=nnx.Rngs(seed))


def train(net: nnx.Module, x: np.ndarray, y: np.ndarray, epochs: int, seed: int) -> list[float]:
    """Trains, and returns the share of training images that were misread in each epoch, as they were trained on."""
    model = resfit.Model(net)
    # The paper warms its 110 layers up too: at the full rate from the first step they do not get going.
    model.compile("sgd", learning_rate=resfit.schedules.WarmupCosine(peak=0.1), seed=seed)
    history = model.fit(x, y, batch_size=BATCH, epochs=epochs, verbose=0, drop_remainder=True)
    return [1 - accuracy for accuracy in history.history["accuracy"]]


def draw(errors: Errors, path: Path) -> None:
    """One panel for each kind of net: the mean over the seeds, and the band that all of them lie in."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True, layout="constrained")
    for panel, (kind, by_depth) in zip(axes, errors.items(), strict=True):
        for (depth, curves), color, style in zip(by_depth.items(), COLORS, STYLES, strict=False):
            percent = 100 * np.array(curves)  # (seeds, epochs)
            epochs = range(1, percent.shape[1] + 1)
            panel.plot(epochs, percent.mean(axis=0), style, color=color, linewidth=2, label=f"{depth} layers")
            panel.fill_between(epochs, percent.min(axis=0), percent.max(axis=0), color=color, alpha=0.2, linewidth=0)
        panel.set(title=kind, xlabel="epoch", ylim=(0, 100))
        panel.grid(alpha=0.3)
    axes[0].set_ylabel("training error (%)")
    axes[1].legend()  # for both: there is more room in this panel
    figure.savefig(path, dpi=120)


def main() -> None:
    """Trains every net with every seed, prints a table, draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="train N times, with seeds 0 to N - 1 (3)")
    parser.add_argument("--depths", type=int, nargs="+", default=[20, 56, 110], help="up to three, 6n + 2 (20 56 110)")
    parser.add_argument("--epochs", type=int, default=16, help="passes over the images (16)")
    parser.add_argument("--images", type=int, default=3000, metavar="N", help="train on the first N images (3000)")
    parser.add_argument("--data", type=Path, help="folder of Fashion-MNIST's files (default: found, or downloaded)")
    parser.add_argument("--output", type=Path, default=Path("out/depth.json"), help="errors; beside them, the picture")
    options = parser.parse_args()
    if min(options.seeds, options.epochs) < 1 or options.images < BATCH:
        parser.error(
            f"got --seeds {options.seeds} --epochs {options.epochs} --images {options.images}; expected at least 1, 1 "
            f"and {BATCH}, a batch"
        )
    if len(options.depths) > len(COLORS) or any(depth < 8 or depth % 6 != 2 for depth in options.depths):
        given = " ".join(map(str, options.depths))
        parser.error(f"got --depths {given}; expected at most three numbers of the form 6n + 2: 8, 14, 20, ...")

    x, y = data(options.data, options.images)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    picture = options.output.with_suffix(".png")
    errors: Errors = {kind: {depth: [] for depth in options.depths} for kind in KINDS}
    for seed in range(options.seeds):
        for kind, by_depth in errors.items():
            for depth, curves in by_depth.items():
                start = time.perf_counter()
                curves.append(train(build(kind, depth, seed), x, y, options.epochs, seed))
                took = f"{time.perf_counter() - start:.0f} s"
                print(f"Seed {seed}, {kind}-{depth}: training error {curves[-1][-1]:.2%}, {took}.", flush=True)
        options.output.write_text(json.dumps({"images": len(x), "epochs": options.epochs, "training_error": errors}))
        draw(errors, picture)

    print(f"\nTraining error in the last epoch, mean of {options.seeds} seeds, over {len(x)} images:")
    for kind, by_depth in errors.items():
        for depth, curves in by_depth.items():
            last = [curve[-1] for curve in curves]
            print(f"{np.mean(last):9.2%}  {kind}-{depth}, {min(last):.2%} to {max(last):.2%}")
    print(f"\nCPU minutes: {time.process_time() / 60:.1f}. The errors are in {options.output}, drawn in {picture}.")


if __name__ == "__main__":
    main()
