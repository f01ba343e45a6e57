"""Only `jupyter_internals.py` touches private members of Jupyter's objects."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.session import Session
from jupyter_server.services.kernels.kernelmanager import ServerKernelManager

import roost.provisioners
from roost.provisioners.jupyter_internals import OVERRIDDEN

FOLDER = Path(roost.provisioners.__file__).parent
FILES = sorted(path for path in FOLDER.rglob("*.py") if path.name != "jupyter_internals.py")
PRIVATE = re.compile(r"_[a-z0-9]\w*")
BY_NAME = {"getattr", "setattr", "hasattr", "delattr"}


def find_module(path: Path) -> ModuleType:
    parts = path.relative_to(FOLDER).with_suffix("").parts
    return import_module(".".join(["roost.provisioners", *(part for part in parts if part != "__init__")]))


def find_own(tree: ast.ClassDef) -> set[str]:
    """Return the private names that a class defines: in its body, or as attributes that its methods set on `self`."""
    own = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            own |= {node.attr} if ast.unparse(node.value) == "self" else set()
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        own |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in own if PRIVATE.fullmatch(name)}


@cache
def find_members(kind: type) -> frozenset[str]:
    """Return the private members of a class of another library, without those of its bases.

    They include the names that its methods use on `self`.
    """
    found = set(vars(kind))
    if kind.__module__.partition(".")[0] in ("jupyter_client", "jupyter_server", "kernel_gateway"):
        found |= set(re.findall(r"\bself\.(\w+)", inspect.getsource(kind)))
    return frozenset(name for name in found if PRIVATE.fullmatch(name))


@cache
def find_foreign(kind: type) -> frozenset[str]:
    """Return the private members that a class has from itself and its bases, except from classes of roost."""
    bases = [base for base in kind.__mro__ if not base.__module__.startswith("roost.")]
    return frozenset().union(*map(find_members, bases))


def find_classes(path: Path) -> dict[str, tuple[ast.ClassDef, type]]:
    """Return the classes of a file by name: their source, and the classes themselves."""
    module = find_module(path)
    tops = ast.parse(path.read_text()).body
    return {node.name: (node, getattr(module, node.name)) for node in tops if isinstance(node, ast.ClassDef)}


ALL = {name: both for path in FILES for name, both in find_classes(path).items()}
OWN = {name: find_own(tree) for name, (tree, _) in ALL.items()}
JUPYTERS = frozenset().union(
    *(find_foreign(kind) for _, kind in ALL.values()),
    *map(find_foreign, (ServerKernelManager, AsyncKernelClient, Session)),
)
"""All private members of the objects that roost gets from Jupyter."""


def find_uses(tree: ast.AST, kind: type | None = None) -> Iterator[str]:
    """Yield the private members of Jupyter's objects that code touches. `kind` is the class around the code.

    A member of `self` or `cls` belongs to roost if the class or one of its bases in roost defines it, and Jupyter does
    not. A call by `super()` is allowed for the methods in `OVERRIDDEN`. A member of another object belongs to roost if
    a class of roost defines it, and no class of Jupyter does. Python's own modules are not Jupyter's.
    """
    for node in ast.iter_child_nodes(tree):
        inner = ALL[node.name][1] if isinstance(node, ast.ClassDef) and node.name in ALL else kind
        yield from find_uses(node, inner)
    match tree:
        case ast.Attribute(value=base, attr=name) if PRIVATE.fullmatch(name):
            overridden = OVERRIDDEN.get(kind.__name__, ()) if kind is not None else ()
            own = {each for base_ in kind.__mro__ for each in OWN.get(base_.__name__, ())} if kind else set()
            what = ast.unparse(base)
            if what in ("self", "cls") and kind is not None:
                is_ours = name in own and (name in overridden or name not in find_foreign(kind))
            elif what == "super()":
                is_ours = name in overridden or name in own - JUPYTERS
            elif what in sys.stdlib_module_names:
                is_ours = True
            else:
                is_ours = name not in JUPYTERS and any(name in names for names in OWN.values())
            if not is_ours:
                yield f"{what}.{name}"
        case ast.Call(func=ast.Name(id=function), args=[_, ast.Constant(value=str(name)), *_]):
            if function in BY_NAME and PRIVATE.fullmatch(name):
                yield ast.unparse(tree)
        case ast.Import(names=names):
            yield from (each.name for each in names if "._" in each.name)
        case ast.ImportFrom(module=str(module), level=0, names=names) if not module.startswith("roost"):
            paths = [f"{module}.{each.name}" for each in names]
            yield from (path for path in paths if re.search(r"\._[a-z]", path))


def test_private_members_of_jupyter_are_touched_in_one_file() -> None:
    assert len(FILES) > 1
    uses = {str(path.relative_to(FOLDER)): {*find_uses(ast.parse(path.read_text()))} for path in FILES}
    assert {path: found for path, found in uses.items() if found} == {}


def test_overridden_methods_are_listed_and_there() -> None:
    """Also, no private member of roost's own hides one of Jupyter's by accident."""
    found = {name: tuple(sorted(OWN[name] & find_foreign(kind))) for name, (_, kind) in ALL.items()}
    assert {name: members for name, members in found.items() if members} == {
        name: tuple(sorted(members)) for name, members in OVERRIDDEN.items()
    }


@pytest.mark.parametrize(
    ("code", "kind", "uses"),
    [
        ("km._launch_args", "", ["km._launch_args"]),
        ("self.km._ready = 1", "PendingStart", ["self.km._ready"]),
        ("self._kernels[1]", "PendingStarts", ["self._kernels"]),
        ("self._kernels[1]", "Adoption", []),
        ("starts._kernels[1]", "Adoption", ["starts._kernels"]),
        ("super()._finish_kernel_start(1)", "PendingStarts", []),
        ("super()._async_restart_kernel(1)", "PendingStarts", ["super()._async_restart_kernel"]),
        ("self._cells, self._open_sessions", "RoostConnection", ["self._open_sessions"]),
        ("RoostConnection._open_sessions", "", ["RoostConnection._open_sessions"]),
        ("self._restarting = True", "Restarter", ["self._restarting"]),
        ("exits._on_event(1)", "ExitWatch", []),
        ("exits._on_evening(1)", "ExitWatch", ["exits._on_evening"]),
        ("km.__class__, km.__dict__, _x, x._", "", []),
        ("getattr(km, '_restarter', None)", "", ["getattr(km, '_restarter', None)"]),
        ("getattr(km, 'restarter', None)", "", []),
        ("from jupyter_server._tz import utcnow", "", ["jupyter_server._tz.utcnow"]),
        ("from jupyter_client.manager import _get_future", "", ["jupyter_client.manager._get_future"]),
        ("import jupyter_server._tz", "", ["jupyter_server._tz"]),
        ("from __future__ import annotations", "", []),
    ],
)
def test_uses_are_found(code: str, kind: str, uses: list[str]) -> None:
    """Check the rule itself."""
    assert list(find_uses(ast.parse(code), ALL[kind][1] if kind else None)) == uses
