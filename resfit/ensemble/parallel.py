"""The decision which members of an ensemble train at the same time: by the size of the network and the platform."""

from collections.abc import Mapping, Sequence
from typing import Any

from resfit.data.cores import cores
from resfit.model import Model

SMALL = 2_000_000
"""Parameters up to which several members are trained at the same time."""


def at_once(members: Sequence[Model]) -> int:
    """Return the number of members that a CPU trains at the same time, each by its own steps; 1 for other platforms."""
    return min(len(members), cores()) if _is_small(members) and _platforms(members) == ["cpu"] else 1


def together(members: Sequence[Model], compiled: Sequence[Mapping[str, Any]]) -> bool:
    """Return True if one program takes the steps of all members.

    An accelerator computes several small networks in hardly more time than one. On a CPU, XLA computes the gradients of
    several convolutions in one program far slower than one after the other. `steps_per_execution` hands over several
    steps of one member at once already.

    Args:
      members: of the ensemble.
      compiled: the arguments of `compile` of each.
    """
    platforms = _platforms(members)
    single = len(platforms) == 1 and not any(own.get("dispatch") == "eager" for own in compiled)
    several_steps = any((own.get("steps_per_execution") or 1) != 1 for own in compiled)
    return len(members) > 1 and single and not several_steps and _is_small(members) and computes_several(platforms[0])


def computes_several(platform: str) -> bool:
    """Return True for a platform on which the `jax.vmap` of a training step is fast."""
    return platform != "cpu"


def _is_small(members: Sequence[Model]) -> bool:
    return members[0].count_params() <= SMALL


def _platforms(members: Sequence[Model]) -> list[str]:
    return [device.platform for device in members[0].snapshot().devices]
