"""Every reader of files: valid ones are read whatever they begin with, and damaged ones raise an error of resfit."""

import functools
import gzip
import io
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

import resfit
from resfit import weights
from resfit.data.datasets.archives import cifar, idx
from resfit.data.datasets.archives.urls import CIFAR_ARCHIVES
from resfit.data.decode import decode
from resfit.errors import ResfitError, WeightsError
from resfit.weights import torch_files
from tests.data.originals import python2_pickle
from tests.helpers import TinyNet
from tests.packages import package
from tests.weights import fuzz

GOLDEN = Path(__file__).parent / "golden"
ARRAYS = {"a": np.arange(12, dtype="f4").reshape(3, 4)}


# --- safetensors of every header length ----------------------------------------------------------------------------


def with_header_of(residue: int) -> bytes:
    """Return a file whose header has a length of `residue` modulo 256, padded with spaces as by safetensors."""
    content = safetensors.numpy.save(ARRAYS, metadata={"format": "pt"})
    length = int.from_bytes(content[:8], "little")
    longer = length + (residue - length) % 256
    return longer.to_bytes(8, "little") + content[8 : 8 + length].ljust(longer) + content[8 + length :]


def test_safetensors_are_read_whatever_the_length_of_their_header(tmp_path: Path) -> None:
    for residue in range(256):
        content = with_header_of(residue)
        assert content[0] == residue
        (tmp_path / "a.bin").write_bytes(content)
        np.testing.assert_array_equal(weights.read(tmp_path / "a.bin")["a"], ARRAYS["a"], err_msg=str(residue))


def test_safetensors_that_the_library_pads_itself_are_read(tmp_path: Path) -> None:
    """It aligns headers to 8 bytes, so these are all the lengths that it writes."""
    seen = set()
    for letters in range(0, 256, 8):
        content = safetensors.numpy.save(ARRAYS, metadata={"format": "pt", "note": "x" * letters})
        seen.add(content[0])
        (tmp_path / "a.safetensors").write_bytes(content)
        np.testing.assert_array_equal(weights.read(tmp_path / "a.safetensors")["a"], ARRAYS["a"])
    assert seen == set(range(0, 256, 8))


@pytest.mark.parametrize("begin", [b"PK\x03\x04", b"\x80\x02\0\0", b"\x89HD\0"])
def test_a_header_length_that_spells_the_signature_of_another_format_is_a_length(begin: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(begin + b"\0\0\0\0{")
    with pytest.raises(WeightsError, match="damaged safetensors"):
        weights.read(tmp_path / "a.bin")


@pytest.mark.parametrize("name", ["state.pth", "state_old.pth", "views_old.pth"])
def test_no_file_of_pytorch_is_taken_for_safetensors(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A negative control: the readers of PyTorch's files are reached."""
    monkeypatch.setattr(torch_files, "read_old", lambda *_, **__: {"old": 1})
    monkeypatch.setattr(torch_files, "read_zip", lambda *_, **__: {"zip": 1})
    assert set(weights.read(GOLDEN / "torch_files" / name)) == {"old" if "old" in name else "zip"}


# --- damage ----------------------------------------------------------------------------------------------------------

_IDX = b"\0\0\x08\x02" + (3).to_bytes(4) + (4).to_bytes(4) + bytes(12)


def archive() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name in ("a", "b"):
            member = tarfile.TarInfo(name)
            member.size = 3073
            tar.addfile(member, io.BytesIO(bytes(member.size)))
    return stream.getvalue()


_TWO_MEMBERS = CIFAR_ARCHIVES["cifar10"]._replace(parts={"train": ["a"], "test": ["b"]})


def read_batch(path: Path) -> Any:
    """Read one file of the unpacked Python archive of CIFAR."""
    return cifar.read(path.parent, _TWO_MEMBERS._replace(parts={}, pickled={"train": [path.name]}))


def picture(form: str) -> bytes:
    image = pytest.importorskip("PIL.Image", reason="needs the package pillow")
    stream = io.BytesIO()
    image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(stream, form)
    return stream.getvalue()


@functools.cache
def network() -> TinyNet:
    return TinyNet(rngs=nnx.Rngs(0))


def golden(name: str) -> Callable[[], bytes]:
    return (GOLDEN / name).read_bytes


# name of the file -> its reader, and a valid one
READERS: dict[str, tuple[Callable[[Path], Any], Callable[[], bytes]]] = {
    "weights.safetensors": (weights.read, lambda: safetensors.numpy.save(ARRAYS)),
    "weights.pth": (weights.read, golden("torch_files/state.pth")),
    "weights_old.pth": (weights.read, golden("torch_files/state_old.pth")),
    "model.safetensors": (
        lambda path: resfit.load(path, module=network()),
        golden("models/module_of_ones_own.safetensors"),
    ),
    "model.npz": (resfit.load_exported, golden("exported/module_of_ones_own.npz")),
    "images.idx": (idx.read, lambda: _IDX),
    "images.idx.gz": (idx.read, lambda: gzip.compress(_IDX)),
    "cifar.tar.gz": (lambda path: cifar.read(path, _TWO_MEMBERS), archive),
    "cifar_batch": (read_batch, lambda: python2_pickle(np.zeros((1, 32, 32, 3), np.uint8), [3], "labels")),
    "image.png": (decode, lambda: picture("PNG")),
    "image.jpg": (decode, lambda: picture("JPEG")),
}


def damaged(content: bytes, dice: random.Random) -> bytes:
    """Return a truncated file, one with bytes before it, or one with a few changed first or last bytes."""
    kind = dice.randrange(4)
    if kind == 0:
        return content[: dice.randrange(len(content))]
    if kind == 1:
        return dice.randbytes(dice.choice((1, 2, 4, 8, 9))) + content
    start, end = (0, 80) if kind == 2 else (-400, -1)
    changed = bytearray(content)
    for _ in range(dice.choice((1, 2, 4))):
        place = range(len(content))[start:end]
        changed[dice.choice(place)] = dice.choice((0, 1, 128, 255, dice.randrange(256)))
    return bytes(changed)


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_read_or_raises_an_error_of_resfit(name: str, tmp_path: Path) -> None:
    read, make = READERS[name]
    content, dice = make(), random.Random(name)
    (tmp_path / name).write_bytes(content)
    read(tmp_path / name)
    refused = 0
    for _ in range(60):
        (tmp_path / name).write_bytes(damaged(content, dice))
        try:
            read(tmp_path / name)
        except ResfitError:
            refused += 1
    assert refused > 20


# Positions before the file's start, encryption, and versions of the format that no library has.
@pytest.mark.parametrize(
    ("offset", "value"), [(42, b"\xff\xff\xff\xff"), (8, b"\x01\0"), (6, b"\xff\0"), (8, b"\x20\0")]
)
@pytest.mark.parametrize("name", ["weights.pth", "model.npz"])
def test_a_zip_file_with_a_damaged_directory_raises_an_error_of_resfit(
    name: str, offset: int, value: bytes, tmp_path: Path
) -> None:
    read, make = READERS[name]
    content = bytearray(make())
    entry = content.index(b"PK\x01\x02")
    content[entry + offset : entry + offset + len(value)] = value
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ResfitError, match="damaged"):
        read(tmp_path / name)


# --- a fuzz of all formats of weights ------------------------------------------------------------------------------


@pytest.mark.parametrize("format", fuzz.FORMATS)
def test_damaged_weights_of_every_format_are_read_or_refused(format: str, tmp_path: Path) -> None:
    """`python -m tests.weights.fuzz 20000` reads more of them, in other processes."""
    if format in ("h5", "keras"):
        package("h5py")
    found = set(fuzz.outcomes(format, 60, 0, tmp_path))
    assert found <= {"valid, read", "read", "refused"}
    assert {"valid, read", "refused"} <= found


@pytest.mark.parametrize("size", [0, 7, 1 << 40])
def test_a_damaged_heap_of_texts_in_an_hdf5_file_raises(size: int, tmp_path: Path) -> None:
    """The library of HDF5 never returns from a heap whose free rest has no size."""
    package("h5py")
    content = bytearray(next(made for i in range(99) if b"GCOL" in (made := fuzz.of_h5(random.Random(i)))))
    (tmp_path / "a.h5").write_bytes(content)
    weights.read(tmp_path / "a.h5")
    place = content.index(b"GCOL") + 16
    content[place : place + 16] = bytes(8) + size.to_bytes(8, "little")
    (tmp_path / "a.h5").write_bytes(content)
    with pytest.raises(WeightsError, match="texts at byte"):
        weights.read(tmp_path / "a.h5")


@pytest.mark.exhaustive
@pytest.mark.parametrize("format", fuzz.FORMATS)
def test_three_thousand_damaged_weights_of_every_format_are_read_or_refused(format: str, tmp_path: Path) -> None:
    if format in ("h5", "keras"):
        package("h5py")
    assert set(fuzz.outcomes(format, 3400, 1, tmp_path)) == {"valid, read", "read", "refused"}
