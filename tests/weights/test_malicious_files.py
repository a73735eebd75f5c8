"""Malicious files raise; nothing in them runs, is unpacked, or needs more memory than the file."""

import io
import os
import pickle
import struct
import sys
import tracemalloc
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from resfit import weights
from resfit.errors import WeightsError

MAGIC = 0x1950A86A20F9469CFC6C
_heard: list[str] | None = None
HARM = {"pickle.find_class", "os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "marshal.loads", "import"}


def _listen(event: str, arguments: tuple[Any, ...]) -> None:
    if _heard is not None and (event in HARM or (event == "open" and "w" in str(arguments[1]))):
        _heard.append(f"{event} {arguments!r:.200}")


sys.addaudithook(_listen)  # a hook cannot be removed; it does nothing outside the block below


@contextmanager
def nothing_happens() -> Iterator[None]:
    """Raise if code imports, starts or writes anything, or needs much memory."""
    global _heard
    tracemalloc.start()
    _heard = []
    try:
        yield
        assert _heard == []
        assert tracemalloc.get_traced_memory()[1] < 50e6
        assert not Path("sentinel").exists()
    finally:
        _heard = None
        tracemalloc.stop()


class Reduces:
    """An object whose pickle calls a function."""

    def __init__(self, called: Any, *arguments: Any, state: Any = None) -> None:
        self.made = (called, arguments) if state is None else (called, arguments, state)

    def __reduce__(self) -> Any:
        return self.made


class Storage:
    """An object that pickles as PyTorch's reference to a storage."""

    def __init__(self, kind: str = "FloatStorage", key: Any = "0", size: Any = 4) -> None:
        self.identity = ("storage", Named("torch", kind), key, "cpu", size)


class Named:
    """An object that pickles as a name in a module that need not exist."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


_Plain: Any = pickle._Pickler  # type: ignore[attr-defined]  # the one in Python, whose parts can be replaced


class Pickler(_Plain):  # type: ignore[misc]
    # A separate table, because dill, which other libraries import, changes the shared one.
    dispatch: ClassVar[Any] = {
        type(None): _Plain.save_none,
        bool: _Plain.save_bool,
        int: _Plain.save_long,
        float: _Plain.save_float,
        bytes: _Plain.save_bytes,
        str: _Plain.save_str,
        tuple: _Plain.save_tuple,
        list: _Plain.save_list,
        dict: _Plain.save_dict,
        type: _Plain.save_type,
        types.FunctionType: _Plain.save_global,
    }

    def persistent_id(self, obj: Any) -> Any:
        return obj.identity if isinstance(obj, Storage) else None

    def save(self, obj: Any, save_persistent_id: bool = True) -> Any:
        if isinstance(obj, Named):
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
            return None
        if isinstance(obj, Called):
            self.save(obj.function)
            self.save(obj.arguments)
            self.write(pickle.REDUCE)
            return None
        return super().save(obj, save_persistent_id)


class Called:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments


def pickled(value: Any) -> bytes:
    stream = io.BytesIO()
    Pickler(stream, 2).dump(value)
    return stream.getvalue()


def tensor(storage: Any = None, offset: Any = 0, shape: Any = (4,), strides: Any = (1,)) -> Called:
    rebuild = Named("torch._utils", "_rebuild_tensor_v2")
    return Called(rebuild, storage or Storage(), offset, shape, strides, False, OrderedDict())


def zip_file(content: bytes, members: dict[str, bytes] | None = None, **options: Any) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", **options) as archive:
        archive.writestr("archive/data.pkl", content)
        for name, data in ({"archive/data/0": bytes(16)} if members is None else members).items():
            archive.writestr(name, data)
    return stream.getvalue()


def old_file(content: bytes, storages: bytes = struct.pack("<q", 4) + bytes(16), keys: Any = ("0",)) -> bytes:
    system = {"protocol_version": 1001, "little_endian": True}
    before = b"".join(pickle.dumps(value, 2) for value in (MAGIC, 1001, system))
    return before + content + pickle.dumps(list(keys), 2) + storages


def state(**entries: Any) -> bytes:
    return pickled({"conv1.weight": tensor(), **entries})


def touch() -> Reduces:
    return Reduces(os.system, "touch sentinel")


CODE: dict[str, bytes] = {
    "os.system": pickled(touch()),
    "os.system beside weights": state(extra=touch()),
    "os.system in a checkpoint": pickled({"state_dict": {"a": tensor()}, "args": [touch()]}),
    "eval": pickled(Reduces(eval, "open('sentinel', 'w')")),
    "exec": pickled(Reduces(exec, "open('sentinel', 'w')")),
    "getattr": pickled(Reduces(getattr, Named("os", "path"), "join")),
    "nested getattr": pickled(
        Called(Called(Named("builtins", "getattr"), Named("json", "codecs"), "open"), "sentinel", "w")
    ),
    "a call of what a call made": pickled(Called(Called(Named("mine", "f"), 1), 2)),
    "__import__": pickled(Called(Named("__builtin__", "__import__"), "os")),
    "a dotted name": pickled(Called(Named("builtins", "dict.__class__"), 1)),
    "__reduce_ex__ of something harmless": pickled(Called(Named("mine", "C.__reduce_ex__"), 2)),
    "copyreg._reconstructor": pickled(
        Called(Named("copy_reg", "_reconstructor"), Named("subprocess", "Popen"), object, None)
    ),
    "a class of subprocess, by INST": b"(S'touch sentinel'\nisubprocess\nPopen\n.",
    "a class of posix, by OBJ": b"(cposix\nsystem\nS'touch sentinel'\no.",
    "stack global": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x0etouch sentinel\x85R.",
    "a name behind an extension code": b"\x80\x02\x82\x01.",
    "state set on a class": pickled({"a": Reduces(Named, "x", "y", state={"__class__": 1})}),
    "builtins.open": pickled(Called(Named("builtins", "open"), "sentinel", "w")),
    "runpy": pickled(Called(Named("runpy", "run_path"), "evil.py")),
    "pip": pickled(Called(Named("pip", "main"), ["install", "evil"])),
    "numpy's own loader as a tensor": pickled({"a": Called(Named("numpy", "load"), "evil.npy")}),
}  # fmt: skip


@pytest.mark.parametrize("form", [zip_file, old_file])
@pytest.mark.parametrize("what", CODE)
def test_code_is_refused_and_does_not_run(what: str, form: Callable[[bytes], bytes]) -> None:
    path = Path("a.pth")
    path.write_bytes(form(CODE[what]))
    with pytest.raises(WeightsError):
        weights.read(path)  # completes lazy imports
    with nothing_happens(), pytest.raises(WeightsError):
        weights.read(path)


def test_pickle_itself_would_have_run_it() -> None:
    """A negative control: with pickle, the attacks run and the audit hook sees them."""
    with pytest.raises(AssertionError, match=r"posix"), nothing_happens():
        pickle.loads(CODE["os.system"])
    assert Path("sentinel").exists()


def test_objects_of_custom_classes_are_skipped() -> None:
    path = Path("a.pth")
    content = pickled(
        {
            "args": Called(Named("argparse", "Namespace")),
            "scaler": Called(Named("copy_reg", "_reconstructor"), Named("mine", "Scaler"), object, None),
            "odd": {("a", "tuple"): 1, "set": {1, 2}},
            "state_dict": {"conv1.weight": tensor()},
        }
    )
    path.write_bytes(zip_file(content))
    with nothing_happens():
        assert weights.read(path)["conv1.weight"].tolist() == [0, 0, 0, 0]


def test_the_storages_of_skipped_objects_are_skipped() -> None:
    """In the old form, the position of a storage depends on the sizes of those before it."""
    hidden = Called(Named("mine", "Average"), tensor(Storage("DoubleStorage", "1", 2)))
    storages = struct.pack("<q2d", 2, 1, 2) + struct.pack("<q4f", 4, 1, 2, 3, 4)
    Path("a.pth").write_bytes(old_file(pickled({"average": hidden, "a": tensor()}), storages, keys=("1", "0")))
    assert weights.read("a.pth")["a"].tolist() == [1, 2, 3, 4]


def nested_tuples(depth: int) -> bytes:
    """Return a pickle with nested tuples as a key, whose hash would take 2 ** depth steps."""
    inner = b")" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(depth))
    return b"\x80\x02}" + inner + b"K\x01s."


def copied_often() -> bytes:
    """Return a pickle that copies one long list to a dict many times."""
    numbers = (struct.pack("<i", i) for i in range(20_000))
    pairs = b"".join(b"](J%sJ%se" % (number, number) for number in numbers)
    call = b"ccollections\nOrderedDict\nh\x00\x85R"
    return b"\x80\x02](" + pairs + b"eq\x000" + b"](" + call * 1_000 + b"e."


def bomb() -> bytes:
    """Return Return 100 MB of zeros, compressed."""
    return zip_file(state(), {"archive/data/0": bytes(10**8)}, compression=zipfile.ZIP_DEFLATED)


ROOM: dict[str, tuple[bytes, str]] = {
    "a storage of 1e12 numbers": (zip_file(pickled({"a": tensor(Storage(size=10**12))})), "promises"),
    "a storage of 1e12 numbers, old": (
        old_file(pickled({"a": tensor(Storage(size=10**12))}), struct.pack("<q", 10**12)), "promises",
    ),
    "a storage of fewer than none, old": (old_file(state(), struct.pack("<q", -1)), "promises -1 numbers"),
    "a tensor of 1e12 numbers": (zip_file(pickled({"a": tensor(shape=(10**6, 10**6), strides=(0, 0))})), "promises"),
    "a tensor beyond its storage": (zip_file(pickled({"a": tensor(offset=1)})), "promises"),
    "a tensor before its storage": (zip_file(pickled({"a": tensor(offset=-1)})), "not nonnegative integers"),
    "strides that go back": (zip_file(pickled({"a": tensor(strides=(-1,))})), "not nonnegative integers"),
    "strides that overflow": (zip_file(pickled({"a": tensor(shape=(2, 2), strides=(2**62, 2**62))})), "promises"),
    "more axes than arrays have": (zip_file(pickled({"a": tensor(shape=(1,) * 99, strides=(1,) * 99)})), "shape"),
    "a shape of text": (zip_file(pickled({"a": tensor(shape="ab", strides="cd")})), "not nonnegative integers"),
    "a zip bomb": (b"", "compressed"),  # takes a second to make: see `bomb`
    "a path that climbs": (zip_file(pickled({"a": tensor(Storage(key="../../../etc/passwd"))})), "does not contain"),
    "a member that climbs": (zip_file(state(), {"archive/data/0": bytes(16), "../../outside": b"x"}), "outside of the"),
    "an absolute member": (zip_file(state(), {"archive/data/0": bytes(16), "/outside": b"x"}), "outside of the"),
    "a key of many nested tuples": (zip_file(nested_tuples(60)), "no state dict"),
    "a text longer than the file": (zip_file(b"\x80\x02\x8d" + struct.pack("<Q", 10**12) + b"a."), "damaged"),
    "a text longer than the file, old": (b"\x80\x02\x8d" + struct.pack("<Q", 10**12) + b"a.", "damaged"),
    "one list copied often": (zip_file(copied_often()), "list entries copied to dicts"),
    "an int of a million digits": (zip_file(b"I" + b"1" * 10**6 + b"\n."), "damaged"),
    "two pickles": (
        zip_file(state(), {"archive/data/0": bytes(16), "b/data.pkl": state()}), "with 2 data.pkl",
    ),
    "numbers of an unknown kind": (zip_file(pickled({"a": tensor(Storage("QInt8Storage"))})), "QInt8Storage"),
}  # fmt: skip


@pytest.mark.representatives(
    "a storage of 1e12 numbers",
    "a tensor beyond its storage",
    "strides that go back",
    "a zip bomb",
    "a path that climbs",
    "a key of many nested tuples",
    "an int of a million digits",
    "two pickles",
)
@pytest.mark.parametrize("what", ROOM)
def test_requests_beyond_the_size_of_the_file_raise(what: str) -> None:
    content, says = ROOM[what]
    path = Path("a.pth")
    path.write_bytes(content or bomb())
    before = sorted(Path("..").rglob("*"))
    with pytest.raises(WeightsError, match=says):
        weights.read(path)
    with nothing_happens(), pytest.raises(WeightsError):
        weights.read(path)
    assert sorted(Path("..").rglob("*")) == before


def test_overlapping_members_raise() -> None:
    """Several members share one range of the file, so unpacked they would be larger than the file."""
    content = zip_file(state(), {"archive/data/0": bytes(2000), **{f"archive/data/{i}": b"" for i in range(1, 50)}})
    path = Path("a.pth")
    path.write_bytes(content)
    with zipfile.ZipFile(path) as archive:
        first = archive.getinfo("archive/data/0")
    directory = content.index(b"PK\x01\x02")
    changed, place = bytearray(content), directory
    for _ in range(51):
        place = content.index(b"PK\x01\x02", place)
        name = content[place + 46 : place + 46 + struct.unpack_from("<H", content, place + 28)[0]]
        if name.startswith(b"archive/data/"):
            struct.pack_into("<II", changed, place + 20, first.file_size, first.file_size)
            struct.pack_into("<I", changed, place + 42, first.header_offset)
        place += 4
    path.write_bytes(changed)
    with nothing_happens(), pytest.raises(WeightsError, match="is a zip file with members of 1"):
        weights.read(path)


def test_harmless_files_of_the_builder_are_read() -> None:
    """A negative control of the tests above."""
    for form in (zip_file, old_file):
        Path("a.pth").write_bytes(form(state()))
        np.testing.assert_array_equal(weights.read("a.pth")["conv1.weight"], np.zeros(4, "f4"))
