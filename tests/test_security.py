"""Loading a file never executes code or unpacks files, and no name leads out of its folder."""

import ast
import gzip
import io
import json
import pickle
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx

import resfit
from resfit.callbacks import ModelCheckpoint
from resfit.data.datasets.archives import cifar, idx
from resfit.data.datasets.archives.urls import CIFAR_ARCHIVES
from resfit.errors import CallbackError, DataError
from resfit.trainer.checkpoint.packing import pack, unpack
from resfit.trainer.checkpoint.store import CheckpointStore
from tests.faults import runs
from tests.golden import files
from tests.helpers import PlainNet, assert_same, compiled, fit, images, labels

ROOT = Path(__file__).parents[1]
_ONE_MEMBER = CIFAR_ARCHIVES["cifar10"]._replace(parts={"train": ["part.bin"]})


# --- no execution ------------------------------------------------------------------------------------------------

_heard: list[str] | None = None


def _listen(event: str, arguments: tuple[Any, ...]) -> None:
    if _heard is None:
        return
    if event == "pickle.find_class":
        _heard.append(f"unpickled {arguments}")
    elif event == "compile" and arguments[1] in ("<string>", b"<string>"):
        _heard.append(f"compiled {arguments[0]!r:.200}")
    elif event in ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "marshal.loads"):
        _heard.append(f"{event} {arguments!r:.200}")


sys.addaudithook(_listen)  # an audit hook cannot be removed; it does nothing outside the block below


@contextmanager
def nothing_executed() -> Iterator[None]:
    """Require that the block unpickles, compiles from text and starts nothing, by the audit events."""
    global _heard
    _heard = []
    try:
        yield
        assert _heard == []
    finally:
        _heard = None


def resume(folder: Path) -> None:
    made = compiled(PlainNet(rngs=nnx.Rngs(0)), optimizer="adamw", learning_rate=0.01)
    runs.run(made, folder, every=1, epochs=1, resume=True)


def load_weights(folder: Path) -> None:
    net = resfit.create_model("resnet20", num_classes=3, depths=(1,), widths=(4,))
    resfit.weights.load_state_dict(net, resfit.weights.state_dict(net))


def load_weight_files(folder: Path) -> None:
    net = resfit.create_model("resnet20", num_classes=3, depths=(1,), widths=(4,))
    for name in ("state.pth", "state_old.pth", "checkpoint.pth", "checkpoint_old.pth"):
        resfit.weights.load(net, ROOT / "tests" / "golden" / "torch_files" / name)
    resfit.weights.save(net, folder / "a.safetensors")
    resfit.weights.load(net, folder / "a.safetensors")


def read_archive(folder: Path) -> None:
    cifar.read(archive(folder / "a.tar.gz", {"part.bin": bytes(3073)}), _ONE_MEMBER)


LOADS: dict[str, Callable[[Path], Any]] = {
    "a model": lambda folder: resfit.load(files.MODELS / "net_that_normalizes.safetensors"),
    "a checkpoint": lambda folder: CheckpointStore(files.CHECKPOINTS, writes=False).newest(),
    "a run": resume,
    "weights": load_weights,
    "files of weights": load_weight_files,
    "an archive": read_archive,
    "an exported model": lambda folder: resfit.load_exported(files.EXPORTS / "net_that_normalizes.npz"),
    "digits": lambda folder: resfit.data.load("digits"),
}


@pytest.mark.parametrize("what", LOADS)
def test_loading_a_file_executes_nothing(what: str, tmp_path: Path) -> None:
    LOADS[what](tmp_path)  # imports what it needs, and compiles the step
    with nothing_executed():
        LOADS[what](tmp_path)


@pytest.mark.parametrize(
    "execute", [lambda: pickle.loads(pickle.dumps(Path())), lambda: eval("1 + 1"), lambda: exec("a = 1")]
)
def test_executed_code_is_detected(execute: Callable[[], Any]) -> None:
    with pytest.raises(AssertionError, match=r"unpickled|compiled"), nothing_executed():
        execute()


FORBIDDEN_MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml", "jsonpickle"}
FORBIDDEN_CALLS = {
    "eval", "exec", "compile", "__import__", "torch.load", "os.system", "os.popen", "pandas.read_pickle",
}  # fmt: skip
FORBIDDEN_METHODS = {"extractall", "extract", "unpack_archive"}


def dangers(source: str) -> list[str]:
    """Return the calls that could execute something, or write to a path from an archive."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FORBIDDEN_MODULES:
            found.append(str(node.module))
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            allows = any(
                keyword.arg in ("allow_pickle", "shell", "trust_remote_code")
                and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False)
                for keyword in node.keywords
            )
            if name in FORBIDDEN_CALLS or name.rpartition(".")[2] in FORBIDDEN_METHODS or allows:
                found.append(name)
    return found


# They make the pickles of `copy.deepcopy(model)` and `pickle.dumps(model)`, and read none from a file.
ALLOWED = {"resfit/_utils/pickling.py", "resfit/errors.py"}


def test_no_source_contains_calls_that_could_execute_or_unpack() -> None:
    sources = [*(ROOT / "resfit").rglob("*.py"), *(ROOT / "recipes").rglob("*.py")]
    assert len(sources) > 100
    found = {str(path.relative_to(ROOT)): dangers(path.read_text()) for path in sources}
    assert {path: calls for path, calls in found.items() if calls} == {path: ["pickle"] for path in ALLOWED}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from joblib import load", "eval(x)", "np.load(p, allow_pickle=True)", "torch.load(p)",
        "tar.extractall(p)", "shutil.unpack_archive(p)", "subprocess.run(x, shell=True)", "import yaml",
    ],
)  # fmt: skip
def test_a_dangerous_call_is_found(source: str) -> None:
    assert dangers(source) != []


# --- malicious files ----------------------------------------------------------------------------------------------


class Payload:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("executed"),))


@pytest.mark.parametrize("name", ["net.safetensors", "net.pt", "net.npz"])
def test_a_pickle_with_any_name_raises_and_is_not_opened(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(pickle.dumps(Payload()))
    with nothing_executed(), pytest.raises((ValueError, OSError)):
        resfit.load(path)
    assert not Path("executed").exists()


def test_objects_instead_of_weights_raise(tmp_path: Path) -> None:
    net = resfit.create_model("resnet20", num_classes=3, depths=(1,), widths=(4,))
    state = resfit.weights.state_dict(net)
    name = next(iter(state))
    with pytest.raises((ValueError, TypeError)):
        resfit.weights.load_state_dict(net, {**state, name: np.full(np.shape(state[name]), Payload(), object)})


@pytest.mark.parametrize(
    "entry",
    [
        ("object", [1], 0),
        ("V8,O", [1], 0),
        ("uint8", [4], -4),
        ("uint8", [-1], 0),
        ("float32", [3], 0),
        ("uint8", [1], 8),
    ],
)
def test_the_index_of_a_checkpoint_only_reaches_its_own_bytes(entry: Any) -> None:
    """NumPy would use any eight bytes as a pointer."""
    content, _ = pack({"a": np.arange(8, dtype=np.uint8)})
    with pytest.raises((ValueError, TypeError)):
        unpack(content, {"a": entry})


def test_a_checkpoint_whose_index_asks_for_objects_is_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = CheckpointStore(tmp_path)
    checkpoints.save(0, files.saved())
    checkpoints.save(1, files.saved())
    checkpoints.wait()
    path = tmp_path / "1" / "facts.json"
    content = json.loads(path.read_bytes())
    del content["checksum"]
    content["arrays"]["state/0"][0] = "object"
    from resfit.trainer.checkpoint import disk_format  # an attacker with write access can also update the checksum

    checksum = disk_format.checksum(disk_format.to_bytes(content))
    path.write_bytes(disk_format.to_bytes({**content, "checksum": checksum}))
    newest = checkpoints.newest()
    checkpoints.close()
    assert newest is not None
    assert newest[0] == 0
    assert_same(newest[1].arrays, files.saved().arrays)
    assert "There is no object of shape" in caplog.text


def archive(path: Path, members: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
    return path


@pytest.mark.parametrize("name", ["../outside.bin", "/tmp/outside.bin", "a/../../outside.bin", "C:\\outside.bin"])
def test_an_archive_writes_no_files(name: str, tmp_path: Path) -> None:
    inside = tmp_path / "folder"
    inside.mkdir()
    path = archive(inside / "a.tar.gz", {name: b"x", "part.bin": bytes(3073)})
    before = sorted(tmp_path.rglob("*"))
    found = cifar.read(path, _ONE_MEMBER)
    assert found["train"][0].shape == (1, 32, 32, 3)
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/tmp/outside.bin").exists()


def test_a_link_in_an_archive_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(3073))
    path = archive(tmp_path / "a.tar.gz", {}, {"part.bin": str(tmp_path / "secret")})
    with pytest.raises(DataError, match=r"does not contain part\.bin"):
        cifar.read(path, _ONE_MEMBER)


def test_content_that_does_not_fit_into_memory_raises_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cifar, "_LARGEST", 10_000)
    with pytest.raises(DataError, match=r"part\.bin with 30730 bytes\. Expected at most 10000"):
        cifar.read(archive(tmp_path / "a.tar.gz", {"part.bin": bytes(30_730)}), _ONE_MEMBER)
    monkeypatch.setattr(idx, "_LARGEST", 10_000)
    bomb = tmp_path / "images.gz"
    bomb.write_bytes(gzip.compress(b"\0\0\x08\x01" + (10**9).to_bytes(4) + bytes(1_000_000)))
    with pytest.raises(DataError, match="more than 10000 bytes"):
        idx.read(bomb)


def test_a_header_whose_sizes_overflow_counts_as_damaged(tmp_path: Path) -> None:
    path = tmp_path / "images"
    path.write_bytes(b"\0\0\x08\x04" + (2**16).to_bytes(4) * 4)  # 2**64 bytes, which overflow to 0 in 64 bits
    with pytest.raises(DataError, match="says 65536 x 65536 x 65536 x 65536 bytes; the file has 0"):
        idx.read(path)


# --- names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "template",
    [
        "{epoch.__class__}",
        "{epoch.real}",
        "{val_loss[0]}",
        "{0}",
        "{}",
        "{epoch:{val_loss.__class__}}",
        "{epoch:{batch}}",
    ],
)
def test_a_file_name_template_accepts_plain_names_only(template: str) -> None:
    with pytest.raises(CallbackError, match=r"Expected \{name\} or \{name:format\} in filepath"):
        ModelCheckpoint(f"runs/{template}.safetensors")


def test_a_text_value_in_a_file_name_raises(tmp_path: Path) -> None:
    class Says(resfit.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            logs["where"] = "../../outside"

    with pytest.raises(CallbackError, match=r"uses 'where', which is '\.\./\.\./outside'\. Expected a number"):
        fit(
            compiled(PlainNet(rngs=nnx.Rngs(0))), images(), labels(),
            callbacks=[Says(), ModelCheckpoint(str(tmp_path / "a" / "{where}.safetensors"))],
        )  # fmt: skip
    assert [path.name for path in tmp_path.rglob("*.safetensors")] == []


def test_a_checkpoint_does_not_make_model_checkpoint_delete_other_files(tmp_path: Path) -> None:
    """The checkpoint of the run contains the list of files, and old files in the list are deleted."""
    callback = ModelCheckpoint(tmp_path / "runs" / "{epoch:02d}-{val_loss:.2f}.safetensors", keep=1)
    mine = str(tmp_path / "runs" / "01-0.50.safetensors")
    others = [
        str(tmp_path / "thesis.txt"),
        str(tmp_path / "runs" / ".." / "01-0.50.safetensors"),
        str(tmp_path / "runs" / "01-0.5" / ".." / "x.safetensors"),
        mine + ".txt",
    ]
    state = {"best": None, "steps": 0, "kept": [[None, path] for path in [*others, mine]]}
    callback.load_state_dict(state)
    assert callback.state_dict()["kept"] == [[None, mine]]
