"""The fingerprint of a run: the settings, data and versions that must be equal to resume it."""

import importlib.metadata
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from resfit.data import Batches
from resfit.data.batches import description_of
from resfit.trainer.context import RunContext

_PACKAGES = ("resfit", "jax", "jaxlib", "flax", "optax", "numpy")


def fingerprint_of(
    settings: Mapping[str, Any], data: Mapping[str, Batches | None], context: RunContext
) -> dict[str, Any]:
    """Return the fingerprint of a run in JSON values.

    Args:
      settings: of `compile` and `fit`, by name: JSON values.
      data: of the run, by name.
      context: of the run.
    """
    return {
        **settings,
        **{name: None if one is None else described(one) for name, one in data.items()},
        "devices": len(context.placement.devices),
        "processes": context.placement.processes,
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def described(data: Batches) -> dict[str, Any]:
    """Describe a dataset in JSON values, without reading it."""
    labels = b"".join(np.ascontiguousarray(leaf).tobytes() for leaf in jax.tree.leaves(data.labels))
    return {
        "kind": type(data).__name__,
        "examples": data.examples,
        "labels": zlib.crc32(labels),
        **description_of(data),
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any], position: tuple[int, int]) -> dict[str, str]:
    """Return the differences between two fingerprints: name -> "name was ..., is ...".

    Another number of epochs is no difference if nothing before the end depends on it, unless the run has fewer epochs
    now than it has already trained.

    Args:
      before: the fingerprint of the saved run.
      now: that of the present run.
      position: of the saved run, (epoch, batch).
    """
    old, new = _flat(before), _flat(now)
    names = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    if "epochs" in names and not (spans_epochs(new) or spans_epochs(old) or position > (new["epochs"], 0)):
        names.remove("epochs")
    return {name: f"{name} was {old.get(name)!r}, is {new.get(name)!r}" for name in names}


def spans_epochs(fingerprint: Mapping[str, Any]) -> bool:
    """Return True if the learning rates depend on the number of epochs, as those of a named schedule do."""
    return isinstance(fingerprint["learning_rate"], str)


def _flat(fingerprint: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values under dotted names, so that a message names the one value that differs."""
    flat: dict[str, Any] = {}
    for name, value in fingerprint.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat
