"""Imports of optional packages, at the first use."""

import importlib
from typing import Any

from resfit.errors import MissingPackageError


def load_package(name: str, who: str, remedy: str) -> Any:
    """Import a module of an optional package.

    Args:
      name: the name of the module.
      who: the part of resfit that needs the package.
      remedy: the command that installs the package.

    Raises:
      MissingPackageError: if the package is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"{who} needs the package {name.partition('.')[0]}, whose import failed: {error}. Install it: {remedy}",
            name=error.name,
        ) from error
