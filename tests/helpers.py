"""One tiny network and one tiny dataset for all tests of the trainer, so that each program is compiled once."""

import contextlib
import functools
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import jax
import numpy as np
from einops import reduce
from flax import nnx

import resfit
from resfit.backends import program_cache as programs

CLASSES = 3
BATCH = 8
COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


class TinyNet(nnx.Module):
    """Convolution, BatchNorm, dense layer. Its mode depends only on NNX's mode flags."""

    def __init__(self, classes: int = CLASSES, *, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(1, 4, (3, 3), padding=1, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.9, rngs=rngs)
        self.head = nnx.Linear(4, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.norm(self.conv(x)))
        return self.head(reduce(x, "n h w c -> n c", "mean"))


class PlainNet(nnx.Module):
    """A dense layer on mean and standard deviation of the pixels: no BatchNorm, no randomness, quick to compile."""

    def __init__(self, classes: int = CLASSES, *, rngs: nnx.Rngs) -> None:
        self.head = nnx.Linear(64, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(x.reshape(x.shape[0], -1))


def images(n: int = 20, seed: int = 0) -> np.ndarray:
    """Return (n, 8, 8, 1) float32."""
    return np.random.default_rng(seed).normal(size=(n, 8, 8, 1)).astype(np.float32)


def labels(n: int = 20, classes: int = CLASSES, seed: int = 1) -> np.ndarray:
    """Return (n,) int32, in which every class occurs."""
    return np.random.default_rng(seed).permutation(np.arange(n) % classes).astype(np.int32)


def compiled(module: nnx.Module | None = None, *, kind: type[resfit.Model] = resfit.Model, **arguments: Any) -> Any:
    """Return a compiled model on one device."""
    model = kind(module if module is not None else TinyNet(rngs=nnx.Rngs(0)))
    model.compile(**{"optimizer": "sgd", "learning_rate": 0.1, "dispatch": "jit", **arguments})
    return model


def fit(model: resfit.Model, x: Any = None, y: Any = None, **arguments: Any) -> resfit.callbacks.History:
    """Fit silently, by default on 20 examples in batches of 8: two full batches and a partial one of four."""
    if x is None:
        x, y = images(), labels()
    return model.fit(x, y, **{"batch_size": BATCH, "verbose": 0, **arguments})


def call(module: nnx.Module, *inputs: Any, method: str = "__call__", **options: Any) -> Any:
    """Call a module as one compiled program: an eager call compiles a program for each of its operations."""
    return _calling(method, tuple(options.items()))(module, *inputs)


@functools.cache
def _calling(method: str, options: tuple[tuple[str, Any], ...]) -> Any:
    return nnx.jit(lambda module, *inputs: getattr(module, method)(*inputs, **dict(options)))


def values(module: nnx.Module) -> dict[str, np.ndarray]:
    """Return copies of all arrays of a module, by name."""
    return {
        ".".join(map(str, path)): np.array(leaf.get_raw_value() if isinstance(leaf, nnx.Variable) else leaf)
        for path, leaf in nnx.to_flat_state(nnx.state(module, nnx.Not(nnx.RngKey)))
    }


def flags(module: nnx.Module) -> dict[str, tuple[Any, Any]]:
    """Return the mode flags of every layer."""
    return {
        ".".join(map(str, path)): (getattr(node, "use_running_average", None), getattr(node, "deterministic", None))
        for path, node in nnx.iter_modules(module)
    }


def sample_photograph(name: str) -> Any:
    """Return a picture from `sklearn/datasets/images`, without the seconds that `import sklearn` takes."""
    import PIL.Image

    package = importlib.util.find_spec("sklearn")
    assert package is not None
    assert package.origin is not None
    return PIL.Image.open(Path(package.origin).parent / "datasets" / "images" / name).convert("RGB")


def assert_same(a: Any, b: Any) -> None:
    """Check that two trees of arrays are equal, bit for bit."""
    jax.tree.map(np.testing.assert_array_equal, a, b)


def assert_close(a: Any, b: Any, tolerance: float = 1e-5) -> None:
    """Check that two trees of arrays are equal up to rounding."""
    jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, rtol=tolerance, atol=tolerance), a, b)


def differ(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> set[str]:
    """Return the names under which two dicts hold different arrays."""
    return {name for name in a if not np.array_equal(a[name], b[name])}


@contextlib.contextmanager
def counting(*events: str) -> Iterator[list[str]]:
    """Collect the names of these events of JAX, once for each time that one occurs inside the context."""
    found: list[str] = []

    def listen(event: str, seconds: float, **_: Any) -> None:
        if event in events:
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@contextlib.contextmanager
def counting_compilations(*, known_programs: bool = False) -> Iterator[list[str]]:
    """Collect an event for every compilation, also for those that the persistent cache serves.

    Args:
      known_programs: leave out those that an equal program of this process, such as another test's, has saved.
    """
    if not known_programs:
        programs.PROGRAMS.clear()
    with counting(COMPILE_EVENT) as found:
        yield found


class Recorder(resfit.callbacks.Callback):
    """Record every hook call with its arguments; logs as the sorted list of their keys."""

    HOOKS = tuple(name for name in vars(resfit.callbacks.Callback) if name.startswith("on_") and "compile" not in name)

    def __init__(self) -> None:
        self.trace: list[tuple[Any, ...]] = []

    def names(self) -> list[str]:
        return [entry[0] for entry in self.trace]


def _record(hook: str) -> Any:
    def method(self: Recorder, *args: Any) -> None:
        self.trace.append((hook, *[sorted(a) if hasattr(a, "keys") else a for a in args]))

    return method


for _hook in Recorder.HOOKS:
    if _hook not in ("on_batch_begin", "on_batch_end"):
        setattr(Recorder, _hook, _record(_hook))


def fewer_examples(divisor: int) -> hypothesis.settings:
    """Return settings for a property whose examples are expensive: the profile's number of them, divided."""
    return hypothesis.settings(max_examples=max(1, hypothesis.settings.default.max_examples // divisor))


def context_of(model: Any) -> Any:
    """Return the state of a model on its devices: the one place where tests look inside a model."""
    return model._context


def state_of(model: Any) -> Any:
    """Return the `RunState` of a model."""
    return context_of(model).state


def compiled_of(model: Any) -> Any:
    """Return the `Compiled` object of a model."""
    return model.control.compiled


def train_arguments(model: Any, batch: Any) -> tuple[Any, ...]:
    """Return the arguments of the training step of a model for a batch."""
    context = context_of(model)
    return context.state.leaves, compiled_of(model).evaluator.empty, context.key, context.turn(batch).placed
