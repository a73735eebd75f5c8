"""What somebody's loader says of its place comes back as it was, through a checkpoint's files."""

import random
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resfit.data.states import packed, unpacked
from resfit.engine.checkpoint import Checkpoints, Saved
from resfit.errors import DataError

KEYS = st.none() | st.booleans() | st.integers() | st.text() | st.tuples(st.integers(), st.text())
STATES = st.recursive(
    KEYS | st.floats(allow_nan=False) | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(KEYS, inner),
)


@given(STATES)
def test_any_state_comes_back_with_its_types(state: Any) -> None:
    found = unpacked(packed(state))
    assert repr(found) == repr(state)  # which tells tuples from lists, and 1 from True


def test_a_state_comes_back_from_the_files_of_a_checkpoint(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    state = {
        "bits": rng.bit_generator.state, "python": random.Random(0).getstate(), 3: (b"", b"\0\1\0", None),
        "rows": np.arange(5), "none": np.zeros((0, 2)), "one": np.int64(7), "flag": np.True_, "__array__": "no name",
    }  # fmt: skip
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(0, Saved({}, {"data": {"loader": packed(state)}}))
    state["rows"][:] = 0  # the loader's own, which it goes on with
    checkpoints.wait()
    found = unpacked(checkpoints.read(0).facts["data"]["loader"])
    checkpoints.close()
    assert found.pop("rows").tolist() == [0, 1, 2, 3, 4]
    assert found.pop("none").shape == (0, 2)
    assert (type(found["one"]), type(found["flag"])) == (np.int64, np.bool_)
    del state["rows"], state["none"]
    assert found == state


def test_tensors_come_back_as_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for torch, whose generators take nothing else for a state."""

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
        ({frozenset(): 1}, r"key of the data is a builtins\.frozenset"),
    ],
)
def test_what_would_have_to_be_pickled_is_refused(state: Any, where: str) -> None:
    with pytest.raises(DataError, match=where):
        packed(state)
