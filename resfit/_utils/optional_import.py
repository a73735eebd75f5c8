"""Packages that only some data sets and callbacks need, imported when the first of them is asked for."""

import importlib
from typing import Any

from resfit.errors import MissingPackageError


def load_package(name: str, who: str, remedy: str) -> Any:
    """Imports a package.

    Args:
      name: of the module to import.
      who: what needs it.
      remedy: the command that installs it.

    Raises:
      MissingPackageError: if it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"{who} needs the package {name.partition('.')[0]}, and importing it failed: {error}. Install it: {remedy}",
            name=error.name,
        ) from error
