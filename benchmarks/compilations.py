"""The number of compilations: five epochs with a partial last batch and validation, then a second model."""

import collections
from typing import Any

import numpy as np
import optax

import resfit
from benchmarks import problems
from benchmarks.programs import counted


class Announced(resfit.callbacks.Callback):
    """A count of the programs that `fit` announces, by kind."""

    def __init__(self) -> None:
        self.programs: collections.Counter[str] = collections.Counter()

    def on_compile_begin(self, what: str) -> None:
        self.programs[what] += 1


def counts() -> dict[str, Any]:
    """Return programs of the first model (announced, all, and after its first epoch) and all of a second model."""
    problem = problems.problem("cpu", "tiny", 4)
    x, y = problems.images(problem)
    x, y = x[:-10], y[:-10]  # a partial last batch
    first = Announced()
    with counted() as all_of_first:
        model = _model(problem)
        _fit(model, x, y, first, epochs=1)
        warm = len(all_of_first)
        _fit(model, x, y, first, epochs=4)
    with counted() as all_of_second:
        _fit(_model(problem), x, y, Announced(), epochs=5)
    return {
        "train": first.programs["train"],
        "evaluate": first.programs["evaluate"],
        "all": warm,
        "later": len(all_of_first) - warm,
        "second": len(all_of_second),
    }


def _model(problem: problems.Problem) -> resfit.Model:
    model = resfit.Model(problems.network(problem))
    model.compile(optax.sgd(0.1, momentum=0.9, nesterov=True))  # a separate object
    return model


def _fit(model: resfit.Model, x: np.ndarray, y: np.ndarray, announced: Announced, epochs: int) -> None:
    validation = x[:50], y[:50]
    model.fit(x, y, batch_size=32, epochs=epochs, validation_data=validation, verbose=0, callbacks=[announced])
