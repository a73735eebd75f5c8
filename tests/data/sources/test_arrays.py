"""Arrays in memory become batches: every row once, in an order that depends only on (seed, epoch)."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from resfit.data import ArrayBatches
from resfit.data.class_weights import class_weights
from resfit.data.sources.arrays import ArraySource, as_arrays, split_validation
from resfit.errors import DataError


def rows(batches: ArrayBatches, epoch: int = 0) -> list[int]:
    return [int(i) for batch in batches.epoch(epoch) for i in batch.x[: batch.size]]


def test_the_order_is_a_permutation_that_depends_on_seed_and_epoch_only() -> None:
    def order(seed: int | None, epoch: int, batch_size: int = 8) -> list[int]:
        return rows(ArrayBatches(np.arange(50), batch_size=batch_size, seed=seed), epoch)

    orders = [order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(o) == list(range(50)) for o in orders)
    assert len({tuple(o) for o in orders}) == 4
    assert order(0, 1) == order(0, 1, batch_size=7)  # another batch size
    assert order(None, 3) == list(range(50))


def test_inputs_labels_and_weights_stay_together() -> None:
    x = {"image": np.arange(20), "side": (np.arange(20) * 2, np.arange(20) * 3)}
    for batch in ArrayBatches(x, np.arange(20) * 4, np.arange(20) * 5, batch_size=8, seed=0).epoch(0):
        i = batch.x["image"]
        np.testing.assert_array_equal(batch.x["side"][0], 2 * i)
        np.testing.assert_array_equal(batch.x["side"][1], 3 * i)
        np.testing.assert_array_equal(batch.y, 4 * i)
        np.testing.assert_array_equal(batch.weight, 5 * i)
        assert batch.weight.dtype == np.float32


def test_a_padded_last_batch_repeats_real_rows_and_is_masked() -> None:
    *full, tail = ArrayBatches(np.arange(11), np.arange(11), np.ones(11), batch_size=4, pad=True).epoch(0)
    assert [batch.mask.tolist() for batch in full] == [[True] * 4] * 2
    assert (tail.x.tolist(), tail.size) == ([8, 9, 10, 10], 3)
    assert tail.mask.tolist() == [True, True, True, False]
    assert tail.y.shape == tail.weight.shape == (4,)


@pytest.mark.parametrize(("n", "shape"), [(1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (31, 32), (32, 32), (33, 32)])
def test_a_dataset_smaller_than_a_batch_is_padded_to_the_next_power_of_two(n: int, shape: int) -> None:
    batches = list(ArrayBatches(np.arange(n), batch_size=32, pad=True).epoch(0))
    assert {len(batch.x) for batch in batches} == {shape}
    assert sum(batch.size for batch in batches) == n


@pytest.mark.parametrize(
    ("n", "batch_size", "options", "sizes"),
    [
        (20, 8, {}, [8, 8, 4]),
        (16, 8, {}, [8, 8]),
        (17, 8, {"min_batch": 2}, [8, 8]),
        (18, 8, {"min_batch": 2}, [8, 8, 2]),
        (20, 8, {"drop_remainder": True}, [8, 8]),
        (5, 8, {}, [5]),
        (1, 8, {"min_batch": 2}, [1]),  # the only batch
        (3, 1, {"min_batch": 2}, [1, 1, 1]),  # batch_size=1
    ],
)
def test_steps_examples_and_sizes_agree(n: int, batch_size: int, options: dict[str, Any], sizes: list[int]) -> None:
    batches = ArrayBatches(np.arange(n), batch_size=batch_size, seed=0, **options)
    assert [batch.size for batch in batches.epoch(0)] == sizes
    assert [len(batch.x) for batch in batches.epoch(1)] == sizes
    assert (batches.steps, batches.examples) == (len(sizes), sum(sizes))


def test_every_epoch_drops_other_examples() -> None:
    batches = ArrayBatches(np.arange(20), batch_size=8, seed=0, drop_remainder=True)
    dropped = [frozenset(range(20)) - set(rows(batches, epoch)) for epoch in range(4)]
    assert len(set(dropped)) > 1


@pytest.mark.parametrize(
    ("x", "y", "weight", "message"),
    [
        ([], None, None, "no examples"),
        (np.zeros((0, 3)), None, None, "no examples: the lengths are {'x': 0}"),
        (np.zeros(3), np.zeros(4), None, "lengths {'x': 3, 'y': 4}"),
        ({"a": np.zeros(3), "b": np.zeros(4)}, None, None, r"""x\['a'\]": 3, "x\['b'\]": 4"""),
        (np.zeros(3), {"a": np.zeros(3), "b": np.zeros(2)}, None, r"y\['b'\]\": 2"),
        (np.zeros(3), None, np.zeros(2), "'sample_weight': 2"),
        (np.float32(3), None, None, "single value"),
        (np.zeros(3), np.array(["a", "b", "c"]), None, "y is an array of dtype <U1.*np.unique"),
        (np.zeros(3), ["a", "b", "c"], None, "np.unique"),
        (np.array([[1], None], object), None, None, "all images have one size"),
        ("images", None, None, "x is a str"),
        (np.zeros(2), None, [1.0, np.inf], "negative or non-finite"),
    ],
)
def test_arrays_that_are_not_data_raise(x: Any, y: Any, weight: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        as_arrays(x, y, weight)


def test_lists_of_numbers_and_jax_arrays_are_arrays() -> None:
    x, y, weight = as_arrays(jnp.ones((2, 3)), [0, 1], [0.5, 2])
    assert [type(array) for array in (x, y, weight)] == [np.ndarray] * 3
    assert (y.tolist(), weight.tolist()) == ([0, 1], [0.5, 2.0])


@pytest.mark.parametrize(
    "y", [np.array([0, 2, 1, 2]), np.array([[0], [2], [1], [2]]), np.eye(3)[[0, 2, 1, 2]], np.uint8([0, 2, 1, 2])]
)
def test_class_weights_read_every_form_of_class_labels(y: Any) -> None:
    assert class_weights(y, {0: 0.5, 2: 3}).tolist() == [0.5, 3, 1, 3]
    assert class_weights(y[:1], {2: 9.0}).tolist() == [1]


def test_labels_far_from_the_weighted_classes_have_weight_one() -> None:
    assert class_weights(np.array([-100, -1, 0, 1, 2, 10**12]), {1: 2.0}).tolist() == [1, 1, 1, 2, 1, 1]
    assert class_weights(np.array([0.0, 1.0, np.inf]), {1.0: 2.0}).tolist() == [1, 2, 1]


def test_class_weight_accepts_an_absent_class_but_not_a_class_without_a_column() -> None:
    assert class_weights(np.array([0, 1]), {7: 9.0}).tolist() == [1, 1]
    with pytest.raises(DataError, match="has the class 7, but the labels have 3 columns"):
        class_weights(np.eye(3), {7: 9.0})


def test_arrays_of_the_other_byte_order_become_native(tmp_path: Path) -> None:
    x, y, _ = as_arrays(np.arange(3, dtype=">f4"), np.arange(3, dtype=">i2"))
    assert (x.dtype, y.dtype) == (np.dtype("f4"), np.dtype("i2"))
    assert (x.tolist(), y.tolist()) == ([0, 1, 2], [0, 1, 2])
    mapped = np.memmap(tmp_path / "x", dtype=">f4", mode="w+", shape=(3, 2))
    mapped[:] = [[0, 1], [2, 3], [4, 5]]
    taken, _, _ = ArraySource(mapped).take(slice(1, 3))
    assert taken.dtype.isnative
    assert taken.tolist() == [[2, 3], [4, 5]]


def test_split_validation_takes_the_last_part_of_everything() -> None:
    (x, y, weight), (x_last, y_last, weight_last) = split_validation(
        0.3, {"a": np.arange(10)}, np.arange(10), np.ones(10)
    )
    assert (x["a"].tolist(), y.tolist(), len(weight)) == (list(range(7)), list(range(7)), 7)
    assert (x_last["a"].tolist(), y_last.tolist(), len(weight_last)) == ([7, 8, 9], [7, 8, 9], 3)


@pytest.mark.parametrize("fraction", [-0.1, 0.0, 1.0, 2.0, 0.99])
def test_a_split_with_an_empty_part_raises(fraction: float) -> None:
    with pytest.raises(DataError, match=r"between 0 and 1|leaves one part empty"):
        split_validation(fraction, np.arange(10), None, None)


Y = {"kind": np.arange(4), "size": np.ones(4)}


@pytest.mark.parametrize(
    ("y", "class_weight", "message"),
    [
        (np.array([[0, 1, 0], [1, 1, 0]]), {1: 2.0}, "row 1 of the labels sums to 2.*inside the loss"),
        (np.array([[0, 0, 0], [0, 1, 0]]), {1: 2.0}, "row 0 of the labels sums to 0"),
        (np.array([[0.5, np.nan]]), {1: 2.0}, "row 0 of the labels sums to nan"),
        (Y, {1: 2.0}, r"dict of \['kind', 'size'\].*sample_weight"),
        ((np.arange(4), np.ones(4)), {1: 2.0}, "tuple of 2"),
        ([np.arange(4), np.ones(4)], {1: 2.0}, "list of 2"),
        (np.arange(4), {"kind": {1: 2.0}}, "weights for each output"),
        (None, {1: 2.0}, "got none"),
        (np.array([0.0, 0.7]), {1: 2.0}, r"a label is 0\.7.*a target for each class"),
        (np.array([[0.0], [-3.5]]), {1: 2.0}, r"a label is -3\.5"),
        (np.array([0.0, np.nan]), {1: 2.0}, "a label is nan"),
        (np.arange(4), {1.5: 2.0}, r"1\.5 is no class number"),
        (np.arange(4), {1: 2.0, "1": 3.0}, "each class once"),
    ],
)
def test_class_weights_need_one_class_per_example(y: Any, class_weight: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        class_weights(y, class_weight)


def test_a_list_of_numbers_is_one_array_of_weights() -> None:
    assert as_arrays(np.ones((2, 2)), [0, 1], [1.0, 2.0])[2].tolist() == [1, 2]
    assert class_weights([0, 1], {1: 3.0}).tolist() == [1, 3]
