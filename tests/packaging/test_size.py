"""A change that makes roost larger says so: its rooms, interfaces, settings, commands and modules have bounds.

A change that needs more edits a table here, and its commit says why. One that needs clearly less lowers the table, so
that what was saved is not spent again by accident.
"""

from __future__ import annotations

import ast
from collections import Counter
from functools import cache
from pathlib import Path
from typing import NamedTuple

from roost.provisioners.gateway.settings import RoostGateway
from roost.provisioners.server_extension.extension import RoostExtension
from roost.scheduler.backends.registry import get_spec, load_object
from roost.scheduler.cli.commands import build_parser
from roost.scheduler.config.settings import RoostScheduler

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("placement", "scheduler", "launchers", "provisioners", "benchmarks", "tests/testing")
PARENTS = ("scheduler/backends",)
"""Folders whose own folders are rooms."""
BACKENDS = ("local", "ray", "dask", "docker", "kubernetes", "yarn", "ssh")
SPARE = 0.05
"""A room may be this share smaller than its bound before the bound has to follow."""
LEAST_PROSE = 0.13
"""Docstrings are at least this share of the lines: no room gets smaller by losing its reasons."""


class Size(NamedTuple):
    lines: int
    statements: int
    """Without docstrings."""


ROOMS = {
    "benchmarks": Size(5876, 3262),
    "benchmarks/bench": Size(3234, 1908),
    "benchmarks/simulated": Size(593, 352),
    "launchers": Size(15, 0),
    "launchers/agent": Size(6838, 3977),
    "launchers/bridge": Size(921, 550),
    "launchers/daemon": Size(1617, 887),
    "launchers/machine_book": Size(827, 446),
    "launchers/protocol": Size(2050, 1038),
    "launchers/zygote": Size(2015, 1253),
    "placement": Size(1090, 518),
    "placement/engine": Size(450, 294),
    "placement/model": Size(1103, 549),
    "placement/rules": Size(922, 490),
    "placement/tables": Size(745, 425),
    "provisioners": Size(3582, 1936),
    "provisioners/gateway": Size(2092, 1223),
    "provisioners/jupyter_config": Size(13, 1),
    "provisioners/migration": Size(2373, 1325),
    "provisioners/server_extension": Size(4893, 2511),
    "roost": Size(90, 43),
    "scheduler": Size(530, 224),
    "scheduler/backends": Size(1402, 645),
    "scheduler/backends/agent_per_kernel": Size(883, 442),
    "scheduler/backends/agent_per_node": Size(1556, 957),
    "scheduler/backends/dask": Size(1783, 1064),
    "scheduler/backends/docker": Size(2068, 1146),
    "scheduler/backends/kubernetes": Size(3045, 1493),
    "scheduler/backends/local": Size(251, 143),
    "scheduler/backends/ray": Size(2528, 1353),
    "scheduler/backends/ssh": Size(2556, 1321),
    "scheduler/backends/yarn": Size(5040, 2820),
    "scheduler/cli": Size(2768, 1779),
    "scheduler/client": Size(2166, 1222),
    "scheduler/config": Size(548, 308),
    "scheduler/core": Size(3767, 2248),
    "scheduler/policies": Size(1300, 807),
    "scheduler/service": Size(881, 506),
    "tests/testing": Size(4165, 2372),
}
"""At most how large a room is."""
MEMBERS = {
    "Backend": 23,
    "Calls": 1,
    "Clock": 1,
    "ClusterManager": 19,
    "Confinement": 9,
    "DaemonCluster": 2,
    "Faults": 13,
    "Filter": 3,
    "Holder": 5,
    "Kernels": 2,
    "Listener": 3,
    "ManagedNode": 3,
    "NewNodes": 6,
    "Places": 2,
    "PodCluster": 16,
    "Policy": 2,
    "Scorer": 3,
    "Session": 4,
    "Ties": 0,
    "TimerHandle": 1,
    "UserSource": 1,
}
"""At most how many public members an interface has."""
SETTINGS, COMMANDS, MODULES = 132, 17, 513


def list_files() -> list[Path]:
    """Return each file with text that the product or its benchmarks consist of, also JavaScript, YAML and CSV."""
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    return [*ROOT.glob("*.py"), *(path for path in found if "__pycache__" not in path.parts)]


def name_room(path: Path) -> str:
    parts = path.relative_to(ROOT).parts[:-1]
    depth = 3 if "/".join(parts[:2]) in PARENTS else 2
    return "/".join(parts[:depth]) or "roost"


@cache
def parse(path: Path) -> list[ast.AST]:
    """Return all nodes of a module; none of another file."""
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8")))) if path.suffix == ".py" else []


def list_docstrings(path: Path) -> list[ast.expr]:
    """Return the texts that are statements: docstrings of modules, classes, functions and attributes."""
    return [
        node.value
        for node in parse(path)
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    ]


def count_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def read_sizes() -> dict[str, Size]:
    lines: Counter[str] = Counter()
    statements: Counter[str] = Counter()
    for path in list_files():
        room = name_room(path)
        lines[room] += count_lines(path)
        statements[room] += sum(isinstance(node, ast.stmt) for node in parse(path)) - len(
            list_docstrings(path)
        )
    return {room: Size(lines[room], statements[room]) for room in lines}


def count_members() -> dict[str, int]:
    """Return how many public members each class has that other classes implement: an ABC or a Protocol."""
    members: Counter[str] = Counter()
    for path in list_files():
        for node in parse(path):
            if isinstance(node, ast.ClassDef) and any(
                ast.unparse(base).partition("[")[0] in ("ABC", "Protocol") for base in node.bases
            ):
                names = [getattr(each, "name", "") or name_target(each) for each in node.body]
                members[node.name] += sum(bool(name) and not name.startswith("_") for name in names)
    return dict(members)


def name_target(node: ast.stmt) -> str:
    """Return the name of an attribute that has a type or a value; empty for another statement."""
    targets = getattr(node, "targets", None) or [getattr(node, "target", None)]
    return targets[0].id if isinstance(targets[0], ast.Name) else ""


def find_misfits(found: dict[str, int], bounds: dict[str, int]) -> dict[str, str]:
    """Return what is above its bound, or clearly below it, or has none."""
    return {
        name: f"{found.get(name, 0)}, and the bound is {bounds.get(name, 0)}"
        for name in found.keys() | bounds.keys()
        if not bounds.get(name, 0) * (1 - SPARE) <= found.get(name, 0) <= bounds.get(name, 0)
    }


def test_no_room_has_grown() -> None:
    sizes = read_sizes()
    for measure in Size._fields:
        found = {room: getattr(size, measure) for room, size in sizes.items()}
        bounds = {room: getattr(size, measure) for room, size in ROOMS.items()}
        assert find_misfits(found, bounds) == {}, measure


def test_no_interface_has_grown() -> None:
    assert find_misfits(count_members(), MEMBERS) == {}


def test_no_setting_command_or_module_is_added_in_silence() -> None:
    sections = [load_object(get_spec(backend).settings, "the settings") for backend in BACKENDS]
    settings = sum(
        len(section.class_own_traits(config=True))
        for section in (*sections, RoostScheduler, RoostExtension, RoostGateway)
    )
    (commands,) = (action.choices for action in build_parser()._actions if isinstance(action.choices, dict))
    modules = sum(path.suffix == ".py" for path in list_files())
    found = {"settings": settings, "commands": len(commands), "modules": modules}
    assert find_misfits(found, {"settings": SETTINGS, "commands": COMMANDS, "modules": MODULES}) == {}


def test_reasons_stay() -> None:
    modules = [path for path in list_files() if path.suffix == ".py"]
    prose = sum(
        (each.end_lineno or each.lineno) - each.lineno + 1
        for path in modules
        for each in list_docstrings(path)
    )
    assert prose / sum(map(count_lines, modules)) >= LEAST_PROSE
