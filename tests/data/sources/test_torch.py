"""PyTorch's datasets and loaders become batches: channels last, shuffled by the seed, resumable."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from resfit.callbacks import Checkpoint
from resfit.data import Geometry, as_batches
from resfit.errors import DataError, ResumeError
from tests.data.torch_fakes import (
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    Generator,
    Numbered,
    Streamed,
    Subset,
    Tensor,
    torch,
)
from tests.helpers import BATCH, PlainNet, compiled, values

__all__ = ["torch"]  # the fixture of every test in this file


def batches(x: Any, *, seed: int | None = 0, size: int = BATCH, **geometry: Any) -> Any:
    return as_batches(x, geometry=Geometry(size, seed=seed, **geometry))


def order(x: Any, epoch: int = 0, start: int = 0, **geometry: Any) -> list[int]:
    return [int(i) for batch in batches(x, **geometry).epoch(epoch, start) for i in batch.x[:, 0, 0, 0]]


SHUFFLED = {
    "dataset": Numbered,
    "subset": lambda: Subset(Numbered(40), range(20)),
    "loader": lambda: DataLoader(Numbered(), BATCH, shuffle=True),
    "loader with a generator": lambda: DataLoader(Numbered(), BATCH, shuffle=True, generator=Generator()),
    "distributed": lambda: DataLoader(Numbered(), BATCH, sampler=DistributedSampler(20, 1, 0)),
}


@pytest.mark.parametrize("make", SHUFFLED.values(), ids=SHUFFLED)
def test_order_and_random_transforms_depend_on_seed_and_epoch_only(make: Any) -> None:
    first, second = order(make()), order(make(), 1)
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    assert order(make()) == first
    whole = [batch.x for batch in batches(make()).epoch(1)]
    resumed = batches(make())
    resumed.epoch(0).close()
    for a, b in zip(whole[1:], resumed.epoch(1, 1), strict=True):
        np.testing.assert_array_equal(a, b.x)


STREAMS = [Streamed, lambda: DataLoader(Streamed(), BATCH)]


@pytest.mark.parametrize("make", STREAMS, ids=["stream", "loader"])
def test_a_stream_keeps_its_order_and_repeats_its_random_transforms(make: Any) -> None:
    assert order(make()) == list(range(20))
    assert batches(make()).steps is None
    whole = [batch.x for batch in batches(make()).epoch(1)]
    for a, b in zip(whole[1:], batches(make()).epoch(1, 1), strict=True):
        np.testing.assert_array_equal(a, b.x)


@pytest.mark.parametrize("x", [Numbered(), DataLoader(Numbered(), BATCH), DataLoader(Streamed(), BATCH), Streamed()])
def test_batches_have_channels_last_labels_and_class_names(x: Any) -> None:
    found = batches(x, seed=None)
    (first, *_, last) = found.epoch(0)
    assert (first.x.shape, last.x.shape, first.y.tolist()) == ((8, 8, 8, 1), (4, 8, 8, 1), [0, 1, 2, 0, 1, 2, 0, 1])
    if not isinstance(getattr(x, "dataset", x), Streamed):
        assert (found.steps, found.classes) == (3, ("ant", "bee", "cat"))


def test_class_names_are_those_of_the_dataset_inside() -> None:
    class Other(Numbered):
        classes = ("x", "y", "z")

    same, mixed = ConcatDataset([Numbered(), Subset(Numbered(), [1])]), ConcatDataset([Numbered(), Other()])
    assert batches(DataLoader(same, BATCH)).classes == ("ant", "bee", "cat")
    assert batches(mixed).classes is None


def test_fit_evaluate_and_predict_take_datasets_and_loaders() -> None:
    dataset = Numbered()
    model = compiled(PlainNet(rngs=nnx.Rngs(0)), learning_rate=1e-3)
    loader = DataLoader(dataset, BATCH, shuffle=True)
    history = model.fit(loader, epochs=2, validation_data=dataset, class_weight={0: 2.0}, verbose=0)
    assert len(history.history["val_loss"]) == 2
    assert model.class_names == ["ant", "bee", "cat"]
    x = np.stack([np.full((8, 8, 1), i, np.float32) for i in range(20)])
    np.testing.assert_allclose(model.predict(Numbered(noise=0), verbose=0), model.predict(x, verbose=0), rtol=1e-6)


class Stop(Exception):  # noqa: N818 - it is an event
    """The exception that interrupts a run."""


class Interrupted(Numbered):
    def __init__(self, reads: int) -> None:
        super().__init__()
        self.reads = reads

    def __getitem__(self, i: int) -> Any:
        self.reads -= 1
        if not self.reads:
            raise Stop
        return super().__getitem__(i)


def run(x: Any, folder: Path, *, resume: bool = False, shuffle: bool = True) -> Any:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)), learning_rate=1e-3)
    model.fit(
        x,
        batch_size=BATCH,
        epochs=2,
        shuffle=shuffle,
        verbose=0,
        callbacks=[Checkpoint(folder, every=1)],
        resume=resume,
    )
    return values(model.module)


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [lambda d: DataLoader(d, BATCH, shuffle=True), lambda d: d], ids=["loader", "dataset"])
def test_an_interrupted_run_resumes_exactly(wrap: Any, tmp_path: Path) -> None:
    whole = run(wrap(Interrupted(0)), tmp_path / "whole")
    with pytest.raises(Stop):
        run(wrap(Interrupted(35)), tmp_path / "cut")
    resumed = run(wrap(Interrupted(0)), tmp_path / "cut", resume=True)
    for name, value in whole.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)


def test_a_loader_whose_random_order_is_not_seeded_does_not_resume(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        run(DataLoader(Interrupted(12), BATCH, shuffle=True), tmp_path, shuffle=False)
    with pytest.raises(ResumeError, match="cannot be found again"):
        run(DataLoader(Interrupted(0), BATCH, shuffle=True), tmp_path, resume=True, shuffle=False)
    assert batches(DataLoader(Numbered(), BATCH), seed=None).replayable


def test_a_loader_with_its_own_state_keeps_its_random_numbers() -> None:
    class Stateful(DataLoader):
        def state_dict(self) -> Any:
            return {}

        def load_state_dict(self, state: Any) -> None: ...

    loader = Stateful(Numbered(), BATCH, shuffle=True)
    assert batches(loader).replayable
    assert order(loader) != order(loader)


def test_several_processes_read_their_share_or_raise() -> None:
    shard = (1, 2)
    parts = [order(Numbered(), shard=(index, 2)) for index in range(2)]
    assert sorted(parts[0] + parts[1]) == list(range(20))
    assert [order(Numbered(1), shard=(index, 2)) for index in range(2)] == [[], [0]]
    share = DataLoader(Numbered(), 5, sampler=DistributedSampler(20, 2, 1))
    share.__class__ = type("Shared", (DataLoader,), {"__len__": lambda self: 2})
    assert len(order(share, shard=shard)) == 10
    for x, words in (
        (DataLoader(Numbered(), BATCH), r"DistributedSampler\(dataset, num_replicas=2, rank=1\)"),
        (DataLoader(Numbered(), BATCH, sampler=DistributedSampler(20, 4, 1)), "each would train on all"),
        (Streamed(), "IterableDataset, but 2 processes"),
    ):
        with pytest.raises(DataError, match=words):
            batches(x, shard=shard)


@pytest.mark.parametrize(
    ("geometry", "sizes"),
    [
        ({}, [8, 8, 1]),
        ({"min_batch": 2}, [8, 8]),
        ({"drop_remainder": True}, [8, 8]),
        ({"size": 32, "min_batch": 32}, [17]),
    ],
)
def test_a_stream_drops_a_partial_batch_as_arrays_do(geometry: Any, sizes: list[int]) -> None:
    class Sized(Streamed):
        def __len__(self) -> int:
            return self.n

    found = batches(Sized(17), **geometry)
    assert [batch.size for batch in found.epoch(0)] == sizes
    assert found.steps == len(sizes)


class Listed(Dataset):
    """A dataset of the given examples."""

    def __init__(self, *examples: Any) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, i: int) -> Any:
        return self.examples[i]


def test_examples_can_be_pictures_arrays_dicts_and_lists() -> None:
    picture, array = Image.new("L", (4, 3)), np.zeros((3, 4, 2), np.float32)

    def first(*examples: Any) -> Any:
        return next(batches(Listed(*examples), seed=None).epoch(0))

    assert first((picture, 1), (picture, 0)).x.shape == (2, 3, 4, 1)
    assert first(array, array).x.shape == (2, 3, 4, 2)
    multi_hot = first([array, [0, 1, 1]], [array, [1, 0, 0]])
    assert multi_hot.y.tolist() == [[0, 1, 1], [1, 0, 0]]
    assert first({"image": array, "label": 1}, {"image": array, "label": 2}).y.tolist() == [1, 2]
    assert sorted(first(({"a": array, "b": array}, 1)).x) == ["a", "b"]


def test_examples_that_do_not_form_a_batch_raise() -> None:
    small, large = Tensor(np.zeros((3, 6, 6))), Tensor(np.zeros((3, 7, 7)))
    with pytest.raises(DataError, match="do not form a batch: stack expects"):
        next(batches(Listed((small, 0), (large, 1))).epoch(0))
    with pytest.raises(DataError, match="has no length"):
        batches(type("Endless", (Dataset,), {"__getitem__": lambda self, i: i})())
    few = type("Few", (Numbered,), {"__getitems__": lambda self, numbers: [self[i] for i in numbers[1:]]})
    with pytest.raises(DataError, match="returned 7 examples for 8 numbers"):
        next(batches(few()).epoch(0))
    batched = Listed(Tensor(np.zeros((2, 3, 6, 6))))
    with pytest.raises(DataError, match=r"DataLoader\(dataset, batch_size=None\)"):
        next(batches(batched).epoch(0))


@pytest.mark.parametrize("dataset", [Numbered(), Listed(Tensor(np.zeros((3, 6, 6))))])
def test_a_loader_of_single_examples_raises(dataset: Any) -> None:
    with pytest.raises(DataError, match=r"single example .*DataLoader\(dataset, batch_size=32\)"):
        next(batches(DataLoader(dataset, None)).epoch(0))


def test_a_move_of_the_channels_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "resfit"):
        list(batches(Listed(*[(Tensor(np.zeros((3, 17, 19))), 0)] * 9)).epoch(0))
    assert [record.getMessage() for record in caplog.records] == [
        "x: tensors of shape (batch, 3, 17, 19) have the channels first; they are moved last."
    ]
