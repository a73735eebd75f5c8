"""Packages that only some callbacks need, imported when the first of them is made."""

import importlib
from typing import Any

from resfit.errors import MissingPackageError


def load(name: str, who: str, remedy: str) -> Any:
    """Imports a package.

    Args:
      name: of the package.
      who: the callback that needs it.
      remedy: the command that installs it.

    Raises:
      MissingPackageError: if it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"{who} needs the package {name}, and importing it failed: {error}. Install it: {remedy}", name=error.name
        ) from error
