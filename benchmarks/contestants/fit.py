"""The `fit`, `evaluate` and `predict` of resfit with their defaults, XLA alone: metrics, History, progress line."""

from typing import Any

import jax
import numpy as np
from flax import nnx

import resfit
from benchmarks import contestants, problems
from benchmarks.child import peak_memory
from benchmarks.programs import recorded


class Contestant:
    """The contestant resfit, with XLA alone."""

    cpu_kernels = "xla"

    def __init__(self, platform: str, name: str, steps: int | None = None, resident: bool = False) -> None:
        self._problem = problems.problem(platform, name, steps)
        self._x, self._y = problems.images(self._problem)
        self._model = resfit.Model(problems.network(self._problem))
        self._model.compile("sgd", learning_rate=contestants.LEARNING_RATE, cpu_kernels=self.cpu_kernels)
        self._cache = "device" if resident else None
        self._programs: list[Any] = []

    def train(self) -> float:
        with recorded(self._programs):
            history = self._model.fit(self._x, self._y, batch_size=self._problem.batch, cache=self._cache, verbose=2)
        return float(history.history["loss"][-1])

    def evaluate(self) -> float:
        return float(self._model.evaluate(self._x, self._y, batch_size=self._problem.batch, verbose=0)[0])

    def predict(self) -> list[int]:
        return list(self._model.predict(self._x, batch_size=self._problem.batch, verbose=0).shape)

    def facts(self) -> dict[str, Any]:
        params = nnx.state(self._model.module, nnx.Param)
        return {
            "parameters": sum(int(np.size(leaf)) for leaf in jax.tree.leaves(params)),
            "peak_memory": peak_memory(),
            "temporary_memory": max((p.memory_analysis().temp_size_in_bytes for p in self._programs), default=None),
            "remark": "",
        }
