"""Every network of the zoo and its option-B twin against golden numbers and a closed formula."""

import dataclasses
import functools
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
from flax import nnx

from resfit.errors import SpecError
from resfit.nets import STEMS, ZOO, ResNet, ResNetSpec, count_multiply_adds, count_params, create_model, list_models
from resfit.weights.find import named

# Published numbers: torchvision's parameters and its GMAC to three digits, and those of He's CIFAR nets as several
# re-implementations have them. The table of the zoo must not drift from these.
PUBLISHED_PARAMETERS = {
    ("resnet18", "B"): 11_689_512,
    ("resnet34", "B"): 21_797_672,
    ("resnet50", "B"): 25_557_032,
    ("resnet101", "B"): 44_549_160,
    ("resnet152", "B"): 60_192_808,
    ("resnet200", "B"): 64_673_832,
    ("resnet20", "A"): 269_722,
    ("resnet20", "B"): 272_474,
    ("resnet32", "A"): 464_154,
    ("resnet32", "B"): 466_906,
    ("resnet44", "A"): 658_586,
    ("resnet44", "B"): 661_338,
    ("resnet56", "A"): 853_018,
    ("resnet56", "B"): 855_770,
    ("resnet110", "A"): 1_727_962,
    ("resnet110", "B"): 1_730_714,
    ("resnet1202", "A"): 19_421_274,
}
PUBLISHED_GIGA_MULTIPLY_ADDS = {
    "resnet18": 1.814,
    "resnet34": 3.664,
    "resnet50": 4.089,
    "resnet101": 7.801,
    "resnet152": 11.514,
    "resnet200": 15.007,
    "resnet20": 0.04055,
    "resnet56": 0.12549,
    "resnet110": 0.25289,
}


# Counts of torchvision and timm; tests/golden/README.md describes the counting.
GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "variants.json").read_text())


def formula(spec: ResNetSpec, size: int) -> tuple[int, int]:
    """Compute parameters and multiply-adds of a ResNet without building it."""
    parameters = multiply_adds = 0

    def conv(kernel: int, n_in: int, n_out: int, stride: int, norm: bool = True) -> None:
        nonlocal parameters, multiply_adds, size
        size = math.ceil(size / stride)
        parameters += kernel**2 * n_in * n_out + 2 * n_out * norm
        multiply_adds += kernel**2 * n_in * n_out * size**2

    channels = spec.widths[0]
    if spec.stem == "imagenet":
        conv(7, spec.in_channels, channels, 2)
        size = math.ceil(size / 2)
    else:
        conv(3, spec.in_channels, channels, 1)
    for stage, (depth, width) in enumerate(zip(spec.depths, spec.widths, strict=True)):
        for block in range(depth):
            stride = 2 if stage and not block else 1
            out = width * (1 if spec.block == "basic" else 4)
            before = size
            if spec.shortcut == "B" and (stride, channels) != (1, out):
                conv(1, channels, out, stride)
                size = before
            if spec.block == "basic":
                conv(3, channels, width, stride)
                conv(3, width, width, 1)
            else:
                first, second = (stride, 1) if spec.block == "bottleneck_v1" else (1, stride)
                conv(1, channels, width, first)
                conv(3, width, width, second)
                conv(1, width, out, 1)
            channels = out
    dense = channels * spec.num_classes
    return parameters + dense + spec.num_classes, multiply_adds + dense


@functools.cache
def abstract(name: str) -> ResNet:
    """Return the network without values, for every test of the table."""
    return nnx.eval_shape(lambda: create_model(name, num_classes=ZOO[name].spec.num_classes))


def params(names: list[str]) -> list[Any]:
    """Mark networks of many blocks, which take seconds to build, and those that repeat the parts of another one."""

    def marks(name: str) -> Any:
        if name in ("resnet18", "resnet20", "resnetv2_18", "wrn_16_8", "resnet18d", "seresnet18"):
            return ()
        return pytest.mark.slow if name in SLOW else pytest.mark.exhaustive

    return [pytest.param(name, marks=marks(name)) for name in names]


SLOW = (
    "resnet50", "resnet50t", "resnetrs50", "resnetblur50", "resnet50_gn", "resnetv2_50", "resnet101", "resnext50_32x4d",
    "resnetv2_18d", "resnetv2_50x1_bit", "ecaresnet26t", "legacy_seresnext26_32x4d",
)  # fmt: skip


@pytest.mark.representatives("resnet20", "seresnet18")
@pytest.mark.parametrize("name", params(list(ZOO)))
def test_parameters_and_multiply_adds_are_those_of_the_table(name: str) -> None:
    row = ZOO[name]
    net = abstract(name)
    assert count_params(net) == row.parameters
    assert count_multiply_adds(net, (row.image_size, row.image_size, 3)) == row.multiply_adds


def is_plain(spec: ResNetSpec) -> bool:
    """Return True if `formula` covers the network."""
    plain = ResNetSpec(
        depths=spec.depths,
        widths=spec.widths,
        block=spec.block,
        stem=spec.stem,
        shortcut=spec.shortcut,
        num_classes=spec.num_classes,
    )
    return (
        spec == plain and spec.block in ("basic", "bottleneck", "bottleneck_v1") and spec.stem in ("imagenet", "cifar")
    )


PLAIN = [name for name, row in ZOO.items() if is_plain(row.spec)]


@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize("name", PLAIN)
def test_the_table_of_plain_networks_matches_the_formula(name: str, shortcut: str) -> None:
    row = ZOO[name]
    if shortcut != row.spec.shortcut and row.spec.stem == "imagenet":
        return
    parameters, multiply_adds = formula(dataclasses.replace(row.spec, shortcut=shortcut), row.image_size)
    assert parameters == PUBLISHED_PARAMETERS.get((name, shortcut), parameters)
    if shortcut == row.spec.shortcut:
        assert (parameters, multiply_adds) == (row.parameters, row.multiply_adds)


@pytest.mark.parametrize("name", GOLDEN["members"])
def test_the_table_matches_torchvision_and_timm(name: str) -> None:
    """Counts of anti-aliased networks exclude the blur, whose kernel is not a parameter."""
    golden = GOLDEN["members"][name]
    assert (ZOO[name].parameters, ZOO[name].multiply_adds) == (golden["parameters"], golden["multiply_adds"])


@pytest.mark.representatives("seresnet18")
@pytest.mark.parametrize("name", params(list(GOLDEN["members"])))
def test_names_and_shapes_match_torchvision_and_timm(name: str) -> None:
    lines = sorted(f"{key} {entry.shape}" for key, entry in named(abstract(name), None))
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == GOLDEN["members"][name]["names_and_shapes_sha256"]


@pytest.mark.parametrize("name", PUBLISHED_GIGA_MULTIPLY_ADDS)
def test_multiply_adds_of_the_table_match_the_published_ones(name: str) -> None:
    published = PUBLISHED_GIGA_MULTIPLY_ADDS[name]
    half_a_digit = 5e-4 if published > 1 else 1e-5
    assert ZOO[name].multiply_adds / 1e9 == pytest.approx(published, abs=half_a_digit)


@pytest.mark.slow
def test_the_papers_stride_placement_costs_less() -> None:
    net = nnx.eval_shape(lambda: create_model("resnet50", num_classes=1000, block="bottleneck_v1"))
    assert count_params(net) == ZOO["resnet50"].parameters
    assert count_multiply_adds(net, (224, 224, 3)) == formula(net.spec, 224)[1] == 3_857_973_248  # "3.8" in the paper


def test_other_classes_channels_and_stems_count_as_published() -> None:
    net = nnx.eval_shape(lambda: create_model("resnet18", num_classes=10, stem="cifar"))
    assert count_params(net) == 11_173_962
    assert count_multiply_adds(net, (32, 32, 3)) == pytest.approx(0.555e9, rel=1e-3)
    grey = nnx.eval_shape(lambda: create_model("resnet20", num_classes=10, in_channels=1))
    assert count_params(grey) == ZOO["resnet20"].parameters - 2 * 9 * 16


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet18", 11_181_642),
        pytest.param("resnet34", 21_289_802, marks=pytest.mark.slow),
        pytest.param("resnet50", 23_528_522, marks=pytest.mark.slow),
    ],
)
def test_networks_of_ten_classes_count_as_published(name: str, parameters: int) -> None:
    assert count_params(nnx.eval_shape(lambda: create_model(name, num_classes=10))) == parameters


def test_list_models_filters_by_pattern() -> None:
    assert list_models() == list(ZOO)
    assert list_models("resnet1*") == [name for name in ZOO if name.startswith("resnet1")]
    assert list_models("vgg*") == []


def test_every_row_has_a_source_and_an_image_size_of_its_stem() -> None:
    for row in ZOO.values():
        assert "arXiv" in row.source, row
        assert row.image_size == STEMS[row.spec.stem].image_size


def test_an_unknown_network_raises_with_the_known_names() -> None:
    with pytest.raises(SpecError, match=r"'resnet19'.*resnet18"):
        create_model("resnet19", num_classes=10)


def test_a_seed_and_an_rngs_of_that_seed_build_the_same_network() -> None:
    spec = {"depths": (1,), "widths": (4,)}
    by_int = create_model("resnet20", num_classes=2, rngs=5, **spec)
    by_rngs = create_model("resnet20", num_classes=2, rngs=nnx.Rngs(5), **spec)
    other = create_model("resnet20", num_classes=2, rngs=6, **spec)
    assert (by_int.stem.conv.kernel[...] == by_rngs.stem.conv.kernel[...]).all()
    assert (by_int.stem.conv.kernel[...] != other.stem.conv.kernel[...]).any()


# Published numbers of networks outside of torchvision and timm: from the papers, in millions where those round.
PAPERS = {
    "resnet164_v2": 1_703_258,
    "resnet1001_v2": 10_327_706,
    "wrn_16_8": 10_961_370,
    "wrn_28_10": 36_479_194,
    "wrn_40_4": 8_949_210,
}


@pytest.mark.parametrize("name", PAPERS)
def test_parameters_of_the_papers_networks_are_the_published_ones(name: str) -> None:
    assert ZOO[name].parameters == PAPERS[name]
