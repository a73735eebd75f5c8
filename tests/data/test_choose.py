"""Every supported input becomes batches; any other input raises."""

from collections.abc import Iterator
from typing import Any

import jax.experimental.sparse
import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

from resfit.data import ArraySource, Geometry, IterableBatches, as_batches, choose
from resfit.errors import DataError
from resfit.trainer.arguments import one_batch

X, Y = np.arange(10.0), np.arange(10)


class Half:
    """A source that drops every second requested example."""

    labels, threads = None, 0

    def __len__(self) -> int:
        return 10

    def take(self, rows: Any) -> Any:
        return X[rows][::2], None, None


def rows(x: Any, epoch: int = 0, start: int = 0, **geometry: Any) -> list[int]:
    batches = as_batches(x, geometry=Geometry(**{"batch_size": 4, **geometry}))
    return [int(i) for batch in batches.epoch(epoch, start) for i in batch.x[: batch.size]]


def fresh() -> Iterator[Any]:
    yield X[:4], Y[:4]
    yield X[4:], Y[4:]


@pytest.mark.parametrize(
    "x",
    [X, list(X), ArraySource(X, Y), [(X[:4], Y[:4]), (X[4:], Y[4:])], fresh, fresh(), IterableBatches(list(fresh()))],
    ids=["array", "list", "source", "batches", "function", "generator", "Batches"],
)
def test_everything_gives_every_row_once_in_order(x: Any) -> None:
    assert rows(x) == list(range(10))


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (3, "x is 3. Expected images"),
        (None, "x is None. Expected images"),
        ("photos", "resfit.data.folder"),
        (scipy.sparse.eye(3), r"sparse dia_matrix of shape \(3, 3\)"),
    ],
)
def test_values_that_are_not_data_raise(x: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        rows(x)


def of_tensorflow(name: str) -> Any:
    """Return an object that looks like a tensor of TensorFlow, which is not installed here."""
    return type(name, (), {"__module__": "tensorflow.python.framework.sparse_tensor", "shape": (2, 2)})()


@pytest.mark.parametrize("name", ["x", "y"])
@pytest.mark.parametrize(
    ("sparse", "remedy"),
    [
        (scipy.sparse.coo_array(np.eye(2)), "toarray"),
        (jax.experimental.sparse.BCOO.fromdense(np.eye(2)), "todense"),
        (of_tensorflow("SparseTensor"), "tf.sparse.to_dense"),
        (of_tensorflow("RaggedTensor"), "to_tensor"),
    ],
    ids=["scipy", "jax", "tensorflow", "ragged"],
)
def test_sparse_arrays_raise_in_arguments_and_in_batches(sparse: Any, remedy: str, name: str) -> None:
    x, y = (sparse, np.zeros(2)) if name == "x" else (np.zeros((2, 3)), sparse)
    dense = rf"{remedy}\({name}\)" if "." in remedy else rf"{name}\.{remedy}\(\)"
    words = rf"{name} is a (sparse|ragged) \w+ of shape \(2, 2\).*Pass {dense}"
    with pytest.raises(DataError, match=words):
        as_batches(x, y, geometry=Geometry(2))
    with pytest.raises(DataError, match=words):
        next(as_batches([(x, y)], geometry=Geometry(2)).epoch(0))
    with pytest.raises(DataError, match=words):
        one_batch(x, y, None, None)


def test_a_source_that_loses_examples_raises() -> None:
    with pytest.raises(DataError, match=r"arrays of lengths \[2\] for 4 requested examples"):
        rows(Half())


@given(
    n=st.integers(1, 40), size=st.integers(1, 12), seed=st.none() | st.integers(0, 3), epoch=st.integers(0, 3),
    threads=st.integers(0, 3), data=st.data(),
)  # fmt: skip
def test_an_epoch_can_start_at_any_batch_with_any_number_of_threads(
    n: int, size: int, seed: int | None, epoch: int, threads: int, data: st.DataObject
) -> None:
    source: Any = ArraySource(np.arange(n))
    source.threads = threads
    whole = rows(source, epoch, batch_size=size, seed=seed)
    assert sorted(whole) == list(range(n))
    batch = min(size, 1 << (n - 1).bit_length()) if n < size else size
    start = data.draw(st.integers(0, -(-n // batch)))
    assert rows(source, epoch, start, batch_size=size, seed=seed) == whole[start * batch :]


@given(n=st.integers(1, 40), size=st.integers(1, 12), count=st.integers(1, 4), pad=st.booleans())
def test_the_parts_of_several_processes_form_every_batch(n: int, size: int, count: int, pad: bool) -> None:
    def batches(index: int, count: int) -> list[Any]:
        geometry = Geometry(size, seed=1, pad=pad, shard=(index, count))
        return list(as_batches(np.arange(n), geometry=geometry).epoch(0))

    parts = zip(*(batches(index, count) for index in range(count)), strict=True)
    for whole, part in zip(batches(0, 1), parts, strict=True):
        np.testing.assert_array_equal(np.concatenate([b.x for b in part]), whole.x)
        assert {b.size for b in part} == {whole.size}
        if pad:
            np.testing.assert_array_equal(np.concatenate([b.mask for b in part]), whole.mask)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_inputs_that_are_not_finite_raise_with_their_place(bad: float, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.zeros((10, 2, 2, 1), np.float32)
    x[7, 1, 0] = bad
    with pytest.raises(DataError, match=r"x\[7\] holds NaN or infinite"):
        rows(x)
    with pytest.raises(DataError, match=r"x\['a'\]\[7\] holds NaN"):
        as_batches({"a": x, "b": X}, geometry=Geometry(4))
    with pytest.raises(DataError, match=r"x\[3\] holds NaN"):
        list(as_batches([(x[:4], Y[:4]), (x[4:], Y[4:])], geometry=Geometry(4)).epoch(0))
    monkeypatch.setattr("resfit.data.sources.arrays._CHECKED_AT_ONCE", 1)  # as for a file larger than memory
    batches = as_batches(x, geometry=Geometry(4)).epoch(0)
    next(batches)
    with pytest.raises(DataError, match=r"x\[7\] holds NaN"):
        next(batches)


def test_a_memory_map_is_read_batch_by_batch(tmp_path: Any) -> None:
    np.save(tmp_path / "x.npy", X)
    assert sorted(rows(np.load(tmp_path / "x.npy", mmap_mode="r"), seed=3)) == list(range(10))


def test_adapters_are_tried_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    class Foreign: ...

    adapters = [(lambda x: isinstance(x, Foreign), lambda x: ArraySource(X)), *choose._ADAPTERS]
    monkeypatch.setattr(choose, "_ADAPTERS", adapters)
    assert rows(Foreign()) == list(range(10))
