"""The `.h5` files of keras.applications: ResNet50, 101 and 152."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from resfit._utils.optional_import import load_package
from resfit.errors import WeightsError
from resfit.weights.layouts import Array


def read(path: Path) -> dict[str, Array]:
    """The arrays of a file by layer and name, such as `"conv1_conv/kernel"`.

    Raises:
        WeightsError: if it does not name its layers, is damaged, or points to other files.
        MissingPackageError: without h5py.
    """
    h5py = load_package("h5py", f"Reading {path.name}", "pip install 'resfit[weights]'")
    try:
        with h5py.File(path, "r") as file:
            if "layer_names" not in file.attrs and "model_weights" in file:
                file = file["model_weights"]
            if "layer_names" not in file.attrs:
                raise WeightsError(
                    f"{path} is no weight file of Keras's first format, which names its layers; it holds "
                    f"{sorted(file)[:10]}. Expected one of keras.applications. In the newer .weights.h5 layers are "
                    "numbered: build the network in Keras and pass its arrays to load_state_dict(..., naming='keras')."
                )
            return dict(_datasets(h5py, path, file))
    except OSError as error:
        raise WeightsError(f"{path} is a damaged HDF5 file: {error}. Take another copy.") from error


def _datasets(h5py: Any, path: Path, file: Any) -> Iterator[tuple[str, Array]]:
    """Every array, under its layer's name and the last part of its own. What lies outside the file is not followed."""
    left = path.stat().st_size
    for layer in (_text(name) for name in file.attrs["layer_names"]):
        group = _inside(h5py, path, file, layer)
        for name in (_text(name) for name in group.attrs["weight_names"]):
            dataset = _inside(h5py, path, group, name)
            if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
                raise WeightsError(f"{path} keeps {name!r} outside of itself. Expected a file that holds its arrays.")
            left -= dataset.nbytes
            if left < 0:
                raise WeightsError(f"{path} promises more numbers than it holds, at {name!r}. Get another copy.")
            yield f"{layer}/{name.rpartition('/')[2].partition(':')[0]}", np.asarray(dataset[()])


def _inside(h5py: Any, path: Path, group: Any, name: str) -> Any:
    for part in filter(None, name.split("/")):
        if part == ".." or not isinstance(group.get(part, getlink=True), h5py.HardLink):
            raise WeightsError(f"{path} holds no {name!r}, or a link to it. Expected a file that holds its arrays.")
        group = group[part]
    return group


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)
