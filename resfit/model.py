"""`Model`: an nnx.Module that can be trained, evaluated and asked, as short as Keras. It only assembles the rest."""

import contextlib
import logging
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
from resfit.backends import compilation_cache, onednn
from resfit.backends.allocator import keeping_memory
from resfit.callbacks import (
    Callback,
    Checkpoint,
    EarlyStopping,
    History,
    LearningRateScheduler,
    ReduceLROnPlateau,
    RollbackOnNaN,
    SwapEMAWeights,
    TerminateOnNaN,
)
from resfit.data import Batches, Epochs, Geometry, as_batches
from resfit.data.batches import classes_of
from resfit.data.choose import in_memory
from resfit.data.relabeled import relabeled
from resfit.data.sources.arrays import as_arrays, check_class_weight, split_validation
from resfit.data.states import is_storable
from resfit.data.values import check_values
from resfit.errors import CallbackError, CompileError, DataError, LabelError, ModuleError, NotCompiledError
from resfit.optimizers.resolve import check_rate
from resfit.trainer.arguments import bar, check_counts, due, listed, one_batch, returned, unpacked
from resfit.trainer.callback_list import CallbackList
from resfit.trainer.checkpoint import fingerprint as resuming
from resfit.trainer.checkpoint.manager import Keeper, Progress, Rollback
from resfit.trainer.graph.plan import NOTHING_FROZEN, Convolutions, Freeze, plan
from resfit.trainer.interrupts import at_batch_boundaries
from resfit.trainer.loop import Loop
from resfit.trainer.outputs import NAMES, kind
from resfit.trainer.overrides import Guarded, check_flags
from resfit.trainer.placement import AXIS, Placement, preferred_device
from resfit.trainer.run import Validation
from resfit.trainer.state import RunState
from resfit.trainer.step import OutputsShape, Recipe, Supervised
from resfit.transforms import Transforms
from resfit.transforms.class_names import check_class_names

_log = logging.getLogger("resfit")


class Model(Guarded):
    """Trains, evaluates and applies an nnx.Module, with the argument names, defaults and return values of Keras.

    Any module that maps a batch of inputs to outputs will do. Its mode (BatchNorm, Dropout) is switched automatically,
    on a
    copy of its graph: the module's own flags are never changed. If its `__call__` names `train`, `training`,
    `deterministic` or `use_running_average`, that argument is passed.

    Subclasses that need another step override `compute_loss`. Members of Keras's and Lightning's models that nothing
    here reads, such as `train_step` or `trainable`, raise `OverrideError` when they are defined or set.

    Args:
      module: the network. It stays the caller's own object, holds the trained variables after `fit`, and is never
        donated.

    Attributes:
      history: the `History` of the last `fit`, or None.
      validation_weights: what `fit` validates with, "raw" or "ema". Callbacks keep the weights that were measured.
      stop_training: set it to True in a callback to stop `fit` after this batch; likewise stop_evaluating,
        stop_predicting.

    Raises:
      ModuleError: if the module is none, or cannot be trained.

    Example:
      >>> import numpy as np, resfit; from flax import nnx
      >>> x = np.random.default_rng(0).normal(size=(64, 8, 8, 1)).astype("float32")
      >>> y = (x.mean(axis=(1, 2, 3)) > 0).astype("int32")
      >>> net = resfit.nets.ResNet(resfit.nets.ResNetSpec(
      ...     block="basic", depths=(1,), widths=(8,), stem="cifar", num_classes=2, in_channels=1), rngs=nnx.Rngs(0))
      >>> model = Model(net)
      >>> model.compile(optimizer="sgd", learning_rate=0.1)
      >>> history = model.fit(x, y, epochs=2, verbose=0)
      >>> sorted(history.history)
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
        self._module = module
        self._placement = Placement("auto", device=self._device() if isinstance(module, nnx.Module) else None)
        self._state = RunState(
            module, None, self._placement.replicate, convolutions=_convolutions("auto", self._placement)
        )
        self._loss: losses.Loss | None = None
        self._seed = 0
        self._preprocess: preprocess_.Preprocess | None = preprocess_.Auto()
        self._automatic: preprocess_.Preprocess | None = self._preprocess  # what preprocess="auto" means for this model
        self._transforms: Transforms | None = None
        self._class_names: list[str] | None = None
        self._names_were_set = False  # by the user; otherwise they are those of the training data
        self._compiled = self._fitting = False
        self._multi_label: bool | None = None  # whether every output is a label of its own; None: it is not known
        self._one_label_metrics: list[str] = []
        self._freeze = NOTHING_FROZEN
        self._outputs_shape: tuple[int, ...] | None = None
        self._trained_on: preprocess_.Kinds | None = None
        self._trained = False  # whether the weights were trained with self._preprocess
        self._stepped = False  # whether a training step was taken since compile
        self._example: Any = None  # shapes and dtypes of one example, of the last training or the first call
        self._example_of: Any = None  # what those were of, to see at once that they are the same
        self.stop_training = self.stop_evaluating = self.stop_predicting = False
        self.history: History | None = None
        self.validation_weights = "raw"
        self._requests: Keeper | None = None
        self._loop = self._make_loop(None)

    def _device(self) -> jax.Device | None:
        return preferred_device(jax.tree.leaves(nnx.state(self._module)))

    def _make_loop(self, recipe: Recipe | None) -> Loop:
        return Loop(
            self._state, recipe, self._preprocess, self._placement, self._seed, self._check_labels, self._check_inputs
        )

    # --- configuring --------------------------------------------------------------------------------------------------

    def compile(
        self,
        optimizer: Any = "sgd",
        *,
        learning_rate: optimizers.LearningRate | str | schedules.Schedule | None = None,
        loss: str | losses.Loss = "auto",
        metrics: metrics_.MetricsArgument = "auto",
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
    ) -> None:
        """Configures training. Keeps the module's variables; the optimizer's state and the step counter start again.

        Args:
          optimizer: "sgd" (momentum 0.9, Nesterov), "adam", "adamw", "lamb", "lars", "rmsprop"; any optax
            transformation; or a function such as `optax.lion` whose learning_rate is filled in.
          learning_rate: a number; or a schedule by name ("cosine", "warmup_cosine", "step", "one_cycle", "linear") or
            from `resfit.schedules`, which spans the epochs of a `fit` and starts again with the next one; or a function
            step -> number, as in optax, whose steps are counted from `compile` on, or from the first step of the
            `initial_epoch` of the first `fit`. Defaults by name: sgd 0.1, adam, adamw and rmsprop 0.001, lamb 0.005,
            lars 1. A number can be changed at any time through `model.learning_rate`, without compiling again; a
            schedule's value stands in the log of every epoch as `learning_rate`.
          loss: "auto" reads the labels: integer class numbers or one-hot and soft targets give softmax cross-entropy, a
            single output gives sigmoid cross-entropy, anything ambiguous raises. Or a name, or a function of (logits,
            labels) that returns one value per example; if its parameter names put the labels first, as Keras's (y_true,
            y_pred), it receives them first. The reported and minimised loss is sum(weight * loss) /
            examples.
          metrics: "auto" is accuracy for class labels; or names, clu.metrics.Metric classes, or functions of (outputs,
            labels), or of (y_true, y_pred), that return one value per example; a list or a dict of names. They count
            examples, unweighted.
          seed: of the data order and everything random in the step.
          preprocess: a function of the inputs, applied in training, evaluation and prediction alike, inside the step,
            and saved with the model. "auto" is what the network was trained with, here or in the file that it was
            loaded from; else that of the model's `transforms`; else it scales uint8 images to [0, 1] and leaves floats
            alone. None does nothing.
          augment: "cifar", "imagenet" or "none"; or a function (key, x, y) -> (x, y), such as those of
            `resfit.augment`; or several in order. Applied to training batches only, before preprocess, inside the step,
            with a key made from (seed, step).
          ema: decay of a running average of parameters and statistics, updated in every step, such as 0.999; None keeps
            none. In the first steps it forgets faster: the decay is at most (1 + step) / (10 + step), with step counted
            from `compile`. After `fit` the module holds the weights as trained; `weights="ema"` of `evaluate`,
            `predict`, `save` and `export` uses the average. Keras's `use_ema` overwrites the weights with the average
            at the end of `fit`; here `model.set_weights(model.get_weights("ema"))` does. Weights that are set start
            their average again (see `set_weights`). Parameters of less than 32 bits are averaged in float32.
          precision: "float32", every layer computes in the dtype it was built with; "bfloat16", convolutions and dense
            layers multiply in bfloat16, and parameters, statistics, norms, logits and loss stay float32.
          gradient_accumulation_steps: cuts every batch into so many slices, one after the other in the same step, and
            sums their gradients before the one update: batch_size stays the effective, global one, and activations need
            the memory of a slice. Exactly the whole batch's update for networks without BatchNorm, which here
            normalises slice by slice, and moves its statistics as often.
          dispatch: "jit" (one device), "sharded" (the batch split over all devices of all processes), "auto" (by the
            number of devices), "pmap" (the same training by `jax.pmap`, on the devices of one process, with random
            numbers of its own on each), or "eager" (nothing compiled, for debugging). "auto", "jit" and "eager" run on
            the device that JAX was told of when compile is called: the one to which the module's arrays are committed
            by `jax.device_put`, or the one of `jax.default_device`, as a context or in `jax.config`. Otherwise "jit"
            and "eager" run on the first device.
          batch_norm: over what BatchNorm normalises in training: "global", the batch of all devices; or "per_replica",
            each device's part, whose statistics are then made one: the mean of the means, and the variance of all
            values together. A short batch that the devices do not divide is one part.
          compiler_options: XLA's own, by name, for every step, such as {"xla_cpu_enable_fast_math": True}.
          cpu_kernels: what convolves on a CPU: "xla"; "onednn", the library of the extra `resfit[cpu]`, for the
            convolutions that it makes faster, in any network; "auto", that library where it can be used.
          replace_preprocess: allow `preprocess` to replace the one that the network was trained with. The network then
            sees other values and has to be trained again.

        Raises:
          CompileError: for unknown names and combinations that cannot work, and for another preprocessing than the one
            that the network was trained with.
        """
        if self._fitting:
            raise CompileError(
                "compile was called while fit is running, by a callback: the steps in use would not change. Set "
                "model.learning_rate, or stop with model.stop_training = True, compile, and call fit again."
            )
        named = None
        if isinstance(learning_rate, str | schedules.Schedule):
            named = schedules.get(learning_rate, default_peak=optimizers.default_rate(optimizer))
            learning_rate = named.peak
        transformation, rate_function = optimizers.get(optimizer, learning_rate)
        replaces = replace_preprocess and preprocess != "auto"
        preprocess_function = self._chosen_preprocess(preprocess, replaces)
        num_classes = getattr(getattr(self._module, "spec", None), "num_classes", None)
        self._check_names_of_head()
        augments = augment_.get(augment, num_classes)
        own_step = type(self).compute_loss is not Model.compute_loss
        loss_function = losses.get(loss)
        by_loss = losses.multi_label(loss_function)
        if own_step and not by_loss:
            by_loss = None  # compute_loss may read the labels in any way
        chosen = (
            metrics_.automatic(None if own_step else loss_function)
            if metrics == "auto"
            else metrics_.by_name(metrics, num_classes, multi_label=by_loss)
        )
        placement = Placement(dispatch, compiler_options, batch_norm, self._device())
        convolutions = _convolutions(cpu_kernels, placement)
        if precision not in ("float32", "bfloat16"):
            raise CompileError(f"Expected precision to be 'float32' or 'bfloat16', got {precision!r}.")
        slices = gradient_accumulation_steps
        if isinstance(slices, bool) or not isinstance(slices, int) or slices < 1:
            raise CompileError(f"Expected gradient_accumulation_steps to be a positive integer, got {slices!r}.")
        if ema is not None and (not isinstance(ema, int | float) or not 0 < ema < 1):
            raise CompileError(f"Expected ema to be a decay between 0 and 1, such as 0.999, got {ema!r}.")
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
            raise CompileError(f"Expected seed to be a whole number that is not negative, such as 0, got {seed!r}.")

        self._state.publish()
        state = RunState(
            self._module,
            transformation,
            placement.replicate,
            self._freeze,
            ema=ema is not None,
            precision=precision,
            axis=AXIS if placement.replicas > 1 and batch_norm == "global" else None,
            convolutions=convolutions,
            before=self._state,
        )
        if not state.layout.n_params:
            raise CompileError(
                f"Every parameter is frozen by freeze{self._freeze.patterns}, so there is nothing to train. "
                "Call freeze with fewer patterns."
                if self._freeze.patterns
                else f"{type(self._module).__name__} has no floating-point nnx.Param, so there is nothing to train. "
                "Expected layers, or nnx.Param attributes, that are made in its __init__; a Linen module in "
                "nnx.bridge.ToNNX has them after .lazy_init(x)."
            )
        check_flags(self._module, state.layout.plan)
        rate_index = state.rate_index()
        if learning_rate is not None and rate_index is None:
            raise CompileError(
                "compile got learning_rate and an optimizer that was built with its own rate. Leave learning_rate "
                "out, or pass "
                "the function instead (optimizer=optax.adamw, learning_rate=...)."
            )
        if by_loss is not None:
            self._multi_label = by_loss
        elif not self._trained:  # what trained weights are for stays known
            self._multi_label = self._multi_label or None
        self._one_label_metrics = [name for name, metric in chosen.items() if metrics_.reads_one_label(metric)]
        self._loss, self._preprocess, self._placement, self._seed, self._state = (
            loss_function, preprocess_function, placement, seed, state,
        )  # fmt: skip
        self._named_schedule, self._rate_index, self._stepped = named, rate_index, False
        if replaces:
            self._automatic, self._trained_on, self._trained = preprocess_function, None, False
        self._follows_schedule = named is not None or rate_function is not None
        if learning_rate is not None and rate_function is None:
            rate = check_rate(learning_rate, "learning_rate")
            self._state.set_leaf(rate_index, float(rate))  # type: ignore[arg-type]
        self._asked_rate = repr(named) if named is not None else self._rate()
        self._loop = self._make_loop(
            Recipe(
                self.compute_loss if own_step else Supervised(loss_function),
                metrics_.collection(chosen, multi_label=bool(by_loss)),
                preprocess_function,
                augments,
                _schedule(named, rate_function),
                self._rate_index,
                ema,
                slices,
            )
        )
        self._loop.processes.check_same(
            "first values",
            (np.asarray(array).tobytes() for array in state.visible()),
            state.layout.visible_names,
            "Build the network from the same seed, or load the same file, in every process.",
        )
        self._compiled = True
        self._setup = {
            "dispatch": placement.kind,
            "platform": placement.devices[0].platform,
            "batch_norm": batch_norm,
            "precision": precision,
            "gradient_accumulation_steps": slices,
            "cpu_kernels": "xla" if convolutions is None else onednn.described(),
            "compiler_options": {name: str(value) for name, value in placement.compiler_options.items()},
            "seed": seed,
            "ema": ema,
        }
        self._described = (
            f"{precision}; BatchNorm over {_scope(placement, slices)}; seed {seed}; "
            f"{placement.kind} on {len(placement.devices)} {placement.devices[0].platform} device(s)"
        )
        self._described_kernels = "" if convolutions is None else f"; convolutions by {onednn.described()}"

    def _chosen_preprocess(self, preprocess: Any, replaces: bool) -> preprocess_.Preprocess | None:
        """The preprocessing that an argument of `compile` means. Raise if it is not the trained one."""
        if preprocess == "auto":
            return self._preprocess if self._trained else self._automatic
        chosen = preprocess_.get(preprocess)
        if self._trained and not replaces and not self._is_trained_one(chosen):
            raise CompileError(
                f"compile got preprocess={chosen!r}, and the network was trained with {self._preprocess!r}. Expected "
                "the same: leave preprocess out. To replace it and train again, pass replace_preprocess=True."
            )
        return chosen

    def _is_trained_one(self, preprocess: preprocess_.Preprocess | None) -> bool:
        """Whether a preprocessing gives the network the values that it was trained on."""
        example, channels = self._example, getattr(getattr(self._module, "spec", None), "in_channels", None)
        if example is None and channels is not None:  # a loaded network that has seen no input
            example = preprocess_.typical_example(channels, self._trained_on)
        return preprocess_.same_values(self._preprocess, preprocess, example)

    def freeze(self, *patterns: str, batch_norm: bool = True) -> None:
        """Says which parts of the module are not to be trained, from the next `compile` on; no pattern trains them all.

        Frozen parameters cost neither a gradient nor optimizer state.

        Args:
          patterns: dotted paths of parts, with * for anything: "stem", "stage[12]", "*.norm?". Everything inside a part
            that matches is frozen. A Variable or part that the module holds more than once is matched by each of its
            paths.
          batch_norm: whether frozen BatchNorms also keep their statistics and normalise by them (as Keras's
            trainable=False does); False lets the statistics go on moving.

        Raises:
          ModuleError: if a pattern matches nothing.

        Example:
          >>> import resfit
          >>> model = Model(resfit.create_model("resnet20", num_classes=10))
          >>> model.freeze("stem", "stage[12]")
          >>> model.compile("sgd", learning_rate=0.01)
        """
        freeze = Freeze(patterns, batch_norm)
        plan(self._module, freeze)
        self._freeze = freeze
        self._compiled = False

    def compute_loss(self, module: Any, x: Any, y: Any, *, key: jax.Array, train: bool) -> tuple[jax.Array, Any]:
        """One batch's loss: override it for any other step (several inputs or heads, a teacher, no labels).

        It is traced, so it must be a pure function of its arguments and of what the model holds as constants.

        Args:
          module: a copy of the module in the right mode; `module(x)` passes the mode argument if there is one.
          x: preprocessed inputs, (batch, ...) or a pytree of such.
          y: labels as they were given to `fit`, or None.
          key: for whatever is random here; another one in every step.
          train: whether this is a training step.

        Returns:
          ((batch,) loss of each example, outputs): metrics read the outputs.
        """
        if self._loss is None:
            raise NotCompiledError("The model was not compiled. Call model.compile(...) first.")
        return Supervised(self._loss)(module, x, y, key=key, train=train)

    def _check_labels(self, labels: Any, outputs: OutputsShape) -> None:
        self._outputs_shape = outputs.shape
        # A compute_loss of the user's own may read the labels in any way it likes.
        own_step = type(self).compute_loss is not Model.compute_loss
        if not own_step and outputs.shape is not None:
            losses.check(self._loss, labels, outputs.shape)
        self._note_labels(labels)

    def _reads_each_output(self, outputs: str) -> bool:
        """Whether these outputs are of a multi-label model.

        Raises:
          CompileError: if that decides them and is not known.
        """
        single = 1 in (
            getattr(getattr(self._module, "spec", None), "num_classes", None),
            *(self._outputs_shape or ())[1:],
        )
        undecided = self._multi_label is None and isinstance(self._loss, losses.BinaryCrossEntropy) and not single
        if undecided and outputs in ("probabilities", "labels"):
            raise CompileError(
                f"outputs={outputs!r} of a model with the loss BinaryCrossEntropy() depend on its labels, and it has "
                "seen none. Expected the loss to say which: compile with BinaryCrossEntropy(multi_label=True) for "
                "several labels per example, or multi_label=False for one class."
            )
        return bool(self._multi_label)

    def _note_labels(self, labels: Any) -> None:
        """Learns from labels whether the model is multi-label, where its loss does not tell."""
        if labels is None or losses.multi_label(self._loss):
            return
        row = losses.multi_hot_row(labels)
        if row is not None and self._one_label_metrics:
            raise LabelError(
                f"Row {row} of the labels has {int((np.asarray(labels)[row] == 1).sum())} labels, and the metrics "
                f"{self._one_label_metrics} read one label per example. Expected metrics for several: use "
                "loss='binary_cross_entropy', BinaryCrossEntropy(multi_label=True), or, with a custom loss, "
                "'binary_accuracy' and classes such as resfit.metrics.f1(num_classes, multi_label=True)."
            )
        if row is not None:
            self._multi_label = True
        elif self._multi_label is None and isinstance(self._loss, losses.BinaryCrossEntropy):
            self._multi_label = False

    def _check_inputs(self, x: Any, trained: bool) -> None:
        described = (x.shape[1:], x.dtype) if hasattr(x, "shape") else None
        if (trained or self._example is None) and (described is None or described != self._example_of):
            self._example, self._example_of = preprocess_.example(x), described
        if trained:
            self._trained = self._stepped = True
        # Only the automatic preprocessing treats uint8 and float images differently without being told.
        if isinstance(self._preprocess, preprocess_.Auto):
            # Remembered once a step was taken: what was refused by the network was not trained on.
            if trained and self._trained_on is None:
                self._trained_on = preprocess_.kinds(x)
            elif not trained:
                preprocess_.check_kinds(x, self._trained_on)

    @property
    def transforms(self) -> Transforms | None:
        """What photographs go through before they are an input: `predict(model.transforms.batch(photographs))`.

        Before training, setting it also sets the preprocessing to their normalization: at once, and in the next
        `compile`, which is needed for training. After training, the normalization has to be the one that the network
        was trained with; transforms with `mean=None` and `std=None` only resize and crop, and always keep it. Both are
        saved with the model. None until it is set.

        Raises:
          CompileError: for anything but `Transforms`, and for another normalization than the trained one.

        Example:
          >>> import resfit
          >>> model = Model(resfit.create_model("resnet20", num_classes=10))
          >>> model.transforms = resfit.transforms.Transforms(resize=36, crop=32)
          >>> photographs = [np.zeros((60, 40, 3), np.uint8), np.ones((32, 48, 3), np.uint8)]
          >>> model.predict(model.transforms.batch(photographs), verbose=0).shape
          (2, 10)
        """
        return self._transforms

    @transforms.setter
    def transforms(self, value: Transforms) -> None:
        if not isinstance(value, Transforms):
            raise CompileError(
                f"model.transforms got {value!r}. Expected a resfit.transforms.Transforms, such as that of "
                "resfit.transforms_for('timm/resnet50.a1_in1k')."
            )
        if not value.normalizes:
            keeps = True
        elif self._trained:
            keeps = self._is_trained_one(value.preprocess)
        else:
            keeps = self._preprocess == value.preprocess
        if self._trained and not keeps:
            raise CompileError(
                f"model.transforms got {value!r}, and the network was trained with {self._preprocess!r}. Expected the "
                f"normalization that it was trained with. To only resize and crop: Transforms(resize={value.resize}, "
                f"crop={value.crop}, interpolation={value.interpolation!r}, mean=None, std=None). To replace the "
                "normalization and train again: model.compile(..., preprocess=transforms.preprocess, "
                "replace_preprocess=True), then set model.transforms."
            )
        self._transforms = value
        if keeps:
            self._automatic = self._preprocess
            return
        self._compiled = False
        self._bring(value.preprocess, None)

    def _bring(self, preprocess: preprocess_.Preprocess | None, trained_on: preprocess_.Kinds | None) -> None:
        """Takes over a preprocessing that belongs to the weights, for prediction and as what "auto" means."""
        self._preprocess = self._automatic = preprocess
        self._trained_on = trained_on
        self._loop = self._make_loop(None)

    @property
    def class_names(self) -> list[str] | None:
        """The names of the classes by number, for `resfit.top_k`; saved with the model.

        `fit` takes those of its data, such as the folders of `resfit.data.folder`, if none are set. `evaluate` and
        `validation_data` map classes by name to these numbers. None until they are known.

        Raises:
          DataError: for another number of names than of classes; and after training, for the same names in another
            order.
        """
        return self._class_names

    @class_names.setter
    def class_names(self, value: Sequence[str] | None) -> None:
        classes = getattr(getattr(self._module, "spec", None), "num_classes", None)
        names = None if value is None else check_class_names(value, classes if classes != 1 else None)
        before = self._class_names
        if self._trained and names and before and names != before and sorted(names) == sorted(before):
            raise DataError(
                f"model.class_names got {names}, and the network was trained with the same names as {before}. Expected "
                "the order of the training. If that was wrong, set model.class_names = None first."
            )
        self._class_names, self._names_were_set = names, names is not None

    def _check_names_of_head(self) -> None:
        """Forget class names that came with training data if the network has another head now; raise for set ones."""
        names, outputs = self._class_names, getattr(getattr(self._module, "spec", None), "num_classes", None)
        if names is None or outputs in (None, 1, len(names)):
            return
        if self._names_were_set:
            check_class_names(names, outputs)
        _log.warning(
            "The network has %d outputs now, so the names of the %d classes that it was trained on are forgotten.",
            outputs, len(names),
        )  # fmt: skip
        self._class_names = None

    @property
    def keep_last_step(self) -> bool:
        """Whether to keep a copy of the state before each training step for `first_non_finite`; it costs a copy."""
        return self._loop.keep_last_step

    @keep_last_step.setter
    def keep_last_step(self, value: bool) -> None:
        self._loop.keep_last_step = value

    def first_non_finite(self) -> str | None:
        """Where the last training step, if it was kept, first made NaN or an infinite value; None if it did not.

        It goes through the step again: inputs, parameters, statistics, layer by layer, the loss.

        Raises:
          ModuleError: if the step was not kept (`keep_last_step`).
        """
        return self._loop.first_non_finite()

    @property
    def data_wait(self) -> float:
        """The share of the last epoch's training in which the device waited for data, from 0 to 1 (an upper bound)."""
        return self._loop.data_wait

    @property
    def module(self) -> nnx.Module:
        """The user's own module, holding the current variables. What is assigned to them is trained on from there.

        The average of a Variable that gets another value, `compile(ema=...)`, starts again at that value. Between two
        steps of a running `fit` it continues instead, as an assignment by a callback is part of the training.
        """
        self._state.publish()
        return self._module

    @property
    def learning_rate(self) -> float:
        """The learning rate of the last step, or of the next one. Setting it never compiles anything again.

        Raises:
          CompileError: if the optimizer has no single rate that can be set, or a schedule decides it.
        """
        return float(self._state.leaf(self._settable_rate("read")))

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        index = self._settable_rate("set")
        if self._follows_schedule:
            raise CompileError("The learning rate follows a schedule. Compile with a number to set it yourself.")
        self._state.set_leaf(index, float(check_rate(value, "model.learning_rate")))
        if not self._fitting:  # not a callback's doing, which is part of the run
            self._asked_rate = self._rate()

    def _rate(self) -> float | None:
        """As somebody would write it: 0.1, and not the nearest float32."""
        return None if self._rate_index is None else float(str(np.asarray(self._state.leaf(self._rate_index))))

    def _settable_rate(self, verb: str) -> int:
        if not self._compiled:
            raise NotCompiledError(
                "The model was not compiled, so there is no learning rate. Call model.compile(...) first."
            )
        if self._rate_index is None:
            raise CompileError(
                f"Cannot {verb} the learning rate: it is built into this optax object. Compile with a name or with a "
                "function "
                "(optimizer=optax.adamw, learning_rate=...), or wrap it in optax.inject_hyperparams."
            )
        return self._rate_index

    def _asked_to_stop_evaluating(self) -> bool:
        # One validation inside `fit` is stopped, not the next one.
        asked, self.stop_evaluating = self.stop_evaluating, False
        return asked

    # --- training -----------------------------------------------------------------------------------------------------

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
        """Trains. Every argument up to validation_freq is Keras's.

        Args:
          x: images (examples, height, width, channels), uint8 or float, NumPy or JAX; or a dict or tuple of arrays; or
            what `resfit.data` makes of folders and data sets; a data set of TFDS, Hugging Face, Grain or Keras
            (`PyDataset`); an iterable of (x, y) or (x, y, sample_weight) batches, or a function that returns a fresh
            one for every epoch.
          y: labels, one entry per example; None where x brings them.
          batch_size: examples in a step, over all devices together; 32 by default.
          epochs: the number of the last epoch, counted from initial_epoch = 0. A resumed run may have another number.
          verbose: 0 silent; 1 a progress bar, or one line per epoch where there is no terminal; 2 one line per epoch;
            "auto" is 1.
          callbacks: called in order, before History and the progress bar.
          validation_split: the last fraction of the examples, taken before shuffling, to validate on.
          validation_data: (x, y) or (x, y, sample_weight), or an iterable of batches; wins over validation_split.
            Classes are mapped by name to those of the training data, if both have names.
          shuffle: a new order for every epoch, made from (seed, epoch).
          class_weight: class number -> weight of its examples in the loss. Refused for several labels per example,
            which a loss has to weigh one by one.
          sample_weight: (examples,) weight of each example in the loss.
          initial_epoch: the number of the first epoch. Schedules begin there: those by name, and a function of the step
            where the model was not trained since `compile`. An optax optimizer with a schedule of its own begins at 0.
          steps_per_epoch: batches in an epoch; passes over the data follow one another without a gap. None: one pass.
          validation_steps: batches of a validation, from the first; None for all.
          validation_batch_size: batch_size by default.
          validation_freq: validate every so many epochs, or after the listed epochs, counted from one.
          validation_every: validate after every so many steps instead, inside epochs too. An epoch's log then holds the
            values of its last validation, and `history.validations` those of all.
          cache: "device" to put all training examples on the (first) device once, and gather every batch there.
          resume: True to go on from the newest checkpoint in the `Checkpoint` callback's folder, at its very batch, or
            to begin where there is none; a run that had come to its end gives its History at once. It ends where an
            uninterrupted run ends, bit for bit, and is refused where something was set up in another way; another
            number of epochs is not, unless a schedule by name spans them, or more were trained already. "inexact" goes
            on all the same, at another learning rate where one was asked for. False to begin anew, in a folder that
            holds no run.
          drop_remainder: leave out a short last batch. By default it is trained on, exactly, by an executable of its
            own.

        Returns:
          The `History`, also kept as `model.history`.

        Raises:
          NotCompiledError: before `compile`.
          DataError, LabelError: if the data cannot be trained on; nothing is lost.
        """
        self._require_compiled("fit")
        check_flags(self._module, self._state.layout.plan)
        self._state.check_structure()
        if self._fitting:
            raise CallbackError(
                "fit was called while fit is running, by a callback: both would train the same state. Stop with "
                "model.stop_training = True and call fit again, or train another Model."
            )
        check_counts(
            epochs=epochs,
            steps_per_epoch=steps_per_epoch,
            validation_steps=validation_steps,
            validation_every=validation_every,
        )
        if isinstance(initial_epoch, bool) or not isinstance(initial_epoch, int | np.integer) or initial_epoch < 0:
            raise DataError(f"Expected initial_epoch to be a number of epochs, 0 or more, got {initial_epoch!r}.")
        if initial_epoch > epochs:
            raise DataError(
                f"fit got initial_epoch={initial_epoch} and epochs={epochs}, so there is no epoch to train. Expected "
                "epochs to be the number of the last epoch, counted from the beginning of the whole run."
            )
        if shuffle not in (True, False):
            raise DataError(
                f"Expected shuffle to be True or False, got {shuffle!r}. Every epoch has an order of all examples of "
                "its own; to keep batches as they are pass an iterable of them."
            )
        if class_weight is not None:
            self._check_class_weight(class_weight)
        held_out = validation_data
        if validation_split and validation_data is None:
            if not in_memory(x):
                raise DataError(
                    "validation_split needs arrays, whose last part it takes. Pass validation_data instead."
                )
            (x, y, sample_weight), held_out = split_validation(validation_split, x, y, sample_weight)
        size = 32 if batch_size is None else batch_size
        geometry = Geometry(
            size,
            seed=self._seed if shuffle else None,
            min_batch=2 if self._state.layout.plan.has_batch_norm else 1,
            drop_remainder=drop_remainder,
            shard=self._loop.processes.shard,
        )
        data = as_batches(x, y, sample_weight, class_weight, geometry=geometry, cache=cache)
        self._check_same_data(data)
        if losses.multi_label(self._loss) and losses.one_hot(data.labels):
            _log.warning(
                "Every row of the labels has exactly one label, and the loss reads several: probabilities are a "
                "sigmoid each, and accuracy is the share of single labels. If an image has one class, use "
                "loss='cross_entropy'."
            )
        each = size / len(self._placement.devices)
        _log.info("%s, batches of %d, %g a device%s.", self._described, size, each, self._described_kernels)
        names = self._names_of_training(data)
        validation = None
        if held_out is not None:
            validation_x, validation_y, validation_weight = unpacked(held_out, "validation_data")
            validation_batches = as_batches(
                validation_x,
                validation_y,
                validation_weight,
                geometry=self._evaluation_geometry(size if validation_batch_size is None else validation_batch_size),
            )
            validation = Validation(
                relabeled(validation_batches, classes_of(data) or self._class_names, "validation_data"),
                validation_steps,
                due(validation_freq),
                validation_every,
                self._asked_to_stop_evaluating,
                lambda: self.validation_weights,
            )
        stream = Epochs(data, steps_per_epoch, self._state.epoch)
        self._check_schedule(stream, epochs, initial_epoch)
        self.stop_training = self.stop_evaluating = False
        history = History()
        params = {"verbose": verbose, "epochs": epochs, "steps": stream.steps}
        hooks = CallbackList([*listed(callbacks), history, _SeenInputs(), *bar(verbose)], self, params)
        self.history = history
        fingerprint = self._setup | {
            "initial_epoch": initial_epoch,
            "epochs": epochs,
            "steps_per_epoch": steps_per_epoch,
            "batch_size": size,
            "shuffle": shuffle,
            "drop_remainder": drop_remainder,
            "learning_rate": self._asked_rate,
            "validation_steps": validation_steps,
            "validation_every": validation_every,
            "validation_freq": validation_freq if isinstance(validation_freq, int) else list(validation_freq),
            "validation_batch_size": validation_batch_size,
        }
        compared = {"data": data, "validation": None if validation is None else validation.data}
        processes = self._loop.processes
        self._check_same_settings(
            fingerprint
            | {"validation": validation is not None, "resume": resume, "callbacks": _steering(listed(callbacks))}
        )
        with processes.failing_together():
            keeper = resuming.keeper(
                listed(callbacks), resume, fingerprint, compared, self._state, self._placement, processes
            )
        with at_batch_boundaries(keeper is not None) as interrupt, self._fitting_with(keeper):
            with processes.failing_together():
                start = keeper.find(exact=resume != "inexact") if keeper is not None and resume else None
            self.stop_training = start is not None and start.stopping  # the epoch that was to be the last one still is
            if keeper is not None and start is not None and start.finished:
                keeper.restore(stream, hooks)
                self._class_names = names
                self._note_restored(data.labels)
                self._state.publish()
                return history
            self._requests = keeper
            epochs_ = range(initial_epoch, epochs)
            platform = self._placement.devices[0].platform
            with self._starting_over(names), self._stretched_schedule(stream, epochs_), keeping_memory(platform):
                stopped = lambda: self.stop_training  # noqa: E731
                end = self._loop.train(stream, epochs_, hooks, stopped, validation, interrupt, keeper, start)
                if start is not None:
                    self._note_restored(data.labels)
            if keeper is not None:
                keeper.save(Progress(end.epoch, stopping=self.stop_training, finished=True), (), stream, hooks)
        return history

    def _note_restored(self, labels: Any) -> None:
        """Learn from a run that was restored, perhaps without another step, what its steps would have told.

        Args:
          labels: all of them; None where only the batches have them: then those of the restored steps, which
            `_SeenInputs` brings, are what is known.
        """
        self._trained = self._stepped = True
        if labels is not None:
            self._note_labels(labels)

    @contextlib.contextmanager
    def _fitting_with(self, keeper: Keeper | None) -> Iterator[None]:
        """Mark the model as in a `fit`; at the end, wait until all checkpoints are written."""
        self._fitting = True
        try:
            yield
        finally:
            self._fitting, self._requests = False, None
            if keeper is not None:
                keeper.close()

    def _check_class_weight(self, class_weight: Any) -> None:
        """Raises where a class has a weight that the network, as far as it tells, does not have."""
        classes = getattr(getattr(self._module, "spec", None), "num_classes", None)
        highest = max(check_class_weight(class_weight), default=0)
        if classes is not None and classes > 1 and highest >= classes:
            raise DataError(
                f"class_weight names the class {highest}, and the network has {classes} outputs. Expected class "
                f"numbers from 0 to {classes - 1}."
            )

    def request_checkpoint(self, *, best: bool = False) -> None:
        """Asks the running `fit` to save the run after all hooks of this batch or epoch; for callbacks.

        Args:
          best: whether to keep it as the best so far.

        Raises:
          CallbackError: if `fit` runs without a `Checkpoint` callback, which would say where to.
        """
        if self._requests is not None:
            self._requests.wanted = True
            self._requests.wanted_as_best |= best
        elif self._fitting:
            raise CallbackError(
                "A checkpoint was asked for in a fit without a Checkpoint callback. Pass one, which says where "
                "checkpoints go."
            )

    @property
    def saves_checkpoints(self) -> bool:
        """Whether `fit` is running with a `Checkpoint` callback, so that a checkpoint can be asked for."""
        return self._requests is not None

    def request_rollback(self, *, bad: tuple[int, int] | None = None, learning_rate_factor: float = 1.0) -> None:
        """Asks the running `fit` to go back to its newest checkpoint in which all is finite; for callbacks.

        The run goes on from there after all hooks of this batch or epoch, as if it had been resumed: position in the
        data, metrics, `History` and what callbacks remember go back too.

        Args:
          bad: (epoch, batch) of a step that went wrong: the checkpoint is to be from before it, if there is one.
          learning_rate_factor: the learning rate there is the present one, times this; under a schedule, all its rates
            are multiplied.

        Raises:
          CallbackError: if `fit` runs without a `Checkpoint` callback.
          CompileError: if the optimizer has no learning rate that can be set, and the factor is not 1.
        """
        if self._requests is None:
            raise CallbackError(
                "A rollback was asked for in a fit without a Checkpoint callback, so there is nothing to go back to. "
                "Pass one: callbacks=[resfit.callbacks.Checkpoint(folder), ...]."
            )
        if self._follows_schedule:
            factor = self._state.rate_factor * learning_rate_factor
            then: Callable[[], None] = lambda: setattr(self._state, "rate_factor", factor)  # noqa: E731
        elif learning_rate_factor == 1:
            then = lambda: None  # noqa: E731
        else:
            rate = self.learning_rate * learning_rate_factor
            then = lambda: setattr(self, "learning_rate", rate)  # noqa: E731
        self._requests.rollback = Rollback(bad, then)

    def _evaluation_geometry(self, batch_size: int | None) -> Geometry:
        return Geometry(32 if batch_size is None else batch_size, pad=True, shard=self._loop.processes.shard)

    def _check_same_data(self, data: Batches) -> None:
        entries = {"the number of examples": data.examples, "a label": data.labels}
        self._loop.processes.check_same(
            "data",
            (b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(entry)) for entry in entries.values()),
            entries,
            "Pass the whole data set in every process, of which each reads its part. Data that are split already are "
            "passed as an iterable of batches.",
        )

    def _check_same_settings(self, settings: Mapping[str, Any]) -> None:
        compared = {name: value for name, value in settings.items() if name != "cpu_kernels"}
        self._loop.processes.check_same(
            "arguments of compile or fit",
            (repr(value).encode() for value in compared.values()),
            (f"{name}, here {value!r:.200}," for name, value in compared.items()),
            "Processes with other arguments would wait for one another for ever. Pass the same in every process.",
        )

    def _check_schedule(self, stream: Epochs, epochs: int, initial_epoch: int) -> None:
        if self._named_schedule is None or epochs <= initial_epoch:
            return
        self._named_schedule.check(epochs)
        if stream.steps is None:
            raise DataError(
                "A named learning-rate schedule needs to know how long an epoch is, and this data cannot tell. Pass "
                "steps_per_epoch."
            )

    @contextlib.contextmanager
    def _starting_over(self, names: list[str] | None) -> Iterator[None]:
        """Learn what is trained on: class names, and after `compile` the scale of the inputs. Forget it without a step.

        The names are known during training, so that models saved by callbacks have them.
        """
        before, stepped = (self._trained_on, self._class_names), self._stepped
        self._class_names, self._stepped = names, False
        if not stepped:
            self._trained_on = None
        try:
            yield
        finally:
            if not self._stepped:
                self._trained_on, self._class_names = before
            self._stepped = self._stepped or stepped

    @contextlib.contextmanager
    def _learning_nothing(self) -> Iterator[None]:
        """Forget afterwards what was learned of the data: the weights that were trained on them are taken back."""
        learned = ("_trained", "_stepped", "_trained_on", "_class_names", "_multi_label")
        before = {name: getattr(self, name) for name in learned}
        try:
            yield
        finally:
            for name, value in before.items():
                setattr(self, name, value)

    def _names_of_training(self, data: Batches) -> list[str] | None:
        """The class names of the model once it was trained on the data: its own, or those that the data bring.

        Raises:
          DataError: if both have names, and they differ.
        """
        names, own = classes_of(data), self._class_names
        if names is None or own is not None:
            if names is not None and list(names) != own:
                raise DataError(
                    f"The training data have the classes {names}, and model.class_names is {own}. Expected the same "
                    "names in the same order. Order the classes of the data like those of the model, as in "
                    "resfit.data.folder(path, classes=model.class_names); or set model.class_names = None to take "
                    "those of the data."
                )
            return own
        outputs = getattr(getattr(self._module, "spec", None), "num_classes", None)
        if outputs not in (None, 1, len(names)):
            _log.warning(
                "The training data have %d classes, and the network has %d outputs, so the class names are not kept.",
                len(names), outputs,
            )  # fmt: skip
            return None
        return list(names)

    @contextlib.contextmanager
    def _stretched_schedule(self, stream: Epochs, epochs: range) -> Iterator[None]:
        """Lets a schedule span these epochs; a fit that fails before its first step leaves it as it was."""
        if not self._follows_schedule or not epochs:
            yield
            return
        done, before = self._state.steps(), self._state.span()
        if self._named_schedule is None:
            self._begin_function(stream, epochs.start, done)
        elif stream.steps is not None:
            name = type(self._named_schedule).__name__
            begins = "starts again" if done else "begins"
            _log.info("The schedule %s %s and spans %d epochs.", name, begins, epochs.stop)
            self._state.set_span(done - epochs.start * stream.steps, epochs.stop * stream.steps, stream.steps)
        try:
            yield
        except BaseException:
            if self._state.steps() == done:
                self._state.put_span(before)
            raise

    def _begin_function(self, stream: Epochs, initial_epoch: int, done: int) -> None:
        """Let a function step -> rate begin at `initial_epoch`; a model that has trained counts on."""
        if done or not initial_epoch:
            return
        if stream.steps is None:
            _log.warning(
                "The learning rate's schedule begins at step 0, though initial_epoch is %d: this data cannot tell how "
                "many steps an epoch has. Pass steps_per_epoch, or a function that adds the steps before.",
                initial_epoch,
            )
            return
        self._state.set_span(-initial_epoch * stream.steps, 0, stream.steps)

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
        """Loss and metrics over a data set, exactly: a short last batch is padded and masked. Changes nothing.

        Args:
          x: images, or an iterable of batches, as in `fit`. Classes are mapped by name to `class_names`, if both have
            names.
          y: labels, as in `fit`.
          batch_size: examples in a step, over all devices together; 32 by default. Does not change the result.
          verbose: as in `fit`.
          sample_weight: (examples,) weight of each example in the loss.
          steps: how many batches, from the first; None for all.
          callbacks: whose on_test_* hooks are called.
          return_dict: a dict of names instead of a list.
          weights: "raw", as trained; "ema", averaged (see `compile`).

        Returns:
          [loss, metric, ...] in the order of `compile`; just the loss if there are no metrics; or a dict.
        """
        self._require_compiled("evaluate")
        self._state.check_structure()
        data = as_batches(x, y, sample_weight, geometry=self._evaluation_geometry(batch_size))
        data = relabeled(data, self._class_names, "x")
        self.stop_evaluating = False
        hooks = self._hooks(callbacks, verbose, data, steps)
        with hooks.told_of_exceptions(), keeping_memory(self._placement.devices[0].platform):
            results = self._loop.evaluate(data, steps, hooks, lambda: self.stop_evaluating, weights)
        return returned(results, return_dict)

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
        """The module's outputs for every row, in order. Changes nothing.

        Args:
          x: images, or an iterable of batches, as in `fit`.
          batch_size: examples in a step, over all devices together; 32 by default. Does not change the result.
          verbose: as in `fit`.
          steps: how many batches, from the first; None for all.
          callbacks: whose on_predict_* hooks are called.
          outputs: "logits": what the module returns; "probabilities": their softmax, or sigmoid for a single output;
            "labels": the number of the most probable class; "embedding": what the module's method `embed` returns, for
            resfit's networks the pooled features that their last layer sees. Of a multi-label model "probabilities" are
            the sigmoid of every logit, and "labels" 1 where that is above 0.5, else 0, (examples, labels). A model is
            multi-label if its loss is "binary_cross_entropy" and it has several outputs, or, for a custom loss, if the
            labels that it has seen were multi-hot.
          weights: "raw", as trained; "ema", averaged (see `compile`).

        Returns:
          A NumPy array (examples, ...), or a pytree of such if the module returns one.
        """
        parts = list(
            self.predict_batches(
                x, batch_size, verbose=verbose, steps=steps, callbacks=callbacks, outputs=outputs, weights=weights
            )
        )
        return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)

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
        """What `predict` returns, batch by batch, for data whose predictions do not fit in memory.

        Args:
          x: images, or an iterable of batches, as in `fit`.
          batch_size: as in `predict`.
          verbose: as in `fit`; silent by default.
          steps: as in `predict`.
          callbacks: as in `predict`.
          outputs: as in `predict`.
          weights: as in `predict`.

        Yields:
          The outputs of each batch in order, as NumPy, without padding.
        """
        if outputs not in NAMES:
            raise CompileError(f"Expected outputs to be one of {list(NAMES)}, got {outputs!r}.")
        asked = kind(outputs, multi_label=self._reads_each_output(outputs))
        if outputs == "embedding" and not callable(getattr(self._module, "embed", None)):
            raise ModuleError(
                f"predict(outputs='embedding') calls the module's method embed, and {type(self._module).__name__} has "
                "none. Expected def embed(self, x) that returns (batch, features)."
            )
        self._state.check_structure()
        data = as_batches(x, geometry=self._evaluation_geometry(batch_size))
        self.stop_predicting = False
        hooks = self._hooks(callbacks, verbose, data, steps)
        with hooks.told_of_exceptions(), keeping_memory(self._placement.devices[0].platform):
            yield from self._loop.predict(data, asked, steps, hooks, lambda: self.stop_predicting, weights)

    def train_on_batch(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        class_weight: Mapping[int, float] | None = None,
        return_dict: bool = False,
    ) -> Any:
        """One training step on this batch, whose loss and metrics it returns; the module holds the result at once."""
        self._require_compiled("train_on_batch")
        if self._named_schedule is not None and not self._state.steps():
            raise CompileError(
                "A named schedule spans the epochs of a fit, and train_on_batch has none. Compile with a number or "
                "with a function step -> rate."
            )
        with self._starting_over(self._class_names):
            return returned(self._loop.train_batch(one_batch(x, y, sample_weight, class_weight)), return_dict)

    def test_on_batch(self, x: Any, y: Any = None, sample_weight: Any = None, return_dict: bool = False) -> Any:
        """This batch's loss and metrics, in evaluation mode."""
        self._require_compiled("test_on_batch")
        return returned(self._loop.evaluate_batch(one_batch(x, y, sample_weight, None)), return_dict)

    def predict_on_batch(self, x: Any) -> Any:
        """The outputs for this batch, as NumPy."""
        x = as_arrays(x)[0]
        check_values(x)
        return self._loop.predict_batch(x)

    # --- variables, files, tables -------------------------------------------------------------------------------------

    def get_weights(self, weights: str = "raw") -> list[np.ndarray]:
        """A copy of every trained and carried array (parameters, BatchNorm statistics), as NumPy, in a fixed order.

        Args:
          weights: "raw", as trained; "ema", averaged (see `compile`).
        """
        return [np.array(array) for array in self._state.visible(weights)]

    @property
    def keeps_averages(self) -> bool:
        """True if the model was compiled with `ema=`, so that there are averaged weights."""
        return self._state.layout.n_model > self._state.layout.n_visible

    def set_weights(self, weights: Sequence[Any], averages: Sequence[Any] | None = None) -> None:
        """Set every trained and carried array: the inverse of `get_weights`.

        The averages of `compile(ema=)` start again at these weights, at the decay of the present step. To keep them,
        pass them: `set_weights(weights, averages=model.get_weights("ema"))`. The optimizer state, the step counter and
        the schedule continue, as in Keras; `compile` resets them.

        Args:
          weights: arrays in the order of `get_weights`.
          averages: the averaged weights, in the same order. By default equal to `weights`, where there are any.

        Raises:
          ModuleError: for another number of arrays, or other shapes.
          CompileError: if `averages` is given and the model was compiled without `ema=`.

        Example:
          >>> import resfit
          >>> model = Model(resfit.create_model("resnet20", num_classes=2, depths=(1,), widths=(4,)))
          >>> model.compile("sgd", ema=0.999)
          >>> model.set_weights([array + 1 for array in model.get_weights()])
          >>> all(map(np.array_equal, model.get_weights("ema"), model.get_weights()))
          True
        """
        self._state.set_visible(weights, averages)

    def save(self, path: str | os.PathLike[str], *, weights: str = "raw") -> None:
        """Writes the variables, the network's specification and all preprocessing to one safetensors file.

        The names of the classes go with them.

        Where several processes train together, the first one writes.

        Args:
          path: ending in ".safetensors". `resfit.load` reads it.
          weights: "raw", as trained; "ema", averaged (see `compile`).
        """
        from resfit.export import saving

        module = self._state.module_with(weights)
        if jax.process_index() == 0:
            saved = saving.SavedModel(
                module,
                self._preprocess,
                self._trained_on,
                self._transforms,
                self._class_names,
                self._trained,
                self._multi_label,
            )
            saving.save(path, saved)

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
        """Writes what `predict` computes as a program that runs with jax alone, for batches of any size.

        The file holds the program (StableHLO, by `jax.export`), preprocessing included, the weights as arrays, and JSON
        that says what is what. `resfit.load_exported` reads it. Where several processes train together, the first one
        writes.

        Args:
          path: ending in ".npz".
          input_shape: of one image, (height, width, channels), or a dict of such for several inputs. By default that of
            the images last trained on. The program takes no other.
          input_dtype: such as "uint8"; by default that of the images last trained on.
          outputs: as in `predict`.
          weights: "raw", as trained; "ema", averaged (see `compile`).
          fold_batch_norm: make every batch norm that follows a convolution part of it: less to compute, equal up to
            rounding (see `resfit.nets.fold_batch_norm`).
          class_names: kept with the program, one for each output; the model's own by default.
          platforms: where it can run, of "cpu", "cuda", "rocm" and "tpu".

        Raises:
          ExportError: if the shape or dtype of the images is not known, the module has to know the size of a batch,
            or an argument is none of those above.
          ModuleError: if there is no batch norm to fold.
        """
        from resfit.export import exporter as exporting

        exporting.export(
            path,
            self._state.module_with(weights),
            exporting.inputs(self._example, input_shape, input_dtype, self._preprocess, self._trained_on),
            preprocess=self._preprocess,
            precision=self._state.precision,
            seed=self._seed,
            outputs=outputs,
            weights=weights,
            fold=fold_batch_norm,
            class_names=self._class_names if class_names is None else class_names,
            platforms=platforms,
            multi_label=self._reads_each_output(outputs),
        )

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        module: nnx.Module | None = None,
        preprocess: preprocess_.Preprocess | None = None,
    ) -> Self:
        """Reads what `save` wrote; also as `resfit.load`.

        Args:
          path: of the file.
          module: the module to fill; needed where it is not one of resfit's networks, which are rebuilt from the file.
          preprocess: needed where the model was saved with a function of the user's own. Any other has to be the one
            that the network was trained with.

        Returns:
          A model that can predict at once, and be compiled to train on.

        Raises:
          SavedModelError: if the file is none of resfit's, or needs one of the arguments.
        """
        from resfit.export import saving

        saved = saving.load(path, module, preprocess)
        model = cls(saved.module)
        model._transforms, model._class_names = saved.transforms, saved.class_names
        model._multi_label = saved.multi_label
        model._bring(saved.preprocess, saved.trained_on)
        model._trained = saved.trained
        return model

    def summary(self, batch: Any = None, *, input_shape: tuple[int, ...] | None = None) -> None:
        """Shows a table of the network: output shapes, parameters, multiply-adds and activation memory.

        With a batch, also how much memory a training step takes for it on each device, in arguments, outputs, temporary
        memory and altogether. For that the step is compiled as `fit` does it, which then finds it; nothing is run, and
        nothing of the model changes.

        Args:
          batch: (x, y) or (x, y, sample_weight), arrays as for `train_on_batch`; or an input_shape.
          input_shape: of one image, (height, width, channels), where there is no batch. By default what resfit's
            networks are made for: 224 x 224 through an ImageNet stem, 32 x 32 through a CIFAR stem.

        Raises:
          NotCompiledError: with a batch, before `compile`.
          CompileError: with a batch, under dispatch="eager", which compiles nothing.
        """
        from rich.console import Console

        from resfit.diagnostics import summary

        console = Console()
        if isinstance(batch, tuple | list) and 1 <= len(batch) <= 3 and all(isinstance(side, int) for side in batch):
            batch, input_shape = None, tuple(batch)
        if batch is None:
            text = summary.summarize(self.module, input_shape).render(console.width)
        else:
            self._require_compiled("summary of a batch")
            one = one_batch(*unpacked(batch, "a batch"), None)
            memory, examples = self._loop.memory(one)
            x = one.x if self._preprocess is None else jax.eval_shape(self._preprocess, one.x)
            step = summary.memory_of_a_step(memory, examples, len(self._placement.devices))
            text = f"{summary.table_of_parts(self.module, x, console.width)}\n\n{step}"
        console.print(text, soft_wrap=True, highlight=False)

    def _require_compiled(self, method: str) -> None:
        if not self._compiled:
            raise NotCompiledError(f"The model was not compiled. Call model.compile(...) before {method}.")

    # --- assembling ---------------------------------------------------------------------------------------------------

    def _hooks(
        self, callbacks: Callback | Iterable[Callback] | None, verbose: str | int, data: Batches, steps: int | None
    ) -> CallbackList:
        total = data.steps if steps is None else steps
        return CallbackList(
            [*listed(callbacks), *bar(verbose)], self, {"verbose": verbose, "epochs": 1, "steps": total}
        )


_STEERING = (
    Checkpoint, EarlyStopping, LearningRateScheduler, ReduceLROnPlateau, RollbackOnNaN, SwapEMAWeights, TerminateOnNaN,
)  # fmt: skip


def _steering(callbacks: Sequence[Callback]) -> list[str]:
    """The names of the callbacks that change how a run goes on; others may be in one process alone."""
    return [type(callback).__name__ for callback in callbacks if isinstance(callback, _STEERING)]


class _SeenInputs(Callback):
    """Saves with a run what the model knows of the data it was trained on, for `save`, `export` and `predict`."""

    model: Model

    def state_dict(self) -> dict[str, Any]:
        # An array without rows has the shape and the dtype of an example, and a checkpoint can hold it.
        example = jax.tree.map(lambda one: np.empty((0, *one.shape), one.dtype), self.model._example)
        # Inputs in a container of the user's own class are known again after the next batch.
        return {
            "example": example if is_storable(example) else None,
            "trained_on": self.model._trained_on,
            "multi_label": self.model._multi_label,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model._trained_on = state["trained_on"]
        self.model._trained = self.model._stepped = True
        if self.model._multi_label is None:  # else the loss tells
            self.model._multi_label = state.get("multi_label")
        if state["example"] is not None:
            self.model._example, self.model._example_of = preprocess_.example(state["example"]), None


def _scope(placement: Placement, slices: int) -> str:
    whole = "the whole batch" if placement.batch_norm == "global" else "each device's part of the batch"
    return whole if slices == 1 else f"each of {slices} slices of {whole}"


def _convolutions(choice: str, placement: Placement) -> Convolutions | None:
    """What convolves instead of XLA, by the choice of `compile`; None: nothing does."""
    platform, mesh = placement.devices[0].platform, placement.mesh
    if not onednn.chosen(choice, platform, compiled=placement.kind != "eager"):
        return None
    return Convolutions(whole=onednn.Convolve(mesh), part=onednn.Convolve(), fused=onednn.fused)


def _schedule(
    named: schedules.Schedule | None, function: Callable[[Any], Any] | None
) -> Callable[[Any, Any], Any] | None:
    """A schedule as the step asks for it: (step, span of this fit) -> rate."""
    if named is not None:
        return lambda step, span: named.rate(step - span[0], span[1], span[2])
    if function is not None:
        return lambda step, span: function(step - span[0])
    return None
