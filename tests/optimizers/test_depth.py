"""Learning rates that decrease with the distance from the last part."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resfit import optimizers
from resfit.errors import CompileError

PARAMS = {part: {"kernel": jnp.ones(2)} for part in ("stem", "stage1", "stage2", "head", "other")}
PARTS = ("stem", "stage1", "stage2", "head")


@pytest.mark.parametrize("decay", [0.5, 0.75, 1.0])
def test_each_part_has_the_decayed_learning_rate_of_the_next_one_and_the_remainder_the_full_one(
    decay: float,
) -> None:
    optimizer = optimizers.by_depth(PARTS, optimizers.sgd(1.0, momentum=0.0), decay=decay)
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, PARAMS), optimizer.init(PARAMS), PARAMS)
    expected = {"stem": decay**3, "stage1": decay**2, "stage2": decay, "head": 1.0, "other": 1.0}
    for part, factor in expected.items():
        np.testing.assert_allclose(updates[part]["kernel"], -factor, rtol=1e-6)


@pytest.mark.parametrize("decay", [0.0, -0.5, 1.5, float("nan")])
def test_an_invalid_decay_raises(decay: float) -> None:
    with pytest.raises(CompileError, match="decay"):
        optimizers.by_depth(PARTS, optimizers.sgd(0.1), decay=decay)


def test_a_single_string_is_not_read_as_a_list_of_letters() -> None:
    with pytest.raises(CompileError, match=r"net\.parts"):
        optimizers.by_depth("stem", optimizers.sgd(0.1))


def test_a_part_without_parameters_raises_with_its_name() -> None:
    with pytest.raises(CompileError, match=r"stage3\.\*"):
        optimizers.by_depth((*PARTS, "stage3"), optimizers.sgd(0.1)).init(PARAMS)
