"""The choice of `compile(precision="auto")`: bfloat16 where the device has units for it."""

from typing import Any, NamedTuple

from resfit.backends.cpu_flags import BFLOAT16, cpu_flags

_LEAST_CAPABILITY = 8  # of NVIDIA's GPUs with tensor cores for bfloat16: Ampere


class Precision(NamedTuple):
    """A precision, and the reason for it; "" if the user chose it."""

    name: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})" if self.reason else self.name


def resolve_precision(choice: str, device: Any, *, by_onednn: bool) -> Precision:
    """Return the precision of a run.

    Args:
      choice: of `compile`: "float32", "bfloat16" or "auto".
      device: the first device of the run.
      by_onednn: True if oneDNN computes the convolutions.
    """
    if choice != "auto":
        return Precision(choice)
    choose = {"cpu": _on_cpu, "gpu": _on_gpu, "tpu": _on_tpu}.get(device.platform, _elsewhere)
    return choose(device, by_onednn)


def _on_cpu(device: Any, by_onednn: bool) -> Precision:
    units = sorted(cpu_flags().intersection(BFLOAT16))
    if not units:
        return Precision("float32", f"this processor has none of {', '.join(BFLOAT16)}")
    if not by_onednn:
        return Precision("float32", f"this processor has {units[0]}, but oneDNN, which uses it, is not in use")
    return Precision("bfloat16", f"this processor has {units[0]}")


def _on_gpu(device: Any, by_onednn: bool) -> Precision:
    capability = str(getattr(device, "compute_capability", ""))
    major = capability.partition(".")[0]
    has_units = major.isdigit() and int(major) >= _LEAST_CAPABILITY
    return Precision(
        "bfloat16" if has_units else "float32",
        f"{device.device_kind} has {'' if has_units else 'no known '}tensor cores for bfloat16",
    )


def _on_tpu(device: Any, by_onednn: bool) -> Precision:
    return Precision("bfloat16", f"{device.device_kind} multiplies in bfloat16")


def _elsewhere(device: Any, by_onednn: bool) -> Precision:
    return Precision("float32", f"nothing is known about the platform {device.platform!r}")
