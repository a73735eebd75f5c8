"""A reader for files of `torch.save` without PyTorch: the zip form, and the form before PyTorch 1.6."""

import io
import math
import mmap
import os
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.lib.stride_tricks import as_strided

from resfit._utils.pickles import Placeholder, Storage, Tensor, read_pickle
from resfit.errors import WeightsError
from resfit.weights.layouts import Array

_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file in the old form
_PROTOCOL = 1001
_LARGEST_PICKLE = 1 << 28  # bytes; the pickle of a ResNet-200 with its optimizer has 200 thousand

_DTYPES: Mapping[str, np.dtype[Any]] = {
    "torch.DoubleStorage": np.dtype("<f8"),
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.HalfStorage": np.dtype("<f2"),
    "torch.BFloat16Storage": np.dtype(jnp.bfloat16),
    "torch.LongStorage": np.dtype("<i8"),
    "torch.IntStorage": np.dtype("<i4"),
    "torch.ShortStorage": np.dtype("<i2"),
    "torch.CharStorage": np.dtype("<i1"),
    "torch.ByteStorage": np.dtype("<u1"),
    "torch.BoolStorage": np.dtype("?"),
}

_KINDS: Mapping[str, np.dtype[Any]] = {
    **_DTYPES,
    **{kind.replace("torch.", "torch.cuda."): dtype for kind, dtype in _DTYPES.items()},
}

# The entries of a training checkpoint that hold the network, and those that hold its averaged weights.
RAW = ("state_dict", "model", "model_state_dict", "net", "network")
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")

Read = Callable[[Storage], bytes]


def read_zip(path: Path, *, ema: bool, keys: tuple[str, ...] = ()) -> dict[str, Array]:
    """Read the state dict of a `torch.save` file since 1.6: a zip file with a pickle and one member per storage.

    Members are read by name without unpacking the file.
    """
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                return _read_archive(path, archive, ema=ema, keys=keys)
        except WeightsError:
            raise
        # zipfile raises these for damaged directories and members (OSError for a negative file position).
        except (zipfile.BadZipFile, struct.error, ValueError, RuntimeError, EOFError, OSError) as error:
            raise WeightsError(
                f"{path} is a damaged zip file: {error}. Expected a file of torch.save. Download it again."
            ) from error


def _read_archive(path: Path, archive: zipfile.ZipFile, *, ema: bool, keys: tuple[str, ...]) -> dict[str, Array]:
    members = {member.filename: member for member in archive.infolist()}
    _check_members(path, members)
    pickles = [name for name in members if name.endswith("data.pkl") and name.count("/") <= 1]
    if "program" in members:
        raise WeightsError(
            f"{path} is a program of Model.export, not a weights file. Expected a file of Model.save or torch.save. "
            "Load it with resfit.load_exported(path)."
        )
    if len(pickles) != 1:
        raise WeightsError(
            f"{path} is a zip file of {sorted(members)[:5]}... with {len(pickles)} data.pkl. Expected a file of "
            "torch.save. Load a file of torch.jit or torch.export in PyTorch and save its state_dict()."
        )
    folder = pickles[0].removesuffix("data.pkl")
    if members[pickles[0]].file_size > _LARGEST_PICKLE:
        raise WeightsError(
            f"{path} contains a pickle of more than {_LARGEST_PICKLE} bytes. Expected a state dict. Save only the "
            "state_dict() in PyTorch."
        )
    order = archive.read(folder + "byteorder") if folder + "byteorder" in members else b"little"
    value = read_pickle(io.BytesIO(archive.read(pickles[0])))

    def read(storage: Storage) -> bytes:
        name = f"{folder}data/{storage.key}"
        if name not in members:
            raise _missing_storage(path, storage)
        return archive.read(name)

    return _arrays(path, _state_dict(path, value, ema=ema, keys=keys), read, swapped=order.strip() == b"big")


def _check_members(path: Path, members: Mapping[str, zipfile.ZipInfo]) -> None:
    """Raise if members are compressed, larger than the file, or outside of the archive's folder.

    PyTorch does not compress, so the members together are never larger than the file.
    """
    compressed = [name for name, member in members.items() if member.compress_type != zipfile.ZIP_STORED]
    total, size = sum(member.file_size for member in members.values()), path.stat().st_size
    if compressed or total > size:
        what = f"compressed members ({compressed[:3]})" if compressed else f"members of {total} bytes"
        raise WeightsError(
            f"{path}, of {size} bytes, is a zip file with {what}. Expected a file of torch.save, which compresses "
            "nothing. The file was not unpacked. Download the weights from a trusted source."
        )
    outside = [name for name in members if ".." in name.split("/") or name.startswith("/") or "\\" in name]
    if outside:
        raise WeightsError(
            f"{path} has members with paths outside of the archive ({outside[:3]}). Expected a file of torch.save. "
            "Download the weights from a trusted source."
        )


def read_old(path: Path, *, ema: bool, keys: tuple[str, ...] = ()) -> dict[str, Array]:
    """Read the state dict of a `torch.save` file before PyTorch 1.6: five pickles, then the storages in sequence."""
    # A memory map never returns more bytes than the file has, even if the pickle asks for more.
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
        magic = read_pickle(stream)
        if magic != _MAGIC:
            raise WeightsError(
                f"{path} is a pickle of {type(magic).__name__}, not a file of torch.save. Expected a state dict saved "
                "by torch.save. If you trust the file, open it with the program that wrote it, and pass the arrays to "
                "resfit.weights.load_state_dict."
            )
        protocol, _system = read_pickle(stream), read_pickle(stream)
        if protocol != _PROTOCOL:
            raise WeightsError(
                f"{path} has PyTorch's protocol {protocol!r}. Expected {_PROTOCOL}. Save it again in PyTorch."
            )
        storages: list[Storage] = []
        value = read_pickle(stream, storages)
        state = _state_dict(path, value, ema=ema, keys=keys)
        order = read_pickle(stream)
        if not isinstance(order, list) or not all(isinstance(key, str | int) for key in order):
            raise WeightsError(
                f"{path} lists its storages as {order!r:.50}. Expected a list of order. Download it again."
            )
        sizes = {storage.key: _KINDS[storage.kind].itemsize for storage in storages if storage.kind in _KINDS}
        places = _places(path, stream, [str(key) for key in order], sizes)

        def read(storage: Storage) -> bytes:
            if storage.key not in places:
                raise _missing_storage(path, storage)
            start, size = places[storage.key]
            stream.seek(start)
            return stream.read(size)

        return _arrays(path, state, read, swapped=False)


def _missing_storage(path: Path, storage: Storage) -> WeightsError:
    return WeightsError(
        f"{path} refers to a storage {storage.key!r} that it does not contain. Expected a complete file. Download it "
        "again."
    )


def _places(
    path: Path, stream: mmap.mmap, keys: list[str], item_sizes: Mapping[str, int]
) -> dict[str, tuple[int, int]]:
    """Return (start, bytes) of each storage; a storage is preceded by the number of its entries."""
    length, found = path.stat().st_size, {}
    for key in keys:
        count = struct.unpack("<q", stream.read(8).ljust(8, b"\xff"))[0]
        if key not in item_sizes or not 0 <= count <= (length - stream.tell()) // item_sizes[key]:
            raise WeightsError(
                f"{path}, of {length} bytes, promises {count} numbers for its storage {key!r}. Expected all of them: "
                "the file is damaged or truncated. Download it again."
            )
        size = count * item_sizes[key]
        found[key] = stream.tell(), size
        stream.seek(size, os.SEEK_CUR)
    return found


def _state_dict(path: Path, value: Any, *, ema: bool, keys: tuple[str, ...] = ()) -> Mapping[str, Tensor]:
    """Return the network's tensors by name from the value in a file: a state dict, or a training checkpoint."""
    value = entry_at(path, value, keys)
    if not isinstance(value, dict):
        what = f"an object of {value.name}" if isinstance(value, Placeholder) else f"a {type(value).__name__}"
        raise WeightsError(
            f"{path} contains {what}. Expected a state dict, or a checkpoint with one. A whole module is code: load it "
            "in its own program, and save its state_dict()."
        )
    order = AVERAGED if ema else (*RAW, *AVERAGED)
    found = [value[key] for key in order if isinstance(value.get(key), dict) and _named_tensors(value[key])]
    if found:
        state: Mapping[str, Tensor] = found[0]
        return state
    if ema:
        raise WeightsError(
            f"{path} contains no averaged weights; its entries are {list(value)[:10]}. Expected one of "
            f"{list(AVERAGED)}. Leave ema out."
        )
    if not _named_tensors(value):
        places = [key for key, entry in value.items() if isinstance(entry, dict) and _deep_tensors(entry)]
        remedy = f"Choose one of the entries with state dicts: key={places[0]!r}" if places else ""
        others = f" (or one of {places[1:6]})." if places[1:] else "."
        raise WeightsError(
            f"{path} contains no state dict; its entries are {list(value)[:10]}. Expected arrays by name, or one of "
            f"{[*RAW, *AVERAGED]}. "
            + (
                f"{remedy}{others}"
                if remedy
                else "Load the file in PyTorch, and pass its state dict to resfit.weights.load_state_dict."
            )
        )
    return value


def entry_at(path: Path, value: Any, keys: tuple[str, ...]) -> Any:
    """Return the entry of nested dicts at the keys.

    Raises:
        WeightsError: if a key does not exist.
    """
    for depth, key in enumerate(keys):
        if not isinstance(value, dict) or key not in value:
            known = list(value)[:10] if isinstance(value, dict) else f"none, as it is a {type(value).__name__}"
            inside = f" inside {keys[:depth]}" if depth else ""
            raise WeightsError(
                f"Received key={keys!r}, but {path} has no entry {key!r}{inside}. Expected one of its entries: "
                f"{known}. Choose one of them, or leave key out."
            )
        value = value[key]
    return value


def _deep_tensors(value: Mapping[Any, Any]) -> bool:
    """Return True for a state dict, or a dict that contains one."""
    return _named_tensors(value) or any(_named_tensors(entry) for entry in value.values() if isinstance(entry, dict))


def _named_tensors(value: Mapping[Any, Any]) -> bool:
    return any(isinstance(entry, Tensor) for entry in value.values())


def _arrays(path: Path, state: Mapping[str, Any], read: Read, *, swapped: bool) -> dict[str, Array]:
    storages: dict[str, Array] = {}

    def numbers(storage: Storage) -> Array:
        if storage.kind not in _KINDS:
            raise WeightsError(
                f"{path} holds numbers of {storage.kind}. Expected one of {sorted(_DTYPES)}. Convert it in PyTorch."
            )
        if storage.key not in storages:
            dtype, content = _KINDS[storage.kind], read(storage)
            if len(content) % dtype.itemsize:
                raise WeightsError(
                    f"{path} has {len(content)} bytes in its storage {storage.key!r}. Expected a multiple of "
                    f"{dtype.itemsize}. Download it again."
                )
            values = np.frombuffer(content, np.dtype(f"u{dtype.itemsize}"))
            storages[storage.key] = (values.byteswap() if swapped else values).view(dtype)
        return storages[storage.key]

    return dict(_views(path, state, numbers))


def _views(path: Path, state: Mapping[str, Any], numbers: Callable[[Storage], Array]) -> Iterator[tuple[str, Array]]:
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            continue  # a number, an option or a custom object
        values = numbers(tensor.storage)
        start = tensor.storage.start + tensor.offset
        last = start + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.strides, strict=True))
        count = math.prod(tensor.shape)
        if tensor.storage.start + tensor.storage.size > len(values) or (
            count and (last >= tensor.storage.start + tensor.storage.size or count > len(values))
        ):
            raise WeightsError(
                f"{path} promises {count} numbers for {name!r}, in a storage of {tensor.storage.size}, and has "
                f"{len(values)}. Expected all of them: the file is damaged. Download it again."
            )
        if count:
            steps = tuple(step * values.itemsize for step in tensor.strides)
            yield str(name), as_strided(values[start:], tensor.shape, steps, writeable=False)
        else:
            yield str(name), np.zeros(tensor.shape, values.dtype)
