"""ONNX files in the runtimes that read them: onnxruntime and OpenVINO compute what `predict` computes."""

import pickle
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from rich.console import Console

import resfit
from resfit.errors import DataError, ExportError, InputShapeError, LabelError, SavedModelError
from resfit.export.onnx import exporter, file
from resfit.preprocess import Normalize
from tests import levels, make_onnx
from tests.export.onnx_interpreter import evaluate
from tests.export.test_onnx_graph import FUNCTIONS, IMAGES, Custom, draw, graph
from tests.helpers import CLASSES, compiled, fit, images, labels
from tests.packages import package

pytestmark = pytest.mark.originals
SAME = {"rtol": 1e-4, "atol": 1e-4}


def pixels(n: int = 20) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 8, 8, 1), np.uint8)


@pytest.fixture(scope="module")
def trained() -> Any:
    """Return a model trained on uint8, with averages, transforms and class names. No test changes it."""
    package("onnxruntime")
    net = resfit.create_model("resnet20", num_classes=CLASSES, in_channels=1, depths=(1, 1), widths=(4, 8))
    model = compiled(net, ema=0.5, preprocess=Normalize((0.5,), (0.25,)))
    fit(model, pixels(16), labels(16))
    model.class_names = ["a", "b", "c"]
    return model


def exported(model: Any, folder: Path, **arguments: Any) -> Any:
    model.export(folder / "net.onnx", **arguments)
    return resfit.load_exported(folder / "net.onnx")


def openvino(path: Path, *x: np.ndarray) -> np.ndarray:
    """Return the first output of OpenVINO in float32: by default it computes in bfloat16 where the CPU can."""
    vino = package("openvino")
    program = vino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.asarray(program(list(x))[0])


# --- every operation and network --------------------------------------------------------------------------------------


@pytest.fixture
def _promotion() -> Any:
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.usefixtures("_promotion")
@pytest.mark.parametrize("opset", [13, 17, 21])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_onnxruntime_computes_each_function_as_jax_does(name: str, opset: int) -> None:
    runtime = package("onnxruntime")
    content = file.content(graph(FUNCTIONS[name], draw(2, IMAGES), opset=opset), {})
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for rows in (1, 5):
        x = draw(rows, IMAGES)
        found = session.run(None, {"x0": x})
        for a, b in zip(found, evaluate(FUNCTIONS[name], x), strict=True):
            np.testing.assert_allclose(a, b, **SAME)


@pytest.mark.parametrize("name", levels.only(["resnet20"], make_onnx.MEASURED, slow=["resnet50", "resnet50_gn"]))
def test_every_network_of_the_zoo_equals_predict_in_onnxruntime_and_openvino(name: str) -> None:
    for runtime in make_onnx.RUNTIMES:
        package(runtime)
    row = make_onnx.measure(name)
    assert make_onnx.relative(row) < make_onnx.BARS.get(name, make_onnx.BAR)
    assert row["same_class"] == 1
    assert row["largest_logit"] > 0.1  # or a small difference would say little


@pytest.mark.parametrize("outputs", ["logits", "probabilities", "labels"])
def test_a_custom_module_equals_predict(outputs: str, tmp_path: Path) -> None:
    package("onnxruntime")
    model = resfit.Model(Custom(rngs=nnx.Rngs(0)))
    x = draw(5, (8, 8, 3))
    loaded = exported(model, tmp_path, outputs=outputs, input_shape=(8, 8, 3), input_dtype="float32")
    expected = model.predict(x, verbose=0, outputs=outputs)
    for rows in (1, 5):
        np.testing.assert_allclose(loaded(x[:rows]), expected[:rows], **SAME)
    assert loaded(x).dtype == expected.dtype
    np.testing.assert_allclose(openvino(tmp_path / "net.onnx", x), expected, **SAME)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_inputs_in_half_precision_equal_predict(dtype: str, tmp_path: Path) -> None:
    package("onnxruntime")
    model = resfit.Model(Custom(rngs=nnx.Rngs(0)))
    x = draw(5, (8, 8, 3)).astype(jax.numpy.dtype(dtype))
    loaded = exported(model, tmp_path, input_shape=(8, 8, 3), input_dtype=dtype)
    assert loaded.metadata["inputs"][0]["dtype"] == "float32"  # of the file, which computes in float32
    np.testing.assert_allclose(loaded.predict(x), model.predict(x, verbose=0), **SAME)


class OnIntegers(nnx.Module):
    """A module that computes on integers, for which ONNX or onnxruntime lacks operations."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.function(x.astype("uint8")).astype("float32")


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: -x, "uses an operation that ONNX lacks for these dtypes or sizes"),
        (lambda x: x**3, "uses an operation that ONNX lacks for these dtypes or sizes"),
        (lambda x: x.sum(-1, keepdims=True), "onnxruntime cannot run the network as ONNX"),
    ],
    ids=["negative", "power", "runtime"],
)
def test_operations_that_onnx_lacks_for_a_dtype_raise_and_write_nothing(
    function: Any, expected: str, tmp_path: Path
) -> None:
    package("onnxruntime")
    with pytest.raises(ExportError, match=rf"{expected}.*astype\(jax\.numpy\.float32\)"):
        exported(resfit.Model(OnIntegers(function)), tmp_path, input_shape=(4,), input_dtype="float32")
    assert list(tmp_path.iterdir()) == []


class Several(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.one, self.two = nnx.Linear(4, 3, rngs=rngs), nnx.Linear(2, 3, rngs=rngs)

    def __call__(self, x: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return {"sum": self.one(x["a"]) + self.two(x["b"]), "a": x["a"]}


def test_several_inputs_and_outputs_keep_their_names(tmp_path: Path) -> None:
    package("onnxruntime")
    model = resfit.Model(Several(rngs=nnx.Rngs(0)))
    x = {"a": draw(5, (4,)), "b": draw(5, (2,))}
    loaded = exported(model, tmp_path, input_shape={"a": (4,), "b": (2,)}, input_dtype="float32")
    found, expected = loaded.predict(x, batch_size=2), model.predict(x, verbose=0)
    assert list(found) == ["logits.a", "logits.sum"]
    for name, array in expected.items():
        np.testing.assert_allclose(found[f"logits.{name}"], array, **SAME)
    with pytest.raises(DataError, match="Got inputs with the names"):
        loaded({"a": x["a"]})
    with pytest.raises(ExportError, match="Expected one output"):
        model.quantize(x)


# --- the file ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [{}, {"weights": "ema"}, {"opset": 13}, {"opset": 21}, {"dynamic_batch": False}], ids=str
)
def test_arguments_of_export_give_the_predictions_of_the_model(arguments: Any, trained: Any, tmp_path: Path) -> None:
    loaded = exported(trained, tmp_path, **arguments)
    expected = trained.predict(pixels(), verbose=0, weights=arguments.get("weights", "raw"))
    np.testing.assert_allclose(loaded.predict(pixels(), batch_size=8), expected, **SAME)
    first = (loaded.metadata["inputs"][0]["shape"][0], loaded._session.get_inputs()[0].shape[0])
    assert first == ((1, 1) if "dynamic_batch" in arguments else (None, "batch"))
    if "dynamic_batch" in arguments:
        with pytest.raises(DataError, match=r"Got 20 rows\. Expected 1, .* Call predict"):
            loaded(pixels())
    with pytest.raises(DataError, match=r"Got a list as the inputs\. Expected one array"):
        loaded.predict(pixels().tolist())


def test_the_metadata_hold_names_transforms_and_the_printed_comparison(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(exporter, "Console", lambda: Console(width=300))
    loaded = exported(trained, tmp_path)
    metadata = loaded.metadata
    assert loaded.class_names == metadata["class_names"] == ["a", "b", "c"]
    assert metadata["preprocess"] == {"kind": "Normalize", "mean": [0.5], "std": [0.25]}
    assert metadata["parity"]["rows"] == 8
    assert metadata["parity"]["same_class"] == 1
    assert metadata["parity"]["largest_difference"] < 1e-5
    assert "largest difference" in capsys.readouterr().out
    text = package("onnx").load(tmp_path / "net.onnx").metadata_props
    assert {one.key: one.value for one in text}["class_names"] == '["a", "b", "c"]'


def test_class_names_that_are_not_utf8_stay(trained: Any, tmp_path: Path) -> None:
    """Names of folders of another encoding have lone surrogates, which a protocol buffer refuses."""
    names = ["caf\udce9", "\ud83d", 'a"\\ü']
    loaded = exported(trained, tmp_path, class_names=names)
    assert loaded.class_names == names


def test_a_loaded_model_checks_its_inputs_and_survives_pickle(trained: Any, tmp_path: Path) -> None:
    loaded = exported(trained, tmp_path)
    with pytest.raises(InputShapeError, match=r"Expected \(batch, 8, 8, 1\)"):
        loaded(pixels()[:, :4])
    with pytest.raises(DataError, match=r"dtype float32\. Expected uint8"):
        loaded(images())
    again = pickle.loads(pickle.dumps(loaded))
    np.testing.assert_array_equal(again(pixels()), loaded(pixels()))
    again.save(tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "net.onnx").read_bytes()
    with pytest.raises(ExportError, match=r"ends in '\.onnx'"):
        again.save(tmp_path / "again.npz")


@pytest.mark.parametrize("opset", [12, 999, 17.5, True])
def test_an_unknown_opset_raises(opset: Any, trained: Any, tmp_path: Path) -> None:
    package("onnx")
    with pytest.raises(ExportError, match="Expected a version from 13 to"):
        trained.export(tmp_path / "net.onnx", opset=opset)


def test_damaged_files_and_those_of_others_raise(trained: Any, tmp_path: Path) -> None:
    trained.export(tmp_path / "net.onnx")
    content = (tmp_path / "net.onnx").read_bytes()
    for name, members in {"cut": content[: len(content) // 2], "text": b"no model", "none": b""}.items():
        (tmp_path / f"{name}.onnx").write_bytes(members)
        with pytest.raises(SavedModelError, match=r"is not an ONNX model that onnxruntime|without the metadata"):
            resfit.load_exported(tmp_path / f"{name}.onnx")
    (tmp_path / "other.onnx").write_bytes(file.with_metadata(content, {"class_names": "not JSON"}))
    with pytest.raises(SavedModelError, match=r"without the metadata of resfit; it lacks \['class_names', 'format'"):
        resfit.load_exported(tmp_path / "other.onnx")


# --- int8 -------------------------------------------------------------------------------------------------------------


def test_a_quantized_model_has_int8_layers_and_nearly_the_same_outputs(
    trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package("onnxruntime")
    small = trained.quantize(pixels(), (pixels(), labels(20)), batch_size=8)
    expected = trained.predict(pixels(), verbose=0)
    spread = np.abs(expected).max()
    np.testing.assert_allclose(small.predict(pixels()), expected, atol=0.1 * spread)
    assert np.abs(small.predict(pixels()) - expected).max() > 0
    report = small.metadata["quantization"]
    assert report["rows"] == 20
    assert report["accuracy_float32"] == pytest.approx((expected.argmax(-1) == labels(20)).mean())
    assert report["accuracy_int8"] == pytest.approx((small.predict(pixels()).argmax(-1) == labels(20)).mean())
    assert "int8 model on 20 images" in capsys.readouterr().out
    nodes = package("onnx").load_model_from_string(small.content).graph.node
    made = {node.output[0]: node.op_type for node in nodes}
    layers = [node for node in nodes if node.op_type in ("Conv", "Gemm")]
    assert len(layers) == 6
    assert {made[name] for node in layers for name in node.input} == {"DequantizeLinear"}
    small.save(tmp_path / "int8.onnx")
    np.testing.assert_allclose(openvino(tmp_path / "int8.onnx", pixels()), expected, atol=0.1 * spread)


def test_quantization_checks_the_validation_labels_as_evaluate_does(trained: Any) -> None:
    package("onnxruntime")
    labels = np.full(20, 77)
    for call in (lambda: trained.evaluate(pixels(), labels), lambda: trained.quantize(pixels(), (pixels(), labels))):
        with pytest.raises(LabelError, match="77"):
            call()


def test_quantization_without_labels_compares_classes_and_without_images_raises(trained: Any) -> None:
    package("onnxruntime")
    report = trained.quantize(pixels()).metadata["quantization"]
    assert set(report) == {"weights", "activations", "rows", "same_class"}
    with pytest.raises(DataError):
        trained.quantize(pixels()[:0])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_int8_costs_at_most_three_thousandths_of_the_accuracy_on_digits(seed: int) -> None:
    package("onnxruntime")
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    x = x.reshape(-1, 8, 8, 1).astype("float32") / 16
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.2, stratify=y, random_state=seed)
    model = resfit.Model(resfit.create_model("resnet20", num_classes=10, in_channels=1, rngs=seed))
    model.compile("adamw", learning_rate=0.003, seed=seed)
    model.fit(x_train, y_train, batch_size=64, epochs=10, verbose=0)
    report = model.quantize(x_train[:512], (x_test, y_test)).metadata["quantization"]
    assert report["accuracy_int8"] >= report["accuracy_float32"] - 0.003
