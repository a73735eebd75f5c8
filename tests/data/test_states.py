"""The state of a loader is restored exactly from the files of a checkpoint."""

import collections
import decimal
import functools
import http
import json
import math
import pathlib
import random
import sys
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy

from resfit.data.states import packed, unpacked
from resfit.errors import DataError
from resfit.trainer.checkpoint.packing import pack, unpack
from resfit.trainer.checkpoint.saved_run import SavedRun
from resfit.trainer.checkpoint.store import CheckpointStore

TEXT = st.text(st.characters(codec=None))  # lone surrogates too
INTEGERS = st.integers() | st.integers(-(10**400), 10**400)
SIMPLE = st.none() | st.booleans() | INTEGERS | TEXT | st.binary() | st.floats() | st.complex_numbers()
KEYS = SIMPLE | st.tuples(INTEGERS, TEXT) | st.frozensets(st.integers(), max_size=3)
DTYPES = (
    numpy.scalar_dtypes() | numpy.unicode_string_dtypes() | numpy.byte_string_dtypes()
    | st.sampled_from([np.dtype(jnp.bfloat16), np.dtype(jnp.float8_e4m3fn), np.dtype(jnp.int4), np.dtype("V3")])
)  # fmt: skip
ARRAYS = st.builds(
    lambda dtype, shape, content: (
        np.resize(np.frombuffer(content, np.uint8), math.prod(shape) * dtype.itemsize).view(dtype).reshape(shape)
    ),
    DTYPES.filter(lambda dtype: dtype.kind != "U"),  # not every number is a letter
    numpy.array_shapes(min_dims=0, min_side=0, max_dims=3, max_side=3).filter(math.prod),
    st.binary(min_size=1, max_size=16),
)
LETTERS = numpy.arrays(numpy.unicode_string_dtypes(), numpy.array_shapes(min_dims=0, max_dims=2, max_side=3))
SCALARS = (ARRAYS | LETTERS).map(lambda array: array.reshape(-1)[0])
STATES = st.recursive(
    KEYS | ARRAYS | LETTERS | SCALARS | st.binary().map(bytearray) | st.sets(INTEGERS),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(KEYS, inner, max_size=3)
    | st.dictionaries(KEYS, inner, max_size=3).map(collections.OrderedDict)
    | st.dictionaries(KEYS, INTEGERS, max_size=3).map(collections.Counter)
    | st.lists(inner, max_size=3).map(lambda entries: collections.deque(entries, maxlen=3))
    | st.dictionaries(KEYS, inner, max_size=3).map(lambda entries: collections.defaultdict(list, entries)),
    max_leaves=8,
)  # fmt: skip


def stored(state: Any) -> Any:
    """Convert a state to the form in the files of a checkpoint, and back."""
    arrays: dict[str, np.ndarray] = {}

    def aside(array: np.ndarray) -> dict[str, str]:
        name = str(len(arrays))
        arrays[name] = array
        return {"__array__": name}

    text = json.dumps(packed(state), default=aside)
    content, index = pack(arrays)
    back = unpack(content, json.loads(json.dumps(index)))
    return unpacked(json.loads(text, object_hook=lambda one: back[one["__array__"]] if "__array__" in one else one))


def same(a: Any, b: Any) -> bool:
    """Return True if two states are equal, with equal types, order of keys, bits of NaN and signs of zero."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, collections.defaultdict) and a.default_factory is not b.default_factory:
        return False
    if isinstance(a, dict):
        return same(list(a.items()), list(b.items()))
    if isinstance(a, collections.deque) and a.maxlen != b.maxlen:
        return False
    if isinstance(a, list | tuple | collections.deque):
        return len(a) == len(b) and all(map(same, a, b))
    return repr(a) == repr(b) if isinstance(a, float | complex) else bool(a == b)


@given(STATES)
def test_every_state_is_restored_exactly(state: Any) -> None:
    assert same(stored(state), state)


@pytest.mark.parametrize("text", ["a\0", np.str_("a\0"), b"a\0", np.bytes_(b"a\0")])
def test_text_keeps_trailing_zeros(text: Any) -> None:
    found = stored(text)
    assert (type(found), list(found)) == (type(text), list(text))


def test_jax_arrays_and_keys_are_restored() -> None:
    state = {"array": jnp.ones(2, jnp.bfloat16), "key": jax.random.key(3, impl="rbg"), "old": jax.random.PRNGKey(1)}
    found = stored(state)
    assert all(isinstance(one, jax.Array) for one in found.values())
    assert [one.dtype for one in found.values()] == [one.dtype for one in state.values()]
    assert (found["array"] == 1).all()
    assert (jax.random.bits(found["key"], (3,)) == jax.random.bits(state["key"], (3,))).all()


def test_a_packed_state_is_a_copy() -> None:
    state = {"rows": np.zeros(2), "list": [1]}
    held = packed(state)
    state["rows"][:], state["list"][0] = 7, 7
    assert same(unpacked(held), {"rows": np.zeros(2), "list": [1]})


def test_a_state_is_restored_from_the_files_of_a_checkpoint(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    state = {
        "bits": rng.bit_generator.state, "python": random.Random(0).getstate(), 3: (b"", b"\0\1\0", None),
        "rows": np.arange(5), "none": np.zeros((0, 2)), "one": np.int64(7), "flag": np.True_, "__array__": "no name",
    }  # fmt: skip
    checkpoints = CheckpointStore(tmp_path)
    checkpoints.save(0, SavedRun({}, {"data": {"loader": packed(state)}}))
    state["rows"][:] = 0  # the loader continues with its own array
    checkpoints.wait()
    found = unpacked(checkpoints.read(0).facts["data"]["loader"])
    checkpoints.close()
    assert found.pop("rows").tolist() == [0, 1, 2, 3, 4]
    assert found.pop("none").shape == (0, 2)
    assert (type(found["one"]), type(found["flag"])) == (np.int64, np.bool_)
    del state["rows"], state["none"]
    assert found == state


def test_tensors_are_restored_as_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for torch, whose generators accept only tensors as a state."""

    class Tensor:
        __module__ = "torch"

        def __init__(self, array: np.ndarray) -> None:
            self.array = array

        detach = cpu = lambda self: self
        numpy = lambda self: self.array  # noqa: E731

    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(from_numpy=Tensor))  # type: ignore[arg-type]
    kept = np.arange(3)
    state = packed({"generator": Tensor(kept)})
    kept[:] = 9
    found = unpacked(state)["generator"]
    assert isinstance(found, Tensor)
    assert found.array.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("state", "where"),
    [
        ({"a": [1, object()]}, r"state_dict\(\)\['a'\]\[1\] of the data is a builtins\.object"),
        (np.array([object()]), r"is a numpy\.ndarray"),
        (random.Random(0), r"is a random\.Random"),
        ({pathlib.PurePosixPath(): 1}, r"'s key of the data is a pathlib\..*PurePosixPath"),
        (np.zeros(2, [("a", int)]), r"is a numpy\.ndarray of dtype \[\('a', '<i8'\)\]"),
        (np.ma.masked_array([1]), r"is a numpy\.ma.*MaskedArray"),
        (collections.defaultdict(lambda: 1), r"is a defaultdict of <function"),
        (decimal.Decimal(1), r"is a decimal\.Decimal"),
        (http.HTTPStatus.OK, r"is a http\.HTTPStatus"),  # a subclass of int, which would be restored as another type
        (functools.reduce(lambda inner, _: [inner], range(200)), "in more than 100 containers, or in itself"),
    ],
)
def test_values_that_need_pickle_raise(state: Any, where: str) -> None:
    with pytest.raises(DataError, match=where):
        packed(state)
