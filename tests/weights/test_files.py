"""Reading and writing safetensors, names of every library, other classes and channels."""

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

import resfit
from resfit import weights
from resfit.errors import WeightsError
from resfit.nets import ResNet, ResNetSpec
from resfit.weights.find import named
from resfit.weights.public_names import WRITTEN
from tests.packages import package

THIN = {
    "v1.5": {"block": "bottleneck"},
    "v1": {"block": "bottleneck_v1"},
    "basic, cifar": {"stem": "cifar"},
    "option A": {"stem": "cifar", "shortcut": "A"},
    "D": {"block": "bottleneck", "stem": "deep", "shortcut": "D"},
    "SE": {"squeeze": 1 / 16},
    "RS": {"block": "bottleneck", "stem": "rs", "shortcut": "D", "squeeze": 1 / 4},
    "v2": {"block": "preact_bottleneck", "stem": "imagenet_conv", "shortcut": "conv"},
    "v2, D": {"block": "preact_bottleneck", "stem": "deep_conv", "shortcut": "D_conv"},
    "ECA": {"squeeze": "eca"},
    "Caffe": {"block": "bottleneck_v1", "stem": "caffe", "squeeze": 1 / 16},
    "ResNeXt": {"block": "bottleneck", "groups": 2, "width_per_group": 16},
    "group norm": {"norm": "group"},
    "space to depth": {"stem": "space_to_depth"},
    "bfloat16": {"stem": "cifar", "param_dtype": "bfloat16"},
}
SLOW = pytest.mark.slow
# The namings that have this kind of network; by default those of torchvision and timm.
_BOTH = ["torchvision", "transformers"]
WRITTEN_AS = dict.fromkeys(["v1.5", "v1", "basic, cifar", "option A", "ResNeXt", "group norm", "bfloat16"], _BOTH)
WRITTEN_AS["v2"] = WRITTEN_AS["v2, D"] = ["timm_v2"]
WRITTEN_AS["Caffe"] = ["timm_senet"]


def net(seed: int = 0, **fields: Any) -> ResNet:
    """Create a thin network with random statistics."""
    return nnx.clone(_built(seed, tuple(fields.items())))


@functools.cache
def _built(seed: int, asked: tuple[tuple[str, Any], ...]) -> ResNet:
    fields = dict(asked)
    made = ResNet(ResNetSpec(**{"depths": (1, 2), "widths": (32, 64), "num_classes": 3} | fields), rngs=nnx.Rngs(seed))
    generator = np.random.default_rng(seed)
    for _, node in nnx.iter_graph(made):
        if isinstance(node, nnx.BatchStat):
            node.set_value(jax.numpy.asarray(generator.uniform(0.5, 1.5, node.get_value().shape).astype("float32")))
    return made


def leaves(module: nnx.Module) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(nnx.state(module))]


@pytest.mark.representatives(
    "v1.5-None",
    "v1-keras",
    "basic, cifar-torchvision",
    "option A-None",
    "D-timm_v2",
    "SE-timm_v2",
    "v1.5-transformers",
    "bfloat16-None",
)
@pytest.mark.parametrize("naming", [None, *WRITTEN, "keras"])
@pytest.mark.parametrize("kind", THIN)
def test_a_file_gives_back_every_bit(kind: str, naming: str | None, tmp_path: Path) -> None:
    source, target = net(**THIN[kind]), net(seed=1, **THIN[kind])
    assert leaves(source) != leaves(target)
    path = tmp_path / "a.safetensors"
    if naming not in (None, *WRITTEN_AS.get(kind, ["torchvision"])):
        with pytest.raises(
            WeightsError, match=r"which has no name in|which is only for reading|so the logits would differ"
        ):
            weights.save(source, path, naming=naming)
        assert list(tmp_path.iterdir()) == []
    else:
        weights.save(source, path, naming=naming)
        weights.load(target, path)  # the naming is detected
        assert leaves(source) == leaves(target)


def test_a_file_has_the_entries_of_pytorch(tmp_path: Path) -> None:
    weights.save(net(), tmp_path / "a.safetensors")
    held = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    assert {name for name in held if name.startswith("bn1.")} == {
        f"bn1.{leaf}" for leaf in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    }
    assert (held["bn1.num_batches_tracked"].shape, held["bn1.num_batches_tracked"].dtype) == ((), np.int64)
    with safetensors.safe_open(tmp_path / "a.safetensors", framework="np") as file:
        assert file.metadata() == {"format": "pt"}  # transformers requires it


@pytest.mark.parametrize("path", ["a.pth", "a", "a.h5"])
def test_only_safetensors_are_written(path: str) -> None:
    with pytest.raises(WeightsError, match=r"Expected a path that ends in '\.safetensors'"):
        weights.save(net(), path)


# Names and shapes of every entry of microsoft/resnet-18 and -50, by the rule of transformers' modeling_resnet.py.
def transformers_names(depths: tuple[int, ...], convolutions: int) -> set[str]:
    names = {"resnet.embedder.embedder"}
    for stage, depth in enumerate(depths):
        for layer in range(depth):
            block = f"resnet.encoder.stages.{stage}.layers.{layer}"
            names |= {f"{block}.layer.{i}" for i in range(convolutions)}
            if layer == 0 and (stage > 0 or convolutions == 3):
                names.add(f"{block}.shortcut")
    found = {f"{name}.convolution.weight" for name in names} | {"classifier.1.weight", "classifier.1.bias"}
    for leaf in ("weight", "bias", "running_mean", "running_var"):
        found |= {f"{name}.normalization.{leaf}" for name in names}
    return found


@pytest.mark.representatives("resnet18-2")
@pytest.mark.parametrize(("name", "convolutions"), [("resnet18", 2), ("resnet50", 3)])
def test_the_names_of_transformers_are_correct(name: str, convolutions: int) -> None:
    net = nnx.eval_shape(lambda: resfit.create_model(name, num_classes=1000))
    held = {key: stored.shape for key, stored in named(net, "transformers")}
    assert set(held) == transformers_names(net.spec.depths, convolutions)
    assert held["resnet.embedder.embedder.convolution.weight"] == (64, 3, 7, 7)


@pytest.mark.representatives("torchvision-module._orig_mod.", "transformers-model.")
@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "module._orig_mod.", "model.module."])
@pytest.mark.parametrize("naming", ["torchvision", "transformers"])
def test_a_prefix_of_every_name_is_removed(prefix: str, naming: str) -> None:
    source, target = net(), net(seed=1)
    held = {prefix + name: value for name, value in weights.state_dict(source, naming=naming).items()}
    weights.load_state_dict(target, {**held, "n_averaged": np.array(3)})
    assert leaves(source) == leaves(target)


def test_a_prefix_of_some_names_is_kept() -> None:
    held = weights.state_dict(net())
    held["module.fc.weight"] = held.pop("fc.weight")
    with pytest.raises(WeightsError, match=r"unexpected: module\.fc\.weight"):
        weights.load_state_dict(net(), held)


def test_head_reset_keeps_the_head_for_another_number_of_classes() -> None:
    source, target = net(num_classes=10), net(seed=1)
    before = np.asarray(target.head.dense.kernel[...])
    held = weights.state_dict(source)
    with pytest.raises(WeightsError, match=r"(?s)2 of its entries differ.*pass head='reset'"):
        weights.load_state_dict(target, held)
    weights.load_state_dict(target, held, head="reset")
    np.testing.assert_array_equal(target.head.dense.kernel[...], before)
    np.testing.assert_array_equal(target.stage1.blocks[0].branch.conv1.kernel[...],
                                  source.stage1.blocks[0].branch.conv1.kernel[...])  # fmt: skip
    del held["fc.weight"], held["fc.bias"]  # features only
    weights.load_state_dict(target, held, head="reset")


@pytest.mark.representatives("space to depth-1")
@pytest.mark.parametrize(
    ("kind", "channels"),
    [
        pytest.param(kind, channels, marks=() if (kind, channels) in (("D", 2), ("space to depth", 1)) else SLOW)
        for kind in ("D", "v2", "space to depth", "basic, cifar")
        for channels in (1, 2, 6)
    ],
)
def test_another_number_of_channels_keeps_the_result_of_a_gray_image(kind: str, channels: int) -> None:
    """An image with equal channels gives the same result of the first convolution, up to rounding."""
    source = net(**THIN[kind])
    held = weights.state_dict(source)
    target = net(seed=1, in_channels=channels, **THIN[kind])
    with pytest.raises(WeightsError, match="For other channels, pass stem='sum' or 'repeat'"):
        weights.load_state_dict(target, held)
    grey = np.random.default_rng(0).normal(size=(1, 64, 64, 1)).astype("f4")
    call = nnx.jit(lambda module, x: module(x))
    wanted = np.asarray(call(source, grey.repeat(3, 3)))
    weights.load_state_dict(target, held, stem="sum")
    np.testing.assert_allclose(call(target, grey.repeat(channels, 3)), wanted, rtol=2e-4, atol=2e-4)
    weights.load_state_dict(target, held, stem="repeat")
    first, theirs = (
        next(stored.value() for _, stored in named(module, None) if stored.is_first_kernel)
        for module in (target, source)
    )
    np.testing.assert_allclose(first, theirs[:, np.arange(channels) % 3] * (3 / channels), rtol=1e-6)


def test_the_stem_is_unchanged_for_equal_channels() -> None:
    for stem in ("sum", "repeat"):
        source, target = net(), net(seed=1)
        weights.load_state_dict(target, weights.state_dict(source), stem=stem)
        assert leaves(source) == leaves(target)


@pytest.mark.parametrize("argument", [{"head": "new"}, {"stem": "mean"}, {"naming": "caffe"}])
def test_an_unknown_option_raises(argument: dict[str, Any]) -> None:
    with pytest.raises(WeightsError, match=r"Received \w+='\w+'\. Expected one of"):
        weights.load_state_dict(net(), weights.state_dict(net()), **argument)


def test_an_error_names_the_file_and_changes_nothing(tmp_path: Path) -> None:
    weights.save(net(num_classes=10), tmp_path / "ten.safetensors")
    target = net()
    before = leaves(target)
    with pytest.raises(WeightsError, match=r"(?s)fc\.bias has shape \(10,\).*ten\.safetensors"):
        weights.load(target, tmp_path / "ten.safetensors")
    assert leaves(target) == before


def test_a_damaged_safetensors_file_raises(tmp_path: Path) -> None:
    weights.save(net(), tmp_path / "a.safetensors")
    content = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(content[:-1])
    with pytest.raises(WeightsError, match="damaged safetensors"):
        weights.load(net(), tmp_path / "a.safetensors")


# --- the real libraries ------------------------------------------------------------------------------------------


def golden(model: Any) -> tuple[int, str]:
    lines = sorted(f"{name} {tuple(value.shape)}" for name, value in model.items())
    return len(lines), hashlib.sha256("\n".join(lines).encode()).hexdigest()


@pytest.mark.parametrize("name", ["resnet18", pytest.param("resnet50", marks=SLOW)])
def test_a_file_has_the_names_and_shapes_of_torchvision(name: str, tmp_path: Path) -> None:
    recorded = json.loads((Path(__file__).parents[1] / "golden" / "torch_oracle.json").read_text())[name]
    weights.save(resfit.create_model(name, num_classes=10), tmp_path / "a.safetensors")
    held = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    assert len(held) == recorded["entries"]
    without = {key: value for key, value in held.items() if not key.endswith("num_batches_tracked")}
    assert golden(without)[1] == recorded["names_and_shapes_sha256"]


def images(size: int = 64) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, size, size, 3)).astype("f4")


@pytest.mark.originals
@pytest.mark.parametrize("library", ["torchvision", "timm"])
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d", "resnet18d", "seresnet50", "resnetv2_50"])
def test_the_real_library_loads_the_file_strictly_and_agrees(name: str, library: str, tmp_path: Path) -> None:
    torch = package("torch")
    real = package(library)
    if library == "torchvision" and not hasattr(real.models, name):
        pytest.skip(f"torchvision has no {name}")
    import safetensors.torch

    ours = resfit.create_model(name, num_classes=7)
    weights.save(ours, tmp_path / "a.safetensors")
    make = (
        getattr(real.models, name) if library == "torchvision" else lambda **options: real.create_model(name, **options)
    )
    theirs = make(num_classes=7).eval()
    theirs.load_state_dict(safetensors.torch.load_file(tmp_path / "a.safetensors"), strict=True)
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(images().transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(ours(images()), wanted, rtol=1e-3, atol=1e-3 * np.abs(wanted).max())
    # Round trip: PyTorch saves the same arrays.
    torch.save(theirs.state_dict(), tmp_path / "b.pth")
    again = resfit.create_model(name, num_classes=7, rngs=1)
    weights.load(again, tmp_path / "b.pth")
    assert leaves(again) == leaves(ours)


@pytest.mark.originals
@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_transformers_loads_the_file_strictly_and_agrees(block: str, tmp_path: Path) -> None:
    torch, transformers = package("torch"), package("transformers")
    import safetensors.torch

    ours = net(depths=(1, 2, 1), widths=(32, 64, 128), block=block)
    weights.save(ours, tmp_path / "model.safetensors", naming="transformers")
    config = transformers.ResNetConfig(
        embedding_size=32,
        hidden_sizes=[width * (4 if block == "bottleneck" else 1) for width in ours.spec.widths],
        depths=list(ours.spec.depths),
        layer_type=block,
        num_labels=3,
    )
    theirs = transformers.ResNetForImageClassification(config).eval()
    theirs.load_state_dict(safetensors.torch.load_file(tmp_path / "model.safetensors"), strict=True)
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(images().transpose(0, 3, 1, 2).copy())).logits.numpy()
    np.testing.assert_allclose(ours(images()), wanted, rtol=1e-3, atol=1e-3 * np.abs(wanted).max())
    theirs.save_pretrained(tmp_path / "theirs")
    again = net(seed=1, depths=(1, 2, 1), widths=(32, 64, 128), block=block)
    weights.load(again, tmp_path / "theirs" / "model.safetensors")
    assert leaves(again) == leaves(ours)
