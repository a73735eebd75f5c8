"""The cost of reading a folder of JPEG files, compared with torchvision and a bare loop; and of Grain through resfit.

    python -m benchmarks.folder

Every image is decoded and a random crop of it resized to 224 x 224; the result is batches of 32 uint8 images. The files
are crops of photographs, 500 x 375 pixels, made for the run. Contestants take turns. With one thread or process, the
clock is processor time, which does not depend on other load; with several, it is wall time. Without torchvision, the
same calls of Pillow take its place.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import grain
import matplotlib.cbook
import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from resfit.data import Geometry, as_batches
from resfit.data.crops import random_crop
from resfit.data.sources import folder

SIDE, BATCH = 224, 32


def make_files(root: Path, count: int) -> None:
    """Write crops of three photographs, at the usual size of an ImageNet file, in ten classes."""
    rng = np.random.default_rng(0)
    photos = [Image.fromarray(array) for array in load_sample_images().images]
    photos.append(Image.open(matplotlib.cbook.get_sample_data("grace_hopper.jpg")))
    for i in range(count):
        photo = photos[i % len(photos)]
        width = rng.uniform(0.6, 1) * min(photo.width, photo.height * 4 / 3)
        left, top = rng.uniform(0, photo.width - width), rng.uniform(0, photo.height - width * 3 / 4)
        piece = photo.resize((500, 375), Image.Resampling.BICUBIC, box=(left, top, left + width, top + width * 3 / 4))
        path = root / f"class{i % 10}" / f"{i:05}.jpg"
        path.parent.mkdir(exist_ok=True)
        piece.save(path, quality=92)


def ours(root: Path, threads: int) -> Callable[[], int]:
    """Read an epoch of `resfit.data.folder` and return the number of images."""
    images = folder(root, size=SIDE, crop="random", threads=threads)
    batches = as_batches(images, geometry=Geometry(BATCH, seed=0))
    epochs = iter(range(1_000_000))
    return lambda: sum(batch.size for batch in batches.epoch(next(epochs)))


def torchvision(root: Path, workers: int) -> Callable[[], int]:
    """Read an epoch of torchvision's ImageFolder and RandomResizedCrop through PyTorch's DataLoader."""
    import torch
    from torchvision import datasets, transforms

    torch.set_num_threads(1)
    transform = transforms.Compose([transforms.RandomResizedCrop(SIDE), transforms.PILToTensor()])
    loader = torch.utils.data.DataLoader(
        datasets.ImageFolder(str(root), transform),
        batch_size=BATCH,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        multiprocessing_context="forkserver" if workers else None,
    )
    return lambda: sum(len(x) for x, _ in loader)


def pillow(root: Path) -> Callable[[], int]:
    """Read an epoch in a bare loop: the Pillow calls of torchvision, and np.stack."""
    paths = sorted(root.glob("*/*.jpg"))
    rng = np.random.default_rng(0)

    def image(path: Path) -> np.ndarray:
        with Image.open(path) as file:
            whole = file.convert("RGB")
        box = random_crop(whole.height, whole.width, rng)
        return np.asarray(whole.crop(box).resize((SIDE, SIDE), Image.Resampling.BILINEAR))

    def batches() -> Iterator[np.ndarray]:
        order = rng.permutation(len(paths))
        for first in range(0, len(paths), BATCH):
            yield np.stack([image(paths[i]) for i in order[first : first + BATCH]])

    return lambda: sum(len(x) for x in batches())


class InMemory:
    """Examples without reading cost, so that only the cost of the libraries remains."""

    def __init__(self) -> None:
        self._images = np.random.default_rng(0).integers(0, 255, (2048, 32, 32, 3), np.uint8)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        return self._images[i], i % 10


def grain_alone(data: grain.MapDataset) -> Callable[[], int]:
    """Read the batches of a Grain dataset in a bare loop."""
    return lambda: sum(len(data[i][1]) for i in range(len(data)))


def grain_adapted(data: grain.MapDataset) -> Callable[[], int]:
    """Read the same batches through resfit."""
    batches = as_batches(data, geometry=Geometry(BATCH))
    return lambda: sum(batch.size for batch in batches.epoch(0))


def compare(title: str, contestants: dict[str, Callable[[], int]], rounds: int, clock: Callable[[], float]) -> None:
    """Print images per second of each contestant, and the ratio of each to the first."""
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for round_ in range(rounds + 1):
        for name, epoch in contestants.items():
            start = clock()
            images = epoch()
            if round_:  # the first round fills caches and starts workers
                rates[name].append(images / (clock() - start))
    first, *_ = rates.values()
    for name, values in rates.items():
        ratio = statistics.median(a / b for a, b in zip(values, first, strict=True))
        print(
            f"{title:22} {name:28} images/s: median {statistics.median(values):6.0f}  min {min(values):6.0f}  "
            f"max {max(values):6.0f}  ratio {ratio:.3f}"
        )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=240)
    parser.add_argument("--rounds", type=int, default=11, help="measured rounds of each, in turns")
    parser.add_argument("--workers", type=int, default=2, help="threads or processes of the second comparison")
    arguments = parser.parse_args()
    there = find_spec("torchvision") is not None
    with tempfile.TemporaryDirectory() as made:
        root = Path(made)
        make_files(root, arguments.images)
        one = {"torchvision, DataLoader": torchvision(root, 0)} if there else {}
        one |= {"Pillow, a bare loop": pillow(root), "resfit.data.folder": ours(root, 0)}
        compare("one core", one, arguments.rounds, time.process_time)
        several = {"torchvision, DataLoader": torchvision(root, arguments.workers)} if there else {}
        several |= {"resfit.data.folder": ours(root, arguments.workers)}
        compare(f"{arguments.workers} workers", several, arguments.rounds, time.perf_counter)
    data = grain.MapDataset.source(InMemory()).seed(0).shuffle().batch(BATCH)
    both = {"Grain, a bare loop": grain_alone(data), "Grain through resfit": grain_adapted(data)}
    compare("in memory, 32 x 32", both, arguments.rounds, time.process_time)


if __name__ == "__main__":
    main()
