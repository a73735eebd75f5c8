"""Iterables of batches, and epochs of a run."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resfit.data import ArrayBatches, Batches, Epochs, IterableBatches
from resfit.errors import DataError
from tests.data.torch_fakes import Tensor


def source(n: int = 3) -> Iterator[Any]:
    for i in range(n):
        yield np.full((2, 1), i), np.array([i, i])


def first(batches: Iterator[Any]) -> list[int]:
    return [int(batch.x[0].item()) for batch in batches]


def test_both_kinds_of_data_are_batches() -> None:
    assert isinstance(IterableBatches([1]), Batches)
    assert isinstance(ArrayBatches(np.arange(3), batch_size=2), Batches)
    assert not isinstance([1], Batches)


@pytest.mark.parametrize(
    ("item", "y", "weight"),
    [
        (np.zeros((2, 1)), None, None),
        ((np.zeros((2, 1)),), None, None),
        ((np.zeros((2, 1)), [0, 1]), [0, 1], None),
        ((np.zeros((2, 1)), [0, 1], [1, 2]), [0, 1], [1, 2]),
        (({"a": np.zeros((2, 1))}, [0, 1]), [0, 1], None),
        ({"a": np.zeros((2, 1))}, None, None),
    ],
)
def test_an_item_is_x_or_a_tuple_of_x_y_and_weight(item: Any, y: Any, weight: Any) -> None:
    (batch,) = IterableBatches([item]).epoch(0)
    assert batch.size == 2
    assert (None if batch.y is None else batch.y.tolist()) == y
    assert (None if batch.weight is None else batch.weight.tolist()) == weight
    assert batch.mask is None


def test_a_list_is_read_again_in_every_epoch_and_has_a_length() -> None:
    batches = IterableBatches(list(source()))
    assert batches.steps == 3
    assert first(batches.epoch(0)) == first(batches.epoch(1)) == [0, 1, 2]


def test_an_iterator_continues_and_raises_when_it_is_consumed() -> None:
    batches = IterableBatches(source())
    assert batches.steps is None
    first_epoch = batches.epoch(0)
    next(first_epoch)
    first_epoch.close()  # as after `steps` batches
    assert first(batches.epoch(0)) == [1, 2]
    with pytest.raises(DataError, match="all its batches have been used"):
        next(batches.epoch(1))


def test_an_iterable_without_batches_raises() -> None:
    with pytest.raises(DataError, match="list has no batches"):
        IterableBatches([])
    with pytest.raises(DataError, match="generator yielded no batch in epoch 0"):
        next(IterableBatches(source(0)).epoch(0))


@pytest.mark.parametrize("item", [(1, 2, 3, 4), (), "text", (np.zeros(2), np.zeros(3))])
def test_items_that_are_not_batches_raise(item: Any) -> None:
    with pytest.raises(DataError):
        next(IterableBatches([item]).epoch(0))


def test_an_epoch_is_one_pass_unless_steps_are_given() -> None:
    epochs = Epochs(IterableBatches(list(source())), None)
    assert epochs.steps == 3
    assert [first(epochs.next()) for _ in range(2)] == [[0, 1, 2]] * 2
    assert epochs.passes == 2


def test_epochs_of_a_given_length_follow_one_another_without_a_gap() -> None:
    epochs = Epochs(IterableBatches(list(source())), 2)
    assert [first(epochs.next()) for _ in range(4)] == [[0, 1], [2, 0], [1, 2], [0, 1]]
    assert epochs.passes == 3


def test_epochs_longer_than_a_pass_continue_with_the_next_pass() -> None:
    epochs = Epochs(IterableBatches(list(source())), 7)
    assert first(epochs.next()) == [0, 1, 2, 0, 1, 2, 0]


def test_the_number_of_earlier_passes_determines_the_order_of_the_next_pass() -> None:
    def order(start: int) -> list[int]:
        data = ArrayBatches(np.arange(12), batch_size=3, seed=5)
        return first(Epochs(data, None, start).next())

    data = ArrayBatches(np.arange(12), batch_size=3, seed=5)
    run = Epochs(data, None)
    assert [first(run.next()) for _ in range(3)] == [order(0), order(1), order(2)]
    assert order(0) != order(1)


def test_an_iterator_with_too_few_batches_raises() -> None:
    epochs = Epochs(IterableBatches(source(3)), 2)
    assert first(epochs.next()) == [0, 1]
    with pytest.raises(DataError, match="all its batches have been used"):
        list(epochs.next())


def test_zero_steps_raise() -> None:
    with pytest.raises(DataError, match="positive, got 0"):
        Epochs(IterableBatches([1]), 0)


def test_a_batch_that_is_a_list_raises() -> None:
    with pytest.raises(DataError, match="tuple"):
        next(IterableBatches([[np.zeros((2, 4)), np.zeros(2)]]).epoch(0))


def test_a_loader_with_another_number_of_batches_than_its_length_raises() -> None:
    class Loader:
        def __init__(self, length: int) -> None:
            self._length = length

        def __len__(self) -> int:
            return self._length

        def __iter__(self) -> Iterator[Any]:
            return source()

    assert first(IterableBatches(Loader(3)).epoch(0)) == [0, 1, 2]
    with pytest.raises(DataError, match="promised 4 batches and ended after 3"):
        list(IterableBatches(Loader(4)).epoch(0))
    with pytest.raises(DataError, match="promised 2 batches and yields more"):
        list(IterableBatches(Loader(2)).epoch(0))


@pytest.mark.parametrize("start", [0, 1, 2, 3])
@pytest.mark.parametrize("make", [lambda: list(source()), lambda: source, lambda: source()])
def test_a_pass_can_start_at_any_batch(make: Any, start: int) -> None:
    assert first(IterableBatches(make()).epoch(0, start)) == [0, 1, 2][start:]


def test_the_state_of_a_loader_restores_its_position() -> None:
    class Stateful:
        position = 0
        read: list[int] = []  # noqa: RUF012

        def __iter__(self) -> Iterator[Any]:
            for i in range(self.position, 4):
                self.position = i + 1
                self.read.append(i)
                yield np.full((2, 1), i), np.array([i, i])
            self.position = 0

        def state_dict(self) -> dict[str, int]:
            return {"position": self.position}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.position = state["position"]

    begun = IterableBatches(Stateful())
    stream = begun.epoch(0)
    next(stream), next(stream)
    state = begun.state_dict()
    Stateful.read.clear()
    resumed = IterableBatches(Stateful())
    resumed.load_state_dict(state)
    assert first(resumed.epoch(0, start=2)) == [2, 3]
    assert Stateful.read == [2, 3]  # no batch was read and skipped
    assert first(resumed.epoch(1)) == [0, 1, 2, 3]
    plain = IterableBatches(list(source()))
    plain.load_state_dict(plain.state_dict())
    assert first(plain.epoch(0, start=2)) == [2]


class Untold:
    """A loader with a position and two ways to report the end of a pass."""

    def __init__(self, *, put_back: bool) -> None:
        self._put_back, self._epoch, self._done, self._start = put_back, 0, 0, 0

    def __iter__(self) -> Iterator[Any]:
        start, self._start = self._start, 0
        for i in range(start, 3):
            self._done = i + 1
            yield np.full((2, 1), 10 * self._epoch + i), np.array([i, i])
        if self._put_back:
            self._done = 0

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self._epoch, "done": self._done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._epoch, self._start = state["epoch"], state["done"]


class Kept(Untold):
    """A loader that also has set_epoch."""

    def set_epoch(self, epoch: int) -> None:
        self._epoch, self._start = epoch, 0


@pytest.mark.parametrize("put_back", [True, False])
@pytest.mark.parametrize("done", range(7))
def test_a_loader_resumes_at_its_position_and_after_its_last_batch_in_the_next_epoch(put_back: bool, done: int) -> None:
    begun = Epochs(IterableBatches(Kept(put_back=put_back)), None)
    stream = itertools.chain.from_iterable(begun.next() for _ in range(3))
    whole = [0, 1, 2, 10, 11, 12, 20, 21, 22]
    assert first(itertools.islice(stream, done)) == whole[:done]
    resumed = Epochs(IterableBatches(Kept(put_back=put_back)), None)
    if done:
        resumed.seek(**begun.position(inside=True))
    left = 3 - max(done - 1, 0) // 3
    assert first(itertools.chain.from_iterable(resumed.next() for _ in range(left))) == whole[done:]


@pytest.mark.parametrize("put_back", [True, False])
def test_after_a_state_between_two_passes_the_next_pass_is_complete(put_back: bool) -> None:
    begun = Epochs(IterableBatches(Kept(put_back=put_back)), None)
    list(begun.next())
    resumed = Epochs(IterableBatches(Kept(put_back=put_back)), None)
    resumed.seek(**begun.position(inside=False))
    assert first(resumed.next()) == [10, 11, 12]


@pytest.mark.parametrize("put_back", [True, False])
def test_a_loader_that_first_ends_its_previous_pass_is_iterated_again(put_back: bool) -> None:
    loader = Untold(put_back=put_back)
    loader.load_state_dict({"epoch": 1, "done": 0})
    begun = Epochs(IterableBatches(loader), None)
    list(begun.next())
    resumed = Epochs(IterableBatches(Untold(put_back=put_back)), None)
    resumed.seek(**begun.position(inside=False))
    assert first(resumed.next()) == [10, 11, 12]  # its own order, not that of a new loader


def test_set_epoch_of_a_loader_is_called() -> None:
    class Told:
        epochs: list[int] = []  # noqa: RUF012

        def set_epoch(self, epoch: int) -> None:
            self.epochs.append(epoch)

        def __iter__(self) -> Iterator[Any]:
            return source()

    batches = IterableBatches(Told())
    list(batches.epoch(0)), list(batches.epoch(1))
    assert Told.epochs == [0, 1]


@pytest.mark.parametrize(
    ("item", "x", "y"),
    [
        ({"image": np.zeros((2, 1)), "label": np.ones(2)}, "array", True),
        ({"labels": np.ones(2), "pixels": np.zeros((2, 1))}, "array", True),
        ({"a": np.zeros((2, 1)), "b": np.zeros((2, 1)), "label": np.ones(2)}, "dict", False),
        ({"label": np.ones(2)}, "dict", False),
    ],
)
def test_a_dict_of_an_image_and_a_label_is_both(item: Any, x: str, y: bool) -> None:
    (batch,) = IterableBatches([item]).epoch(0)
    assert isinstance(batch.x, dict) == (x == "dict")
    assert (batch.y is not None) == y


def test_a_list_of_torch_tensors_is_a_batch() -> None:
    (batch,) = IterableBatches([[Tensor(np.zeros((2, 1))), Tensor(np.array([0, 1]))]]).epoch(0)
    assert batch.y.tolist() == [0, 1]


PICTURE = np.zeros((8, 8, 3), np.float32)


class Singles:
    """A dataset of TensorFlow before `batch`."""

    __module__ = "tensorflow.python.data.ops.dataset_ops"

    def __iter__(self) -> Iterator[Any]:
        yield PICTURE, np.int32(1)


@pytest.mark.parametrize(
    "item",
    [
        (PICTURE, 1), (PICTURE, np.int64(1)), (PICTURE, np.zeros(5)), (PICTURE, np.zeros(8), 1.0),
        {"image": PICTURE, "label": 2},
        (Image.new("RGB", (8, 8)), 1), Image.new("RGB", (8, 8)), (np.moveaxis(PICTURE, -1, 0), np.zeros(5)),
    ],
)  # fmt: skip
def test_single_examples_raise_with_the_call_that_batches_them(item: Any) -> None:
    with pytest.raises(DataError, match=r"list yielded a single example .*map\(np.stack, zip\(\*examples\)\)"):
        next(IterableBatches([item]).epoch(0))


def test_the_remedy_for_single_examples_is_the_call_of_the_library() -> None:
    with pytest.raises(DataError, match=r"Singles yielded a single example.*Pass dataset\.batch\(32\)"):
        next(IterableBatches(Singles()).epoch(0))


@pytest.mark.parametrize("item", [(np.zeros((8, 8, 3)), np.zeros(8)), np.zeros((8, 8, 3)), (np.zeros((2, 3)), [0, 1])])
def test_batches_of_rows_are_not_single_examples(item: Any) -> None:
    assert next(IterableBatches([item]).epoch(0)).size in (2, 8)


def test_a_loader_with_class_names_passes_them_on() -> None:
    class Directory(list[Any]):
        """A copy of the result of `keras.utils.image_dataset_from_directory`."""

        class_names = ("cat", "dog")

    assert IterableBatches(Directory(source())).classes == ("cat", "dog")
    assert IterableBatches(list(source())).classes is None


def test_a_loader_with_an_unknown_length_has_no_steps() -> None:
    class Endless:
        def __len__(self) -> int:
            raise TypeError("no length")

        def __iter__(self) -> Iterator[Any]:
            return source()

    assert IterableBatches(Endless()).steps is None


def test_a_failing_iterable_raises_its_own_error() -> None:
    def dying() -> Iterator[Any]:
        yield np.zeros((2, 1)), np.zeros(2)
        raise ConnectionError("the server has gone away")

    batches = IterableBatches(dying).epoch(0)
    next(batches)
    with pytest.raises(ConnectionError):
        next(batches)
