"""rmsprop, lars and lamb equal their formulas in NumPy."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from flax import nnx

import resfit
from resfit import optimizers
from resfit.errors import CompileError
from tests.faults import runs
from tests.helpers import TinyNet, assert_same, compiled, fit, images, labels, state_of

RATE, STEPS = 0.05, 5
HAS_MUON = "consistent_rms" in inspect.signature(optax.contrib.muon).parameters  # optax 0.2.7
Arrays = dict[str, np.ndarray]


def start() -> Arrays:
    """Return a kernel, a bias and the scale of a norm in float64, so that the oracle is exact."""
    random = np.random.default_rng(0)
    return {"kernel": random.normal(size=(3, 3, 2, 4)), "bias": random.normal(size=4), "scale": np.ones(4)}


def gradients(step: int) -> Arrays:
    random = np.random.default_rng(100 + step)
    return {name: random.normal(size=value.shape) for name, value in start().items()}


def rmsprop(decay: float, momentum: float, eps: float, centered: bool, weight_decay: float) -> Callable[..., Any]:
    def step(w: np.ndarray, g: np.ndarray, s: Any, t: int, kernel: bool) -> Any:
        squares, mean, velocity = (np.zeros_like(w),) * 3 if s is None else s
        g = g + weight_decay * w if kernel else g
        squares = decay * squares + (1 - decay) * g**2
        mean = decay * mean + (1 - decay) * g
        variance = squares - mean**2 if centered else squares
        velocity = momentum * velocity - RATE * g / np.sqrt(variance + eps)
        return w + velocity, (squares, mean, velocity)

    return step


def lars(momentum: float, weight_decay: float, trust: float) -> Callable[..., Any]:
    def step(w: np.ndarray, g: np.ndarray, s: Any, t: int, kernel: bool) -> Any:
        velocity = np.zeros_like(w) if s is None else s
        if kernel:
            g = g + weight_decay * w
            g = g * trust * np.linalg.norm(w) / np.linalg.norm(g)
        velocity = momentum * velocity - RATE * g
        return w + velocity, velocity

    return step


def lamb(b1: float, b2: float, eps: float, weight_decay: float) -> Callable[..., Any]:
    def step(w: np.ndarray, g: np.ndarray, s: Any, t: int, kernel: bool) -> Any:
        m, v = (np.zeros_like(w),) * 2 if s is None else s
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        u = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
        if kernel:
            u = u + weight_decay * w
            u = u * np.linalg.norm(w) / np.linalg.norm(u)
        return w - RATE * u, (m, v)

    return step


def muon(momentum: float, weight_decay: float, b1: float, b2: float, eps: float) -> Callable[..., Any]:
    def step(w: np.ndarray, g: np.ndarray, s: Any, t: int, kernel: bool) -> Any:
        m, v = (np.zeros_like(w),) * 2 if s is None else s
        beta = momentum if kernel else b1
        m, v = beta * m + (1 - beta) * g, b2 * v + (1 - b2) * g**2
        ahead = beta * m / (1 - beta ** (t + 1)) + (1 - beta) * g / (1 - beta**t)
        if not kernel:  # NAdam
            return w - RATE * ahead / (np.sqrt(v / (1 - b2**t)) + eps), (m, v)
        x = ahead.reshape(-1, w.shape[-1])
        x = x / (np.linalg.norm(x) + eps)
        for _ in range(5):  # Newton-Schulz, Jordan's coefficients
            square = x @ x.T
            x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
        u = 0.2 * np.sqrt(max(x.shape)) * x.reshape(w.shape)  # Moonlight's scale
        return w - RATE * (u + weight_decay * w), (m, v)

    return step


def written_out(step: Callable[..., Any]) -> Arrays:
    params, states = start(), dict.fromkeys(start())
    for t in range(STEPS):
        for name, g in gradients(t).items():
            params[name], states[name] = step(params[name], g, states[name], t + 1, name == "kernel")
    return params


def run(optimizer: optax.GradientTransformation, leave_out: str | None = None) -> Any:
    params = {name: jnp.asarray(w, jnp.float32) for name, w in start().items() if name != leave_out}
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for t in range(STEPS):
        updates, state = update({name: jnp.asarray(gradients(t)[name], jnp.float32) for name in params}, state, params)
        params = optax.apply_updates(params, updates)
    return params


CASES = {
    "rmsprop": (optimizers.rmsprop(RATE), rmsprop(0.9, 0.0, 1e-7, False, 0.0)),
    "rmsprop, every option": (
        optimizers.rmsprop(RATE, decay=0.95, momentum=0.8, eps=1e-3, centered=True, weight_decay=0.1),
        rmsprop(0.95, 0.8, 1e-3, True, 0.1),
    ),
    "lars": (optimizers.lars(RATE), lars(0.9, 1e-4, 0.001)),
    "lars, every option": (
        optimizers.lars(RATE, momentum=0.5, weight_decay=0.2, trust_coefficient=0.1),
        lars(0.5, 0.2, 0.1),
    ),
    "lamb": (optimizers.lamb(RATE), lamb(0.9, 0.999, 1e-6, 0.02)),
    "lamb, every option": (
        optimizers.lamb(RATE, b1=0.8, b2=0.99, eps=1e-3, weight_decay=0.2),
        lamb(0.8, 0.99, 1e-3, 0.2),
    ),
}
if HAS_MUON:
    CASES |= {
        "muon": (optimizers.muon(RATE), muon(0.95, 0.05, 0.9, 0.999, 1e-8)),
        "muon, every option": (
            optimizers.muon(RATE, momentum=0.8, weight_decay=0.2, b1=0.8, b2=0.99, eps=1e-6),
            muon(0.8, 0.2, 0.8, 0.99, 1e-6),
        ),
    }


@pytest.mark.representatives(
    "rmsprop", "lars, every option", "lamb, every option", *(["muon, every option"] if HAS_MUON else [])
)
@pytest.mark.parametrize("name", CASES)
def test_an_optimizer_equals_its_formula(name: str) -> None:
    ours, step = CASES[name]
    expected = written_out(step)
    for part, value in run(ours).items():
        np.testing.assert_allclose(value, expected[part], rtol=2e-5, atol=2e-6, err_msg=part)


def test_the_comparison_detects_a_decayed_bias() -> None:
    decayed = written_out(lamb(0.9, 0.999, 1e-6, 0.2))["kernel"]
    assert np.abs(decayed - written_out(lamb(0.9, 0.999, 1e-6, 0.02))["kernel"]).max() > 1e-4
    everywhere = run(optax.lamb(RATE, weight_decay=0.02))  # optax gives biases a trust ratio and decay
    assert np.abs(everywhere["bias"] - written_out(lamb(0.9, 0.999, 1e-6, 0.02))["bias"]).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "ours", "theirs"),
    [
        ("rmsprop", {}, optax.rmsprop(RATE, eps=1e-7)),
        ("lars", {"weight_decay": 0.0}, optax.lars(RATE)),
        ("lamb", {"weight_decay": 0.0}, optax.lamb(RATE)),
    ],
)
def test_on_kernels_only_it_equals_the_optimizer_of_optax(name: str, ours: Any, theirs: Any) -> None:
    def kernels(optimizer: optax.GradientTransformation) -> Any:
        wrapped = optax.masked(optimizer, {"kernel": True, "bias": False, "scale": False})
        return run(wrapped)["kernel"]

    np.testing.assert_allclose(kernels(getattr(optimizers, name)(RATE, **ours)), kernels(theirs), rtol=1e-6)


NAMES = ("sgd", "adam", "adamw", "lamb", "lars", "rmsprop", *(["muon"] if HAS_MUON else []))


@pytest.mark.parametrize("name", NAMES)
def test_a_name_has_a_default_learning_rate_that_is_found_and_set_without_tracing_again(name: str) -> None:
    optimizer, schedule = optimizers.get(name, None)
    assert schedule is None
    params = {part: jnp.asarray(w, jnp.float32) for part, w in start().items()}
    updates = {part: jnp.asarray(g, jnp.float32) for part, g in gradients(0).items()}
    state = optimizer.init(params)
    index = optimizers.index_of_rate(state)
    assert index is not None
    leaves, tree = jax.tree.flatten(state)
    np.testing.assert_allclose(leaves[index], optimizers.default_rate(name), rtol=1e-7)

    traces = []

    @jax.jit
    def update(state: Any) -> Any:
        traces.append(state)
        return optimizer.update(updates, state, params)[0]

    once = update(state)
    leaves[index] = jnp.asarray(2 * float(leaves[index]), leaves[index].dtype)
    twice = update(jax.tree.unflatten(tree, leaves))
    assert len(traces) == 1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(2 * a, b, rtol=1e-5), once, twice)


@pytest.mark.skipif(not HAS_MUON, reason="needs optax 0.2.7")
def test_muon_trains_a_network_with_convolutions_and_resumes_exactly(tmp_path: Path) -> None:
    def go(folder: str, *stops: Any) -> Any:
        model = compiled(TinyNet(rngs=nnx.Rngs(0)), optimizer="Muon", learning_rate=0.02)
        callbacks = [resfit.callbacks.Checkpoint(tmp_path / folder), *stops]
        history = fit(model, images(16), labels(16), epochs=5, callbacks=callbacks, resume=True)
        return model, history

    with runs.stopped(SystemExit):
        go("a", runs.Stops(3, runs.terminate))
    (resumed, _), (whole, history) = go("a"), go("b")
    assert_same(state_of(resumed).leaves, state_of(whole).leaves)
    assert history.history["loss"][-1] < history.history["loss"][0]
    whole.learning_rate, before = 0.0, whole.get_weights()[0]
    fit(whole, images(16), labels(16))
    assert_same(whole.get_weights()[0], before)


def test_a_muon_without_dimension_numbers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optax.contrib, "muon", lambda learning_rate: optax.sgd(learning_rate))
    with pytest.raises(CompileError, match=r"has no Muon for convolutions.*optax 0\.2\.7 or later: pip install"):
        optimizers.get("muon", None)


def test_only_names_have_a_default_learning_rate() -> None:
    assert [optimizers.default_rate(what) for what in ("sgdd", optax.sgd, optax.sgd(0.1))] == [None, None, None]


@pytest.mark.parametrize("name", ["adam", "admw"])
def test_a_name_without_weight_decay_gets_the_nearest_one_with_it(name: str) -> None:
    with pytest.raises(CompileError, match=f"an optimizer '{name}'.*Did you mean 'adamw'"):
        compiled(TinyNet(rngs=nnx.Rngs(0)), optimizer=name, weight_decay=0.01)


@pytest.mark.parametrize("arguments", [{}, {"weight_decay": 0.01}, {"optimizer": optimizers.sgd(0.5)}])
def test_a_schedule_is_checked_and_gives_the_first_learning_rate_of_every_optimizer(arguments: dict[str, Any]) -> None:
    model = compiled(TinyNet(rngs=nnx.Rngs(0)), learning_rate=lambda step: 0.25 / (1 + step), **arguments)
    assert model.learning_rate == 0.25
    with pytest.raises(CompileError, match="learning_rate is the class Cosine"):
        model.compile(**{"optimizer": "sgd", **arguments}, learning_rate=resfit.schedules.Cosine)  # type: ignore[arg-type]
    with pytest.raises(CompileError, match="raises for step 0"):
        model.compile(**{"optimizer": "sgd", **arguments}, learning_rate=lambda: 0.1)  # type: ignore[arg-type]
