"""The public interface: names, import directions, the cost of imports, and no secrets in the tree."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Collection, Mapping
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from importlib.metadata import packages_distributions, requires
from itertools import chain, pairwise
from pathlib import Path

import pytest

import roost
from roost.testing.deadlines import allow_s

ROOT = Path(__file__).resolve().parents[2]
CLUSTER_LIBRARIES = {"ray", "distributed", "dask", "docker", "kubernetes", "kubernetes_asyncio", "requests"}

SHARED_MODEL = re.compile(r"roost\.placement(\.model(\..*)?)?")
"""The model that every part shares. These modules need the standard library only."""

# package → what of ours it may import besides the shared model
ALLOWED = {
    "placement": {"placement"},
    "launchers": {"launchers"},
    "scheduler": {"scheduler", "placement", "launchers"},
    "provisioners": {"provisioners", "scheduler"},
}
CLI = "roost.scheduler.cli"
"""The `roost` command stands above all others. It joins the scheduler's commands and Jupyter's."""
# Provisioners may import the modules of the scheduler that run in an application or a command, never the service's.
CLIENT_SIDE = {
    "backends.registry",
    "backends.spec",
    "client",
    "client.client",
    "client.interpreter_probe",
    "client.relay",
    "client.running_services",
    "client.service_checks",
    "client.service_folder",
    "client.state_folder",
    "client.this_owner",
    "config.memory_size",
    "config.trait_errors",
    "errors",
    "input_files",
    "messages",
    "policies.pickling",
}
SERVICE_SIDE = re.compile(
    r"roost\.(placement\b.*|scheduler\.(core|service\.server|config\.(files|section|settings))\b.*"
    r"|scheduler\.backends\.(?!(spec|registry)$).*)"
)
NODE_SIDE_LIBRARIES = {"zmq", "psutil", "jupyter_client", "jupyter_core", "traitlets", "ipykernel", "IPython"}


def sources(package: str) -> list[Path]:
    """Return the files of the package's modules."""
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, f"{package} has no modules"
    return found


def imports(path: Path, *, at_import: bool) -> set[str]:
    """Return the absolute names of a file's imports: all, or (`at_import`) those outside functions."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    package = ["roost", *parts[:-1]]
    found: set[str] = set()
    pending: list[ast.AST] = [ast.parse(path.read_text())]
    while pending:
        node = pending.pop()
        if at_import and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += node.orelse if at_import else [*node.body, *node.orelse]
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            home = ".".join(filter(None, [base, node.module or ""]))
            found |= {
                f"{home}.{alias.name}" if _is_module(home, alias.name) else home for alias in node.names
            }
        pending += ast.iter_child_nodes(node)
    return found


def _is_module(home: str, name: str) -> bool:
    if home.split(".")[0] != "roost":
        return False
    path = ROOT.joinpath(*home.split(".")[1:], name)
    return path.is_dir() or path.with_suffix(".py").exists()


def test_nested_and_relative_imports_are_found() -> None:
    """Check that `imports` itself finds imports at all levels."""
    mine = imports(Path(__file__), at_import=False)
    assert {"ast", "roost", "pathlib"} <= mine


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_imports_go_one_way(package: str) -> None:
    wrong = []
    for path in sources(package):
        for name in imports(path, at_import=False):
            head, _, rest = name.partition(".")
            assert head not in ALLOWED, f"{path.name}: `import {head}` is never ours, roost.{head} is"
            allowed = ALLOWED if _name_folder(path) == CLI else ALLOWED[package]
            is_ours = head == "roost" and bool(rest) and not SHARED_MODEL.fullmatch(name)
            if is_ours and rest.split(".")[0] not in allowed:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []


def test_only_the_command_line_imports_the_command_line() -> None:
    """`__main__` and `roost.bench` stand above it too."""
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for package in ALLOWED
        for path in sources(package)
        for name in imports(path, at_import=False)
        if f"{name}.".startswith(f"{CLI}.") and _name_folder(path) != CLI
    ]
    assert wrong == []


def _name_folder(path: Path) -> str:
    """Return the dotted name of the package that holds the file."""
    return ".".join(["roost", *path.relative_to(ROOT).parts[:-1]])


def find_circle(graph: Mapping[str, Collection[str]]) -> list[str]:
    """Return the names of one circle in their order, the first of them again as the last; or an empty list."""
    order = TopologicalSorter(graph)
    try:
        order.prepare()
    except CycleError as problem:
        return list(reversed(problem.args[1]))
    return []


def test_a_circle_is_found() -> None:
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) in (["b", "c", "b"], ["c", "b", "c"])


def test_folders_form_no_circle() -> None:
    """Each folder stands on one floor. Imports inside functions and for type checkers count too."""
    reasons: dict[tuple[str, str], list[str]] = defaultdict(list)
    for path in chain.from_iterable(map(sources, ALLOWED)):
        above = _name_folder(path)
        for name in imports(path, at_import=False):
            file = ROOT.joinpath(*name.split(".")[1:])
            below = name if file.is_dir() else name.rpartition(".")[0]
            if name.startswith("roost.") and below not in ("roost", above):
                reasons[above, below].append(f"{path.relative_to(ROOT)} imports {name}")
    graph: dict[str, set[str]] = defaultdict(set)
    for above, below in reasons:
        graph[above].add(below)
    circle = find_circle(graph)
    assert not circle, "\n".join(chain.from_iterable(reasons[step] for step in pairwise(circle)))


def test_provisioners_see_the_client_only() -> None:
    allowed = {"roost.scheduler", *(f"roost.scheduler.{name}" for name in CLIENT_SIDE)}
    wrong = []
    for path in sources("provisioners"):
        names = {name for name in imports(path, at_import=False) if name.startswith("roost.scheduler")}
        wrong += [f"{path.relative_to(ROOT)} imports {name}" for name in sorted(names - allowed)]
    assert wrong == []


def test_the_client_side_never_loads_the_service() -> None:
    """The provisioner imports no backend, and of placement only `SHARED_MODEL`, directly or indirectly."""
    seen: set[str] = set()
    pending = ["roost.provisioners", *(f"roost.scheduler.{name}" for name in CLIENT_SIDE)]
    while pending:
        name = pending.pop()
        path = ROOT.joinpath(*name.split(".")[1:])
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if name not in seen and name.startswith("roost"):
            seen.add(name)
            pending += [*imports(path, at_import=True), name.rpartition(".")[0]]
    assert {n for n in seen if SERVICE_SIDE.fullmatch(n) and not SHARED_MODEL.fullmatch(n)} == set()


def test_the_command_needs_what_roost_requires() -> None:
    """The `roost` command works without Jupyter Server and the extras."""
    needed = {re.split(r"[^\w.-]", each)[0].lower() for each in requires("roost") or () if ";" not in each}
    ours = {module for module, names in packages_distributions().items() if needed & {*map(str.lower, names)}}
    assert {"rich", "zmq"} <= ours
    reasons: dict[str, str] = {}
    pending = sources("scheduler/cli")
    while pending:
        path = pending.pop()
        names = imports(path, at_import=_name_folder(path) != CLI)
        names |= {name.rpartition(".")[0] for name in names if name.startswith("roost.")}
        for name in names - reasons.keys():
            reasons[name] = f"{path.relative_to(ROOT)} imports {name}"
            if name.startswith("roost."):
                below = ROOT.joinpath(*name.split(".")[1:])
                pending.append(below / "__init__.py" if below.is_dir() else below.with_suffix(".py"))
    known = {*sys.stdlib_module_names, "roost", *ours}
    assert [reason for name, reason in reasons.items() if name.split(".")[0] not in known] == []


def test_placement_is_pure() -> None:
    """Placement needs numpy and the standard library, without I/O and asyncio."""
    seen = set().union(*(imports(path, at_import=False) for path in sources("placement")))
    outside = {name.split(".")[0] for name in seen} - sys.stdlib_module_names
    assert outside <= {"numpy", "roost"}
    assert not {name.split(".")[0] for name in seen} & {
        "asyncio",
        "os",
        "socket",
        "subprocess",
        "time",
    }


def test_launchers_need_what_ipykernel_brings() -> None:
    """`roost.launchers` imports only libraries that ipykernel needs too.

    NVML is optional, and the bridge alone needs pycryptodome.
    """
    needed, seen = set[str](), set[str]()
    for path in sources("launchers"):
        needed |= imports(path, at_import=True)
        seen |= imports(path, at_import=False)
    heads = [{name.split(".")[0] for name in names} - sys.stdlib_module_names for names in (needed, seen)]
    assert heads[0] <= NODE_SIDE_LIBRARIES | {"roost"}
    assert heads[1] <= NODE_SIDE_LIBRARIES | {"roost", "pynvml", "Crypto"}


def test_the_zygote_starts_on_the_standard_library() -> None:
    seen = imports(ROOT / "launchers" / "zygote" / "main.py", at_import=True)
    assert {name.split(".")[0] for name in seen} - sys.stdlib_module_names == set()


def test_cluster_libraries_are_imported_by_backends_only() -> None:
    wrong = []
    for package in ALLOWED:
        for path in sources(package):
            if "backends" not in path.parts:
                names = {name.split(".")[0] for name in imports(path, at_import=False)} & CLUSTER_LIBRARIES
                wrong += [f"{path.relative_to(ROOT)} imports {name}" for name in names]
    assert wrong == []


def test_public_names() -> None:
    assert len(set(roost.__all__)) == len(roost.__all__)
    for name in roost.__all__:
        assert getattr(roost, name) is not None
    assert set(roost.__all__) <= set(dir(roost))
    with pytest.raises(AttributeError, match="no_such_name"):
        roost.no_such_name  # noqa: B018


@pytest.mark.parametrize(
    "module", ["placement", "scheduler", "scheduler.backends", "launchers", "provisioners"]
)
def test_all_is_importable(module: str) -> None:
    """Every name in a package's `__all__` exists."""
    loaded = import_module(f"roost.{module}")
    for name in getattr(loaded, "__all__", []):
        assert hasattr(loaded, name), name


@pytest.mark.parametrize("name", ["model", "rules.refusals", "decision"])
def test_placement_without_numpy(name: str) -> None:
    """Agents import requests and nodes without numpy. numpy is loaded once a snapshot or a policy is used."""
    code = f"import sys, roost.placement, roost.placement.{name}\n"
    code += "roost.placement.Request, roost.placement.Node, roost.placement.Decision\n"
    code += "assert 'numpy' not in sys.modules\nroost.placement.Snapshot\nassert 'numpy' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=allow_s(60))


@pytest.mark.parametrize(
    ("name", "libraries"),
    [
        ("roost", set()),
        ("roost.provisioners", {"difflib", "resource", "zmq.utils.monitor"}),
        ("roost.scheduler.client.client", {"difflib", "resource", "zmq.utils.monitor"}),
    ],
)
def test_importing_the_client_side_loads_almost_nothing(name: str, libraries: set[str]) -> None:
    """The import loads few modules that an application with jupyter_client has not loaded anyway."""
    code = f"import sys, jupyter_client.provisioning as _; before = set(sys.modules); import {name}\n"
    code += "print(*set(sys.modules) - before)"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=allow_s(60)
    )
    assert {each for each in done.stdout.split() if each.partition(".")[0] != "roost"} <= libraries


SECRET = re.compile(
    rb"-----BEGIN [A-Z ]*PRIVATE KEY-----|AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36}"
    rb"|xox[abp]-[A-Za-z0-9-]{20,}"
    rb"|(?i:password|secret|api_key)\s*=\s*[\"'][^\"'\s]{12,}[\"']"
)


def test_no_secrets_in_the_tree() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, timeout=allow_s(60),
    ).stdout.split(b"\0")  # fmt: skip
    files = [ROOT / name.decode() for name in listed if name]
    assert len(files) > 10
    found = [
        str(path.relative_to(ROOT)) for path in files if path.is_file() and SECRET.search(path.read_bytes())
    ]
    assert found == []
