"""The page of the other gateways' options names settings that roost has, and all that `roost migrate` knows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from roost.provisioners.gateway.settings import RoostGateway
from roost.provisioners.migration import tables
from roost.provisioners.migration.server import find_key
from roost.provisioners.request_options import OPTIONS
from roost.provisioners.server_extension.extension import RoostExtension
from roost.scheduler.backends.registry import get_spec, load_object
from roost.scheduler.config.settings import RoostScheduler

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "migration"
BACKENDS = ("local", "ray", "dask", "docker", "kubernetes", "yarn", "ssh")
_SETTING = re.compile(r"\bc\.(Roost\w+)\.(\w+)")
_OPTION = re.compile(r"\bthe option `(\w+)`")
_ROW = re.compile(r"\| (`.+`) \([A-Z, ]+\) \| [^|]+ \| \*(\w+)\*: ([^|]+) \|")
"""A row of the page: the options, the status, and the equivalent."""


def read_rows() -> list[tuple[list[str], str, str]]:
    text = (PAGES / "options.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    found = [_ROW.fullmatch(row) for row in rows]
    assert None not in found, rows[found.index(None)]
    return [(re.findall(r"`([^`]+)`", row[1]), row[2], row[3]) for row in found if row]


def list_settings() -> dict[str, list[str]]:
    """Return the names of the settings by their section."""
    sections = {get_spec(backend).section: get_spec(backend).settings for backend in BACKENDS}
    classes = {name: load_object(reference, "the settings") for name, reference in sections.items()}
    classes |= {each.__name__: each for each in (RoostScheduler, RoostExtension, RoostGateway)}
    return {name: section.class_trait_names(config=True) for name, section in classes.items()}


def test_an_option_without_an_equivalent_has_a_reason() -> None:
    rows = read_rows()
    assert sum(len(names) for names, _, _ in rows) > 280
    for names, status, text in rows:
        has_none = text.startswith(("none", "not ", "refused"))
        assert status in ("same", "translated", "differs", "decision", "gap", "none"), names
        assert has_none or status != "none", names
        assert not has_none or len(text.split()) > 3, names


@pytest.mark.parametrize(
    "file", [Path(tables.__file__), *sorted(PAGES.iterdir())], ids=lambda file: file.name
)
def test_named_settings_and_options_exist(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    settings = list_settings()
    wrong = [
        f"c.{section}.{trait}" for section, trait in _SETTING.findall(text) if trait not in settings[section]
    ]
    assert wrong == []
    of_backends = {option.name for backend in BACKENDS for option in get_spec(backend).request_options}
    assert set(_OPTION.findall(text)) - set(OPTIONS) - of_backends == set()


def test_the_page_has_all_that_a_migration_knows() -> None:
    names = [name for row, _, _ in read_rows() for name in row]
    known = {
        find_key(name.rpartition("env.")[2].removeprefix("config.").removeprefix("--")) for name in names
    }
    known |= {name.removeprefix("env.").removeprefix("--") for name in names}
    wanted = {
        *tables.SETTINGS,
        *tables.NEEDLESS_SETTINGS,
        *tables.OPTIONS,
        *tables.NEEDLESS_VARIABLES,
        *tables.FLAGS,
    }
    assert wanted - known == set()
