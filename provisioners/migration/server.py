"""Reads the settings of an old server and translates them: its environment, files of a shell or systemd, traitlets.

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
from roost.scheduler.messages import is_loopback

from .sheet import DECIDE, NEEDLESS, TAKEN, Sheet
from .tables import NEEDLESS_SETTINGS, SETTINGS, read_address
from .values import is_secret, read_names, show

_PREFIXES = ("EG_", "GP_", "RP_", "KG_")
_OTHER_FILE = "EnvironmentFile"
"""The name of a setting that is another file with settings."""
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


def translate_server(server: Mapping[str, Any]) -> Sheet:
    """Translate all settings of a server, as `read_server` returns them."""
    sheet = Sheet()
    for name, value in server.items():
        place, key = f"server {name}", find_key(name)
        if name == _OTHER_FILE:
            sheet.say(place, DECIDE, f"name {show('file', value)} as a file of the server too", "not read")
        elif isinstance(value, NotLiteral):
            sheet.say(place, DECIDE, f"line {value.line} is no literal: give its value by hand", "not set")
        elif key in SETTINGS:
            sheet.take(SETTINGS[key], value, place)
        elif key in ("remote_hosts", "yarn_endpoint", "alt_yarn_endpoint"):
            _take_address(sheet, key, value, place)
        elif key in NEEDLESS_SETTINGS:
            sheet.say(place, NEEDLESS, "for their servers, launchers and images")
        else:
            sheet.say(
                place,
                DECIDE,
                "set what docs/migration/options.md has in its place, if you want it",
                "not set",
            )
    return sheet


def _take_address(sheet: Sheet, key: str, value: Any, place: str) -> None:
    """Take hosts or the address of a ResourceManager. A second address is added to the first."""
    target = "c.RoostSshBackend.hosts" if key == "remote_hosts" else "c.RoostYarnBackend.address"
    try:
        if key == "remote_hosts":
            hosts = read_names(value)
            if is_secret("", ", ".join(hosts)):
                raise ValueError("a host has a password: use keys or an agent")
            found: Any = {host: {} for host in hosts} if not all(map(is_loopback, hosts)) else None
        else:
            found = read_address(value)
    except ValueError as problem:
        sheet.say(place, DECIDE, f"{problem}: set {target}", "not set")
        return
    if not found:
        sheet.say(place, NEEDLESS, "roost's default")
        return
    if key != "remote_hosts" and (earlier := sheet.values.get(target, "")):
        found = f"{earlier},{found}" if key == "alt_yarn_endpoint" else f"{found},{earlier}"
    sheet.values[target] = found
    sheet.say(
        place, TAKEN, f"{target} = {show('address', list(found) if isinstance(found, dict) else found)}"
    )


def read_server(path: Path) -> dict[str, Any]:
    """Return the settings of an old server, by the names that they have there.

    The file is a configuration (`.py` or `.json`), a unit of systemd, or has lines NAME=VALUE. A value that is not
    literal is a `NotLiteral`. Raises `ConfigError`.
    """
    if path.suffix == ".json":
        document = read_input_json(path)
        if not isinstance(document, dict):
            raise ConfigError(
                f"{show_path(path)} is not an object of sections: name the server's configuration."
            )
        sections = {name: traits for name, traits in document.items() if isinstance(traits, dict)}
        return {
            f"{section}.{name}": value for section, own in sections.items() for name, value in own.items()
        }
    text = read_input_text(path)
    return dict(_read_python(text, path) if path.suffix == ".py" else _read_lines(text))


def _read_python(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    try:
        tree = ast.parse(text)
    except SyntaxError as problem:
        where = f"line {problem.lineno} column {problem.offset}"
        raise ConfigError(f"{show_path(path)}, {where}: it is not Python ({problem.msg}).") from None
    except (ValueError, RecursionError, MemoryError):
        raise ConfigError(f"{show_path(path)} is not Python that can be parsed.") from None
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) and len(node.targets) == 1 else None
        if target is not None and (name := _find_trait(target)):
            yield name, _read_literal(node.value, node.lineno)  # type: ignore[attr-defined]
            continue
        for part in ast.walk(node):
            if isinstance(part, ast.expr) and (name := _find_trait(part)):
                yield name, NotLiteral(part.lineno)
        if "load_subconfig" in ast.unparse(node):
            yield "load_subconfig", NotLiteral(node.lineno)


def _find_trait(expression: ast.expr) -> str:
    """Return `Section.trait` of `c.Section.trait` or `c["Section"]["trait"]`; empty for another expression."""
    names: list[str] = []
    while isinstance(expression, (ast.Attribute, ast.Subscript)):
        part = expression.slice if isinstance(expression, ast.Subscript) else None
        key = getattr(part, "value", None) if part else getattr(expression, "attr", None)
        names.insert(0, key if isinstance(key, str) else "")
        expression = expression.value
    is_trait = isinstance(expression, ast.Name) and expression.id == "c" and len(names) == 2 and all(names)
    return ".".join(names) if is_trait else ""


def _read_literal(value: ast.expr, line: int) -> Any:
    try:
        return ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return NotLiteral(line)


def _read_lines(text: str) -> Iterator[tuple[str, Any]]:
    """Read lines NAME=VALUE of a shell, of an env file, or of a unit of systemd, and its options `--Section.trait=`."""
    number = 0
    for joined in re.split(r"(?<!\\)\n", text):
        line = joined.replace("\\\n", " ").strip()
        number += 1 + joined.count("\n")
        if not line or line[0] in "#;":
            continue
        if match := re.match(r"EnvironmentFile\s*=\s*-?(\S+)", line):
            yield _OTHER_FILE, match[1]
            continue
        try:
            words = shlex.split(re.sub(r"^Environment\s*=", "", line), comments=True)
        except ValueError:  # a quote that is not closed
            yield "a line", NotLiteral(number)
            continue
        for word in words:
            variable = re.fullmatch(r"([A-Za-z_]\w*)=(.*)", word, re.DOTALL)
            trait = re.fullmatch(r"--([A-Z]\w*\.\w+)=(.*)", word, re.DOTALL)
            if variable and is_server_variable(variable[1]):
                yield variable[1], _check_text(variable[2], number)
            elif trait:
                yield trait[1], _check_text(trait[2], number)


def _check_text(text: str, number: int) -> Any:
    return NotLiteral(number) if "$" in text or "`" in text else text
