"""The fastest loop that we know how to write: the reference for `fit`.

The state is one flat tuple of arrays, and the step one donated `jax.jit`, compiled ahead of time, which takes the batch
directly from NumPy: `jax.device_put` costs more. Nothing is read before the end of the epoch, so the host runs ahead of
the device. The forward pass of evaluation and prediction is one bare `jax.jit`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks import contestants, problems
from benchmarks.child import peak_memory


class Loop:
    """An nnx module, its optimizer and its jitted functions."""

    def __init__(self, module: nnx.Module) -> None:
        training = nnx.view(nnx.clone(module), raise_if_not_found=False, use_running_average=False)
        graph, params, rest = nnx.split(training, nnx.Param, ...)
        evaluation_graph = nnx.graphdef(nnx.view(training, raise_if_not_found=False, use_running_average=True))
        params, params_tree = jax.tree.flatten(nnx.as_pure(params))
        rest, rest_tree = jax.tree.flatten(nnx.as_pure(rest))
        tx = optax.sgd(contestants.LEARNING_RATE, momentum=contestants.MOMENTUM, nesterov=True)
        optimizer, optimizer_tree = jax.tree.flatten(tx.init(params))
        n, m = len(params), len(rest)

        def merge(graph: Any, leaves: Any) -> Any:
            params, rest = list(leaves[:n]), list(leaves[n : n + m])
            return nnx.merge(graph, jax.tree.unflatten(params_tree, params), jax.tree.unflatten(rest_tree, rest))

        def step(leaves: Any, x: jax.Array, y: jax.Array) -> tuple[Any, jax.Array]:
            params, optimizer = list(leaves[:n]), jax.tree.unflatten(optimizer_tree, leaves[n + m :])

            def loss_of(params: Any) -> tuple[jax.Array, Any]:
                net = merge(graph, (*params, *leaves[n : n + m]))
                loss = optax.softmax_cross_entropy_with_integer_labels(net(x), y).mean()
                return loss, jax.tree.leaves(nnx.as_pure(nnx.state(net, nnx.Not(nnx.Param))))

            (loss, rest), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
            updates, optimizer = tx.update(gradients, optimizer, params)
            return (*optax.apply_updates(params, updates), *rest, *jax.tree.leaves(optimizer)), loss

        self.parameters = sum(leaf.size for leaf in params)
        self._step = jax.jit(step, donate_argnums=0)
        self.forward = jax.jit(lambda leaves, x: merge(evaluation_graph, leaves)(x))
        self.visible = n + m
        self.leaves = tuple(jnp.array(leaf, copy=True) for leaf in (*params, *rest, *optimizer))
        self._random = np.random.default_rng(0)

    def compile(self, x: np.ndarray, y: np.ndarray, options: dict[str, Any] | None = None) -> Any:
        """Compile a step for such a batch with XLA options, for `train`, and return the executable."""
        self.step = self._step.lower(self.leaves, x, y).compile(options or {})
        return self.step

    def train(self, x: np.ndarray, y: np.ndarray, batch: int) -> float:
        """Train an epoch in a new order and return the mean loss."""
        order = self._random.permutation(len(x))
        losses = []
        for first in range(0, len(x), batch):
            rows = order[first : first + batch]
            self.leaves, loss = self.step(self.leaves, x[rows], y[rows])
            losses.append(loss)
        return float(np.mean(jax.device_get(losses)))

    def outputs(self, x: np.ndarray, batch: int) -> list[jax.Array]:
        """Return the outputs of every batch."""
        leaves = self.leaves[: self.visible]
        return [self.forward(leaves, x[i : i + batch]) for i in range(0, len(x), batch)]


class Contestant:
    """The hand-written loop."""

    def __init__(self, platform: str, name: str, steps: int | None = None, resident: bool = False) -> None:
        self._problem = problems.problem(platform, name, steps)
        images = problems.images(self._problem)
        self._x, self._y = jax.device_put(images) if resident else images
        self._loop = Loop(problems.network(self._problem))
        self._executable: Any = None

    def train(self) -> float:
        if self._executable is None:
            self._executable = self._loop.compile(self._x[: self._problem.batch], self._y[: self._problem.batch])
        return self._loop.train(self._x, self._y, self._problem.batch)

    def evaluate(self) -> None:
        jax.block_until_ready(self._loop.outputs(self._x, self._problem.batch))

    def predict(self) -> list[int]:
        outputs = [np.asarray(output) for output in self._loop.outputs(self._x, self._problem.batch)]
        return list(np.concatenate(outputs).shape)

    def facts(self) -> dict[str, Any]:
        return {
            "parameters": self._loop.parameters,
            "peak_memory": peak_memory(),
            "temporary_memory": self._executable.memory_analysis().temp_size_in_bytes,
            "remark": "",
        }
