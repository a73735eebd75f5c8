"""Learning rates by part: one learning rate that can be set, times a factor for each path."""

from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from resfit import optimizers
from resfit.errors import CompileError
from tests.helpers import PlainNet, compiled

PARAMS = {
    "stem": {"conv": {"kernel": np.full((2, 2), 1, np.float32)}},
    "stage1": {
        "0": {
            "conv1": {"kernel": np.full((2, 2), 2, np.float32)},
            "norm1": {"scale": np.ones(2, np.float32), "bias": np.ones(2, np.float32)},
        }
    },
    "head": {"kernel": np.full((2, 3), 3, np.float32), "bias": np.zeros(3, np.float32)},
}
PATHS = [
    jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in jax.tree_util.tree_leaves_with_path(PARAMS)
]


def run(optimizer: optax.GradientTransformation, steps: int = 4) -> Any:
    @jax.jit
    def stepped(params: Any, state: Any, step: Any) -> Any:
        updates, state = optimizer.update(jax.tree.map(lambda p: jnp.cos(p + step), params), state, params)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, jax.jit(optimizer.init)(PARAMS)
    for step in range(steps):
        params, state = stepped(params, state, np.float32(step))
    return jax.tree.map(np.asarray, params)


@pytest.mark.representatives("sgd")
@pytest.mark.parametrize(
    "name",
    ["sgd", "adamw", "lamb", *(pytest.param(name, marks=pytest.mark.slow) for name in ("adam", "lars", "rmsprop"))],
)
def test_a_part_trains_as_with_a_separate_optimizer(name: str) -> None:
    make = getattr(optimizers, name)
    together = run(optimizers.by_part({"head.*": 1.0, "stage1.*": 0.5, "*": 0.1}, make(0.02)))
    own = {"head": make(0.02), "stage1": make(0.01), "stem": make(0.002)}
    apart = run(optax.multi_transform(own, {part: part for part in PARAMS}))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7), together, apart)


def test_the_comparison_detects_another_factor() -> None:
    a, b = (run(optimizers.by_part({"head.*": f}, optimizers.sgd(0.1)))["head"]["kernel"] for f in (1.0, 0.99))
    assert np.abs(a - b).max() > 1e-4


@given(
    patterns=st.lists(
        st.sampled_from(["*", "head.*", "*.kernel", "stage?.*", "*.[bs]*", "stem.conv.kernel"]), unique=True
    )
)
def test_the_first_matching_pattern_applies(patterns: list[str]) -> None:
    parts = {pattern: 2.0 ** (i + 1) for i, pattern in enumerate(patterns)}
    decided = {path: next((p for p in patterns if fnmatchcase(path, p)), None) for path in PATHS}
    if not parts or set(patterns) - set(decided.values()):
        with pytest.raises(CompileError):
            optimizers.by_part(parts, optax.sgd(1.0)).init(PARAMS)
        return
    optimizer = optimizers.by_part(parts, optax.sgd(1.0))
    updates, _ = optimizer.update(jax.tree.map(np.ones_like, PARAMS), optimizer.init(PARAMS), PARAMS)
    for path, update in zip(PATHS, jax.tree.leaves(updates), strict=True):
        np.testing.assert_array_equal(update, -1.0 if decided[path] is None else -parts[decided[path]])


def test_there_is_one_learning_rate_and_it_is_found() -> None:
    state = optimizers.by_part({"head.*": 1.0, "*": 0.1}, optimizers.clip(optimizers.adamw(0.25), norm=1.0)).init(
        PARAMS
    )
    index = optimizers.index_of_rate(state)
    assert index is not None
    assert float(jax.tree.leaves(state)[index]) == 0.25


def test_a_factor_keeps_the_dtype_of_the_parameters() -> None:
    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    optimizer = optimizers.by_part({"head.*": np.float64(0.5)}, optax.sgd(1.0))
    updates, _ = jax.eval_shape(lambda half: optimizer.update(half, optimizer.init(half), half), half)
    assert {u.dtype for u in jax.tree.leaves(updates)} == {jnp.dtype(jnp.bfloat16)}


def test_a_model_compiles_or_the_error_lists_similar_paths() -> None:
    parts = optimizers.by_part({"head.kernel": 1.0, "*": 0.5}, optimizers.sgd(0.1))
    model = compiled(PlainNet(rngs=nnx.Rngs(0)), optimizer=parts, learning_rate=0.25)
    assert model.learning_rate == 0.25
    with pytest.raises(CompileError, match=r"'haed\.\*' matches no parameter. Did you mean one of \['head\.\*'"):
        model.compile(optimizers.by_part({"haed.*": 1.0}, optimizers.sgd(0.1)))


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({}, "no patterns"),
        ({"head.*": -1.0}, "-1.0 for 'head.*'"),
        ({"head.*": float("nan")}, "nan for 'head.*'"),
        ({"head.*": "1"}, "'1' for 'head.*'"),
        ({"heads.*": 1.0}, r"'heads\.\*' matches no parameter. Did you mean one of .*'head\.\*'"),
        ({"stage1": 1.0}, r"pass 'stage1\.\*'"),
        ({"stage1.0.conv1.kernal": 1.0}, r"Did you mean one of .*'stage1\.0\.conv1\.kernel'"),
        ({"zzz": 1.0}, r"Paths look like .*'head\.bias'"),
        ({"*": 0.1, "head.*": 1.0}, r"'head\.\*' has no effect: the earlier pattern '\*'"),
    ],
)
def test_a_pattern_without_an_effect_raises_with_similar_paths(parts: Any, words: str) -> None:
    with pytest.raises(CompileError, match=words):
        optimizers.by_part(parts, optax.sgd(0.1)).init(PARAMS)


def test_the_wrapped_optimizer_must_be_built() -> None:
    with pytest.raises(CompileError, match="got 'sgd'"):
        optimizers.by_part({"*": 1.0}, "sgd")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.contrib.schedule_free_sgd(0.1),
        pytest.param(optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.1)), marks=pytest.mark.slow),
    ],
)
def test_updates_of_an_optimizer_that_evaluates_with_other_parameters_cannot_be_scaled(optimizer: Any) -> None:
    with pytest.raises(CompileError, match=r"schedule_free\(by_part"):
        optimizers.by_part({"*": 0.5}, optimizer).init(PARAMS)
    inner = optax.contrib.schedule_free(optimizers.by_part({"*": 0.5}, optax.sgd(0.1)), 0.1)
    assert jax.tree.structure(inner.init(PARAMS).z) == jax.tree.structure(PARAMS)
