"""`OnnxModel`: an ONNX file of resfit that onnxruntime runs."""

import json
import os
import pathlib
from typing import Any

import jax
import numpy as np

from resfit._utils.atomic_write import write
from resfit._utils.checks import positive_int
from resfit._utils.keywords import checked
from resfit._utils.optional_import import load_package
from resfit._utils.paths import expand_user
from resfit.errors import DataError, ExportError, SavedModelError
from resfit.export.arguments import Expected, converted, filled_up
from resfit.export.onnx.file import FORMAT, INSTALL

_FAILURES = (
    "EPFail",
    "Fail",
    "InvalidArgument",
    "InvalidGraph",
    "InvalidProtobuf",
    "NotImplemented",
    "RuntimeException",
)


class OnnxModel:
    """An ONNX model that onnxruntime runs on the CPU: a function from images to outputs, preprocessing included.

    Attributes:
      content: the bytes of the ONNX file.
      metadata: the metadata of the file: "versions", "inputs" (name, shape and dtype of each input, with None for a
        batch size that can vary), "outputs" and "output_names", "multi_label", "class_names", "preprocess",
        "transforms", "weights_are", "opset", "parity" (the comparison with `Model.predict`), and "quantization" (None
        for float32).
      class_names: the names of the classes, or None.
    """

    def __init__(self, content: bytes, name: str = "The ONNX model") -> None:
        self.content = content
        self._session = session(content, name)
        self.metadata = _metadata(self._session, name)
        self.class_names: list[str] | None = self.metadata["class_names"]
        self._expected = {
            one["name"]: Expected(tuple(one["shape"]), np.dtype(one["dtype"])) for one in self.metadata["inputs"]
        }

    @property
    def ports(self) -> list[str]:
        """The names of the inputs in the file, in the order of `metadata["inputs"]`."""
        return [port.name for port in self._session.get_inputs()]

    def __reduce__(self) -> tuple[Any, ...]:
        return OnnxModel, (self.content,)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to a file, which every ONNX runtime reads.

        Args:
          path: ending in ".onnx".

        Raises:
          ExportError: for another ending.
        """
        path = pathlib.Path(expand_user(path))
        if path.suffix != ".onnx":
            raise ExportError(f"save received the path {str(path)!r}. Expected one that ends in '.onnx'.")
        write(path, self.content)

    def __call__(self, x: Any) -> Any:
        """Return the outputs of one batch.

        Args:
          x: an array (batch, ...) or a pytree of arrays, as the model was exported for.

        Returns:
          A NumPy array; for a module with several outputs a dict of arrays by name.

        Raises:
          InputShapeError: for images of another size than the exported one.
          DataError: for another dtype or structure, an empty batch, or another batch size than a fixed one.
        """
        arrays, rows = self._checked(x)
        fixed = next(iter(self._expected.values())).shape[0]
        if fixed not in (None, rows):
            raise DataError(
                f"Got {rows} rows. Expected {fixed}, because the model was exported with dynamic_batch=False. Call "
                "predict, which splits the rows, or export the model with dynamic_batch=True."
            )
        return self._run(arrays)

    @checked("exported arguments")
    def predict(self, x: Any, batch_size: int = 32) -> Any:
        """Return the outputs of all rows in order.

        Args:
          x: the inputs, as for a call.
          batch_size: the number of rows per call of the runtime. It does not change the result.
        """
        arrays, rows = self._checked(x)
        fixed = next(iter(self._expected.values())).shape[0]
        size = fixed or min(rows, positive_int("batch_size", batch_size, DataError))
        parts = []
        for start in range(0, rows, size):
            part = [array[start : start + size] for array in arrays]
            parts.append(self._run([filled_up(array, size) for array in part] if fixed else part))
        return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:rows], *parts)

    def _run(self, arrays: list[Any]) -> Any:
        found = self._session.run(None, dict(zip(self.ports, arrays, strict=True)))
        outputs = self.metadata["output_names"]
        return found[0] if len(found) == 1 else dict(zip(outputs, found, strict=True))

    def _checked(self, x: Any) -> tuple[list[Any], int]:
        """Return the inputs in the order and the dtypes of the file, and the number of rows."""
        given = {jax.tree_util.keystr(where): leaf for where, leaf in jax.tree_util.tree_flatten_with_path(x)[0]}
        if set(given) != set(self._expected):
            if set(self._expected) == {""}:
                raise DataError(
                    f"Got a {type(x).__name__} as the inputs. Expected one array (batch, ...), for which the model was "
                    "exported. Pass numpy.asarray(x) of the images."
                )
            raise DataError(
                f"Got inputs with the names {sorted(given)[:10]}. Expected {sorted(self._expected)}, for which the "
                "model was exported. Pass arrays as in training."
            )
        arrays = [np.asarray(converted(given[name], aval)) for name, aval in self._expected.items()]
        rows = {len(array) for array in arrays}
        if len(rows) > 1 or 0 in rows:
            raise DataError(f"The inputs have {sorted(rows)} rows. Expected the same number of rows, at least one.")
        return arrays, rows.pop()


def session(content: bytes, name: str) -> Any:
    """Return a session of onnxruntime on the CPU.

    Args:
      content: the bytes of an ONNX file.
      name: of the file, for the error.

    Raises:
      SavedModelError: if onnxruntime cannot read the file.
      MissingPackageError: if onnxruntime is not installed.
    """
    runtime = load_package("onnxruntime", "An ONNX model", INSTALL)
    state = runtime.capi.onnxruntime_pybind11_state
    failures = tuple(getattr(state, failure) for failure in _FAILURES)
    try:
        return runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    except failures as error:
        raise SavedModelError(
            f"{name} is not an ONNX model that onnxruntime {runtime.__version__} can read: {str(error)[:300]} Expected "
            "a file of Model.export. Export the model again, with a lower opset for an older runtime."
        ) from error


def _metadata(loaded: Any, name: str) -> dict[str, Any]:
    found = loaded.get_modelmeta().custom_metadata_map
    try:
        metadata: dict[str, Any] = {key: json.loads(value) for key, value in found.items()}
    except ValueError:
        metadata = {}
    missing = {"format", "versions", "inputs", "outputs", "output_names", "class_names"} - set(metadata)
    if missing or metadata["format"] != FORMAT:
        raise SavedModelError(
            f"{name} is an ONNX model without the metadata of resfit; it lacks {sorted(missing)}. Expected a file of "
            "Model.export. Run other files with onnxruntime.InferenceSession."
        )
    return metadata
