"""`Model`: train, evaluate, apply and save an nnx.Module. A facade over `resfit.trainer`, with Keras's names."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from resfit import augment as augment_
from resfit import losses, optimizers, schedules
from resfit import metrics as metrics_
from resfit import preprocess as preprocess_
from resfit._utils.keywords import checked
from resfit.backends.allocator import keeping_memory
from resfit.callbacks import Callback, History
from resfit.data import Batches, Geometry, as_batches
from resfit.data.relabeled import relabeled
from resfit.errors import CompileError
from resfit.export.hub_model import HubModel
from resfit.trainer.arguments import bar, dispatch_of, listed, one_batch, returned
from resfit.trainer.config import CompileConfig, FitConfig
from resfit.trainer.learned.outputs import kind_of
from resfit.trainer.loop import fitting
from resfit.trainer.loop.callback_list import CallbackList
from resfit.trainer.loop.predictor import Asked
from resfit.trainer.views import check_tta


class Model(HubModel):
    """An nnx.Module that can be trained, evaluated and applied, with the arguments, defaults and results of Keras.

    Any module that maps a batch of inputs to outputs works. Its mode (BatchNorm, Dropout) is switched automatically, on
    a copy of its graph: the module's own flags never change. If its `__call__` has a parameter `train`, `training`,
    `deterministic` or `use_running_average`, the mode is passed. A subclass that needs another step overrides
    `compute_loss`. Members of Keras's and Lightning's models that resfit does not read, such as `train_step`, raise
    `OverrideError` when they are defined or set.

    Args:
      module: the network. It stays the caller's own object, and holds the trained variables after `fit`.

    Attributes:
      history: the `History` of the last `fit`, or None.
      validation_weights: the weights that `fit` validates with, "raw" or "ema". Callbacks keep those.
      stop_training: a callback sets it to stop `fit` after this batch; also stop_evaluating, stop_predicting.

    Raises:
      ModuleError: if `module` is not an `nnx.Module` with a `__call__`.

    Example:
      >>> import numpy as np, resfit
      >>> x = np.random.default_rng(0).normal(size=(64, 8, 8, 1)).astype("float32")
      >>> y = (x.mean(axis=(1, 2, 3)) > 0).astype("int32")
      >>> net = resfit.create_model("resnet20", num_classes=2, depths=(1,), widths=(8,), in_channels=1)
      >>> model = Model(net)
      >>> model.compile(optimizer="sgd", learning_rate=0.1)
      >>> sorted(model.fit(x, y, epochs=2, verbose=0).history)
      ['accuracy', 'loss']
      >>> model.predict(x, verbose=0).shape
      (64, 2)
    """

    # --- configuring --------------------------------------------------------------------------------------------------

    @checked("arguments")
    def compile(
        self,
        optimizer: Any = "sgd",
        loss: losses.LossArgument = "auto",
        metrics: metrics_.MetricsArgument = "auto",
        *,
        loss_weights: Mapping[str, float] | Sequence[float] | None = None,
        learning_rate: optimizers.LearningRate | str | schedules.Schedule | None = None,
        weight_decay: float | None = None,
        seed: int = 0,
        preprocess: str | preprocess_.Preprocess | None = "auto",
        augment: augment_.AugmentArgument = None,
        ema: float | None = None,
        precision: str = "float32",
        gradient_accumulation_steps: int = 1,
        steps_per_execution: int = 1,
        dispatch: str = "auto",
        batch_norm: str = "global",
        compiler_options: Mapping[str, Any] | None = None,
        cpu_kernels: str = "auto",
        replace_preprocess: bool = False,
        run_eagerly: bool = False,
        jit_compile: bool | str = "auto",
    ) -> None:
        """Configure training. The module keeps its variables; the optimizer and the step counter start again.

        Args:
          optimizer: in any case "sgd" (momentum 0.9, Nesterov), "adam", "adamw", "lamb", "lars", "muon", "rmsprop"; an
            optax transformation; or a function such as `optax.lion`, whose learning_rate is filled in.
          learning_rate: a number, which `model.learning_rate` can change at any time; a schedule by name ("cosine",
            "warmup_cosine", "step", "one_cycle", "linear") or from `resfit.schedules`, which spans the epochs of each
            `fit`; or a function step -> number, whose steps count from `compile`, or from `initial_epoch` of the first
            `fit`. Defaults: sgd 0.1; adam, adamw, muon, rmsprop 0.001; lamb 0.005; lars 1.
          weight_decay: of a named optimizer, on kernels; another value compiles nothing again. None for its default.
          loss: "auto" reads the labels: class numbers, one-hot and soft targets give softmax cross-entropy, a single
            output sigmoid cross-entropy, also of pixels; anything ambiguous raises. Or a name; or a function of
            (logits, labels), or of (y_true, y_pred): one value per example. Reported is sum(weight * loss) / examples.
            For several outputs of the module a dict or list of these, by output; None for no loss.
          metrics: "auto" is accuracy for class labels; or a list or dict of names, clu.metrics.Metric classes, or
            functions like those of `loss`, unweighted. For several outputs a dict or list of these, by output.
          loss_weights: the weight of each output's loss in the total, in the form of `loss`; 1 by default.
          seed: of the data order and everything random in the step.
          preprocess: a function of the inputs, applied inside every step and saved with the model. "auto" is the one
            that the network was trained with, or that of `transforms`; else uint8 images are scaled to [0, 1] and
            floats stay. None does nothing.
          augment: "cifar", "imagenet" or "none"; a function (key, x, y) -> (x, y), see `resfit.augment`; or several in
            order. Applied to training batches before preprocess, with a key made from (seed, step).
          ema: decay of an average of the weights, such as 0.999, for `weights="ema"` of `evaluate`, `predict`, `save`
            and `export`; at most (1 + step) / (10 + step) in the first steps. `fit` leaves the raw weights in the
            module. Parameters of less than 32 bits are averaged in float32.
          precision: "float32"; "bfloat16": convolutions and dense layers multiply in bfloat16, while parameters,
            statistics, norms, logits and loss stay float32; or "auto": bfloat16 on GPUs with tensor cores for it, on
            TPUs, and on CPUs with AMX or AVX512-BF16 and oneDNN, else float32. The log of `fit` states the choice.
          gradient_accumulation_steps: number of slices of each batch, processed one after another for less memory,
            before one update. Equal to the whole batch without BatchNorm, which normalizes slice by slice.
          steps_per_execution: batches that the host hands over at once, also in `evaluate` and `predict`, for networks
            whose steps take less than a millisecond. On an accelerator they are one program. Every batch has its hooks,
            after the execution; stops, learning rates, validation and checkpoints take effect between executions.
          dispatch: "jit" (one device), "sharded" (the batch split over all devices of all processes), "auto" (by the
            number of devices), "pmap" (by `jax.pmap`, each device with separate random numbers), or "eager" (nothing
            compiled, for debugging). A device that the module's arrays are committed to, or of `jax.default_device`,
            is used by "auto", "jit" and "eager".
          batch_norm: BatchNorm normalizes over the "global" batch, or "per_replica", over each device's part.
          compiler_options: XLA's, by name, for every step.
          cpu_kernels: convolutions on a CPU: "xla"; "onednn", of the extra `resfit[cpu]`; "auto", oneDNN if possible.
          replace_preprocess: True to let `preprocess` replace the one that the network was trained with.
          run_eagerly: True is dispatch="eager", as in Keras.
          jit_compile: False is dispatch="eager", as in Keras; True and "auto" compile the steps.

        Raises:
          CompileError: for unknown names, what cannot work together, during `fit`, and for another preprocessing.
        """
        if self._control.fitting and not self._context.state.trains_elsewhere:
            raise CompileError(
                "compile was called while fit is running, by a callback: the steps in use would not change. Set "
                "model.learning_rate, or stop with model.stop_training = True, compile, and call fit again."
            )
        config = CompileConfig(
            optimizer=optimizer, learning_rate=learning_rate, weight_decay=weight_decay, loss=loss, metrics=metrics,
            loss_weights=loss_weights, seed=seed, preprocess=preprocess, augment=augment, ema=ema, precision=precision,
            gradient_accumulation_steps=gradient_accumulation_steps, steps_per_execution=steps_per_execution,
            batch_norm=batch_norm, dispatch=dispatch_of(dispatch, run_eagerly, jit_compile), cpu_kernels=cpu_kernels,
            compiler_options=compiler_options or {}, replace_preprocess=replace_preprocess,
        )  # fmt: skip
        self._compile(config, self._freeze)

    # --- training -----------------------------------------------------------------------------------------------------

    @checked("arguments")
    def fit(
        self,
        x: Any,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: str | int = "auto",
        callbacks: Callback | Iterable[Callback] | None = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: bool = True,
        class_weight: Mapping[int, float] | None = None,
        sample_weight: Any = None,
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
        validation_steps: int | None = None,
        validation_batch_size: int | None = None,
        validation_freq: int | Sequence[int] = 1,
        *,
        validation_every: int | None = None,
        image_sizes: Mapping[int, Any] | None = None,
        drop_remainder: bool = False,
        cache: str | None = None,
        resume: bool | str = False,
    ) -> History:
        """Train. Every argument up to validation_freq is Keras's.

        Args:
          x: images (examples, height, width, channels), uint8 or float; a dict or tuple of arrays; a source of
            `resfit.data`; a dataset of TFDS, Hugging Face, Grain or Keras; an iterable of (x, y) or (x, y,
            sample_weight) batches, or a function that returns a fresh one for every epoch.
          y: labels, one entry per example; a dict or tuple by output for several outputs; None if x brings them.
          batch_size: examples in a step, over all devices together; 32 by default.
          epochs: the number of the last epoch, counted from initial_epoch = 0.
          verbose: 0 silent; 1 or "auto" a progress bar, or one line per epoch without a terminal; 2 one line per epoch.
          callbacks: called in order, before History and the progress bar.
          validation_split: the last fraction of the examples, taken before shuffling, to validate on.
          validation_data: (x, y), (x, y, sample_weight), or an iterable of batches; wins over validation_split. Classes
            are mapped by name to those of the training data, if both have names.
          shuffle: True for a new order in every epoch, made from (seed, epoch).
          class_weight: class number -> weight of its examples in the loss.
          sample_weight: (examples,) weight of each example, or of each pixel; a dict or tuple for losses by output.
          initial_epoch: the number of the first epoch, where schedules begin.
          steps_per_epoch: batches in an epoch; passes over the data follow one another without a gap. None: one pass.
          validation_steps: batches of a validation, from the first; None for all.
          validation_batch_size: batch_size by default.
          validation_freq: validate after every so many epochs, or after the listed epochs, counted from one.
          validation_every: validate after every so many steps instead, inside epochs too; see `history.validations`.
          image_sizes: epoch, from 0 -> size of the training images from there on, such as {0: 128, 20: (160, 200)};
            None for their own size. The step resizes after augment, antialiased, with one compilation per size.
          drop_remainder: True to leave out a partial last batch. By default it is trained on, exactly.
          cache: "device" to put all training examples on the (first) device once, and gather every batch there.
          resume: True to resume from the newest checkpoint in the folder of the `Checkpoint` callback, at its very
            batch, or to begin if the folder is empty. The run ends bit for bit where an uninterrupted run ends;
            different settings raise. "inexact" resumes with different settings. False to begin in a folder without one.

        Returns:
          The `History`, also kept as `model.history`.

        Raises:
          NotCompiledError: before `compile`.
          ModuleError: if there is no parameter to train.
          DataError, LabelError: if the data cannot be trained on; nothing is lost.
        """
        self._control.require_compiled("fit", x=x)
        config = FitConfig(
            epochs=epochs, initial_epoch=initial_epoch, steps_per_epoch=steps_per_epoch, image_sizes=image_sizes,
            batch_size=32 if batch_size is None else batch_size, shuffle=shuffle, drop_remainder=drop_remainder,
            validation_steps=validation_steps, validation_every=validation_every, validation_freq=validation_freq,
            validation_batch_size=validation_batch_size, verbose=verbose, cache=cache, resume=resume,
        )  # fmt: skip
        data = fitting.FitData(x, y, sample_weight, class_weight, validation_split, validation_data)
        return fitting.fit(self, self._control, config, data, callbacks)

    @checked("arguments")
    def train_on_batch(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        class_weight: Mapping[int, float] | None = None,
        return_dict: bool = False,
    ) -> Any:
        """Take one training step on this batch and return its loss and metrics; the module holds the result at once."""
        compiled = self._control.require_compiled("train_on_batch")
        compiled.rate.check_single_step()
        begun = self._learned.starting_over(self.class_names, class_weight)
        with compiled.context.state.training("train_on_batch"), begun:
            return returned(compiled.trainer.train_batch(one_batch(x, y, sample_weight, class_weight)), return_dict)

    # --- evaluation and prediction ------------------------------------------------------------------------------------

    @checked("arguments")
    def evaluate(
        self,
        x: Any,
        y: Any = None,
        batch_size: int | None = None,
        verbose: str | int = "auto",
        sample_weight: Any = None,
        steps: int | None = None,
        callbacks: Callback | Iterable[Callback] | None = None,
        return_dict: bool = False,
        *,
        weights: str = "raw",
        tta: str | None = None,
    ) -> Any:
        """Return loss and metrics over a dataset, exactly: a partial last batch is padded and masked. Changes nothing.

        Args:
          x: images, or an iterable of batches, as in `fit`. Classes are mapped by name to `class_names`.
          y: labels, as in `fit`.
          batch_size: as in `fit`. Does not change the result.
          verbose: as in `fit`.
          sample_weight: as in `fit`.
          steps: the number of batches, from the first; None for all.
          callbacks: whose on_test_* hooks are called.
          return_dict: True for a dict of names instead of a list.
          weights: "raw", as trained; "ema", averaged (see `compile`).
          tta: test-time augmentation, as in `predict`. A loss of classes, and its metrics, read the logits of the mean
            probabilities; any other loss, and a custom `compute_loss`, the mean outputs.

        Returns:
          [loss, metric, ...] in the order of `compile`; just the loss if there are no metrics; or a dict.
        """
        compiled = self._control.require_compiled("evaluate", x=x)
        check_tta(tta)
        self._context.state.check_structure()
        x = self._learned.inputs.checked(x)
        data = as_batches(x, y, sample_weight, geometry=self._evaluation_geometry(batch_size))
        data = relabeled(data, self.class_names, "x", self._learned.labels.ignore_index)
        self.stop_evaluating = False
        hooks = self._hooks(callbacks, verbose, data, steps)
        with hooks.reporting_exceptions(), keeping_memory(self._context.placement.platform):
            results = compiled.evaluator.evaluate(data, steps, hooks, lambda: self.stop_evaluating, weights, tta)
        return returned(results, return_dict)

    @checked("arguments")
    def test_on_batch(self, x: Any, y: Any = None, sample_weight: Any = None, return_dict: bool = False) -> Any:
        """Return the loss and metrics of this batch, in evaluation mode."""
        evaluator = self._control.require_compiled("test_on_batch").evaluator
        return returned(evaluator.evaluate_batch(one_batch(x, y, sample_weight, None)), return_dict)

    @checked("arguments")
    def predict(
        self,
        x: Any,
        batch_size: int | None = None,
        verbose: str | int = "auto",
        steps: int | None = None,
        callbacks: Callback | Iterable[Callback] | None = None,
        *,
        outputs: str = "logits",
        weights: str = "raw",
        tta: str | None = None,
    ) -> Any:
        """Return the module's outputs for every row, in order. Changes nothing.

        Args:
          x: images, or an iterable of batches, as in `fit`.
          batch_size: as in `fit`. Does not change the result.
          verbose: as in `fit`.
          steps: the number of batches, from the first; None for all.
          callbacks: whose on_predict_* hooks are called.
          outputs: "logits", as the module returns them; "probabilities", their softmax, or sigmoid for a single output
            and for a multi-label model; "labels", the most probable class, of the example or each pixel, or for a
            multi-label model (examples, labels) of 0 and 1; "embedding", the result of the module's method `embed`, for
            resfit's networks the pooled features. See `multi_label`.
          weights: "raw", as trained; "ema", averaged (see `compile`).
          tta: test-time augmentation: "flip" averages over each preprocessed image and its mirror image; "flip+shift"
            also over both, moved by a pixel down right and up left, of half the weight (Jordan, arXiv 2404.00498).
            Averaged are logits, embeddings, or probabilities, also for "labels". A step sees 2 or 6 times the rows.

        Returns:
          A NumPy array (examples, ...), or a pytree of such if the module returns one.
        """
        how: dict[str, Any] = {"outputs": outputs, "weights": weights, "tta": tta}
        batches = self.predict_batches(x, batch_size, verbose, steps, callbacks, **how)
        return jax.tree.map(lambda *arrays: np.concatenate(arrays), *batches)

    def predict_batches(
        self,
        x: Any,
        batch_size: int | None = None,
        verbose: str | int = 0,
        steps: int | None = None,
        callbacks: Callback | Iterable[Callback] | None = None,
        *,
        outputs: str = "logits",
        weights: str = "raw",
        tta: str | None = None,
    ) -> Iterator[Any]:
        """Yield the result of `predict` batch by batch, as NumPy, for data whose predictions do not fit in memory."""
        check_tta(tta)
        asked = Asked(kind_of(outputs, self._module, self._learned.labels.is_multi_label), tta)
        yield from self._predicted(asked, x, batch_size, verbose, steps, callbacks, weights)

    def _predicted(
        self, asked: Asked, x: Any, batch_size: int | None, verbose: str | int = 0, steps: int | None = None,
        callbacks: Callback | Iterable[Callback] | None = None, weights: str = "raw",
    ) -> Iterator[Any]:  # fmt: skip
        self._context.state.check_structure()
        data = as_batches(self._learned.inputs.checked(x), geometry=self._evaluation_geometry(batch_size))
        self.stop_predicting = False
        hooks = self._hooks(callbacks, verbose, data, steps)
        with hooks.reporting_exceptions(), keeping_memory(self._context.placement.platform):
            yield from self._predictor.predict(data, asked, steps, hooks, lambda: self.stop_predicting, weights)

    def predict_on_batch(self, x: Any) -> Any:
        """Return the logits of this batch, as NumPy."""
        return self._predictor.predict_batch(one_batch(x, None, None, None).x)

    @checked("arguments", "A call of the model")
    def __call__(self, x: Any) -> Any:
        """Apply the module to a batch in evaluation mode, as `predict_on_batch`; under `jax.grad` call the module."""
        return self.predict_on_batch(x)

    def _evaluation_geometry(self, batch_size: int | None) -> Geometry:
        return Geometry(32 if batch_size is None else batch_size, pad=True, shard=self._context.processes.shard)

    def _hooks(self, callbacks: Any, verbose: str | int, data: Batches, steps: int | None) -> CallbackList:
        params = {"verbose": verbose, "epochs": 1, "steps": data.steps if steps is None else steps}
        return CallbackList([*listed(callbacks), *bar(verbose)], self, params)

    # --- tables -------------------------------------------------------------------------------------------------------

    @checked("arguments")
    def summary(self, batch: Any = None, *, input_shape: tuple[int, ...] | None = None) -> None:
        """Print a table of the network: output shapes, parameters, multiply-adds and activation memory.

        Args:
          batch: (x, y) or (x, y, sample_weight) arrays, to also print the memory of a training step on each device: the
            step is compiled, and not run; or an input_shape.
          input_shape: of one image, (height, width, channels). By default 224 x 224 for an ImageNet stem, 32 x 32 for a
            CIFAR stem, and for any other network that of the images last seen.

        Raises:
          NotCompiledError: with a batch, before `compile`.
          CompileError: with a batch, under dispatch="eager", which compiles nothing.
        """
        from resfit.diagnostics import summary

        step: Callable[[], Any] = lambda: self._control.require_compiled("summary of a batch").trainer  # noqa: E731
        summary.show(self._context.state.module_with("raw"), batch, input_shape, self._learned.inputs, step)
