"""The kit's rooms have an order, the guide names each module, and `tests/` adds no other name to Python's path."""

from __future__ import annotations

import ast
import pkgutil
import re
from pathlib import Path

TESTS = Path(__file__).parents[2]
KIT = TESTS / "kit"
ORDER = ("gate", "machine", "programs", "fakes", "jupyter", "clusters", "fixtures")
"""The rooms, from the lowest. A room imports only from itself and from lower rooms."""
PROGRAMS = (
    "clusters.docker_engine",
    "clusters.hadoop_nodes",
    "clusters.kubelets",
    "clusters.spark",
    "clusters.ssh_hosts",
)
"""Packages with a door of their own. Tests find their modules from there."""


def find_imports(path: Path) -> set[str]:
    """Return the rooms from which a module imports."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
    return {module.split(".")[1] for module in modules if module.startswith("kit.")}


def test_a_room_imports_only_from_the_rooms_below() -> None:
    assert {path.name for path in KIT.iterdir() if (path / "__init__.py").exists()} == set(ORDER)
    wrong = [
        f"{path.relative_to(KIT)} imports kit.{other}"
        for number, room in enumerate(ORDER)
        for path in (KIT / room).rglob("*.py")
        for other in find_imports(path) & {*ORDER[number + 1 :]}
    ]
    assert not wrong


def test_the_guide_names_all_modules_and_no_others() -> None:
    guide = (TESTS.parent / "docs/contributors.md").read_text()
    named = set(re.findall(r"`kit\.([a-z_.]+)`", guide))
    modules = {
        ".".join(path.relative_to(KIT).with_suffix("").parts)
        for path in KIT.rglob("*.py")
        if path.stem not in ("__init__", "__main__", "shared_cluster")
    }
    own = {name for name in modules if not name.startswith(PROGRAMS)} | {*PROGRAMS}
    shared = {".".join(path.parent.relative_to(KIT).parts) for path in KIT.rglob("shared_cluster.py")}
    assert named == own | shared


def test_nothing_else_in_this_folder_is_a_module() -> None:
    """The linter bans `conftest` and `testing`, which is `roost.testing`. Plain folders shadow nothing."""
    assert {module.name for module in pkgutil.iter_modules([str(TESTS)])} == {"conftest", "kit", "testing"}
