"""The .h5 files of keras.applications: ResNet50, 101 and 152."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import resfit
from resfit import weights
from resfit.errors import MissingPackageError, WeightsError
from resfit.nets import ResNet, ResNetSpec
from tests.packages import package

LEAVES = {"kernel": "kernel", "bias": "bias", "gamma": "scale", "beta": "bias", "moving_mean": "mean"}


def net(block: str = "bottleneck_v1", seed: int = 0) -> ResNet:
    return ResNet(ResNetSpec(depths=(1, 2), widths=(4, 8), block=block, num_classes=3), rngs=nnx.Rngs(seed))


# Every layer of a network of stages of one and two blocks, as keras.applications names them.
CONVOLUTIONS = {
    "conv1": (7, 7, 3, 4),
    "conv2_block1_0": (1, 1, 4, 16), "conv2_block1_1": (1, 1, 4, 4),
    "conv2_block1_2": (3, 3, 4, 4), "conv2_block1_3": (1, 1, 4, 16),
    "conv3_block1_0": (1, 1, 16, 32), "conv3_block1_1": (1, 1, 16, 8),
    "conv3_block1_2": (3, 3, 8, 8), "conv3_block1_3": (1, 1, 8, 32),
    "conv3_block2_1": (1, 1, 32, 8), "conv3_block2_2": (3, 3, 8, 8), "conv3_block2_3": (1, 1, 8, 32),
}  # fmt: skip


def arrays() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    found: dict[str, np.ndarray] = {}
    for layer, shape in CONVOLUTIONS.items():
        found[f"{layer}_conv/kernel"] = generator.normal(size=shape)
        found[f"{layer}_conv/bias"] = generator.normal(size=shape[-1:])
        for leaf in ("gamma", "beta", "moving_mean", "moving_variance"):
            found[f"{layer}_bn/{leaf}"] = generator.uniform(0.5, 1.5, shape[-1:])
    found |= {"predictions/kernel": generator.normal(size=(32, 3)), "predictions/bias": generator.normal(size=3)}
    return {name: value.astype("f4") for name, value in found.items()}


def test_biases_and_epsilon_are_folded_into_the_norms() -> None:
    module, held = net(), arrays()
    weights.load_state_dict(module, held)
    conv, norm = module.stage2.blocks[1].branch.conv3, module.stage2.blocks[1].branch.norm3
    x = np.random.default_rng(1).normal(size=(2, 5, 5, 8)).astype("f4")
    name = "conv3_block2_3"
    y = np.einsum("nhwi,io->nhwo", x.astype("f8"), held[f"{name}_conv/kernel"][0, 0]) + held[f"{name}_conv/bias"]
    y = (y - held[f"{name}_bn/moving_mean"]) / np.sqrt(held[f"{name}_bn/moving_variance"].astype("f8") + 1.001e-5)
    y = y * held[f"{name}_bn/gamma"] + held[f"{name}_bn/beta"]
    np.testing.assert_allclose(norm(conv(x)), y, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(module.head.dense.bias[...], held["predictions/bias"])
    np.testing.assert_array_equal(module.stem.conv.kernel[...], held["conv1_conv/kernel"])


def test_every_layer_has_its_place() -> None:
    """Only names distinguish layers of one shape."""
    module, held = net(), arrays()
    weights.load_state_dict(module, held)
    for layer, place in {
        "conv2_block1_0": module.stage1.blocks[0].shortcut.conv,
        "conv2_block1_1": module.stage1.blocks[0].branch.conv1,
        "conv3_block1_2": module.stage2.blocks[0].branch.conv2,
        "conv3_block2_2": module.stage2.blocks[1].branch.conv2,
    }.items():
        np.testing.assert_array_equal(place.kernel[...], held[f"{layer}_conv/kernel"])


def test_blocks_with_another_stride_position_raise() -> None:
    """All names and shapes fit, but the network computes something else."""
    with pytest.raises(WeightsError, match=r"stride in the first 1x1.*block='bottleneck', .*resnet50_v1"):
        weights.load_state_dict(net("bottleneck"), arrays())


def test_a_resnet_v2_raises() -> None:
    held = {name.replace("conv1_bn", "post_bn"): value for name, value in arrays().items()}
    with pytest.raises(WeightsError, match=r"ResNetV2 of Keras.*Expected ResNet50, ResNet101 or ResNet152"):
        weights.load_state_dict(net(), held)


def test_a_bias_without_its_norm_raises() -> None:
    held = arrays() | {"conv9_block1_1_conv/bias": np.zeros(3, "f4")}
    with pytest.raises(WeightsError, match="unexpected: conv9_block1_1_conv/bias"):
        weights.load_state_dict(net(), held)


def test_keras_names_are_only_for_reading() -> None:
    with pytest.raises(WeightsError, match="only for reading"):
        weights.state_dict(net(), naming="keras")


def test_a_missing_h5py_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    (tmp_path / "a.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(
        MissingPackageError, match=r"Reading a\.h5 needs the package h5py.*pip install 'resfit\[weights\]'"
    ):
        weights.read(tmp_path / "a.h5")


# --- files, which need h5py ----------------------------------------------------------------------------------------


def write(path: Path, held: dict[str, np.ndarray], *, inside: str = "", suffix: str = ":0") -> Path:
    h5py = package("h5py")
    with h5py.File(path, "w") as file:
        root = file.create_group(inside) if inside else file
        layers = sorted({name.partition("/")[0] for name in held})
        root.attrs["layer_names"] = [layer.encode() for layer in layers]
        for layer in layers:
            group = root.create_group(layer)
            names = [name for name in held if name.startswith(layer + "/")]
            group.attrs["weight_names"] = [f"{name}{suffix}".encode() for name in names]
            for name in names:
                group.create_dataset(f"{name}{suffix}", data=held[name])
    return path


@pytest.mark.parametrize("inside", ["", "model_weights"])
@pytest.mark.parametrize("suffix", ["", ":0"])
def test_a_file_is_read_by_layer(inside: str, suffix: str, tmp_path: Path) -> None:
    found = weights.read(write(tmp_path / "a.h5", arrays(), inside=inside, suffix=suffix))
    assert found.keys() == arrays().keys()
    for name, value in arrays().items():
        np.testing.assert_array_equal(found[name], value)


def outside(file: Any, h5py: Any, tmp_path: Path) -> None:
    del file["predictions"]["predictions"]["bias:0"]
    file["predictions"]["predictions"]["bias:0"] = h5py.ExternalLink("other.h5", "/secret")


def external(file: Any, h5py: Any, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(12))
    del file["predictions"]["predictions"]["bias:0"]
    group = file["predictions"]["predictions"]
    group.create_dataset("bias:0", (3,), "f4", external=[(str(tmp_path / "secret"), 0, 12)])


def virtual(file: Any, h5py: Any, tmp_path: Path) -> None:
    del file["predictions"]["predictions"]["bias:0"]
    layout = h5py.VirtualLayout((3,), "f4")
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "secret", (3,))
    file["predictions"]["predictions"].create_virtual_dataset("bias:0", layout)


def bomb(file: Any, h5py: Any, tmp_path: Path) -> None:
    del file["predictions"]["predictions"]["bias:0"]
    file["predictions"]["predictions"].create_dataset("bias:0", (10**12,), "f4", compression="gzip")


def circular(file: Any, h5py: Any, tmp_path: Path) -> None:
    file["predictions"]["again"] = file["predictions"]


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (outside, "only a link to it"),
        (external, "in another file"),
        (virtual, "in another file"),
        (bomb, "promises more numbers than it holds"),
        (circular, "groups inside each other"),
    ],
)
def test_a_file_with_links_or_too_large_promises_raises(harm: Any, says: str, tmp_path: Path) -> None:
    h5py = package("h5py")
    path = write(tmp_path / "a.h5", arrays())
    with h5py.File(path, "a") as file:
        harm(file, h5py, tmp_path)
    with pytest.raises(WeightsError, match=says):
        weights.read(path)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", arrays())
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(WeightsError, match="damaged HDF5"):
        weights.read(path)


@pytest.mark.originals
@pytest.mark.parametrize("size", [64, 75])
def test_keras_computes_the_same(size: int, tmp_path: Path) -> None:
    """The reference is ResNet50 of Keras with nonzero biases and random statistics."""
    keras = package("keras")
    theirs = keras.applications.ResNet50(
        weights=None, input_shape=(size, size, 3), classes=5, classifier_activation=None
    )
    generator = np.random.default_rng(0)
    held: dict[str, np.ndarray] = {}
    for layer in theirs.layers:
        for variable in layer.weights:
            name, value = f"{layer.name}/{variable.name.partition(':')[0]}", np.asarray(variable)
            if not name.endswith("kernel"):
                value = generator.uniform(0.5, 1.0, value.shape) * (0.5 if name.endswith("gamma") else 1)
                variable.assign(value.astype("f4"))
            held[name] = np.asarray(variable)
    ours = resfit.create_model("resnet50_v1", weights=write(tmp_path / "a.h5", held))
    assert ours.spec.num_classes == 5
    x = generator.normal(size=(2, size, size, 3)).astype("f4")
    with jax.numpy_rank_promotion("allow"):  # on JAX, Keras adds biases of one axis
        wanted = np.asarray(theirs(x, training=False))
    np.testing.assert_allclose(ours(x), wanted, rtol=1e-3, atol=1e-3 * np.abs(wanted).max())
