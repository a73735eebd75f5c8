"""Grain datasets and loaders in fit: every row once, in the order of Grain, from any batch."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grain
import numpy as np
import pytest
from absl import flags

from resfit.data import Batches, Epochs, Geometry, as_batches, folder
from resfit.errors import DataError
from tests.helpers import compiled

N = 23


class Examples:
    """A sequence of examples whose pixels are their number."""

    def __init__(self, make: Callable[[int], Any]) -> None:
        self._make = make

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> Any:
        return self._make(i)


def image(i: int) -> np.ndarray:
    return np.full((2, 2, 1), i, np.uint8)


def pair(i: int) -> tuple[np.ndarray, int]:
    return image(i), i % 3


def record(i: int) -> dict[str, Any]:
    return {"image": image(i), "label": i % 3}


def mapped(make: Callable[[int], Any] = pair) -> grain.MapDataset:
    return grain.MapDataset.source(Examples(make)).seed(5).shuffle().batch(4)


def loader(epochs: int | None = 1) -> grain.DataLoader:
    return grain.DataLoader(
        data_source=Examples(pair),
        sampler=grain.samplers.IndexSampler(num_records=N, shuffle=True, seed=1, num_epochs=epochs),
        operations=[grain.transforms.Batch(4, drop_remainder=False)],
        worker_count=0,
    )


def in_one_thread() -> grain.IterDataset:
    return mapped().to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))


class Doubled(grain.MapDataset):
    """A custom dataset whose elements are batches."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Any:
        rows = np.arange(N)[4 * (index % 6) : 4 * (index % 6) + 4]
        return np.stack([image(i) for i in rows]), rows % 3


KINDS: dict[str, Callable[[], Any]] = {
    "MapDataset": mapped,
    "MapDataset of dicts": lambda: mapped(record),
    "MapDataset, own class": Doubled,
    "IterDataset, threads": lambda: mapped().to_iter_dataset(),
    "IterDataset, no threads": in_one_thread,
    "IterDataset, batched last": lambda: (
        grain.MapDataset.source(Examples(pair)).seed(5).shuffle().to_iter_dataset().batch(4)
    ),
    "DataLoader": loader,
}


def batches_of(x: Any) -> Batches:
    return as_batches(x, geometry=Geometry(batch_size=32, seed=0))


def read(batches: Batches, epoch: int = 0, start: int = 0) -> list[list[int]]:
    rows = []
    for batch in batches.epoch(epoch, start):
        ids = batch.x[:, 0, 0, 0].astype(int)
        np.testing.assert_array_equal(batch.y, ids % 3)
        assert batch.size == len(ids)
        rows.append(ids.tolist())
    return rows


def flat(rows: list[list[int]]) -> list[int]:
    return [row for batch in rows for row in batch]


@pytest.mark.representatives("MapDataset", "IterDataset, threads", "DataLoader")
@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_has_every_row_once_in_the_order_of_grain(kind: str) -> None:
    rows = read(batches_of(KINDS[kind]()))
    assert sorted(flat(rows)) == list(range(N))
    bare = [np.asarray(b["image"] if isinstance(b, dict) else b[0])[:, 0, 0, 0].tolist() for b in KINDS[kind]()]
    assert rows == bare
    assert rows == read(batches_of(KINDS[kind]()))  # two runs agree


@pytest.mark.representatives("2-MapDataset", "2-IterDataset, no threads", "2-DataLoader")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("epoch", [0, 2])
def test_resuming_at_every_batch_gives_the_rest_of_the_epoch(kind: str, epoch: int) -> None:
    batches = batches_of(KINDS[kind]())
    whole = read(batches, epoch)
    assert len(whole) == 6
    for start in range(len(whole) + (batches.steps is not None)):
        assert read(batches_of(KINDS[kind]()), epoch, start) == whole[start:]


def test_a_shuffled_map_dataset_has_a_new_order_in_every_epoch_like_repeat() -> None:
    batches = batches_of(mapped())
    epochs = [read(batches, epoch) for epoch in range(3)]
    assert [sorted(flat(rows)) for rows in epochs] == [list(range(N))] * 3
    assert len({tuple(flat(rows)) for rows in epochs}) == 3
    assert flat(epochs[0] + epochs[1] + epochs[2]) == [
        int(i) for x, _ in mapped().repeat(3) for i in x[:, 0, 0, 0]
    ]  # fmt: skip


def test_random_transformations_of_a_map_dataset_differ_between_epochs_and_agree_between_runs() -> None:
    def noisy() -> Batches:
        data = grain.MapDataset.source(Examples(pair)).seed(5)
        return batches_of(data.random_map(lambda e, rng: (e[0] + rng.integers(0, 99), e[1])).batch(4))

    first, second, again = ([b.x.tobytes() for b in noisy().epoch(epoch)] for epoch in (0, 1, 0))
    assert first == again
    assert not set(first) & set(second)


def test_a_map_dataset_resumes_at_any_batch_without_reading_earlier_batches() -> None:
    asked: list[int] = []

    def example(i: int) -> Any:
        asked.append(i)
        return pair(i)

    rows = read(batches_of(grain.MapDataset.source(Examples(example)).batch(4)), 0, 4)
    assert rows == [[16, 17, 18, 19], [20, 21, 22]]
    assert min(asked) == 16


def test_an_endless_map_dataset_fills_epochs_of_any_length() -> None:
    data = grain.MapDataset.source(Examples(pair)).seed(5).shuffle().repeat().batch(4)
    batches = batches_of(data)
    assert (batches.steps, batches.examples) == (None, None)
    epochs = Epochs(batches, steps=7)
    seen = [int(i) for _ in range(3) for batch in epochs.next() for i in batch.x[:, 0, 0, 0]]
    assert len(seen) == 3 * 7 * 4
    assert [sorted(seen[i : i + N]) for i in (0, N, 2 * N)] == [list(range(N))] * 3
    assert seen[:N] != seen[N : 2 * N]
    some = batches.epoch(0, start=9)
    assert flat([batch.x[:, 0, 0, 0].tolist() for batch, _ in zip(some, range(3), strict=False)]) == seen[36:48]


def test_a_consumed_iterator_raises() -> None:
    batches = batches_of(iter(mapped().to_iter_dataset()))
    assert len(read(batches)) == 6
    with pytest.raises(DataError, match="all its batches have been used"):
        read(batches)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: grain.MapDataset.source(Examples(pair)), r"\(2, 2, 1\), \(\), which is not a batch.*\.batch\(64\)"),
        (lambda: grain.MapDataset.source(Examples(record)), r"\.batch\(64\)"),
        (lambda: grain.MapDataset.source(Examples(pair)).to_iter_dataset(), r"\.batch\(64\)"),
        (lambda: grain.MapDataset.source(Examples(lambda i: (image(i), np.eye(3)[i % 3]))), r"\.batch\(64\)"),
        (lambda: grain.DataLoader(
            data_source=Examples(pair),
            sampler=grain.samplers.SequentialSampler(num_records=N),
        ), r"\.batch\(64\)"),
        (lambda: grain.MapDataset.source([]), "has no batches"),
        (lambda: grain.MapDataset.source([]).to_iter_dataset(), "yielded no batch"),
        (lambda: mapped().filter(lambda batch: bool(batch[1][0] % 2)), "was filtered out"),
        (lambda: mapped(lambda i: (image(i) * np.nan, i)), "NaN"),
        (lambda: mapped(lambda i: (image(i), "cat")), "Convert class names to numbers"),
    ],
)  # fmt: skip
def test_elements_that_are_not_batches_raise_with_a_remedy(data: Callable[[], Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(batches_of(data()).epoch(0))


def test_an_error_inside_a_transformation_is_raised_at_the_position_of_its_batch() -> None:
    def broken(i: int) -> Any:
        if i == 9:
            raise ZeroDivisionError(i)
        return pair(i)

    epoch = batches_of(grain.MapDataset.source(Examples(broken)).batch(4)).epoch(0)
    assert [next(epoch).size, next(epoch).size] == [4, 4]
    with pytest.raises(ZeroDivisionError):
        next(epoch)


class Unparsed(grain.IterDataset):
    """Read an absl flag before the command line is parsed, as Grain's worker processes do at their start."""

    def __iter__(self) -> Any:
        values = flags.FlagValues()
        flags.DEFINE_bool("profiling", False, "", flag_values=values)
        return values.profiling


def test_unparsed_flags_raise_with_a_remedy() -> None:
    with pytest.raises(DataError, match=r"--profiling before.*absl\.flags\.FLAGS\.mark_as_parsed\(\) before fit"):
        list(batches_of(Unparsed()).epoch(0))


WORKERS = """
import grain
import numpy as np

class Examples:
    def __len__(self):
        return 23

    def __getitem__(self, i):
        return np.full((2, 2, 1), i, np.uint8), i % 3

def main():
    # Imports are local, because every worker process imports this file.
    from absl import flags
    from resfit.data import Epochs, Geometry, as_batches

    data = grain.MapDataset.source(Examples()).seed(5).shuffle().batch(4).to_iter_dataset()
    data = data.mp_prefetch(grain.MultiprocessingOptions(num_workers=2))
    batches = as_batches(data, geometry=Geometry(32))
    flags.FLAGS.mark_as_parsed()
    begun, rest = Epochs(batches, None), Epochs(as_batches(data, geometry=Geometry(32)), None)
    for epoch in (batches.epoch(0), batches.epoch(0, 3)):
        print(*(int(i) for batch in epoch for i in batch.x[:, 0, 0, 0]))
    for _ in zip(range(3), begun.next()):
        position = begun.position(inside=True)
    rest.seek(**position)
    print(*(int(i) for batch in rest.next() for i in batch.x[:, 0, 0, 0]))

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
def test_worker_processes_give_the_same_rows(tmp_path: Path) -> None:
    script = tmp_path / "workers.py"
    script.write_text(WORKERS)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    whole, read_again, gone_on = ([int(i) for i in line.split()] for line in done.stdout.splitlines())
    assert whole == flat(read(batches_of(in_one_thread())))
    assert read_again == gone_on == whole[12:]


def test_a_folder_is_a_source_for_grain(tmp_path: Path) -> None:
    from PIL import Image

    for i in range(5):
        (tmp_path / f"class{i % 2}").mkdir(exist_ok=True)
        Image.new("RGB", (3, 3), (i, i, i)).save(tmp_path / f"class{i % 2}" / f"{i}.png")
    images = folder(tmp_path)
    batches = batches_of(grain.MapDataset.source(images).seed(0).shuffle().batch(2))
    rows = [(int(x[0, 0, 0]), int(y)) for batch in batches.epoch(0) for x, y in zip(batch.x, batch.y, strict=True)]
    assert sorted(rows) == [(0, 0), (1, 1), (2, 0), (3, 1), (4, 0)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["MapDataset", "DataLoader"])
def test_fit_evaluate_and_predict_accept_grain(kind: str) -> None:
    model = compiled()
    history = model.fit(KINDS[kind](), epochs=2, validation_data=mapped(), verbose=0)
    assert len(history.history["loss"]) == 2
    loss, accuracy = model.evaluate(KINDS[kind](), verbose=0)
    assert loss == pytest.approx(history.history["val_loss"][-1], rel=1e-5)
    assert accuracy == pytest.approx(history.history["val_accuracy"][-1])
    assert model.predict(KINDS[kind](), verbose=0).shape == (N, 3)


def test_the_parts_of_two_processes_form_every_batch_of_a_map_dataset() -> None:
    def batches(shard: tuple[int, int]) -> list[Any]:
        return list(as_batches(mapped(), geometry=Geometry(32, shard=shard)).epoch(0))

    for whole, *parts in zip(batches((0, 1)), batches((0, 2)), batches((1, 2)), strict=True):
        np.testing.assert_array_equal(np.concatenate([part.x for part in parts]), whole.x)
        np.testing.assert_array_equal(np.concatenate([part.y for part in parts]), whole.y)
