"""An exported model: its predictions without resfit, for any batch size, and its errors for wrong inputs."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import resfit
from resfit.errors import CompileError, DataError, ExportError, InputShapeError, ModuleError, SavedModelError
from resfit.preprocess import Normalize
from tests import levels
from tests.helpers import BATCH, CLASSES, PlainNet, TinyNet, assert_same, compiled, fit, images, labels, values
from tests.thin_variants import VARIANTS, thin

# The code of docs/how-to/export.md for processes without resfit.
ALONE = """
import json, sys
sys.modules["resfit"] = sys.modules["flax"] = None  # importing either of them now fails
import jax
import numpy as np

file = np.load(sys.argv[1])
program = jax.export.deserialize(bytearray(file["program"]))
weights = [file[f"weights/{name}"] for name in json.loads(file["metadata.json"])["weights"]]
np.savez(sys.argv[3], *[jax.jit(program.call)(weights, x) for x in np.load(sys.argv[2]).values()])
"""


def alone(path: Path, *batches: np.ndarray) -> list[np.ndarray]:
    """Return the predictions of an exported model in a process with only jax and NumPy."""
    x, y = path.with_suffix(".x.npz"), path.with_suffix(".y.npz")
    np.savez(x, *batches)
    subprocess.run([sys.executable, "-c", ALONE, str(path), str(x), str(y)], check=True, cwd=path.parent)
    with np.load(y) as file:
        return list(file.values())


def small(**arguments: Any) -> nnx.Module:
    return resfit.create_model(
        "resnet20", **{"num_classes": CLASSES, "in_channels": 1, "depths": (1, 1), "widths": (4, 8), **arguments}
    )


def pixels(n: int = 20) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 8, 8, 1), np.uint8)


@pytest.fixture(scope="module")
def trained() -> Any:
    """Return a model trained on uint8, with averages."""
    model = compiled(small(), ema=0.5, preprocess=Normalize((0.5,), (0.25,)))
    fit(model, pixels(16), labels(16))
    return model


@pytest.fixture(scope="module")
def file(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the exported file of the trained model. No test changes it."""
    path: Path = tmp_path_factory.mktemp("exported") / "net.npz"
    trained.export(path)
    return path


@pytest.fixture(scope="module")
def program(file: Path) -> resfit.export.exported.ExportedModel:
    return resfit.load_exported(file)


def exported(model: resfit.Model, folder: Path, **arguments: Any) -> resfit.export.exported.ExportedModel:
    model.export(folder / "net.npz", **arguments)
    return resfit.load_exported(folder / "net.npz")


# --- predictions ------------------------------------------------------------------------------------------------------


def test_it_predicts_without_resfit_the_same_as_the_model_for_batches_of_any_size(trained: Any, tmp_path: Path) -> None:
    trained.export(tmp_path / "net.npz")
    expected = trained.predict(pixels(), verbose=0)
    for found, rows in zip(alone(tmp_path / "net.npz", pixels(), pixels()[:1]), (20, 1), strict=True):
        np.testing.assert_allclose(found, expected[:rows], rtol=1e-6, atol=1e-6)


def test_predictions_are_reproducible_bit_for_bit_and_equal_those_of_the_model_up_to_rounding(
    trained: Any, file: Path, program: Any
) -> None:
    assert_same(program(pixels()), resfit.load_exported(file)(pixels()))
    # Not bit for bit: jaxlib 0.10 drops the barriers of an exported program and fuses in another way.
    np.testing.assert_allclose(program(pixels()), trained.predict_on_batch(pixels()), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant",
    levels.only(
        ["SE, basic"],
        VARIANTS,
        slow=["D, bottleneck", "RS", "anti-aliased, D", "group norm", "v2, output stride 8", "space to depth"],
    ),
)
def test_every_variant_is_exported(variant: str, tmp_path: Path) -> None:
    model = resfit.Model(thin(variant))
    found = exported(model, tmp_path, input_shape=(64, 64, 3), input_dtype="float32")
    x = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
    np.testing.assert_allclose(found(x), model.predict_on_batch(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 3, 8, 9, 20])
def test_predict_returns_every_row_in_order_for_every_batch_size(rows: int, trained: Any, program: Any) -> None:
    expected = trained.predict(pixels(), verbose=0)[:rows]
    np.testing.assert_allclose(program.predict(pixels(rows), batch_size=BATCH), expected, rtol=1e-6, atol=1e-6)
    assert isinstance(program.predict(pixels(rows), batch_size=BATCH), np.ndarray)


@pytest.mark.representatives("raw-labels", "ema-probabilities")
@pytest.mark.parametrize("outputs", ["logits", "probabilities", "labels"])
@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_outputs_and_weights_equal_those_of_predict(outputs: str, weights: str, trained: Any, tmp_path: Path) -> None:
    found = exported(trained, tmp_path, outputs=outputs, weights=weights)
    expected = trained.predict(pixels(), verbose=0, outputs=outputs, weights=weights)
    np.testing.assert_allclose(found.predict(pixels()), expected, rtol=1e-6, atol=1e-6)
    assert found.predict(pixels()).dtype == expected.dtype
    assert (found.metadata["outputs"], found.metadata["weights_are"]) == (outputs, weights)


def test_raw_and_averaged_weights_differ(trained: Any) -> None:
    """The negative control of the test above."""
    raw, averaged = (trained.predict(pixels(), verbose=0, weights=weights) for weights in ("raw", "ema"))
    assert np.abs(raw - averaged).max() > 1e-3


def test_batch_norm_is_folded_on_request_and_the_file_is_smaller(
    trained: Any, file: Path, program: Any, tmp_path: Path
) -> None:
    before = values(trained.module)
    folded = exported(trained, tmp_path, fold_batch_norm=True)
    assert (tmp_path / "net.npz").stat().st_size < file.stat().st_size
    assert not [name for name in folded.metadata["weights"] if "norm" in name]
    np.testing.assert_allclose(folded.predict(pixels()), program.predict(pixels()), rtol=1e-5, atol=1e-5)
    assert_same(values(trained.module), before)


@pytest.mark.slow
def test_a_custom_module_is_exported_and_folded(tmp_path: Path) -> None:
    model = compiled(TinyNet(rngs=nnx.Rngs(0)))
    fit(model, images(16), labels(16))
    expected = model.predict(images(), verbose=0)
    for fold in (False, True):
        found = exported(model, tmp_path, fold_batch_norm=fold)
        np.testing.assert_allclose(found.predict(images()), expected, rtol=1e-5, atol=1e-5)
    assert exported(model, tmp_path, fold_batch_norm=True).metadata["module"] == "TinyNet"


@pytest.mark.slow
@pytest.mark.parametrize("fold", levels.only([False], [False, True]))
def test_a_model_in_bfloat16_is_exported_in_bfloat16(fold: bool, tmp_path: Path) -> None:
    model = compiled(small(), precision="bfloat16")
    if fold:  # there must be statistics to fold
        fit(model)
    else:
        model.predict(images(), verbose=0)
    found = exported(model, tmp_path, fold_batch_norm=fold)
    assert "bf16" in resfit_program(tmp_path / "net.npz").mlir_module()
    tolerance = 2e-2 if fold else 0  # the kernels are rounded after folding
    np.testing.assert_allclose(found(images()), model.predict_on_batch(images()), rtol=tolerance, atol=tolerance)


def resfit_program(path: Path) -> jax.export.Exported:
    with np.load(path) as file:
        return jax.export.deserialize(bytearray(file["program"]))


def test_bfloat16_weights_keep_their_bits(tmp_path: Path) -> None:
    model = resfit.Model(small(param_dtype="bfloat16", depths=(1,), widths=(4,)))
    expected = model.predict(images(), verbose=0)
    found = exported(model, tmp_path)
    np.testing.assert_allclose(found.predict(images()), expected, rtol=1e-6, atol=1e-6)
    with np.load(tmp_path / "net.npz") as file:
        kernel = file["weights/stem.conv.kernel"]
    np.testing.assert_array_equal(kernel.view(jnp.bfloat16), np.asarray(model.module.stem.conv.kernel[...]))


@pytest.mark.slow
def test_bfloat16_weights_are_read_without_resfit(tmp_path: Path) -> None:
    model = resfit.Model(small(param_dtype="bfloat16"))
    expected = model.predict(images(), verbose=0)
    model.export(tmp_path / "net.npz")
    np.testing.assert_allclose(alone(tmp_path / "net.npz", images())[0], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_a_model_trained_on_four_devices_runs_on_one(tmp_path: Path) -> None:
    assert jax.device_count() == 4
    model = compiled(small(), dispatch="sharded")
    fit(model)
    model.export(tmp_path / "net.npz")
    assert resfit_program(tmp_path / "net.npz").nr_devices == 1
    found = resfit.load_exported(tmp_path / "net.npz").predict(images())
    np.testing.assert_allclose(found, model.predict(images(), verbose=0), rtol=1e-6, atol=1e-6)


class TwoInputs(nnx.Module):
    """A network with two named inputs and two named outputs, one of them a scalar for each row."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.head = nnx.Linear(64 + 2, CLASSES, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        flat = x["image"].reshape(x["image"].shape[0], -1)
        return {"logits": self.head(jnp.concatenate([flat, x["extra"]], axis=1)), "total": flat.sum(axis=1)}


@pytest.mark.representatives("False")
@pytest.mark.parametrize("called", [False, True])
def test_several_inputs_and_outputs_keep_their_names(called: bool, tmp_path: Path) -> None:
    model = resfit.Model(TwoInputs(rngs=nnx.Rngs(0)))
    x = {"image": images(), "extra": np.ones((20, 2), np.float32)}
    arguments: Any = {} if called else {"input_shape": {"image": (8, 8, 1), "extra": (2,)}, "input_dtype": "float32"}
    if called:
        model.predict(x, verbose=0)
    found = exported(model, tmp_path, **arguments)
    predicted, expected = found.predict(x, batch_size=8), model.predict(x, verbose=0)
    assert predicted.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(predicted[name], expected[name], rtol=1e-5, atol=1e-5)
    with pytest.raises(DataError, match=r"structure PyTreeDef\(\*\)\. Expected .*'extra'.*exported"):
        found(images())
    with pytest.raises(DataError, match=r"The inputs have \[19, 20\] rows"):
        found(x | {"extra": x["extra"][1:]})


class Noisy(PlainNet):
    """A network that also draws random numbers in evaluation."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        super().__init__(rngs=rngs)
        self.rngs = rngs

    def __call__(self, x: jax.Array) -> jax.Array:
        return super().__call__(x) + jax.random.normal(self.rngs.default(), (CLASSES,))[None]


def test_random_numbers_in_evaluation_equal_those_of_predict(tmp_path: Path) -> None:
    model = compiled(Noisy(rngs=nnx.Rngs(0)), seed=3)
    expected = model.predict(images(), verbose=0)
    np.testing.assert_allclose(exported(model, tmp_path).predict(images()), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_a_loaded_model_is_exported_for_the_inputs_of_its_training(tmp_path: Path) -> None:
    model = compiled(small(depths=(1,), widths=(4,)))
    model.train_on_batch(pixels(8), labels(8))
    model.save(tmp_path / "net.safetensors")
    found = exported(resfit.load(tmp_path / "net.safetensors"), tmp_path, input_shape=(8, 8, 1))
    assert found.metadata["inputs"] == [{"name": "", "shape": [None, 8, 8, 1], "dtype": "uint8"}]
    np.testing.assert_allclose(found.predict(pixels()), model.predict(pixels(), verbose=0), rtol=1e-6, atol=1e-6)


# --- contents of the file ---------------------------------------------------------------------------------------------


def test_the_file_describes_its_contents_in_json_and_plain_arrays(trained: Any, tmp_path: Path) -> None:
    found = exported(trained, tmp_path, class_names=["one", "two", "drei ß"], platforms=["cpu", "tpu"])
    assert found.class_names == found.metadata["class_names"] == ["one", "two", "drei ß"]
    trained.class_names = ["a", "b", "c"]
    try:
        assert exported(trained, tmp_path).class_names == ["a", "b", "c"]
    finally:
        trained.class_names = None
    assert found.metadata["platforms"] == ["cpu", "tpu"]
    assert found.metadata["inputs"] == [{"name": "", "shape": [None, 8, 8, 1], "dtype": "uint8"}]
    assert found.metadata["versions"] == {"resfit": resfit.__version__, "jax": jax.__version__}
    assert found.metadata["preprocess"] == {"kind": "Normalize", "mean": [0.5], "std": [0.25]}
    with np.load(tmp_path / "net.npz", allow_pickle=False) as file:
        arrays = {name: file[f"weights/{name}"] for name in found.metadata["weights"]}
    assert_same(arrays, {name: values(trained.module)[name] for name in arrays})
    assert set(arrays) == {name for name in values(trained.module) if "rngs" not in name}


def test_exporting_the_same_model_again_gives_the_same_file(trained: Any, tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        trained.export(tmp_path / name)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_the_program_does_not_contain_weights(tmp_path: Path) -> None:
    """A network with four times the parameters has a program of the same size."""
    sizes = []
    for widths in ((16, 32), (32, 64)):
        model = resfit.Model(small(widths=widths))
        model.export(tmp_path / "net.npz", input_shape=(8, 8, 1), input_dtype="uint8")
        with zipfile.ZipFile(tmp_path / "net.npz") as file:
            sizes.append(file.getinfo("program").file_size)
    assert abs(sizes[0] - sizes[1]) < 0.05 * sizes[0] < 5_000


# --- wrong inputs and models ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "error", "said"),
    [
        (
            np.zeros((2, 9, 8, 1), np.uint8),
            InputShapeError,
            r"shape \(2, 9, 8, 1\)\. Expected \(batch, 8, 8, 1\),.* Resize",
        ),
        (np.zeros((2, 8, 8, 3), np.uint8), InputShapeError, "was exported"),
        (np.zeros((8, 8, 1), np.uint8), InputShapeError, r"Add the batch axis: x\[None\]"),
        (np.zeros((2, 8, 8, 1), np.float32), DataError, r"dtype float32\. Expected uint8.*input_dtype='float32'"),
        (np.zeros((2, 8, 8, 1), np.int64), DataError, "dtype int64"),
        (np.zeros((0, 8, 8, 1), np.uint8), DataError, r"\[0\] rows"),
        (5, InputShapeError, r"shape \(\)"),
    ],
)
def test_images_of_another_format_than_exported_raise(x: Any, error: type[Exception], said: str, program: Any) -> None:
    for call in (program, program.predict):
        with pytest.raises(error, match=said):
            call(x)


def test_floats_of_another_width_are_converted_and_integers_raise(tmp_path: Path) -> None:
    found = exported(resfit.Model(small()), tmp_path, input_shape=(8, 8, 1), input_dtype="float32")
    np.testing.assert_array_equal(found(images().astype(np.float64)), found(images()))
    with pytest.raises(DataError, match="uint8"):
        found(pixels())


@pytest.mark.parametrize("batch_size", [0, -1, True, 2.0])
def test_an_invalid_batch_size_raises(batch_size: Any, program: Any) -> None:
    with pytest.raises(DataError, match=r"Expected batch_size to be a positive integer"):
        program.predict(pixels(), batch_size=batch_size)


class AsksForTheBatch(PlainNet):
    def __call__(self, x: jax.Array) -> jax.Array:
        return super().__call__(x) if x.shape[0] > 4 else super().__call__(x) * 2


class SumsOverTheBatch(PlainNet):
    def __call__(self, x: jax.Array) -> jax.Array:
        return super().__call__(x).sum(axis=0)


class Uncalled(nnx.Module):
    def __init__(self) -> None:
        self.w = nnx.Param(jnp.ones(3))


class OwnStep(resfit.Model):
    def compute_loss(self, module: Any, x: Any, y: Any, *, key: jax.Array, train: bool) -> Any:
        return (module.w[...].sum() * x).sum(axis=1), x


@pytest.mark.parametrize(
    ("model", "arguments", "error", "said"),
    [
        (lambda: resfit.Model(small()), {}, ExportError, r"no input_shape, and this model has not been called yet"),
        (lambda: resfit.Model(small()), {"input_shape": (8, 8, 1)}, ExportError, "no input_dtype.*or 'float32'"),
        (lambda: resfit.Model(small()), {"input_shape": (8, 8.5, 1)}, ExportError, r"input_shape=\(8, 8\.5, 1\)"),
        (lambda: resfit.Model(small()), {"input_shape": (-1, 8, 1)}, ExportError, r"input_shape=\(-1, 8, 1\)"),
        (
            lambda: resfit.Model(small()), {"input_shape": (8, 8, 1), "input_dtype": "pixels"}, ExportError,
            "input_dtype='pixels'",
        ),
        (lambda: compiled(small(), preprocess=None), {"input_shape": (8, 8, 3)}, InputShapeError, "Expected 1"),
        (
            lambda: compiled(AsksForTheBatch(rngs=nnx.Rngs(0)), preprocess=None), {"input_shape": (8, 8, 1)},
            ExportError,
            r"AsksForTheBatch depends on the batch size.*Remove the code that depends on x\.shape\[0\]",
        ),
        (
            lambda: compiled(SumsOverTheBatch(rngs=nnx.Rngs(0)), preprocess=None), {"input_shape": (8, 8, 1)},
            ExportError, r"returns the shapes \[\(3,\)\]\. Expected one output per row",
        ),
        (lambda: OwnStep(Uncalled()), {"input_shape": (3,), "input_dtype": "float32"}, ExportError, "no __call__"),
        (
            lambda: compiled(PlainNet(rngs=nnx.Rngs(0)), preprocess=None),
            {"input_shape": (8, 8, 1), "fold_batch_norm": True}, ModuleError, "nothing to fold",
        ),
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_exported_raises_with_the_reason(
    model: Any, arguments: Any, error: type[Exception], said: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=said):
        model().export(tmp_path / "net.npz", **arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "arguments", "error", "said"),
    [
        ("net.pb", {}, ExportError, r"the path 'net\.pb'. Expected one that ends in '\.npz' or '\.onnx'"),
        ("net.npz", {"opset": 17}, ExportError, "opset=17 and dynamic_batch=True with the path"),
        ("net.onnx", {"platforms": ["cuda"]}, ExportError, r"platforms=\['cuda'\] with the path 'net\.onnx'"),
        ("net.npz", {"dynamic_batch": False}, ExportError, "ends in '.onnx' only"),
        ("gone/net.npz", {}, FileNotFoundError, "The folder 'gone' of net.npz does not exist"),
        ("net.npz", {"outputs": "softmax"}, ExportError, "outputs='softmax'"),
        ("net.npz", {"weights": "best"}, CompileError, "weights to be 'raw' or 'ema'"),
        ("net.npz", {"class_names": ["a", "b"]}, ExportError, "one text for each of the 3 classes"),
        ("net.npz", {"class_names": "abc"}, ExportError, "one text for each of the 3 classes"),
        (
            "net.npz",
            {"platforms": ["cpu", "gpu"]},
            ExportError,
            r"platforms=\['cpu', 'gpu'\]\. Expected a list of some of \['cpu', 'cu",
        ),
        ("net.npz", {"platforms": "cpu"}, ExportError, "a list of"),
        ("net.npz", {"platforms": []}, ExportError, "a list of"),
    ],
)
def test_invalid_arguments_raise(path: str, arguments: Any, error: type[Exception], said: str, trained: Any) -> None:
    with pytest.raises(error, match=said):
        trained.export(path, **arguments)


# --- invalid files ----------------------------------------------------------------------------------------------------


def rewritten(source: Path, target: Path, members: dict[str, bytes | None], kind: int = zipfile.ZIP_STORED) -> Path:
    """Copy a file with the given members replaced, or removed if they are None."""
    with zipfile.ZipFile(source) as file, zipfile.ZipFile(target, "w", kind) as new:
        for name in file.namelist():
            content = members.get(name, file.read(name))
            if content is not None:
                new.writestr(name, content)
    return target


def changed(source: Path, change: dict[str, Any]) -> dict[str, bytes | None]:
    with zipfile.ZipFile(source) as file:
        metadata = json.loads(file.read("metadata.json"))
    return {"metadata.json": json.dumps({k: v for k, v in (metadata | change).items() if v is not ...}).encode()}


@pytest.mark.parametrize(
    ("members", "said"),
    [
        (
            {"format_version": 2, "versions": {"resfit": "9.9"}},
            r"version 2, written by .*9\.9.* up to version 1\. Upgrade",
        ),
        ({"format": "other"}, "format 'other'"),
        ({"weights": ...}, r"lacks \['weights'\]"),
        ({"weights": ["head.dense.bias"]}, "its weights do not fit its program"),
        ({"weights": ["nothing"]}, "damaged: .*nothing"),
        ({"metadata.json": None}, r"its metadata\.json is invalid"),
        ({"metadata.json": b"[]"}, r"its metadata\.json is invalid"),
        ({"metadata.json": b"{"}, r"its metadata\.json is invalid"),
        ({"program": None}, "damaged: .*program"),
    ],
)
def test_an_invalid_file_or_a_later_version_raises(members: Any, said: str, file: Path, tmp_path: Path) -> None:
    if not {"metadata.json", "program"} & set(members):
        members = changed(file, members)
    with pytest.raises(SavedModelError, match=said):
        resfit.load_exported(rewritten(file, tmp_path / "other.npz", members))


def test_compressed_and_foreign_files_raise(trained: Any, file: Path, tmp_path: Path) -> None:
    with pytest.raises(SavedModelError, match="compressed parts"):
        resfit.load_exported(rewritten(file, tmp_path / "a.npz", {}, zipfile.ZIP_DEFLATED))
    content = bytearray(file.read_bytes())
    content[len(content) // 4] ^= 1
    (tmp_path / "b.npz").write_bytes(content)
    with pytest.raises(SavedModelError, match="CRC"):
        resfit.load_exported(tmp_path / "b.npz")
    trained.save(tmp_path / "net.safetensors")
    with pytest.raises(SavedModelError, match=r"For a file of Model\.save use resfit\.load"):
        resfit.load_exported(tmp_path / "net.safetensors")
    with pytest.raises(FileNotFoundError, match=r"There is no file .*gone\.npz"):
        resfit.load_exported(tmp_path / "gone.npz")


def test_additions_of_later_versions_are_ignored(file: Path, program: Any, tmp_path: Path) -> None:
    more = rewritten(file, tmp_path / "b.npz", changed(file, {"author": "somebody"}))
    assert_same(resfit.load_exported(more).predict(pixels()), program.predict(pixels()))


def test_exporting_does_not_change_the_model(trained: Any, tmp_path: Path) -> None:
    before, predicted = values(trained.module), trained.predict(pixels(), verbose=0)
    for arguments in ({}, {"fold_batch_norm": True}, {"weights": "ema"}):
        trained.export(tmp_path / "net.npz", **arguments)
    assert_same(values(trained.module), before)
    assert_same(trained.predict(pixels(), verbose=0), predicted)
