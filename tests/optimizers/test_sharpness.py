"""`optimizers.sam`: the update by the gradients at params + rho * g / |g|, of the same batch and random numbers."""

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
from resfit.trainer.devices.placement import Placement
from tests.faults import runs
from tests.helpers import PlainNet, TinyNet, assert_close, assert_same, compiled, fit, images, labels, state_of
from tests.optimizers.by_numpy import Params, each, gradients, start

SGD = optimizers.sgd(0.1)


def sam(rho: float = 0.1, rate: float = 0.1, **arguments: Any) -> Any:
    return optimizers.sam(optimizers.sgd(rate, **arguments), rho=rho)


def by_hand(params: Params, rho: float, momentum: float, steps: int) -> Params:
    """Return the parameters after steps of SAM with heavy-ball momentum, on one batch."""
    velocity: Params = each(np.zeros_like, params)
    for _ in range(steps):
        g = gradients(params)
        norm = np.sqrt(sum((part**2).sum() for part in g))
        nearby = gradients(each(lambda p, part: p + rho * part / norm, params, g))  # noqa: B023
        velocity = each(lambda v, part: momentum * v + part, velocity, nearby)
        params = each(lambda p, v: p - 0.1 * v, params, velocity)
    return params


@pytest.mark.parametrize(
    "optimizer",
    [
        sam(0.5, momentum=0.9, nesterov=False),
        optax.contrib.sam(
            optax.sgd(0.1, momentum=0.9), optax.chain(optax.contrib.normalize(), optax.sgd(0.5)), opaque_mode=True
        ),
        optax.chain(optax.masked(sam(0.5, momentum=0.9, nesterov=False), lambda p: jax.tree.map(lambda _: True, p))),
    ],
    ids=["of resfit", "of optax", "masked, in a chain"],
)
def test_five_steps_equal_the_published_rule_in_numpy(optimizer: Any) -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)), optimizer=optimizer, learning_rate=None)
    params = start(*model.get_weights())
    fit(model, images(8), labels(8), epochs=5, shuffle=False)
    expected = by_hand(params, 0.5, 0.9, 5)
    assert_close(model.get_weights(), each(np.float32, expected), 2e-5)
    assert np.abs(by_hand(params, 1e-9, 0.9, 5)[1] - expected[1]).max() > 1e-3  # plain momentum is another rule


def test_an_optimizer_of_a_part_moves_only_that_part() -> None:
    # The bias is not moved by the first pass, and trained by plain SGD.
    part = optax.partition({"a": sam(0.5, momentum=0.0), "b": SGD}, {"head": {"kernel": "a", "bias": "b"}})
    model = compiled(PlainNet(rngs=nnx.Rngs(0)), optimizer=part, learning_rate=None)
    bias, kernel = start(*model.get_weights())
    fit(model, images(8), labels(8), shuffle=False)
    at_bias, at_kernel = gradients([bias, kernel])
    _, nearby = gradients([bias, kernel + 0.5 * at_kernel / np.linalg.norm(at_kernel)])
    # SGD has Nesterov momentum: its first step is 1.9 times the gradient.
    assert_close(model.get_weights(), [bias - 0.19 * at_bias, kernel - 0.1 * nearby], 1e-5)


def test_statistics_and_loss_are_those_of_the_first_pass() -> None:
    one, other = compiled(optimizer=sam(5.0), learning_rate=None), compiled(optimizer="sgd")
    losses = [fit(model, images(8), labels(8), shuffle=False).history["loss"] for model in (one, other)]
    assert_close(*losses, 1e-6)
    for name in ("mean", "var"):
        assert_close(*(getattr(model.module.norm, name).get_value() for model in (one, other)), 1e-6)
    assert np.abs(one.get_weights()[0] - other.get_weights()[0]).max() > 1e-4


class Drops(nnx.Module):
    """A dense layer after dropout, and a record of the kept inputs."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.dropout, self.head = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(64, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.dropout(x.reshape(len(x), -1))
        jax.debug.callback(lambda kept: KEPT.append(np.asarray(kept)), x != 0)
        return self.head(x)


KEPT: list[np.ndarray] = []


def test_both_passes_draw_the_same_numbers() -> None:
    KEPT.clear()
    augment = lambda key, x, y: (x + jax.random.normal(key, x.shape), y)  # noqa: E731
    fit(compiled(Drops(rngs=nnx.Rngs(0)), optimizer=sam(), learning_rate=None, augment=augment), images(8), labels(8))
    jax.effects_barrier()
    assert len(KEPT) == 2
    assert_same(*KEPT)
    assert 0.3 < KEPT[0].mean() < 0.7


WITH: dict[str, tuple[type[nnx.Module], dict[str, Any]]] = {
    "slices of a batch": (PlainNet, {"gradient_accumulation_steps": 3}),
    "four devices": (TinyNet, {"dispatch": "sharded"}),
    "pmap": (TinyNet, {"dispatch": "pmap"}),
    "no compilation": (TinyNet, {"dispatch": "eager"}),
    "steps per execution": (TinyNet, {"steps_per_execution": 3}),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", WITH)
def test_every_way_to_take_steps_trains_alike(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Placement, "loops", property(lambda self: "steps_per_execution" in WITH[how][1]))
    module, arguments = WITH[how]
    one, other = (
        compiled(module(rngs=nnx.Rngs(0)), optimizer=sam(), learning_rate=None, **more) for more in (arguments, {})
    )
    for model in (one, other):
        fit(model, epochs=2)
    assert_close(one.get_weights(), other.get_weights(), 1e-4)


def test_the_learning_rate_can_be_changed_and_follows_a_schedule_by_name() -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)), optimizer=sam(rate=0.25), learning_rate=None)
    assert model.learning_rate == 0.25
    model.learning_rate, before = 0.0, model.get_weights()
    fit(model)
    assert_same(model.get_weights(), before)
    scheduled = compiled(PlainNet(rngs=nnx.Rngs(0)), optimizer=sam(), learning_rate=resfit.schedules.Linear(0.1))
    rates = fit(scheduled, epochs=3).history["learning_rate"]
    assert rates[0] > rates[1] > rates[2]


def test_a_resumed_run_ends_at_the_same_bits(tmp_path: Path) -> None:
    def go(folder: str, *stops: Any) -> Any:
        model = compiled(PlainNet(rngs=nnx.Rngs(0)), optimizer=sam(), learning_rate=None)
        fit(model, epochs=2, callbacks=[resfit.callbacks.Checkpoint(tmp_path / folder), *stops], resume=True)
        return model

    with runs.stopped(SystemExit):
        go("a", runs.Stops(4, runs.terminate))
    assert_same(state_of(go("a")).leaves, state_of(go("b")).leaves)


def test_no_gradient_is_no_step() -> None:
    optimizer, params = optimizers.sam(optimizers.sgd(1.0)), {"w": jnp.ones(3)}
    zero = {"w": jnp.zeros(3)}
    updates, _ = optimizer.update(zero, optimizer.init(params), params, grad_fn=lambda params, _: zero)
    assert_same(updates, zero)


def test_a_step_that_is_not_finite_is_skipped_inside() -> None:
    optimizer = optimizers.sam(optimizers.skip_non_finite(optimizers.sgd(0.1)))

    def nan_in_the_second_batch(key: jax.Array, x: Any, y: Any) -> tuple[Any, Any]:
        return jnp.where(x.mean() > 0, jnp.nan, x), y

    model = compiled(
        PlainNet(rngs=nnx.Rngs(0)), optimizer=optimizer, learning_rate=None, augment=nan_in_the_second_batch
    )
    x = np.concatenate([np.abs(images(8)), -np.abs(images(8))])
    history = fit(model, x, labels(16), shuffle=False)
    assert history.history["skipped_steps"] == [1.0]
    assert all(np.isfinite(array).all() for array in model.get_weights())


class Factors(nnx.Module):
    """Two numbers, whose product should be 1."""

    def __init__(self) -> None:
        self.w = nnx.Param(jnp.array([4.0, 0.3]))

    def __call__(self, x: Any) -> Any:
        return self.w.prod() * jnp.ones(len(x))


class Product(resfit.Model):
    """A model of (u v - 1)^2 / 2. The curvature at a minimum is u^2 + v^2: 2 at the flattest one, u = v = 1."""

    def compute_loss(self, module: Any, x: Any, y: Any, *, key: Any, train: bool) -> tuple[Any, Any]:
        product = module(x)
        return (product - 1) ** 2 / 2, product


def test_it_moves_from_a_sharp_minimum_to_the_flattest_one() -> None:
    curvature = {}
    for name, optimizer in (("sgd", optimizers.sgd(0.05, momentum=0.0)), ("sam", sam(0.3, 0.05, momentum=0.0))):
        model = compiled(Factors(), kind=Product, optimizer=optimizer, learning_rate=None, metrics=[])
        fit(model, images(8), labels(8), epochs=300)
        (w,) = model.get_weights()
        assert w.prod() == pytest.approx(1, abs=0.05)
        curvature[name] = float((w**2).sum())
    assert curvature["sgd"] > 15
    assert curvature["sam"] < 2.2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optimizers.sam(SGD, rho=0.0), r"rho=0\.0\. Expected a positive number, such as 0\.05"),
        (lambda: optimizers.sam(SGD, rho=float("nan")), "rho=nan"),
        (lambda: optimizers.sam(SGD, rho="0.1"), "rho='0.1'"),  # type: ignore[arg-type]
        (lambda: optimizers.sam("sgd"), r"sam got 'sgd'. Expected an optax\.GradientTransformation"),  # type: ignore[arg-type]
        (lambda: optax.MultiSteps(sam(), 2), r"MultiSteps around sam.*gradient_accumulation_steps"),
        (lambda: optimizers.skip_non_finite(sam()), r"skip_non_finite around sam.*Expected sam outermost"),
    ],
    ids=["rho of 0", "rho of nan", "rho as text", "a name", "in MultiSteps", "in skip_non_finite"],
)
def test_a_form_that_cannot_work_raises(make: Any, message: str) -> None:
    with pytest.raises(CompileError, match=message):
        compiled(PlainNet(rngs=nnx.Rngs(0)), optimizer=make(), learning_rate=None)
