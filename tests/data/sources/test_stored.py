"""Arrays that are not in memory: only the rows of a batch are read, in the order of the file."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from resfit.data import ArraySource, Geometry, as_batches
from resfit.data.choose import in_memory
from resfit.data.device import DeviceSource
from resfit.data.sources.arrays import split_validation
from resfit.data.sources.stored import Stored, is_stored
from resfit.errors import DataError
from tests.helpers import BATCH, PlainNet, compiled, images, labels
from tests.levels import only


class Sliced:
    """An array that has a shape and slices, and nothing else; it counts the rows that are read."""

    def __init__(self, array: np.ndarray) -> None:
        self._array, self.read = array, 0
        self.shape = array.shape

    def __getitem__(self, rows: slice) -> np.ndarray:
        assert isinstance(rows, slice)
        assert rows.start <= rows.stop
        found = self._array[rows]
        self.read += len(found)
        return found


class Outer(Sliced):
    """An array of zarr: `oindex` reads any ascending rows at once."""

    @property
    def oindex(self) -> Any:
        return self._array


@pytest.fixture
def file(tmp_path: Path) -> Any:
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["x"] = images()
        file["y"] = labels()
        file["names"] = ["a", "b"]
        yield file


def test_an_h5py_dataset_is_the_array_batch_by_batch(file: Any) -> None:
    def batches(x: Any, y: Any, seed: int | None) -> list[Any]:
        return list(as_batches(x, y, geometry=Geometry(BATCH, seed=seed, pad=seed is None)).epoch(0))

    for seed in (0, None):
        for read, expected in zip(batches(file["x"], file["y"], seed), batches(images(), labels(), seed), strict=True):
            np.testing.assert_array_equal(read.x, expected.x)
            np.testing.assert_array_equal(read.y, expected.y)
    source = ArraySource(file["x"], file["y"])
    np.testing.assert_array_equal(source.labels, labels())
    assert source.description == ArraySource(images(), labels()).description
    assert source.threads == 1


@given(
    rows=st.lists(st.integers(0, 19), max_size=12), kind=st.sampled_from([Sliced, Outer]), first=st.integers(0, 20),
    last=st.integers(0, 20), step=st.integers(1, 3),
)  # fmt: skip
def test_any_rows_in_any_order_are_those_of_the_array(rows: Any, kind: Any, first: int, last: int, step: int) -> None:
    array = np.arange(60).reshape(20, 3)
    stored = Stored("x", kind(array))
    np.testing.assert_array_equal(stored[np.array(rows, int)], array[np.array(rows, int)])
    np.testing.assert_array_equal(stored[first:last:step], array[first:last:step])
    part, expected = stored.part(slice(first, last)), array[first:last]
    assert len(part) == len(expected)
    np.testing.assert_array_equal(np.asarray(part), expected)
    inside = np.array([row for row in rows if row < len(expected)], int)
    np.testing.assert_array_equal(part[inside], expected[inside])


def test_only_the_rows_of_a_batch_are_read() -> None:
    x = Sliced(np.zeros((1000, 2)))
    epoch = as_batches(x, np.zeros(1000), geometry=Geometry(10, seed=0)).epoch(0)
    next(epoch)
    epoch.close()  # type: ignore[attr-defined]
    assert x.read <= 100  # this batch, those that a thread reads ahead, and the first row


def test_the_last_part_of_a_file_is_the_validation_data_without_reading_it() -> None:
    x = Sliced(images())
    (first, _, _), (last, y, _) = split_validation(0.25, x, labels(), None)
    assert x.read <= 3
    assert in_memory(first)
    np.testing.assert_array_equal(ArraySource(last, y).take(slice(0, 5))[0], images()[15:])


def test_large_labels_stay_in_the_file_and_are_unknown_before_training() -> None:
    assert ArraySource(images(), Sliced(images())).labels is None
    np.testing.assert_array_equal(ArraySource(images(), Sliced(labels())).labels, labels())


def test_a_dataset_on_the_device_is_not_used_again_for_other_labels_in_a_file() -> None:
    x = images()
    device = DeviceSource(ArraySource(x))
    assert device.holds(ArraySource(x))
    assert not device.holds(ArraySource(x, Sliced(images())))
    assert not DeviceSource(ArraySource(x, Sliced(images()))).holds(ArraySource(x))


def test_values_are_checked_when_they_are_read(file: Any) -> None:
    x = images()
    x[7] = np.nan
    with pytest.raises(DataError, match=r"x\[7\] holds NaN"):
        list(as_batches(Sliced(x), geometry=Geometry(BATCH)).epoch(0))
    with pytest.raises(DataError, match="masked"):
        ArraySource(Sliced(np.ma.masked_array(images(), mask=images() > 0)))
    with pytest.raises(DataError, match="x is an array of dtype object"):
        ArraySource(file["names"])


def test_files_of_several_arrays_raise_with_their_names(file: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=images(), labels=labels())
    with np.load(tmp_path / "x.npz") as several:
        for x, words in (
            (file, r"x is a File of \['names', 'x', 'y'\]"),
            (several, r"x is a NpzFile of \['images', 'la"),
        ):
            with pytest.raises(DataError, match=words):
                as_batches(x, geometry=Geometry(4))


def test_only_arrays_that_are_not_in_memory_are_stored(file: Any) -> None:
    table = pd.DataFrame({"a": [1.0, 2.0]})
    for array in (
        images(),
        np.float32(1),
        table,
        table["a"],
        [1, 2],
    ):
        assert not is_stored(array)
    assert not is_stored(type("Loader", (list,), {"shape": (8, 8, 1)})())
    assert is_stored(file["x"])
    assert is_stored(Sliced(images()))
    x, y = table.sample(frac=1, random_state=0), pd.Series([1, 0], index=[5, 3])
    (batch,) = as_batches(x, y, geometry=Geometry(2)).epoch(0)
    np.testing.assert_array_equal(batch.x, x.to_numpy())
    assert batch.y.tolist() == [1, 0]


@pytest.mark.parametrize("kind", only(["h5py"], ["h5py", "sliced"]))
def test_fit_evaluate_and_predict_on_a_file_equal_those_on_arrays(kind: str, file: Any) -> None:
    x = file["x"] if kind == "h5py" else Sliced(images())
    results = []
    for inputs in (x, images()):
        model = compiled(PlainNet(rngs=nnx.Rngs(0)))
        history = model.fit(inputs, file["y"], batch_size=BATCH, validation_split=0.2, class_weight={1: 2.0}, verbose=0)
        results.append(
            [history.history["loss"], model.evaluate(inputs, file["y"], verbose=0), model.predict(inputs, verbose=0)]
        )
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


class OneRow(Sliced):
    """An array whose slices have one row, as those of a file that was truncated."""

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self._array[rows][:1]


class WithoutSlices(Sliced):
    def __getitem__(self, row: Any) -> np.ndarray:
        if isinstance(row, slice):
            raise TypeError("indices must be integers")
        return self._array[row]


def test_slices_that_are_no_rows_raise() -> None:
    with pytest.raises(DataError, match=r"x is a WithoutSlices with a shape, and \[0:1\] raised indices must be"):
        ArraySource(WithoutSlices(images()))
    source = ArraySource(OneRow(images()), labels())
    with pytest.raises(DataError, match=r"x is a OneRow, and a slice of 4 rows has shape \(1, 8, 8, 1\)"):
        source.take(slice(0, 4))


def test_a_list_of_arrays_in_files_is_several_inputs() -> None:
    source = ArraySource([Sliced(images()), Sliced(images())], labels())
    assert [part.shape for part in source.take(slice(0, 4))[0]] == [(4, 8, 8, 1)] * 2


def test_sparse_matrices_raise() -> None:
    sparse = pytest.importorskip("scipy.sparse").csr_array(np.eye(20))
    with pytest.raises(DataError, match=r"y is a sparse csr_array of shape \(20, 20\)"):
        ArraySource(images(), sparse)
    with pytest.raises(DataError, match="csr_array"):
        next(iter(as_batches(sparse, geometry=Geometry(2)).epoch(0)))
