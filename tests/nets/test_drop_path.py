"""Stochastic depth and the other dropouts: per image, unbiased, only in training."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from resfit.nets import BasicBlock, ResNet, ResNetSpec
from tests.helpers import call

X = np.random.default_rng(0).normal(size=(400, 2, 2, 4)).astype(np.float32)


def net(**fields: Any) -> ResNet:
    values = {"depths": (2, 3), "widths": (4, 8), "stem": "cifar", "num_classes": 3} | fields
    return ResNet(ResNetSpec(**values), rngs=nnx.Rngs(0))


def test_drop_path_rises_from_zero_in_the_first_block_to_the_full_rate_in_the_last() -> None:
    blocks = [block for stage in net(drop_path=0.4).stages for block in stage.blocks]
    rates = [block.drop_path.rate if block.drop_path is not None else 0.0 for block in blocks]
    np.testing.assert_allclose(rates, [0.0, 0.1, 0.2, 0.3, 0.4], rtol=1e-6)
    assert blocks[0].drop_path is None  # it draws nothing


def test_a_single_block_has_no_drop_path() -> None:
    assert net(depths=(1,), widths=(4,), drop_path=0.4).stage1.blocks[0].drop_path is None


class Scaled(nnx.Module):
    """A new norm in evaluation, without statistics."""

    def __call__(self, x: jax.Array, evaluating: bool) -> jax.Array:
        return x / np.sqrt(np.float32(1 + 1e-5))


def test_drop_path_drops_whole_images_and_scales_the_others_up() -> None:
    """Each image is its shortcut, or has four times its branch; the mean is one branch."""
    block = BasicBlock(4, 4, drop_path=0.75, zero_init_last=False, rngs=nnx.Rngs(0))
    block.activation = lambda x: x
    branch = np.asarray(call(block.branch, X, train=False))
    block.branch.norm1 = block.branch.norm2 = Scaled()
    added = np.asarray(call(block, X, train=True)) - X
    factors = (added * branch).sum((1, 2, 3)) / (branch**2).sum((1, 2, 3))
    np.testing.assert_allclose(added, branch * factors[:, None, None, None], atol=1e-4)
    assert set(np.round(factors, 3)) == {0.0, 4.0}
    assert factors.mean() == pytest.approx(1, abs=5 * np.sqrt(3 / len(X)))


def test_blocks_and_calls_drop_different_images() -> None:
    module = net(depths=(1, 4), drop_path=0.5)
    rates = [block.drop_path for block in module.stage2.blocks[1:]]
    ones = np.ones((64, 1, 1, 1), np.float32)
    called = nnx.jit(lambda rates: [drop(ones, deterministic=False) for drop in (*rates, rates[0])])
    masks = [np.asarray(mask).ravel() for mask in called(rates)]
    for i, mask in enumerate(masks):
        assert not any(np.array_equal(mask, other) for other in masks[i + 1 :])


@pytest.mark.representatives("dropout")
@pytest.mark.parametrize(
    "fields",
    [
        {"drop_path": 0.5},
        pytest.param({"head_dropout": 0.5}, marks=pytest.mark.slow),
        {"block": "preact_basic", "stem": "cifar_conv", "dropout": 0.5},
    ],
    ids=["drop_path", "head_dropout", "dropout"],
)
def test_a_new_network_evaluates_and_only_training_draws(fields: dict[str, Any]) -> None:
    module = net(depths=(1, 1), zero_init_last=False, **fields)
    counts = [leaf for _, leaf in nnx.to_flat_state(nnx.state(module, nnx.RngCount))]
    assert counts
    x = np.random.default_rng(1).normal(size=(4, 8, 8, 3)).astype(np.float32)
    without = ResNet(ResNetSpec(**module.spec.to_dict() | dict.fromkeys(fields, 0.0) | {
        name: fields[name] for name in ("block", "stem") if name in fields
    }), rngs=nnx.Rngs(0))  # fmt: skip
    nnx.update(without, nnx.state(module, (nnx.Param, nnx.BatchStat)))
    evaluate = nnx.jit(lambda module, x: (module(x), module(x, train=False)))
    train = nnx.jit(lambda module, x: module(x, train=True))
    bare, evaluated = evaluate(module, x)
    np.testing.assert_array_equal(bare, evaluated)
    np.testing.assert_array_equal(bare, evaluate(without, x)[0])
    assert all(count[...] == 0 for count in counts)
    first, second = (np.asarray(train(nnx.clone(module), x)) for _ in range(2))
    np.testing.assert_array_equal(first, second)  # from the same state
    train(module, x)
    assert all(count[...] > 0 for count in counts)
    assert not np.allclose(train(module, x), first)


def test_dropout_of_the_head_is_between_pooling_and_logits() -> None:
    head = net(head_dropout=0.5).head
    features = np.ones((64, 2, 2, 8), np.float32)
    head.dense.kernel.set_value(jnp.asarray(np.eye(8, 3, dtype=np.float32)))
    head.dense.bias.set_value(jnp.asarray(np.zeros(3, np.float32)))
    trained, evaluated, pooled = nnx.jit(lambda head, x: (head(x, train=True), head(x, train=False), head.pooled(x)))(
        head, features
    )
    assert set(np.unique(trained)) == {0.0, 2.0}
    np.testing.assert_array_equal(evaluated, 1.0)
    np.testing.assert_array_equal(pooled, 1.0)
