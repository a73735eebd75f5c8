"""`ModelFiles`: the methods of a model that write and read files."""

import os
from collections.abc import Sequence
from typing import Any, Self

import jax
from flax import nnx

from resfit import preprocess as preprocess_
from resfit._utils.keywords import checked
from resfit.export import exporter, saving
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
    def load_weights(self, path: str | os.PathLike[str]) -> None:
        """Read the weights of a file of `save` or `ModelCheckpoint` into the module; the optimizer state stays.

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
        platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    ) -> None:
        """Write the computation of `predict` as a program that runs with jax alone, for batches of any size.

        The file holds the program (StableHLO, by `jax.export`), preprocessing included, the weights, and JSON.
        `resfit.load_exported` reads it. If several processes train together, the first one writes.

        Args:
          path: ending in ".npz".
          input_shape: of one image, (height, width, channels), or a dict of such; by default of the images last seen.
          input_dtype: such as "uint8"; by default that of the images last seen.
          outputs: as in `predict`.
          weights: "raw", as trained; "ema", averaged (see `compile`).
          fold_batch_norm: True to make every batch norm after a convolution part of it (`resfit.nets.fold_batch_norm`).
          class_names: kept with the program, one for each output; the model's own by default.
          platforms: where it can run, of "cpu", "cuda", "rocm" and "tpu".

        Raises:
          ExportError: for an unknown shape or dtype of the images, a module that needs the size of a batch, or a wrong
            argument.
          ModuleError: if there is no batch norm to fold.
        """
        state, inputs, labels = self._context.state, self._learned.inputs, self._learned.labels
        exporter.export(
            path,
            state.module_with(weights),
            exporter.inputs(inputs.example, input_shape, input_dtype, inputs.preprocess, inputs.trained_on),
            preprocess=inputs.preprocess, precision=state.precision, seed=self._context.seed, outputs=outputs,
            weights=weights, fold=fold_batch_norm, class_names=labels.names if class_names is None else class_names,
            platforms=platforms, multi_label=labels.is_multi_label(outputs), transforms=inputs.transforms,
        )  # fmt: skip
