"""The networks by name: a table of specs, with their exact numbers and sources."""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from flax import nnx

from resfit._utils.jax_switches import suspending
from resfit._utils.keywords import checked
from resfit._utils.suggest import did_you_mean
from resfit.errors import SpecError
from resfit.nets.registry import ZOO
from resfit.nets.resnet import ResNet
from resfit.nets.spec import ResNetSpec


@dataclass(frozen=True)
class ZooRow:
    """One network of the zoo.

    Attributes:
        spec: the architecture, with the number of classes of the source.
        image_size: side in pixels of the square images of `multiply_adds`.
        parameters: exact number of trained scalars, without batch statistics.
        multiply_adds: exact number for one image, of the convolutions and the dense layer.
        source: the source of the network and of its numbers.
    """

    spec: ResNetSpec
    image_size: int
    parameters: int
    multiply_adds: int
    source: str


_HE = "He et al. 2015, arXiv:1512.03385"
_TORCHVISION = f"{_HE}, table 1; numbers as torchvision"
_TIMM = f"{_HE}; numbers as timm"
_V1 = f"{_HE}, table 1, as printed: the stride in the first 1x1 convolution"
_V2 = "He et al. 2016, arXiv:1603.05027; numbers as timm"
_CIFAR = f"{_HE}, section 4.2, option A"
_CIFAR_V2 = "He et al. 2016, arXiv:1603.05027, table 4"
_WIDE = "Zagoruyko and Komodakis 2016, arXiv:1605.07146"
_RESNEXT = "Xie et al. 2016, arXiv:1611.05431; numbers as torchvision"
_RESNEXT_TIMM = "Xie et al. 2016, arXiv:1611.05431; numbers as timm"
_D = "He et al. 2018, arXiv:1812.01187 (ResNet-D); numbers as timm"
_C = "He et al. 2018, arXiv:1812.01187 (ResNet-C); numbers as timm"
_S = "timm's ResNet-S: arXiv:1812.01187 (ResNet-C) with a stem of 64, 64 and 128 channels"
_T = "timm's ResNet-T: arXiv:1812.01187 with a stem of 24, 32 and 64 channels"
_SE = "Hu et al. 2017, arXiv:1709.01507; numbers as timm"
_ECA = "Wang et al. 2019, arXiv:1910.03151 (ECA-Net); numbers as timm"
_BIT = "Kolesnikov et al. 2019, arXiv:1912.11370 (Big Transfer); numbers as timm"
_RS = "Bello et al. 2021, arXiv:2103.07579; numbers as timm"
_AA = "timm's anti-aliasing by averages, after arXiv:1904.11486; numbers as timm"
_BLUR = "Zhang 2019, arXiv:1904.11486 (anti-aliased); numbers as timm, without the blur"
_GN = "Wu and He 2018, arXiv:1803.08494 (group norm); numbers as timm"

_10, _18, _26, _34, _50 = (1, 1, 1, 1), (2, 2, 2, 2), (2, 2, 2, 2), (3, 4, 6, 3), (3, 4, 6, 3)
_101, _152, _200, _269 = (3, 4, 23, 3), (3, 8, 36, 3), (3, 24, 36, 3), (3, 30, 48, 8)
_LIGHT = (1, 1, 11, 3)


def _imagenet(
    depths: tuple[int, ...], parameters: int, multiply_adds: int, source: str, block: str = "bottleneck", **fields: Any
) -> ZooRow:
    spec = ResNetSpec(depths=depths, widths=(64, 128, 256, 512), block=block, **fields)
    return ZooRow(spec, 224, parameters, multiply_adds, source)


def _bit(depths: tuple[int, ...], factor: int, parameters: int, multiply_adds: int) -> ZooRow:
    spec = ResNetSpec(
        depths=depths,
        widths=(64 * factor, 128 * factor, 256 * factor, 512 * factor),
        block="preact_bottleneck",
        stem="bit",
        shortcut="conv",
        norm="group",
        weight_standardization=True,
        zero_init_last=False,
    )
    return ZooRow(spec, 224, parameters, multiply_adds, _BIT)


def _cifar(
    blocks_per_stage: int,
    parameters: int,
    multiply_adds: int,
    source: str = _CIFAR,
    *,
    widths: tuple[int, ...] = (16, 32, 64),
    stem: str = "cifar",
    shortcut: str = "A",
    **fields: Any,
) -> ZooRow:
    spec = ResNetSpec(
        depths=(blocks_per_stage,) * 3,
        widths=widths,
        stem=stem,
        shortcut=shortcut,
        stem_width=None if widths[0] == 16 else 16,
        num_classes=10,
        **fields,
    )
    return ZooRow(spec, 32, parameters, multiply_adds, source)


_OF_D: dict[str, Any] = {"stem": "deep", "shortcut": "D"}
_OF_T: dict[str, Any] = {"stem": "deep_tiered", "shortcut": "D"}
_OF_RS: dict[str, Any] = {"stem": "rs", "shortcut": "D", "squeeze": 1 / 4}
_OF_SE: dict[str, Any] = {"squeeze": 1 / 16}
_OF_SENET: dict[str, Any] = {"stem": "deep", "stem_width": 128, "shortcut": "B3"}
_OF_CAFFE: dict[str, Any] = {"stem": "caffe", "head_dropout": 0.2}
_OF_ECA: dict[str, Any] = {"squeeze": "eca"}
_OF_V2: dict[str, Any] = {"block": "preact_bottleneck", "stem": "imagenet_conv", "shortcut": "conv"}
_OF_V2_D: dict[str, Any] = {"block": "preact_bottleneck", "stem": "deep_conv", "shortcut": "D_conv"}
_OF_V2_T: dict[str, Any] = {"block": "preact_bottleneck", "stem": "deep_tiered_conv", "shortcut": "D_conv"}
_OF_CIFAR_V2: dict[str, Any] = {"block": "preact_bottleneck", "stem": "cifar_conv", "shortcut": "conv"}
_OF_WRN: dict[str, Any] = {"block": "preact_basic", "stem": "cifar_conv", "shortcut": "conv", "dropout": 0.3}

_ROWS = {
    "resnet18": _imagenet(_18, 11_689_512, 1_814_073_344, _TORCHVISION, "basic"),
    "resnet26": _imagenet(_26, 15_995_176, 2_342_256_640, _TIMM),
    "resnet34": _imagenet(_34, 21_797_672, 3_663_761_408, _TORCHVISION, "basic"),
    "resnet50": _imagenet(_50, 25_557_032, 4_089_184_256, _TORCHVISION),
    "resnet101": _imagenet(_101, 44_549_160, 7_801_405_440, _TORCHVISION),
    "resnet152": _imagenet(_152, 60_192_808, 11_513_626_624, _TORCHVISION),
    "resnet200": _imagenet(_200, 64_673_832, 15_007_481_856, _TIMM),
    "resnet20": _cifar(3, 269_722, 40_551_040),
    "resnet32": _cifar(5, 464_154, 68_862_592),
    "resnet44": _cifar(7, 658_586, 97_174_144),
    "resnet56": _cifar(9, 853_018, 125_485_696),
    "resnet110": _cifar(18, 1_727_962, 252_887_680),
    "resnet1202": _cifar(200, 19_421_274, 2_829_238_912),
    "resnet50_v1": _imagenet(_50, 25_557_032, 3_857_973_248, _V1, "bottleneck_v1"),
    "resnet101_v1": _imagenet(_101, 44_549_160, 7_570_194_432, _V1, "bottleneck_v1"),
    "resnet152_v1": _imagenet(_152, 60_192_808, 11_282_415_616, _V1, "bottleneck_v1"),
    "resnet50c": _imagenet(_50, 25_576_264, 4_328_824_832, _C, stem="deep"),
    "resnet101c": _imagenet(_101, 44_568_392, 8_041_046_016, _C, stem="deep"),
    "resnet152c": _imagenet(_152, 60_212_040, 11_753_267_200, _C, stem="deep"),
    "resnet50s": _imagenet(_50, 25_680_808, 5_444_337_664, _S, stem="deep", stem_width=128),
    "resnet101s": _imagenet(_101, 44_672_936, 9_156_558_848, _S, stem="deep", stem_width=128),
    "resnet152s": _imagenet(_152, 60_316_584, 12_868_780_032, _S, stem="deep", stem_width=128),
    "resnetv2_18": _imagenet(_18, 11_687_720, 1_814_073_344, _V2, **_OF_V2 | {"block": "preact_basic"}),
    "resnetv2_34": _imagenet(_34, 21_795_880, 3_663_761_408, _V2, **_OF_V2 | {"block": "preact_basic"}),
    "resnetv2_50": _imagenet(_50, 25_549_352, 4_089_184_256, _V2, **_OF_V2),
    "resnetv2_101": _imagenet(_101, 44_541_480, 7_801_405_440, _V2, **_OF_V2),
    "resnetv2_152": _imagenet(_152, 60_185_128, 11_513_626_624, _V2, **_OF_V2),
    "resnetv2_18d": _imagenet(_18, 11_706_952, 2_053_713_920, _V2, **_OF_V2_D | {"block": "preact_basic"}),
    "resnetv2_34d": _imagenet(_34, 21_815_112, 3_903_401_984, _V2, **_OF_V2_D | {"block": "preact_basic"}),
    "resnetv2_50d": _imagenet(_50, 25_568_584, 4_328_824_832, _V2, **_OF_V2_D),
    "resnetv2_101d": _imagenet(_101, 44_560_712, 8_041_046_016, _V2, **_OF_V2_D),
    "resnetv2_152d": _imagenet(_152, 60_204_360, 11_753_267_200, _V2, **_OF_V2_D),
    "resnetv2_50t": _imagenet(_50, 25_566_048, 4_297_213_952, _V2, **_OF_V2_T),
    "resnetv2_50d_gn": _imagenet(_50, 25_568_584, 4_328_824_832, _GN, **_OF_V2_D | {"norm": "group"}),
    "resnetv2_50x1_bit": _bit(_50, 1, 25_549_352, 4_089_184_256),
    "resnetv2_50x3_bit": _bit(_50, 3, 217_319_080, 36_082_286_592),
    "resnetv2_101x1_bit": _bit(_101, 1, 44_541_480, 7_801_405_440),
    "resnetv2_101x3_bit": _bit(_101, 3, 387_934_888, 69_492_277_248),
    "resnetv2_152x2_bit": _bit(_152, 2, 236_335_208, 45_814_382_592),
    "resnetv2_152x4_bit": _bit(_152, 4, 936_533_224, 182_777_282_560),
    "resnet110_v2": _cifar(18, 1_730_522, 253_149_824, _CIFAR_V2, **_OF_CIFAR_V2 | {"block": "preact_basic"}),
    "resnet164_v2": _cifar(18, 1_703_258, 247_646_720, _CIFAR_V2, **_OF_CIFAR_V2),
    "resnet1001_v2": _cifar(111, 10_327_706, 1_490_995_712, _CIFAR_V2, **_OF_CIFAR_V2),
    "wrn_16_8": _cifar(2, 10_961_370, 1_548_145_664, _WIDE, widths=(128, 256, 512), **_OF_WRN),
    "wrn_28_10": _cifar(4, 36_479_194, 5_243_328_768, _WIDE, widths=(160, 320, 640), **_OF_WRN),
    "wrn_40_4": _cifar(6, 8_949_210, 1_298_582_016, _WIDE, widths=(64, 128, 256), **_OF_WRN),
    "wide_resnet50_2": _imagenet(
        _50, 68_883_240, 11_398_021_120, f"{_WIDE}; numbers as torchvision", width_per_group=128
    ),
    "wide_resnet101_2": _imagenet(
        _101, 126_886_696, 22_753_050_624, f"{_WIDE}; numbers as torchvision", width_per_group=128
    ),
    "resnext50_32x4d": _imagenet(_50, 25_028_904, 4_230_479_872, _RESNEXT, groups=32, width_per_group=4),
    "resnext101_32x4d": _imagenet(_101, 44_177_704, 7_969_996_800, _RESNEXT_TIMM, groups=32, width_per_group=4),
    "resnext101_32x8d": _imagenet(_101, 88_791_336, 16_414_015_488, _RESNEXT, groups=32, width_per_group=8),
    "resnext101_32x16d": _imagenet(_101, 194_026_792, 36_163_289_088, _RESNEXT_TIMM, groups=32, width_per_group=16),
    "resnext101_32x32d": _imagenet(_101, 468_530_472, 87_106_781_184, _RESNEXT_TIMM, groups=32, width_per_group=32),
    "resnext101_64x4d": _imagenet(_101, 83_455_272, 15_460_270_080, _RESNEXT, groups=64, width_per_group=4),
    "resnext50d_32x4d": _imagenet(_50, 25_048_136, 4_470_120_448, _RESNEXT_TIMM, groups=32, width_per_group=4, **_OF_D),
    "resnet18d": _imagenet(_18, 11_708_744, 2_053_713_920, _D, "basic", **_OF_D),
    "resnet26d": _imagenet(_26, 16_014_408, 2_581_897_216, _D, **_OF_D),
    "resnet34d": _imagenet(_34, 21_816_904, 3_903_401_984, _D, "basic", **_OF_D),
    "resnet50d": _imagenet(_50, 25_576_264, 4_328_824_832, _D, **_OF_D),
    "resnet101d": _imagenet(_101, 44_568_392, 8_041_046_016, _D, **_OF_D),
    "resnet152d": _imagenet(_152, 60_212_040, 11_753_267_200, _D, **_OF_D),
    "resnet200d": _imagenet(_200, 64_693_064, 15_247_122_432, _D, **_OF_D),
    "resnet10t": _imagenet(_10, 5_435_488, 1_097_259_008, _T, "basic", **_OF_T),
    "resnet14t": _imagenet(_10, 10_081_632, 1_676_822_528, _T, **_OF_T),
    "resnet26t": _imagenet(_26, 16_011_872, 2_550_286_336, _T, **_OF_T),
    "resnet50t": _imagenet(_50, 25_573_728, 4_297_213_952, _T, **_OF_T),
    "seresnet18": _imagenet(_18, 11_779_624, 1_814_161_408, _SE, "basic", **_OF_SE),
    "seresnet34": _imagenet(_34, 21_960_416, 3_663_920_128, _SE, "basic", **_OF_SE),
    "seresnet50": _imagenet(_50, 28_088_024, 4_091_699_200, _SE, **_OF_SE),
    "seresnet101": _imagenet(_101, 49_326_872, 7_806_148_608, _SE, **_OF_SE),
    "seresnet152": _imagenet(_152, 66_821_848, 11_520_204_800, _SE, **_OF_SE),
    "seresnet50t": _imagenet(_50, 28_104_720, 4_299_728_896, _SE, **_OF_SE | _OF_T),
    "seresnet152d": _imagenet(_152, 66_841_080, 11_759_845_376, _SE, **_OF_SE | _OF_D),
    "seresnet200d": _imagenet(_200, 71_855_096, 15_254_224_896, _SE, **_OF_SE | _OF_D),
    "seresnet269d": _imagenet(_269, 113_672_760, 20_281_032_704, _SE, **_OF_SE | _OF_D),
    "seresnext26d_32x4d": _imagenet(
        _26, 16_809_512, 2_711_740_416, _SE, groups=32, width_per_group=4, **_OF_SE | _OF_D
    ),
    "seresnext26t_32x4d": _imagenet(
        _26, 16_806_976, 2_680_129_536, _SE, groups=32, width_per_group=4, **_OF_SE | _OF_T
    ),
    "seresnext50_32x4d": _imagenet(_50, 27_559_896, 4_232_994_816, _SE, groups=32, width_per_group=4, **_OF_SE),
    "seresnext101_32x4d": _imagenet(_101, 48_955_416, 7_974_739_968, _SE, groups=32, width_per_group=4, **_OF_SE),
    "seresnext101_32x8d": _imagenet(_101, 93_569_048, 16_418_758_656, _SE, groups=32, width_per_group=8, **_OF_SE),
    "seresnext101_64x4d": _imagenet(_101, 88_232_984, 15_465_013_248, _SE, groups=64, width_per_group=4, **_OF_SE),
    "seresnext101d_32x8d": _imagenet(
        _101, 93_588_280, 16_658_399_232, _SE, groups=32, width_per_group=8, **_OF_SE | _OF_D
    ),
    "senet154": _imagenet(
        _152, 115_088_984, 20_688_363_520, _SE, "bottleneck_senet", groups=64, width_per_group=4, **_OF_SE | _OF_SENET
    ),
    "legacy_seresnet50": _imagenet(_50, 28_088_024, 3_860_488_192, _SE, "bottleneck_v1", **_OF_SE | _OF_CAFFE),
    "legacy_seresnet101": _imagenet(_101, 49_326_872, 7_574_937_600, _SE, "bottleneck_v1", **_OF_SE | _OF_CAFFE),
    "legacy_seresnet152": _imagenet(_152, 66_821_848, 11_288_993_792, _SE, "bottleneck_v1", **_OF_SE | _OF_CAFFE),
    "legacy_seresnext26_32x4d": _imagenet(
        _26, 16_790_280, 2_472_099_840, _SE, groups=32, width_per_group=4, **_OF_SE | _OF_CAFFE
    ),
    "legacy_seresnext50_32x4d": _imagenet(
        _50, 27_559_896, 4_232_994_816, _SE, groups=32, width_per_group=4, **_OF_SE | _OF_CAFFE
    ),
    "legacy_seresnext101_32x4d": _imagenet(
        _101, 48_955_416, 7_974_739_968, _SE, groups=32, width_per_group=4, **_OF_SE | _OF_CAFFE
    ),
    "ecaresnetlight": _imagenet(_LIGHT, 30_162_046, 4_089_287_424, _ECA, shortcut="D", **_OF_ECA),
    "ecaresnet26t": _imagenet(_26, 16_011_916, 2_550_332_928, _ECA, **_OF_ECA | _OF_T),
    "ecaresnet50t": _imagenet(_50, 25_573_814, 4_297_301_760, _ECA, **_OF_ECA | _OF_T),
    "ecaresnet50d": _imagenet(_50, 25_576_350, 4_328_912_640, _ECA, **_OF_ECA | _OF_D),
    "ecaresnet101d": _imagenet(_101, 44_568_563, 8_041_220_864, _ECA, **_OF_ECA | _OF_D),
    "ecaresnet200d": _imagenet(_200, 64_693_400, 15_247_415_040, _ECA, **_OF_ECA | _OF_D),
    "ecaresnet269d": _imagenet(_269, 102_093_077, 20_269_980_416, _ECA, **_OF_ECA | _OF_D),
    "ecaresnext26t_32x4d": _imagenet(
        _26, 15_406_220, 2_678_783_488, _ECA, groups=32, width_per_group=4, **_OF_ECA | _OF_T
    ),
    "ecaresnext50t_32x4d": _imagenet(
        _50, 25_045_686, 4_438_597_376, _ECA, groups=32, width_per_group=4, **_OF_ECA | _OF_T
    ),
    "resnetrs50": _imagenet(_50, 35_691_912, 4_454_490_112, _RS, **_OF_RS),
    "resnetrs101": _imagenet(_101, 63_618_696, 8_175_624_192, _RS, **_OF_RS),
    "resnetrs152": _imagenet(_152, 86_621_576, 11_895_185_408, _RS, **_OF_RS),
    "resnetrs200": _imagenet(_200, 93_209_992, 15_391_137_792, _RS, **_OF_RS),
    "resnetrs270": _imagenet((4, 29, 53, 4), 129_861_448, 20_643_618_816, _RS, **_OF_RS),
    "resnetrs350": _imagenet((4, 36, 72, 4), 163_956_168, 26_332_012_544, _RS, **_OF_RS),
    "resnetrs420": _imagenet((4, 44, 87, 4), 191_891_656, 31_363_342_336, _RS, **_OF_RS),
    "resnetaa34d": _imagenet(_34, 21_816_904, 4_423_626_752, _AA, "basic", antialias="avg", **_OF_D),
    "resnetaa50": _imagenet(_50, 25_557_032, 5_129_633_792, _AA, antialias="avg"),
    "resnetaa50d": _imagenet(_50, 25_576_264, 5_369_274_368, _AA, antialias="avg", **_OF_D),
    "resnetaa101d": _imagenet(_101, 44_568_392, 9_081_495_552, _AA, antialias="avg", **_OF_D),
    "seresnetaa50d": _imagenet(_50, 28_107_256, 5_371_789_312, _AA, antialias="avg", **_OF_SE | _OF_D),
    "seresnextaa101d_32x8d": _imagenet(
        _101, 93_588_280, 17_178_624_000, _AA, antialias="avg", groups=32, width_per_group=8, **_OF_SE | _OF_D
    ),
    "seresnextaa201d_32x8d": _imagenet(
        (3, 24, 36, 4),
        149_394_904,
        34_276_270_080,
        _AA,
        antialias="avg",
        stem_width=128,
        groups=32,
        width_per_group=8,
        **_OF_SE | _OF_D,
    ),
    "resnetblur18": _imagenet(_18, 11_689_512, 2_334_298_112, _BLUR, "basic", antialias="blur"),
    "resnetblur50": _imagenet(_50, 25_557_032, 5_129_633_792, _BLUR, antialias="blur"),
    "resnetblur50d": _imagenet(_50, 25_576_264, 5_369_274_368, _BLUR, antialias="blur", **_OF_D),
    "resnetblur101d": _imagenet(_101, 44_568_392, 9_081_495_552, _BLUR, antialias="blur", **_OF_D),
    "resnet50_gn": _imagenet(_50, 25_557_032, 4_089_184_256, _GN, norm="group"),
}
for _name, _row in _ROWS.items():
    ZOO.register(_name, _row)


@checked("function arguments")
def list_models(pattern: str = "*") -> list[str]:
    """Return the names of the networks, shallowest first within each family.

    Args:
        pattern: a shell pattern, such as `"resnet1*"` (default: all).

    Example:
        >>> list_models("resnet??")[:3]
        ['resnet18', 'resnet26', 'resnet34']
    """
    return [name for name in ZOO if fnmatchcase(name, pattern)]


@suspending
def create_model(
    name: str, *, num_classes: int, in_channels: int = 3, rngs: nnx.Rngs | int = 0, **spec_overrides: Any
) -> ResNet:
    """Build a network of the zoo with initial weights.

    Args:
        name: one of `list_models()`.
        num_classes: number of logits.
        in_channels: channels of the images (default 3).
        rngs: keys for the initial weights: an `nnx.Rngs` or a seed (default 0).
        **spec_overrides: any other field of `ResNetSpec`, such as `stem="cifar"`, `shortcut="B"` or
            `dtype="bfloat16"`.

    Raises:
        SpecError: if the name or a field is unknown, or a value is not allowed.

    Example:
        >>> import jax.numpy as jnp
        >>> net = create_model("resnet20", num_classes=10)
        >>> net(jnp.ones((1, 32, 32, 3))).shape
        (1, 10)
    """
    if name not in ZOO:
        raise SpecError(
            f"create_model received the unknown name {name!r}.{did_you_mean(name, ZOO)} Expected one of the {len(ZOO)} "
            "names that resfit.list_models() returns."
        )
    values = ZOO[name].spec.to_dict() | spec_overrides | {"num_classes": num_classes, "in_channels": in_channels}
    return ResNet(ResNetSpec.from_dict(values), rngs=nnx.Rngs(rngs) if isinstance(rngs, int) else rngs)
