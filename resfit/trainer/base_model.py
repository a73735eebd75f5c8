"""`BaseModel`: what a model holds, and what reads or sets that; `resfit.Model` adds compile, fit, evaluate, predict."""

import html
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from resfit._utils.jax_switches import suspending_calls
from resfit._utils.keywords import checked
from resfit.backends import compilation_cache
from resfit.callbacks import History
from resfit.callbacks.base import RunControl
from resfit.errors import ModuleError, NotCompiledError
from resfit.losses.by_output import total
from resfit.trainer.compiled import convolutions_of, placement_of
from resfit.trainer.config import CompileConfig
from resfit.trainer.context import RunContext
from resfit.trainer.graph.freezing import NOTHING_FROZEN, Freeze
from resfit.trainer.graph.module_plan import plan_module
from resfit.trainer.learned.facts import Learned
from resfit.trainer.loop.fit_control import FitControl
from resfit.trainer.loop.predictor import Predictor
from resfit.trainer.overrides import Guarded
from resfit.trainer.state.run_state import RunState
from resfit.trainer.state.snapshot import Snapshot
from resfit.trainer.supervised import Supervised
from resfit.transforms import FolderTransforms, Transforms


@suspending_calls(but=["compute_loss"])
class BaseModel(Guarded):
    """The state of a model: the module and its variables, what was compiled, and what was learned from the data.

    See `resfit.Model` for its argument and attributes.
    """

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if cls.__module__.startswith("resfit."):  # methods of the user keep the switches of JAX
            suspending_calls(but=["compute_loss"])(cls)

    @checked("model arguments", "Model")
    def __init__(self, module: nnx.Module) -> None:
        compilation_cache.use()
        own_step = self._has_own_step
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

    @property
    def _has_own_step(self) -> bool:
        return type(self).compute_loss is not BaseModel.compute_loss

    def compute_loss(self, module: Any, x: Any, y: Any, *, key: jax.Array, train: bool) -> tuple[jax.Array, Any]:
        """Compute the loss of a batch. Override it for any other step: a teacher, a penalty, several calls, no labels.

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
        found, outputs = Supervised(loss)(module, x, y, key=key, train=train)
        return total(found), outputs

    def freeze(self, *patterns: Any, batch_norm: bool = True) -> None:
        """Freeze parts from the next `compile` on: they get no gradient and no optimizer state. No pattern trains all.

        Args:
          patterns: dotted paths of parts, with * for anything: "stem", "stage[12]", "*.norm?". Everything inside a
            matching part is frozen. Or filters of NNX: `nnx.Not(nnx.LoRAParam)`, a function of (path, variable).
          batch_norm: True to also keep the running statistics of frozen BatchNorms and normalize by them.

        Raises:
          ModuleError: if a pattern or filter matches nothing.

        Example:
          >>> import resfit
          >>> model = resfit.Model(resfit.create_model("resnet20", num_classes=10))
          >>> model.freeze("stem", "stage[12]")
          >>> model.compile("sgd", learning_rate=0.01)
        """
        freeze = Freeze.of(patterns, batch_norm=batch_norm)
        plan_module(self._module, freeze)
        self._freeze = freeze
        self._control.must_compile_again("model.freeze changed the trained parts.")

    @property
    def transforms(self) -> Transforms | FolderTransforms | None:
        """The transforms of photographs before they are inputs, as `predict_images` applies them; saved with the model.

        `fit` on a folder or on image files takes their size, crop and mode, if no transforms are set.
        Setting them also sets the preprocessing to their normalization; `compile` again to train. After training, the
        normalization has to be the trained one; transforms with `mean=None` and `std=None` only resize and crop.

        Raises:
          CompileError: for anything but `Transforms`, and for another normalization than the trained one.
        """
        return self._learned.inputs.transforms

    @transforms.setter
    def transforms(self, value: Transforms | FolderTransforms) -> None:
        changed = self._learned.inputs.set_transforms(value)
        self._learned.inputs.transforms_were_set = True
        if changed:
            self._control.must_compile_again("Setting model.transforms changed the preprocessing.")
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

    # --- the running fit ----------------------------------------------------------------------------------------------

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
        """True to keep a copy of the state before each training step for `first_non_finite`; it costs a copy.

        The steps then run one by one, whatever `compile(steps_per_execution=...)` says.
        """
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

    # --- variables ----------------------------------------------------------------------------------------------------

    @property
    def module(self) -> nnx.Module:
        """The user's own module, holding the current variables. Training continues from values assigned to them.

        The average of an assigned Variable, `compile(ema=...)`, starts again at the new value, except between two steps
        of a running `fit`, where an assignment is part of the training.
        """
        return self._context.state.own_module()

    @module.setter
    def module(self, value: Any) -> None:
        raise ModuleError(
            f"model.module was set to a {type(value).__name__}, but a model keeps its module. Expected "
            "resfit.Model(module) for another module, then compile; model.set_weights sets all values."
        )

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

    def __repr__(self) -> str:
        parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(self._module, nnx.Param)))
        compiled = "compiled" if self._control.is_compiled else "not compiled"
        return f"<{type(self).__name__}: {type(self._module).__name__}, {parameters:,} parameters, {compiled}>"

    def _repr_html_(self) -> str:
        """Return the short text, and the table of the last fit, for notebooks."""
        table = self.history._repr_html_() if self.history is not None and self.history.epoch else ""
        return f"<div>{html.escape(repr(self))}</div>{table}"

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
        rate, memory = (None, None) if compiled is None else (compiled.rate, compiled.trainer.memory)
        return Snapshot.of(self._context, rate, memory, compiled=self._control.is_compiled)
