"""The msgpack files of `flax.serialization`: nested dicts of arrays."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import serialization

from resfit.errors import WeightsError
from resfit.weights.layouts import Array
from resfit.weights.torch_files import entry_at

_COLLECTIONS = ("params", "batch_stats")  # of Flax: their names are not part of the names of layers


def begins(begin: bytes) -> bool:
    """Return True for the first bytes of a dict with a text as its first key."""
    if not begin or not (0x81 <= begin[0] <= 0x8F or begin[0] in (0xDE, 0xDF)):
        return False
    key = begin[{0xDE: 3, 0xDF: 5}.get(begin[0], 1) :][:1]
    return bool(key) and (0xA0 <= key[0] <= 0xBF or key[0] in (0xD9, 0xDA))


def read(path: Path, keys: tuple[str, ...]) -> dict[str, Array]:
    """Read the arrays of a file by the keys of its dicts, joined by `/`, without the collections of Flax.

    Args:
        path: the file.
        keys: of the nested dicts that contain the weights (default in `weights.read`: none).

    Raises:
        WeightsError: if the file is damaged, or has no entry at the keys.
    """
    try:
        value = serialization.msgpack_restore(path.read_bytes())
    # The errors of msgpack, of NumPy for a wrong shape or dtype, and of Flax for an extension without its entries.
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise WeightsError(
            f"{path} is a damaged msgpack file: {type(error).__name__}: {error}. Expected nested dicts of arrays, as "
            "flax.serialization.to_bytes writes them. Download it again."
        ) from error
    value = entry_at(path, value, keys)
    if not isinstance(value, dict):
        raise WeightsError(
            f"{path} contains a {type(value).__name__}. Expected nested dicts of arrays, as "
            "flax.serialization.to_bytes writes them. Save a dict."
        )
    result: dict[str, Array] = {}
    collections = [value[key] for key in _COLLECTIONS if isinstance(value.get(key), dict)]
    for part in collections or [value]:
        for name, array in _flat(part, ""):
            if name in result:
                raise WeightsError(f"{path} has two arrays {name!r}. Expected one. Choose a collection with key=.")
            result[name] = array
    if not result:
        raise WeightsError(f"{path} contains no arrays; its entries are {list(value)[:10]}. Expected arrays by name.")
    return result


def _flat(value: Mapping[Any, Any], before: str) -> Iterator[tuple[str, Array]]:
    """Iterate over the arrays of nested dicts by their joined keys."""
    for key, entry in value.items():
        if isinstance(entry, dict):
            yield from _flat(entry, f"{before}{key}/")
        elif isinstance(entry, np.ndarray):
            yield f"{before}{key}", entry
