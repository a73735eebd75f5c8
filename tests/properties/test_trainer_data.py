"""For any number of examples and any batch size, every row occurs once and at its position."""

import functools
import itertools

import jax
import numpy as np
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import resfit
from resfit.data import ArrayBatches, Epochs
from resfit.data.class_weights import class_weights
from resfit.data.sources.arrays import split_validation

sizes = st.integers(1, 60)


@given(n=sizes, batch_size=sizes, seed=st.one_of(st.none(), st.integers(0, 2**32)), epoch=st.integers(0, 5))
def test_an_epoch_contains_every_row_once(n: int, batch_size: int, seed: int | None, epoch: int) -> None:
    batches = ArrayBatches(np.arange(n), batch_size=batch_size, seed=seed)
    cut = [batch.x.tolist() for batch in batches.epoch(epoch)]
    assert sorted(itertools.chain(*cut)) == list(range(n))
    assert len(cut) == batches.steps == -(-n // batch_size)
    assert all(len(part) == len(cut[0]) for part in cut[:-1])


@given(n=sizes, batch_size=sizes)
def test_padded_batches_have_one_shape_and_their_masks_select_every_row_in_order(n: int, batch_size: int) -> None:
    batches = list(ArrayBatches(np.arange(n), np.arange(n), batch_size=batch_size, pad=True).epoch(0))
    assert len({len(batch.x) for batch in batches}) == 1
    assert np.concatenate([batch.x[batch.mask] for batch in batches]).tolist() == list(range(n))
    assert all(batch.mask.sum() == batch.size for batch in batches)
    assert len(batches[0].x) <= batch_size
    assert len(batches[0].x) < 2 * n


@given(n=st.integers(2, 60), batch_size=sizes, min_batch=st.integers(1, 4))
def test_only_a_short_remainder_is_left_out(n: int, batch_size: int, min_batch: int) -> None:
    batches = ArrayBatches(np.arange(n), batch_size=batch_size, seed=0, min_batch=min_batch)
    assert n - min_batch < batches.examples <= n
    assert sum(batch.size for batch in batches.epoch(0)) == batches.examples


@given(n=st.integers(1, 20), batch_size=st.integers(1, 8), steps=st.integers(1, 9), epochs=st.integers(1, 4))
def test_epochs_of_a_given_length_continue_one_stream_of_whole_passes(
    n: int, batch_size: int, steps: int, epochs: int
) -> None:
    data = ArrayBatches(np.arange(n), batch_size=batch_size, seed=1)
    run = Epochs(data, steps)
    stream = [batch.x.tolist() for _ in range(epochs) for batch in run.next()]
    assert len(stream) == steps * epochs
    passes = [batch.x.tolist() for epoch in range(run.passes) for batch in data.epoch(epoch)]
    assert stream == passes[: len(stream)]


@given(n=st.integers(2, 200), data=st.data())
def test_a_split_of_k_out_of_n_gives_k_examples(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, n - 1))
    (x, _, _), (x_last, _, _) = split_validation(k / n, np.arange(n), None, None)
    assert (x.tolist(), x_last.tolist()) == (list(range(n - k)), list(range(n - k, n)))


@given(
    y=st.lists(st.integers(0, 6), min_size=1, max_size=20),
    weight=st.dictionaries(st.integers(0, 6), st.floats(0, 10, width=32), max_size=5),
)
def test_class_weights_are_a_lookup(y: list[int], weight: dict[int, float]) -> None:
    expected = [weight.get(i, 1.0) for i in y]
    assert class_weights(np.array(y), weight).tolist() == expected
    assert class_weights(np.eye(7)[y], weight).tolist() == expected


class RowNumber(nnx.Module):
    """A network that returns its input, the number of the row."""

    def __init__(self) -> None:
        self.scale = nnx.Param(jax.numpy.ones(()))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.scale[...]


@functools.cache
def row_numbers() -> resfit.Model:
    return resfit.Model(RowNumber())


@settings(max_examples=25)
@given(n=st.integers(1, 40), batch_size=st.sampled_from([1, 7, 8, 64]))
def test_predict_returns_every_row_in_order(n: int, batch_size: int) -> None:
    x = np.arange(n, dtype=np.float32)
    np.testing.assert_array_equal(row_numbers().predict(x, batch_size=batch_size, verbose=0), x)
