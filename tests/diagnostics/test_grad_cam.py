"""Grad-CAM against its formula in NumPy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import resfit
from resfit.errors import DataError, ModuleError
from tests import levels
from tests.helpers import CLASSES, PlainNet, TinyNet, call, compiled, differ, fit, flags, images, values


def by_formula(net: Any, x: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return the maps of TinyNet's norm, whose output goes through ReLU, mean and a dense layer."""
    copy = nnx.clone(net)
    copy.eval()
    output = np.asarray(call(copy.norm, call(copy.conv, x)))  # (n, h, w, c)
    gradient = (output > 0) * np.asarray(net.head.kernel[...]).T[classes][:, None, None, :] / 64
    heat = np.maximum((output * gradient.mean(axis=(1, 2), keepdims=True)).sum(axis=3), 0)
    largest = heat.max(axis=(1, 2), keepdims=True)
    return heat / np.where(largest > 0, largest, 1)


@pytest.mark.representatives("jit")
@pytest.mark.parametrize("dispatch", ["jit", "sharded"])
def test_maps_match_the_formula_for_the_predicted_and_for_any_class(dispatch: str) -> None:
    model, x = compiled(dispatch=dispatch), images(6)
    fit(model)
    before, modes = values(model.module), flags(model.module)
    predicted = model.predict(x, verbose=0).argmax(axis=1)
    np.testing.assert_allclose(
        resfit.grad_cam(model, x, "norm"), by_formula(model.module, x, predicted), rtol=1e-3, atol=1e-4
    )
    other = (predicted + 1) % CLASSES
    maps = resfit.grad_cam(model, x, "norm", other)
    np.testing.assert_allclose(maps, by_formula(model.module, x, other), rtol=1e-3, atol=1e-4)
    assert np.abs(maps - resfit.grad_cam(model, x, "norm")).max() > 0.1
    assert differ(before, values(model.module)) == set()
    assert flags(model.module) == modes


PARTS = ["stem", "stage1", "stage2", "stage2.blocks.0", "stage2.blocks.0.branch.conv1"]


@pytest.mark.representatives("stem")
@pytest.mark.parametrize("part", levels.only(["stem", "stage2.blocks.0.branch.conv1"], PARTS))
def test_any_part_that_returns_an_image_gives_a_map_of_the_images_size(part: str) -> None:
    net = resfit.create_model("resnet20", num_classes=3, in_channels=1, depths=(1, 1), widths=(4, 8), rngs=0)
    maps = resfit.grad_cam(resfit.Model(net), images(2), part)
    assert maps.shape == (2, 8, 8)
    assert maps.min() >= 0
    assert set(maps.max(axis=(1, 2)).round(5)) <= {0.0, 1.0}


def test_the_map_peaks_at_the_pixel_that_decides() -> None:
    """The only feature of the network is brightness, so the map must peak at the bright pixels."""
    net = TinyNet(rngs=nnx.Rngs(0))
    kernel = np.zeros((3, 3, 1, 4), np.float32)
    kernel[1, 1] = 1
    net.conv.kernel.set_value(jnp.asarray(kernel))
    net.head.kernel.set_value(jnp.asarray(np.float32([range(CLASSES)] * 4)))
    x = np.zeros((3, 8, 8, 1), np.float32)
    places = [(1, 2), (5, 5), (7, 0)]
    for i, place in enumerate(places):
        x[i][place] = 1.0
    maps = resfit.grad_cam(resfit.Model(net), x, "norm", np.full(3, CLASSES - 1))
    assert [np.unravel_index(m.argmax(), m.shape) for m in maps] == places


def test_the_map_of_an_image_does_not_depend_on_the_batch() -> None:
    model, x = compiled(), images(5)
    maps = resfit.grad_cam(model, x, "conv")
    np.testing.assert_allclose(maps[:2], resfit.grad_cam(model, x[:2], "conv"), rtol=1e-4, atol=1e-5)


class Twice(TinyNet):
    def __call__(self, x: jax.Array) -> jax.Array:
        return super().__call__(x) + super().__call__(-x)


@pytest.mark.parametrize(
    ("net", "arguments", "error", "words"),
    [
        (TinyNet, {"part": "stage9"}, ModuleError, "no callable part 'stage9'.*'conv', 'head', 'norm'"),
        (TinyNet, {"part": "head"}, ModuleError, "shapes \\[\\(4, 3\\)\\]"),
        (Twice, {"part": "conv"}, ModuleError, "shapes"),
        (TinyNet, {"x": images(4)[..., 0]}, DataError, "Expected images"),
        (TinyNet, {"classes": np.full(4, 3)}, DataError, "from 0 to 2"),
        (TinyNet, {"classes": np.zeros((4, 3), np.int32)}, DataError, "one class number"),
        (PlainNet, {"part": "conv"}, ModuleError, "no callable part 'conv'"),
    ],
)
def test_bad_parts_images_and_classes_raise(
    net: type, arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        resfit.grad_cam(
            resfit.Model(net(rngs=nnx.Rngs(0))), **{"x": images(4), "part": "conv", "classes": None, **arguments}
        )
