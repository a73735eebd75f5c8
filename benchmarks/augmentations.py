"""The cost of each augmentation: images in a second, and its share of a training step of ResNet-20.

    python -m benchmarks.augmentations
    python -m benchmarks.augmentations --cpu-kernels xla --rounds 40 --only rand_augment aug_mix

Each augmentation is a program of its own, compiled as a part of a step is, on a batch of 128 images of 32 x 32 x 3. The
rounds alternate with single training steps, without augmentation. On a CPU, times are processor time of all threads, of
which other load on the machine changes little; elsewhere they are wall time. Each is the shortest of all rounds. Copies
of examples also lengthen the step: `repeated_augmentation(k)` about k times, `aug_mix(consistency=12)` three times.
"""

import argparse
import datetime
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import resfit
from benchmarks import machine
from resfit import augment
from resfit.backends.cpu_barrier import barrier_options

BATCH = 128
AUGMENTS: dict[str, augment.Augment] = {
    "flip()": augment.flip(),
    "alternating_flip()": augment.alternating_flip(),
    "pad_crop(4)": augment.pad_crop(4),
    "random_resized_crop(32)": augment.random_resized_crop(32),
    "color_jitter()": augment.color_jitter(),
    "color_jitter(0.4, 0.4, 0.4, hue=0.1)": augment.color_jitter(0.4, 0.4, 0.4, hue=0.1),
    "gray()": augment.gray(),
    "rotate(15)": augment.rotate(15),
    "affine(10, (0.1, 0.1), (0.9, 1.1))": augment.affine(10, (0.1, 0.1), (0.9, 1.1)),
    "trivial_augment()": augment.trivial_augment(),
    "rand_augment(2, 9)": augment.rand_augment(2, 9),
    'auto_augment("cifar10")': augment.auto_augment("cifar10"),
    "aug_mix()": augment.aug_mix(),
    "aug_mix(consistency=12)": augment.aug_mix(consistency=12),
    "repeated_augmentation(2)": augment.repeated_augmentation(2),
    "random_erasing()": augment.random_erasing(),
    'random_erasing(fill="noise")': augment.random_erasing(fill="noise"),
    "mixup(0.2)": augment.mixup(0.2, 10),
    "cutmix(1.0)": augment.cutmix(1.0, 10),
}


def program(function: augment.Augment, x: np.ndarray, y: np.ndarray) -> Callable[[], Any]:
    """Return a function that runs an augmentation on a batch, with another key in every call."""
    origin = np.stack([0 * y, np.arange(len(y)), 0 * y], axis=1).astype(np.int32)

    def augmented(key: jax.Array, x: Any, y: Any, origin: Any) -> Any:
        return augment.pipeline.applied(function, key, x, y, origin)

    batch = jax.device_put((x, y, origin))
    lowered = jax.jit(augmented).lower(jax.random.key(0), *batch)
    run = lowered.compile(barrier_options(lowered.as_text(), jax.devices()))
    keys = iter(jax.random.split(jax.random.key(0), 10_000))
    return lambda: jax.block_until_ready(run(next(keys), *batch))


def training_step(x: np.ndarray, y: np.ndarray, cpu_kernels: str) -> Callable[[], Any]:
    """Return a function that takes one training step."""
    model = resfit.Model(resfit.create_model("resnet20", num_classes=10))
    model.compile("sgd", learning_rate=0.1, cpu_kernels=cpu_kernels, dispatch="jit")
    return lambda: model.train_on_batch(x, y)


def shortest(run: Callable[[], Any], clock: Callable[[], float], best: float = float("inf")) -> float:
    """Return the seconds of a call, or of an earlier one that was shorter."""
    start = clock()
    run()
    return min(best, clock() - start)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--cpu-kernels", default="auto", choices=["auto", "xla", "onednn"])
    parser.add_argument("--only", nargs="+", default=[""], help="augmentations whose names begin like one of these")
    arguments = parser.parse_args()
    random = np.random.default_rng(0)
    x, y = random.integers(0, 256, (BATCH, 32, 32, 3), dtype=np.uint8), (np.arange(BATCH) % 10).astype(np.int32)
    images = {"uint8": x, "float32": (x / 255).astype(np.float32)}
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    step = training_step(x, y, arguments.cpu_kernels)
    chosen = {name: one for name, one in AUGMENTS.items() if name.startswith(tuple(arguments.only))}
    runs = {(name, dtype): program(one, images[dtype], y) for name, one in chosen.items() for dtype in images}
    for run in (step, *runs.values()):
        run()
    of_step, best = float("inf"), dict.fromkeys(runs, float("inf"))
    for _ in range(arguments.rounds):
        of_step = shortest(step, clock, of_step)
        best = {key: shortest(run, clock, best[key]) for key, run in runs.items()}
    print(f"{datetime.date.today().isoformat()}, {machine.where()}, {jax.devices()[0].device_kind}")
    print(
        f"A step of ResNet-20, {BATCH} images of uint8, cpu_kernels={arguments.cpu_kernels}: {of_step * 1e3:.1f} ms\n"
    )
    print("| | ms, uint8 | ms, float32 | images/s, uint8 | share of a step, uint8 |\n|---|---:|---:|---:|---:|")
    for name in chosen:
        first, second = (best[name, dtype] for dtype in images)
        print(f"| `{name}` | {first * 1e3:.2g} | {second * 1e3:.2g} | {BATCH / first:,.0f} | {first / of_step:.2%} |")


if __name__ == "__main__":
    main()
