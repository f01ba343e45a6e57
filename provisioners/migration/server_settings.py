"""Reads the settings of an old server: its environment, files of a shell or systemd, and traitlets' configuration.

Nothing is executed: a configuration in Python is parsed, and only assignments of literals are read.
"""

from __future__ import annotations

import ast
import dataclasses
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from roost.scheduler.errors import ConfigError
from roost.scheduler.input_files import read_input_json, read_input_text, show_path

_PREFIXES = ("EG_", "GP_", "RP_", "KG_")
_ASSIGNMENT = re.compile(r"\s*(?:export\s+|declare\s+-x\s+|set\s+)?([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
OTHER_FILE = "EnvironmentFile"
"""The name of a setting that is another file with settings."""
_SYSTEMD = re.compile(r"\s*Environment\s*=\s*(.*)", re.DOTALL)
_SAME = {
    "kernel_launch_timeout": "launch_timeout",
    "kernel_image": "image_name",
    "kernel_executor_image": "executor_image_name",
    "env_whitelist": "client_envs",
    "env_process_whitelist": "inherited_envs",
    "kernel_whitelist": "allowed_kernels",
}
"""Variables that have another name than the option that they set."""


@dataclasses.dataclass(frozen=True, slots=True)
class NotLiteral:
    """The value of a setting that only a run of the server would know. `line` is its line in the file, from 1."""

    line: int


def is_server_variable(name: str) -> bool:
    """True for a variable that a server of the three systems reads."""
    return name.startswith(_PREFIXES)


def find_key(name: str) -> str:
    """Return the option that a variable or a trait of a server sets.

    >>> find_key("EG_KERNEL_LAUNCH_TIMEOUT"), find_key("DistributedProvisioner.remote_hosts")
    ('launch_timeout', 'remote_hosts')
    """
    key = name[3:].lower() if is_server_variable(name) else name.rpartition(".")[2]
    return _SAME.get(key, key)


def read_server(source: Path | str | Mapping[str, str]) -> dict[str, Any]:
    """Return the settings of an old server, by the names that they have there.

    `source` is an environment, a file (`.py`, `.json`, a unit of systemd, or lines NAME=VALUE), or the text of such
    lines. A value that is not literal is a `NotLiteral`. Raises `ConfigError`.
    """
    if isinstance(source, Mapping):
        return {name: value for name, value in source.items() if is_server_variable(name)}
    if isinstance(source, str) and ("\n" in source or _ASSIGNMENT.match(source)):
        return dict(_read_lines(source))
    path = Path(source)
    if path.suffix == ".json":
        return dict(_read_sections(read_input_json(path), path))
    text = read_input_text(path)
    return dict(_read_python(text, path) if path.suffix == ".py" else _read_lines(text))


def _read_sections(document: Any, path: Path) -> Iterator[tuple[str, Any]]:
    if not isinstance(document, dict):
        raise ConfigError(f"{show_path(path)} is not an object of sections: name the server's configuration.")
    for section, traits in document.items():
        if isinstance(traits, dict):
            yield from ((f"{section}.{name}", value) for name, value in traits.items())


def _read_python(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    try:
        tree = ast.parse(text)
    except SyntaxError as problem:
        where = f"line {problem.lineno} column {problem.offset}"
        raise ConfigError(f"{show_path(path)}, {where}: it is not Python ({problem.msg}).") from None
    except (ValueError, RecursionError, MemoryError):
        raise ConfigError(f"{show_path(path)} is not Python that can be parsed.") from None
    at_top = set(map(id, tree.body))
    for node in sorted((each for each in ast.walk(tree) if isinstance(each, ast.stmt)), key=_line):
        if isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for name, is_whole in map(_find_trait, targets):
                is_plain = is_whole and id(node) in at_top and not isinstance(node, ast.AugAssign)
                if name:
                    yield name, _read_literal(node.value) if is_plain else NotLiteral(node.lineno)
        elif name := _find_changed(node):
            yield name, NotLiteral(node.lineno)


def _line(node: ast.stmt) -> int:
    return node.lineno


def _find_trait(target: ast.expr) -> tuple[str, bool]:
    """Return `Section.trait` of a target `c.Section.trait` or `c["Section"]["trait"]`; empty for another target.

    Second is True if the target is the whole trait, and not a part of it.
    """
    names: list[str] = []
    while isinstance(target, (ast.Attribute, ast.Subscript)):
        key = target.attr if isinstance(target, ast.Attribute) else _read_literal(target.slice)
        names.insert(0, key if isinstance(key, str) else "")
        target = target.value
    is_trait = isinstance(target, ast.Name) and target.id == "c" and len(names) > 1 and all(names[:2])
    return (".".join(names[:2]) if is_trait else ""), len(names) == 2


def _find_changed(node: ast.stmt) -> str:
    """Return what a call changes: the trait of `c.Section.trait.append(…)`, or a file that it loads; else ""."""
    if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        return ""
    function = node.value.func
    if isinstance(function, ast.Name) and function.id == "load_subconfig":
        return "load_subconfig"
    return _find_trait(function.value)[0] if isinstance(function, ast.Attribute) else ""


def _read_literal(value: ast.expr | None) -> Any:
    try:
        return ast.literal_eval(value) if value is not None else None
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return NotLiteral(value.lineno if value is not None else 0)


def _read_lines(text: str) -> Iterator[tuple[str, Any]]:
    """Read lines NAME=VALUE of a shell, of an env file, or of a unit of systemd."""
    number = 0
    for joined in re.split(r"(?<!\\)\n", text):
        number += 1
        line = joined.replace("\\\n", " ").strip()
        if line and line[0] not in "#;":
            yield from _read_line(line, number)
        number += joined.count("\n")


def _read_line(line: str, number: int) -> Iterator[tuple[str, Any]]:
    if match := re.match(r"\s*EnvironmentFile\s*=\s*-?(\S+)", line):
        yield OTHER_FILE, match.group(1)
        return
    systemd, plain = _SYSTEMD.match(line), _ASSIGNMENT.match(line)
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # a quote that is not closed
        words = []
    if systemd:
        try:
            words = shlex.split(systemd.group(1))
        except ValueError:
            words = []
    if (systemd or plain) and not words:
        yield (plain.group(1) if plain else "Environment"), NotLiteral(number)
    for word in words:
        found = re.fullmatch(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", word, re.DOTALL)
        if found and is_server_variable(found.group(1)):
            yield found.group(1), _check_text(found.group(2), number)
        elif match := re.fullmatch(r"--([A-Z]\w*\.\w+)=(.*)", word, re.DOTALL):
            yield match.group(1), _read_argument(match.group(2), number)


def _read_argument(text: str, number: int) -> Any:
    """Return the value of an argument `--Section.trait=VALUE`, which may be a list as Python writes it."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return _check_text(text, number)


def _check_text(text: str, number: int) -> Any:
    return NotLiteral(number) if "$" in text or "`" in text else text
