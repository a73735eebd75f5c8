"""Files of public repositories load as the networks that they are, or raise with the remedy; never anything else."""

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

import resfit
from resfit import weights
from resfit.errors import WeightsError
from resfit.nets import ResNet
from resfit.weights.public_names import NAMINGS
from tests.packages import package
from tests.weights.public_files import (
    AKAMASTER,
    ATTEMPTS,
    BASIC,
    CIFAR,
    FOUR,
    KUANGLIU,
    RESET,
    V2,
    Arrays,
    contiguous,
    leaves,
    listed,
    network,
    noise,
    outcome,
    renamed,
    torch_file,
    written,
)

HDF5 = {name for name, attempt in ATTEMPTS.items() if attempt.name.endswith(("h5", "keras"))}


@pytest.mark.representatives(
    "transformers, Flax",
    "keras, .weights.h5",
    "kuangliu",
    "kuangliu, PreActResNet",
    "bearpaw, PreResNet",
    "WRN of xternalz and bearpaw",
    "pytorchcv, resnet50 by its name",
    "pytorchcv, bottleneck without its name",
    "mmpretrain",
    "fastai, body",
    "detectron2, into v1.5",
    "MoCo v2",
    "MoCo v2, without a choice",
    "SwAV, without ignore=",
    "DINO, the teacher of a checkpoint",
    "Flax's ImageNet example",
)
@pytest.mark.parametrize("name", ATTEMPTS)
def test_a_public_file_loads_rightly_or_raises_with_the_remedy(name: str, tmp_path: Path) -> None:
    """Every array of the network is that of the file, bit for bit, so the logits are equal too."""
    if name in HDF5:
        package("h5py")
    attempt = ATTEMPTS[name]
    found = outcome(attempt, tmp_path)
    if not attempt.refused:
        assert found == "right"
    else:
        assert re.search(attempt.refused, found, re.DOTALL), found
        assert len(found.splitlines()) <= 10


@pytest.mark.parametrize("name", ["SwAV, without ignore=", "MoCo v2, without a choice", "torchreid, fc512"])
def test_the_calls_in_errors_load_the_weights(name: str, tmp_path: Path) -> None:
    path, source = written(ATTEMPTS[name], tmp_path)
    target = network(ATTEMPTS[name].fields, seed=1)
    options: dict[str, Any] = {}
    for _ in range(2):  # the prefix is known after the first call, and the missing last layer after the second
        with pytest.raises(WeightsError) as raised:
            weights.load(target, path, **options)
        (arguments,) = re.findall(r"resfit\.weights\.load\(net, '[^']*', (.*?)\)\. ", f"{raised.value} ")
        options |= eval(f"dict({arguments})")
        if "head" in options:
            break
    weights.load(target, path, **options)
    assert same(target, source, head=False)


# --- NumPy originals -----------------------------------------------------------------------------------------------


def convolved(x: np.ndarray, kernel: np.ndarray, stride: int = 1) -> np.ndarray:
    """Return a convolution with PyTorch's kernel (out, in, height, width), in float64, with symmetric padding."""
    size = kernel.shape[2]
    half = size // 2
    padded = np.pad(x, ((0, 0), (half, half), (half, half), (0, 0))).astype("f8")
    places = [
        padded[:, i : i + x.shape[1] : stride, j : j + x.shape[2] : stride] @ kernel[:, :, i, j].T.astype("f8")
        for i in range(size)
        for j in range(size)
    ]
    return np.sum(places, axis=0)


def normed(x: np.ndarray, arrays: Arrays, name: str) -> np.ndarray:
    scale, bias, mean, var = (arrays[f"{name}.{leaf}"] for leaf in ("weight", "bias", "running_mean", "running_var"))
    return (x - mean) / np.sqrt(var + 1e-5) * scale + bias


def pooled(x: np.ndarray) -> np.ndarray:
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    height, width = x.shape[1:3]
    return np.max([padded[:, i : i + height : 2, j : j + width : 2] for i in range(3) for j in range(3)], axis=0)


def original(arrays: Arrays, x: np.ndarray, *, shortcut: str, head: str, pool: bool = False) -> np.ndarray:
    """Return the logits of a network of basic blocks with a 3x3 stem, by the names of its file."""
    x = np.maximum(normed(convolved(x, arrays["conv1.weight"]), arrays, "bn1"), 0)
    x = pooled(x) if pool else x
    for name in sorted({".".join(key.split(".")[:2]) for key in arrays if key.startswith("layer")}):
        stride = 2 if name.endswith(".0") and not name.startswith("layer1") else 1
        y = np.maximum(normed(convolved(x, arrays[f"{name}.conv1.weight"], stride), arrays, f"{name}.bn1"), 0)
        y = normed(convolved(y, arrays[f"{name}.conv2.weight"]), arrays, f"{name}.bn2")
        if f"{name}.{shortcut}.0.weight" in arrays:
            x = normed(convolved(x, arrays[f"{name}.{shortcut}.0.weight"], stride), arrays, f"{name}.{shortcut}.1")
        elif y.shape != x.shape:
            width = y.shape[3] // 4  # the option A of pytorch_resnet_cifar10: zeros before and after the channels
            x = np.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (width, width)))
        x = np.maximum(x + y, 0)
    return np.asarray(x.mean((1, 2)) @ arrays[f"{head}.weight"].T + arrays[f"{head}.bias"])


def close(net: ResNet, arrays: Arrays, **how: Any) -> bool:
    x = np.random.default_rng(0).normal(size=(1, 16, 16, 3)).astype("f4")
    wanted = original(arrays, x, **how)
    logits = np.asarray(nnx.jit(lambda net, x: net(x))(net, x))
    return bool(np.abs(logits - wanted).max() < 1e-4 * np.abs(wanted).max())


THREE = CIFAR | {"depths": (2, 1, 2), "widths": (4, 8, 16)}


def test_option_a_with_zeros_on_both_sides_is_the_same_network_with_other_channels() -> None:
    source = network(BASIC | THREE | {"shortcut": "A"})
    arrays = weights.state_dict(source)
    arrays = {name.replace("fc.", "linear."): value for name, value in arrays.items()}
    target = network(THREE | {"shortcut": "A"}, seed=1)
    weights.load_state_dict(target, arrays)
    assert close(target, arrays, shortcut="shortcut", head="linear")
    assert not close(source, arrays, shortcut="shortcut", head="linear")  # the order of the channels matters
    before = np.asarray(network(THREE | {"shortcut": "A"}, seed=1).head.dense.kernel[...])
    weights.load_state_dict(fresh := network(THREE | {"shortcut": "A"}, seed=1), arrays, head="reset")
    np.testing.assert_array_equal(fresh.head.dense.kernel[...], before)
    for stage in (1, 2, 3):
        ours, theirs = (getattr(net, f"stage{stage}").blocks[0].branch.conv1.kernel[...] for net in (fresh, target))
        np.testing.assert_array_equal(ours, theirs)


def test_networks_of_pytorch_cifar_give_the_logits_of_numpy() -> None:
    source, target = network(CIFAR), network(CIFAR, seed=1)
    arrays = listed(source, KUANGLIU)
    weights.load_state_dict(target, arrays)
    assert close(target, arrays, shortcut="shortcut", head="linear")


def test_a_3x3_stem_with_a_pool_gives_the_logits_of_numpy() -> None:
    arrays = weights.state_dict(network(CIFAR))
    target = network(BASIC | {"stem": "cifar_pool"}, seed=1)
    weights.load_state_dict(target, arrays)
    assert close(target, arrays, shortcut="downsample", head="fc", pool=True)


@pytest.mark.parametrize(
    ("name", "naming", "said"), [("a.pt", None, True), ("a.pt", "torchvision", False), ("a.safetensors", None, False)]
)
def test_a_pool_that_names_do_not_show_is_reported(
    name: str, naming: str | None, said: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    arrays = weights.state_dict(network(FOUR | {"stem": "cifar"}))
    content = torch_file(arrays) if name.endswith("pt") else safetensors.numpy.save(arrays)
    (tmp_path / name).write_bytes(content)
    with caplog.at_level(logging.WARNING, logger="resfit"):
        weights.load(network(FOUR | {"stem": "cifar"}), tmp_path / name, naming=naming)
    assert ("stem='cifar_pool'" in caplog.text) == said


def test_zeros_that_names_do_not_show_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file with the names of torchvision can be of either kind; naming= chooses."""
    source = network(THREE | {"shortcut": "A"})
    arrays = weights.state_dict(source)
    (tmp_path / "a.pth").write_bytes(torch_file(arrays))
    with caplog.at_level(logging.WARNING, logger="resfit"):
        weights.load(target := network(THREE | {"shortcut": "A"}, seed=1), tmp_path / "a.pth")
    assert "naming='akamaster'" in caplog.text
    assert same(target, source)
    caplog.clear()
    weights.load(target, tmp_path / "a.pth", naming="akamaster")
    assert "naming" not in caplog.text
    assert close(target, arrays, shortcut="shortcut", head="fc")


# --- arguments -----------------------------------------------------------------------------------------------------


def same(target: ResNet, source: ResNet, *, head: bool = True) -> bool:
    ours, theirs = leaves(target, head=head), leaves(source, head=head)
    return all(np.array_equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.replace("block", "layer").replace("project", "downsample"),
        {r"^block": "layer", r"\.project\.": ".downsample."},
    ],
    ids=["function", "patterns"],
)
def test_rename_maps_names_of_a_file_to_those_of_a_library(rename: Any) -> None:
    source, target = network(BASIC), network(BASIC, seed=1)
    arrays = {
        n.replace("layer", "block").replace("downsample", "project"): v for n, v in weights.state_dict(source).items()
    }
    with pytest.raises(WeightsError, match="does not fit"):
        weights.load_state_dict(target, arrays)
    weights.load_state_dict(target, arrays, rename=rename)
    assert same(target, source)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"rename": "layer"}, r"Received rename='layer'\. Expected a function"),
        ({"rename": {"(": "a"}}, r"which does not work: .*re\.escape"),
        ({"rename": {"a": 3}}, "which does not work"),
        ({"ignore": 3}, "Received ignore=3"),
        ({"ignore": ("a", 3)}, r"Received ignore=\('a', 3\)"),
    ],
)
def test_an_argument_of_another_type_raises(arguments: Any, says: str) -> None:
    with pytest.raises(WeightsError, match=says):
        weights.load_state_dict(network(BASIC), weights.state_dict(network(BASIC)), **arguments)


def test_names_that_are_no_texts_and_nested_dicts_raise() -> None:
    arrays = weights.state_dict(network(BASIC))
    with pytest.raises(WeightsError, match=r"has the names \[1\]"):
        weights.load_state_dict(network(BASIC), arrays | {1: np.ones(3)})  # type: ignore[operator]
    with pytest.raises(WeightsError, match=r"checkpoint\['state_dict'\]"):
        weights.load_state_dict(network(BASIC), {"state_dict": arrays, "epoch": 3})


@pytest.mark.parametrize("rename", [lambda _: "a", lambda _: None])
def test_a_rename_that_gives_no_new_names_raises(rename: Any) -> None:
    with pytest.raises(WeightsError, match=r"rename gave '.*' the name"):
        weights.load_state_dict(network(BASIC), weights.state_dict(network(BASIC)), rename=rename)


def test_a_prefix_chooses_one_of_two_networks() -> None:
    one, two = network(BASIC, seed=2), network(BASIC, seed=3)
    arrays = renamed(weights.state_dict(one), before="student.") | renamed(weights.state_dict(two), before="teacher.")
    target = network(BASIC)
    for prefix, source in (("student.", one), ("teacher.", two)):
        weights.load_state_dict(target, arrays, prefix=prefix)
        assert same(target, source)
    with pytest.raises(WeightsError, match=r"Received prefix='net\.', but no name"):
        weights.load_state_dict(target, arrays, prefix="net.")


@pytest.mark.parametrize("pattern", ["layer1.0.gate", "layer1*", "conv1", "layer2.0.downsample"])
def test_a_part_of_the_network_cannot_be_ignored(pattern: str) -> None:
    arrays = weights.state_dict(network(BASIC)) | noise("layer1.0.gate.weight")
    with pytest.raises(WeightsError, match="inside the stem or the blocks"):
        weights.load_state_dict(network(BASIC), arrays, ignore=pattern)


def test_a_shallower_network_is_not_the_network_with_other_parts() -> None:
    """All names of a ResNet-18 are in the file of a ResNet-34."""
    arrays = weights.state_dict(network(BASIC | {"depths": (2, 2, 2), "widths": (4, 8, 8)}))
    for ignore in ((), ("layer1.1", "layer3"), ("layer3",)):
        with pytest.raises(WeightsError, match=r"depths=\(2, 2, 2\)|inside the stem or the blocks") as found:
            weights.load_state_dict(network(BASIC), arrays, head="reset", ignore=ignore)
        assert "Call resfit" not in str(found.value)


def test_the_call_for_other_parts_leaves_out_a_layer_that_may_follow_them() -> None:
    arrays = weights.state_dict(network(BASIC)) | noise("neck.weight")
    with pytest.raises(WeightsError, match=r"head='reset' if .* Call .*, head='reset', ignore=\('neck',\)\)"):
        weights.load_state_dict(network(BASIC), arrays)


def test_ignored_parts_are_named_with_or_without_the_prefix() -> None:
    source, target = network(BASIC), network(BASIC, seed=1)
    arrays = renamed(weights.state_dict(source) | noise("aux.weight", "queue", "queue_ptr"), before="net.")
    for ignore in (("aux", "queue*"), ("net.aux.weight", "net.queue*")):
        target = network(BASIC, seed=1)
        weights.load_state_dict(target, arrays, ignore=ignore)
        assert same(target, source)
    with pytest.raises(WeightsError, match=r"\['neck'\] match no name"):
        weights.load_state_dict(target, arrays, ignore=("aux", "queue*", "neck"))


def test_a_layer_beside_a_backbone_is_not_its_head_if_something_else_is_there() -> None:
    """The features can go through that part before the layer."""
    arrays = renamed(weights.state_dict(network(BASIC)), before="backbone.", drop="fc.")
    head = {"classifier.weight": np.ones((3, 8), "f4"), "classifier.bias": np.ones(3, "f4")}
    target = network(BASIC, seed=1)
    with pytest.raises(WeightsError, match=r"missing: backbone\.fc\.weight"):
        weights.load_state_dict(target, arrays | head | noise("projector.weight"))
    weights.load_state_dict(target, arrays | head | noise("projector.weight"), ignore="projector")
    np.testing.assert_array_equal(target.head.dense.bias[...], np.ones(3))


@pytest.mark.parametrize("key", ["teacher", ("models", "teacher")])
def test_key_selects_an_entry_of_a_nested_file(key: Any, tmp_path: Path) -> None:
    from flax import serialization

    one, two = network(BASIC, seed=2), network(BASIC, seed=3)
    entries: Any = {"student": weights.state_dict(one), "teacher": weights.state_dict(two)}
    entries = entries if isinstance(key, str) else {"models": entries}
    for name, content in (("a.pth", torch_file(entries)), ("a.msgpack", serialization.to_bytes(entries))):
        (tmp_path / name).write_bytes(content)
        target = network(BASIC)
        weights.load(target, tmp_path / name, key=key)
        assert same(target, two)
        with pytest.raises(WeightsError, match=r"has no entry 'ema'.*Expected one of its entries: \['"):
            weights.read(tmp_path / name, key="ema")


def test_a_folder_is_named_with_its_files(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"is a folder, not a file.*'model\.safetensors'"):
        weights.read(tmp_path)


@pytest.mark.parametrize("content", [b"\x81\xa1a\x01", b"\x81\xa1a", b"\x81\xa1a\xc7\x01\x01\x93"])
def test_a_msgpack_file_without_arrays_raises(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.msgpack").write_bytes(content)
    with pytest.raises(WeightsError, match=r"contains no arrays|damaged msgpack"):
        weights.read(tmp_path / "a.msgpack")


def objects(stream: Any) -> None:
    np.savez(stream, a=np.array([{}], dtype=object))


def bomb(stream: Any) -> None:
    np.savez_compressed(stream, a=np.zeros(10**8, "u1"))


@pytest.mark.parametrize(("write", "says"), [(objects, "entries of object"), (bomb, "The file was not unpacked")])
def test_npz_files_with_objects_or_too_large_arrays_raise(write: Any, says: str, tmp_path: Path) -> None:
    with (tmp_path / "a.npz").open("wb") as stream:
        write(stream)
    with pytest.raises(WeightsError, match=says):
        weights.read(tmp_path / "a.npz")


def test_npz_files_keep_dtypes_and_orders(tmp_path: Path) -> None:
    import ml_dtypes

    arrays = {
        "columns": np.asfortranarray(np.arange(6, dtype="f4").reshape(2, 3)),
        "scalar": np.array(3),
        "bfloat16": np.arange(3).astype(ml_dtypes.bfloat16),
        "big": np.arange(3, dtype=">f4"),
        "empty": np.zeros((0, 2)),
    }
    np.savez(tmp_path / "a.npz", **arrays)
    found = weights.read(tmp_path / "a.npz")
    assert found.keys() == arrays.keys()
    for name, value in arrays.items():
        np.testing.assert_array_equal(found[name], value)
    assert found["bfloat16"].dtype == ml_dtypes.bfloat16


def test_numbers_of_another_byte_order_are_loaded() -> None:
    source, target = network(BASIC), network(BASIC, seed=1)
    weights.load_state_dict(target, {name: value.astype(">f4") for name, value in weights.state_dict(source).items()})
    assert same(target, source)


def test_an_exported_program_is_named(tmp_path: Path) -> None:
    exported = Path(__file__).parents[1] / "golden" / "exported" / "module_of_ones_own.npz"
    with pytest.raises(WeightsError, match=r"program of Model\.export.*resfit\.load_exported"):
        weights.read(exported)


def test_key_is_for_nested_files_only(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(safetensors.numpy.save(weights.state_dict(network(BASIC))))
    with pytest.raises(WeightsError, match=r"Received key=\('teacher',\).* prefix="):
        weights.load(network(BASIC), tmp_path / "a.safetensors", key="teacher")


def test_dense_layers_and_1x1_kernels_fit_each_other() -> None:
    source, target = network(BASIC), network(BASIC, seed=1)
    arrays = weights.state_dict(source)
    arrays["fc.weight"] = arrays["fc.weight"][:, :, None, None]
    weights.load_state_dict(target, arrays)
    assert same(target, source)
    for name in ("conv1.weight", "bn1.weight"):  # other axes do not
        wrong = arrays | {name: arrays[name].reshape(-1, 1, 2)}
        with pytest.raises(WeightsError, match=f"mis-shaped: {name}"):
            weights.load_state_dict(target, wrong)


def test_the_error_names_the_depths_of_the_state_dict() -> None:
    arrays = weights.state_dict(network(BASIC | {"depths": (2, 2, 2, 2), "widths": (4, 4, 8, 8)}))
    with pytest.raises(WeightsError, match=r"depths=\(2, 2, 2, 2\), the network depths=\(1, 2\).*resnet18") as found:
        weights.load_state_dict(network(BASIC), arrays)
    assert len(str(found.value).splitlines()) <= 10
    assert "unexpected" in str(found.value)


@pytest.mark.parametrize("naming", [naming for naming in NAMINGS if not NAMINGS[naming].writes])
def test_other_namings_are_only_for_reading(naming: str) -> None:
    with pytest.raises(WeightsError, match="only for reading"):
        weights.state_dict(network(BASIC), naming=naming)


def test_the_layouts_of_akamaster_and_pytorch_cifar_are_told_apart_by_the_network() -> None:
    """Without projections their names are equal, and their last layer has the same name."""
    for shortcut, names in (("A", AKAMASTER), ("B", KUANGLIU)):
        net = network(CIFAR | {"shortcut": shortcut})
        weights.load_state_dict(net, contiguous(listed(net, names)))
        if shortcut == "B":
            assert same(net, network(CIFAR))


def test_pre_activated_networks_of_wide_resnets_have_their_options() -> None:
    net = network(V2, seed=1)
    with pytest.raises(WeightsError, match=r"Call resfit\.weights\.load_state_dict\(net, state_dict, head='reset'\)"):
        weights.load_state_dict(net, weights.state_dict(network(V2 | {"num_classes": 5})))
    weights.load_state_dict(net, weights.state_dict(network(V2 | {"num_classes": 5})), **RESET)  # type: ignore[arg-type]


def test_create_model_names_the_file_with_two_networks(tmp_path: Path) -> None:
    path, _ = written(ATTEMPTS["MoCo v2"], tmp_path)
    with pytest.raises(WeightsError, match=r"load\(net, '.*model\.pth', prefix='module\.encoder_q\.'\)"):
        resfit.create_model("resnet18", num_classes=3, weights=path, depths=(1, 2), widths=(4, 8))
