"""The distillation loss against its definition."""

from typing import Any

import jax
import numpy as np
import pytest
import scipy
from hypothesis import given
from hypothesis import strategies as st

from resfit import losses
from resfit.errors import LabelError

LOSS = jax.jit(losses.distillation)


def drawn(seed: int, spread: float) -> Any:
    return spread * np.random.default_rng(seed).normal(size=(2, 5, 4)).astype(np.float32)


@given(
    seed=st.integers(0, 2**32 - 1), spread=st.sampled_from([0.1, 3.0, 50.0]), temperature=st.sampled_from([1.0, 4.0])
)
def test_it_is_the_divergence_of_softened_probabilities(seed: int, spread: float, temperature: float) -> None:
    student, teacher = drawn(seed, spread)
    p, q = (scipy.special.softmax(z.astype(np.float64) / temperature, axis=1) for z in (teacher, student))
    expected = temperature**2 * scipy.special.rel_entr(p, q).sum(axis=1)
    np.testing.assert_allclose(LOSS(student, teacher, temperature), expected, rtol=1e-4, atol=5e-4)


def test_the_gradient_hardly_depends_on_the_temperature_and_does_not_reach_the_teacher() -> None:
    student, teacher = drawn(0, 0.01)
    slope = jax.jit(jax.grad(lambda s, t, temperature: losses.distillation(s, t, temperature).sum(), argnums=(0, 1)))
    (cold, none), (hot, _) = slope(student, teacher, 1.0), slope(student, teacher, 20.0)
    np.testing.assert_allclose(cold, hot, rtol=0.05, atol=1e-5)
    assert not np.asarray(none).any()
    assert np.abs(cold).max() > 1e-4


@pytest.mark.parametrize(("student", "teacher"), [((5, 4), (5, 3)), ((5, 1), (5, 1)), ((5,), (5,)), ((5, 4), (1, 4))])
def test_different_shapes_raise(student: Any, teacher: Any) -> None:
    with pytest.raises(LabelError, match="two classes or more"):
        losses.distillation(np.zeros(student, np.float32), np.zeros(teacher, np.float32))
