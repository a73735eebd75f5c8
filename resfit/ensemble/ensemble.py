"""`Ensemble`: several networks that are trained together, with the methods of `Model`."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
from flax import nnx

from resfit import losses
from resfit._utils.checks import int_from, is_int, positive_int
from resfit._utils.jax_switches import of_this_thread
from resfit._utils.keywords import checked
from resfit._utils.paths import expand_user
from resfit.callbacks import Callback, History
from resfit.ensemble import parallel
from resfit.ensemble.display import Rows
from resfit.ensemble.each import for_members
from resfit.ensemble.folds import folded
from resfit.ensemble.history import EnsembleHistory, stacked
from resfit.ensemble.members import callbacks_of_members, check_distinct, check_shared, folder_of, of_ensemble
from resfit.ensemble.pace import Pace
from resfit.ensemble.scores import Scores, is_of_values, logits, measured, outputs_of_members
from resfit.errors import ArgumentError, CompileError, DataError, NotCompiledError, SavedModelError
from resfit.model import Model
from resfit.trainer.arguments import bar
from resfit.trainer.loop.callback_list import CallbackList
from resfit.trainer.loop.interrupts import Interrupt, at_batch_boundaries, report_members
from resfit.trainer.views import check_tta


class Ensemble:
    """Networks of one architecture with different seeds, learning rates or data, trained together in one call.

    The members run one compiled program. Small networks take their steps at the same time: on a CPU one on each core,
    on an accelerator all in one program, and of several devices each member has one, in turn. Large networks, members
    that are split over several devices (`dispatch="sharded"`), and on an accelerator `dispatch="eager"` and
    `steps_per_execution` above 1, take turns, epoch by epoch. Each member computes what it would compute alone, bit for
    bit, or up to rounding in one program.

    Args:
      make: a function seed -> `nnx.Module`, or seed -> `Model` for a model with its own `compute_loss`.
      members: the number of members, whose seeds are 0, 1, 2, ...; or a list of seeds.

    Attributes:
      members: the models. Each is an ordinary `Model`, which can be used alone too.
      seeds: of the members.
      history: the `EnsembleHistory` of the last `fit`, or None.
      stop_training: set it to True to stop all members after this epoch.

    Raises:
      ArgumentError: if `make` is not a function, or for an impossible number of members.
      ModuleError: if `make` returns one module twice, or no module.

    Example:
      >>> import numpy as np, resfit
      >>> x = np.random.default_rng(0).normal(size=(64, 8, 8, 1)).astype("float32")
      >>> y = (x.mean(axis=(1, 2, 3)) > 0).astype("int32")
      >>> def make(seed):
      ...     return resfit.create_model("resnet20", num_classes=2, depths=(1,), widths=(4,), in_channels=1, rngs=seed)
      >>> ensemble = Ensemble(make, members=3)
      >>> ensemble.compile("sgd", learning_rate=0.1)
      >>> history = ensemble.fit(x, y, epochs=2, verbose=0)
      >>> history.history["loss"][-1].shape, history.mean["loss"].shape
      ((3,), (2,))
      >>> ensemble.predict(x).shape
      (64, 2)
    """

    @checked("ensemble arguments", "Ensemble")
    def __init__(self, make: Callable[[int], Any], members: int | Iterable[int] = 5) -> None:
        if not callable(make) or isinstance(make, nnx.Module | Model):
            raise ArgumentError(
                f"Ensemble got a {type(make).__name__} as make. Expected a function seed -> module, such as "
                "lambda seed: resfit.create_model('resnet20', num_classes=10, rngs=seed)."
            )
        if isinstance(members, Iterable):
            self.seeds = [int_from(0, "each seed in members", seed, ArgumentError) for seed in members]
        else:
            expected = "a positive number of members, or a list of seeds"
            self.seeds = list(range(positive_int("members", members, ArgumentError, expected)))
        if not self.seeds:
            raise ArgumentError("Ensemble got members=[]. Expected at least one seed.")
        made = [make(seed) for seed in self.seeds]
        self.members: list[Model] = [one if isinstance(one, Model) else Model(one) for one in made]
        check_distinct(self.members, self.seeds)
        self.history: EnsembleHistory | None = None
        self.stop_training = False
        self._compiled: list[dict[str, Any]] = []

    def compile(self, optimizer: Any = "sgd", loss: Any = "auto", metrics: Any = "auto", **arguments: Any) -> None:
        """Configure the training of all members.

        Args:
          optimizer: as in `Model.compile`, and so are all other arguments. A `resfit.Each` has one value for each
            member. Learning rates, weight decays and seeds differ without another compilation; members with other
            losses, augmentations or optimizers have programs of their own.
          loss: as in `Model.compile`.
          metrics: as in `Model.compile`.
          arguments: `learning_rate`, `weight_decay` and `seed` can be lists with one value for each member. `seed`, of
            the order of the data and everything random in a step, is the member's own seed by default; a number gives
            all members the same order.

        Raises:
          ArgumentError: for another number of values than of members.
          CompileError: as in `Model.compile`; with several processes, which would train different members.
        """
        if jax.process_count() > 1:
            raise CompileError(
                f"Ensemble.compile was called in one of {jax.process_count()} processes. Expected a single process: "
                "the members take turns in an order that differs between processes. Train a Model in a loop instead."
            )
        given = {"optimizer": optimizer, "loss": loss, "metrics": metrics} | arguments
        if given.get("seed") is None:
            given["seed"] = self.seeds
        each = for_members("compile", given, len(self.members))
        for model, own, device in zip(self.members, each, parallel.devices(self.members, each), strict=True):
            with contextlib.nullcontext() if device is None else jax.default_device(device):
                model.compile(**own)
        self._compiled = each

    def fit(
        self,
        x: Any,
        y: Any = None,
        batch_size: Any = None,
        epochs: int = 1,
        verbose: str | int = "auto",
        callbacks: Any = None,
        *,
        folds: int | None = None,
        ensemble_callbacks: Callback | Iterable[Callback] | None = None,
        **arguments: Any,
    ) -> EnsembleHistory:
        """Train all members.

        Args:
          x: as in `Model.fit`, and so are all other arguments. A `resfit.Each` has one value for each member.
          y: as in `Model.fit`.
          batch_size: as in `Model.fit`.
          epochs: as in `Model.fit`.
          verbose: 0 silent, otherwise one line per epoch with mean and standard error.
          callbacks: for each member, which stops, keeps its best weights and resumes on its own: the callbacks are
            copied for every member, and a `Checkpoint` gets one folder for each member inside its own. Or a function:
            member number -> callbacks, for those that write files.
          folds: number of parts of a cross-validation. Member i is validated on part i, and trained on the others.
          ensemble_callbacks: callbacks of the whole ensemble, which is their `model`. Their hooks are on_train_begin,
            on_epoch_begin, on_epoch_end and on_train_end. Logs hold an array for each name, with one value for each
            member, and NaN for a member that had stopped. `model.members[i].stop_training = True` stops a member.
          arguments: such as `validation_data`, `sample_weight` and `resume`.

        Returns:
          The `EnsembleHistory`, also kept as `ensemble.history`.

        Raises:
          NotCompiledError: before `compile`.
          DataError: for folds of data that are not arrays, or together with validation data.
          ArgumentError: for another number of values than of members.
          Exception: the first one of a member; the others stop at their next batch.
        """
        if not self._compiled:
            raise NotCompiledError("The ensemble was not compiled. Call ensemble.compile(...) before fit.")
        given = {"x": x, "y": y, "batch_size": batch_size, "epochs": epochs} | arguments
        for name in ("x", "validation_data"):
            check_shared(name, given.get(name))
        if folds is not None:
            if given.get("validation_data") is not None or given.get("validation_split"):
                raise DataError(
                    f"fit got folds={folds} and other validation data. Expected one of them: each member is validated "
                    "on its own fold."
                )
            given = {name: value for name, value in given.items() if name not in _DATA}
        each = for_members("fit", given, len(self.members))
        if folds is not None:
            parts = folded(x, y, arguments.get("sample_weight"), folds, len(self.members))
            each = [own | part for own, part in zip(each, parts, strict=True)]
        own_callbacks = callbacks_of_members(callbacks, len(self.members))
        together = of_ensemble(ensemble_callbacks)
        return self._fit(each, own_callbacks, [*together, *([Rows()] if bar(verbose) else [])])

    def _fit(
        self, each: list[dict[str, Any]], callbacks: list[list[Callback]], together: list[Callback]
    ) -> EnsembleHistory:
        history = self.history = EnsembleHistory()
        self.stop_training = False
        params = {
            "verbose": 0,
            "epochs": max(own["epochs"] if is_int(own["epochs"]) else 0 for own in each),
            "steps": None,
        }
        hooks = CallbackList(together, self, params)  # type: ignore[arg-type]  # the hooks know an ensemble

        def tell(epoch: int, logs: dict[int, dict[str, Any]]) -> None:
            values = stacked([logs.get(i, {}) for i in range(len(self.members))])
            history.add(epoch, values)
            hooks.fire("on_epoch_end", epoch, values)
            if self.stop_training:
                for model in self.members:
                    model.stop_training = True

        def fit_of(model: Model, arguments: dict[str, Any], own: list[Callback]) -> Callable[[Callback], Any]:
            return lambda paced: model.fit(**arguments, verbose=0, callbacks=[*own, paced])

        fits = [fit_of(*parts) for parts in zip(self.members, each, callbacks, strict=True)]
        with at_batch_boundaries(terminating=folder_of(callbacks) is not None) as interrupt:
            one_program = parallel.together(self.members, self._compiled)
            at_once = len(fits) if one_program else parallel.at_once(self.members)
            begin = lambda epoch: hooks.fire("on_epoch_begin", epoch, {})  # noqa: E731
            pace = Pace(len(fits), at_once, one_program, interrupt, begin, tell, self._named)
            hooks.fire("on_train_begin", {})
            try:
                pace.train(fits)
            except KeyboardInterrupt:
                self._report(interrupt, pace.epoch, folder_of(callbacks))
                raise
            finally:
                history.put([model.history or History() for model in self.members])
                hooks.fire("on_train_end", {})
        return history

    def _named(self, number: int) -> str:
        """Return the name of a member, for the notes of errors: `search` has other names."""
        return f"member {number} of the ensemble"

    def _report(self, interrupt: Interrupt, epoch: int, folder: Path | None) -> None:
        """Log what an interrupted fit kept: `search` logs something else."""
        report_members(epoch, folder, at_once=interrupt.at_once)

    # --- evaluation and prediction ------------------------------------------------------------------------------------

    @checked("ensemble arguments")
    def evaluate(
        self,
        x: Any,
        y: Any = None,
        batch_size: int | None = None,
        sample_weight: Any = None,
        *,
        weights: str = "raw",
        tta: str | None = None,
    ) -> Scores:
        """Return loss and metrics of the members, and of their mean prediction. Changes nothing.

        The calibration error is added for a network with one output of classes. For losses by output, the mean
        prediction of each output is of its own kind: of probabilities or of values. All members are measured by the
        loss and the metrics of the first one.

        Args:
          x: as in `Model.evaluate`.
          y: as in `Model.evaluate`.
          batch_size: as in `Model.evaluate`.
          sample_weight: as in `Model.evaluate`.
          weights: as in `Model.evaluate`.
          tta: test-time augmentation of each member, as in `Model.evaluate`.

        Raises:
          NotCompiledError: before `compile`.
          CompileError: for a model with its own `compute_loss`, of which the mean prediction has no loss.
        """
        if not self._compiled:
            raise NotCompiledError("The ensemble was not compiled. Call ensemble.compile(...) before evaluate.")
        first, given = self.members[0], self._compiled[0]
        if type(first).compute_loss is not Model.compute_loss:
            raise CompileError(
                f"evaluate got members of the class {type(first).__name__}, which overrides compute_loss: the loss of "
                "the mean prediction is unknown. Evaluate each one: [model.evaluate(x, y) for model in "
                "ensemble.members]."
            )
        check_tta(tta)
        x = _read(x)
        outputs = self._in_threads(lambda model: logits(model, given, x, batch_size, weights, tta))
        return measured(first, given, outputs_of_members(outputs), x, y, batch_size, sample_weight)

    @checked("ensemble arguments")
    def predict(
        self,
        x: Any,
        batch_size: int | None = None,
        *,
        outputs: str = "probabilities",
        weights: str = "raw",
        tta: str | None = None,
        members: bool = False,
    ) -> Any:
        """Return the prediction of the ensemble: the mean of the members' probabilities. Changes nothing.

        Args:
          x: as in `Model.predict`.
          batch_size: as in `Model.predict`.
          outputs: "probabilities"; "labels", those of the mean probabilities; or "logits", the mean of the outputs as
            the modules return them, as for regression.
          weights: "raw", as trained; "ema", averaged (see `Model.compile`).
          tta: test-time augmentation, as in `Model.predict`.
          members: True for the predictions of all members instead of the mean, with a first axis for the members. All
            values of `outputs` of `Model.predict` are then possible.

        Returns:
          A NumPy array (examples, ...), or with `members` (members, examples, ...).

        Raises:
          CompileError: for unknown outputs, for the mean of embeddings, which have no common coordinates, and for
            probabilities of an ensemble that was compiled with a loss of regression.
          ModuleError: if the outputs of the members have different shapes.
        """
        if outputs == "embedding" and not members:
            raise CompileError(
                "predict got outputs='embedding', of which a mean has no meaning: each member has its own features. "
                "Pass members=True for those of each member."
            )
        loss = self._compiled[0]["loss"] if self._compiled else None
        if outputs in ("probabilities", "labels") and is_of_values(loss):
            raise CompileError(
                f"predict got outputs={outputs!r} for members that were compiled with loss={loss!r}, whose outputs are "
                "values and not logits. Pass outputs='logits' for the mean of the values."
            )
        x = _read(x)
        kind = "probabilities" if outputs == "labels" and not members else outputs
        how: dict[str, Any] = {"outputs": kind, "weights": weights, "tta": tta}
        found = self._in_threads(lambda model: model.predict(x, batch_size, 0, **how))
        every = outputs_of_members(found)
        if members:
            return every
        mean = jax.tree.map(lambda array: array.mean(0, dtype=np.float32), every)
        return jax.tree.map(self._labels, mean) if outputs == "labels" else mean

    def _labels(self, probabilities: np.ndarray) -> np.ndarray:
        """Return the labels of mean probabilities, as `Model.predict` returns them."""
        finish = losses.each_label if self.members[0].multi_label else losses.class_numbers
        return np.asarray(finish(probabilities - 0.5))  # for a finish, a logit above 0 is a probability above 1 / 2

    def _in_threads(self, call: Callable[[Model], Any]) -> list[Any]:
        """Return the results of a call for each member."""
        settings = of_this_thread()

        def one(model: Model) -> Any:
            with settings():
                return call(model)

        first = call(self.members[0])  # alone: the others find its program
        with ThreadPoolExecutor(parallel.at_once(self.members)) as pool:
            return [first, *pool.map(one, self.members[1:])]

    # --- files --------------------------------------------------------------------------------------------------------

    @checked("ensemble arguments")
    def save(self, path: str | os.PathLike[str], *, weights: str = "raw") -> None:
        """Write each member to a file of `Model.save` in a folder: member_0.safetensors and so on.

        Args:
          path: of the folder, which is created. It must not hold members of another ensemble.
          weights: "raw", as trained; "ema", averaged (see `Model.compile`).

        Raises:
          SavedModelError: if the folder holds more members than this ensemble has.
        """
        folder = Path(expand_user(path))
        there = _files(folder)
        if len(there) > len(self.members):
            raise SavedModelError(
                f"{str(folder)!r} holds {len(there)} members, and this ensemble has {len(self.members)}: the others "
                "would stay. Expected a folder without members of another ensemble. Pass a new folder."
            )
        folder.mkdir(parents=True, exist_ok=True)
        for i, model in enumerate(self.members):
            model.save(folder / f"member_{i}.safetensors", weights=weights)

    @classmethod
    @checked("ensemble arguments")
    def load(
        cls, path: str | os.PathLike[str], make: Callable[[int], Any] | None = None, preprocess: Any = None
    ) -> Self:
        """Read a folder of `save`.

        Args:
          path: of the folder.
          make: as for `Ensemble`, to build modules that are not resfit's networks; these are rebuilt from the files.
          preprocess: as for `Model.load`.

        Returns:
          An ensemble that can predict without `compile`, and can be compiled to train again. Its seeds are 0, 1, 2, ...

        Raises:
          SavedModelError: if the folder holds no members, or as in `Model.load`.
        """
        files = _files(Path(expand_user(path)))
        if not files:
            raise SavedModelError(
                f"{str(path)!r} holds no file member_0.safetensors. Expected a folder of Ensemble.save. For a file of "
                "Model.save use resfit.load."
            )
        modules = [None if make is None else make(i) for i in range(len(files))]
        models = [Model.load(file, module, preprocess) for file, module in zip(files, modules, strict=True)]
        return cls(models.__getitem__, members=len(models))

    def __repr__(self) -> str:
        compiled = "compiled" if self._compiled else "not compiled"
        return f"<{type(self).__name__}: {len(self.members)} members, each {self.members[0]!r}, {compiled}>"


def _read(x: Any) -> Any:
    """Return data that several members can read: the batches of an iterator are kept in memory."""
    if not isinstance(x, Iterator):
        return x
    batches = list(x)
    return lambda: iter(batches)


def _files(folder: Path) -> list[Path]:
    """Return the files of the members in a folder, in order."""
    numbers = sorted(int(file.stem.removeprefix("member_")) for file in folder.glob("member_[0-9]*.safetensors"))
    return [folder / f"member_{number}.safetensors" for number in numbers]


_DATA = ("x", "y", "sample_weight", "validation_data", "validation_split")
