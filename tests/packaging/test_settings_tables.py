"""The pages have a table of each backend's settings, with all names and the defaults."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from roost.provisioners.gateway.settings import RoostGateway
from roost.scheduler.backends.registry import get_spec, load_object

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = {
    "local": "operators",
    "ray": "ray",
    "dask": "dask",
    "docker": "docker",
    "kubernetes": "kubernetes",
    "yarn": "yarn",
    "ssh": "ssh",
}
_VALUE = re.compile(r"`[^`]*`|[\d.]+")
"""A cell with a value. Other cells are in words, such as `measured`."""


def read_table(page: str, section: str) -> dict[str, str]:
    """Return the cell of the default by the name of each setting. A row may name several."""
    rows = page.split(f"| `c.{section}.` |")[1].split("\n\n")[0].splitlines()[2:]
    cells = [row.removeprefix("| ").split(" | ") for row in rows]
    return {name: default for names, default, *_ in cells for name in re.findall(r"`(\w+)`", names)}


def read_value(cell: str) -> object:
    """Return the value in a cell: a literal of Python, or a text without quotes."""
    text = cell.strip("`")
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


@pytest.mark.parametrize("backend", PAGES)
def test_a_page_has_all_settings_with_their_defaults(backend: str) -> None:
    spec = get_spec(backend)
    settings = load_object(spec.settings, "the settings")()
    table = read_table((DOCS / f"{PAGES[backend]}.md").read_text(encoding="utf-8"), spec.section)
    assert set(table) == set(settings.trait_names(config=True))
    wrong = {
        name: (cell, getattr(settings, name))
        for name, cell in table.items()
        if _VALUE.fullmatch(cell) and read_value(cell) != getattr(settings, name)
    }
    assert wrong == {}


def test_the_page_of_the_gateway_has_all_its_settings() -> None:
    table = read_table((DOCS / "gateway.md").read_text(encoding="utf-8"), "RoostGateway")
    assert set(table) == set(RoostGateway.class_trait_names(config=True))
