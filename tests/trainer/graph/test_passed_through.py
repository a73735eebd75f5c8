"""A program shows which of its outputs are its inputs, also inside loops, branches and other transformations."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from resfit.trainer.graph.passed_through import changed


def halve(x: Any, y: Any) -> Any:
    return x, y / 2


def keep(x: Any, y: Any) -> Any:
    return x, y


PROGRAMS = {
    "no transformation": halve,
    "jit": jax.jit(halve),
    "checkpoint": jax.checkpoint(halve),
    "vmap": jax.vmap(halve),
    "scan, carry": lambda x, y: jax.lax.scan(lambda carry, _: (halve(*carry), None), (x, y), None, length=2)[0],
    "scan, slices": lambda x, y: jax.lax.scan(lambda carry, both: (carry, halve(*both)), 0.0, (x, y))[1],
    "while_loop": lambda x, y: jax.lax.while_loop(
        lambda state: state[0] < 3, lambda state: (state[0] + 1, *halve(*state[1:])), (0, x, y)
    )[1:],
    "cond": lambda x, y: jax.lax.cond(x.sum() > 0, halve, keep, x, y),
    "jit of a scan": jax.jit(lambda x, y: jax.lax.fori_loop(0, 2, lambda _, both: halve(*both), (x, y))),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_only_the_array_that_the_program_changes_is_found(name: str) -> None:
    assert changed(lambda both: PROGRAMS[name](*both), (jnp.ones(2), jnp.ones(2))) == [False, True]


def test_an_input_at_another_position_is_a_change() -> None:
    swap = jax.jit(lambda x, y: (y, x))
    assert changed(lambda both: swap(*both), (jnp.ones(2), jnp.ones(2))) == [True, True]
    turn = lambda x, y: jax.lax.fori_loop(0, 3, lambda _, both: both[::-1], (x, y))  # noqa: E731
    assert changed(lambda both: turn(*both), (jnp.ones(2), jnp.ones(2))) == [True, True]
