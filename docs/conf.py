"""How Sphinx builds the documentation: `make docs`."""

from __future__ import annotations

import sys
from configparser import ConfigParser
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))  # the directives that our pages use

_setup = ConfigParser()
_setup.read(DOCS.parent / "setup.cfg")

project = "sseflask"
project_copyright = f"2026, {_setup['metadata']['author']}"
release = version = _setup["metadata"]["version"]

extensions = [
    "directives.command_line",
    "directives.floors",
    "directives.http",
    "directives.http_schema",
    "directives.settings",
    "directives.states",
    "myst_parser",
    "pallets_sphinx_themes",
    "sphinx.ext.autodoc",
    "sphinx.ext.graphviz",
    "sphinx.ext.napoleon",
]
# The theme brings domains for other projects, which MyST can't search.
suppress_warnings = ["myst.domains"]
exclude_patterns = ["_build"]
nitpicky = True

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
graphviz_output_format = "svg"

html_theme = "flask"
html_title = f"sseflask {release}"
html_show_sourcelink = False
html_theme_options = {"index_sidebar_logo": False}
