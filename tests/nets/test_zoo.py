"""Every network of the zoo, and its option-B twin, against golden numbers and against a closed formula."""

import math

import pytest
from flax import nnx

from resfit.errors import SpecError
from resfit.nets import ZOO, ResNet, ResNetSpec, count_multiply_adds, count_params, create_model, list_models

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


def formula(spec: ResNetSpec, size: int) -> tuple[int, int]:
    """Parameters and multiply-adds of a ResNet by arithmetic alone, without building one."""
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


def abstract(name: str, shortcut: str) -> ResNet:
    return nnx.eval_shape(lambda: create_model(name, num_classes=ZOO[name].spec.num_classes, shortcut=shortcut))


# Building the deepest network abstractly takes seconds, and it differs from the 110-layer one in depth alone.
MEMBERS = [
    pytest.param(name, shortcut, marks=[pytest.mark.slow] if name == "resnet1202" else [])
    for name, row in ZOO.items()
    for shortcut in ({"A", "B"} if row.spec.stem == "cifar" else {row.spec.shortcut})
]


@pytest.mark.parametrize(("name", "shortcut"), sorted(MEMBERS, key=str))
def test_parameters_and_multiply_adds_are_golden(name: str, shortcut: str) -> None:
    row = ZOO[name]
    net = abstract(name, shortcut)
    parameters, multiply_adds = formula(net.spec, row.image_size)
    assert count_params(net) == parameters == PUBLISHED_PARAMETERS.get((name, shortcut), parameters)
    assert count_multiply_adds(net, (row.image_size, row.image_size, 3)) == multiply_adds
    if shortcut == row.spec.shortcut:
        assert (parameters, multiply_adds) == (row.parameters, row.multiply_adds)


@pytest.mark.parametrize("name", PUBLISHED_GIGA_MULTIPLY_ADDS)
def test_multiply_adds_of_the_table_are_the_published_ones(name: str) -> None:
    published = PUBLISHED_GIGA_MULTIPLY_ADDS[name]
    half_a_digit = 5e-4 if published > 1 else 1e-5
    assert ZOO[name].multiply_adds / 1e9 == pytest.approx(published, abs=half_a_digit)


def test_the_papers_stride_placement_costs_less() -> None:
    net = nnx.eval_shape(lambda: create_model("resnet50", num_classes=1000, block="bottleneck_v1"))
    assert count_params(net) == ZOO["resnet50"].parameters
    assert count_multiply_adds(net, (224, 224, 3)) == formula(net.spec, 224)[1] == 3_857_973_248  # "3.8" in the paper


def test_other_classes_channels_and_stems_count_as_published() -> None:
    net = nnx.eval_shape(lambda: create_model("resnet18", num_classes=10, stem="cifar"))
    assert count_params(net) == 11_173_962
    assert count_multiply_adds(net, (32, 32, 3)) == pytest.approx(0.555e9, rel=1e-3)
    for name, parameters in {"resnet18": 11_181_642, "resnet34": 21_289_802, "resnet50": 23_528_522}.items():
        assert count_params(nnx.eval_shape(lambda name=name: create_model(name, num_classes=10))) == parameters
    grey = nnx.eval_shape(lambda: create_model("resnet20", num_classes=10, in_channels=1))
    assert count_params(grey) == ZOO["resnet20"].parameters - 2 * 9 * 16


def test_the_table_is_listed_by_pattern() -> None:
    assert list_models() == list(ZOO)
    assert list_models("resnet1*") == ["resnet18", "resnet101", "resnet152", "resnet110", "resnet1202"]
    assert list_models("vgg*") == []


def test_every_row_has_a_source_and_an_image_size_of_its_stem() -> None:
    for row in ZOO.values():
        assert "arXiv" in row.source
        assert row.image_size == {"imagenet": 224, "cifar": 32}[row.spec.stem]


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(SpecError, match=r"'resnet19'.*resnet18"):
        create_model("resnet19", num_classes=10)


def test_a_seed_and_an_rngs_of_that_seed_build_the_same_network() -> None:
    spec = {"depths": (1,), "widths": (4,)}
    by_int = create_model("resnet20", num_classes=2, rngs=5, **spec)
    by_rngs = create_model("resnet20", num_classes=2, rngs=nnx.Rngs(5), **spec)
    other = create_model("resnet20", num_classes=2, rngs=6, **spec)
    assert (by_int.stem.conv.kernel[...] == by_rngs.stem.conv.kernel[...]).all()
    assert (by_int.stem.conv.kernel[...] != other.stem.conv.kernel[...]).any()
