"""The decision which members of an ensemble train at the same time: by the size of the network and the devices."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from resfit.data.cores import cores
from resfit.model import Model

SMALL = 2_000_000
"""Parameters up to which several members are trained at the same time."""


def devices(members: Sequence[Model], given: Sequence[Mapping[str, Any]]) -> list[jax.Device | None]:
    """Return the device of each member: of several devices, a small member gets one, in turn. None for any device.

    A batch of a small network is too little work for several devices, so it is not split over them, unless the
    arguments of `compile` or `jax.default_device` say where to train. The other members do not change that: a trial of
    `search` has other ones after each round of halving, and resumes with the same number of devices.

    Args:
      members: of the ensemble.
      given: the arguments of `compile` of each.
    """
    every = jax.local_devices()
    if len(every) == 1 or jax.config.jax_default_device is not None:  # type: ignore[attr-defined]  # not in its types
        return [None] * len(members)
    return [
        every[i % len(every)] if _is_small(model) and not _says_where(own) else None
        for i, (model, own) in enumerate(zip(members, given, strict=True))
    ]


def _says_where(given: Mapping[str, Any]) -> bool:
    """Return True if arguments of `compile` choose the devices."""
    return (given.get("dispatch", "auto"), given.get("batch_norm", "global")) != ("auto", "global")


def group_size(model: Model) -> int:
    """Return the number of models like this one that are worth training together: large ones only fill the memory."""
    if not _is_small(model):
        return 1
    return cores() if jax.default_backend() == "cpu" else max(cores(), jax.local_device_count())


def at_once(members: Sequence[Model]) -> int:
    """Return the number of members that take their steps at the same time, each by its own program.

    On a CPU, one on each core. On accelerators, one on each device.
    """
    used = _devices(members)
    if not _is_small(members[0]) or not used:
        return 1
    return min(len(members), cores()) if used[0].platform == "cpu" else len(set(used))


def together(members: Sequence[Model], compiled: Sequence[Mapping[str, Any]]) -> bool:
    """Return True if one program takes the steps of all members, or of all that have one device.

    An accelerator computes several small networks in hardly more time than one. On a CPU, XLA computes the gradients of
    several convolutions in one program far slower than one after the other. `steps_per_execution` hands over several
    steps of one member at once already.

    Args:
      members: of the ensemble.
      compiled: the arguments of `compile` of each.
    """
    used = _devices(members)
    single = len(members) > 1 and bool(used) and not any(own.get("dispatch") == "eager" for own in compiled)
    several_steps = any((own.get("steps_per_execution") or 1) != 1 for own in compiled)
    return single and not several_steps and _is_small(members[0]) and computes_several(used[0].platform)


def computes_several(platform: str) -> bool:
    """Return True for a platform on which the `jax.vmap` of a training step is fast."""
    return platform != "cpu"


def _is_small(model: Model) -> bool:
    return model.count_params() <= SMALL


def _devices(members: Sequence[Model]) -> list[jax.Device]:
    """Return the device of each member; nothing if a member has several."""
    each = [model.snapshot().devices for model in members]
    return [own[0] for own in each] if all(len(own) == 1 for own in each) else []
