"""`OnnxModel` without onnxruntime: the interpreter of graphs computes what its session would."""

import pickle
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import resfit
from resfit.errors import DataError, ExportError, InputShapeError, SavedModelError
from resfit.export.onnx import exporter, file, runtime
from tests.export import onnx_interpreter
from tests.export.test_onnx_graph import SETTINGS
from tests.helpers import TinyNet

EXAMPLE = jax.ShapeDtypeStruct((8, 8, 1), np.dtype("float32"))
X = np.random.default_rng(0).normal(size=(5, 8, 8, 1)).astype(np.float32)


class Session:
    """The part of `onnxruntime.InferenceSession` that `OnnxModel` uses."""

    def __init__(self, network: exporter.Written) -> None:
        self.graph = network.graph
        self.texts = file.encoded(network.metadata)

    def get_inputs(self) -> Any:
        return self.graph.inputs

    def get_modelmeta(self) -> Any:
        return SimpleNamespace(custom_metadata_map=self.texts)

    def run(self, _: None, feed: dict[str, Any]) -> list[np.ndarray]:
        return onnx_interpreter.run(self.graph, *feed.values())


def loaded(monkeypatch: pytest.MonkeyPatch, module: nnx.Module, example: Any = EXAMPLE, **settings: Any) -> Any:
    network = exporter.written(module, example, SETTINGS._replace(preprocess=None, **settings))
    monkeypatch.setattr(runtime, "session", lambda content, name: Session(network))
    return runtime.OnnxModel(b"content")


def test_a_loaded_model_equals_predict_for_batches_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    module = TinyNet(rngs=nnx.Rngs(0))
    model = loaded(monkeypatch, module, class_names=["a", "caf\udce9", "c"])
    expected = resfit.Model(module).predict(X, verbose=0)
    np.testing.assert_allclose(model(X), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(model.predict(X, batch_size=2), expected, rtol=1e-5, atol=1e-5)
    assert model.class_names == ["a", "caf\udce9", "c"]
    assert model.metadata["inputs"] == [{"name": "", "shape": [None, 8, 8, 1], "dtype": "float32"}]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model))(X), model(X))


def test_a_model_of_a_fixed_batch_fills_up_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    module = TinyNet(rngs=nnx.Rngs(0))
    model = loaded(monkeypatch, module, dynamic_batch=False)
    np.testing.assert_allclose(model.predict(X), resfit.Model(module).predict(X, verbose=0), rtol=1e-5, atol=1e-5)
    with pytest.raises(DataError, match=r"Got 5 rows\. Expected 1, .* Call predict"):
        model(X)


@pytest.mark.parametrize(
    ("x", "error", "said"),
    [
        (X[:, :4], InputShapeError, r"Got inputs of shape \(5, 4, 8, 1\)\. Expected \(batch, 8, 8, 1\)"),
        (X.astype("int32"), DataError, r"dtype int32\. Expected float32"),
        (X[:0], DataError, r"have \[0\] rows"),
        (X.tolist(), DataError, r"Got a list as the inputs\. Expected one array"),
        ({"a": X}, DataError, "Got a dict as the inputs"),
    ],
    ids=["shape", "dtype", "empty", "list", "dict"],
)
def test_inputs_that_do_not_fit_raise(x: Any, error: type[Exception], said: str, monkeypatch: Any) -> None:
    model = loaded(monkeypatch, TinyNet(rngs=nnx.Rngs(0)))
    with pytest.raises(error, match=said):
        model(x)


def test_a_file_without_metadata_and_a_path_of_another_kind_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded(monkeypatch, TinyNet(rngs=nnx.Rngs(0)))
    with pytest.raises(ExportError, match=r"ends in '\.onnx'"):
        model.save("net.npz")
    model._session.texts = {"class_names": "not JSON"}
    monkeypatch.setattr(runtime, "session", lambda content, name: model._session)
    with pytest.raises(SavedModelError, match=r"without the metadata of resfit; it lacks \['class_names', 'format'"):
        runtime.OnnxModel(b"content")
