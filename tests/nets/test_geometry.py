"""Strides of stages, or dilations instead of strides."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from resfit.errors import SpecError
from resfit.nets import STEMS, ResNet, ResNetSpec

# stem, output stride -> (strides, dilation, first dilation) of four stages, as torchvision and timm have them
GEOMETRY: dict[tuple[str, int | None], list[tuple[int, int, int]]] = {
    ("imagenet", None): [(1, 1, 1), (2, 1, 1), (2, 1, 1), (2, 1, 1)],
    ("imagenet", 32): [(1, 1, 1), (2, 1, 1), (2, 1, 1), (2, 1, 1)],
    ("imagenet", 16): [(1, 1, 1), (2, 1, 1), (2, 1, 1), (1, 2, 1)],
    ("imagenet", 8): [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 4, 2)],
    ("imagenet", 4): [(1, 1, 1), (1, 2, 1), (1, 4, 2), (1, 8, 4)],
    ("cifar", None): [(1, 1, 1), (2, 1, 1), (2, 1, 1), (2, 1, 1)],
    ("cifar", 4): [(1, 1, 1), (2, 1, 1), (2, 1, 1), (1, 2, 1)],
    ("cifar", 2): [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 4, 2)],
    ("cifar", 1): [(1, 1, 1), (1, 2, 1), (1, 4, 2), (1, 8, 4)],
}


def spec(stem: str, output_stride: int | None, **fields: Any) -> ResNetSpec:
    values = {"depths": (1, 2, 1, 1), "widths": (8, 16, 24, 32), "num_classes": 3} | fields
    return ResNetSpec(stem=stem, output_stride=output_stride, **values)


@pytest.mark.parametrize(("stem", "output_stride"), GEOMETRY)
def test_stages_beyond_the_output_stride_dilate_and_start_with_the_previous_dilation(
    stem: str, output_stride: int | None
) -> None:
    assert [tuple(stage) for stage in spec(stem, output_stride).geometry] == GEOMETRY[stem, output_stride]


@pytest.mark.representatives("imagenet-basic")
@pytest.mark.parametrize(
    ("stem", "block"),
    [pytest.param(stem, "basic", marks=() if stem in ("imagenet", "cifar") else pytest.mark.slow) for stem in STEMS]
    + [("cifar", "preact_bottleneck")]
    + [pytest.param("cifar", block, marks=pytest.mark.slow) for block in ("bottleneck", "preact_basic")],
)
def test_the_last_features_have_the_output_stride_and_parameters_do_not_change(stem: str, block: str) -> None:
    least = int(np.prod(STEMS[stem].strides))
    shapes = []
    for stride in (least, 8 * least):
        net = nnx.eval_shape(lambda stride=stride: ResNet(spec(stem, stride, block=block), rngs=nnx.Rngs(0)))
        x = jax.ShapeDtypeStruct((1, 128, 131, 3), jnp.float32)
        features = nnx.eval_shape(lambda net, x: net.features(x, stages=(4,)), net, x)[0]
        assert features.shape[1:3] == (-(-128 // stride), -(-131 // stride))
        flat = nnx.to_flat_state(nnx.state(net, nnx.Param))
        shapes.append({path: leaf.get_raw_value().shape for path, leaf in flat})
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    "block",
    [
        "basic",
        *(pytest.param(b, marks=pytest.mark.slow) for b in ("bottleneck", "preact_basic", "preact_bottleneck")),
    ],
)
def test_dilated_features_equal_strided_ones_at_every_second_pixel(block: str) -> None:
    """The first dilation exists for this reason."""
    stepping, dilated = (
        ResNet(spec("cifar", stride, block=block, zero_init_last=False), rngs=nnx.Rngs(0)) for stride in (8, 2)
    )
    x = np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype(np.float32)

    def last_features(net: ResNet) -> np.ndarray:
        return np.asarray(nnx.jit(lambda net, x: net.features(x, stages=(4,))[0])(net, x))

    strided, dense = last_features(stepping), last_features(dilated)
    np.testing.assert_allclose(dense[:, ::4, ::4], strided, atol=1e-4, rtol=1e-4)
    # A negative control: with the stage's own dilation in the first convolution the features differ.
    first = dilated.stage4.blocks[0].branch
    conv = first.conv1 if "basic" in block else first.conv2
    conv.kernel_dilation, conv.padding = (4, 4), ((4, 4), (4, 4))
    assert not np.allclose(last_features(dilated)[:, ::4, ::4], strided, atol=1e-2)


@pytest.mark.parametrize(
    ("stem", "stride", "says"),
    [
        ("imagenet", 2, "stem steps 4"),
        ("imagenet", 64, "reach a stride of 32"),
        ("imagenet", 12, "reach a stride of 8"),
        ("cifar", 16, "reach a stride of 8"),
    ],
)
def test_an_output_stride_that_stages_do_not_reach_raises(stem: str, stride: int, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        spec(stem, stride)
