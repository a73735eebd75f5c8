"""The layout of tensors: channels first become channels last, and ambiguous shapes raise."""

from typing import Any

import numpy as np
import pytest

from resfit.data.sources.arrays import ArraySource, as_arrays
from resfit.data.tensors import is_channels_first
from resfit.errors import DataError
from tests.data.torch_fakes import Parameter, Tensor


class EagerTensor(Tensor):
    """A copy of TensorFlow's tensor."""

    __module__ = "tensorflow.python.framework.ops"


def shape_of(kind: Any, *shape: int) -> tuple[int, ...]:
    return tuple(as_arrays(kind(np.zeros(shape, np.float32)))[0].shape)


@pytest.mark.parametrize(
    ("shape", "moved"),
    [
        ((2, 3, 32, 32), (2, 32, 32, 3)), ((2, 1, 28, 28), (2, 28, 28, 1)), ((2, 3, 20, 30), (2, 20, 30, 3)),
        ((2, 12, 64, 64), (2, 64, 64, 12)), ((2, 32, 32, 3), (2, 32, 32, 3)), ((2, 20, 30, 1), (2, 20, 30, 1)),
        ((2, 3), (2, 3)), ((2, 20, 30), (2, 20, 30)),
    ],
)  # fmt: skip
def test_the_shape_of_a_torch_tensor_determines_its_layout(shape: Any, moved: Any) -> None:
    assert shape_of(Tensor, *shape) == shape_of(Parameter, *shape) == moved


@pytest.mark.parametrize("shape", [(2, 3, 3, 3), (2, 64, 8, 8), (2, 3, 32, 1), (2, 12, 64, 60), (2, 3, 4, 4)])
def test_an_ambiguous_layout_raises(shape: Any) -> None:
    with pytest.raises(DataError, match=r"whose channels may be first or last.*x\.movedim\(1, -1\)\.numpy\(\)"):
        shape_of(Tensor, *shape)
    assert as_arrays(np.zeros(shape))[0].shape == shape  # an array has the channels last


def test_a_tensor_of_five_dimensions_raises() -> None:
    with pytest.raises(DataError, match="of 5 dimensions"):
        shape_of(Tensor, 2, 3, 8, 8, 8)


@pytest.mark.parametrize(
    ("shape", "moved"),
    [
        ((2, 3, 32, 32), (2, 32, 32, 3)), ((2, 32, 32, 3), (2, 32, 32, 3)), ((2, 1, 100, 64), (2, 1, 100, 64)),
        ((2, 3, 3, 3), (2, 3, 3, 3)), ((2, 64, 8, 8), (2, 64, 8, 8)), ((2, 3, 8, 8, 8), (2, 3, 8, 8, 8)),
    ],
)  # fmt: skip
def test_tensorflow_has_the_channels_last_unless_the_shape_says_otherwise(shape: Any, moved: Any) -> None:
    assert shape_of(EagerTensor, *shape) == moved


def test_masks_follow_their_images_and_other_labels_stay() -> None:
    image, mask = Tensor(np.zeros((2, 3, 32, 32))), Tensor(np.zeros((2, 7, 8, 8)))
    assert as_arrays(image, mask)[1].shape == (2, 8, 8, 7)
    assert as_arrays(np.zeros((2, 5)), Tensor(np.zeros((2, 3, 8, 8))))[1].shape == (2, 8, 8, 3)
    assert as_arrays({"a": image}, Tensor(np.zeros((2, 8, 8), int)))[1].shape == (2, 8, 8)


def test_the_values_move_with_their_axes() -> None:
    x = np.arange(2 * 3 * 8 * 8, dtype=np.float32).reshape(2, 3, 8, 8)
    moved, y, weight = as_arrays(Tensor(x, requires_grad=True), Tensor(np.array([1, 2])), Tensor(np.array([1.0, 2.0])))
    np.testing.assert_array_equal(moved, np.moveaxis(x, 1, -1))
    assert moved.flags.c_contiguous
    assert (y.tolist(), weight.tolist()) == ([1, 2], [1, 2])
    assert as_arrays(Tensor(x, dtype="torch.bfloat16"))[0].dtype == np.float32
    assert ArraySource(Tensor(x)).take(slice(0, 1))[0].shape == (1, 8, 8, 3)


def test_arrays_have_no_layout() -> None:
    assert is_channels_first("x", np.zeros((2, 3, 32, 32))) is None
