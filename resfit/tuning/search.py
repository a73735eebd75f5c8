"""`search`: random search and successive halving."""

import contextlib
import dataclasses
import functools
import gc
import itertools
import json
import logging
import os
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from resfit import schedules
from resfit._utils import atomic_write
from resfit._utils.checks import int_from, positive_int
from resfit._utils.jax_switches import suspending
from resfit._utils.keywords import checked, only_others
from resfit._utils.paths import expand_user
from resfit.callbacks import Callback, Checkpoint
from resfit.callbacks.monitor import Monitor
from resfit.data.sources.arrays import split_validation
from resfit.ensemble import Each, Ensemble, parallel
from resfit.ensemble.members import callbacks_of_members, check_shared, not_distinct
from resfit.errors import ArgumentError, DataError, ResumeError
from resfit.model import Model
from resfit.trainer.learned.input_format import spec_entry
from resfit.trainer.loop.interrupts import Interrupt
from resfit.tuning.points import SMOOTHING, Point, check_names, compile_arguments, draw, smoothed
from resfit.tuning.results import SearchResult, Trial, plain, ranked

_log = logging.getLogger("resfit")

# The arguments of Model.fit that search sets, with its own argument for each.
_OWN = {name: name for name in ("batch_size", "callbacks", "epochs", "validation_data")} | {
    **dict.fromkeys(("x", "y", "sample_weight"), "data"),
    "resume": "folder",
}


@checked("function arguments")
@suspending
def search(
    make: Callable[[int], Any],
    space: Mapping[str, Any],
    data: Any,
    *,
    trials: int | None = None,
    epochs: int = 1,
    batch_size: int = 32,
    validation_data: Any = None,
    monitor: str = "val_accuracy",
    mode: str = "auto",
    seed: int = 0,
    halving: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    callbacks: Callback | Iterable[Callback] | Callable[[int], Any] | None = None,
    compile_arguments: Mapping[str, Any] | None = None,
    fit_arguments: Mapping[str, Any] | None = None,
) -> SearchResult:
    """Train one network for each point of a space, and compare them: random search, a grid, or successive halving.

    The networks are the members of `Ensemble`s: they run one compiled program, several at the same time where that is
    faster. Learning rate, weight decay, label smoothing and seed need no other program; every other argument of
    `compile` is compiled once for each of its values.

    Source: Bergstra and Bengio, "Random search for hyper-parameter optimization" (JMLR 13, 2012); Jamieson and
    Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization" (arXiv 1502.07943).

    Args:
      make: a function seed -> `nnx.Module`, as for `Ensemble`.
      space: name -> list of values, or a distribution with a method `rvs`, such as `scipy.stats.loguniform(1e-4, 1)`.
        The names are the arguments of `Model.compile`, and "label_smoothing". Lists alone are a grid.
      data: (x, y), (x, y, sample_weight), or another dataset of `Model.fit`. Label smoothing needs arrays.
      trials: the number of points; by default all points of a grid, or 20 points of distributions.
      epochs: of each trial; in successive halving, of the last ones.
      batch_size: as in `Model.fit`.
      validation_data: as in `Model.fit`.
      monitor: the score, a value of the history after the last epoch.
      mode: "min", "max", or "auto" (default) to infer the better direction from the name.
      seed: of the points; and of every trial, if "seed" is not in the space.
      halving: None (default) to train every trial to the end. An integer k, usually 3: train all trials for few epochs,
        and only the best 1/k of them for k times as many, until `epochs`. The trials continue where they were.
      folder: of the checkpoints and results. A search that was stopped continues there, when it is called again, and
        gives the result of an uninterrupted one. A finished random search can continue with more trials.
      callbacks: as for `Ensemble.fit`: copied for each trial, or a function trial number -> callbacks.
      compile_arguments: other arguments of `Model.compile` by name, for all trials.
      fit_arguments: other arguments of `Model.fit` by name, for all trials.

    Raises:
      ArgumentError: for an impossible space or number, or an argument in `fit_arguments` that `search` has too.
      ResumeError: if the folder holds another search.
      ModuleError: if `make` returns one module twice.
      DataError: if the history has no value of the name of `monitor`.

    Example:
      >>> import numpy as np, resfit
      >>> x = np.random.default_rng(0).normal(size=(64, 8, 8, 1)).astype("float32")
      >>> y = (x.mean(axis=(1, 2, 3)) > 0).astype("int32")
      >>> def make(seed):
      ...     return resfit.create_model("resnet20", num_classes=2, depths=(1,), widths=(4,), in_channels=1, rngs=seed)
      >>> found = search(make, {"learning_rate": [0.03, 0.1, 0.3]}, (x, y), validation_data=(x, y))
      >>> [record["learning_rate"] for record in found.records]
      [0.03, 0.1, 0.3]
    """
    fixed, fit = dict(compile_arguments or {}), dict(fit_arguments or {})
    check_names(space, fixed)
    only_others("search", "fit_arguments", fit, _OWN)
    trials = None if trials is None else positive_int("trials", trials, ArgumentError)
    points = draw(space, trials, int_from(0, "seed", seed, ArgumentError))
    positive_int("epochs", epochs, ArgumentError)
    rungs = _rungs(len(points), epochs, halving)
    if len(rungs) > 1:
        _check_rates(point.get("learning_rate", fixed.get("learning_rate")) for point in points)
    if monitor.startswith("val_") and validation_data is None and "validation_split" not in fit:
        raise DataError(
            f"search got monitor={monitor!r} and no validation_data. Expected data to compare the trials on. Pass "
            "validation_data=(x, y), or monitor='loss'."
        )
    x, y, weight = (*data, None)[:3] if isinstance(data, tuple) and len(data) in (2, 3) else (data, None, None)
    settings = {
        "points": [_described(point) for point in points], "rungs": rungs, "batch_size": batch_size, "monitor": monitor,
        "seed": seed, "compile_arguments": _described(fixed), "fit_arguments": _described(fit),
    }  # fmt: skip
    if SMOOTHING in points[0] and validation_data is None and fit.get("validation_split"):
        # Before the labels are smoothed: those of the validation stay as they are.
        (x, y, weight), validation_data = split_validation(fit.pop("validation_split"), x, y, weight)
    given = {"x": x, "y": y, "sample_weight": weight, "batch_size": batch_size, "validation_data": validation_data}
    with _folder(folder, needed=len(rungs) > 1) as there:
        kept = folder is not None
        run = _Run(make, points, given, fit, fixed, callbacks, Monitor(monitor, mode), seed, there, kept, settings)
        return run.through(rungs)


def _rungs(trials: int, epochs: int, factor: int | None) -> list[tuple[int, int]]:
    """Return (number of trials, epochs) of each round.

    Example:
      >>> _rungs(20, 9, 3), _rungs(20, 9, None)
      ([(20, 1), (6, 3), (2, 9)], [(20, 9)])
    """
    if factor is None:
        return [(trials, epochs)]
    int_from(2, "halving", factor, ArgumentError, "None, or an integer of 2 or more, such as 3")
    divisors = [1]
    while min(trials, epochs) >= divisors[-1] * factor:
        divisors.append(divisors[-1] * factor)
    return [(trials // k, epochs // last) for k, last in zip(divisors, reversed(divisors), strict=True)]


def _check_rates(rates: Iterable[Any]) -> None:
    for rate in rates:
        if isinstance(rate, str | schedules.Schedule):
            raise ArgumentError(
                f"search got halving and learning_rate={rate!r}, which spans the epochs of a fit; in successive "
                "halving a trial does not know its last epoch. Expected a number, or a function step -> number. Leave "
                "halving out."
            )


def _described(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: plain(value) for name, value in values.items()}


@contextlib.contextmanager
def _folder(folder: Any, *, needed: bool) -> Iterator[Path | None]:
    """Yield the folder of the checkpoints; a temporary one if they are needed between rounds alone."""
    if folder is not None:
        there = Path(expand_user(folder)).absolute()
        there.mkdir(parents=True, exist_ok=True)
        yield there
    elif needed:
        with tempfile.TemporaryDirectory(prefix="resfit-search-") as name:
            yield Path(name)
    else:
        yield None


class _Trials(Ensemble):
    """Trials that are trained together.

    Attributes:
      numbers: of the trials.
      report: called once they are interrupted.
    """

    numbers: list[int]
    report: Callable[[Interrupt], None]

    def _named(self, number: int) -> str:
        return f"trial {self.numbers[number]} of the search"

    def _report(self, interrupt: Interrupt, epoch: int, folder: Path | None) -> None:
        self.report(interrupt)


class _Run:
    """A search that runs.

    Attributes:
      done: (number, epochs) -> finished trial. A trial that a callback stopped is finished for more epochs too.
    """

    def __init__(
        self,
        make: Callable[[int], Any],
        points: Sequence[Point],
        given: dict[str, Any],
        fit: dict[str, Any],
        fixed: dict[str, Any],
        callbacks: Any,
        monitor: Monitor,
        seed: int,
        folder: Path | None,
        kept: bool,
        settings: dict[str, Any],
    ) -> None:
        self._make, self._points, self._given, self._fit, self._fixed = make, points, given, fit, fixed
        self._callbacks, self._monitor, self._seed = callbacks, monitor, seed
        self._folder, self._kept, self._settings = folder, kept, settings  # a temporary folder is not kept
        self.done: dict[tuple[int, int], Trial] = {}
        self._stopped: set[int] = set()
        # By id, while they live: a trial that got the module of an earlier one would begin with its trained weights.
        self._modules: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
        self._seeds: dict[int, int] = {}
        if folder is not None and (folder / "search.json").exists():
            self._read(folder / "search.json")

    def through(self, rungs: Sequence[tuple[int, int]]) -> SearchResult:
        """Train the trials of every round."""
        last: dict[int, Trial] = {}
        alive = list(range(len(self._points)))
        for count, epochs in rungs:
            if last:
                alive = [trial.number for trial in ranked((last[i] for i in alive), self._monitor.mode)[:count]]
            if stopped := self._stopped.intersection(alive):
                self.done = {(i, epochs): dataclasses.replace(last[i], epochs=epochs) for i in stopped} | self.done
                self._write()
            waiting = [number for number in alive if (number, epochs) not in self.done]
            while waiting:
                waiting = waiting[self._train(waiting, epochs) :]
                gc.collect()  # trained models hold themselves by cycles, and large ones would fill the memory
            last |= {number: self.done[number, epochs] for number in alive}
        return SearchResult(tuple(last[i] for i in sorted(last)), self._monitor.name, self._monitor.mode)

    def _models(self, seeds: Sequence[int]) -> list[Model]:
        """Return models for the first seeds, as many as are worth training together."""
        models = Ensemble(self._make, seeds[:1]).members
        more = seeds[1 : parallel.group_size(models[0])]
        return models + (Ensemble(self._make, more).members if more else [])

    def _train(self, waiting: list[int], epochs: int) -> int:
        """Train the first trials that wait, and return their number."""
        seeds = [self._points[number].get("seed", self._seed) for number in waiting]
        models = self._models(seeds)
        left, numbers = iter(models), waiting[: len(models)]
        points = [self._points[number] for number in numbers]
        ensemble = _Trials(lambda _: next(left), seeds[: len(models)])
        self._check_new(ensemble)
        ensemble.numbers, ensemble.report = numbers, functools.partial(self._report, numbers, epochs)
        arguments = [compile_arguments(point, self._fixed, self._seed) for point in points]
        names = dict.fromkeys(itertools.chain(*arguments))
        ensemble.compile(**{name: Each([own[name] for own in arguments]) for name in names})
        given = dict(self._given)
        if SMOOTHING in points[0]:
            classes = spec_entry(ensemble.members[0].module, "num_classes")
            given["y"] = Each([smoothed(given["y"], point[SMOOTHING], classes) for point in points])
        for name, one in (("data", given["x"]), ("validation_data", given["validation_data"])):
            check_shared(name, one, by="trials of the search")
        history = ensemble.fit(
            **given,
            **{"verbose": 0} | self._fit,
            epochs=epochs,
            callbacks=lambda member: self._callbacks_of(numbers[member]),
            resume=self._folder is not None,
        )
        for number, own, model in zip(numbers, history.members, ensemble.members, strict=True):
            self._add(number, epochs, own.history)
            if model.stop_training:  # by a callback, which would stop a longer fit there too
                self._stopped.add(number)
            score, point = self.done[number, epochs].score, _described(self._points[number])
            _log.info("Trial %d, %d epochs: %s %.4g with %s.", number, epochs, self._monitor.name, score, point)
        self._write()
        return len(numbers)

    def _check_new(self, ensemble: Ensemble) -> None:
        """Raise if a trial has the module of an earlier one.

        Raises:
          ModuleError: with the seeds of both.
        """
        for model, seed in zip(ensemble.members, ensemble.seeds, strict=True):
            if self._modules.get(id(model.module)) is model.module:
                raise not_distinct(seed, self._seeds[id(model.module)])
            self._modules[id(model.module)], self._seeds[id(model.module)] = model.module, seed

    def _report(self, numbers: list[int], epochs: int, interrupt: Interrupt) -> None:
        finished = sum(of == epochs for _, of in self.done)
        _log.warning(
            "Interrupted%s in trial%s %s, in training for %d epoch%s. Finished trials of this length: %d.\n%s",
            " at once" if interrupt.at_once else "",
            "" if len(numbers) == 1 else "s",
            ", ".join(map(str, numbers)),
            epochs,
            "" if epochs == 1 else "s",
            finished,
            f"Results and checkpoints are in {str(self._folder)!r}: the same search continues there."
            if self._kept
            else "Nothing was saved: pass folder= to be able to continue a search.",
        )

    def _callbacks_of(self, number: int) -> list[Callback]:
        given = self._callbacks
        if callable(given) and not isinstance(given, Callback | type):
            (own,) = callbacks_of_members(lambda _: given(number), 1)
        else:
            own = callbacks_of_members(given, number + 1)[number]  # by its number, a trial has folders of its own
        return own if self._folder is None else [*own, Checkpoint(self._folder / f"trial_{number}")]

    def _add(self, number: int, epochs: int, history: dict[str, list[Any]]) -> None:
        name = self._monitor.name
        if name not in history:
            raise DataError(
                f"search got monitor={name!r}, and the history has {sorted(history)}. Expected one of these. Pass "
                "validation_data for values of a validation."
            )
        score = float(history[name][-1])
        self.done[number, epochs] = Trial(number, self._points[number], epochs, score, history)

    # --- the file of the results --------------------------------------------------------------------------------------

    def _write(self) -> None:
        if self._folder is None:
            return
        trials = [{"number": one.number, "epochs": one.epochs, "history": one.history} for one in self.done.values()]
        content = json.dumps({"settings": self._settings, "trials": trials}, indent=1)
        atomic_write.write(self._folder / "search.json", content.encode())

    def _read(self, path: Path) -> None:
        content = json.loads(path.read_text())
        before, now = content["settings"], json.loads(json.dumps(self._settings))
        if len(now["rungs"]) == len(before["rungs"]) == 1 and now["rungs"][0][1] == before["rungs"][0][1]:
            # Trials of a random search do not depend on the number of trials.
            fewer = min(len(now["points"]), len(before["points"]))
            for one in (before, now):
                one["points"], one["rungs"] = one["points"][:fewer], None
        different = [name for name in now if now[name] != before.get(name)]
        if different:
            listed = "; ".join(
                f"{name}: {_shown(before.get(name))} before, {_shown(now[name])} now" for name in different
            )
            raise ResumeError(
                f"{str(path.parent)!r} holds another search. {listed}. Expected the same arguments. Pass them again, "
                "or another folder."
            )
        for one in content["trials"]:
            if one["number"] < len(self._points):
                self._add(**one)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
