"""The formats of weights files: detection by the first bytes, and reading of the arrays."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from resfit._utils.keywords import checked
from resfit._utils.paths import expand_user
from resfit._utils.suggest import did_you_mean
from resfit.errors import WeightsError
from resfit.weights import keras_files, msgpack_files, torch_files, zip_files
from resfit.weights.layouts import Array

_SAFETENSORS: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(jnp.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("<i1"),
    "U8": np.dtype("<u1"),
    "BOOL": np.dtype("?"),
}


_PICKLES = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))


@checked("function arguments")
def read(path: str | os.PathLike[str], *, ema: bool = False, key: str | Sequence[str] = ()) -> dict[str, Array]:
    """Read the arrays in a weights file by name, without executing anything in the file.

    Args:
        path: a safetensors file, a file of `torch.save` (zip form, or the form before PyTorch 1.6), an `.h5`,
            `.weights.h5` or `.keras` file of Keras, an `.npz` file, or a msgpack file of Flax. The first bytes
            determine the format; the file name does not matter.
        ema: read the averaged weights of a training checkpoint (default False: the trained weights).
        key: the entry of a nested file (`torch.save`, msgpack) that contains the weights, such as `"teacher"`, or the
            keys of nested entries (by default, the usual entries of training checkpoints).

    Raises:
        WeightsError: if the file has another format, is damaged, or is malicious, or if `key` is not in the file.
        MissingPackageError: for a file of Keras, if h5py is not installed.

    Example:
        >>> from resfit.nets import create_model
        >>> from resfit.weights import save
        >>> save(create_model("resnet20", num_classes=10), "resnet20.safetensors")
        >>> read("resnet20.safetensors")["fc.weight"].shape
        (10, 64)
    """
    path = Path(expand_user(path))
    if not path.is_file():
        raise _no_file(path)
    keys = (key,) if isinstance(key, str) else key
    if not isinstance(keys, Sequence) or not all(isinstance(one, str) for one in keys):
        raise WeightsError(
            f"Received key={key!r}. Expected the name of an entry, or a tuple of such names for nested entries. For "
            "the usual entries, leave key out."
        )
    keys = tuple(keys)
    with path.open("rb") as file:
        begin = file.read(512)
    if _is_safetensors(begin):  # first, because the length can start with the magic bytes of another format
        return _flat(path, keys, _read_safetensors)
    if begin.startswith(b"PK\x03\x04"):
        kind = zip_files.kind(path)
        if kind == "torch":
            return torch_files.read_zip(path, ema=ema, keys=keys)
        return _flat(path, keys, zip_files.read_npz if kind == "npz" else zip_files.read_keras)
    if begin.startswith(_PICKLES):
        return torch_files.read_old(path, ema=ema, keys=keys)
    if begin.startswith(b"\x89HDF\r\n\x1a\n"):
        return _flat(path, keys, keras_files.read)
    if msgpack_files.begins(begin):
        return msgpack_files.read(path, keys)
    raise WeightsError(
        f"{path} begins with {begin[:8]!r}, which is not a supported format. Expected safetensors, a file of "
        "torch.save, an .h5, .weights.h5 or .keras file of Keras, an .npz file, or a msgpack file of Flax."
        + (" Open a .tar file of PyTorch before 0.1.10 in PyTorch and save it again." if b"ustar" in begin else "")
    )


def _no_file(path: Path) -> FileNotFoundError:
    folder = path if path.is_dir() else path.parent
    there = sorted(file.name for file in folder.glob("*") if file.is_file())
    what = "is a folder, not a file" if path.is_dir() else "does not exist"
    return FileNotFoundError(
        f"The file {path} {what}. Expected a weights file. The files in its folder are {there[:20]}."
        + did_you_mean(path.name, there)
    )


def _flat(path: Path, keys: tuple[str, ...], reader: Callable[[Path], dict[str, Array]]) -> dict[str, Array]:
    """Read a file of a format without nested entries; raise if keys were passed."""
    if keys:
        raise WeightsError(
            f"Received key={keys!r}, but {path} is not a nested file. Expected key= only for files of torch.save and "
            "msgpack. Leave key out, or choose a network with prefix=."
        )
    return reader(path)


def _is_safetensors(begin: bytes) -> bool:
    """Return True for the first bytes of a safetensors file: a header length below 2^32 in 8 bytes, then `{`.

    No other format has both. The ninth byte is the compression method in a zip file, the version in an HDF5 file and
    part of the magic number in an old file of `torch.save`.
    """
    return begin[4:9] == b"\0\0\0\0{"


def _read_safetensors(path: Path) -> dict[str, Array]:
    import safetensors

    try:
        entries = safetensors.deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        raise WeightsError(
            f"{path} is a damaged safetensors file: {error}. Expected a complete file. Download it again."
        ) from error
    if unknown := sorted({entry["dtype"] for _, entry in entries} - set(_SAFETENSORS)):
        raise WeightsError(f"{path} holds numbers of {unknown}. Expected some of {sorted(_SAFETENSORS)}. Convert them.")
    return {
        name: np.frombuffer(entry["data"], _SAFETENSORS[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in entries
    }


def to_safetensors(arrays: dict[str, Array]) -> bytes:
    """Return the bytes of a safetensors file whose metadata say that names and axes are PyTorch's."""
    import safetensors.numpy

    content: bytes = safetensors.numpy.save(arrays, metadata={"format": "pt"})
    return content
