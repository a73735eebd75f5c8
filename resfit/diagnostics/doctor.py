"""Check a model and its data for the classic mistakes of training an image classifier."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from resfit import losses
from resfit._utils.jax_switches import suspending
from resfit._utils.keywords import checked
from resfit.diagnostics.doctor_report import Check, DoctorReport
from resfit.diagnostics.first_batch import first_batch
from resfit.errors import LabelError
from resfit.model import Model
from resfit.nets import probe
from resfit.nets.probe import BlockStatistics
from resfit.trainer.state.snapshot import Snapshot

# The limits of a problem. They are generous, because a false alarm costs more than a late one.
SPREAD = (0.02, 5.0)  # standard deviation of the inputs; that of well-scaled images is 0.2 to 1
OFFSET = 5.0  # mean of the inputs
EXPLODING = 1e3  # rms of a block's output, divided by that of the first block
UNEVEN = 1e4  # ratio of the largest to the smallest gradient of a block
PER_CLASS = 10  # examples per class from which a missing class is a problem
NO_BLOCKS = "No part of the network returns one array outside of transformations such as nnx.scan and nnx.remat."
GAP = 0.25  # the evaluation loss can exceed 1.5 times the training loss by this much


@checked("function arguments")
@suspending
def doctor(model: Model, x: Any, y: Any = None, *, batch_size: int = 64) -> DoctorReport:
    """Check a model and its training data for the classic mistakes, and name a fix for each.

    The mistakes are: inputs that are not normalized; labels that are off by one, out of range, or lack a class; an
    activation after the last layer (the loss expects logits); a batch of one under BatchNorm; blocks that are dead,
    that explode, or that gradients do not reach; BatchNorm statistics that never move, or that do not fit the data.
    Nothing is changed.

    Args:
      model: compiled.
      x: training images (examples, height, width, channels), a folder or another dataset, as for `fit`.
      y: labels, as for `fit`. All known labels are checked; the network runs on the first batch.
      batch_size: as for `fit`.

    Returns:
      The `DoctorReport`; `print(report)` shows it, `plots.block_statistics(report.blocks)` draws the blocks.

    Raises:
      NotCompiledError: before `compile`.
      DataError: if x and y are not data for `fit`.
      ModuleError: if every parameter is frozen, or the module has no parameters.

    Example:
      >>> import numpy as np, resfit
      >>> net = resfit.create_model("resnet20", num_classes=2, depths=(1,), widths=(4,), in_channels=1)
      >>> model = resfit.Model(net)
      >>> model.compile("sgd")
      >>> x = np.random.default_rng(0).integers(0, 256, size=(64, 8, 8, 1)).astype("float32")
      >>> report = doctor(model, x, np.arange(64) % 2 + 1)
      >>> [check.name for check in report.problems]
      ['inputs', 'labels']
      >>> report["inputs"].found
      'The inputs have mean 128 and standard deviation 74.6 after preprocessing.'
    """
    snapshot = model.snapshot()
    loss_function = snapshot.require_compiled("doctor")
    snapshot.check_trainable("the training that doctor examines")
    batch_x, batch_y, y, names = first_batch(x, y, batch_size)
    size = len(jax.tree.leaves(batch_x)[0])
    if snapshot.preprocess is not None:
        batch_x = snapshot.preprocess(batch_x)
    run = _Run(model, snapshot, batch_x, batch_y)
    logits = run.logits()

    alone = size == 1 and run.plan.has_batch_norm
    labels = _labels(model, loss_function, y, logits, model.class_names or names)
    checks = [_inputs(batch_x), labels, _last_layer(logits, run), _batch_of_one(alone)]
    wrong_labels = labels.status == "problem" and not _learnable(loss_function, y, logits)
    reason = (
        "It needs more than one example." if alone else "It needs labels that fit the network." if wrong_labels else ""
    )
    if reason:
        names = ("blocks", "gradients", "statistics", "evaluation")
        return DoctorReport((*checks, *(Check(name, "skipped", reason) for name in names)), ())
    blocks, loss, stuck = run.training_step()
    checks += [
        _blocks(blocks),
        _gradients(run.training(blocks)),
        _statistics(run, stuck),
        _evaluation(run, loss, stuck),
    ]
    return DoctorReport(tuple(checks), blocks)


class _Run:
    """A model on one batch, in either mode; the model is not changed."""

    def __init__(self, model: Model, snapshot: Snapshot, x: Any, y: Any) -> None:
        self.model, self.x, self.y = model, x, y
        self.leaves, self.layout, self.plan = snapshot.variables, snapshot.layout, snapshot.layout.plan
        self.carried = self.leaves[self.layout.n_params :]
        self.trained = bool(snapshot.steps)
        self.key = jax.random.key(0)
        self._module = snapshot.module

    def logits(self, scale: float = 1.0) -> np.ndarray | None:
        """Return the outputs in evaluation for scaled inputs; None if they are not (batch, classes)."""

        @jax.jit
        def call(leaves: Any, x: Any) -> Any:
            return self._module(leaves, train=False)(x)

        x = self.x if scale == 1 else jax.tree.map(lambda a: jnp.asarray(a) * scale, self.x)
        outputs = call(self.leaves, x)
        return np.asarray(outputs, np.float32) if isinstance(outputs, jax.Array) and outputs.ndim == 2 else None

    def evaluation_loss(self) -> float:
        """Return the mean loss in evaluation."""

        @jax.jit
        def call(leaves: Any, x: Any, y: Any) -> Any:
            module = self._module(leaves, train=False)
            return self.model.compute_loss(module, x, y, key=self.key, train=False)[0]

        return float(np.mean(call(self.leaves, self.x, self.y)))

    def training_step(self) -> tuple[tuple[BlockStatistics, ...], float, list[str]]:
        """Return blocks in the order of their calls, mean loss, and the norms whose statistics did not move."""

        def step(change: Any, leaves: Any, x: Any, y: Any) -> tuple[jax.Array, Any]:
            module = self._module(leaves, train=True)
            probe.tap(module, change)
            losses_, _ = self.model.compute_loss(module, x, y, key=self.key, train=True)
            return jnp.asarray(losses_, jnp.float32).mean(), self.plan.read(module)[1]

        blocks, loss, carried = probe.block_statistics(step, self.leaves, self.x, self.y)
        stuck = self._stuck(self.carried, carried)
        if stuck:  # statistics that are exact also stay; they move if they start elsewhere
            n = self.layout.n_params
            slots = zip(self.layout.carried, self.carried, strict=True)
            elsewhere = tuple(leaf + 1 if issubclass(slot.type, nnx.BatchStat) else leaf for slot, leaf in slots)
            leaves = (*self.leaves[:n], *elsewhere)
            carried = jax.jit(lambda *arguments: step(lambda _, output: output, *arguments)[1])(leaves, self.x, self.y)
            stuck = self._stuck(elsewhere, carried)
        return blocks, loss, stuck

    def training(self, blocks: tuple[BlockStatistics, ...]) -> tuple[BlockStatistics, ...]:
        """Return the blocks that need a gradient: those with trained parameters, and those without parameters."""
        names = {
            frozen: {
                slot.name for slot in self.plan.slots if issubclass(slot.type, nnx.Param) and slot.frozen == frozen
            }
            for frozen in (False, True)
        }

        def holds(block: BlockStatistics, frozen: bool) -> bool:
            inside = block.name.split(" ")[0] + "."  # without the number of the call
            return any(name.startswith(inside) for name in names[frozen])

        return tuple(block for block in blocks if holds(block, False) or not holds(block, True))

    def _stuck(self, before: Any, after: Any) -> list[str]:
        """Return the unfrozen norms without a changed statistic. Behind a dead block only the variance changes."""
        moved: dict[str, bool] = {}
        for slot, old, new in zip(self.layout.carried, before, after, strict=True):
            if issubclass(slot.type, nnx.BatchStat) and not slot.frozen:
                norm = ".".join(map(str, slot.path[:-1]))
                moved[norm] = moved.get(norm, False) or not np.array_equal(old, new)
        return [norm for norm, has_moved in moved.items() if not has_moved]


def _inputs(x: Any) -> Check:
    for path, leaf in jax.tree_util.tree_flatten_with_path(x)[0]:
        name = f"The inputs{jax.tree_util.keystr(path)}"
        values = np.asarray(leaf, np.float64)
        if not np.isfinite(values).all():
            share = 1 - np.isfinite(values).mean()
            return Check(
                "inputs", "problem", f"{name} hold NaN or infinity: {share:.2%} of their values.",
                "Find them with np.argwhere(~np.isfinite(x)), and replace them.",
            )  # fmt: skip
        mean, std = values.mean(), values.std()
        seen = f"{name} have mean {mean:.3g} and standard deviation {std:.3g} after preprocessing."
        if std < SPREAD[0]:
            return Check(
                "inputs", "problem", seen,
                "Expected a standard deviation near 1. Check that the images differ, and that they are not "
                "divided by 255 twice (resfit scales uint8 itself).",
            )  # fmt: skip
        if std > SPREAD[1] or abs(mean) > OFFSET:
            return Check(
                "inputs", "problem", seen,
                "Expected a mean near 0 and a standard deviation near 1. Pass 0..255 images as uint8, divide by 255, "
                "or compile with preprocess=preprocess.Normalize(mean, std).",
            )  # fmt: skip
    return Check("inputs", "ok", seen)


def _learnable(loss: losses.Loss, y: Any, logits: np.ndarray | None) -> bool:
    if y is None or logits is None:
        return True
    try:
        losses.check(loss, y, logits.shape)
    except LabelError:
        return False
    return True


def _labels(model: Model, loss: losses.Loss, y: Any, logits: np.ndarray | None, names: Sequence[str] | None) -> Check:
    own_step = type(model).compute_loss is not Model.compute_loss
    if own_step or y is None or logits is None or not losses.takes_labels(loss) or logits.shape[1] == 1:
        return Check("labels", "skipped", "The check needs labels of one class per example.")
    try:
        losses.check(loss, y, logits.shape)
    except LabelError as error:
        return Check("labels", "problem", str(error), "fit raises the same error.")
    classes = logits.shape[1]
    numbers = y.argmax(axis=1) if y.ndim == 2 and y.shape[1] > 1 else y.reshape(-1).astype(np.int64)
    counts = np.bincount(numbers, minlength=classes)
    missing = np.flatnonzero(counts == 0)
    seen = f"{len(numbers)} labels of {classes - len(missing)} of {classes} classes."
    if len(missing) == 0 or len(numbers) < PER_CLASS * classes:
        return Check("labels", "ok", seen)
    if missing.tolist() == [0]:
        return Check(
            "labels", "problem", f"{seen} No example is of class 0.",
            f"If the labels start at 1, pass y - 1 and build the network with num_classes={classes - 1}.",
        )  # fmt: skip
    lacking = _listed([repr(names[i]) if names else str(i) for i in missing.tolist()])
    return Check(
        "labels", "problem", f"{seen} No example is of class {lacking}.",
        f"Check that all files were read. Number the classes from 0 without gaps "
        f"(np.unique(y, return_inverse=True)[1]), and build the network with num_classes={classes - len(missing)}.",
    )  # fmt: skip


def _last_layer(logits: np.ndarray | None, run: _Run) -> Check:
    if logits is None or not np.isfinite(logits).all():
        return Check("last layer", "skipped", "The outputs are not finite logits (batch, classes).")
    if np.ptp(logits, axis=0).max() == 0:
        return Check("last layer", "skipped", "The outputs are equal for all examples.")
    low, high = float(logits.min()), float(logits.max())
    seen = f"The outputs are between {low:.3g} and {high:.3g}."
    remedy = "The loss expects logits and applies the activation itself. Remove it from the end of the network."
    if low >= 0 and np.abs(logits.sum(axis=1) - 1).max() < 1e-3 and logits.shape[1] > 1:
        return Check("last layer", "problem", f"{seen} Those of each example sum to 1: a softmax was applied.", remedy)
    if low == 0:
        return Check(
            "last layer", "problem", f"{seen} Some are 0, and no output is negative: a ReLU was applied.", remedy
        )
    if max(-low, high) <= 1:
        # Small logits look the same. For far larger inputs they leave the range, unless an activation saturates. Behind
        # a norm that removes the scale (LayerNorm, GroupNorm) the check sees nothing.
        larger = run.logits(1e4)
        if larger is not None and 0.99 < np.abs(larger).max() <= 1 and np.median(abs(larger - np.round(larger))) < 0.01:
            name = "a sigmoid" if low > 0 and larger.min() >= 0 else "a tanh"
            return Check(
                "last layer", "problem", f"{seen} They stay there for 10,000 times larger inputs: {name} was applied.",
                remedy,
            )  # fmt: skip
    return Check("last layer", "ok", seen)


def _batch_of_one(alone: bool) -> Check:
    if alone:
        return Check(
            "batch size", "problem", "The batch has one example, and the network has BatchNorms, which normalize by "
            "the batch: an example is normalized by itself.",
            "Use a batch_size of 8 or more, or freeze the BatchNorms: model.freeze('*norm*').",
        )  # fmt: skip
    return Check("batch size", "ok", "The batch has enough examples.")


def _blocks(blocks: tuple[BlockStatistics, ...]) -> Check:
    if not blocks:
        return Check("blocks", "skipped", NO_BLOCKS)
    broken = [block for block in blocks if not np.isfinite(block.rms)]
    if broken:
        return Check(
            "blocks", "problem", f"The output of {broken[0].name} is not finite.",
            "Check the inputs and the parameters of this block. Lower the learning rate, or clip gradients "
            "(optimizers.clip).",
        )  # fmt: skip
    dead = [block.name for block in blocks if block.dead > 0.99]
    if dead:
        return Check(
            "blocks", "problem", f"The output of {_listed(dead)} is zero for every example.",
            "Its activations are dead. Train again with a lower learning rate or a warm-up, and check the initial "
            "values of its weights and biases.",
        )  # fmt: skip
    largest = max(blocks, key=lambda block: block.rms)
    growth = largest.rms / max(blocks[0].rms, 1e-30)
    seen = f"{largest.name} has the largest output, {growth:.3g} times that of {blocks[0].name}."
    if growth > EXPLODING:
        return Check(
            "blocks", "problem", seen,
            "Activations explode with depth. Normalize in every block (BatchNorm), start the last scale of each block "
            "at zero, or start from smaller weights.",
        )  # fmt: skip
    return Check("blocks", "ok", seen)


def _gradients(blocks: tuple[BlockStatistics, ...]) -> Check:
    if not blocks:
        return Check("gradients", "skipped", NO_BLOCKS)
    broken = [block.name for block in blocks if not np.isfinite(block.gradient)]
    if broken:
        return Check(
            "gradients", "problem", f"The gradient that reaches {_listed(broken)} is not finite.",
            "Check the loss and the later blocks for a division by zero, and for a log or a square root at zero.",
        )  # fmt: skip
    least, most = (pick(blocks, key=lambda block: block.gradient) for pick in (min, max))
    if least.gradient == 0:
        cut = [block.name for block in blocks if block.gradient == 0]
        return Check(
            "gradients", "problem", f"No gradient reaches {_listed(cut)}.",
            "A later part is dead, cuts gradients off (stop_gradient, argmax, a constant), or starts with zero weights "
            "and passes gradients on after one step.",
        )  # fmt: skip
    ratio = most.gradient / least.gradient
    seen = f"The gradient is largest at {most.name}, {ratio:.3g} times that at {least.name}."
    if ratio > UNEVEN:
        return Check(
            "gradients", "problem", seen,
            "Gradients vanish or explode with depth. Add shortcuts (nets.Residual) and BatchNorms.",
        )  # fmt: skip
    return Check("gradients", "ok", seen)


def _statistics(run: _Run, stuck: list[str]) -> Check:
    if not run.plan.has_batch_norm:
        return Check("statistics", "skipped", "The network keeps no running statistics.")
    if stuck:
        return Check(
            "statistics", "problem", f"A training step does not move the statistics of {_listed(stuck)}.",
            "The norm runs in evaluation mode, or is not used. Pass the mode on inside __call__ (train=train), or use "
            "model.freeze if this is intended.",
        )  # fmt: skip
    return Check("statistics", "ok", "A training step moves every running statistic that is not frozen.")


def _evaluation(run: _Run, training_loss: float, stuck: list[str]) -> Check:
    fresh = all(
        np.all(leaf == (1 if slot.path[-1] == "var" else 0))
        for slot, leaf in zip(run.layout.carried, run.carried, strict=True)
        if issubclass(slot.type, nnx.BatchStat)
    )
    if stuck or (fresh and not run.trained):
        return Check("evaluation", "skipped", "The check needs a trained network.")
    loss = run.evaluation_loss()
    seen = f"The loss of this batch is {training_loss:.3g} in training mode and {loss:.3g} in evaluation."
    if not loss <= 1.5 * training_loss + GAP:
        return Check(
            "evaluation", "problem", seen,
            "The running statistics do not fit this data. Train for more steps, use larger batches, or call "
            "resfit.recalibrate(model, x_train).",
        )  # fmt: skip
    return Check("evaluation", "ok", seen)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
