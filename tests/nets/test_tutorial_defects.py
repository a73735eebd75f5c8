"""Common mistakes of training scripts in tutorials: one test for each, on resfit's networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from resfit.errors import ShortcutShapeError, StemWarning
from resfit.nets import (
    ZOO,
    BasicBlock,
    ImageNetStem,
    Residual,
    ResNet,
    ResNetSpec,
    count_params,
    create_model,
)
from tests.helpers import call

THIN = ResNetSpec(depths=(2, 1), widths=(4, 8), stem="cifar", num_classes=3)
X = np.random.default_rng(0).normal(size=(4, 6, 6, 3)).astype(np.float32)


def thin(**fields: object) -> ResNet:
    return ResNet(ResNetSpec.from_dict(THIN.to_dict() | fields), rngs=nnx.Rngs(0))


def statistics(module: nnx.Module) -> np.ndarray:
    return np.concatenate([np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(module, nnx.BatchStat))])


# --- the three pitfalls ---------------------------------------------------------------------------------------------


def test_a_forgotten_train_flag_corrupts_no_statistic() -> None:
    """Pitfall: flax's norms start in training mode, so predicting without a flag changed the statistics."""
    net = thin()
    before = statistics(net)
    one, other = np.asarray(call(net, X[:1])), np.asarray(call(net, X))
    np.testing.assert_array_equal(statistics(net), before)
    np.testing.assert_allclose(one[0], other[0], atol=1e-5)  # rows are independent
    norm = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    call(norm, X)
    assert (np.asarray(norm.mean[...]) != 0).any()  # the defect itself


def test_a_shape_mismatch_is_found_when_the_block_is_built() -> None:
    """Pitfall: channels or strides change and the shortcut stays the identity; broadcasting can hide the mistake."""
    with pytest.raises(ShortcutShapeError, match="BasicBlock"):
        BasicBlock(1, 8, shortcut="identity", rngs=nnx.Rngs(0))
    # The defect itself: one channel broadcasts to eight without an error.
    branch = BasicBlock(1, 8, rngs=nnx.Rngs(0)).branch
    assert nnx.eval_shape(lambda branch, x: branch(x) + x, branch, X[..., :1]).shape == (4, 6, 6, 8)


def test_the_activation_comes_after_the_addition() -> None:
    """Pitfall: with relu(branch) + shortcut activations can only grow; the paper has relu(branch + shortcut)."""
    branch = nnx.Conv(3, 3, (3, 3), padding=1, rngs=nnx.Rngs(0))
    block = Residual(branch, in_channels=3)
    found, branched = np.asarray(call(block, X)), np.asarray(call(branch, X))
    np.testing.assert_array_equal(found, np.maximum(branched + X, 0))
    early = X + np.maximum(branched, 0)
    assert (early < 0).any()
    assert not np.allclose(found, early)


# --- the defects ----------------------------------------------------------------------------------------------------


def test_a_list_of_blocks_builds() -> None:
    """Defect: `self.blocks = [...]` raises in today's flax."""

    class Script(nnx.Module):
        def __init__(self) -> None:
            self.blocks = [BasicBlock(4, 4, rngs=nnx.Rngs(0))]

    with pytest.raises(ValueError, match="static"):
        Script()
    assert [len(stage.blocks) for stage in thin().stages] == [2, 1]


def test_running_statistics_are_no_parameters() -> None:
    """Defect: "Total parameters" includes running statistics, 9,600 too many for a ResNet-18."""
    net = nnx.eval_shape(lambda: create_model("resnet18", num_classes=10))
    everything = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(net)))
    assert count_params(net) == 11_181_642 == everything - 9_600


# One network for each block with each stem.
FIRST_OF_THEIR_PARTS = {
    (spec.block, spec.stem): name for name, spec in reversed([(name, row.spec) for name, row in ZOO.items()])
}.values()


@pytest.mark.representatives("resnet20", "resnet18d")
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in FIRST_OF_THEIR_PARTS else pytest.mark.exhaustive) for name in sorted(ZOO)],
)
def test_no_convolution_before_a_norm_has_a_bias(name: str) -> None:
    """Defect: biases that the norm subtracts again; 4,800 in a ResNet-18."""
    widths = ZOO[name].spec.widths[:2]
    net = nnx.eval_shape(lambda: create_model(name, num_classes=10, depths=(1, 1), widths=widths))
    convolutions = [module for _, module in nnx.iter_modules(net) if isinstance(module, nnx.Conv)]
    assert len(convolutions) > 2
    assert not any(conv.use_bias for conv in convolutions)


def test_a_hundred_steps_leave_nothing_of_the_first_statistics() -> None:
    """Defect: with flax's momentum of 0.99, 37 % of the initial zeros and ones are left after 100 steps."""

    def left_after_100_steps(norm: nnx.BatchNorm) -> float:
        norm.mean.set_value(jnp.asarray(np.full(3, 1000, np.float32)))
        step = nnx.jit(lambda norm, x: norm(x, use_running_average=False))
        for _ in range(100):
            step(norm, np.zeros((4, 3), np.float32))
        return float(np.asarray(norm.mean[...])[0]) / 1000

    assert left_after_100_steps(create_model("resnet20", num_classes=2, depths=(1,), widths=(3,)).stem.norm) < 1e-4
    assert left_after_100_steps(nnx.BatchNorm(3, rngs=nnx.Rngs(0))) == pytest.approx(0.366, abs=1e-3)


def test_the_stems_pool_keeps_the_papers_size() -> None:
    """Defect: flax's max pool has no padding by default, so 112 pixels become 55 instead of 56."""
    stem = nnx.eval_shape(lambda: ImageNetStem(3, 2, rngs=nnx.Rngs(0)))
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    assert nnx.eval_shape(lambda stem, x: stem(x), stem, image).shape == (1, 56, 56, 2)
    unpadded = jax.eval_shape(lambda x: nnx.max_pool(x, (3, 3), (2, 2)), jax.ShapeDtypeStruct((1, 112, 112, 2), "f4"))
    assert unpadded.shape == (1, 55, 55, 2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bfloat16_is_what_the_convolutions_compute_in(dtype: str) -> None:
    """Defect: casting the images alone changes nothing, because the float32 kernels promote them back."""
    net = thin(dtype=dtype)
    graph, state = nnx.split(net)
    program = jax.make_jaxpr(lambda state, x: nnx.merge(graph, state)(x))(state, X)
    convolutions = [eqn for eqn in program.eqns if eqn.primitive.name == "conv_general_dilated"]
    assert len(convolutions) == 8
    assert {var.aval.dtype for eqn in convolutions for var in (*eqn.invars, *eqn.outvars)} == {jnp.dtype(dtype)}
    # The defect itself.
    script = nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0))
    assert nnx.eval_shape(lambda script, x: script(x), script, X.astype(jnp.bfloat16)).dtype == jnp.float32


def test_small_images_need_no_upsampling() -> None:
    """Defect: CIFAR images are enlarged to 224 pixels because a stem for 32 pixels is missing."""
    net = nnx.eval_shape(lambda: create_model("resnet18", num_classes=10, stem="cifar"))
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    last = nnx.eval_shape(lambda net, x: net.stage4(net.stage3(net.stage2(net.stage1(net.stem(x))))), net, images)
    assert last.shape == (2, 4, 4, 512)  # the ImageNet stem would leave 1 x 1
    with pytest.warns(StemWarning, match="stem='cifar'"):
        nnx.eval_shape(lambda net, x: net(x), nnx.eval_shape(lambda: create_model("resnet18", num_classes=10)), images)
