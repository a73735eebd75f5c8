"""Zip files of weights other than those of `torch.save`: `.npz` of NumPy and `.keras` of Keras."""

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from resfit.errors import WeightsError
from resfit.weights import keras_files
from resfit.weights.layouts import Array

_KERAS = "model.weights.h5"
_MOST = 64  # uncompressed bytes for one byte of the file, beyond `_SMALL`
_SMALL = 1 << 24


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip file; a damaged one raises."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except WeightsError:
        raise
    # zipfile and zlib raise these for damaged directories and members (OSError for a negative file position).
    except (zipfile.BadZipFile, struct.error, zlib.error, ValueError, RuntimeError, EOFError, OSError) as error:
        raise WeightsError(
            f"{path} is a damaged zip file: {error}. Expected a file of torch.save, an .npz or a .keras file. Download "
            "it again."
        ) from error


def kind(path: Path) -> str:
    """Return `"torch"`, `"npz"` or `"keras"` by the names of the members."""
    with _archive(path) as archive:
        names = archive.namelist()
    if _KERAS in names:
        return "keras"
    return "npz" if names and all(name.endswith(".npy") for name in names) else "torch"


def read_npz(path: Path) -> dict[str, Array]:
    """Read the arrays of an `.npz` file by name.

    Raises:
        WeightsError: if the file is damaged, contains Python objects, or is much smaller than its arrays.
    """
    with _archive(path) as archive:
        _check_size(path, archive)
        return {name.removesuffix(".npy"): _array(path, name, archive.read(name)) for name in archive.namelist()}


def read_keras(path: Path) -> dict[str, Array]:
    """Read the arrays of a `.keras` file by layer and name, as `keras_files.read`.

    Raises:
        WeightsError: if the file is damaged, or is much smaller than its arrays.
        MissingPackageError: if h5py is not installed.
    """
    with _archive(path) as archive:
        _check_size(path, archive)
        return keras_files.read(path, io.BytesIO(archive.read(_KERAS)))


def _check_size(path: Path, archive: zipfile.ZipFile) -> None:
    size, total = path.stat().st_size, sum(member.file_size for member in archive.infolist())
    if total > _MOST * size + _SMALL:
        raise WeightsError(
            f"{path}, of {size} bytes, is a zip file with members of {total} bytes. Expected weights, which compress "
            "less. The file was not unpacked. Download the weights from a trusted source."
        )


def _array(path: Path, name: str, content: bytes) -> Array:
    """Return the array of a member in NumPy's format."""
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_columns, dtype = read_header(stream)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError, OverflowError, struct.error) as error:
        raise _damaged(path, name, str(error)) from error
    data = content[stream.tell() :]
    if dtype == np.dtype("V2"):  # NumPy has no bfloat16, and writes it so
        dtype = np.dtype(jnp.bfloat16)
    if dtype.hasobject or (dtype.kind == "V" and dtype != jnp.bfloat16):
        raise WeightsError(
            f"{path} has entries of {dtype} in {name!r}. Expected numbers. If you trust the file, open it with NumPy "
            "and pass its arrays to resfit.weights.load_state_dict."
        )
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(data):
        raise _damaged(path, name, f"the shape {shape} does not fit its {len(data)} bytes")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if by_columns else "C")


def _damaged(path: Path, name: str, why: str) -> WeightsError:
    return WeightsError(
        f"{path} has a damaged array {name!r}: {why}. Expected an .npz file of NumPy. Download it again."
    )
