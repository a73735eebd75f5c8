"""Addresses and checksums of torchvision's published weights."""

from collections.abc import Mapping
from types import MappingProxyType

from resfit._utils.download import Remote

_FOLDER = "https://download.pytorch.org/models/"


def _versions(name: str, *checksums: str) -> dict[str, Remote]:
    remedy = "pass its path as weights="
    return {
        f"IMAGENET1K_V{version}": Remote(f"{_FOLDER}{name}-{begin}.pth", None, begin, remedy)
        for version, begin in enumerate(checksums, start=1)
    }


# Network -> version -> file (torchvision/models/resnet.py). A file's name ends with the first digits of its SHA-256,
# which torch.hub also checks.
TORCHVISION: Mapping[str, Mapping[str, Remote]] = MappingProxyType(
    {
        name: _versions(name, *checksums)
        for name, *checksums in (
            ("resnet18", "f37072fd"),
            ("resnet34", "b627a593"),
            ("resnet50", "0676ba61", "11ad3fa6"),
            ("resnet101", "63fe2227", "cd907fc2"),
            ("resnet152", "394f9c45", "f82ba261"),
            ("resnext50_32x4d", "7cdf4587", "1a0047aa"),
            ("resnext101_32x8d", "8ba56ff5", "110c445d"),
            ("resnext101_64x4d", "173b62eb"),
            ("wide_resnet50_2", "95faca4d", "9ba9bcbe"),
            ("wide_resnet101_2", "32ee1156", "d733dc28"),
        )
    }
)
