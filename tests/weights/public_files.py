"""Attempts to load files of public repositories, with exactly their names of arrays and random values.

    python -m tests.weights.public_files

prints the table of attempts and outcomes. The names are literal: one list for each repository, in the order of
`BASIC`, `BOTTLENECK` or `PREACTIVATED`. The networks are thin, with stages of one and two blocks.
"""

import functools
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import nnx, serialization

from resfit import weights
from resfit.errors import WeightsError
from resfit.nets import ResNet, ResNetSpec
from tests.weights.test_malicious_files import Called, Named, Storage, pickled

Arrays = dict[str, np.ndarray]
BASIC: dict[str, Any] = {"depths": (1, 2), "widths": (4, 8), "num_classes": 3}
BOTTLENECK: dict[str, Any] = BASIC | {"block": "bottleneck", "widths": (2, 4)}
V1: dict[str, Any] = BOTTLENECK | {"block": "bottleneck_v1"}
LEGACY: dict[str, Any] = V1 | {"stem": "caffe", "squeeze": 0.25}
V2: dict[str, Any] = BASIC | {"block": "preact_basic", "stem": "cifar_conv", "shortcut": "conv"}
CIFAR: dict[str, Any] = BASIC | {"stem": "cifar"}
FOUR: dict[str, Any] = BASIC | {"depths": (1, 1, 1, 1), "widths": (4, 4, 8, 8)}

# The layers of the networks above, in the order of the lists below.
_OF_BASIC = """
stem.conv stem.norm
stage1.blocks.0.branch.conv1 stage1.blocks.0.branch.norm1 stage1.blocks.0.branch.conv2 stage1.blocks.0.branch.norm2
stage2.blocks.0.branch.conv1 stage2.blocks.0.branch.norm1 stage2.blocks.0.branch.conv2 stage2.blocks.0.branch.norm2
stage2.blocks.0.shortcut.conv stage2.blocks.0.shortcut.norm
stage2.blocks.1.branch.conv1 stage2.blocks.1.branch.norm1 stage2.blocks.1.branch.conv2 stage2.blocks.1.branch.norm2
head.dense
"""
_OF_OPTION_A = "\n".join(line for line in _OF_BASIC.splitlines() if "shortcut" not in line)
_OF_BOTTLENECK = """
stem.conv stem.norm
stage1.blocks.0.branch.conv1 stage1.blocks.0.branch.norm1 stage1.blocks.0.branch.conv2 stage1.blocks.0.branch.norm2
stage1.blocks.0.branch.conv3 stage1.blocks.0.branch.norm3 stage1.blocks.0.shortcut.conv stage1.blocks.0.shortcut.norm
stage2.blocks.0.branch.conv1 stage2.blocks.0.branch.norm1 stage2.blocks.0.branch.conv2 stage2.blocks.0.branch.norm2
stage2.blocks.0.branch.conv3 stage2.blocks.0.branch.norm3 stage2.blocks.0.shortcut.conv stage2.blocks.0.shortcut.norm
stage2.blocks.1.branch.conv1 stage2.blocks.1.branch.norm1 stage2.blocks.1.branch.conv2 stage2.blocks.1.branch.norm2
stage2.blocks.1.branch.conv3 stage2.blocks.1.branch.norm3
head.dense
"""
_OF_V2 = """
stem.conv
stage1.blocks.0.before.norm stage1.blocks.0.branch.conv1 stage1.blocks.0.branch.norm2 stage1.blocks.0.branch.conv2
stage2.blocks.0.before.norm stage2.blocks.0.branch.conv1 stage2.blocks.0.branch.norm2 stage2.blocks.0.branch.conv2
stage2.blocks.0.shortcut.conv
stage2.blocks.1.before.norm stage2.blocks.1.branch.conv1 stage2.blocks.1.branch.norm2 stage2.blocks.1.branch.conv2
norm.norm head.dense
"""

KUANGLIU = """
conv1 bn1 layer1.0.conv1 layer1.0.bn1 layer1.0.conv2 layer1.0.bn2
layer2.0.conv1 layer2.0.bn1 layer2.0.conv2 layer2.0.bn2 layer2.0.shortcut.0 layer2.0.shortcut.1
layer2.1.conv1 layer2.1.bn1 layer2.1.conv2 layer2.1.bn2 linear
"""
AKAMASTER = KUANGLIU.replace("layer2.0.shortcut.0 layer2.0.shortcut.1", "")
KUANGLIU_50 = """
conv1 bn1 layer1.0.conv1 layer1.0.bn1 layer1.0.conv2 layer1.0.bn2 layer1.0.conv3 layer1.0.bn3
layer1.0.shortcut.0 layer1.0.shortcut.1 layer2.0.conv1 layer2.0.bn1 layer2.0.conv2 layer2.0.bn2
layer2.0.conv3 layer2.0.bn3 layer2.0.shortcut.0 layer2.0.shortcut.1
layer2.1.conv1 layer2.1.bn1 layer2.1.conv2 layer2.1.bn2 layer2.1.conv3 layer2.1.bn3 linear
"""
WEIAICUNZAI = """
conv1.0 conv1.1 conv2_x.0.residual_function.0 conv2_x.0.residual_function.1
conv2_x.0.residual_function.3 conv2_x.0.residual_function.4
conv3_x.0.residual_function.0 conv3_x.0.residual_function.1 conv3_x.0.residual_function.3
conv3_x.0.residual_function.4 conv3_x.0.shortcut.0 conv3_x.0.shortcut.1
conv3_x.1.residual_function.0 conv3_x.1.residual_function.1 conv3_x.1.residual_function.3
conv3_x.1.residual_function.4 fc
"""
WEIAICUNZAI_50 = """
conv1.0 conv1.1 conv2_x.0.residual_function.0 conv2_x.0.residual_function.1 conv2_x.0.residual_function.3
conv2_x.0.residual_function.4 conv2_x.0.residual_function.6 conv2_x.0.residual_function.7
conv2_x.0.shortcut.0 conv2_x.0.shortcut.1
conv3_x.0.residual_function.0 conv3_x.0.residual_function.1 conv3_x.0.residual_function.3
conv3_x.0.residual_function.4 conv3_x.0.residual_function.6 conv3_x.0.residual_function.7
conv3_x.0.shortcut.0 conv3_x.0.shortcut.1
conv3_x.1.residual_function.0 conv3_x.1.residual_function.1 conv3_x.1.residual_function.3
conv3_x.1.residual_function.4 conv3_x.1.residual_function.6 conv3_x.1.residual_function.7 fc
"""
PYTORCHCV = """
features.init_block.conv.conv features.init_block.conv.bn
features.stage1.unit1.body.conv1.conv features.stage1.unit1.body.conv1.bn
features.stage1.unit1.body.conv2.conv features.stage1.unit1.body.conv2.bn
features.stage2.unit1.body.conv1.conv features.stage2.unit1.body.conv1.bn
features.stage2.unit1.body.conv2.conv features.stage2.unit1.body.conv2.bn
features.stage2.unit1.identity_conv.conv features.stage2.unit1.identity_conv.bn
features.stage2.unit2.body.conv1.conv features.stage2.unit2.body.conv1.bn
features.stage2.unit2.body.conv2.conv features.stage2.unit2.body.conv2.bn output
"""
PYTORCHCV_CIFAR = PYTORCHCV.replace("init_block.conv.", "init_block.")
PYTORCHCV_50 = """
features.init_block.conv.conv features.init_block.conv.bn
features.stage1.unit1.body.conv1.conv features.stage1.unit1.body.conv1.bn
features.stage1.unit1.body.conv2.conv features.stage1.unit1.body.conv2.bn
features.stage1.unit1.body.conv3.conv features.stage1.unit1.body.conv3.bn
features.stage1.unit1.identity_conv.conv features.stage1.unit1.identity_conv.bn
features.stage2.unit1.body.conv1.conv features.stage2.unit1.body.conv1.bn
features.stage2.unit1.body.conv2.conv features.stage2.unit1.body.conv2.bn
features.stage2.unit1.body.conv3.conv features.stage2.unit1.body.conv3.bn
features.stage2.unit1.identity_conv.conv features.stage2.unit1.identity_conv.bn
features.stage2.unit2.body.conv1.conv features.stage2.unit2.body.conv1.bn
features.stage2.unit2.body.conv2.conv features.stage2.unit2.body.conv2.bn
features.stage2.unit2.body.conv3.conv features.stage2.unit2.body.conv3.bn output
"""
PYTORCHCV_CIFAR_V2 = """
features.init_block features.stage1.unit1.body.conv1.bn features.stage1.unit1.body.conv1.conv
features.stage1.unit1.body.conv2.bn features.stage1.unit1.body.conv2.conv
features.stage2.unit1.body.conv1.bn features.stage2.unit1.body.conv1.conv
features.stage2.unit1.body.conv2.bn features.stage2.unit1.body.conv2.conv features.stage2.unit1.identity_conv
features.stage2.unit2.body.conv1.bn features.stage2.unit2.body.conv1.conv
features.stage2.unit2.body.conv2.bn features.stage2.unit2.body.conv2.conv features.post_activ.bn output
"""
PYTORCHCV_V2 = PYTORCHCV_CIFAR_V2.replace("features.init_block ", "features.init_block.conv features.init_block.bn ")
WRN = """
conv1 block1.layer.0.bn1 block1.layer.0.conv1 block1.layer.0.bn2 block1.layer.0.conv2
block2.layer.0.bn1 block2.layer.0.conv1 block2.layer.0.bn2 block2.layer.0.conv2 block2.layer.0.convShortcut
block2.layer.1.bn1 block2.layer.1.conv1 block2.layer.1.bn2 block2.layer.1.conv2 bn1 fc
"""
DETECTRON2 = """
stem.conv1 stem.conv1.norm res2.0.conv1 res2.0.conv1.norm res2.0.conv2 res2.0.conv2.norm
res2.0.conv3 res2.0.conv3.norm res2.0.shortcut res2.0.shortcut.norm
res3.0.conv1 res3.0.conv1.norm res3.0.conv2 res3.0.conv2.norm res3.0.conv3 res3.0.conv3.norm
res3.0.shortcut res3.0.shortcut.norm
res3.1.conv1 res3.1.conv1.norm res3.1.conv2 res3.1.conv2.norm res3.1.conv3 res3.1.conv3.norm linear
"""
NVIDIA = """
conv1 bn1 layers.0.0.conv1 layers.0.0.bn1 layers.0.0.conv2 layers.0.0.bn2 layers.0.0.conv3 layers.0.0.bn3
layers.0.0.downsample.0 layers.0.0.downsample.1
layers.1.0.conv1 layers.1.0.bn1 layers.1.0.conv2 layers.1.0.bn2 layers.1.0.conv3 layers.1.0.bn3
layers.1.0.downsample.0 layers.1.0.downsample.1
layers.1.1.conv1 layers.1.1.bn1 layers.1.1.conv2 layers.1.1.bn2 layers.1.1.conv3 layers.1.1.bn3 fc
"""
CHILDREN = """
0 1 4.0.conv1 4.0.bn1 4.0.conv2 4.0.bn2
5.0.conv1 5.0.bn1 5.0.conv2 5.0.bn2 5.0.downsample.0 5.0.downsample.1
5.1.conv1 5.1.bn1 5.1.conv2 5.1.bn2 9
"""
TRANSFORMERS_MODEL = """
embedder.embedder.convolution embedder.embedder.normalization
encoder.stages.0.layers.0.layer.0.convolution encoder.stages.0.layers.0.layer.0.normalization
encoder.stages.0.layers.0.layer.1.convolution encoder.stages.0.layers.0.layer.1.normalization
encoder.stages.1.layers.0.layer.0.convolution encoder.stages.1.layers.0.layer.0.normalization
encoder.stages.1.layers.0.layer.1.convolution encoder.stages.1.layers.0.layer.1.normalization
encoder.stages.1.layers.0.shortcut.convolution encoder.stages.1.layers.0.shortcut.normalization
encoder.stages.1.layers.1.layer.0.convolution encoder.stages.1.layers.1.layer.0.normalization
encoder.stages.1.layers.1.layer.1.convolution encoder.stages.1.layers.1.layer.1.normalization
classifier.1
"""
_LAYERS = {"basic": _OF_BASIC, "A": _OF_OPTION_A, "bottleneck": _OF_BOTTLENECK, "preact_basic": _OF_V2}


# --- networks and files --------------------------------------------------------------------------------------------


def network(fields: Mapping[str, Any], seed: int = 0) -> ResNet:
    """Return a network with random parameters and statistics, for which any exchange of arrays shows."""
    return nnx.clone(_built(tuple(fields.items()), seed))


@functools.cache
def _built(fields: tuple[tuple[str, Any], ...], seed: int) -> ResNet:
    net = ResNet(ResNetSpec(**dict(fields)), rngs=nnx.Rngs(seed))
    generator = np.random.default_rng(seed)
    for _, node in nnx.iter_graph(net):
        if isinstance(node, nnx.Param | nnx.BatchStat):
            shape = node.get_value().shape
            fans = np.sqrt(np.prod(shape[:-1])) if len(shape) > 1 else 1
            low = -1.0 if len(shape) > 1 else 0.5
            node.set_value(jnp.asarray(generator.uniform(low, 1.5, shape) / fans, "float32"))
    return net


def leaves(net: ResNet, *, head: bool) -> Arrays:
    """Return the arrays of a network by path, with or without those of the last layer."""
    return {
        "/".join(map(str, path)): np.asarray(node.get_value())
        for path, node in nnx.iter_graph(net)
        if isinstance(node, nnx.Param | nnx.BatchStat) and (head or path[0] != "head")
    }


def listed(net: ResNet, names: str) -> Arrays:
    """Return the arrays of a network with the names of a list and the layouts of PyTorch."""
    layers = _LAYERS["A" if net.spec.shortcut == "A" else net.spec.block.removesuffix("_v1")].split()
    if net.spec.block == "preact_basic" and net.spec.stem == "imagenet":
        layers.insert(1, "stem.norm")
    found: Arrays = {}
    for layer, name in zip(layers, names.split(), strict=True):
        part: Any = net
        for key in layer.split("."):
            part = part[int(key)] if key.isdecimal() else getattr(part, key)
        if hasattr(part, "kernel"):
            kernel = np.asarray(part.kernel[...])
            found[f"{name}.weight"] = kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T
        else:
            found[f"{name}.weight"] = np.asarray(part.scale[...])
            found[f"{name}.running_mean"] = np.asarray(part.mean[...])
            found[f"{name}.running_var"] = np.asarray(part.var[...])
            found[f"{name}.num_batches_tracked"] = np.asarray(7)
        if getattr(part, "bias", None) is not None:
            found[f"{name}.bias"] = np.asarray(part.bias[...])
    return found


def contiguous(arrays: Arrays) -> Arrays:
    """Return copies in the order of C; safetensors writes the memory of an array as it is."""
    return {name: np.array(value, order="C") for name, value in arrays.items()}


def renamed(arrays: Arrays, *pairs: tuple[str, str], before: str = "", drop: str = "") -> Arrays:
    """Return arrays under other names; `drop` is the beginning of the names of a last layer that the file lacks."""
    found = {}
    for name, value in arrays.items():
        if not drop or not name.startswith(drop):
            for old, new in pairs:
                name = new + name.removeprefix(old) if name.startswith(old) else name
            found[before + name] = value
    return found


def noise(*names: str) -> Arrays:
    """Return arrays of other parts of a file."""
    return {name: np.ones((2, 2), "f4") for name in names}


def torch_file(value: Mapping[str, Any]) -> bytes:
    """Return a file as torch.save writes it, of nested dicts of arrays."""
    members: dict[str, bytes] = {}

    def described(entry: Any) -> Any:
        if isinstance(entry, Mapping):
            return {key: described(part) for key, part in entry.items()}
        if not isinstance(entry, np.ndarray):
            return entry
        key, kind = str(len(members)), "FloatStorage" if entry.dtype == np.float32 else "LongStorage"
        members[key] = np.ascontiguousarray(entry).tobytes()
        strides = tuple(np.array(np.ascontiguousarray(entry).strides) // entry.itemsize) if entry.ndim else ()
        storage = Storage(kind, key, entry.size)
        rebuild = Named("torch._utils", "_rebuild_tensor_v2")
        return Called(rebuild, storage, 0, tuple(map(int, entry.shape)), tuple(map(int, strides)), False, {})

    content = pickled(described(value))
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        for key, data in members.items():
            archive.writestr(f"archive/data/{key}", data)
    return stream.getvalue()


def npz(arrays: Arrays) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def nested(arrays: Arrays) -> dict[str, Any]:
    """Return nested dicts of arrays whose names have slashes."""
    tree: dict[str, Any] = {}
    for name, value in arrays.items():
        *parts, last = name.split("/")
        place = tree
        for part in parts:
            place = place.setdefault(part, {})
        place[last] = value
    return tree


def flax_transformers(net: ResNet) -> bytes:
    """Return the msgpack file of FlaxResNetForImageClassification."""
    tree: dict[str, dict[str, np.ndarray]] = {"params": {}, "batch_stats": {}}
    layers, names = _OF_BASIC.split(), TRANSFORMERS_MODEL.split()
    if net.spec.block == "bottleneck":
        torch_names = listed_transformers_50()
        layers, names = _OF_BOTTLENECK.split(), torch_names
    for layer, name in zip(layers, names, strict=True):
        part: Any = net
        for key in layer.split("."):
            part = part[int(key)] if key.isdecimal() else getattr(part, key)
        place = name.replace(".", "/") if name.startswith("classifier") else "resnet/" + name.replace(".", "/")
        for leaf in ("kernel", "scale", "bias", "mean", "var"):
            if getattr(part, leaf, None) is not None:
                kind = "batch_stats" if leaf in ("mean", "var") else "params"
                tree[kind][f"{place}/{leaf}"] = np.asarray(getattr(part, leaf)[...])
    return serialization.to_bytes({kind: nested(arrays) for kind, arrays in tree.items()})


def listed_transformers_50() -> list[str]:
    """Return the names of transformers' ResNetModel with bottleneck blocks, in the order of `_OF_BOTTLENECK`."""
    names = ["embedder.embedder.convolution", "embedder.embedder.normalization"]
    for stage, depth in enumerate((1, 2)):
        for block in range(depth):
            before = f"encoder.stages.{stage}.layers.{block}"
            names += [f"{before}.layer.{i}.{kind}" for i in range(3) for kind in ("convolution", "normalization")]
            names += [f"{before}.shortcut.{kind}" for kind in ("convolution", "normalization") if block == 0]
    return [*names, "classifier.1"]


def keras_arrays(net: ResNet) -> dict[str, list[np.ndarray]]:
    """Return the arrays of each layer of keras.applications, in Keras's order; the biases are zero."""
    names = ["conv1"]
    for stage, depth in enumerate(net.spec.depths, start=2):
        for block in range(1, depth + 1):
            names += [f"conv{stage}_block{block}_{i}" for i in (1, 2, 3)] + [f"conv{stage}_block{block}_0"] * (
                block == 1
            )
    layers = [layer for layer in _OF_BOTTLENECK.split() if layer != "head.dense"]
    found: dict[str, list[np.ndarray]] = {}
    for name, conv, norm in zip(names, layers[::2], layers[1::2], strict=True):
        parts = []
        for layer in (conv, norm):
            part: Any = net
            for key in layer.split("."):
                part = part[int(key)] if key.isdecimal() else getattr(part, key)
            parts.append(part)
        kernel = np.asarray(parts[0].kernel[...])
        found[f"{name}_conv"] = [kernel, np.zeros(kernel.shape[-1], "f4")]
        scale, bias, mean, var = (np.asarray(getattr(parts[1], leaf)[...]) for leaf in ("scale", "bias", "mean", "var"))
        found[f"{name}_bn"] = [scale, bias, mean, (var.astype("f8") + 1e-5 - 1.001e-5).astype("f4")]
    found["predictions"] = [np.asarray(net.head.dense.kernel[...]), np.asarray(net.head.dense.bias[...])]
    return found


_KERAS_LEAVES = {"conv": ("kernel", "bias"), "bn": ("gamma", "beta", "moving_mean", "moving_variance")}


def keras_h5(net: ResNet, *, inner: str = "", suffix: str = ":0") -> bytes:
    """Return an `.h5` file of Keras; `inner` is the name of a model inside the model, with all layers but the last."""
    import h5py

    stream, arrays = io.BytesIO(), keras_arrays(net)
    with h5py.File(stream, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in ([inner, "predictions"] if inner else arrays)]
        for layer, values in arrays.items():
            leaves_of = _KERAS_LEAVES.get(layer.rpartition("_")[2], ("kernel", "bias"))
            outer = inner if inner and layer != "predictions" else layer
            for leaf, value in zip(leaves_of, values, strict=True):
                file.create_dataset(f"{outer}/{layer}/{leaf}{suffix}", data=value)
    return stream.getvalue()


def keras_weights_h5(net: ResNet, *, inner: str = "") -> bytes:
    """Return a `.weights.h5` file of Keras 3: numbered arrays, with the name of each layer as an attribute."""
    import h5py

    stream, counts = io.BytesIO(), dict[str, int]()
    with h5py.File(stream, "w") as file:
        root = file.create_group("layers")
        if inner:
            root.create_group("functional/vars").attrs["name"] = inner
        for layer, values in keras_arrays(net).items():
            kind = {"conv": "conv2d", "bn": "batch_normalization"}.get(layer.rpartition("_")[2], "dense")
            count = counts[kind] = counts.get(kind, -1) + 1
            place = "functional/layers/" if inner and kind != "dense" else ""
            group = root.create_group(f"{place}{kind}{f'_{count}' if count else ''}/vars")
            group.attrs["name"] = layer
            for i, value in enumerate(values):
                group.create_dataset(str(i), data=value)
        file.create_group("optimizer/vars").create_dataset("0", data=np.zeros(3))
    return stream.getvalue()


def keras_file(net: ResNet) -> bytes:
    """Return a `.keras` file."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", keras_weights_h5(net))
    return stream.getvalue()


# --- the attempts --------------------------------------------------------------------------------------------------


class Attempt(NamedTuple):
    """One file and one network.

    Attributes:
        file: a function of the network that returns the arrays, or the bytes of a file.
        fields: of the network.
        refused: a pattern of the error; empty if the file loads.
        options: arguments of `resfit.weights.load` for a file that loads.
        name: of the file.
        origin: fields of the network of the file that differ from `fields`.
        config: the `config.json` beside the file.
    """

    file: Callable[[ResNet], Arrays | bytes]
    fields: Mapping[str, Any] = BASIC
    refused: str = ""
    options: Mapping[str, Any] = {}
    name: str = "model.pth"
    origin: Mapping[str, Any] = {}
    config: Mapping[str, Any] | None = None


def _plain(net: ResNet) -> Arrays:
    return weights.state_dict(net)


def _of(names: str) -> Callable[[ResNet], Arrays]:
    return lambda net: listed(net, names)


def _backbone(before: str, *others: str) -> Callable[[ResNet], Arrays]:
    """Return a function that makes the file of a backbone without its last layer, beside other parts."""
    return lambda net: renamed(_plain(net), before=before, drop="fc.") | noise(*others)


def _two(net: ResNet, first: str, second: str, *others: str) -> Arrays:
    """Return the arrays of a network and of another one of the same kind."""
    other = {name: value + np.float32(0.1) for name, value in _plain(net).items()}
    return renamed(_plain(net), before=first, drop="fc.") | renamed(other, before=second, drop="fc.") | noise(*others)


def _with_mean(net: ResNet, *names: str) -> Arrays:
    return _plain(net) | noise(*names)


RESET = {"head": "reset"}
PROJECTING = {"stem": "cifar", "shortcut": "B", "block": "basic"}
RESNEXT = BOTTLENECK | {"widths": (16, 32), "groups": 2, "width_per_group": 32}
DEEP = BASIC | {"stem": "deep", "shortcut": "D", "widths": (8, 16)}
SEGMENTING = BASIC | {"depths": (1, 1, 1, 1), "widths": (4, 8, 8, 8), "output_stride": 8, "block": "bottleneck"}
POOLED = FOUR | {"stem": "cifar_pool"}
_SEG = ("classifier.0.convs.0.0.weight", "aux_classifier.0.weight")


def _mmpretrain_deep(net: ResNet) -> Arrays:
    stem = [(f"conv1.{3 * i}.", f"stem.{i}.conv.") for i in range(3)]
    norms = [("conv1.1.", "stem.0.bn."), ("conv1.4.", "stem.1.bn."), ("bn1.", "stem.2.bn.")]
    return renamed(_plain(net), *stem, *norms, ("fc.", "head.fc."), before="backbone.") | {}


def _mm_head(arrays: Arrays) -> Arrays:
    return {name.replace("backbone.head.", "head."): value for name, value in arrays.items()}


def _se_of_pytorchcv(net: ResNet) -> Arrays:
    found, plain = listed(net, PYTORCHCV), _plain(net)
    for stage, block in ((1, 0), (2, 0), (2, 1)):
        for i, leaf in ((1, "weight"), (1, "bias"), (2, "weight"), (2, "bias")):
            theirs = f"features.stage{stage}.unit{block + 1}.se.conv{i}.{leaf}"
            found[theirs] = plain[f"layer{stage}.{block}.se.fc{i}.{leaf}"]
    return found


def _preact_of_kuangliu(net: ResNet) -> Arrays:
    names = KUANGLIU.replace("conv1 bn1 layer1", "conv1 bn1 layer1")
    return {
        name: value
        for name, value in listed(net, names).items()
        if not name.startswith(("bn1.", "layer2.0.shortcut.1."))
    }


def _preresnet_of_bearpaw(net: ResNet) -> Arrays:
    arrays = {name: value for name, value in _plain(net).items() if ".downsample.1." not in name}
    return renamed(arrays, ("bn1.", "bn."))


ATTEMPTS: dict[str, Attempt] = {
    # torchvision, timm, transformers
    "torchvision, basic": Attempt(lambda net: torch_file(_plain(net))),
    "torchvision, bottleneck": Attempt(_plain, BOTTLENECK),
    "torchvision, ResNeXt": Attempt(_plain, RESNEXT),
    "torchvision, published as v1.5, into v1": Attempt(_plain, V1, "block='bottleneck'", name="resnet50-0676ba61.pth"),
    "timm, D": Attempt(_plain, DEEP),
    "timm, SE": Attempt(_plain, BASIC | {"squeeze": 1 / 4}),
    "timm, v2": Attempt(_plain, BASIC | {"block": "preact_bottleneck", "stem": "imagenet_conv", "shortcut": "conv"}),
    "timm, group norm": Attempt(_plain, BASIC | {"norm": "group"}),
    "timm, blurred, described": Attempt(
        _plain, BOTTLENECK | {"antialias": "blur"}, name="model.safetensors",
        config={"architecture": "resnetblur50", "pretrained_cfg": {}},
    ),
    "timm, blurred, into a plain network": Attempt(
        _plain, BOTTLENECK, "antialias='blur'", name="model.safetensors",
        config={"architecture": "resnetblur50", "pretrained_cfg": {}},
    ),
    "timm, BiT": Attempt(
        _plain, BOTTLENECK, "resnetv2_50x1_bit", name="model.safetensors",
        config={"architecture": "resnetv2_50x1_bit", "pretrained_cfg": {}},
    ),
    "timm, wrapped by Lightning": Attempt(
        lambda net: torch_file({"state_dict": renamed(_plain(net), before="model."), "epoch": 3, "hparams": {}})
    ),
    "transformers": Attempt(lambda net: weights.state_dict(net, naming="transformers")),
    "transformers, without the classifier": Attempt(
        lambda net: renamed(listed(net, TRANSFORMERS_MODEL), drop="classifier"), options=RESET
    ),
    "transformers, SiLU": Attempt(
        lambda net: weights.state_dict(net, naming="transformers"), BASIC, "hidden_act='silu'",
        name="model.safetensors", config={"model_type": "resnet", "hidden_act": "silu"},
    ),
    "transformers, an early step": Attempt(
        lambda net: weights.state_dict(net, naming="transformers"), BASIC, "downsample_in_first_stage",
        name="model.safetensors", config={"model_type": "resnet", "downsample_in_first_stage": True},
    ),
    "transformers, Flax": Attempt(flax_transformers, BOTTLENECK, name="flax_model.msgpack"),
    # Keras
    "keras, .h5": Attempt(keras_h5, V1, name="a.h5"),
    "keras, .h5 of Keras 3": Attempt(lambda net: keras_h5(net, suffix=""), V1, name="a.h5"),
    "keras, .weights.h5": Attempt(keras_weights_h5, V1, name="a.weights.h5"),
    "keras, .keras": Attempt(keras_file, V1, name="a.keras"),
    "keras, a model inside a model, .h5": Attempt(lambda net: keras_h5(net, inner="resnet50"), V1, name="a.h5"),
    "keras, a model inside a model, .weights.h5": Attempt(
        lambda net: keras_weights_h5(net, inner="resnet50"), V1, name="a.weights.h5"
    ),
    "keras, into v1.5": Attempt(keras_h5, BOTTLENECK, "stride in the first 1x1", name="a.h5"),
    # networks for small images
    "chenyaofo and bearpaw, ResNet": Attempt(_plain, CIFAR),
    "akamaster, option A": Attempt(
        lambda net: torch_file({"state_dict": renamed(listed(net, AKAMASTER), before="module."), "best_prec1": 9.0}),
        CIFAR | {"shortcut": "A"}, name="resnet20-12fca82f.th",
    ),
    "akamaster, option A, into option B": Attempt(_of(AKAMASTER), CIFAR, "shortcut", origin={"shortcut": "A"}),
    "akamaster, option B": Attempt(_of(KUANGLIU), CIFAR),
    "kuangliu": Attempt(lambda net: torch_file({"net": renamed(listed(net, KUANGLIU), before="module.")}), CIFAR),
    "kuangliu, bottleneck": Attempt(_of(KUANGLIU_50), BOTTLENECK | {"stem": "cifar"}),
    "kuangliu, into v1": Attempt(_of(KUANGLIU_50), V1 | {"stem": "cifar"}, "stride in the 3x3"),
    "kuangliu, into a stem with a pool": Attempt(
        _of(KUANGLIU), BASIC | {"stem": "cifar_pool"}, "Expected stem='cifar'"
    ),
    "kuangliu, PreActResNet": Attempt(_preact_of_kuangliu, V2, "no norm after its last block", origin=PROJECTING),
    "bearpaw, PreResNet": Attempt(_preresnet_of_bearpaw, V2, "project the input before its norm", origin=PROJECTING),
    "weiaicunzai": Attempt(_of(WEIAICUNZAI), CIFAR),
    "weiaicunzai, bottleneck": Attempt(_of(WEIAICUNZAI_50), BOTTLENECK | {"stem": "cifar"}),
    "WRN of xternalz and bearpaw": Attempt(
        lambda net: torch_file({"state_dict": renamed(listed(net, WRN), before="module.")}), V2
    ),
    "huyvnphan": Attempt(lambda net: torch_file(_plain(net)), POOLED, name="resnet18.pt"),
    "pytorchcv, CIFAR": Attempt(_of(PYTORCHCV_CIFAR), CIFAR),
    "pytorchcv, pre-activated, CIFAR": Attempt(_of(PYTORCHCV_CIFAR_V2), V2),
    # pytorchcv for ImageNet
    "pytorchcv": Attempt(_of(PYTORCHCV)),
    "pytorchcv, resnet50 by its name": Attempt(_of(PYTORCHCV_50), V1, name="resnet50-0604-728800bf.pth"),
    "pytorchcv, resnet50b by its name": Attempt(_of(PYTORCHCV_50), BOTTLENECK, name="resnet50b-0611-ca9ae5f4.pth"),
    "pytorchcv, resnet50 by its name, into v1.5": Attempt(
        _of(PYTORCHCV_50), BOTTLENECK, "resnet50_v1", name="resnet50-0604-728800bf.pth"
    ),
    "pytorchcv, bottleneck without its name": Attempt(_of(PYTORCHCV_50), BOTTLENECK, "pass naming='pytorchcv'"),
    "pytorchcv, bottleneck, named by the user": Attempt(
        _of(PYTORCHCV_50), BOTTLENECK, options={"naming": "pytorchcv"}
    ),
    "pytorchcv, SE": Attempt(_se_of_pytorchcv, BASIC | {"squeeze": 1 / 4}),
    "pytorchcv, preresnet50 by its name": Attempt(
        _of(PYTORCHCV_V2), V2 | {"stem": "imagenet"}, "first convolution", name="preresnet50-0625-208605ae.pth"
    ),
    "pytorchcv, pre-activated": Attempt(_of(PYTORCHCV_V2), V2 | {"stem": "imagenet"}),
    # networks for ImageNet under other names
    "mmpretrain": Attempt(lambda net: _mm_head(renamed(_plain(net), ("fc.", "head.fc."), before="backbone."))),
    "mmpretrain, V1d": Attempt(lambda net: _mm_head(_mmpretrain_deep(net)), DEEP),
    "NVIDIA": Attempt(_of(NVIDIA), BOTTLENECK),
    "torchreid": Attempt(lambda net: renamed(_plain(net), ("fc.", "classifier."))),
    "torchreid, fc512": Attempt(
        lambda net: renamed(_plain(net), ("fc.", "classifier.")) | noise("fc.0.weight", "fc.1.weight"),
        BASIC, "head='reset'",
    ),
    "pretrained-models of Cadene": Attempt(lambda net: renamed(_plain(net), ("fc.", "last_linear."))),
    "SE-ResNet of Cadene": Attempt(lambda net: weights.state_dict(net, naming="timm_senet"), LEGACY),
    "SE-ResNet of Cadene, into another": Attempt(
        lambda net: renamed(_plain(net), ("conv1.", "layer0.conv1."), ("bn1.", "layer0.bn1.")), BOTTLENECK,
        "Caffe's max pool",
    ),
    "fastai, body": Attempt(
        lambda net: renamed(listed(net, CHILDREN), before="0.", drop="9.") | noise("1.2.weight", "1.4.weight"),
        options=RESET,
    ),
    "children in an nn.Sequential": Attempt(_of(CHILDREN)),
    "detectron2": Attempt(_of(DETECTRON2), V1),
    "detectron2, into v1.5": Attempt(_of(DETECTRON2), BOTTLENECK, "STRIDE_IN_1X1"),
    "detectron2, a detector": Attempt(
        lambda net: renamed(listed(net, DETECTRON2), before="backbone.bottom_up.", drop="linear")
        | noise("backbone.fpn_lateral2.weight", "roi_heads.box_head.fc1.weight"), V1, options=RESET,
    ),
    # self-supervised backbones
    "MoCo v2": Attempt(
        lambda net: torch_file({"state_dict": _two(
            net, "module.encoder_q.", "module.encoder_k.", "module.encoder_q.fc.0.weight", "module.queue"
        ), "arch": "resnet50"}),
        options={"prefix": "module.encoder_q."} | RESET,
    ),
    "MoCo v2, without a choice": Attempt(
        lambda net: _two(net, "module.encoder_q.", "module.encoder_k.", "module.queue"), BASIC,
        r"contains 2 networks.*prefix='module\.encoder_q\.'",
    ),
    "MoCo v3": Attempt(
        lambda net: _two(net, "module.base_encoder.", "module.momentum_encoder.", "module.predictor.0.weight"),
        options={"prefix": "module.base_encoder."} | RESET,
    ),
    "SimSiam": Attempt(
        _backbone("module.encoder.", "module.encoder.fc.0.weight", "module.encoder.fc.6.bias", "module.predictor.0.b"),
        options=RESET,
    ),
    "SwAV": Attempt(
        _backbone("module.", "module.projection_head.0.weight", "module.prototypes.weight"),
        options={"ignore": ("projection_head", "prototypes")} | RESET,
    ),
    "SwAV, without ignore=": Attempt(
        _backbone("module.", "module.projection_head.0.weight", "module.prototypes.weight"), BASIC,
        r"head='reset', ignore=\('projection_head', 'prototypes'\)",
    ),
    "SupContrast": Attempt(
        lambda net: torch_file({"model": renamed(listed(net, KUANGLIU), before="encoder.module.", drop="linear")
                                | noise("head.0.weight", "head.2.weight")}),
        CIFAR, options=RESET,
    ),
    "solo-learn": Attempt(
        lambda net: torch_file({"state_dict": _backbone("backbone.", "projector.0.weight", "classifier.weight")(net)}),
        options=RESET,
    ),
    "MMSelfSup": Attempt(_backbone("backbone.", "neck.fc0.weight", "head.loss.weight"), options=RESET),
    "DINO, backbone": Attempt(_backbone(""), options=RESET),
    "DINO, the teacher of a checkpoint": Attempt(
        lambda net: torch_file({
            "student": _backbone("module.backbone.")(network(BASIC, seed=2)),
            "teacher": _backbone("backbone.", "head.mlp.0.weight", "head.last_layer.weight_g")(net),
        }),
        options={"key": "teacher"} | RESET,
    ),
    "DINO, a checkpoint without key=": Attempt(
        lambda net: torch_file({"student": _plain(net), "teacher": _plain(net)}), BASIC, r"key='student'.*'teacher'",
    ),
    "VICReg and Barlow Twins, backbone": Attempt(_backbone(""), BOTTLENECK, options=RESET),
    "VICReg, a checkpoint": Attempt(
        lambda net: torch_file({"model": _backbone("module.backbone.", "module.projector.0.weight")(net)}),
        options=RESET,
    ),
    "MadryLab, two copies of one network": Attempt(
        lambda net: torch_file({"model": renamed(_plain(net), before="module.model.")
                                | renamed(_plain(net), before="module.attacker.model.")
                                | noise("module.normalizer.new_mean", "module.attacker.normalize.new_std")}),
    ),
    # other tasks
    "deeplabv3 of torchvision": Attempt(_backbone("backbone.", *_SEG), SEGMENTING, options=RESET),
    "deeplabv3 of torchvision, without dilation": Attempt(
        _backbone("backbone.", *_SEG), SEGMENTING | {"output_stride": None}, "Expected output_stride=8"
    ),
    "Faster R-CNN of torchvision": Attempt(
        _backbone("backbone.body.", "backbone.fpn.inner_blocks.0.0.weight", "rpn.head.conv.0.0.weight"), BOTTLENECK,
        options=RESET,
    ),
    "CLIP": Attempt(_backbone("visual.", "visual.attnpool.q_proj.weight"), BASIC, "attention layer"),
    # JAX
    "npz with the names of torchvision": Attempt(lambda net: npz(_plain(net)), name="a.npz"),
    "Flax's ImageNet example": Attempt(
        lambda net: serialization.to_bytes({"params": {"conv_init": {"kernel": np.ones((7, 7, 3, 4), "f4")},
                                                       "ResNetBlock_0": {"Conv_0": {"kernel": np.ones((3, 3, 4))}}}}),
        BASIC, "pads strided convolutions by 'SAME'", name="a.msgpack",
    ),
    "BiT, npz": Attempt(
        lambda net: npz({"resnet/root_block/standardized_conv2d/kernel": np.ones((7, 7, 3, 4), "f4")}),
        BASIC, "Big Transfer's own files", name="BiT-M-R50x1.npz",
    ),
    "Haiku": Attempt(
        lambda net: npz({"res_net50/~/initial_conv/w": np.ones((7, 7, 3, 4), "f4")}), BASIC, "Haiku", name="a.npz"
    ),
}  # fmt: skip


def written(attempt: Attempt, folder: Path) -> tuple[Path, ResNet]:
    """Write the file of an attempt; return its path and the network of the file."""
    source = network({**attempt.fields, **attempt.origin})
    content = attempt.file(source)
    path = folder / attempt.name
    path.write_bytes(content if isinstance(content, bytes) else safetensors.numpy.save(contiguous(content)))
    if attempt.config is not None:
        (folder / "config.json").write_text(json.dumps(attempt.config))
    return path, source


def outcome(attempt: Attempt, folder: Path) -> str:
    """Return `"right"`, `"wrong"`, or the error of the attempt."""
    path, source = written(attempt, folder)
    target = network(attempt.fields, seed=1)
    try:
        weights.load(target, path, **attempt.options)
    except WeightsError as error:
        return str(error)
    if isinstance(source.spec, ResNetSpec) and attempt.name.endswith(".th"):
        return "right"  # its channels are in another order: compared with NumPy in test_public_files.py
    head = "head" not in attempt.options
    ours, theirs = leaves(target, head=head), leaves(source, head=head)
    tolerance = 1e-6 if attempt.name.endswith(("h5", "keras")) else 0  # their epsilon is added to the variance
    same = all(np.allclose(ours[name], theirs[name], rtol=tolerance, atol=0) for name in theirs)
    return "right" if ours.keys() == theirs.keys() and same else "wrong"


def main() -> None:
    """Print the table of outcomes."""
    import tempfile

    counts = dict.fromkeys(("right", "refused with help", "wrong"), 0)
    for name, attempt in ATTEMPTS.items():
        with tempfile.TemporaryDirectory() as folder:
            found = outcome(attempt, Path(folder))
        kind = found if found in counts else "refused with help"
        counts[kind] += 1
        told = "" if kind == found else f": {' '.join(found.split())[:150]}"
        print(f"{name:50} {kind}{told}")
    print(counts, len(ATTEMPTS))


if __name__ == "__main__":
    main()
