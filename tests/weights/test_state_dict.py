import dataclasses
import re

import jax
import numpy as np
import pytest
from flax import nnx

from resfit import Model, weights
from resfit.errors import WeightsError
from resfit.nets import ResNet, ResNetSpec
from tests import levels

THIN = {
    "basic, imagenet": ResNetSpec(depths=(1, 1), widths=(4, 8), num_classes=3),
    "bottleneck, cifar": ResNetSpec(depths=(2, 1), widths=(2, 3), block="bottleneck", stem="cifar", num_classes=3),
    "option A": ResNetSpec(depths=(1, 1), widths=(4, 8), stem="cifar", shortcut="A", num_classes=3),
    "bfloat16 parameters": ResNetSpec(depths=(1,), widths=(4,), stem="cifar", num_classes=3, param_dtype="bfloat16"),
}


def net(spec: ResNetSpec, seed: int = 0) -> ResNet:
    return ResNet(spec, rngs=nnx.Rngs(seed))


def leaves(module: nnx.Module) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(module))]


@pytest.mark.representatives("basic, imagenet", "option A")
@pytest.mark.parametrize("spec", THIN.values(), ids=THIN)
def test_a_round_trip_keeps_every_bit(spec: ResNetSpec) -> None:
    source, target = net(spec), net(spec, seed=1)
    for index, (_, statistic) in enumerate(nnx.iter_graph(nnx.state(source, nnx.BatchStat))):
        if isinstance(statistic, nnx.BatchStat):
            statistic.set_value(statistic.get_value() + index)
    weights.load_state_dict(target, weights.state_dict(source))
    for before, after in zip(leaves(source), leaves(target), strict=True):
        assert before.dtype == after.dtype
        assert before.tobytes() == after.tobytes()


def test_arrays_have_the_layout_of_pytorch() -> None:
    module = net(THIN["basic, imagenet"])
    held = weights.state_dict(module)
    kernel = np.asarray(module.stem.conv.kernel[...])  # (height, width, in, out)
    np.testing.assert_array_equal(held["conv1.weight"][1, 2], kernel[:, :, 2, 1])
    np.testing.assert_array_equal(held["fc.weight"], np.asarray(module.head.dense.kernel[...]).T)


def test_a_state_dict_is_a_copy() -> None:
    module = net(THIN["option A"])
    held = weights.state_dict(module)
    before = leaves(module)
    for value in held.values():
        value += 1
    for old, new in zip(before, leaves(module), strict=True):
        np.testing.assert_array_equal(old, new)


def test_the_count_of_batches_is_ignored() -> None:
    module = net(THIN["option A"])
    weights.load_state_dict(module, weights.state_dict(module) | {"bn1.num_batches_tracked": np.array(7)})


def test_a_network_without_arrays_can_be_filled() -> None:
    source = net(THIN["basic, imagenet"])
    target = nnx.eval_shape(lambda: net(THIN["basic, imagenet"]))
    weights.load_state_dict(target, weights.state_dict(source))
    for before, after in zip(leaves(source), leaves(target), strict=True):
        np.testing.assert_array_equal(before, after)


def test_every_misfit_is_listed_and_nothing_changes() -> None:
    module = net(THIN["basic, imagenet"])
    before = leaves(module)
    wrong = {name: value + 1 for name, value in weights.state_dict(module).items()}
    del wrong["layer1.0.bn1.weight"], wrong["conv1.weight"]
    wrong["layer9.0.conv1.weight"] = np.zeros((2, 2))
    wrong["fc.weight"] = np.zeros((1000, 8))
    with pytest.raises(WeightsError) as raised:
        weights.load_state_dict(module, wrong)
    message = str(raised.value)
    for expected in (
        "4 of its entries",
        "missing: conv1.weight, of shape (4, 3, 7, 7)",
        "missing: layer1.0.bn1.weight, of shape (4,)",
        "unexpected: layer9.0.conv1.weight, of shape (2, 2)",
        "mis-shaped: fc.weight has shape (1000, 8), expected (3, 8)",
        "num_classes",
    ):
        assert expected in message
    for old, new in zip(before, leaves(module), strict=True):
        np.testing.assert_array_equal(old, new)


def test_an_unknown_naming_raises() -> None:
    with pytest.raises(WeightsError, match=re.escape("['torchvision', 'timm_v2', 'timm_senet', ")):
        weights.state_dict(net(THIN["option A"]), naming="caffe")


def test_a_module_without_names_in_a_library_raises() -> None:
    with pytest.raises(WeightsError, match=r"holds layers\.0\."):
        weights.state_dict(nnx.Sequential(nnx.Linear(2, 2, rngs=nnx.Rngs(0))))


@pytest.mark.parametrize(
    "prefix",
    levels.only(
        ["module.encoder_q."], ["module.encoder_q.", "backbone.", "state_dict.model.trunk.", "momentum_net.0.", "a/b/"]
    ),
)
def test_any_prefix_is_found(prefix: str) -> None:
    source, target = net(THIN["basic, imagenet"]), net(THIN["basic, imagenet"], seed=1)
    held = {prefix + name: value for name, value in weights.state_dict(source).items()}
    held |= {f"{prefix}bn1.num_batches_tracked": np.array(7), "queue": np.ones(3)}
    weights.load_state_dict(target, held)
    assert all(np.array_equal(a, b) for a, b in zip(leaves(target), leaves(source), strict=True))


def test_an_average_beside_the_network_is_not_chosen_without_a_word() -> None:
    source, target = net(THIN["basic, imagenet"]), net(THIN["basic, imagenet"], seed=1)
    held = {f"net.{name}": value for name, value in weights.state_dict(source).items()}
    held |= {f"ema.{name}": held[name] + 1 for name in held}
    with pytest.raises(WeightsError, match=r"prefixes \['ema\.net\.', 'net\.'\].* prefix='net\.'\)"):
        weights.load_state_dict(target, held)
    weights.load_state_dict(target, held, prefix="net.")
    assert all(np.array_equal(a, b) for a, b in zip(leaves(target), leaves(source), strict=True))


def test_the_error_for_a_backbone_resets_its_last_layer_and_drops_another_head() -> None:
    source, target = net(THIN["basic, imagenet"]), net(THIN["basic, imagenet"], seed=1)
    held = {"module.encoder_q." + name: value for name, value in weights.state_dict(source).items() if "fc" not in name}
    held |= {"module.encoder_q.fc.0.weight": np.zeros((5, 8)), "module.encoder_q.fc.2.weight": np.zeros((2, 5))}
    before = np.asarray(target.head.dense.kernel[...])
    with pytest.raises(WeightsError, match=r"prefix 'module\.encoder_q\.'.*Call .*\(net, state_dict, head='reset'\)"):
        weights.load_state_dict(target, held)
    weights.load_state_dict(target, held, head="reset")
    np.testing.assert_array_equal(target.stem.conv.kernel[...], source.stem.conv.kernel[...])
    np.testing.assert_array_equal(target.head.dense.kernel[...], before)


NOT_FLOATING = {
    "int8, of a quantized network": np.zeros(3, np.int8),
    "int64": np.zeros(3, np.int64),
    "uint8": np.zeros(3, np.uint8),
    "bool": np.zeros(3, bool),
    "complex": np.zeros(3, np.complex64),
    "text": np.array(["a", "b", "c"]),
    "objects": np.array([0.0, None, "x"], object),
}


@pytest.mark.parametrize("value", NOT_FLOATING.values(), ids=NOT_FLOATING)
def test_arrays_without_floating_point_numbers_raise_and_change_nothing(value: np.ndarray) -> None:
    module, source = net(THIN["option A"]), net(THIN["option A"], seed=1)
    before = leaves(module)
    with pytest.raises(WeightsError, match=r"fc\.bias has the dtype .*Expected floating-point numbers.*float32 first"):
        weights.load_state_dict(module, weights.state_dict(source) | {"fc.bias": value})
    for old, new in zip(before, leaves(module), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_every_floating_dtype_loads_as_the_nearest_value(dtype: str) -> None:
    module, source = net(THIN["option A"]), net(THIN["option A"], seed=1)
    given = {name: value.astype(jax.numpy.dtype(dtype)) for name, value in weights.state_dict(source).items()}
    weights.load_state_dict(module, given)
    for name, value in weights.state_dict(module).items():
        np.testing.assert_array_equal(value, given[name].astype(np.float32))


@pytest.mark.parametrize(
    ("param_dtype", "value"), [("float32", -1e300), ("float16", np.float32(1e6)), ("bfloat16", 1e300)]
)
def test_values_too_large_for_the_network_raise(param_dtype: str, value: float) -> None:
    module = net(dataclasses.replace(THIN["option A"], param_dtype=param_dtype))
    given = weights.state_dict(module)
    with pytest.raises(WeightsError, match=rf"fc\.bias has the value .*too large for {param_dtype}.*Create the networ"):
        weights.load_state_dict(module, given | {"fc.bias": np.array([0, value, np.inf])})
    weights.load_state_dict(module, given | {"fc.bias": np.array([0, 1, np.inf])})  # infinite in the file
    assert np.isinf(weights.state_dict(module)["fc.bias"][2])


WRONG_ARGUMENTS: dict[str, tuple[tuple[object, ...], dict[str, object], str]] = {
    "a prefix that is not a text": ((), {"prefix": 3}, "Received prefix=3. Expected the text before"),
    "a list of namings": ((), {"naming": ["torchvision"]}, "Received naming=['torchvision']. Expected one of"),
    "no state dict": ((None,), {}, "Received a NoneType as the state dict. Expected a dict of arrays by name"),
    "a path": (("a.pth",), {}, "call resfit.weights.load(net, path)"),
    "lists of different lengths": (({"fc.bias": [[0.0], [1.0, 2.0]]},), {}, "is a list, which NumPy cannot read"),
}


@pytest.mark.parametrize(("positional", "named", "expected"), WRONG_ARGUMENTS.values(), ids=WRONG_ARGUMENTS)
def test_arguments_of_another_type_raise(
    positional: tuple[object, ...], named: dict[str, object], expected: str
) -> None:
    module = net(THIN["option A"])
    with pytest.raises(WeightsError, match=re.escape(expected)):
        weights.load_state_dict(module, *(positional or (weights.state_dict(module),)), **named)  # type: ignore[arg-type]


def test_a_model_in_place_of_its_network_raises() -> None:
    module = net(THIN["option A"])
    with pytest.raises(WeightsError, match=r"Received a Model as the network.*Pass model\.module"):
        weights.load_state_dict(Model(module), weights.state_dict(module))  # type: ignore[arg-type]
    with pytest.raises(WeightsError, match=r"Received a Model as the network.*Pass model\.module"):
        weights.state_dict(Model(module))  # type: ignore[arg-type]


SE = {"depths": (1, 1), "widths": (32, 64), "num_classes": 3, "squeeze": 1 / 16}
LEGACY = ResNetSpec(**SE, stem="caffe", block="bottleneck_v1")
LATER = ResNetSpec(**SE, block="bottleneck_v1")


@pytest.mark.parametrize(("theirs", "ours"), [(LATER, LEGACY), (LEGACY, LATER)], ids=["into legacy", "from legacy"])
def test_the_two_generations_of_se_networks_do_not_load_each_others_weights(
    theirs: ResNetSpec, ours: ResNetSpec
) -> None:
    """Their pools differ, and the names of both follow from the spec."""
    with pytest.raises(WeightsError, match=rf"The network has stem='{ours.stem}'.*Expected stem='{theirs.stem}'"):
        weights.load_state_dict(net(ours), weights.state_dict(net(theirs)))


def test_a_legacy_se_network_is_not_written_under_the_names_of_the_later_one() -> None:
    with pytest.raises(WeightsError, match=r"those with Caffe's have the names of timm_senet"):
        weights.state_dict(net(LEGACY), naming="torchvision")
