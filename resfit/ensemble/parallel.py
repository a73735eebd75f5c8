"""The decision which members of an ensemble train at the same time: by the size of the network and the devices."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from resfit.data.cores import cores
from resfit.model import Model

SMALL = 2_000_000
"""Parameters up to which several members are trained at the same time."""


def devices(members: Sequence[Model], given: Sequence[Mapping[str, Any]]) -> list[jax.Device | None]:
    """Return the device of each member: of several devices, small members get one each, in turn. None for any device.

    A batch of a small network is too little work for several devices, so it is not split over them, unless the
    arguments of `compile` or `jax.default_device` say where to train.

    Args:
      members: of the ensemble.
      given: the arguments of `compile` of each.
    """
    own: list[jax.Device | None] = [None] * len(members)
    every = jax.local_devices()
    chosen = jax.config.jax_default_device is not None  # type: ignore[attr-defined]  # in JAX's docs, not in its types
    chosen |= any(one.get("dispatch", "auto") != "auto" or one.get("batch_norm", "global") != "global" for one in given)
    if len(every) > 1 and len(members) > 1 and not chosen and _is_small(members):
        own = [every[i % len(every)] for i in range(len(members))]
    return own


def at_once(members: Sequence[Model]) -> int:
    """Return the number of members that take their steps at the same time, each by its own program.

    On a CPU, one on each core. On accelerators, one on each device.
    """
    used = _devices(members)
    if not _is_small(members) or not used:
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
    return single and not several_steps and _is_small(members) and computes_several(used[0].platform)


def computes_several(platform: str) -> bool:
    """Return True for a platform on which the `jax.vmap` of a training step is fast."""
    return platform != "cpu"


def _is_small(members: Sequence[Model]) -> bool:
    return members[0].count_params() <= SMALL


def _devices(members: Sequence[Model]) -> list[jax.Device]:
    """Return the device of each member; nothing if a member has several."""
    each = [model.snapshot().devices for model in members]
    return [own[0] for own in each] if all(len(own) == 1 for own in each) else []
