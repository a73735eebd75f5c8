"""`~` is the home folder in every path argument of a public function."""

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx
from PIL import Image

import resfit
from resfit import callbacks as cb
from resfit._utils import paths
from tests.helpers import PlainNet, compiled, fit, images, labels


def net() -> Any:
    return resfit.create_model("resnet20", num_classes=10, depths=(1,), widths=(4,))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create a home folder that is not the working folder. Its braces are not fields of a template."""
    for name in ("{home}", "work"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "{home}"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "{home}"


def trained(*callbacks: Any) -> Any:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)))
    fit(model, epochs=1, callbacks=list(callbacks))
    return model


def says(home: Path, name: str, function: Callable[[], Any]) -> None:
    """Check that the error of a function names the path in the home folder. Reading a real file would take long."""
    with pytest.raises(resfit.errors.DataError, match=re.escape(str(home / name))):
        function()


def write_files(home: Path) -> None:
    model = trained(
        cb.Checkpoint("~/run"),
        cb.ModelCheckpoint("~/best/{epoch}.safetensors"),
        cb.CSVLogger("~/log.csv"),
        cb.JSONLogger("~/log.jsonl"),
        cb.TensorBoard("~/tb"),
        cb.Profiler("~/trace", start=0, stop=1),
    )
    model.save("~/model.safetensors")
    model.export("~/model.npz")
    resfit.weights.save(net(), "~/weights.safetensors")
    search = resfit.search(
        lambda seed: PlainNet(rngs=nnx.Rngs(seed)),
        {"seed": [0]},
        (images(), labels()),
        monitor="loss",
        folder="~/search",
    )
    search.to_csv("~/search.csv")
    written = (
        "search/search.json", "search.csv", "run/0", "best/1.safetensors", "log.csv", "log.jsonl", "tb/train", "trace",
        "model.safetensors", "model.npz", "weights.safetensors",
    )  # fmt: skip
    assert [name for name in written if not (home / name).exists()] == []


def test_relative_paths_are_relative_to_the_folder_where_a_callback_was_created(home: Path) -> None:
    """Also if the process changes its folder while it trains: a user file of the same name is not overwritten."""

    def leave(*_: Any) -> None:
        (Path.cwd() / "other" / "models").mkdir(parents=True)
        monkeypatch.chdir(Path.cwd() / "other")
        for name in ("log.csv", "log.jsonl", "models/1.safetensors"):
            Path(name).write_text("mine")

    here = Path.cwd()
    made = [
        cb.CSVLogger("log.csv"),
        cb.JSONLogger("log.jsonl"),
        cb.ModelCheckpoint("models/{epoch}.safetensors", keep=1),
    ]
    with pytest.MonkeyPatch.context() as monkeypatch:
        fit(compiled(PlainNet(rngs=nnx.Rngs(0))), epochs=2, callbacks=[*made, cb.LambdaCallback(on_epoch_end=leave)])
        assert {path.read_text() for path in here.rglob("other/**/*.*")} == {"mine"}
    assert len((here / "log.csv").read_text().splitlines()) == 3
    assert len((here / "log.jsonl").read_text().splitlines()) == 2
    assert [path.name for path in (here / "models").iterdir()] == ["2.safetensors"]


def read_files(home: Path) -> None:
    resfit.Model(net()).save("~/model.safetensors")
    resfit.load("~/model.safetensors").save_weights("~/other.safetensors")
    resfit.load_model("~/other.safetensors").load_weights("~/model.safetensors")
    resfit.Ensemble(lambda _: net(), 1).save("~/members")
    assert len(resfit.Ensemble.load("~/members").members) == 1
    resfit.weights.save(net(), "~/weights.safetensors")
    resfit.weights.load(net(), "~/weights.safetensors")
    resfit.weights.average(["~/weights.safetensors"])
    resfit.create_model("resnet20", depths=(1,), widths=(4,), weights="~/weights.safetensors")
    assert "fc.weight" in resfit.weights.read("~/weights.safetensors")
    with pytest.raises(FileNotFoundError, match=re.escape(str(home / "none.npz"))):
        resfit.load_exported("~/none.npz")
    (home / "photos" / "cat").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(home / "photos" / "cat" / "1.png")
    assert len(resfit.data.folder("~/photos")) == 1
    assert resfit.data.files(["~/photos/cat/1.png"], [0]).take(slice(0, 1))[0].shape == (1, 8, 8, 3)
    photograph = resfit.transforms.Transforms(resize=8, crop=8)("~/photos/cat/1.png")
    assert np.asarray(photograph).shape == (8, 8, 3)
    model = resfit.Model(net())
    model.transforms = resfit.transforms.FolderTransforms(size=8)
    assert list(model.predict_images("~/photos", top=1)) == [str(home / "photos" / "cat" / "1.png")]
    assert len(model.predict_images("~/photos/cat/1.png", top=1)) == 1
    says(home, "mnist", lambda: resfit.data.load("mnist", path="~/mnist"))


def read_tfds(home: Path) -> None:
    pytest.importorskip("tensorflow_datasets")
    says(home, "sets", lambda: resfit.data.tfds("no_such", "train", data_dir="~/sets"))
    says(home, "mnist", lambda: resfit.data.prepare_tfds("mnist", data_dir="~/sets", path="~/mnist"))


TRIED = {
    "callbacks.Checkpoint", "callbacks.ModelCheckpoint", "callbacks.CSVLogger", "callbacks.JSONLogger",
    "callbacks.TensorBoard", "callbacks.Profiler", "Model.save", "Model.save_weights", "Model.export", "Model.load",
    "Model.load_weights", "load", "load_model", "load_exported", "weights.save", "weights.load", "weights.read",
    "Ensemble.save", "Ensemble.load", "create_model", "data.files", "data.folder", "data.load", "data.tfds",
    "data.prepare_tfds", "search",
}  # fmt: skip


@pytest.mark.representatives("read_files")
@pytest.mark.parametrize("use", [write_files, read_files, read_tfds], ids=lambda use: use.__name__)
def test_a_tilde_is_the_home_folder(use: Callable[[Path], None], home: Path) -> None:
    use(home)
    assert list(Path.cwd().iterdir()) == []


def takes_path(function: Any) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    return any("Path" in str(parameter.annotation) for parameter in parameters)


def with_paths() -> Iterator[str]:
    for line in (Path(__file__).parents[1] / "public_names.txt").read_text().split():
        name = line.removeprefix("resfit.")
        found: Any = resfit
        for part in name.split(".") if line != "resfit" else ():
            found = getattr(found, part, None)
        if takes_path(found):
            yield name
        if inspect.isclass(found):
            inherited = {method for base in found.__bases__ if base.__name__ in resfit.__all__ for method in dir(base)}
            methods = {method for method in dir(found) if not method.startswith("_")} - (inherited - set(vars(found)))
            yield from (f"{name}.{method}" for method in sorted(methods) if takes_path(getattr(found, method)))


def test_every_public_function_with_a_path_argument_is_tested() -> None:
    assert set(with_paths()) == TRIED


def test_caches_are_in_the_home_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert paths.cache_folder() == home / ".cache" / "resfit"
    monkeypatch.setenv("XDG_CACHE_HOME", "~/elsewhere")
    assert paths.cache_folder() == home / "elsewhere" / "resfit"


def test_all_paths_of_the_library_expand_the_home_folder() -> None:
    """Other code that reads XDG_CACHE_HOME or the home folder would not expand it."""
    package = Path(resfit.__file__).parent
    others = [path for path in package.rglob("*.py") if path.name != "paths.py"]
    assert [path.name for path in others if "Path.home()" in path.read_text() or "expanduser" in path.read_text()] == []


@pytest.mark.parametrize("path", ["a/~/b", "~nobody-of-this-name.safetensors", "über {x} y", r"C:\\models\\m"])
def test_other_paths_do_not_change(path: str) -> None:
    assert paths.expand_user(path) == path
    assert paths.expand_user(Path(path)) == path


def test_bytes_and_an_unknown_home_folder_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match="Expected a path as str"):
        paths.expand_user(b"m.safetensors")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got None"):
        resfit.callbacks.Checkpoint(None)  # type: ignore[arg-type]
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    with pytest.raises(FileNotFoundError, match="Set HOME"):
        paths.expand_user("~/run")


WRITE = {
    "save": lambda path: compiled(PlainNet(rngs=nnx.Rngs(0))).save(path / "a.safetensors"),
    "save_weights": lambda path: compiled(PlainNet(rngs=nnx.Rngs(0))).save_weights(path / "a.safetensors"),
    "export": lambda path: trained().export(path / "a.npz"),
    "weights.save": lambda path: resfit.weights.save(net(), path / "a.safetensors"),
    "ModelCheckpoint": lambda path: trained(cb.ModelCheckpoint(path / "a.safetensors")),
    "CSVLogger": lambda path: cb.CSVLogger(path / "a.csv", append=True),
    "JSONLogger": lambda path: cb.JSONLogger(path / "a.jsonl", append=True),
}
READ = {
    "load": lambda path: resfit.load(path / "a.safetensors"),
    "load_weights": lambda path: compiled(PlainNet(rngs=nnx.Rngs(0))).load_weights(path / "a.safetensors"),
    "load_exported": lambda path: resfit.load_exported(path / "a.npz"),
    "load_exported, ONNX": lambda path: resfit.load_exported(path / "a.onnx"),
    "weights.load": lambda path: resfit.weights.load(net(), path / "a.safetensors"),
    **{f"weights.read, {end}": lambda path, end=end: resfit.weights.read(path / f"a.{end}")
       for end in ("safetensors", "pth", "npz", "h5", "keras", "msgpack")},
}  # fmt: skip


@pytest.mark.representatives("save", "CSVLogger", "JSONLogger", *READ)
@pytest.mark.parametrize("use", [*WRITE, *READ])
def test_a_folder_in_place_of_a_file_raises_and_stays(use: str, tmp_path: Path) -> None:
    for end in ("safetensors", "npz", "onnx", "csv", "jsonl", "pth", "h5", "keras", "msgpack"):
        (tmp_path / f"a.{end}").mkdir()
    errors = (IsADirectoryError, FileNotFoundError, resfit.errors.SavedModelError)
    with pytest.raises(errors, match=r"a\.\w+'? is a folder.* Expected .* file"):
        (WRITE | READ)[use](tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {path.suffix for path in tmp_path.rglob("*")}
    assert len(list(tmp_path.iterdir())) == 9


@pytest.mark.parametrize("logger", [cb.TensorBoard, cb.Profiler])
def test_a_file_in_place_of_a_folder_raises_and_stays(logger: Any, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("mine")
    with pytest.raises(NotADirectoryError, match=r"runs' is a file\. Expected the path of a folder"):
        logger(tmp_path / "runs")
    assert (tmp_path / "runs").read_text() == "mine"
