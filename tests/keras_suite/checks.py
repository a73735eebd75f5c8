"""What the tests of Keras use besides the library: assertions, test data, the backend."""

import contextlib
import importlib
import re
import tempfile
import types
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from resfit.errors import ResfitError
from tests.keras_suite.names import NotTranslated, adapted


def _host(value: Any) -> Any:
    return np.asarray(value)


class _Raises(contextlib.AbstractContextManager[Any]):
    def __init__(self, test: Any, expected: Any, regex: str) -> None:
        self._test, self._expected, self._regex = test, expected, regex

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> bool:
        assert kind is not None, f"{self._expected.__name__} not raised"
        if not issubclass(kind, self._expected):
            return False
        if isinstance(error, ResfitError):
            adapted(f"the error is {kind.__name__}, in the words of resfit")
        else:
            assert re.search(self._regex, str(error)), str(error)
        return True


class TestCase(parameterized.TestCase):
    """The assertions about arrays, with the tolerances that Keras documents."""

    def get_temp_dir(self) -> str:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        return folder.name

    def assertAllClose(  # noqa: N802
        self, x1: Any, x2: Any, atol: float = 1e-6, rtol: float = 1e-6, msg: Any = None, **_: Any
    ) -> None:
        np.testing.assert_allclose(_host(x1), _host(x2), atol=atol, rtol=rtol, err_msg=msg or "")

    def assertNotAllClose(self, x1: Any, x2: Any, atol: float = 1e-6, rtol: float = 1e-6, msg: Any = None) -> None:  # noqa: N802
        assert not np.allclose(_host(x1), _host(x2), atol=atol, rtol=rtol), msg

    def assertAlmostEqual(self, x1: Any, x2: Any, decimal: int = 3, msg: Any = None, **_: Any) -> None:  # noqa: N802
        np.testing.assert_almost_equal(_host(x1), _host(x2), decimal=decimal, err_msg=msg or "")

    def assertAllEqual(self, x1: Any, x2: Any, msg: Any = None) -> None:  # noqa: N802
        np.testing.assert_array_equal(_host(x1), _host(x2), err_msg=msg or "")

    def assertDType(self, x: Any, dtype: Any, msg: Any = None) -> None:  # noqa: N802
        assert str(x.dtype) == str(dtype), msg

    def assertRaisesRegex(self, expected: Any, regex: str, *arguments: Any, **options: Any) -> Any:  # noqa: N802
        """Accept an error of resfit of the expected class, whose words are resfit's own."""
        context = _Raises(self, expected, regex)
        if not arguments:
            return context
        with context:
            arguments[0](*arguments[1:], **options)
        return None

    def run_class_serialization_test(self, *_: Any, **__: Any) -> None:
        raise NotTranslated("serialization of one object by get_config")

    def run_layer_test(self, *_: Any, **__: Any) -> None:
        raise NotTranslated("layers")


def named_product(*groups: Any, **arguments: Any) -> list[dict[str, Any]]:
    """Return the product of the values of arguments, and of dicts of arguments, each with a name."""
    rows: list[dict[str, Any]] = [{}]
    for group in groups:
        rows = [_joined(row, dict(one)) for row in rows for one in group]
    for name, values in arguments.items():
        # A pair is (name of the value, value), as in absl.
        rows = [_joined(row, {name: value, "testcase_name": _name(value)}) for row in rows for value in values]
    return rows


def _name(value: Any) -> str:
    return str(getattr(value, "__name__", value)).lower()


def _joined(row: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    names = [part["testcase_name"] for part in (row, more) if part.get("testcase_name")]
    return row | more | {"testcase_name": "_".join(names)}


def get_test_data(
    train_samples: int, test_samples: int, input_shape: Any, num_classes: int, random_seed: int | None = None
) -> Any:
    """Return random images or vectors around one center per class, as ((x, y), (x, y))."""
    random = np.random.default_rng(random_seed)
    labels = random.integers(0, num_classes, size=train_samples + test_samples)
    centers = num_classes * random.random((num_classes, *input_shape))
    x = (centers[labels] + random.normal(size=(len(labels), *input_shape))).astype("float32")
    return (x[:train_samples], labels[:train_samples]), (x[train_samples:], labels[train_samples:])


def to_categorical(x: Any, num_classes: int | None = None) -> np.ndarray:
    """Return one-hot labels."""
    return np.eye(int(np.max(x)) + 1 if num_classes is None else num_classes)[np.asarray(x)]


@contextlib.contextmanager
def device(_: str) -> Iterator[None]:
    """Use the CPU, the only device of the suite."""
    with jax.default_device(jax.devices("cpu")[0]):
        yield


class _Ops(Mapping[str, Any]):
    """The names of `keras.ops`, of which many, with their meaning, are those of jax.numpy."""

    _others = types.MappingProxyType({"convert_to_numpy": np.asarray, "convert_to_tensor": jnp.asarray})

    def __getitem__(self, name: str) -> Any:
        if name in self._others:
            return self._others[name]
        return vars(jnp)[name]

    def __iter__(self) -> Iterator[str]:
        return iter({**vars(jnp), **self._others})

    def __len__(self) -> int:
        return len(list(iter(self)))


class _TensorFlow:
    """TensorFlow, which only some tests import."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(importlib.import_module("tensorflow"), name)


ops, tensorflow = _Ops(), _TensorFlow()
backend = {
    "backend": lambda: "jax",
    "convert_to_numpy": np.asarray,
    "convert_to_tensor": jnp.asarray,
    "device": device,
    "floatx": lambda: "float32",
    "shape": np.shape,
    "standardize_dtype": lambda dtype: str(np.dtype(dtype)) if not hasattr(dtype, "as_numpy_dtype") else dtype.name,
    "SUPPORTS_SPARSE_TENSORS": True,
    "SUPPORTS_RAGGED_TENSORS": False,
    "in_symbolic_scope": lambda: False,
}
