"""The table of the other gateways' options is well-formed, and names settings and options that roost has."""

from __future__ import annotations

import csv
import re
from collections import Counter
from pathlib import Path

import pytest

from roost.provisioners.request_options import OPTIONS
from roost.provisioners.server_extension.extension import RoostExtension
from roost.scheduler.backends.registry import get_spec, load_object
from roost.scheduler.config.settings import RoostScheduler

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "provisioners" / "migration" / "options.csv"
PAGES = ROOT / "docs" / "migration"
BACKENDS = ("local", "ray", "dask", "docker", "kubernetes", "yarn", "ssh")
STATUSES = ("same", "translated", "differs", "decision", "gap", "none")
SYSTEMS = ("JEG", "GP", "RP", "GP+JEG")
_SETTING = re.compile(r"\bc\.(Roost\w+)\.(\w+)")
_OPTION = re.compile(r"\bthe option `(\w+)`")


def read_rows() -> list[dict[str, str]]:
    with TABLE.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, strict=True))


def list_settings() -> dict[str, list[str]]:
    """Return the names of the settings by their section."""
    sections = {get_spec(backend).section: get_spec(backend).settings for backend in BACKENDS}
    classes = {name: load_object(reference, "the settings") for name, reference in sections.items()}
    classes |= {"RoostScheduler": RoostScheduler, "RoostExtension": RoostExtension}
    return {name: section.class_trait_names(config=True) for name, section in classes.items()}


def test_each_row_is_whole() -> None:
    rows = read_rows()
    assert len(rows) > 350
    for row in rows:
        assert list(row) == ["system", "kind", "name", "meaning", "roost", "status"], row
        assert all(text and text == text.strip() and "|" not in text for text in row.values()), row
        assert row["system"] in SYSTEMS, row
        assert row["status"] in STATUSES, row


def test_no_option_is_there_twice() -> None:
    options = Counter(
        (system, row["kind"], row["name"]) for row in read_rows() for system in row["system"].split("+")
    )
    assert [option for option, number in options.items() if number > 1] == []


def test_a_row_without_an_equivalent_has_a_reason() -> None:
    for row in read_rows():
        has_none = row["roost"].startswith(("none", "not ", "refused"))
        if row["status"] == "none":
            assert has_none, row
        if has_none:
            assert row["status"] in ("none", "gap", "decision"), row
        if has_none or row["status"] == "gap":
            assert len(row["roost"].split()) > 3, f"no reason: {row}"


def test_the_page_shows_all_kinds() -> None:
    places = re.findall(r"<!-- options ([\w-]+) -->", (PAGES / "options.md").read_text(encoding="utf-8"))
    assert sorted(places) == sorted({row["kind"] for row in read_rows()})


@pytest.mark.parametrize("file", [TABLE, *sorted(PAGES.iterdir())], ids=lambda file: file.name)
def test_named_settings_and_options_exist(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    settings = list_settings()
    wrong = [
        f"c.{section}.{trait}" for section, trait in _SETTING.findall(text) if trait not in settings[section]
    ]
    assert wrong == []
    of_backends = {option.name for backend in BACKENDS for option in get_spec(backend).request_options}
    assert set(_OPTION.findall(text)) - set(OPTIONS) - of_backends == set()
