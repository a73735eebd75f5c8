"""The classic mistakes of training an image classifier, looked for in one call."""

import io
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from resfit import losses
from resfit.data.sources.arrays import as_arrays
from resfit.errors import LabelError
from resfit.model import Model
from resfit.nets import probe
from resfit.nets.probe import BlockStatistics
from resfit.trainer.graph import plan as modes
from resfit.trainer.snapshot import Snapshot

# The limits beyond which something is called a problem: generous, because a false alarm costs more than a late one.
SPREAD = (0.02, 5.0)  # standard deviation of the inputs; one of well-scaled images is 0.2 to 1
OFFSET = 5.0  # mean of the inputs
EXPLODING = 1e3  # a block's output over the first block's
UNEVEN = 1e4  # the largest over the smallest gradient that reaches a block
PER_CLASS = 10  # examples that each class would have, before a missing one is remarkable
GAP = 0.25  # by how much the loss in evaluation may exceed one and a half times that in training


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
      name: such as "inputs".
      status: "ok", "problem", or "skipped" where it could not be told.
      found: what was seen, with numbers.
      fix: what to do about a problem; otherwise "".
    """

    name: str
    status: str
    found: str
    fix: str = ""


@dataclass(frozen=True)
class Report:
    """What `doctor` found. Its text is a table.

    Attributes:
      checks: all of them, in order.
      blocks: the statistics of every block in one training step; empty if it could not be run.
    """

    checks: tuple[Check, ...]
    blocks: tuple[BlockStatistics, ...]

    @property
    def problems(self) -> tuple[Check, ...]:
        """The checks that found something to fix."""
        return tuple(check for check in self.checks if check.status == "problem")

    def __getitem__(self, name: str) -> Check:
        return {check.name: check for check in self.checks}[name]

    def __str__(self) -> str:
        from rich.console import Console
        from rich.table import Table

        n = len(self.problems)
        title = f"{n} problem{'' if n == 1 else 's'} found" if n else "No problem found"
        table = Table(title=title, title_justify="left", show_lines=True)
        for column in ("check", "", "what was found, and how to fix it"):
            table.add_column(column)
        for check in self.checks:
            table.add_row(check.name, check.status, "\n".join(filter(None, [check.found, check.fix])))
        console = Console(file=io.StringIO(), width=110, color_system=None)
        console.print(table, markup=False)
        return str(console.file.getvalue())  # type: ignore[attr-defined]


def doctor(model: Model, x: Any, y: Any = None, *, batch_size: int = 64) -> Report:
    """Checks a model and some of its training data for the classic mistakes, and says how to fix each.

    It looks for: inputs that are not normalised; labels that are off by one, out of range, or lack a class; a last
    layer that is activated already (the loss expects logits); a batch of one under BatchNorm; blocks that are dead,
    that explode, or that gradients do not reach; BatchNorm statistics that never move, or that do not fit the data.
    Nothing is changed.

    Args:
      model: compiled.
      x: training images (examples, height, width, channels), as they would be given to `fit`.
      y: labels, likewise. All of them are checked; the network is run on the first batch.
      batch_size: as it would be given to `fit`.

    Returns:
      The `Report`; `print(report)` shows it, `plots.block_statistics(report.blocks)` draws the blocks.

    Raises:
      NotCompiledError: before `compile`.
      DataError: if x and y are no arrays of one length.

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
    x, y, _ = as_arrays(x, y)
    size = min(batch_size, len(jax.tree.leaves(x)[0]))
    batch_x, batch_y = jax.tree.map(lambda a: a[:size], (x, y))
    if snapshot.preprocess is not None:
        batch_x = snapshot.preprocess(batch_x)
    run = _Run(model, snapshot, batch_x, batch_y)
    logits = run.logits()

    alone = size == 1 and run.plan.has_batch_norm
    labels = _labels(model, loss_function, y, logits)
    checks = [_inputs(batch_x), labels, _last_layer(logits, run), _batch_of_one(alone)]
    wrong_labels = labels.status == "problem" and not _learnable(loss_function, y, logits)
    reason = (
        "It needs more than one example." if alone else "It needs labels that fit the network." if wrong_labels else ""
    )
    if reason:
        names = ("blocks", "gradients", "statistics", "evaluation")
        return Report((*checks, *(Check(name, "skipped", reason) for name in names)), ())
    blocks, loss, stuck = run.training_step()
    checks += [
        _blocks(blocks),
        _gradients(run.training(blocks)),
        _statistics(run, stuck),
        _evaluation(run, loss, stuck),
    ]
    return Report(tuple(checks), blocks)


class _Run:
    """A model on one batch, in either mode, without changing it."""

    def __init__(self, model: Model, snapshot: Snapshot, x: Any, y: Any) -> None:
        self.model, self.x, self.y = model, x, y
        self.leaves, self.layout, self.plan = snapshot.variables, snapshot.layout, snapshot.layout.plan
        self.carried = self.leaves[self.layout.n_params :]
        self.trained = bool(snapshot.steps)
        self.key = jax.random.key(0)
        self._module = snapshot.module

    def logits(self, scale: float = 1.0) -> np.ndarray | None:
        """The outputs in evaluation, (batch, classes), for inputs times a number; None if they are something else."""

        @jax.jit
        def call(leaves: Any, x: Any) -> Any:
            return self._module(leaves, train=False)(x)

        x = self.x if scale == 1 else jax.tree.map(lambda a: jnp.asarray(a) * scale, self.x)
        outputs = call(self.leaves, x)
        return np.asarray(outputs, np.float32) if isinstance(outputs, jax.Array) and outputs.ndim == 2 else None

    def evaluation_loss(self) -> float:
        """The mean loss in evaluation."""

        @jax.jit
        def call(leaves: Any, x: Any, y: Any) -> Any:
            module = self._module(leaves, train=False)
            return self.model.compute_loss(module, x, y, key=self.key, train=False)[0]

        return float(np.mean(call(self.leaves, self.x, self.y)))

    def training_step(self) -> tuple[tuple[BlockStatistics, ...], float, list[str]]:
        """(blocks in the order of their calls, mean loss, norms whose statistics did not move)."""

        def step(change: Any, leaves: Any, x: Any, y: Any) -> tuple[jax.Array, Any]:
            module = self._module(leaves, train=True)
            probe.tap(module, change)
            losses_, _ = self.model.compute_loss(module, x, y, key=self.key, train=True)
            return jnp.asarray(losses_, jnp.float32).mean(), modes.read(self.plan, module)[1]

        blocks, loss, carried = probe.block_statistics(step, self.leaves, self.x, self.y)
        stuck = self._stuck(self.carried, carried)
        if stuck:  # or they are right to the last bit: then they would move back from elsewhere
            n = self.layout.n_params
            slots = zip(self.layout.carried, self.carried, strict=True)
            elsewhere = tuple(leaf + 1 if issubclass(slot.type, nnx.BatchStat) else leaf for slot, leaf in slots)
            leaves = (*self.leaves[:n], *elsewhere)
            carried = jax.jit(lambda *arguments: step(lambda _, output: output, *arguments)[1])(leaves, self.x, self.y)
            stuck = self._stuck(elsewhere, carried)
        return blocks, loss, stuck

    def training(self, blocks: tuple[BlockStatistics, ...]) -> tuple[BlockStatistics, ...]:
        """The blocks that need a gradient: all but those whose parameters are all frozen, such as a teacher's."""
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
        """The norms, frozen ones aside, none of whose statistics moved: behind a dead block the mean stays at 0."""
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
                "Find and replace them: np.argwhere(~np.isfinite(x)).",
            )  # fmt: skip
        mean, std = values.mean(), values.std()
        seen = f"{name} have mean {mean:.3g} and standard deviation {std:.3g} after preprocessing."
        if std < SPREAD[0]:
            return Check(
                "inputs", "problem", seen,
                "Expected a standard deviation near 1. Were they divided by 255 twice (uint8 is scaled for you), or "
                "are all images the same?",
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


def _labels(model: Model, loss: losses.Loss, y: Any, logits: np.ndarray | None) -> Check:
    own_step = type(model).compute_loss is not Model.compute_loss
    if own_step or y is None or logits is None or not losses.takes_labels(loss) or logits.shape[1] == 1:
        return Check("labels", "skipped", "Only labels of one class per example can be looked at.")
    try:
        losses.check(loss, y, logits.shape)
    except LabelError as error:
        return Check("labels", "problem", str(error), "fit refuses them until then.")
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
            f"Do the labels start at 1? Then pass y - 1, and build the network with num_classes={classes - 1}.",
        )  # fmt: skip
    return Check(
        "labels", "problem", f"{seen} No example is of class {_listed([str(i) for i in missing])}.",
        f"Were all files read? If so, number the classes from 0 without gaps (np.unique(y, return_inverse=True)[1]) "
        f"and build the network with num_classes={classes - len(missing)}.",
    )  # fmt: skip


def _last_layer(logits: np.ndarray | None, run: _Run) -> Check:
    if logits is None or not np.isfinite(logits).all():
        return Check("last layer", "skipped", "The outputs are not finite logits (batch, classes).")
    if np.ptp(logits, axis=0).max() == 0:
        return Check("last layer", "skipped", "The outputs are the same for every example.")
    low, high = float(logits.min()), float(logits.max())
    seen = f"The outputs run from {low:.3g} to {high:.3g}."
    remedy = "The loss expects logits, any numbers, and applies it itself: remove it from the end of the network."
    if low >= 0 and np.abs(logits.sum(axis=1) - 1).max() < 1e-3 and logits.shape[1] > 1:
        return Check("last layer", "problem", f"{seen} Each example's sum to 1: a softmax was applied.", remedy)
    if low == 0:
        return Check("last layer", "problem", f"{seen} None is negative and some are 0: a ReLU was applied.", remedy)
    if max(-low, high) <= 1:
        # Small logits look alike. Those of far larger inputs leave any range, unless a function saturates; behind a
        # norm that undoes the scale (LayerNorm, GroupNorm) nothing can be told.
        larger = run.logits(1e4)
        if larger is not None and 0.99 < np.abs(larger).max() <= 1 and np.median(abs(larger - np.round(larger))) < 0.01:
            what = "a sigmoid" if low > 0 and larger.min() >= 0 else "a tanh"
            return Check(
                "last layer", "problem", f"{seen} They stay there for 10,000 times larger inputs: {what} was applied.",
                remedy,
            )  # fmt: skip
    return Check("last layer", "ok", seen)


def _batch_of_one(alone: bool) -> Check:
    if alone:
        return Check(
            "batch size", "problem", "One example in a batch, and the network has BatchNorms, which normalise by the "
            "batch: an example is normalised by itself.",
            "Use a batch_size of 8 or more, or freeze the BatchNorms: model.freeze('*norm*').",
        )  # fmt: skip
    return Check("batch size", "ok", "Enough examples in a batch.")


def _blocks(blocks: tuple[BlockStatistics, ...]) -> Check:
    if not blocks:
        return Check("blocks", "skipped", "The network has no parts that return one array.")
    broken = [block for block in blocks if not np.isfinite(block.rms)]
    if broken:
        return Check(
            "blocks", "problem", f"The output of {broken[0].name} is not finite.",
            "Look at the inputs and at the parameters of this block; lower the learning rate, or clip gradients "
            "(optimizers.clip).",
        )  # fmt: skip
    dead = [block.name for block in blocks if block.dead > 0.99]
    if dead:
        return Check(
            "blocks", "problem", f"The output of {_listed(dead)} is zero for every example.",
            "Its activations died: train again with a lower learning rate or a warm-up, and look at how its weights "
            "and biases start.",
        )  # fmt: skip
    largest = max(blocks, key=lambda block: block.rms)
    growth = largest.rms / max(blocks[0].rms, 1e-30)
    seen = f"{largest.name} has the largest output, {growth:.3g} times that of {blocks[0].name}."
    if growth > EXPLODING:
        return Check(
            "blocks", "problem", seen,
            "Activations explode with depth: normalise in every block (BatchNorm), start the last scale of each block "
            "at zero, or start from smaller weights.",
        )  # fmt: skip
    return Check("blocks", "ok", seen)


def _gradients(blocks: tuple[BlockStatistics, ...]) -> Check:
    if not blocks:
        return Check("gradients", "skipped", "The network has no parts that return one array.")
    broken = [block.name for block in blocks if not np.isfinite(block.gradient)]
    if broken:
        return Check(
            "gradients", "problem", f"The gradient that reaches {_listed(broken)} is not finite.",
            "Look for a division by zero, a log or a square root at zero in the loss and in the blocks behind.",
        )  # fmt: skip
    least, most = (pick(blocks, key=lambda block: block.gradient) for pick in (min, max))
    if least.gradient == 0:
        cut = [block.name for block in blocks if block.gradient == 0]
        return Check(
            "gradients", "problem", f"No gradient reaches {_listed(cut)}.",
            "Something behind it is dead, cut off (stop_gradient, argmax, a constant), or starts with weights of zero "
            "and will pass gradients on after one step.",
        )  # fmt: skip
    ratio = most.gradient / least.gradient
    seen = f"The gradient is largest at {most.name}, {ratio:.3g} times that at {least.name}."
    if ratio > UNEVEN:
        return Check(
            "gradients", "problem", seen,
            "Gradients vanish or explode over the depth: add shortcuts (nets.Residual) and BatchNorms.",
        )  # fmt: skip
    return Check("gradients", "ok", seen)


def _statistics(run: _Run, stuck: list[str]) -> Check:
    if not run.plan.has_batch_norm:
        return Check("statistics", "skipped", "The network keeps no running statistics.")
    if stuck:
        return Check(
            "statistics", "problem", f"A training step does not move the statistics of {_listed(stuck)}.",
            "The norm runs in evaluation mode, or is not used. Pass the mode on inside __call__ (train=train); if you "
            "mean it, say so with model.freeze.",
        )  # fmt: skip
    return Check("statistics", "ok", "A training step moves every running statistic that is not frozen.")


def _evaluation(run: _Run, training_loss: float, stuck: list[str]) -> Check:
    fresh = all(
        np.all(leaf == (1 if slot.path[-1] == "var" else 0))
        for slot, leaf in zip(run.layout.carried, run.carried, strict=True)
        if issubclass(slot.type, nnx.BatchStat)
    )
    if stuck or (fresh and not run.trained):
        return Check("evaluation", "skipped", "It can be told once the network is trained.")
    loss = run.evaluation_loss()
    seen = f"The loss of this batch is {training_loss:.3g} in training mode and {loss:.3g} in evaluation."
    if not loss <= 1.5 * training_loss + GAP:
        return Check(
            "evaluation", "problem", seen,
            "The running statistics do not fit these data: train for more steps, use larger batches, or call "
            "resfit.recalibrate(model, x_train).",
        )  # fmt: skip
    return Check("evaluation", "ok", seen)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
