"""Packages that a test needs and resfit does not."""

import importlib
import os
from typing import Any

import pytest


def package(name: str) -> Any:
    """Import a package. Without it, skip the test, or fail if RESFIT_REQUIRE (comma-separated names) lists it."""
    if name in os.environ.get("RESFIT_REQUIRE", "").split(","):
        return importlib.import_module(name)
    return pytest.importorskip(
        name, reason=f"needs the package {name}: requirements/dev.txt, `make against` or `make originals` has it"
    )
