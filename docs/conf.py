"""Sphinx configuration: MyST pages, the API from docstrings, nothing fetched from the network."""

import importlib.metadata
import re
from typing import Any

project = "resfit"
author = "The resfit authors"
copyright = "The resfit authors, Apache-2.0"
release = version = importlib.metadata.version("resfit")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

default_role = "py:obj"  # `Name` in a docstring links to it
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # an attribute is described once, where its class is
# One page a name: what a base class of another library documents is documented there.
autodoc_default_options = {"members": True, "show-inheritance": True, "inherited-members": False}

html_theme = "furo"
html_title = "resfit"


def keep_trailing_underscores(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Our docstrings mean `val_` when they say val_; reStructuredText would take it for a reference."""
    lines[:] = [line if "`" in line or ">>>" in line else re.sub(r"(?<=\w)_(?=\W|$)", r"\_", line) for line in lines]


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", keep_trailing_underscores)
