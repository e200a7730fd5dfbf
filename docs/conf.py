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
    "directives.api",
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
templates_path = ["_templates"]
nitpicky = True
# Types of others: the site is built without asking their sites where they stand.
nitpick_ignore_regex = [("py:.*", r"(?!sseflask).*|sseflask\.tally\.Latency")]
# A single backtick in a docstring.
default_role = "api"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autoclass_content = "both"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_mock_imports = ["pytest"]  # it would wrap the fixtures
python_maximum_signature_line_length = 100
toc_object_entries_show_parents = "hide"
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
graphviz_output_format = "svg"

html_theme = "flask"
html_title = f"sseflask {release}"
html_show_sourcelink = False
html_theme_options = {"index_sidebar_logo": False}
html_static_path = ["_static"]
html_css_files = ["sseflask.css"]
# Where the reader is among all pages, not the last and the next one only; then the page itself, whose headings may be many.
html_sidebars = {"**": ["searchbox.html", "pages.html", "on_this_page.html"]}
