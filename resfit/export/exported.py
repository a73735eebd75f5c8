"""Exported models: a program and its weights in one file, which run without the Python code of the network."""

import json
import os
import pathlib
import struct
import zipfile
from typing import Any

import jax
import jax.export
import numpy as np

from resfit._utils.checks import positive_int
from resfit._utils.jax_switches import suspending_calls
from resfit._utils.keywords import checked
from resfit._utils.paths import expand_user
from resfit.errors import DataError, SavedModelError
from resfit.export.arguments import converted, filled_up
from resfit.export.onnx.runtime import OnnxModel
from resfit.transforms import FolderTransforms, Transforms
from resfit.transforms.folder_transforms import from_config

FORMAT, FORMAT_VERSION = "resfit-export", 1
METADATA, PROGRAM = "metadata.json", "program"  # members of the file; each weight is another one, "weights/<name>.npy"


@suspending_calls()
class ExportedModel:
    """An exported model: a function from images to outputs that includes the preprocessing.

    Attributes:
      metadata: the metadata of the file: "versions" (of resfit and jax that wrote the file), "inputs" (name, shape and
        dtype of each input, with None for the batch size), "outputs" (as in `Model.export`), "multi_label" (True if
        every output is an independent label; older files lack it), "class_names", "transforms", "platforms",
        "precision", "preprocess", "batch_norm_folded", "weights_are" ("raw" or "ema"), and "weights" (names, in the
        order of the program's arguments).
      class_names: the names of the classes, or None.
    """

    def __init__(self, metadata: dict[str, Any], program: jax.export.Exported, weights: list[Any]) -> None:
        self.metadata = metadata
        self.class_names: list[str] | None = metadata["class_names"]
        (_, self._expected), _ = jax.tree.unflatten(program.in_tree, program.in_avals)
        self._weights = jax.device_put(weights)
        self._program = program
        self._call = jax.jit(program.call)

    @property
    def transforms(self) -> Transforms | FolderTransforms | None:
        """The transforms of photographs, as `model.transforms`; None also for older files."""
        return from_config(self.metadata.get("transforms"))

    def __reduce__(self) -> tuple[Any, ...]:
        weights = [np.asarray(weight) for weight in self._weights]
        metadata = {**self.metadata, "class_names": self.class_names}
        return _unpickled, (metadata, bytes(self._program.serialize()), weights)

    def __call__(self, x: Any) -> Any:
        """Return the outputs of one batch as JAX arrays. Each batch size compiles once.

        Args:
          x: an array (batch, ...) or a pytree of arrays, as the model was exported for.

        Raises:
          InputShapeError: for images of another size than the exported one.
          DataError: for another dtype or structure, or an empty batch.
        """
        return self._call(self._weights, self._checked(x)[0])

    @checked("exported arguments")
    def predict(self, x: Any, batch_size: int = 32) -> Any:
        """Return the outputs of all rows in order, as NumPy arrays.

        Args:
          x: the inputs, as for a call.
          batch_size: the number of rows per call of the program. It does not change the result.
        """
        x, rows = self._checked(x)
        size = min(rows, positive_int("batch_size", batch_size, DataError))
        parts = []
        for start in range(0, rows, size):
            part = jax.tree.map(lambda leaf: filled_up(leaf[start : start + size], size), x)  # noqa: B023 - used at once
            parts.append(self._call(self._weights, part))
        return jax.tree.map(lambda *leaves: np.concatenate([np.asarray(leaf) for leaf in leaves])[:rows], *parts)

    def _checked(self, x: Any) -> tuple[Any, int]:
        """Return the inputs in the dtypes of the program, and the number of rows."""
        expected, given = (str(jax.tree.structure(tree)) for tree in (self._expected, x))
        if expected != given:
            raise DataError(
                f"Got inputs of the structure {given}. Expected {expected}, for which the model was exported. Pass "
                "arrays as in training."
            )
        x = jax.tree.map(converted, x, self._expected)
        rows = {len(leaf) for leaf in jax.tree.leaves(x)}
        if len(rows) > 1 or 0 in rows:
            raise DataError(f"The inputs have {sorted(rows)} rows. Expected the same number of rows, at least one.")
        return x, rows.pop()


def _unpickled(metadata: dict[str, Any], program: bytes, weights: list[Any]) -> ExportedModel:
    return ExportedModel(metadata, jax.export.deserialize(bytearray(program)), weights)


@checked("function arguments")
def load_exported(path: str | os.PathLike[str]) -> ExportedModel | OnnxModel:
    """Load a file of `Model.export`. Loading needs no code of the network.

    An exported file holds a program. Loading does not unpickle anything, but the author decides what the program does,
    so load only files from people you trust.

    Args:
      path: the path of the file; one that ends in ".onnx" runs in onnxruntime, of the extra `resfit[onnx]`.

    Raises:
      SavedModelError: if the file is not an exported model, is damaged, or has a version that this resfit or this jax
        cannot read.
      MissingPackageError: for an ONNX file, if onnxruntime is not installed.
    """
    path = pathlib.Path(expand_user(path))
    if path.is_dir():
        raise SavedModelError(f"{path} is a folder. Expected a file of Model.export. Pass the path of the file itself.")
    if not path.exists():
        raise FileNotFoundError(f"There is no file {path}. Expected a file of Model.export.")
    if path.suffix == ".onnx":
        return OnnxModel(path.read_bytes(), str(path))
    metadata, content, weights = _members(path)
    try:
        program = jax.export.deserialize(bytearray(content))
        (expected, _), _ = jax.tree.unflatten(program.in_tree, program.in_avals)
    except ValueError as error:
        raise SavedModelError(
            f"{path} holds a program of jax {metadata['versions']['jax']} that jax {jax.__version__} cannot read: "
            f"{error}. Expected a program of the last six months, which jax guarantees to read. Export the model "
            "again, or install that version of jax."
        ) from error
    found = [(weight.shape, weight.dtype) for weight in weights]
    if found != [(aval.shape, aval.dtype) for aval in expected]:
        raise SavedModelError(f"{path} is damaged: its weights do not fit its program. Export the model again.")
    return ExportedModel(metadata, program, weights)


def _members(path: pathlib.Path) -> tuple[dict[str, Any], bytes, list[Any]]:
    """Return the metadata, the program, and the weights in the order of the program's arguments."""
    with path.open("rb") as stream:
        try:
            with zipfile.ZipFile(stream) as file:
                metadata = _metadata(path, file)
                content = file.read(PROGRAM)
            with np.load(path, allow_pickle=False) as arrays:
                return metadata, content, [np.asarray(arrays[f"weights/{name}"]) for name in metadata["weights"]]
        except SavedModelError:
            raise
        # zipfile raises these for damaged directories and members, an OSError for a negative position.
        except (zipfile.BadZipFile, struct.error, KeyError, ValueError, RuntimeError, EOFError, OSError) as error:
            raise SavedModelError(
                f"{path} is not an exported model, or is damaged: {error}. Expected a file of Model.export. For a file "
                "of Model.save use resfit.load."
            ) from error


def _metadata(path: pathlib.Path, file: zipfile.ZipFile) -> dict[str, Any]:
    """Return the metadata of the file. Unknown names are ignored."""
    # Uncompressed members cannot be larger than the file.
    if any(member.compress_type != zipfile.ZIP_STORED for member in file.infolist()):
        raise SavedModelError(
            f"{path} holds compressed parts, which Model.export never writes. Expected the original file."
        )
    try:
        metadata: dict[str, Any] = json.loads(file.read(METADATA))
        known, version = metadata["format"] == FORMAT, metadata["format_version"]
    except (ValueError, TypeError, KeyError) as error:
        raise SavedModelError(
            f"{path} is not an exported model: its {METADATA} is invalid. Expected a file of Model.export."
        ) from error
    if not known or not isinstance(version, int) or version > FORMAT_VERSION:
        raise SavedModelError(
            f"{path} has the format {metadata['format']!r}, version {version!r}, written by "
            f"{metadata.get('versions')}. Expected {FORMAT!r} up to version {FORMAT_VERSION}. Upgrade resfit."
        )
    if missing := sorted({"versions", "inputs", "outputs", "class_names", "platforms", "weights"} - set(metadata)):
        raise SavedModelError(f"{path} is damaged: its {METADATA} lacks {missing}. Export the model again.")
    return metadata
