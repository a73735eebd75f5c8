"""Values that a device would change, NaN, and masked entries raise for every kind of data."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from resfit.data import ArraySource, Geometry, ShardStream, as_batches
from resfit.data.values import check_values
from resfit.errors import DataError
from tests.helpers import PlainNet, compiled, fit, images, labels

FLOATS = ["float16", "float32", "float64", ">f4", "longdouble", "bfloat16", "float8_e4m3fn", "float8_e5m2"]


def dtype(name: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, name, name))


def with_value(value: Any, kind: str, n: int = 12) -> np.ndarray:
    """Return small images of a dtype; image 3 holds `value`."""
    x = np.ones((n, 8, 8, 1), dtype(kind))
    x[3, 0, 0, 0] = value
    return x


class Rows:
    """A custom source."""

    threads, labels = 0, None

    def __init__(self, x: Any, y: Any) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: Any) -> Any:
        return self.x[rows], None if self.y is None else self.y[rows], None


class OneShard:
    """A stream of arrays."""

    examples = None

    def __init__(self, x: Any, y: Any) -> None:
        self.rows = [(x[i : i + 1], None if y is None else y[i : i + 1]) for i in range(len(x))]

    def __len__(self) -> int:
        return 1

    def lengths(self, needed: bool) -> None:
        return None

    def name(self, shard: int) -> str:
        return "the shard"

    def read(self, shard: int, start: int) -> Any:
        return iter(self.rows[start:])

    def decode(self, record: Any, key: Any, place: Any) -> Any:
        return record

    def stack(self, examples: Any) -> Any:
        x, y = zip(*examples, strict=True)
        return (
            np.ma.concatenate(x) if np.ma.isMA(x[0]) else np.concatenate(x),
            None if y[0] is None else np.concatenate(y),
            None,
        )


def on_device(x: np.ndarray) -> Any:
    """Return a JAX array if JAX supports the dtype."""
    return jnp.asarray(x) if x.dtype.itemsize <= 4 and x.dtype.isnative and not np.ma.isMA(x) else x


WAYS: dict[str, Callable[[Any, Any], Any]] = {
    "arrays": lambda x, y: as_batches(x, y, geometry=Geometry(5)),
    "jax arrays": lambda x, y: as_batches(on_device(x), y, geometry=Geometry(5)),
    "dict": lambda x, y: as_batches({"a": x, "b": x}, y, geometry=Geometry(5)),
    "batches": lambda x, y: as_batches([(x, y)], geometry=Geometry(5)),
    "source": lambda x, y: as_batches(Rows(x, y), geometry=Geometry(5)),
    "on the device": lambda x, y: as_batches(Rows(x, y), geometry=Geometry(5), cache="device"),
    "stream": lambda x, y: as_batches(ShardStream(OneShard(x, y)), geometry=Geometry(5)),
}  # fmt: skip


REFUSED: list[tuple[Any, Any, str]] = [
    *[(with_value(np.nan, kind), None, r"\[3\] holds NaN") for kind in FLOATS],
    (with_value(np.inf, "bfloat16"), None, "holds NaN or infinite"),
    (with_value(1e300, "float64"), None, r"\[3\] holds 1e\+300, of dtype float64, which float32"),
    (with_value(-(2**40), "int64"), None, r"\[3\] holds -1099511627776, of dtype int64, which int32"),
    (with_value(2**32, "uint64"), None, "which uint32"),
    (np.ma.masked_greater(with_value(9, "float32"), 5), None, "masked array.*with 1 masked entries"),
    (images(12), np.where(np.arange(12) == 3, 2**32 + 1, 0), r"y\[3\] holds 4294967297"),
    (images(12), np.where(np.arange(12) == 3, 1e39, 0), r"y\[3\] holds 1e\+39"),
]


@pytest.mark.parametrize(
    ("x", "y", "words", "way"),
    [
        (*row, way)
        for way in WAYS
        for row in REFUSED
        # A custom source gives dtypes that JAX has.
        if way not in ("source", "on the device", "stream") or row[0].dtype not in (np.longdouble, np.dtype(">f4"))
    ],
)
def test_values_that_a_device_would_change_raise(way: str, x: Any, y: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        list(WAYS[way](x, y).epoch(0))


@pytest.mark.parametrize("kind", [*FLOATS, "int64", "uint64", "uint8", "bool"])
def test_finite_values_of_every_dtype_pass(kind: str) -> None:
    for way in ("arrays", "batches"):
        assert sum(batch.size for batch in WAYS[way](with_value(1, kind), labels(12)).epoch(0)) == 12


def test_a_mask_without_masked_entries_and_nan_labels_for_custom_losses_pass() -> None:
    check_values(np.ma.masked_array(images(3)), np.array([np.nan, 1.0, 2.0]))
    check_values(images(3), np.ones(3, complex))


@pytest.mark.parametrize("weight", [1e39, np.nan, -1.0, ml_dtypes.bfloat16("nan")])
def test_sample_weights_must_be_finite_as_float32(weight: Any) -> None:
    weights = np.ones(4, np.asarray(weight).dtype)
    weights[1] = weight
    with pytest.raises(DataError, match="sample_weight holds"):
        ArraySource(images(4), labels(4), weights)
    with pytest.raises(DataError, match="masked"):
        ArraySource(images(4), labels(4), np.ma.masked_less(np.arange(4.0), 1))
    with pytest.raises(DataError, match="finite weights"):
        as_batches(images(4), labels(4), class_weight={0: 1e39}, geometry=Geometry(2))


def test_bad_values_raise_in_every_method_and_leave_the_model_unchanged() -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)))
    x, y, bad = images(), labels(), with_value(np.nan, "bfloat16", 20)
    before = model.predict(x, verbose=0)
    uses: list[Callable[[], Any]] = [
        lambda: fit(model, bad, y),
        lambda: fit(model, x, y, validation_data=(bad, y)),
        lambda: model.evaluate(bad, y, verbose=0),
        lambda: model.predict(bad, verbose=0),
        lambda: model.train_on_batch(bad, y),
        lambda: model.test_on_batch(bad, y),
        lambda: model.predict_on_batch(bad),
    ]
    for use in uses:
        with pytest.raises(DataError, match=r"x\[3\] holds NaN"):
            use()
    np.testing.assert_array_equal(model.predict(x, verbose=0), before)
