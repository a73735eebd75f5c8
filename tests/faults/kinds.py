"""Every kind of data that `fit` accepts: the same 22 pictures, built again as another process builds them."""

import functools
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image

import resfit
from resfit.data import ShardStream
from resfit.data.batches import Batch
from resfit.errors import BadRecordError
from tests.faults.runs import BATCH, EXAMPLES
from tests.helpers import CLASSES

READ: list[int] = []  # the rows that were read or decoded; threads append to it


def picture(row: int) -> np.ndarray:
    """Return (8, 8, 1) uint8, distinct for each row; the first pixel is the row."""
    pixels = np.random.default_rng(row).integers(0, 256, (8, 8, 1), dtype=np.uint8)
    pixels[0, 0] = row
    return pixels


X = np.stack([picture(row) for row in range(EXAMPLES)])
Y = (np.arange(EXAMPLES) % CLASSES).astype(np.int32)


def read(row: int) -> tuple[np.ndarray, int]:
    """Return an example, and record that it was read."""
    READ.append(row)
    return picture(row), row % CLASSES


def stacked(rows: Any) -> tuple[np.ndarray, np.ndarray]:
    examples = [read(int(row)) for row in rows]
    return np.stack([x for x, _ in examples]), np.array([y for _, y in examples], np.int32)


@functools.cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    return resfit.data.load("digits")[0]


def order(seed: int = 0) -> list[np.ndarray]:
    rows = np.random.default_rng(seed).permutation(EXAMPLES)
    return [rows[first : first + BATCH] for first in range(0, EXAMPLES, BATCH)]


def png(row: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(row)[..., 0]).save(file, "PNG")
    return file.getvalue()


def write(folder: Path) -> None:
    """Write the files that some kinds read."""
    for row in range(EXAMPLES):
        place = folder / "images" / f"class{row % CLASSES}" / f"{row:02}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(png(row))
    for shard in range(4):
        table().shard(4, shard).to_parquet(folder / f"train-{shard}.parquet")
    prepared(folder).download_and_prepare()
    np.save(folder / "x.npy", X)
    with h5py.File(folder / "x.h5", "w") as file:
        file["x"], file["y"] = X, Y


def hugging_face() -> Any:
    """Import and return the package `datasets`, which takes seconds: only tests that need it do so."""
    import datasets

    datasets.disable_progress_bars()
    return datasets


def table(rows: int = EXAMPLES) -> Any:
    datasets = hugging_face()
    columns = {"img": [{"bytes": png(i), "path": None} for i in range(rows)], "digit": [int(i) for i in Y[:rows]]}
    features = datasets.Features(img=datasets.Image(), digit=datasets.ClassLabel(num_classes=CLASSES))
    return datasets.Dataset.from_dict(columns, features=features)


def parquet(folder: Path, pattern: str = "train-*.parquet") -> Any:
    return hugging_face().load_dataset(
        "parquet", data_files={"train": str(folder / pattern)}, split="train", streaming=True,
        cache_dir=str(folder / "cache"),
    )  # fmt: skip


def prepared(folder: Path) -> Any:
    import tensorflow_datasets

    features = tensorflow_datasets.features

    class Builder(tensorflow_datasets.core.GeneratorBasedBuilder, skip_registration=True):
        name = "animals"
        VERSION = tensorflow_datasets.core.Version("1.0.0")
        pkg_dir_path = None

        def _info(self) -> Any:
            columns = {"photo": features.Image(shape=(8, 8, 1)), "kind": features.ClassLabel(num_classes=CLASSES)}
            return tensorflow_datasets.core.DatasetInfo(builder=self, features=features.FeaturesDict(columns))

        def _split_generators(self, manager: Any) -> Any:
            return {"train": self._generate_examples(EXAMPLES), "more": self._generate_examples(EXAMPLES)}

        def _generate_examples(self, rows: int) -> Any:
            for row in range(rows):
                yield row, {"photo": Image.fromarray(picture(row)[..., 0]), "kind": row % CLASSES}

    return Builder(data_dir=folder / "tfds", file_format="array_record")


class Rows:
    """A `Source` whose examples are read by threads."""

    threads = 2
    labels = Y

    def __len__(self) -> int:
        return EXAMPLES

    def take(self, rows: Any) -> Any:
        return *stacked(np.arange(EXAMPLES)[rows]), None


def h5(files: Path) -> Any:
    return h5py.File(files / "x.h5")


def listed(files: Path) -> Any:
    """Return the images of the folder in the order of their rows."""
    paths = [files / "images" / f"class{row % CLASSES}" / f"{row:02}.png" for row in range(EXAMPLES)]
    return resfit.data.files(paths, Y, size=8, crop="random", mode="L")


class Named:
    """A source for Grain; its repr holds no address."""

    def __len__(self) -> int:
        return EXAMPLES

    def __getitem__(self, row: Any) -> Any:
        return read(int(row))

    def __repr__(self) -> str:
        return "Named()"


class Unnamed(Named):
    __repr__ = object.__repr__


def mapped(batch: int = BATCH, seed: int = 5) -> Any:
    import grain

    return grain.MapDataset.source(Named()).seed(seed).shuffle().batch(batch)


def passing(batch: int = BATCH) -> Any:
    import grain

    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
    return grain.MapDataset.source(Named()).seed(5).shuffle().to_iter_dataset(options).batch(batch)


def grain_loader(source: Any, epochs: int | None = 1) -> Any:
    import grain

    return grain.DataLoader(
        data_source=source,
        sampler=grain.samplers.IndexSampler(num_records=EXAMPLES, shuffle=True, seed=1, num_epochs=epochs),
        operations=[grain.transforms.Batch(BATCH, drop_remainder=False)],
        worker_count=0,
        read_options=grain.ReadOptions(num_threads=0, prefetch_buffer_size=0),
    )


class Numbers:
    """Three shards of 6 rows and one of 4; some rows can be bad."""

    examples = None

    def __init__(self, bad: tuple[int, ...] = (), *, known: bool = True) -> None:
        self._bad, self._known = bad, known

    def __len__(self) -> int:
        return 4

    def lengths(self, needed: bool) -> Any:
        return [6, 6, 6, 4] if self._known else None

    def name(self, shard: int) -> str:
        return f"shard {shard}"

    def read(self, shard: int, start: int) -> Iterator[int]:
        yield from range(6 * shard + start, min(6 * shard + 6, EXAMPLES))

    def decode(self, record: int, key: Any, place: Any) -> Any:
        if record in self._bad:
            raise BadRecordError("it is said to be bad")
        return read(record)

    def stack(self, examples: list[Any]) -> Any:
        return np.stack([x for x, _ in examples]), np.array([y for _, y in examples], np.int32), None


def stream(bad: tuple[int, ...] = (), known: bool = True, window: int = 7, threads: int = 2) -> ShardStream:
    return ShardStream(
        Numbers(bad, known=known), window=window, interleave=2, max_bad_records=len(bad), threads=threads
    )


class Loader:
    """A custom loader with a state; its order depends on the number of earlier passes."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(3)
        self._rows, self._done = np.zeros(0, np.int64), 0

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[Any]:
        if not self._done:
            self._rows = self._rng.permutation(EXAMPLES)
        while self._done < 3:
            self._done += 1
            yield stacked(self._rows[BATCH * (self._done - 1) : BATCH * self._done])
        self._done = 0

    def state_dict(self) -> dict[Any, Any]:
        return {"rng": self._rng.bit_generator.state, 0: (self._done, self._rows.copy()), "raw": b"\0a\0"}

    def load_state_dict(self, state: dict[Any, Any]) -> None:
        assert state["raw"] == b"\0a\0"
        self._rng.bit_generator.state = state["rng"]
        self._done, self._rows = state[0]


class Told:
    """A custom loader with `set_epoch`, as the samplers of torch have."""

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        return map(stacked, order(self._epoch))


class Own:
    """A custom `Batches`."""

    steps, examples, labels, report = 3, EXAMPLES, None, {}  # type: ignore[var-annotated]

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for rows in order(epoch)[start:]:
            yield Batch(*stacked(rows), None, None, len(rows))


def endless() -> Iterator[Any]:
    epoch = 0
    while True:
        yield from map(stacked, order(epoch))
        epoch += 1


FIXED = {"steps_per_epoch": 3}
ARRAYS = {"y": Y, "batch_size": BATCH}
CUT = {"batch_size": BATCH}

# name -> function of the folder with the files that returns the arguments of fit
KINDS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "arrays": lambda files: {"x": X, **ARRAYS},
    "arrays of a file": lambda files: {"x": np.load(files / "x.npy", mmap_mode="r"), **ARRAYS},
    "arrays of an h5py file": lambda files: {"x": h5(files)["x"], "y": h5(files)["y"], **CUT},
    "arrays of data.load": lambda files: {"x": digits()[0][:EXAMPLES], "y": digits()[1][:EXAMPLES] % CLASSES, **CUT},
    "weighted arrays": lambda files: {"x": X, **ARRAYS, "sample_weight": np.linspace(0, 2, EXAMPLES)},
    "arrays on the device": lambda files: {"x": X, **ARRAYS, "cache": "device"},
    "arrays, five steps an epoch": lambda files: {"x": X, **ARRAYS, "steps_per_epoch": 5},
    "a source": lambda files: {"x": Rows(), **CUT},
    "a folder": lambda files: {"x": resfit.data.folder(files / "images", size=8, crop="random", mode="L"), **CUT},
    "files": lambda files: {"x": listed(files), **CUT},
    "TFDS": lambda files: {"x": prepared(files).as_data_source("train"), **CUT},
    "Hugging Face": lambda files: {"x": table(), **CUT},
    "a stream of Hugging Face": lambda files: {
        "x": resfit.data.huggingface(parquet(files), window=7, interleave=2), **CUT
    },
    "a stream": lambda files: {"x": stream(), **CUT},
    "a stream without lengths": lambda files: {"x": stream(known=False), **CUT, **FIXED},
    "a stream with bad records": lambda files: {"x": stream((2, 20)), **CUT, "steps_per_epoch": 4},
    "MapDataset of Grain": lambda files: {"x": mapped()},
    "IterDataset of Grain": lambda files: {"x": passing(), **FIXED},
    "DataLoader of Grain": lambda files: {"x": grain_loader(Named()), **FIXED},
    "DataLoader of Grain, no name": lambda files: {"x": grain_loader(Unnamed()), **FIXED},
    "an iterator of Grain": lambda files: {"x": iter(grain_loader(Named(), epochs=None)), **FIXED},
    "a list of batches": lambda files: {"x": [(X[rows], Y[rows]) for rows in order()], "class_weight": {1: 2.0}},
    "a function of batches": lambda files: {"x": lambda: map(stacked, order()), **FIXED},
    "a loader with state": lambda files: {"x": Loader()},
    "a loader with state, by class": lambda files: {"x": Loader(), "class_weight": {1: 2.0}},
    "a loader with state, five steps an epoch": lambda files: {"x": Loader(), "steps_per_epoch": 5},
    "a loader that is told the epoch": lambda files: {"x": Told(), **FIXED},
    "a generator": lambda files: {"x": endless(), **FIXED},
    "Batches": lambda files: {"x": Own()},
}  # fmt: skip
