"""Files of weights: which form one has, told by its first bytes, and the arrays in it by name."""

import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from resfit._utils.paths import expand_user
from resfit._utils.suggest import did_you_mean
from resfit.errors import WeightsError
from resfit.weights import keras_files, torch_files
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


def read(path: str | os.PathLike[str], *, ema: bool = False) -> dict[str, Array]:
    """The arrays in a file, by the names that they have there. Nothing in the file is executed.

    Args:
        path: a file of safetensors, of `torch.save` in the zip form or the one before PyTorch 1.6, or an `.h5` file of
            keras.applications. Its first bytes say which; its ending does not matter.
        ema: take the averaged weights of a training checkpoint (default False: those that were trained, if it has
            both).

    Raises:
        WeightsError: if it is of another form, damaged, or malicious.
        MissingPackageError: for an `.h5` file, without h5py.

    Example:
        >>> from resfit.nets import create_model
        >>> from resfit.weights import save
        >>> save(create_model("resnet20", num_classes=10), "resnet20.safetensors")
        >>> read("resnet20.safetensors")["fc.weight"].shape
        (10, 64)
    """
    path = Path(expand_user(path))
    if not path.is_file():
        there = sorted(file.name for file in path.parent.glob("*") if file.is_file())
        raise FileNotFoundError(
            f"There is no file {path}. Expected one of weights; the files in its folder are {there[:20]}."
            + did_you_mean(path.name, there)
        )
    with path.open("rb") as file:
        begin = file.read(512)
    if _is_safetensors(begin):  # first: its length can begin with the bytes of any other format
        return _read_safetensors(path)
    if begin.startswith(b"PK\x03\x04"):
        return torch_files.read_zip(path, ema=ema)
    if begin.startswith(_PICKLES):
        return torch_files.read_old(path, ema=ema)
    if begin.startswith(b"\x89HDF\r\n\x1a\n"):
        return keras_files.read(path)
    raise WeightsError(
        f"{path} begins with {begin[:8]!r}, as no file of weights does that is read here. Expected safetensors, a file "
        "of torch.save, or an .h5 file of keras.applications."
        + (" A .tar of PyTorch before 0.1.10 is opened in PyTorch and saved again." if b"ustar" in begin else "")
    )


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
        raise WeightsError(f"{path} is a damaged safetensors file: {error}. Take another copy.") from error
    if unknown := sorted({entry["dtype"] for _, entry in entries} - set(_SAFETENSORS)):
        raise WeightsError(f"{path} holds numbers of {unknown}. Expected some of {sorted(_SAFETENSORS)}. Convert them.")
    return {
        name: np.frombuffer(entry["data"], _SAFETENSORS[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in entries
    }


def to_safetensors(arrays: dict[str, Array]) -> bytes:
    """The content of a safetensors file, which says that its names and axes are PyTorch's."""
    import safetensors.numpy

    content: bytes = safetensors.numpy.save(arrays, metadata={"format": "pt"})
    return content
