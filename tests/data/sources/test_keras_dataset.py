"""Keras datasets are read as Keras reads them: each batch once, shuffled, with hooks and workers."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx

from resfit.callbacks import Callback, Checkpoint
from resfit.data.batches import Geometry
from resfit.data.choose import as_batches
from resfit.errors import DataError, ResumeError
from tests.helpers import PlainNet, compiled, images, values


class PyDataset:
    """A copy of the class of Keras, which is not installed here."""

    __module__ = "keras.src.trainers.data_adapters.py_dataset_adapter"

    def __init__(self, workers: int = 1, use_multiprocessing: bool = False) -> None:
        self.workers, self.use_multiprocessing = workers, use_multiprocessing

    def on_epoch_begin(self) -> None: ...

    def on_epoch_end(self) -> None: ...


class Numbered(PyDataset):
    """A dataset with batches of two examples; the labels are the number of the batch."""

    def __init__(self, n: int = 6, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.n, self.threads = n, set[str]()

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Any:
        self.threads.add(threading.current_thread().name)
        return images(2, seed=i), np.full(2, i % 3)


class Hooked(Numbered):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def on_epoch_begin(self) -> None:
        self.calls.append("begin")

    def on_epoch_end(self) -> None:
        self.calls.append("end")


class Listed(Numbered):
    def __getitem__(self, i: int) -> Any:
        return list(super().__getitem__(i))


class Endless(Numbered):
    """A copy of the iterators of ImageDataGenerator, which have a length but iterate endlessly."""

    def __iter__(self) -> Any:
        while True:
            yield self[0]


class Infinite(Numbered):
    __len__ = None  # type: ignore[assignment]


class Counted(PyDataset):
    """A dataset with `num_batches` instead of a length, as Keras 3 accepts."""

    num_batches = 6

    def __getitem__(self, i: int) -> Any:
        return Numbered()[i]


def order(x: Any, epoch: int = 0, *, seed: int | None = 0, start: int = 0, n: int | None = None) -> list[float]:
    """Return the number of each batch, in the order of an epoch."""
    batches = as_batches(x, geometry=Geometry(32, seed=seed))
    taken = batches.epoch(epoch, start)
    return [float(batch.x.sum()) for batch, _ in zip(taken, range(n if n is not None else 100), strict=False)]


def test_batches_are_shuffled_by_seed_and_epoch_and_each_is_read_once() -> None:
    plain = order(Numbered(), seed=None)
    first, second = order(Numbered()), order(Numbered(), epoch=1)
    assert sorted(first) == sorted(second) == sorted(plain)
    assert len({tuple(plain), tuple(first), tuple(second)}) == 3
    assert order(Numbered()) == first
    assert order(Numbered(), start=2) == first[2:]


class Steps(Callback):
    """Notes the hooks of a run among the calls of a dataset."""

    def __init__(self, calls: list[str]) -> None:
        self.calls = calls

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.calls.append("<")

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.calls.append(">")

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.calls.append("t")


class Noted(PyDataset):
    """A dataset of `num_batches` batches, None for endless, that notes its hooks and every batch."""

    def __init__(self, num_batches: int | None) -> None:
        super().__init__()
        self.calls, self._batches = list[str](), num_batches

    @property
    def num_batches(self) -> int | None:
        return self._batches

    def __getitem__(self, i: int) -> Any:
        self.calls.append(".")
        return Numbered()[i]

    def on_epoch_begin(self) -> None:
        self.calls.append("b")

    def on_epoch_end(self) -> None:
        self.calls.append("e")


# Keras 3.15.1 on JAX, except what it calls before the first step to build the model: a begin, a batch and an end. It
# shortens the second epoch of the third row to one step, with a warning.
@pytest.mark.parametrize(
    ("n", "steps", "epochs", "calls"),
    [
        (4, None, 2, "<b.t.t.t.te><b.t.t.t.te>"),
        (4, 2, 3, "<b.t.te><b.t.te><b.t.te>"),
        (4, 3, 2, "<b.t.t.te><b.t.t.te>"),
        (2, 3, 2, "<b.t.t.te><b.t.t.te>"),
        (None, 3, 2, "<b.t.t.te><b.t.t.te>"),
    ],
)
def test_hooks_are_called_around_every_epoch_as_in_keras(
    n: int | None, steps: int | None, epochs: int, calls: str
) -> None:
    dataset = Noted(n)
    model = compiled(PlainNet(rngs=nnx.Rngs(0)))
    model.fit(dataset, epochs=epochs, steps_per_epoch=steps, verbose=0, callbacks=[Steps(dataset.calls)])
    assert "".join(dataset.calls) == calls


@pytest.mark.parametrize(("n", "steps", "calls"), [(4, None, "b....e"), (4, 2, "b..e"), (None, 3, "b...e")])
def test_hooks_are_called_around_an_evaluation_of_some_batches_as_in_keras(
    n: int | None, steps: int | None, calls: str
) -> None:
    dataset = Noted(n)
    model = compiled(PlainNet(rngs=nnx.Rngs(0)))
    uses = (
        lambda: model.evaluate(dataset, steps=steps, verbose=0),
        lambda: model.predict(dataset, steps=steps, verbose=0),
        lambda: model.fit(images(4), np.arange(4) % 3, validation_data=dataset, validation_steps=steps, verbose=0),
    )
    for use in uses:
        dataset.calls.clear()
        use()
        assert "".join(dataset.calls) == calls


def test_set_epoch_is_called_before_the_hook_of_the_epoch_in_which_a_pass_begins() -> None:
    dataset = SetsEpoch()
    dataset.n = 2
    compiled(PlainNet(rngs=nnx.Rngs(0))).fit(dataset, epochs=2, steps_per_epoch=3, verbose=0)
    first, second = ["epoch 0", "begin", "epoch 1", "end"], ["epoch 1", "begin", "epoch 2", "end"]
    assert dataset.calls == first + second


def test_the_hooks_of_class_weighted_batches_are_those_of_the_dataset() -> None:
    dataset = Hooked()
    compiled(PlainNet(rngs=nnx.Rngs(0))).fit(dataset, class_weight={1: 2.0}, verbose=0)
    assert dataset.calls == ["begin", "end"]


@pytest.mark.parametrize(("arguments", "threaded"), [({}, False), ({"workers": 3}, True), ({"workers": 1}, False)])
def test_workers_are_threads_that_read_ahead_in_order(arguments: Any, threaded: bool) -> None:
    dataset = Numbered(**arguments)
    assert order(dataset) == order(Numbered())
    assert any(name.startswith("resfit-data") for name in dataset.threads) is threaded


def test_lists_are_tuples_endless_iterators_end_and_no_length_needs_steps() -> None:
    assert order(Listed()) == order(Numbered()) == order(Endless())
    assert as_batches(Endless(), geometry=Geometry(32)).steps == 6
    assert len(order(Infinite(), n=9)) == 9
    assert order(Counted()) == order(Numbered())
    with pytest.raises(DataError, match="has no batches"):
        as_batches(Numbered(0), geometry=Geometry(32))


@pytest.mark.parametrize(
    ("argument", "use"),
    [
        ("steps_per_epoch", lambda model, data: model.fit(data, verbose=0)),
        ("steps_per_epoch", lambda model, data: model.fit(data, class_weight={1: 2.0}, verbose=0)),
        ("steps", lambda model, data: model.evaluate(data, verbose=0)),
        ("steps", lambda model, data: model.predict(data, verbose=0)),
        ("validation_steps", lambda model, data: model.fit(Numbered(), validation_data=data, verbose=0)),
    ],
    ids=["fit", "fit with class_weight", "evaluate", "predict", "validation"],
)
def test_an_endless_dataset_without_a_number_of_batches_raises_before_a_step(argument: str, use: Any) -> None:
    dataset = Noted(None)
    with pytest.raises(DataError, match=rf"has no length.*Pass {argument}"):
        use(compiled(PlainNet(rngs=nnx.Rngs(0))), dataset)
    assert dataset.calls == []


@pytest.mark.parametrize("length", [3.0, np.float64(3), "3"])
def test_a_length_that_is_no_integer_raises(length: Any) -> None:
    class Ceil(Numbered):
        def __len__(self) -> int:
            return length  # type: ignore[no-any-return]

    with pytest.raises(DataError, match=r"The length of the Ceil is .*Return int\(np\.ceil"):
        as_batches(Ceil(), geometry=Geometry(32))


@pytest.mark.parametrize("change", [-1, 1])
def test_a_length_that_changes_between_epochs_raises(change: int) -> None:
    class Changing(Numbered):
        def on_epoch_end(self) -> None:
            self.n += change

    model = compiled(PlainNet(rngs=nnx.Rngs(0)))
    with pytest.raises(DataError, match=f"was 6 batches and is {6 + change}"):
        model.fit(Changing(), epochs=2, verbose=0)


def test_a_validation_inside_an_epoch_needs_another_dataset() -> None:
    dataset = SetsEpoch()
    model = compiled(PlainNet(rngs=nnx.Rngs(0)))
    with pytest.raises(DataError, match="validation_every=2 reads it inside an epoch"):
        model.fit(dataset, validation_data=dataset, validation_every=2, verbose=0)
    assert dataset.calls == []
    model.fit(dataset, validation_data=SetsEpoch(), validation_every=2, verbose=0)


def test_class_weight_weighs_the_batches() -> None:
    batches = as_batches(Numbered(3), class_weight={1: 2.0}, geometry=Geometry(32))
    assert [batch.weight.tolist() for batch in batches.epoch(0)] == [[1, 1], [2, 2], [1, 1]]


class Stop(Exception):  # noqa: N818 - it is an event
    """The exception that interrupts a run."""


class Interrupted(Numbered):
    def __init__(self, reads: int) -> None:
        super().__init__()
        self.reads = reads

    def __getitem__(self, i: int) -> Any:
        self.reads -= 1
        if self.reads < 0:
            raise Stop
        return super().__getitem__(i)


class SetsEpoch(Hooked):
    def set_epoch(self, epoch: int) -> None:
        self.calls.append(f"epoch {epoch}")


def run(dataset: Any, folder: Path, *, resume: bool = False) -> Any:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)))
    model.fit(dataset, epochs=3, verbose=0, callbacks=[Checkpoint(folder, every=4)], resume=resume)
    return values(model.module)


def test_an_interrupted_run_resumes_exactly(tmp_path: Path) -> None:
    whole = run(Numbered(), tmp_path / "whole")
    with pytest.raises(Stop):
        run(Interrupted(9), tmp_path / "cut")
    resumed = run(Interrupted(100), tmp_path / "cut", resume=True)
    for name, value in whole.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)


def test_a_dataset_with_epoch_hooks_resumes_only_with_set_epoch() -> None:
    for dataset, replayable in ((Numbered(), True), (Hooked(), False), (SetsEpoch(), True)):
        batches: Any = as_batches(dataset, geometry=Geometry(32, seed=0))
        assert batches.replayable is replayable


class HookedAndInterrupted(Interrupted):
    def on_epoch_end(self) -> None:
        self.n = self.n


def test_a_hook_of_the_object_is_a_hook() -> None:
    dataset = Numbered()
    dataset.on_epoch_end = lambda: None  # type: ignore[method-assign]
    batches: Any = as_batches(dataset, geometry=Geometry(32, seed=0))
    assert not batches.replayable


def test_resuming_a_dataset_with_epoch_hooks_raises(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        run(HookedAndInterrupted(9), tmp_path)
    with pytest.raises(ResumeError, match=r"changes itself between epochs.*set_epoch\(epoch\)"):
        run(HookedAndInterrupted(100), tmp_path, resume=True)


def test_python_sequences_are_not_keras_datasets() -> None:
    assert as_batches([(images(2), np.arange(2))], geometry=Geometry(32)).steps == 1


def test_class_names_are_those_of_flow_from_directory() -> None:
    dataset = Numbered()
    dataset.class_indices = {"dog": 1, "cat": 0}  # type: ignore[attr-defined]
    dataset.classes = np.array([0, 1, 1])  # type: ignore[attr-defined]  # the class of each file
    assert as_batches(dataset, geometry=Geometry(32)).classes == ("cat", "dog")  # type: ignore[attr-defined]
    assert as_batches(Numbered(), geometry=Geometry(32)).classes is None  # type: ignore[attr-defined]


def test_several_processes_raise() -> None:
    with pytest.raises(DataError, match=r"every 2\. batch: lambda: \(data\[i\] for i in range\(1, len\(data\), 2\)\)"):
        as_batches(Numbered(), geometry=Geometry(32, shard=(1, 2)))


def test_a_dataset_of_single_examples_raises() -> None:
    class Single(Numbered):
        def __getitem__(self, i: int) -> Any:
            return images(1)[0], 1

    with pytest.raises(DataError, match=r"Single yielded a single example.*from __getitem__"):
        order(Single())
