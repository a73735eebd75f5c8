"""Quantization of an ONNX model to int8 after training, and the accuracy that it costs.

Weights are int8 with one scale per output channel, activations uint8 with one scale and zero point per array, whose
range is the smallest and the largest value on the calibration data (Jacob et al. 2018, arXiv:1712.05877). onnxruntime
measures the ranges and writes `QuantizeLinear` and `DequantizeLinear` around each operation (QDQ).
"""

import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from rich.console import Console

from resfit import preprocess as preprocess_
from resfit._utils.optional_import import load_package
from resfit.data import Batches
from resfit.errors import DataError, ExportError
from resfit.export.onnx import file
from resfit.export.onnx.exporter import Written, differences
from resfit.export.onnx.runtime import OnnxModel
from resfit.metrics import Accuracy, BinaryAccuracy
from resfit.trainer.learned.facts import Learned
from resfit.trainer.learned.input_format import InputFormat
from resfit.trainer.step import OutputsShape

# Convolutions and dense layers, and the operations between them, so that the arrays between two layers stay int8.
_OPERATIONS = ["Conv", "Gemm", "MatMul", "Add", "Relu", "MaxPool"]
_PREPARED = {"onnx.quant.pre_process": "onnxruntime.quant"}  # the writer has merged what onnxruntime's tool would merge


def example(calibration: Batches, inputs: InputFormat) -> Any:
    """Return shape and dtype of one calibration image.

    Args:
      calibration: the data.
      inputs: what the model knows of its inputs.

    Raises:
      DataError: if there are no images, or images of another scale than those of training.
    """
    first = next(iter(calibration.epoch(0)), None)
    if first is None:
        raise DataError("quantize received no calibration images. Expected some hundred images like those of training.")
    inputs.check(first.x, trained=False)
    return preprocess_.example(first.x)


def quantized(network: Written, calibration: Batches, validation: Batches | None, learned: Learned) -> OnnxModel:
    """Return the int8 model of a network, and print the comparison of both.

    Args:
      network: the network in float32, with logits as its outputs.
      calibration: images whose activations determine the scales.
      validation: images with labels for the accuracy; None to compare the classes on the calibration data only.
      learned: what the model knows of its labels.

    Raises:
      LabelError: for labels that do not fit the network.
      ExportError: if the network has several outputs, or nothing to quantize.
      MissingPackageError: if onnx or onnxruntime is not installed.
    """
    if len(network.metadata["output_names"]) != 1:
        raise ExportError(
            f"quantize received a network with the outputs {network.metadata['output_names']}. Expected one output: "
            "the classes are compared. Export it in float32: model.export('net.onnx')."
        )
    model = OnnxModel(file.with_metadata(_quantize(network, calibration), file.encoded(network.metadata)))
    report = _comparison(model, network, calibration if validation is None else validation, learned)
    report = {"weights": "int8 per channel", "activations": "uint8 per array", **report}
    Console().print(_said(report), highlight=False)
    return OnnxModel(file.with_metadata(model.content, file.encoded({**network.metadata, "quantization": report})))


def _quantize(network: Written, calibration: Batches) -> bytes:
    tools = load_package("onnxruntime.quantization", "Quantization", file.INSTALL)
    ports = [port.name for port in network.graph.inputs]
    with tempfile.TemporaryDirectory() as folder:
        source, target = (pathlib.Path(folder) / name for name in ("float.onnx", "int8.onnx"))
        source.write_bytes(file.with_metadata(file.content(network.graph, {}), _PREPARED))
        tools.quantize_static(
            source, target, _reader(tools, ports, calibration), quant_format=tools.QuantFormat.QDQ, per_channel=True,
            activation_type=tools.QuantType.QUInt8, weight_type=tools.QuantType.QInt8,
            op_types_to_quantize=_OPERATIONS, calibrate_method=tools.CalibrationMethod.MinMax,
        )  # fmt: skip
        return target.read_bytes()


def _reader(tools: Any, ports: list[str], calibration: Batches) -> Any:
    batches = _rows(calibration)

    class Reader(tools.CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is untyped
        """The calibration data as onnxruntime reads them."""

        def get_next(self) -> dict[str, Any] | None:
            batch = next(batches, None)
            return None if batch is None else dict(zip(ports, batch, strict=True))

    return Reader()


def _rows(data: Batches) -> Iterator[list[Any]]:
    """Yield the input arrays of each batch without padding."""
    for batch in data.epoch(0):
        yield [np.asarray(leaf)[: batch.size] for leaf in jax.tree.leaves(batch.x)]


# --- comparison -------------------------------------------------------------------------------------------------------


def _comparison(model: OnnxModel, network: Written, data: Batches, learned: Learned) -> dict[str, Any]:
    """Return the accuracy of both models, if there are labels, and the share of rows with the same class."""
    metric: Any = BinaryAccuracy if network.metadata["multi_label"] else Accuracy
    totals, same, rows = {"accuracy_float32": metric.empty(), "accuracy_int8": metric.empty()}, 0.0, 0
    labeled = True
    for batch in data.epoch(0):
        logits = {"accuracy_float32": np.asarray(network.original(batch.x)), "accuracy_int8": model.predict(batch.x)}
        count = batch.size
        found, expected = (logits[name][:count] for name in ("accuracy_int8", "accuracy_float32"))
        same, rows = same + count * differences([found], [expected])["same_class"], rows + count
        labeled = labeled and batch.y is not None
        if labeled:
            learned.check_labels(np.asarray(batch.y)[:count], OutputsShape.of(expected))
            for name, outputs in logits.items():
                part = metric.from_model_output(logits=outputs[:count], targets=batch.y[:count])
                totals[name] = totals[name].merge(part)
    accuracies = {name: float(total.compute()) for name, total in totals.items()} if labeled else {}
    return {"rows": rows, "same_class": same / rows, **accuracies}


def _said(report: Mapping[str, Any]) -> str:
    accuracy = ""
    if "accuracy_int8" in report:
        accuracy = f"accuracy {report['accuracy_int8']:.2%} (float32 {report['accuracy_float32']:.2%}), "
    return f"int8 model on {report['rows']} images: {accuracy}same class as float32 for {report['same_class']:.2%}."
