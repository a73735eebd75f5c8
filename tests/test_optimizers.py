"""Optimizers are optax's, with a learning rate that can be found and set."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resfit import optimizers
from resfit.errors import CompileError

PARAMS = {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.ones(3)}
GRADIENTS = {"kernel": jnp.ones((2, 3)), "bias": jnp.full(3, 2.0)}


def after(optimizer: Any, steps: int = 3) -> Any:
    params, state = PARAMS, optimizer.init(PARAMS)
    for _ in range(steps):
        updates, state = optimizer.update(GRADIENTS, state, params)
        params = optax.apply_updates(params, updates)
    return params


MASK = {"kernel": True, "bias": False}


@pytest.mark.representatives("sgd with decay", "adam", "'adamw'", "a function")
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (optimizers.sgd(0.1), optax.sgd(0.1, momentum=0.9, nesterov=True)),
        (
            optimizers.sgd(0.1, weight_decay=0.01, nesterov=False),
            optax.chain(optax.add_decayed_weights(0.01, mask=MASK), optax.sgd(0.1, momentum=0.9)),
        ),
        (optimizers.adam(0.01), optax.adam(0.01)),
        (optimizers.adamw(0.01), optax.adamw(0.01, weight_decay=0.05, mask=MASK)),
        (optimizers.get(optax.lamb, 0.01)[0], optax.lamb(0.01)),
        (optimizers.get("sgd", None)[0], optax.sgd(0.1, momentum=0.9, nesterov=True)),
        (optimizers.get("adam", 0.01)[0], optax.adam(0.01)),
        (optimizers.get("adamw", None)[0], optax.adamw(0.001, weight_decay=0.05, mask=MASK)),
    ],
    ids=["sgd", "sgd with decay", "adam", "adamw", "a function", "'sgd'", "'adam'", "'adamw'"],
)
def test_a_named_optimizer_equals_that_of_optax(ours: Any, theirs: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), after(ours), after(theirs))


def test_decay_excludes_norms_and_biases() -> None:
    shapes = {
        "conv": jnp.ones((3, 3, 1, 4)),
        "dense": jnp.ones((4, 2)),
        "scale": jnp.ones(4),
        "temperature": jnp.ones(()),
    }
    mask = optimizers.no_decay_on_norms_and_biases(shapes)
    assert mask == {"conv": True, "dense": True, "scale": False, "temperature": False}


@pytest.mark.parametrize(
    "optimizer",
    [
        optimizers.sgd(0.25),
        optimizers.adamw(0.25),
        optimizers.get(optax.rmsprop, 0.25)[0],
        optax.inject_hyperparams(optax.adam)(learning_rate=0.25),
        optax.chain(optax.clip_by_global_norm(1.0), optax.inject_hyperparams(optax.sgd)(learning_rate=0.25)),
    ],
    ids=["sgd", "adamw", "a function", "injected", "injected in a chain"],
)
def test_the_single_learning_rate_of_an_optimizer_is_found(optimizer: Any) -> None:
    state = optimizer.init(PARAMS)
    index = optimizers.index_of_rate(state)
    assert index is not None
    assert float(jax.tree.leaves(state)[index]) == 0.25


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.sgd(0.1),
        optax.adam(optax.constant_schedule(0.1)),
        optax.chain(*[optax.inject_hyperparams(optax.sgd)(learning_rate=rate) for rate in (0.1, 0.2)]),
        optax.inject_hyperparams(optax.clip)(max_delta=0.1),
    ],
    ids=["built in", "a schedule", "two of them", "something else injected"],
)
def test_without_exactly_one_learning_rate_none_is_found(optimizer: Any) -> None:
    assert optimizers.index_of_rate(optimizer.init(PARAMS)) is None


def test_a_schedule_is_passed_on_and_the_state_contains_its_first_learning_rate() -> None:
    schedule = optax.linear_schedule(0.5, 0.0, 10)
    optimizer, followed = optimizers.get("sgd", schedule)
    assert followed is schedule
    state = optimizer.init(PARAMS)
    assert float(jax.tree.leaves(state)[optimizers.index_of_rate(state)]) == 0.5
    assert optimizers.get("sgd", 0.5)[1] is None
    assert optimizers.get(optax.adam, schedule)[1] is schedule


class Sgd:
    __module__ = "keras.optimizers"


class Adam:
    __module__ = "torch.optim"


class Optimizer:
    __module__ = "flax.nnx"


@pytest.mark.parametrize(
    ("optimizer", "rate", "message"),
    [
        (
            "adagrad",
            None,
            r"Unknown optimizer 'adagrad'.*\['sgd', 'adam', 'adamw', 'lamb', 'lars', 'muon', 'rmsprop'\]",
        ),
        ("Adagrad", 0.1, r"pass compile\(optimizer=optax\.adagrad, learning_rate=\.\.\.\)"),
        ("chain", None, r"Unknown optimizer 'chain'\. Expected an optax optimizer, or one of \[.*\]\.$"),
        (optax.lamb, None, r"function lamb as optimizer without a learning rate"),
        (optax.clip, 0.1, "clip has no parameter learning_rate"),
        (Sgd(), None, r"keras\.optimizers\.Sgd.*optimizer='sgd'"),
        (Adam(), None, "torch.optim.Adam.*optimizer='adam'"),
        (Optimizer(), None, "flax.nnx.Optimizer.*Pass the transformation of"),
        (3, None, "builtins.int.*Expected a name"),
        ("sgd", "cosine", "number or a schedule.*got 'cosine'"),
        ("sgd", True, "number or a schedule.*got True"),
        ("sgd", [0.1, 0.2], "number or a schedule"),
    ],
)
def test_an_invalid_optimizer_raises_with_a_remedy(optimizer: Any, rate: Any, message: str) -> None:
    with pytest.raises(CompileError, match=message):
        optimizers.get(optimizer, rate)
