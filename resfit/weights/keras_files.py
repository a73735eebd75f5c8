"""The `.h5` files of keras.applications: ResNet50, 101 and 152."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from resfit._utils.optional_import import load_package
from resfit.errors import WeightsError
from resfit.weights.layouts import Array


def read(path: Path) -> dict[str, Array]:
    """Read the arrays of a file by layer and name, such as `"conv1_conv/kernel"`.

    Raises:
        WeightsError: if the file does not name its layers, is damaged, or links to other files.
        MissingPackageError: if h5py is not installed.
    """
    h5py = load_package("h5py", f"Reading {path.name}", "pip install 'resfit[weights]'")
    try:
        with h5py.File(path, "r") as file:
            if "layer_names" not in file.attrs and "model_weights" in file:
                file = file["model_weights"]
            if "layer_names" not in file.attrs:
                raise WeightsError(
                    f"{path} is not a weights file with named layers; it holds {sorted(file)[:10]}. Expected a file of "
                    "keras.applications. The newer format .weights.h5 numbers the layers: build the network in Keras "
                    "and pass its arrays to load_state_dict(..., naming='keras')."
                )
            return dict(_datasets(h5py, path, file))
    except OSError as error:
        raise WeightsError(
            f"{path} is a damaged HDF5 file: {error}. Expected a complete file. Download it again."
        ) from error


def _datasets(h5py: Any, path: Path, file: Any) -> Iterator[tuple[str, Array]]:
    """Iterate over the arrays by layer and last part of their name; raise for links out of the file."""
    left = path.stat().st_size
    for layer in (_text(name) for name in file.attrs["layer_names"]):
        group = _inside(h5py, path, file, layer)
        for name in (_text(name) for name in group.attrs["weight_names"]):
            dataset = _inside(h5py, path, group, name)
            if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
                raise WeightsError(
                    f"{path} stores {name!r} in another file. Expected a file that contains all of its arrays. "
                    "Download the weights from a trusted source."
                )
            left -= dataset.nbytes
            if left < 0:
                raise WeightsError(
                    f"{path} promises more numbers than it holds, at {name!r}. Expected a complete file. Download it "
                    "again."
                )
            yield f"{layer}/{name.rpartition('/')[2].partition(':')[0]}", np.asarray(dataset[()])


def _inside(h5py: Any, path: Path, group: Any, name: str) -> Any:
    for part in filter(None, name.split("/")):
        if part == ".." or not isinstance(group.get(part, getlink=True), h5py.HardLink):
            raise WeightsError(
                f"{path} does not contain {name!r}, or contains only a link to it. Expected a file that contains all "
                "of its arrays. Download the weights from a trusted source."
            )
        group = group[part]
    return group


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)
