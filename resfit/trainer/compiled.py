"""The result of `Model.compile`: one frozen object that holds the state and the steps."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

from resfit import augment, losses
from resfit import metrics as metrics_
from resfit._utils.jax_switches import jit_disabled
from resfit.augment.pipeline import consistency_of
from resfit.backends import onednn
from resfit.errors import CompileError
from resfit.metrics.by_output import are_by_output, by_output
from resfit.metrics.collection import Summed
from resfit.trainer.config import CompileConfig
from resfit.trainer.context import RunContext
from resfit.trainer.devices.placement import AXIS, Placement, preferred_device
from resfit.trainer.graph.freezing import Freeze
from resfit.trainer.graph.module_plan import Convolutions
from resfit.trainer.learned.facts import Learned
from resfit.trainer.learned.input_format import spec_entry
from resfit.trainer.learning_rate import LearningRate, resolve
from resfit.trainer.loop.evaluator import Evaluator
from resfit.trainer.loop.predictor import Predictor
from resfit.trainer.loop.trainer import Trainer
from resfit.trainer.precision import Precision, resolve_precision
from resfit.trainer.state.run_state import RunState
from resfit.trainer.step import Recipe
from resfit.trainer.supervised import ComputeLoss, Supervised


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A model that can be trained.

    Attributes:
      config: of `compile`, with "auto" resolved.
      asked: of `compile`, as it was given.
      context: the state on its devices.
      rate: the learning rate.
      trainer: takes training steps.
      evaluator: measures.
      predictor: applies the module.
      precision: of the steps, with the reason if "auto" chose it.
    """

    config: CompileConfig
    asked: CompileConfig
    context: RunContext
    rate: LearningRate
    trainer: Trainer
    evaluator: Evaluator
    predictor: Predictor
    precision: Precision

    def fingerprint(self) -> dict[str, Any]:
        """Return what must be equal in a resumed run, by name."""
        return {**self.config.fingerprint(), "platform": self.context.placement.platform}

    def named(self) -> dict[str, str | None]:
        """Return optimizer, loss and augmentation as text, as `compile` got them."""
        return {name: argument_name(getattr(self.asked, name)) for name in ("optimizer", "loss", "augment")}

    def described(self, batch_size: int) -> str:
        """Describe the steps in one line, for the log of a `fit`."""
        config, placement = self.config, self.context.placement
        batch = "the whole batch" if config.batch_norm == "global" else "each device's part of the batch"
        slices = config.gradient_accumulation_steps
        normalized = batch if slices == 1 else f"each of {slices} slices of {batch}"
        kernels = "" if config.cpu_kernels == "xla" else f"; convolutions by {config.cpu_kernels}"
        each = batch_size / len(placement.devices)
        return (
            f"{self.precision}; BatchNorm over {normalized}; seed {config.seed}; {placement.kind} on "
            f"{len(placement.devices)} {placement.platform} device(s), batches of {batch_size}, {each:g} a device"
            f"{kernels}."
        )


def compile_model(
    module: nnx.Module,
    config: CompileConfig,
    learned: Learned,
    freeze: Freeze,
    before: RunState,
    compute_loss: ComputeLoss | None,
) -> Compiled:
    """Build the state and the steps of a model. The module keeps its values.

    Args:
      module: the network.
      config: the arguments of `compile`.
      learned: of the model; takes over loss and preprocessing.
      freeze: the parts that are not trained.
      before: the present state of the module.
      compute_loss: of a subclass that overrides it, else None.

    Raises:
      CompileError: for unknown names, and combinations that cannot work.
    """
    transformation, number, named, function = resolve(config.optimizer, config.learning_rate, config.weight_decay)
    preprocess = learned.inputs.chosen(config.preprocess, replace=config.replaces_preprocess)
    learned.labels.check_head()
    num_classes = spec_entry(module, "num_classes")
    augments = augment.get(config.augment, num_classes)
    loss = losses.get(config.loss, config.loss_weights)
    _check_consistency(augments, loss, custom_step=compute_loss is not None)
    metrics = _metrics(config.metrics, loss, num_classes, learned, custom_step=compute_loss is not None)
    placement = placement_of(module, config)
    convolutions = convolutions_of(config.cpu_kernels, placement)
    precision = resolve_precision(config.precision, placement.devices[0], by_onednn=convolutions is not None)

    before.publish()
    state = RunState(
        module,
        transformation,
        placement.replicate,
        freeze,
        ema=config.ema is not None,
        precision=precision.name,
        axis=AXIS if placement.replicas > 1 and config.batch_norm == "global" else None,
        convolutions=convolutions,
        before=before,
    )
    state.check_for_training()
    if config.weight_decay is not None and state.layout.weight_decay_index is not None:
        state.set_leaf(state.layout.weight_decay_index, config.weight_decay)
    rate = LearningRate(state, number, named, function)
    context = RunContext(state, placement, config.seed, learned, config.steps_per_execution)
    recipe = Recipe(
        compute_loss or Supervised(loss),
        metrics,
        preprocess,
        augments,
        rate.in_step,
        rate.index,
        config.ema,
        config.gradient_accumulation_steps,
        None if convolutions is None else convolutions.fused_norms,
    )
    _check_same_values(context)
    resolved = dataclasses.replace(
        config,
        dispatch=placement.kind,
        precision=precision.name,
        cpu_kernels=_kernels(convolutions),
    )
    evaluator = Evaluator(context, recipe)
    trainer = Trainer(context, recipe, evaluator)
    predictor = Predictor(context, preprocess)
    # Last: a compilation that fails leaves the model as it was.
    learned.compiled(loss, metrics, preprocess, replaces_preprocess=config.replaces_preprocess)
    return Compiled(resolved, config, context, rate, trainer, evaluator, predictor, precision)


def placement_of(module: nnx.Module, config: CompileConfig) -> Placement:
    """Return the devices of a run, by the arguments of `compile` and the arrays of the module."""
    device = preferred_device(jax.tree.leaves(nnx.state(module))) if isinstance(module, nnx.Module) else None
    return Placement(config.dispatch, config.compiler_options, config.batch_norm, device)


def convolutions_of(choice: str, placement: Placement) -> Convolutions | None:
    """Return the convolutions that replace XLA's, by the choice of `compile`; None if none do."""
    if not onednn.chosen(choice, placement.platform, compiled=placement.kind != "eager" and not jit_disabled()):
        return None
    convolutions = Convolutions(whole=onednn.Convolve(placement.mesh), part=onednn.Convolve(), fused=onednn.fused)
    if placement.kind == "jit" and onednn.has_norms():
        convolutions = convolutions._replace(normalize=onednn.Normalize(), fused_norms=onednn.fused_norms)
    return convolutions


def _kernels(convolutions: Convolutions | None) -> str:
    """Describe the kernels of a run; they decide the last bits of its results."""
    return "xla" if convolutions is None else onednn.described(norms=convolutions.normalize is not None)


def _metrics(given: Any, loss: losses.Loss, num_classes: int | None, learned: Learned, *, custom_step: bool) -> Summed:
    if are_by_output(given, loss):
        return by_output(given, loss, reports_losses=not custom_step)
    several = learned.labels.by_loss(loss)
    automatic = isinstance(given, str) and given == "auto"
    found = (
        metrics_.automatic(None if custom_step else loss)
        if automatic
        else metrics_.by_name(given, num_classes, multi_label=several)
    )
    return metrics_.collection(found, multi_label=bool(several), ignore_index=losses.ignore_index(loss))


def _check_consistency(augments: tuple[augment.Augment, ...], loss: losses.Loss, *, custom_step: bool) -> None:
    """Raise CompileError if predictions are compared as classes, and a loss of resfit reads them otherwise."""
    known = isinstance(loss, losses.BinaryCrossEntropy) or losses.multi_label(loss) is not None
    other = are_by_output([], loss) or (known and not losses.takes_labels(loss))
    if consistency_of(augments) and not custom_step and other:
        raise CompileError(
            f"compile got augment.aug_mix(consistency=...) and loss={argument_name(loss)!r}. Expected a loss of one "
            "class per example, such as 'cross_entropy': the consistency compares the probabilities of the classes."
        )


def argument_name(given: Any) -> str | None:
    """Return the name of an argument; for an object without one that of its class, never an address."""
    if given is None or isinstance(given, str):
        return given
    if isinstance(given, Mapping):
        return ", ".join(f"{key}: {argument_name(value)}" for key, value in given.items())
    if isinstance(given, list | tuple) and not hasattr(given, "_fields"):
        return ", ".join(str(argument_name(one)) for one in given)
    if isinstance(given, optax.GradientTransformation):
        return "optax.GradientTransformation"
    text = repr(given)
    if " at 0x" not in text and len(text) <= 200:
        return text
    named = given if hasattr(given, "__qualname__") else type(given)
    return str(named.__qualname__).partition(".<locals>")[0]


def _check_same_values(context: RunContext) -> None:
    """Raise if the processes of a run hold different networks."""
    context.processes.check_same(
        "initial values",
        (np.asarray(array).tobytes() for array in context.state.visible()),
        context.state.layout.visible_names,
        "Build the network from the same seed, or load the same file, in every process.",
    )
