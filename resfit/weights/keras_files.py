"""The HDF5 files of Keras: `.h5` with named layers, and `.weights.h5` with numbered arrays."""

import functools
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from resfit._utils.optional_import import load_package
from resfit.errors import WeightsError
from resfit.weights.layouts import Array

_HEAP = b"GCOL\x01\0\0\0"  # the beginning of a heap of texts
_DEEPEST = 32  # groups inside groups
_NORM = ("gamma", "beta", "moving_mean", "moving_variance")


def read(path: Path, stream: BinaryIO | None = None) -> dict[str, Array]:
    """Read the arrays of a file by layer and name, such as `"conv1_conv/kernel"`.

    Layers of a model inside a model have the name of that model before theirs. Arrays of HDF5 files that Keras has not
    written have their path as their name.

    Args:
        path: the file, for errors.
        stream: the content, if it is inside another file (default: the file itself).

    Raises:
        WeightsError: if the file is damaged, or links to other files.
        MissingPackageError: if h5py is not installed.
    """
    h5py = load_package("h5py", f"Reading {path.name}", "pip install 'resfit[weights]'")
    size = path.stat().st_size if stream is None else stream.seek(0, os.SEEK_END)
    _check_texts(path, stream)
    try:
        with h5py.File(path if stream is None else stream, "r") as file:
            return _named(h5py, path, file, size)
    # h5py raises all of these for damaged files.
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(
            f"{path} is a damaged HDF5 file: {error}. Expected a complete file. Download it again."
        ) from error


def _check_texts(path: Path, stream: BinaryIO | None) -> None:
    """Raise if the heaps of texts in an HDF5 file are damaged: the library of HDF5 reads such heaps without an end.

    A heap is a header and objects, each with its size; the object 0 is the free rest (HDF5 File Format, global heap).
    """
    if stream is None:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _check_heaps(path, content)
    stream.seek(0)
    return _check_heaps(path, stream.read())


def _check_heaps(path: Path, content: bytes | mmap.mmap) -> None:
    start = content.find(_HEAP)
    while start >= 0:
        at, size = start + 16, int.from_bytes(content[start + 8 : start + 16], "little")
        end = min(start + size, len(content))
        while at + 16 <= end:
            free = content[at : at + 2] == b"\0\0"
            length = int.from_bytes(content[at + 8 : at + 16], "little")
            step = length if free else 16 + (length + 7) // 8 * 8
            if step < 16 or at + step > end:
                raise WeightsError(
                    f"{path} is a damaged HDF5 file: the texts at byte {start} do not fit their place. Expected a "
                    "complete file. Download it again."
                )
            at += step
        start = content.find(_HEAP, start + 1)


def _named(h5py: Any, path: Path, file: Any, size: int) -> dict[str, Array]:
    group = _inside(h5py, path, file, "model_weights") if "model_weights" in file else file
    name_of = _of_layer if "layer_names" in group.attrs else functools.partial(_of_variable, group)
    found: dict[str, Array] = {}
    for parts, dataset in _datasets(h5py, path, group, ()):
        if parts[0] in ("optimizer", "optimizer_weights") or dataset.dtype.kind in "OSU":
            continue
        size -= dataset.nbytes
        if size < 0:
            raise WeightsError(
                f"{path} promises more numbers than it holds, at {'/'.join(parts)!r}. Expected a complete file. "
                "Download it again."
            )
        name = name_of(parts)
        if name in found:
            raise WeightsError(
                f"{path} has two arrays {name!r}. Expected layers with different names. Load the model in Keras, and "
                "pass its arrays to resfit.weights.load_state_dict(..., naming='keras')."
            )
        found[name] = np.asarray(dataset[()])
    if not found:
        raise WeightsError(f"{path} contains no arrays; it has {sorted(file)[:10]}. Expected a weights file of Keras.")
    return found


def _datasets(h5py: Any, path: Path, group: Any, parts: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Iterate over the arrays in a group by the parts of their names; raise for links out of the file."""
    if len(parts) > _DEEPEST:
        raise WeightsError(
            f"{path} has more than {_DEEPEST} groups inside each other, such as {'/'.join(parts[:6])!r}... Expected a "
            "weights file. Download the weights from a trusted source."
        )
    for name in group:
        entry = _inside(h5py, path, group, name)
        if isinstance(entry, h5py.Group):
            yield from _datasets(h5py, path, entry, (*parts, name))
            continue
        if not isinstance(entry, h5py.Dataset) or entry.external or entry.is_virtual:
            raise WeightsError(
                f"{path} stores {name!r} in another file. Expected a file that contains all of its arrays. Download "
                "the weights from a trusted source."
            )
        yield (*parts, name), entry


def _inside(h5py: Any, path: Path, group: Any, name: str) -> Any:
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise WeightsError(
            f"{path} does not contain {name!r}, or contains only a link to it. Expected a file that contains all of "
            "its arrays. Download the weights from a trusted source."
        )
    return group[name]


def _of_layer(parts: tuple[str, ...]) -> str:
    """Return the name of an array in an `.h5` file, whose groups are the layers of the outer model."""
    layer, owner, leaf = parts[0], parts[-2:][0], parts[-1].partition(":")[0]
    return f"{layer}/{leaf}" if owner == layer or len(parts) == 2 else f"{layer}/{owner}/{leaf}"


def _of_variable(root: Any, parts: tuple[str, ...]) -> str:
    """Return the name of an array in a `.weights.h5` file, or its path in another file.

    The arrays of a layer are numbered in a group `vars`, which holds the name of the layer since Keras 3.
    """
    if parts[-2:-1] != ("vars",):
        return "/".join(parts)
    layers = [parts[:end] for end in range(1, len(parts) - 1) if "vars" in root["/".join(parts[:end])]]
    owners = [_text(root["/".join((*layer, "vars"))].attrs.get("name", layer[-1])) for layer in layers]
    return "/".join((*owners, _leaf(root["/".join(parts[:-1])], parts[-1])))


def _leaf(group: Any, number: str) -> str:
    """Return the name of a numbered array of a layer by the shapes of all its arrays."""
    axes = [len(group[str(i)].shape) if str(i) in group else 0 for i in range(len(group))]
    names = _NORM if axes == [1, 1, 1, 1] else ("kernel", "bias") if axes in ([4], [4, 1], [2], [2, 1]) else ()
    return names[int(number)] if number.isdecimal() and int(number) < len(names) else number


def _text(name: Any) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name)
