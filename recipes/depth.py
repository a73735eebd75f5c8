"""Plain and residual networks of 20, 56 and 110 layers, and how well each of them fits real images.

    python recipes/depth.py            # three seeds
    python recipes/depth.py --seeds 1

Install with `pip install "resfit[recipes]"`. A small version of figure 6 of He et al. 2015 (arXiv:1512.03385): the
CIFAR networks of the paper at half their width, trained for 16 epochs on the first 3,000 training images of
Fashion-MNIST, shrunk to 14 x 14 pixels. The training error in the last epoch, mean and range of three seeds:

    layers  plain                     residual
    20       4.62 % (3.70 to 5.60)     6.83 % (5.37 to 7.68)
    56      45.03 % (41.61 to 48.64)   4.18 % (2.48 to 6.18)
    110     88.78 % (88.08 to 89.27)   3.86 % (2.79 to 4.59)

A deeper plain network fits worse, and not because of overfitting: these are its training images. With 110 layers it is
hardly better than chance, 90 %. A deeper residual network fits better.

The residual blocks start as identities (see `build`), so the residual networks of 20 layers are behind the plain ones.
With all scales at one, as in the plain networks and in the paper, residual-20 reached 0.10 % and residual-56 0.17 %,
but residual-110, for which this learning rate is too high at first, 0.24, 6.45 and 10.39 %, by seed.

The recipe takes 24 minutes of wall time and 35 CPU minutes, including compilation, on 2 cores of an Intel Xeon
(jax 0.10.2), shared with other work at a load average of 2 to 12, with settings that let glibc keep memory:
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
# Okabe and Ito's colors, which color-blind readers can distinguish; line styles for black and white.
COLORS, STYLES = ("#E69F00", "#0072B2", "#000000"), (":", "--", "-")

Errors = dict[str, dict[int, list[list[float]]]]  # kind of net -> layers -> for each seed, one share for each epoch


class PlainNet(ResNet):
    """A residual network without its shortcuts: the same layers in the same order, and no addition."""

    def __call__(self, x: jax.Array, *, train: bool | None = None) -> jax.Array:
        """Classify images (batch, height, width, channels) as `ResNet` does."""
        x = self.stem(x, train=train)
        for stage in self.stages:
            for block in stage.blocks:
                x = nnx.relu(block.branch(x, train=train))
        return self.head(x)


KINDS = {"plain": PlainNet, "residual": ResNet}


def data(path: Path | None, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return training images, shrunk to (count, 14, 14, 1) of mean 0 and deviation 1, and their labels (count,)."""
    (images, labels), _ = resfit.data.load("fashion_mnist", path=path)
    small = reduce(images[:count].astype("float32"), "n (h a) (w b) c -> n h w c", "mean", a=2, b=2)
    return (small - small.mean()) / small.std(), labels[:count]


def build(kind: str, depth: int, seed: int) -> nnx.Module:
    """Build He's CIFAR network of 6n + 2 layers at half its width, or the plain network of the same layers.

    Option-A shortcuts have no parameters, so both kinds have the same parameters and the same initial kernels. The
    scale of the last norm of a residual block starts at zero, the default, so a new network is an identity at any
    depth. A plain network would output zeros, so all its scales start at one.
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
    """Train, and return the training error of each epoch."""
    model = resfit.Model(net)
    # The paper warms up its 110 layers too: they do not train at the full learning rate from the first step.
    model.compile("sgd", learning_rate=resfit.schedules.WarmupCosine(peak=0.1), seed=seed)
    history = model.fit(x, y, batch_size=BATCH, epochs=epochs, verbose=0, drop_remainder=True)
    return [1 - accuracy for accuracy in history.history["accuracy"]]


def draw(errors: Errors, path: Path) -> None:
    """Draw one panel for each kind of network: the mean and the range over the seeds."""
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
    axes[1].legend()  # for both: this panel has more space
    figure.savefig(path, dpi=120)


def main() -> None:
    """Train every network with every seed, print a table, draw."""
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
