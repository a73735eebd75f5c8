"""The transforms of published weight files, by their names in `create_model(weights=...)`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from resfit._utils.keywords import checked
from resfit._utils.suggest import did_you_mean
from resfit.errors import WeightsError
from resfit.transforms.transforms import MEAN, STD, Transforms


@dataclass(frozen=True)
class Published:
    """The evaluation settings of some weight files.

    Attributes:
        size: pixels per side of the crop at the training size.
        share: the share of the shorter side of the resized image that the crop keeps (timm's crop_pct).
        test_size: pixels per side of the crop at timm's test size, if it differs.
        test_share: the share at timm's test size, if it differs.
        interpolation: "bilinear" or "bicubic".
        mean: the mean of each channel.
        std: the standard deviation of each channel.
    """

    size: int
    share: float
    test_size: int | None = None
    test_share: float | None = None
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    def transforms(self, *, at_test_size: bool) -> Transforms:
        """Return the settings as `Transforms` in pixels."""
        size, share = self.size, self.share
        if at_test_size:
            size, share = self.test_size or size, self.test_share or share
        return Transforms(math.floor(size / share), size, self.interpolation, self.mean, self.std)


_HALF = (0.5, 0.5, 0.5)

# timm's pretrained_cfg of every network in the zoo (timm/models/resnet.py and resnetv2.py).
_TIMM = {
    Published(224, 0.95, 288, 1.0): """
        resnet18.a1_in1k resnet18.a2_in1k resnet34.a1_in1k resnet34.a2_in1k resnet50.a1_in1k resnet50.a2_in1k
        resnet50.b1k_in1k resnet50.b2k_in1k resnet50.c1_in1k resnet50.c2_in1k resnet50.d_in1k resnet101.a1_in1k
        resnet101.a1h_in1k resnet101.a2_in1k resnet152.a1_in1k resnet152.a1h_in1k resnet152.a2_in1k
        resnext50_32x4d.a1_in1k resnext50_32x4d.a1h_in1k resnext50_32x4d.a2_in1k resnext101_64x4d.c1_in1k
        resnet50d.a1_in1k resnet50d.a2_in1k seresnet50.a1_in1k seresnet50.a2_in1k seresnext101_32x8d.ah_in1k
        seresnext101d_32x8d.ah_in1k ecaresnet50t.a1_in1k ecaresnet50t.a2_in1k resnetaa50.a1h_in1k
        resnetaa50d.d_in12k resnetaa50d.sw_in12k resnetaa50d.sw_in12k_ft_in1k resnetaa101d.sw_in12k
        resnetaa101d.sw_in12k_ft_in1k seresnextaa101d_32x8d.ah_in1k seresnextaa101d_32x8d.sw_in12k""",
    Published(160, 0.95, 224, 0.95): """
        resnet18.a3_in1k resnet34.a3_in1k resnet50.a3_in1k resnet101.a3_in1k resnet152.a3_in1k
        resnext50_32x4d.a3_in1k resnet50d.a3_in1k seresnet50.a3_in1k ecaresnet50t.a3_in1k""",
    Published(224, 0.875, interpolation="bilinear"): """
        resnet18.fb_ssl_yfcc100m_ft_in1k resnet18.fb_swsl_ig1b_ft_in1k resnet18.tv_in1k resnet34.tv_in1k
        resnet50.fb_ssl_yfcc100m_ft_in1k resnet50.fb_swsl_ig1b_ft_in1k resnet50.tv_in1k resnet101.tv_in1k
        resnet152.tv_in1k resnext50_32x4d.fb_ssl_yfcc100m_ft_in1k resnext50_32x4d.fb_swsl_ig1b_ft_in1k
        resnext50_32x4d.tv_in1k resnext101_32x8d.fb_ssl_yfcc100m_ft_in1k resnext101_32x8d.fb_swsl_ig1b_ft_in1k
        resnext101_32x8d.fb_wsl_ig1b_ft_in1k resnext101_32x8d.tv_in1k resnext101_64x4d.tv_in1k
        wide_resnet50_2.tv_in1k wide_resnet101_2.tv_in1k resnext101_32x4d.fb_ssl_yfcc100m_ft_in1k
        resnext101_32x4d.fb_swsl_ig1b_ft_in1k resnext101_32x16d.fb_ssl_yfcc100m_ft_in1k
        resnext101_32x16d.fb_swsl_ig1b_ft_in1k resnext101_32x16d.fb_wsl_ig1b_ft_in1k
        resnext101_32x32d.fb_wsl_ig1b_ft_in1k legacy_seresnet50.in1k legacy_seresnet101.in1k
        legacy_seresnet152.in1k legacy_seresnext50_32x4d.in1k legacy_seresnext101_32x4d.in1k""",
    Published(224, 0.875): """
        resnet18.gluon_in1k resnet34.gluon_in1k resnet50.am_in1k resnet50.gluon_in1k resnet101.gluon_in1k
        resnet152.gluon_in1k resnext50_32x4d.gluon_in1k resnext101_64x4d.gluon_in1k resnet50c.gluon_in1k
        resnet101c.gluon_in1k resnet152c.gluon_in1k resnet50s.gluon_in1k resnet101s.gluon_in1k
        resnet152s.gluon_in1k resnext101_32x4d.gluon_in1k resnet50d.gluon_in1k resnet101d.gluon_in1k
        resnet152d.gluon_in1k seresnext50_32x4d.gluon_in1k seresnext101_32x4d.gluon_in1k
        seresnext101_64x4d.gluon_in1k senet154.gluon_in1k legacy_seresnext26_32x4d.in1k""",
    Published(224, 0.875, 288, 0.95): """
        resnet34.bt_in1k resnet50.bt_in1k resnet50.ra_in1k resnet50.ram_in1k resnext50_32x4d.ra_in1k
        wide_resnet50_2.racm_in1k resnet26.bt_in1k resnext50d_32x4d.bt_in1k resnet18d.ra2_in1k
        resnet34d.ra2_in1k resnet26d.bt_in1k resnet50d.ra2_in1k seresnet50.ra2_in1k seresnext26d_32x4d.bt_in1k
        seresnext26t_32x4d.bt_in1k seresnext50_32x4d.racm_in1k ecaresnetlight.miil_in1k ecaresnet50d.miil_in1k
        ecaresnet101d.miil_in1k resnetblur50.bt_in1k""",
    Published(224, 0.9, 288, 1.0, mean=_HALF, std=_HALF): """
        resnet34.ra4_e3600_r224_in1k resnetv2_18.ra4_e3600_r224_in1k resnetv2_34.ra4_e3600_r224_in1k
        resnetv2_18d.ra4_e3600_r224_in1k resnetv2_34d.ra4_e3600_r224_in1k resnet18d.ra4_e3600_r224_in1k""",
    Published(176, 0.9, 224, 1.0): "resnet50.a1h_in1k",
    Published(224, 1.0): "resnet50.bamboo",
    Published(176, 0.875, 224, 0.965, interpolation="bilinear"): """
        resnet50.tv2_in1k resnet101.tv2_in1k resnet152.tv2_in1k resnext50_32x4d.tv2_in1k
        resnext101_32x8d.tv2_in1k wide_resnet50_2.tv2_in1k wide_resnet101_2.tv2_in1k""",
    Published(224, 0.95, 288, 1.0, mean=_HALF, std=_HALF): """
        resnetv2_50.a1h_in1k resnetv2_101.a1h_in1k resnetv2_50d_gn.ah_in1k resnet50d.ra4_e3600_r224_in1k""",
    Published(384, 1.0, 448, mean=_HALF, std=_HALF): "resnetv2_34d.ra4_e3600_r384_in1k",
    Published(224, 0.875, mean=_HALF, std=_HALF): """
        resnetv2_50x1_bit.goog_distilled_in1k resnetv2_152x2_bit.goog_teacher_in21k_ft_in1k""",
    Published(224, 0.875, interpolation="bilinear", mean=_HALF, std=_HALF): """
        resnetv2_50x1_bit.goog_in21k resnetv2_50x3_bit.goog_in21k resnetv2_101x1_bit.goog_in21k
        resnetv2_101x3_bit.goog_in21k resnetv2_152x2_bit.goog_in21k resnetv2_152x4_bit.goog_in21k""",
    Published(448, 1.0, interpolation="bilinear", mean=_HALF, std=_HALF): """
        resnetv2_50x1_bit.goog_in21k_ft_in1k resnetv2_50x3_bit.goog_in21k_ft_in1k
        resnetv2_101x1_bit.goog_in21k_ft_in1k resnetv2_101x3_bit.goog_in21k_ft_in1k
        resnetv2_152x2_bit.goog_in21k_ft_in1k""",
    Published(384, 1.0, mean=_HALF, std=_HALF): "resnetv2_152x2_bit.goog_teacher_in21k_ft_in1k_384",
    Published(480, 1.0, interpolation="bilinear", mean=_HALF, std=_HALF): "resnetv2_152x4_bit.goog_in21k_ft_in1k",
    Published(256, 0.95, 320, 1.0): """
        resnet101d.ra2_in1k resnet152d.ra2_in1k resnet200d.ra2_in1k seresnet152d.ra2_in1k""",
    Published(176, 0.875, 224, 0.95): "resnet10t.c3_in1k resnet14t.c3_in1k",
    Published(256, 0.94, 320, 1.0): "resnet26t.ra2_in1k",
    Published(256, 0.875, 320, 0.95): "ecaresnet26t.ra2_in1k ecaresnet50t.ra2_in1k",
    Published(320, 0.95, 352, 1.0): "ecaresnet269d.ra2_in1k",
    Published(160, 0.91, 224): "resnetrs50.tf_in1k",
    Published(192, 0.94, 288): "resnetrs101.tf_in1k",
    Published(256, 1.0, 320): "resnetrs152.tf_in1k resnetrs200.tf_in1k",
    Published(256, 1.0, 352): "resnetrs270.tf_in1k",
    Published(288, 1.0, 384): "resnetrs350.tf_in1k",
    Published(320, 1.0, 416): "resnetrs420.tf_in1k",
    Published(224, 0.875, 288, 1.0): "seresnextaa101d_32x8d.sw_in12k_ft_in1k",
    Published(288, 0.95, 320, 1.0): "seresnextaa101d_32x8d.sw_in12k_ft_in1k_288",
    Published(320, 0.95, 384, 1.0): "seresnextaa201d_32x8d.sw_in12k",
    Published(384, 1.0): "seresnextaa201d_32x8d.sw_in12k_ft_in1k_384",
    Published(224, 0.94, 288, 0.95): "resnet50_gn.a1h_in1k",
}

# torchvision's Weights.transforms (torchvision/models/resnet.py).
_V1, _V2 = Published(224, 224 / 256, interpolation="bilinear"), Published(224, 224 / 232, interpolation="bilinear")
_OF_BOTH = (
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "wide_resnet50_2",
    "wide_resnet101_2",
)
_TORCHVISION = (
    {f"{name}.IMAGENET1K_V1": _V1 for name in ("resnet18", "resnet34", *_OF_BOTH)}
    | {f"{name}.IMAGENET1K_V2": _V2 for name in _OF_BOTH}
    | {"resnext101_64x4d.IMAGENET1K_V1": _V2}  # trained by the newer recipe
)

PUBLISHED: Mapping[str, Published] = MappingProxyType(
    {f"timm/{name}": published for published, names in _TIMM.items() for name in names.split()}
    | {f"torchvision/{name}": published for name, published in _TORCHVISION.items()}
)


def published_transforms(weights: str, name: str | None = None) -> Transforms | None:
    """Return the transforms of a published weight file; None for an unknown one, such as a path.

    Args:
        weights: as for `create_model`; a revision of the hub, "@...", is ignored.
        name: the name of the network.
    """
    library, _, file = weights.partition("@")[0].partition("/")
    found = PUBLISHED.get(f"{library}/{name}.{file}" if library == "torchvision" else f"{library}/{file}")
    return None if found is None else found.transforms(at_test_size=False)


@checked("function arguments")
def transforms_for(weights: str, name: str | None = None, *, at_test_size: bool = False) -> Transforms:
    """Return the transforms that a published weight file expects.

    Args:
        weights: a name such as "timm/resnet50.a1_in1k", for every timm file of a network in the zoo; or
            "torchvision/IMAGENET1K_V1" or "torchvision/IMAGENET1K_V2" together with `name`.
        name: the name of the network, as in `create_model`; names of timm contain it.
        at_test_size: True for timm's test size, if it is larger than the training size: usually more accurate, and
            slower (timm's use_test_size; default False).

    Raises:
        WeightsError: if the file is unknown.

    Example:
        >>> transforms_for("torchvision/IMAGENET1K_V2", "resnet50").resize
        232
        >>> transforms_for("timm/resnet50.a1_in1k").interpolation
        'bicubic'
    """
    library, _, file = weights.partition("/")
    key = f"{library}/{name}.{file}" if library == "torchvision" and name else weights
    network = key.partition("/")[2].partition(".")[0]
    if key not in PUBLISHED or name not in (None, network):
        same = [known for known in PUBLISHED if known.startswith(f"{library}/{name or network}.")]
        needs_name = " For torchvision, pass the network as well: transforms_for(weights, 'resnet50')."
        raise WeightsError(
            f"transforms_for knows no file {weights!r} of the network {name!r}. Expected one of "
            f"{same or [*[*PUBLISHED][:3], '...']}."
            + (did_you_mean(key, PUBLISHED) if not same else "")
            + (needs_name if library == "torchvision" and name is None else "")
            + " For other files, use resfit.transforms.Transforms(resize, crop, interpolation, mean, std)."
        )
    return PUBLISHED[key].transforms(at_test_size=at_test_size)
