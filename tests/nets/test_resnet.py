"""ResNet: input checks, modes, precision, and the spec."""

import functools
import json
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from resfit.errors import (
    ChannelError,
    ImageTooSmallError,
    InputShapeError,
    LayoutError,
    RankError,
    SpecError,
    StemWarning,
)
from resfit.nets import ResNet, ResNetSpec, create_model
from resfit.nets.registry import BLOCKS
from tests.helpers import call

THIN = ResNetSpec(depths=(1, 1), widths=(4, 8), stem="cifar", num_classes=3)
X = np.random.default_rng(0).normal(size=(4, 6, 6, 3)).astype(np.float32)


@functools.cache
def _thin() -> ResNet:
    return ResNet(THIN, rngs=nnx.Rngs(0))


def net(spec: ResNetSpec = THIN, **fields: Any) -> ResNet:
    if spec is THIN and not fields:
        return nnx.clone(_thin())
    return ResNet(ResNetSpec.from_dict(spec.to_dict() | fields), rngs=nnx.Rngs(0))


def shape(module: ResNet, image: tuple[int, ...], train: bool = False) -> tuple[int, ...]:
    """Return the output shape by abstract evaluation, which raises the same errors as a call."""
    return nnx.eval_shape(lambda m, x: m(x, train=train), module, jax.ShapeDtypeStruct(image, jnp.float32)).shape


def statistics(module: nnx.Module) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(module, nnx.BatchStat))]


def same(before: list[np.ndarray], after: list[np.ndarray]) -> list[bool]:
    return [np.array_equal(a, b) for a, b in zip(before, after, strict=True)]


# --- wrong inputs ---------------------------------------------------------------------------------------------------

REFUSED = {
    "one image without its batch axis": ((6, 6, 3), RankError, ["3 axes", "(6, 6, 3)", "x[None]", "(1, 6, 6, 3)"]),
    "a matrix": ((6, 6), RankError, ["2 axes", "(batch, height, width, 3)"]),
    "channels first": ((2, 3, 6, 6), LayoutError, ["(2, 3, 6, 6)", "x.transpose(0, 2, 3, 1)"]),
    "grey images": ((2, 6, 6, 1), ChannelError, ["1 channels", "Expected 3", "in_channels=1"]),
    "no pixel": ((2, 0, 6, 3), ImageTooSmallError, ["0 pixels", "at least 2"]),
    "a pixel that would be halved": ((2, 6, 1, 3), ImageTooSmallError, ["1 pixels", "at least 2", "fewer stages"]),
}


@pytest.mark.parametrize(("image", "error", "says"), REFUSED.values(), ids=REFUSED)
def test_each_wrong_input_has_its_own_error(image: tuple[int, ...], error: type[Exception], says: list[str]) -> None:
    module = net()
    for use in (lambda: module(np.zeros(image, np.float32)), lambda: shape(module, image)):
        with pytest.raises(error) as raised:
            use()
        assert type(raised.value) is error
        assert isinstance(raised.value, InputShapeError)
        for words in says:
            assert words in str(raised.value)


def test_an_image_of_as_many_rows_as_channels_is_valid() -> None:
    assert shape(net(), (2, 3, 8, 3)) == (2, 3)


@pytest.mark.parametrize(("stem", "smallest"), [("cifar", 5), ("imagenet", 17)])
def test_the_smallest_image_has_two_pixels_at_every_stride(stem: str, smallest: int) -> None:
    module = net(depths=[1] * 4, widths=[2] * 4, stem=stem)
    module.small_image_notice.given = True
    assert shape(module, (1, smallest, smallest, 3)) == (1, 3)
    with pytest.raises(ImageTooSmallError, match=f"at least {smallest} pixels"):
        shape(module, (1, smallest - 1, 99, 3))


def test_small_images_through_the_imagenet_stem_warn_once_and_name_the_better_stem() -> None:
    module = net(stem="imagenet")
    with pytest.warns(StemWarning, match=r"32x40 pixels.*stem='cifar'"):
        shape(module, (2, 32, 40, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shape(module, (3, 32, 40, 3), train=True)  # another trace
        shape(nnx.clone(module), (2, 48, 48, 3))  # a copy
        shape(net(stem="imagenet"), (2, 64, 64, 3))
        shape(net(stem="cifar"), (2, 32, 32, 3))
    with pytest.warns(StemWarning):  # another network
        shape(net(stem="imagenet"), (2, 63, 99, 3))


# --- modes ----------------------------------------------------------------------------------------------------------


def test_a_call_without_mode_on_a_new_net_changes_no_statistic() -> None:
    module = net()
    before = statistics(module)
    np.testing.assert_array_equal(call(module, X), call(module, X, train=False))
    assert all(same(before, statistics(module)))


def test_train_reaches_every_norm() -> None:
    module = net()
    before = statistics(module)
    call(module, X, train=True)
    assert not any(same(before, statistics(module)))


@pytest.mark.parametrize("put", [lambda m, t: m.train() if t else m.eval(), None], ids=["train and eval", "view"])
def test_a_call_without_mode_follows_nnx_modes(put: Any) -> None:
    module = net()
    before = statistics(module)
    if put is None:
        training, evaluating = (nnx.view(module, use_running_average=not train) for train in (True, False))
    else:
        training = evaluating = module
    if put:
        put(module, True)
    call(training, X)
    moved = statistics(module)
    assert not any(same(before, moved))
    if put:
        put(module, False)
    call(evaluating, X)
    assert all(same(moved, statistics(module)))


def test_an_explicit_mode_overrides_the_flags_and_does_not_change_them() -> None:
    module = net()
    module.train()
    before = statistics(module)
    call(module, X, train=False)
    assert all(same(before, statistics(module)))
    assert not module.stem.norm.use_running_average


def test_a_network_trains_inside_a_module_with_nnx_modes_only() -> None:
    class Theirs(nnx.Module):
        def __init__(self) -> None:
            self.backbone = net()
            self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.dropout(self.backbone(x))

    theirs = Theirs()
    before = statistics(theirs)
    theirs.train()
    call(theirs, X)
    assert not any(same(before, statistics(theirs)))


def test_two_networks_of_one_spec_have_equal_graphs() -> None:
    """Compiled steps are cached by the graph: the second network must not compile."""
    (one, _), (two, _) = nnx.split(net()), nnx.split(ResNet(THIN, rngs=nnx.Rngs(9)))
    assert one == two
    assert hash(one) == hash(two)
    assert one != nnx.split(net(shortcut="A"))[0]


def test_building_abstractly_allocates_nothing_and_agrees_with_building() -> None:
    built, abstract = net(), nnx.eval_shape(net)
    leaves = jax.tree.leaves(nnx.state(abstract))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    assert [leaf.shape for leaf in leaves] == [leaf.shape for leaf in jax.tree.leaves(nnx.state(built))]


def test_dropout_of_a_custom_block_keeps_a_stream_of_keys() -> None:
    """nnx.Dropout forks the keys of the network."""
    from resfit.nets.init import LayerKeys

    dropout = nnx.Dropout(0.5, rngs=LayerKeys(nnx.Rngs(0)))
    first, second = dropout(X), dropout(X)
    assert not np.array_equal(first, second)


# --- precision ------------------------------------------------------------------------------------------------------


def test_parameters_statistics_and_logits_stay_float32_in_bfloat16() -> None:
    module = net(dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(module))} == {jnp.dtype("float32")}
    logits = call(module, X, train=True)
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(module))} == {jnp.dtype("float32")}
    np.testing.assert_allclose(logits, call(net(), X, train=True), atol=0.1)


def test_param_dtype_applies_only_to_parameters() -> None:
    module = net(param_dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(module, nnx.Param))} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(module, nnx.BatchStat))} == {jnp.dtype("float32")}


def test_uint8_images_are_accepted() -> None:
    assert nnx.eval_shape(lambda m, x: m(x), net(), jax.ShapeDtypeStruct((2, 6, 6, 3), jnp.uint8)).shape == (2, 3)


# --- initial values -------------------------------------------------------------------------------------------------


def test_kernels_start_as_kaiming_normal_over_their_outputs() -> None:
    kernel = np.asarray(net(widths=[64, 64]).stage2.blocks[0].branch.conv2.kernel[...])
    assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * 64)), rel=0.02)
    assert abs(kernel.mean()) < 0.002


def test_the_head_starts_as_torch_does() -> None:
    dense = net(widths=[4, 64], num_classes=200).head.dense
    for values in (np.asarray(dense.kernel[...]), np.asarray(dense.bias[...])):
        assert np.abs(values).max() <= 1 / np.sqrt(64)
        assert values.std() == pytest.approx(1 / np.sqrt(3 * 64), rel=0.1)


@pytest.mark.parametrize("zero", [True, False])
def test_zero_init_last_sets_the_last_scale_of_each_block_to_zero(zero: bool) -> None:
    for block, last in (("basic", "norm2"), ("bottleneck", "norm3")):
        module = net(block=block, zero_init_last=zero)
        for stage in module.stages:
            for built in stage.blocks:
                np.testing.assert_array_equal(getattr(built.branch, last).scale[...], 0 if zero else 1)
                np.testing.assert_array_equal(built.branch.norm1.scale[...], 1)


# --- the spec -------------------------------------------------------------------------------------------------------


def test_a_spec_survives_json() -> None:
    spec = ResNetSpec(depths=(1, 2), widths=(4, 8), block="bottleneck_v1", shortcut="A", dtype="bfloat16")
    assert ResNetSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert hash(ResNetSpec.from_dict(spec.to_dict())) == hash(spec)


WRONG_FIELDS: dict[str, dict[str, Any]] = {
    "block": {"block": "inverted"},
    "stem": {"stem": "mnist"},
    "shortcut": {"shortcut": "C"},
    "dtype": {"dtype": "int8"},
    "param_dtype": {"param_dtype": "float8"},
    "widths": {"depths": [1, 1, 1]},
    "no stage": {"depths": [], "widths": []},
    "no block": {"depths": [1, 0]},
    "half a block": {"depths": [1, 1.5]},
    "no class": {"num_classes": 0},
    "a truth for a number": {"in_channels": True},
    "unknown": {"cardinality": 32},
    "what its block cannot do": {"groups": 32},
    "anti-aliasing": {"antialias": "gauss"},
    "what its stem cannot do": {"stem": "imagenet_conv", "antialias": "blur"},
    "norm": {"norm": "layer"},
    "certain dropout": {"block": "preact_basic", "dropout": 1.0},
    "a branch that never is": {"drop_path": 1},
    "dropout below zero": {"head_dropout": -0.1},
    "nothing squeezed": {"squeeze": 0.0},
    "squeezed to more": {"squeeze": 1.5},
    "squeezed by a word": {"squeeze": "se"},
    "a stride below the stem's": {"stem": "imagenet", "output_stride": 2},
    "a stride that is not reached": {"output_stride": 8},
    "a stride that is no power": {"depths": [1, 1, 1], "widths": [4, 4, 4], "output_stride": 3},
}


@pytest.mark.parametrize("fields", WRONG_FIELDS.values(), ids=WRONG_FIELDS)
def test_a_wrong_field_raises_with_the_expected_values(fields: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=r"received.*Expected"):
        ResNetSpec.from_dict(THIN.to_dict() | fields)


def test_a_spec_without_stages_raises() -> None:
    with pytest.raises(SpecError, match="no depths and no widths"):
        ResNetSpec.from_dict({"num_classes": 3})


def test_overrides_reach_the_network() -> None:
    module = create_model("resnet20", num_classes=7, in_channels=2, depths=(1,), widths=(4,), shortcut="B")
    assert module.spec == ResNetSpec((1,), (4,), stem="cifar", num_classes=7, in_channels=2)
    assert shape(module, (1, 8, 8, 2)) == (1, 7)
    with pytest.raises(SpecError, match=r"unknown fields.*'widht'"):
        create_model("resnet20", num_classes=7, widht=(4,))


@pytest.mark.representatives("bottleneck_v1", "preact_bottleneck")
@pytest.mark.parametrize("block", BLOCKS)
def test_every_registered_block_builds_in_both_options(block: str) -> None:
    for option in ("A", "B"):
        assert shape(net(block=block, shortcut=option), (2, 6, 6, 3), train=True) == (2, 3)
