"""Mean and variance of parts, merged into those of the whole."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from resfit.nets.moments import Moments, averaged, from_powers, merge

MOMENTUM = 0.9


def test_merged_moments_are_those_of_all_values() -> None:
    parts = [np.random.default_rng(i).normal(1e4 * i, 1 + i, size=(5 + i, 3)) for i in range(4)]
    count, mean, var = merge([Moments(len(p), p.mean(axis=0), p.var(axis=0)) for p in parts])
    every = np.concatenate(parts)
    assert count == len(every)
    np.testing.assert_allclose(mean, every.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(var, every.var(axis=0), rtol=1e-12)


def test_moments_that_are_not_finite_stay_so_without_a_warning() -> None:
    parts = [Moments(2, np.array([value]), np.array([1.0])) for value in (np.inf, -np.inf, 0.0)]
    assert np.isnan(merge(parts).mean).all()


def running(x: np.ndarray) -> dict[str, np.ndarray]:
    """Return the running statistics of a norm after one batch, and a value that is only averaged."""
    mean = (1 - MOMENTUM) * x.mean(axis=0)
    return {"mean": mean, "var": MOMENTUM + (1 - MOMENTUM) * x.var(axis=0), "other": 2 * mean}


def test_running_statistics_of_equal_parts_become_those_of_the_whole_batch_over_a_mapped_axis() -> None:
    x = np.random.default_rng(0).normal(size=(4, 8, 3)) + np.arange(4.0)[:, None, None]
    parts = {name: np.stack([running(part)[name] for part in x]) for name in ("mean", "var", "other")}
    merge_parts = functools.partial(
        averaged,
        variances={"var": ("mean", 1 - MOMENTUM)},
        average=functools.partial(jax.lax.pmean, axis_name="parts"),
    )
    whole = jax.vmap(merge_parts, axis_name="parts")(parts)
    for name, expected in running(x.reshape(-1, 3)).items():
        np.testing.assert_allclose(whole[name], np.broadcast_to(expected, (4, 3)), rtol=1e-5)
    # The negative control: the average of the variances is another number.
    assert (parts["var"].mean(axis=0) < 0.9 * np.asarray(whole["var"][0])).any()


def test_powers_give_mean_and_a_variance_that_is_never_negative() -> None:
    x = jnp.arange(6.0)
    mean, var = from_powers(x.mean(), jnp.square(x).mean())
    np.testing.assert_allclose([mean, var], [np.mean(x), np.var(x)], rtol=1e-6)
    assert from_powers(jnp.float32(1.0), jnp.float32(0.999))[1] == 0
