"""`Model`: train, evaluate, apply and save an nnx.Module. A facade over `resfit.trainer`, with Keras's names."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import jax
import numpy as np
from flax import nnx

from resfit import augment as augment_
from resfit import losses, optimizers, schedules
from resfit import metrics as metrics_
from resfit import preprocess as preprocess_
from resfit._utils.jax_switches import suspending_calls
from resfit._utils.keywords import checked
from resfit.backends import compilation_cache
from resfit.backends.allocator import keeping_memory
from resfit.callbacks import Callback, History
from resfit.callbacks.base import RunControl
from resfit.data import Batches, Geometry, as_batches
from resfit.data.relabeled import relabeled
from resfit.errors import CompileError, ModuleError, NotCompiledError
from resfit.trainer import fitting
from resfit.trainer.arguments import bar, dispatch_of, listed, one_batch, returned
from resfit.trainer.callback_list import CallbackList
from resfit.trainer.compiled import compile_model, convolutions_of, placement_of
from resfit.trainer.config import CompileConfig, FitConfig
from resfit.trainer.context import RunContext
from resfit.trainer.fit_control import FitControl
from resfit.trainer.graph.module_plan import plan_module
from resfit.trainer.graph.slots import NOTHING_FROZEN, Freeze
from resfit.trainer.learned import Learned
from resfit.trainer.outputs import kind_of
from resfit.trainer.overrides import Guarded
from resfit.trainer.predictor import Predictor
from resfit.trainer.run_state import RunState
from resfit.trainer.snapshot import Snapshot
from resfit.trainer.step import Supervised
from resfit.transforms import Transforms


@suspending_calls(but=["compute_loss"])
class Model(Guarded):
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
      stop_training: a callback sets it to True to stop `fit` after this batch; also stop_evaluating,
        stop_predicting.

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

    def __init__(self, module: nnx.Module) -> None:
        compilation_cache.use()
        own_step = type(self).compute_loss is not Model.compute_loss
        if isinstance(module, nnx.Module) and not own_step and not callable(module):
            raise ModuleError(
                f"{type(module).__name__} has no __call__, so nothing maps images to outputs. Expected "
                "def __call__(self, x) that returns logits, (batch, classes)."
            )
        placement = placement_of(module, CompileConfig())
        state = RunState(module, None, placement.replicate, convolutions=convolutions_of("auto", placement))
        self._module = module
        self._freeze = NOTHING_FROZEN
        self._learned = Learned(module, custom_step=own_step)
        self._control = FitControl(self._learned)
        self._use(RunContext(state, placement, 0, self._learned))
        self.stop_training = self.stop_evaluating = self.stop_predicting = False
        self.history: History | None = None
        self.validation_weights = "raw"

    def _use(self, context: RunContext, predictor: Predictor | None = None) -> None:
        """Predict with this state from now on."""
        self._context = context
        self._predictor = predictor or Predictor(context, self._learned.inputs.preprocess)

    # --- configuring --------------------------------------------------------------------------------------------------

    @checked("arguments")
    def compile(
        self,
        optimizer: Any = "sgd",
        loss: str | losses.Loss = "auto",
        metrics: metrics_.MetricsArgument = "auto",
        *,
        learning_rate: optimizers.LearningRate | str | schedules.Schedule | None = None,
        seed: int = 0,
        preprocess: str | preprocess_.Preprocess | None = "auto",
        augment: augment_.AugmentArgument = None,
        ema: float | None = None,
        precision: str = "float32",
        gradient_accumulation_steps: int = 1,
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
          optimizer: in any case "sgd" (momentum 0.9, Nesterov), "adam", "adamw", "lamb", "lars", "rmsprop"; an optax
            transformation; or a function such as `optax.lion`, whose learning_rate is filled in.
          learning_rate: a number, which `model.learning_rate` can change at any time; a schedule by name ("cosine",
            "warmup_cosine", "step", "one_cycle", "linear") or from `resfit.schedules`, which spans the epochs of each
            `fit`; or a function step -> number, whose steps count from `compile`, or from `initial_epoch` of the first
            `fit`. Defaults: sgd 0.1; adam, adamw, rmsprop 0.001; lamb 0.005; lars 1.
          loss: "auto" reads the labels: class numbers, one-hot and soft targets give softmax cross-entropy, a single
            output sigmoid cross-entropy; anything ambiguous raises. Or a name; or a function of (logits, labels), or of
            (y_true, y_pred), that returns one value per example. The reported loss is sum(weight * loss) / examples.
          metrics: "auto" is accuracy for class labels; or a list or dict of names, clu.metrics.Metric classes, or
            functions like those of `loss`. Metrics count examples, unweighted.
          seed: of the data order and everything random in the step.
          preprocess: a function of the inputs, applied inside every step and saved with the model. "auto" is the one
            that the network was trained with, or that of `transforms`; else uint8 images are scaled to [0, 1] and
            floats stay. None does nothing.
          augment: "cifar", "imagenet" or "none"; a function (key, x, y) -> (x, y), see `resfit.augment`; or several in
            order. Applied to training batches before preprocess, with a key made from (seed, step).
          ema: decay of an average of the weights, such as 0.999, for `weights="ema"` of `evaluate`, `predict`, `save`
            and `export`; at most (1 + step) / (10 + step) in the first steps. `fit` leaves the raw weights in the
            module. Parameters of less than 32 bits are averaged in float32.
          precision: "float32"; or "bfloat16": convolutions and dense layers multiply in bfloat16, while parameters,
            statistics, norms, logits and loss stay float32.
          gradient_accumulation_steps: number of slices of each batch that are processed one after another, for less
            memory, before one update. Equal to the whole batch for networks without BatchNorm, which normalizes slice
            by slice.
          dispatch: "jit" (one device), "sharded" (the batch split over all devices of all processes), "auto" (by the
            number of devices), "pmap" (by `jax.pmap`, each device with separate random numbers), or "eager" (nothing
            compiled, for debugging). A device that the module's arrays are committed to, or of `jax.default_device`,
            is used by "auto", "jit" and "eager".
          batch_norm: BatchNorm normalizes over the "global" batch, or "per_replica", over each device's part.
          compiler_options: XLA's, by name, for every step.
          cpu_kernels: convolutions on a CPU: "xla"; "onednn", the library of the extra `resfit[cpu]`; or "auto", that
            library if it can be used.
          replace_preprocess: True to let `preprocess` replace the one that the network was trained with.
          run_eagerly: True is dispatch="eager", as in Keras.
          jit_compile: False is dispatch="eager", as in Keras; True and "auto" compile the steps.

        Raises:
          CompileError: for unknown names and combinations that cannot work, during `fit`, and for another preprocessing
            than the trained one.
        """
        if self._control.fitting:
            raise CompileError(
                "compile was called while fit is running, by a callback: the steps in use would not change. Set "
                "model.learning_rate, or stop with model.stop_training = True, compile, and call fit again."
            )
        config = CompileConfig(
            optimizer=optimizer, learning_rate=learning_rate, loss=loss, metrics=metrics, seed=seed,
            preprocess=preprocess, augment=augment, ema=ema, precision=precision,
            gradient_accumulation_steps=gradient_accumulation_steps, batch_norm=batch_norm,
            dispatch=dispatch_of(dispatch, run_eagerly, jit_compile),
            compiler_options=compiler_options or {}, cpu_kernels=cpu_kernels, replace_preprocess=replace_preprocess,
        )  # fmt: skip
        own_step = self.compute_loss if type(self).compute_loss is not Model.compute_loss else None
        before = self._context.state
        compiled = compile_model(self._module, config, self._learned, self._freeze, before, own_step)
        self._context.replaced = True
        self._control.compiled, self._control.stale = compiled, False
        self._use(compiled.context, compiled.predictor)

    def freeze(self, *patterns: str, batch_norm: bool = True) -> None:
        """Freeze parts of the module from the next `compile` on. No pattern trains all parts.

        Frozen parameters cost neither a gradient nor optimizer state.

        Args:
          patterns: dotted paths of parts, with * for anything: "stem", "stage[12]", "*.norm?". Everything inside a
            matching part is frozen.
          batch_norm: True to also keep the running statistics of frozen BatchNorms and normalize by them.

        Raises:
          ModuleError: if a pattern matches nothing.

        Example:
          >>> import resfit
          >>> model = Model(resfit.create_model("resnet20", num_classes=10))
          >>> model.freeze("stem", "stage[12]")
          >>> model.compile("sgd", learning_rate=0.01)
        """
        freeze = Freeze(patterns, batch_norm)
        plan_module(self._module, freeze)
        self._freeze = freeze
        self._control.stale = True

    def compute_loss(self, module: Any, x: Any, y: Any, *, key: jax.Array, train: bool) -> tuple[jax.Array, Any]:
        """Compute the loss of a batch. Override it for any other step: several inputs or heads, a teacher, no labels.

        It is traced, so it must be a pure function of its arguments and of constants of the model.

        Args:
          module: a copy of the module in the right mode; `module(x)` passes the mode argument if there is one.
          x: preprocessed inputs, (batch, ...) or a pytree of such.
          y: labels as they were given to `fit`, or None.
          key: for random numbers; another one in every step.
          train: True in a training step.

        Returns:
          ((batch,) loss of each example, outputs): metrics read the outputs.
        """
        loss = self._learned.labels.loss
        if loss is None:
            raise NotCompiledError("The model was not compiled. Call model.compile(...) first.")
        return Supervised(loss)(module, x, y, key=key, train=train)

    @property
    def transforms(self) -> Transforms | None:
        """The transforms of photographs before they are inputs: `predict(model.transforms.batch(photographs))`.

        Setting them also sets the preprocessing to their normalization; `compile` again to train. After training, the
        normalization has to be the trained one; transforms with `mean=None` and `std=None` only resize and crop.

        Raises:
          CompileError: for anything but `Transforms`, and for another normalization than the trained one.
        """
        return self._learned.inputs.transforms

    @transforms.setter
    def transforms(self, value: Transforms) -> None:
        if self._learned.inputs.set_transforms(value):
            self._control.compiled = None
            self._use(self._context)

    @property
    def class_names(self) -> list[str] | None:
        """The names of the classes by number, for `resfit.top_k`; saved with the model.

        `fit` takes those of its data if none are set. `evaluate` and `validation_data` map classes by name to these.

        Raises:
          DataError: for another number of names than of classes; after training, for the same names in another order.
        """
        return self._learned.labels.names

    @class_names.setter
    def class_names(self, value: Sequence[str] | None) -> None:
        self._learned.labels.set_names(value, trained=self._learned.inputs.trained)

    @property
    def multi_label(self) -> bool | None:
        """True if every output is an independent label, by the loss or the seen labels; None if that is unknown."""
        return self._learned.labels.multi_label

    @property
    def learning_rate(self) -> float:
        """The learning rate of the last step, or of the next one. Setting it never compiles anything again.

        Raises:
          NotCompiledError: before `compile`.
          CompileError: if the optimizer has no single rate that can be set, or a schedule decides it.
        """
        return self._control.require_compiled("reading the learning rate").rate.get()

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        rate = self._control.require_compiled("setting the learning rate").rate
        rate.set(value, by_callback=self._control.fitting)

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
        drop_remainder: bool = False,
        cache: str | None = None,
        resume: bool | str = False,
    ) -> History:
        """Train. Every argument up to validation_freq is Keras's.

        Args:
          x: images (examples, height, width, channels), uint8 or float; a dict or tuple of arrays; a source of
            `resfit.data`; a dataset of TFDS, Hugging Face, Grain or Keras; an iterable of (x, y) or (x, y,
            sample_weight) batches, or a function that returns a fresh one for every epoch.
          y: labels, one entry per example; None if x brings them.
          batch_size: examples in a step, over all devices together; 32 by default.
          epochs: the number of the last epoch, counted from initial_epoch = 0.
          verbose: 0 silent; 1 a progress bar, or one line per epoch without a terminal; 2 one line per epoch; "auto"
            is 1.
          callbacks: called in order, before History and the progress bar.
          validation_split: the last fraction of the examples, taken before shuffling, to validate on.
          validation_data: (x, y), (x, y, sample_weight), or an iterable of batches; wins over validation_split. Classes
            are mapped by name to those of the training data, if both have names.
          shuffle: True for a new order in every epoch, made from (seed, epoch).
          class_weight: class number -> weight of its examples in the loss.
          sample_weight: (examples,) weight of each example in the loss.
          initial_epoch: the number of the first epoch, where schedules begin.
          steps_per_epoch: batches in an epoch; passes over the data follow one another without a gap. None: one pass.
          validation_steps: batches of a validation, from the first; None for all.
          validation_batch_size: batch_size by default.
          validation_freq: validate after every so many epochs, or after the listed epochs, counted from one.
          validation_every: validate after every so many steps instead, inside epochs too; see `history.validations`.
          drop_remainder: True to leave out a partial last batch. By default it is trained on, exactly.
          cache: "device" to put all training examples on the (first) device once, and gather every batch there.
          resume: True to resume from the newest checkpoint in the folder of the `Checkpoint` callback, at its very
            batch, or to begin if the folder is empty. The run ends bit for bit where an uninterrupted run ends;
            different settings raise. "inexact" resumes with different settings. False to begin in a folder that holds
            no run.

        Returns:
          The `History`, also kept as `model.history`.

        Raises:
          NotCompiledError: before `compile`.
          DataError, LabelError: if the data cannot be trained on; nothing is lost.
        """
        self._control.require_compiled("fit")
        config = FitConfig(
            epochs=epochs, initial_epoch=initial_epoch, steps_per_epoch=steps_per_epoch,
            batch_size=32 if batch_size is None else batch_size, shuffle=shuffle, drop_remainder=drop_remainder,
            validation_steps=validation_steps, validation_every=validation_every, validation_freq=validation_freq,
            validation_batch_size=validation_batch_size, verbose=verbose, cache=cache, resume=resume,
        )  # fmt: skip
        data = fitting.FitData(x, y, sample_weight, class_weight, validation_split, validation_data)
        return fitting.fit(self, self._control, config, data, callbacks)

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
        with self._learned.starting_over(self.class_names):
            return returned(compiled.trainer.train_batch(one_batch(x, y, sample_weight, class_weight)), return_dict)

    @property
    def control(self) -> RunControl:
        """Takes requests of callbacks during `fit`: `request_checkpoint`, `request_rollback`; and has `data_wait`."""
        return self._control

    request_checkpoint = property(lambda self: self.control.request_checkpoint, doc="Alias, see `RunControl`.")
    request_rollback = property(lambda self: self.control.request_rollback, doc="Alias, see `RunControl`.")
    saves_checkpoints = property(lambda self: self.control.saves_checkpoints, doc="Alias, see `RunControl`.")
    data_wait = property(lambda self: self.control.data_wait, doc="Alias, see `RunControl`.")

    @property
    def keep_last_step(self) -> bool:
        """True to keep a copy of the state before each training step for `first_non_finite`; it costs a copy."""
        return self._control.require_compiled("keep_last_step", stale=True).trainer.keep_last_step

    @keep_last_step.setter
    def keep_last_step(self, value: bool) -> None:
        self._control.require_compiled("keep_last_step", stale=True).trainer.keep_last_step = value

    def first_non_finite(self) -> str | None:
        """Describe where the last training step, if it was kept, first made NaN or an infinite value; None if nowhere.

        Raises:
          ModuleError: if the step was not kept (`keep_last_step`).
        """
        return self._control.require_compiled("first_non_finite", stale=True).trainer.first_non_finite()

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
    ) -> Any:
        """Return loss and metrics over a dataset, exactly: a partial last batch is padded and masked. Changes nothing.

        Args:
          x: images, or an iterable of batches, as in `fit`. Classes are mapped by name to `class_names`.
          y: labels, as in `fit`.
          batch_size: as in `fit`. Does not change the result.
          verbose: as in `fit`.
          sample_weight: (examples,) weight of each example in the loss.
          steps: the number of batches, from the first; None for all.
          callbacks: whose on_test_* hooks are called.
          return_dict: True for a dict of names instead of a list.
          weights: "raw", as trained; "ema", averaged (see `compile`).

        Returns:
          [loss, metric, ...] in the order of `compile`; just the loss if there are no metrics; or a dict.
        """
        compiled = self._control.require_compiled("evaluate")
        self._context.state.check_structure()
        data = as_batches(x, y, sample_weight, geometry=self._evaluation_geometry(batch_size))
        data = relabeled(data, self.class_names, "x")
        self.stop_evaluating = False
        hooks = self._hooks(callbacks, verbose, data, steps)
        with hooks.reporting_exceptions(), keeping_memory(self._context.placement.platform):
            results = compiled.evaluator.evaluate(data, steps, hooks, lambda: self.stop_evaluating, weights)
        return returned(results, return_dict)

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
    ) -> Any:
        """Return the module's outputs for every row, in order. Changes nothing.

        Args:
          x: images, or an iterable of batches, as in `fit`.
          batch_size: as in `fit`. Does not change the result.
          verbose: as in `fit`.
          steps: the number of batches, from the first; None for all.
          callbacks: whose on_predict_* hooks are called.
          outputs: "logits", as the module returns them; "probabilities", their softmax, or sigmoid for a single output
            and for a multi-label model; "labels", the most probable class, or for a multi-label model (examples,
            labels) of 0 and 1; "embedding", the result of the module's method `embed`, for resfit's networks the
            pooled features. See `multi_label`.
          weights: "raw", as trained; "ema", averaged (see `compile`).

        Returns:
          A NumPy array (examples, ...), or a pytree of such if the module returns one.
        """
        batches = self.predict_batches(x, batch_size, verbose, steps, callbacks, outputs=outputs, weights=weights)
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
    ) -> Iterator[Any]:
        """Yield the result of `predict` batch by batch, as NumPy, for data whose predictions do not fit in memory."""
        asked = kind_of(outputs, self._module, self._learned.labels.is_multi_label)
        self._context.state.check_structure()
        data = as_batches(x, geometry=self._evaluation_geometry(batch_size))
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

    # --- variables, files, tables -------------------------------------------------------------------------------------

    @property
    def module(self) -> nnx.Module:
        """The user's own module, holding the current variables. Training continues from values assigned to them.

        The average of an assigned Variable, `compile(ema=...)`, starts again at the new value, except between two steps
        of a running `fit`, where an assignment is part of the training.
        """
        return self._context.state.module_with("raw")

    def get_weights(self, weights: str = "raw") -> list[np.ndarray]:
        """Return a copy of every trained and carried array (parameters, statistics), in a fixed order.

        Args:
          weights: "raw", as trained; "ema", averaged (see `compile`).
        """
        return [np.array(array) for array in self._context.state.visible(weights)]

    def set_weights(self, weights: Sequence[Any], averages: Sequence[Any] | None = None) -> None:
        """Set every trained and carried array: the inverse of `get_weights`.

        The optimizer state, the step counter and the schedule continue, as in Keras; `compile` resets them.

        Args:
          weights: arrays in the order of `get_weights`.
          averages: the averaged weights, in the same order; by default the averages start again at `weights`.

        Raises:
          ModuleError: for another number of arrays, or other shapes.
          CompileError: if `averages` is given and the model was compiled without `ema=`.
        """
        self._context.state.set_visible(weights, averages)

    def count_params(self) -> int:
        """Return the number of values in all parameters and statistics, as in Keras; `summary` shows parameters."""
        return sum(int(array.size) for array in self._context.state.visible())

    @property
    def metrics_names(self) -> list[str]:
        """The names of the results of `evaluate`: "loss", and the metrics in the order of `compile`."""
        return list(self._control.require_compiled("metrics_names").evaluator.names)

    @property
    def keeps_averages(self) -> bool:
        """True if the model was compiled with `ema=`, so that there are averaged weights."""
        return self._context.state.keeps_averages

    def snapshot(self) -> Snapshot:
        """Return the state of the model, for tools that examine it and for `snapshot.restore()`."""
        compiled = self._control.compiled
        rate = None if compiled is None else compiled.rate
        return Snapshot.of(self._context, rate, compiled=self._control.is_compiled)

    def save(self, path: str | os.PathLike[str], *, weights: str = "raw") -> None:
        """Write variables, the network's spec, preprocessing and class names to one safetensors file.

        If several processes train together, the first one writes.

        Args:
          path: ending in ".safetensors". `resfit.load` reads it.
          weights: "raw", as trained; "ema", averaged (see `compile`).
        """
        from resfit.export import saving

        module = self._context.state.module_with(weights)
        if jax.process_index() == 0:
            inputs, labels = self._learned.inputs, self._learned.labels
            saved = saving.SavedModel(
                module, inputs.preprocess, inputs.trained_on, inputs.transforms, labels.names, inputs.trained,
                labels.multi_label,
            )  # fmt: skip
            saving.save(path, saved)

    save_weights = save

    def load_weights(self, path: str | os.PathLike[str]) -> None:
        """Read the weights of a file of `save` or `ModelCheckpoint` into the module; the optimizer state stays.

        Raises:
          SavedModelError: if the file does not fit the network, or has weights for another preprocessing.
        """
        from resfit.export import saving

        saving.load_weights(path, self.module, self._learned.inputs)

    @classmethod
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
        from resfit.export import saving

        saved = saving.load(path, module, preprocess)
        model = cls(saved.module)
        inputs, labels = model._learned.inputs, model._learned.labels
        inputs.transforms, labels.names, labels.multi_label = saved.transforms, saved.class_names, saved.multi_label
        inputs.adopt(saved.preprocess, saved.trained_on)
        inputs.trained = saved.trained
        model._use(model._context)
        return model

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
        from resfit.export import exporter

        state, inputs, labels = self._context.state, self._learned.inputs, self._learned.labels
        exporter.export(
            path,
            state.module_with(weights),
            exporter.inputs(inputs.example, input_shape, input_dtype, inputs.preprocess, inputs.trained_on),
            preprocess=inputs.preprocess, precision=state.precision, seed=self._context.seed, outputs=outputs,
            weights=weights, fold=fold_batch_norm, class_names=labels.names if class_names is None else class_names,
            platforms=platforms, multi_label=labels.is_multi_label(outputs),
        )  # fmt: skip

    def summary(self, batch: Any = None, *, input_shape: tuple[int, ...] | None = None) -> None:
        """Print a table of the network: output shapes, parameters, multiply-adds and activation memory.

        Args:
          batch: (x, y) or (x, y, sample_weight) arrays, to also print the memory of a training step on each device: the
            step is compiled, and not run; or an input_shape.
          input_shape: of one image, (height, width, channels). By default 224 x 224 for an ImageNet stem, 32 x 32 for a
            CIFAR stem.

        Raises:
          NotCompiledError: with a batch, before `compile`.
          CompileError: with a batch, under dispatch="eager", which compiles nothing.
        """
        from resfit.diagnostics import summary

        step: Callable[[], Any] = lambda: self._control.require_compiled("summary of a batch").trainer  # noqa: E731
        summary.show(self.module, batch, input_shape, self._learned.inputs.preprocess, step)
