"""Sphinx configuration: MyST pages, the API from docstrings, nothing fetched from the network."""

import importlib.metadata
import re
from pathlib import Path
from typing import Any

project = "resfit"
author = "The resfit authors"
copyright = "The resfit authors, Apache-2.0"
release = version = importlib.metadata.version("resfit")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton"]
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
# Members of base classes from other libraries are documented there.
autodoc_default_options = {"members": True, "show-inheritance": True, "inherited-members": False}

html_theme = "furo"
html_title = "resfit"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_search_scorer = str(Path(__file__).with_name("scorer.js"))
copybutton_prompt_text = r">>> |\.\.\. "  # a copied block has no prompts and no output
copybutton_prompt_is_regexp = True


def take_literally(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Escape the text of docstrings: they are plain text with `code`, so `val_`, `stage*` and `|g|` are not markup."""
    for i, line in enumerate(lines):
        if line.lstrip().startswith((">>>", "...")):
            continue
        parts = re.split(r"(`[^`]*`)", line)
        parts[::2] = [re.sub(r"[*|]|(?<=\w)_(?=\W|$)", r"\\\g<0>", part) for part in parts[::2]]
        lines[i] = "".join(parts)


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", take_literally, priority=400)  # before napoleon adds its markup
