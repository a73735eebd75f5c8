"""The loop of flax's documentation: a module and an `nnx.Optimizer` through `nnx.jit`, with `nnx.MultiMetric`."""

from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

from benchmarks import contestants, problems
from benchmarks.child import peak_memory


@nnx.jit
def train_step(model: Any, optimizer: nnx.Optimizer, metrics: nnx.MultiMetric, x: jax.Array, y: jax.Array) -> None:
    """Update model, optimizer and metrics in place."""

    def loss_of(model: Any) -> tuple[jax.Array, jax.Array]:
        logits = model(x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), logits

    (loss, logits), gradients = nnx.value_and_grad(loss_of, has_aux=True)(model)
    metrics.update(loss=loss, logits=logits, labels=y)
    optimizer.update(model, gradients)


@nnx.jit
def eval_step(model: Any, metrics: nnx.MultiMetric, x: jax.Array, y: jax.Array) -> None:
    """Update the metrics in place."""
    logits = model(x)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
    metrics.update(loss=loss, logits=logits, labels=y)


@nnx.jit
def predict_step(model: Any, x: jax.Array) -> jax.Array:
    """Return the logits."""
    return model(x)


class Contestant:
    """The textbook loop."""

    def __init__(self, platform: str, name: str, steps: int | None = None) -> None:
        self._problem = problems.problem(platform, name, steps)
        self._x, self._y = problems.images(self._problem)
        self._model = problems.network(self._problem)
        tx = optax.sgd(contestants.LEARNING_RATE, momentum=contestants.MOMENTUM, nesterov=True)
        self._optimizer = nnx.Optimizer(self._model, tx, wrt=nnx.Param)
        self._metrics = nnx.MultiMetric(accuracy=nnx.metrics.Accuracy(), loss=nnx.metrics.Average("loss"))
        self._random = np.random.default_rng(0)

    def train(self) -> float:
        self._model.train()
        self._metrics.reset()
        order = self._random.permutation(len(self._x))
        for first in range(0, len(self._x), self._problem.batch):
            rows = order[first : first + self._problem.batch]
            train_step(self._model, self._optimizer, self._metrics, self._x[rows], self._y[rows])
        loss = float(self._metrics.compute()["loss"])
        jax.block_until_ready(nnx.state(self._model))
        return loss

    def evaluate(self) -> float:
        self._model.eval()
        self._metrics.reset()
        for rows in self._batches():
            eval_step(self._model, self._metrics, self._x[rows], self._y[rows])
        return float(self._metrics.compute()["loss"])

    def predict(self) -> list[int]:
        self._model.eval()
        outputs = [predict_step(self._model, self._x[rows]) for rows in self._batches()]
        return list(np.concatenate([np.asarray(output) for output in outputs]).shape)

    def facts(self) -> dict[str, Any]:
        parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(self._model, nnx.Param)))
        return {"parameters": parameters, "peak_memory": peak_memory(), "temporary_memory": None, "remark": ""}

    def _batches(self) -> list[slice]:
        batch = self._problem.batch
        return [slice(first, first + batch) for first in range(0, len(self._x), batch)]
