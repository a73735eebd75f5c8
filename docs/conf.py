"""Sphinx configuration: MyST pages, the API from docstrings, nothing fetched from the network."""

from importlib.metadata import version

project = "resfit"
author = "The resfit authors"
copyright = "The resfit authors, Apache-2.0"
release = version("resfit")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# One page a name: what a base class of another library documents is documented there.
autodoc_default_options = {"members": True, "show-inheritance": True, "inherited-members": False}

html_theme = "furo"
html_title = "resfit"
