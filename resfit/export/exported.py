"""Exported models: a compiled program's source and its weights in one file, run without the network's Python code."""

import json
import os
import pathlib
import struct
import zipfile
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from resfit._utils.checks import positive_int
from resfit._utils.paths import expand_user
from resfit.errors import DataError, InputShapeError, SavedModelError

FORMAT, FORMAT_VERSION = "resfit-export", 1
METADATA, PROGRAM = "metadata.json", "program"  # members of the file; each weight is one more, "weights/<name>.npy"


class ExportedModel:
    """What `Model.export` wrote: a function from images to outputs, with its preprocessing inside.

    Attributes:
      metadata: what the file says of itself: "versions" (of resfit and jax, by which it was written), "inputs" (shape
        and dtype of each, None for the batch's size), "outputs" (as for `Model.export`), "multi_label" (whether
        every output is a label of its own; not in older files), "class_names", "platforms",
        "weights" (their names, in the order in which the program takes them), and where they come from.
      class_names: of the outputs, or None.
    """

    def __init__(self, metadata: dict[str, Any], program: jax.export.Exported, weights: list[Any]) -> None:
        self.metadata = metadata
        self.class_names: list[str] | None = metadata["class_names"]
        (_, self._expected), _ = jax.tree.unflatten(program.in_tree, program.in_avals)
        self._weights = jax.device_put(weights)
        self._call = jax.jit(program.call)

    def __call__(self, x: Any) -> Any:
        """The outputs for one batch, as JAX arrays. Each new size of a batch is compiled once.

        Args:
          x: as it was exported: an array (batch, ...), or a pytree of such.

        Raises:
          InputShapeError: for images of another size than that exported for.
          DataError: for another dtype or structure, or an empty batch.
        """
        return self._call(self._weights, self._checked(x)[0])

    def predict(self, x: Any, batch_size: int = 32) -> Any:
        """The outputs for every row in order, as NumPy.

        Args:
          x: as for a call.
          batch_size: rows that are computed at once; does not change the result.
        """
        x, rows = self._checked(x)
        size = min(rows, positive_int("batch_size", batch_size, DataError))
        parts = []
        for start in range(0, rows, size):
            part = jax.tree.map(lambda leaf: _filled_up(leaf[start : start + size], size), x)  # noqa: B023 - used at once
            parts.append(self._call(self._weights, part))
        return jax.tree.map(lambda *leaves: np.concatenate([np.asarray(leaf) for leaf in leaves])[:rows], *parts)

    def _checked(self, x: Any) -> tuple[Any, int]:
        """The inputs in the dtypes that the program takes, and how many rows there are."""
        expected, given = (str(jax.tree.structure(tree)) for tree in (self._expected, x))
        if expected != given:
            raise DataError(
                f"The model was exported for inputs of the structure {expected}, and got "
                f"{given}. Pass arrays as they were passed in training."
            )
        x = jax.tree.map(_converted, x, self._expected)
        rows = {len(leaf) for leaf in jax.tree.leaves(x)}
        if len(rows) > 1 or 0 in rows:
            raise DataError(f"The inputs have {sorted(rows)} rows. Expected one number for all, at least one.")
        return x, rows.pop()


def _converted(x: Any, expected: Any) -> Any:
    x = x if isinstance(x, jax.Array) else np.asarray(x)
    shape = ("batch", *expected.shape[1:])
    if x.ndim != len(shape) or x.shape[1:] != shape[1:]:
        missing_batch = " Add the batch axis: x[None]." if x.shape == shape[1:] else ""
        raise InputShapeError(
            f"Got inputs of shape {x.shape}; the model was exported for ({', '.join(map(str, shape))}).{missing_batch} "
            "Resize the images, or export the model again with another input_shape."
        )
    for kind in (jnp.floating, jnp.signedinteger):  # a wider one is narrowed, as JAX does by itself
        if jnp.issubdtype(x.dtype, kind) and jnp.issubdtype(expected.dtype, kind):
            return x.astype(expected.dtype)
    if x.dtype != expected.dtype:
        raise DataError(
            f"Got inputs of dtype {x.dtype}; the model was exported for {expected.dtype}, with the preprocessing that "
            f"belongs to it. Pass {expected.dtype}, in the range of the training data, or export the model again with "
            f"input_dtype={str(x.dtype)!r}."
        )
    return x


def _filled_up(rows: Any, size: int) -> Any:
    if len(rows) == size:
        return rows
    return np.concatenate([rows, np.zeros((size - len(rows), *rows.shape[1:]), rows.dtype)])


def load_exported(path: str | os.PathLike[str]) -> ExportedModel:
    """Reads a file that `Model.export` wrote. Neither the network's code nor resfit's other parts are needed.

    An exported file holds a program. Nothing is unpickled, but what the program does is its author's choice: load files
    of people you trust.

    Args:
      path: of the file.

    Raises:
      SavedModelError: if the file is no exported model, is damaged, or is of a version that this resfit, or this jax,
        does not read.
    """
    path = pathlib.Path(expand_user(path))
    if not path.exists():
        raise FileNotFoundError(f"There is no file {path}. Expected one that Model.export wrote.")
    metadata, content, weights = _members(path)
    try:
        program = jax.export.deserialize(bytearray(content))
        (expected, _), _ = jax.tree.unflatten(program.in_tree, program.in_avals)
    except ValueError as error:
        raise SavedModelError(
            f"{path} holds a program, written with jax {metadata['versions']['jax']}, that jax {jax.__version__} does "
            f"not read: {error}. jax reads programs for at least six months. Export the model again, or use a jax of "
            "that time."
        ) from error
    found = [(weight.shape, weight.dtype) for weight in weights]
    if found != [(aval.shape, aval.dtype) for aval in expected]:
        raise SavedModelError(f"{path} is damaged: its weights are not those that its program takes. Export it again.")
    return ExportedModel(metadata, program, weights)


def _members(path: pathlib.Path) -> tuple[dict[str, Any], bytes, list[Any]]:
    """Return what the file says of itself, its program, and its weights in the program's order."""
    with path.open("rb") as stream:
        try:
            with zipfile.ZipFile(stream) as file:
                metadata = _metadata(path, file)
                content = file.read(PROGRAM)
            with np.load(path, allow_pickle=False) as arrays:
                return metadata, content, [np.asarray(arrays[f"weights/{name}"]) for name in metadata["weights"]]
        except SavedModelError:
            raise
        # What zipfile raises for damaged directories and members; an OSError for a position before the file's start.
        except (zipfile.BadZipFile, struct.error, KeyError, ValueError, RuntimeError, EOFError, OSError) as error:
            raise SavedModelError(
                f"{path} is no exported model, or is damaged: {error}. Expected a file that Model.export wrote; what "
                "Model.save wrote is read by resfit.load."
            ) from error


def _metadata(path: pathlib.Path, file: zipfile.ZipFile) -> dict[str, Any]:
    """What the file says of itself. Names that this version does not know are none of its business."""
    # What is not compressed is no larger than the file.
    if any(member.compress_type != zipfile.ZIP_STORED for member in file.infolist()):
        raise SavedModelError(
            f"{path} holds compressed parts, which Model.export never writes. Expected the file as it was written."
        )
    try:
        metadata: dict[str, Any] = json.loads(file.read(METADATA))
        known, version = metadata["format"] == FORMAT, metadata["format_version"]
    except (ValueError, TypeError, KeyError) as error:
        raise SavedModelError(
            f"{path} is no exported model: it has no {METADATA} of one. Expected a file that Model.export wrote."
        ) from error
    if not known or not isinstance(version, int) or version > FORMAT_VERSION:
        raise SavedModelError(
            f"{path} is of the format {metadata['format']!r}, version {version!r}, written by "
            f"{metadata.get('versions')}; this resfit reads {FORMAT!r} up to version {FORMAT_VERSION}. Upgrade resfit."
        )
    if missing := sorted({"versions", "inputs", "outputs", "class_names", "platforms", "weights"} - set(metadata)):
        raise SavedModelError(f"{path} is damaged: its {METADATA} says nothing of {missing}. Export the model again.")
    return metadata
