"""Sphinx builds the documentation site with this file: `make docs`, from Markdown pages and from docstrings."""

from __future__ import annotations

import re

from sphinx.application import Sphinx

import roost

project = "roost"
author = "roost contributors"
version = release = roost.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["examples"]
templates_path = []
html_theme = "sphinx_book_theme"
html_title = "roost"
html_theme_options = {
    "use_download_button": False,
    "use_fullscreen_button": False,
    "navigation_with_keys": False,
}
html_show_sourcelink = False
html_show_copyright = False

myst_heading_anchors = 4
suppress_warnings = ["misc.highlighting_failure"]  # a shown command with its output is no program
highlight_language = "none"
default_role = "literal"  # docstrings put code between single backticks
nitpicky = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_preserve_defaults = True

# Files outside docs/ that are pages of the site too: in the repository they keep the places where people look for them.
PAGES_OUTSIDE = {
    "../CONTRIBUTING.md": "project/contributing.md",
    "../CHANGELOG.md": "project/changelog.md",
    "../benchmarks/README.md": "project/how_benchmarks_work.md",
    "../scheduler/core/README.md": "project/life_of_a_lease.md",
}
_CODE = re.compile(r"(``.+?``|`[^`]+`|\*\w[^*]*\w\*)")
"""Parts of a docstring's line that stay as they are: code and *emphasis*."""
_MARKUP = re.compile(r"[*|`]|_(?!\w)")


def link_pages_of_the_site(_app: Sphinx, name: str, source: list[str]) -> None:
    """Point links to files outside docs/ at the pages that include these files."""
    for outside, inside in PAGES_OUTSIDE.items():
        source[0] = source[0].replace(f"]({outside}", f"]({inside}")


def write_as_rst(
    _app: Sphinx, _kind: str, _name: str, _object: object, _options: object, lines: list[str]
) -> None:
    """Rewrite a docstring's lines as reStructuredText: mark indented blocks by `::`, and escape markup outside code."""
    written: list[str] = []
    verbatim = ""  # "indented" within an indented block, "example" within an example with its output
    in_list = False
    for line in lines:
        if verbatim == "indented" and line.strip() and not line.startswith(" "):
            verbatim = ""
        if verbatim == "example" and not line.strip():
            verbatim = ""
        if line.strip() and not line.startswith(" "):
            in_list = line.startswith("- ")
        if not verbatim and line.startswith(">>>"):
            verbatim = "example"
        if not verbatim and line.startswith(" ") and not in_list:
            verbatim = "indented"
            written += ["", "::", ""]
        if not verbatim:
            parts = enumerate(_CODE.split(line))  # every second part is code or emphasis
            line = "".join(part if at % 2 else _MARKUP.sub(r"\\\g<0>", part) for at, part in parts)
        written.append(line)
    lines[:] = written


def setup(app: Sphinx) -> None:
    app.connect("source-read", link_pages_of_the_site)
    app.connect("autodoc-process-docstring", write_as_rst)
