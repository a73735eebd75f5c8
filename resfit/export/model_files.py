"""`ModelFiles`: the methods of a model that write and read files."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Self

import jax
from flax import nnx

from resfit import preprocess as preprocess_
from resfit._utils.keywords import checked
from resfit.data import Geometry, as_batches
from resfit.data.relabeled import relabeled
from resfit.export import exporter, saving
from resfit.export.onnx import exporter as onnx
from resfit.export.onnx import file, quantization
from resfit.export.onnx.runtime import OnnxModel
from resfit.trainer.image_model import ImageModel


class ModelFiles(ImageModel):
    """Saves, loads and exports a model."""

    @checked("arguments")
    def save(self, path: str | os.PathLike[str], *, weights: str = "raw") -> None:
        """Write variables, the network's spec, preprocessing and class names to one safetensors file.

        If several processes train together, the first one writes.

        Args:
          path: ending in ".safetensors". `resfit.load` reads it.
          weights: "raw", as trained; "ema", averaged (see `compile`).
        """
        module = self._context.state.module_with(weights)
        if jax.process_index() == 0:
            inputs, labels = self._learned.inputs, self._learned.labels
            saved = saving.SavedModel(
                module, inputs.preprocess, inputs.trained_on, inputs.transforms, labels.names, inputs.trained,
                labels.multi_label,
            )  # fmt: skip
            saving.save(path, saved)

    save_weights = save

    @checked("arguments")
    def load_weights(self, path: str | os.PathLike[str] | Mapping[str, Any]) -> None:
        """Read the weights of a file of `save` or `ModelCheckpoint` into the module; the optimizer state stays.

        Args:
          path: of the file; or arrays by the names of such a file, as `resfit.weights.average` returns.

        Raises:
          SavedModelError: if the file does not fit the network, or has weights for another preprocessing.
        """
        with self._context.state.lock:  # a step of another thread takes all of the new weights or none
            saving.load_weights(path, self.module, self._learned.inputs)

    @classmethod
    @checked("arguments")
    def load(
        cls,
        path: str | os.PathLike[str],
        module: nnx.Module | None = None,
        preprocess: preprocess_.Preprocess | None = None,
    ) -> Self:
        """Read a file of `save`; also as `resfit.load`.

        Args:
          path: of the file.
          module: the module to fill, if it is not one of resfit's networks, which are rebuilt from the file.
          preprocess: needed if the model was saved with a custom function; otherwise equal to the trained one.

        Returns:
          A model that can predict without `compile`, and can be compiled to continue training.

        Raises:
          SavedModelError: if the file is not one of resfit's, or needs one of the arguments.
        """
        saved = saving.load(path, module, preprocess)
        model = cls(saved.module)
        inputs, labels = model._learned.inputs, model._learned.labels
        inputs.transforms, labels.names, labels.multi_label = saved.transforms, saved.class_names, saved.multi_label
        inputs.adopt(saved.preprocess, saved.trained_on)
        inputs.trained = saved.trained
        model._use(model._context)
        return model

    @checked("arguments")
    def export(
        self,
        path: str | os.PathLike[str],
        *,
        input_shape: Any = None,
        input_dtype: str | None = None,
        outputs: str = "logits",
        weights: str = "raw",
        fold_batch_norm: bool = False,
        class_names: Sequence[str] | None = None,
        platforms: Sequence[str] = exporter.DEFAULT_PLATFORMS,
        opset: int | None = None,
        dynamic_batch: bool = True,
    ) -> None:
        """Write the computation of `predict`, preprocessing included, to a file that needs no code of the network.

        A path that ends in ".npz" gets a program that runs with jax alone: the program (StableHLO, by `jax.export`),
        the weights, and JSON. A path that ends in ".onnx" gets a file for other runtimes, of the extra `resfit[onnx]`,
        in float32 and with folded batch norms. It is compared with `predict` in onnxruntime; the result is printed, and
        in the file's metadata. `resfit.load_exported` reads both. If several processes train together, the first one
        writes.

        Args:
          path: ending in ".npz" or ".onnx".
          input_shape: of one image, (height, width, channels), or a dict of such; by default of the images last seen.
          input_dtype: such as "uint8"; by default that of the images last seen.
          outputs: as in `predict`.
          weights: "raw", as trained; "ema", averaged (see `compile`).
          fold_batch_norm: True to make every batch norm after a convolution part of it (`resfit.nets.fold_batch_norm`).
          class_names: kept with the program, one for each output; the model's own by default.
          platforms: where a program of jax can run, of "cpu", "cuda", "rocm" and "tpu".
          opset: the version of the ONNX operations; 17 by default.
          dynamic_batch: False for an ONNX file for one image at a time, for runtimes that need fixed sizes.

        Raises:
          ExportError: for an unknown shape or dtype of the images, a module that needs the size of a batch, an
            operation that ONNX lacks, or a wrong argument.
          ModuleError: if there is no batch norm to fold.
          MissingPackageError: for ONNX, if onnx is not installed.
        """
        state, inputs, labels = self._context.state, self._learned.inputs, self._learned.labels
        example = exporter.inputs(inputs.example, input_shape, input_dtype, inputs.preprocess, inputs.trained_on)
        module, names = state.module_with(weights), labels.names if class_names is None else class_names
        if exporter.is_onnx(path, opset, dynamic_batch, platforms):
            onnx.export(path, module, example, self._settings(outputs, weights, names, opset, dynamic_batch))
            return
        exporter.export(
            path, module, example, preprocess=inputs.preprocess, precision=state.precision, seed=self._context.seed,
            outputs=outputs, weights=weights, fold=fold_batch_norm, class_names=names, platforms=platforms,
            multi_label=labels.is_multi_label(outputs), transforms=inputs.transforms,
        )  # fmt: skip

    @checked("arguments")
    def quantize(
        self,
        calibration_data: Any,
        validation_data: Any = None,
        batch_size: int = 32,
        *,
        weights: str = "raw",
        class_names: Sequence[str] | None = None,
        opset: int | None = None,
    ) -> OnnxModel:
        """Return an int8 model for onnxruntime: convolutions and dense layers with 8-bit weights and activations.

        The network is not trained again. The calibration data determine the range of each activation. The accuracy
        beside that of `predict` is printed, and in the metadata of the model. Needs the extra `resfit[onnx]`.

        Args:
          calibration_data: some hundred images like those of training, in any form that `predict` takes. Labels are not
            used. An iterator of one pass needs `validation_data`, because the comparison reads the images again.
          validation_data: (x, y), or any data with labels that `evaluate` takes, for the accuracy; None to compare only
            the predicted classes, on the calibration data.
          batch_size: images per batch. It does not change the result.
          weights: "raw", as trained; "ema", averaged (see `compile`).
          class_names: kept with the model, one for each output; the model's own by default.
          opset: the version of the ONNX operations; 17 by default.

        Returns:
          A model whose `save("net.onnx")` writes the file and whose `predict` returns logits.

        Raises:
          DataError: if there are no calibration images.
          LabelError: for validation labels that do not fit the network, as in `evaluate`.
          ExportError: for an operation that ONNX lacks, and for several outputs.
          MissingPackageError: if onnx or onnxruntime is not installed.
        """
        geometry = Geometry(batch_size, pad=True)
        calibration = as_batches(calibration_data, geometry=geometry)
        validation = None
        if validation_data is not None:
            parts = validation_data if isinstance(validation_data, tuple) else (validation_data,)
            validation = as_batches(*parts, geometry=geometry)
            labels = self._learned.labels
            validation = relabeled(validation, labels.names, "validation_data", labels.ignore_index)
        example = quantization.example(calibration, self._learned.inputs)
        names = self._learned.labels.names if class_names is None else class_names
        settings = self._settings("logits", weights, names, opset, True)
        file.check_opset(opset)
        network = onnx.written(self._context.state.module_with(weights), example, settings)
        return quantization.quantized(network, calibration, validation, self._learned)

    def _settings(
        self, outputs: str, weights: str, names: Sequence[str] | None, opset: int | None, dynamic_batch: bool
    ) -> onnx.Settings:
        inputs = self._learned.inputs
        return onnx.Settings(
            inputs.preprocess, inputs.transforms, self._context.state.precision, self._context.seed, outputs, weights,
            names, self._learned.labels.is_multi_label(outputs), opset, dynamic_batch,
        )  # fmt: skip
