"""The same training on 1, 2, 4 and 8 devices: steps from the same state agree, for every way to split a batch."""

import functools
import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.helpers import PlainNet, TinyNet, assert_close, compiled, context_of, images, labels, state_of, values

ROOT = Path(__file__).parents[3]
SIZES = (16, 6, 3)  # 4 and 8 devices do not divide 6, and 3 rows are fewer than they are


def compare(devices: int, steps: int = 20, sizes: Sequence[int] = SIZES) -> None:
    """Take steps on one device, and each of them on all devices, in both ways, from the same state."""
    assert len(jax.devices()) == devices
    one = compiled(TinyNet(rngs=nnx.Rngs(0)), dispatch="jit", ema=0.9)
    others = [compiled(TinyNet(rngs=nnx.Rngs(0)), dispatch=kind, ema=0.9) for kind in ("sharded", "pmap")]
    for step in range(steps):
        n = sizes[step % len(sizes)]
        x, y, weight = images(n, seed=step), labels(n, seed=step), np.linspace(0.5, 2, n).astype(np.float32)
        before = [np.asarray(leaf) for leaf in state_of(one).leaves]
        expected = one.train_on_batch(x, y, sample_weight=weight)
        for other in others:
            state_of(other).replace(tuple(context_of(other).placement.replicate(before)))
            assert_close(other.train_on_batch(x, y, sample_weight=weight), expected, 1e-5)
            assert_close(values(other.module), values(one.module), 1e-5)
            # Optimizer, averages and counters too.
            assert_close(
                list(map(np.asarray, state_of(other).leaves)), list(map(np.asarray, state_of(one).leaves)), 1e-5
            )


def test_steps_on_four_devices_agree_with_one_device() -> None:
    compare(4, steps=2, sizes=(8, 6))  # four divide the first one only


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2, 4])
def test_twenty_steps_agree_with_one_device(devices: int, monkeypatch: pytest.MonkeyPatch) -> None:
    there = jax.devices()
    monkeypatch.setattr(jax, "devices", lambda *_: there[:devices])
    compare(devices)


@pytest.mark.slow
def test_twenty_steps_on_eight_devices_agree_with_one_device() -> None:
    program = (
        "import jax; jax.config.update('jax_num_cpu_devices', 8); "
        f"jax.config.update('jax_compilation_cache_dir', {jax.config.jax_compilation_cache_dir!r}); "
        "from tests.trainer.devices.test_device_counts import compare; compare(8)"
    )
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def far_apart() -> tuple[np.ndarray, np.ndarray]:
    """Return a batch for four devices whose parts have means that are far apart."""
    return images(8) + np.arange(8, dtype=np.float32).reshape(8, 1, 1, 1), labels(8)


@functools.cache
def per_replica_by_hand(parts: int) -> tuple[float, dict[str, Any]]:
    """Take one step of plain SGD, written out: each part is normalized by itself, then their statistics are merged.

    Returns:
      The loss, and the contents of the network after the step.
    """
    x, y = far_apart()
    start = values(TinyNet(rngs=nnx.Rngs(0)))
    trained = ("conv.kernel", "norm.scale", "norm.bias", "head.kernel", "head.bias")

    def loss_of(params: dict[str, jax.Array]) -> Any:
        losses, moments = [], []
        for rows in np.split(np.arange(len(x)), parts):
            h = jax.lax.conv_general_dilated(
                jnp.asarray(x[rows]),
                params["conv.kernel"],
                (1, 1),
                [(1, 1), (1, 1)],
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            mean, squares = h.mean((0, 1, 2)), (h**2).mean((0, 1, 2))
            h = (h - mean.reshape(1, 1, 1, 4)) / jnp.sqrt(squares - mean**2 + 1e-5).reshape(1, 1, 1, 4)
            h = h * params["norm.scale"].reshape(1, 1, 1, 4) + params["norm.bias"].reshape(1, 1, 1, 4)
            logits = nnx.relu(h).mean((1, 2)) @ params["head.kernel"] + params["head.bias"].reshape(1, 3)
            losses.append(optax.softmax_cross_entropy_with_integer_labels(logits, y[rows]))
            moments.append((mean, squares))
        mean, squares = (jnp.stack(column).mean(0) for column in zip(*moments, strict=True))
        return jnp.concatenate(losses).mean(), (mean, squares - mean**2)

    of_all = jax.jit(jax.value_and_grad(loss_of, has_aux=True))
    (loss, (mean, var)), gradients = jax.tree.map(np.asarray, of_all({name: start[name] for name in trained}))
    after = {name: start[name] - 0.1 * gradients[name] for name in trained}
    after |= {"norm.mean": 0.9 * start["norm.mean"] + 0.1 * mean, "norm.var": 0.9 * start["norm.var"] + 0.1 * var}
    return float(loss), after


@pytest.mark.representatives("pmap")
@pytest.mark.parametrize("kind", ["sharded", "pmap"])
def test_per_replica_batch_norm_matches_its_definition(kind: str) -> None:
    x, y = far_apart()
    loss, expected = per_replica_by_hand(parts=4)
    model = compiled(TinyNet(rngs=nnx.Rngs(0)), optimizer=optax.sgd, dispatch=kind, batch_norm="per_replica")
    found, _ = model.train_on_batch(x, y)
    np.testing.assert_allclose(found, loss, rtol=1e-5)
    now = values(model.module)
    assert_close({name: now[name] for name in expected}, expected, 1e-5)

    whole = compiled(TinyNet(rngs=nnx.Rngs(0)), optimizer=optax.sgd, dispatch="jit")
    whole.train_on_batch(x, y)
    # The statistics are those of all parts together, which here is those of the batch; the gradients are not.
    assert_close(now["norm.var"], values(whole.module)["norm.var"], 1e-5)
    assert not np.allclose(now["conv.kernel"], values(whole.module)["conv.kernel"], rtol=1e-3)


@pytest.mark.slow
def test_the_parts_of_a_mapped_step_share_no_dropout_mask() -> None:
    class Masks(nnx.Module):
        def __init__(self, *, rngs: nnx.Rngs) -> None:
            self.dropout = nnx.Dropout(0.5, rngs=rngs)
            self.head = nnx.Linear(64, 3, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.head(self.dropout(x.reshape(len(x), -1)))

    def spread(outputs: jax.Array, labels: jax.Array) -> jax.Array:
        """Return the variance over the first rows of the four parts, for each example: zero for equal masks."""
        return jnp.full(labels.shape, jnp.var(outputs.reshape(4, 2, 3)[:, 0], axis=0).sum())

    x, y = np.ones((8, 8, 8, 1), np.float32), np.zeros(8, np.int32)
    for kind in ("pmap", "sharded"):
        model = compiled(Masks(rngs=nnx.Rngs(0)), dispatch=kind, batch_norm="per_replica", metrics={"spread": spread})
        assert model.train_on_batch(x, y, return_dict=True)["spread"] > 1e-3


@pytest.mark.representatives("sharded-global")
@pytest.mark.parametrize(
    ("kind", "batch_norm"),
    [
        ("sharded", "global"),
        ("pmap", "per_replica"),
        pytest.param("sharded", "per_replica", marks=pytest.mark.slow),
        pytest.param("pmap", "global", marks=pytest.mark.slow),
    ],
)
def test_a_model_on_several_devices_is_freed_with_its_programs(kind: str, batch_norm: str) -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)), dispatch=kind, batch_norm=batch_norm)
    model.train_on_batch(images(8), labels(8))
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None
