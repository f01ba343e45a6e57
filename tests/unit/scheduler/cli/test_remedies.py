"""Every command that a text of roost's names can be typed, for each backend. The texts are found in the source."""

from __future__ import annotations

import ast
import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import roost
from kit.machine.cases import find_wrong
from roost.scheduler.cli.commands import build_parser, find_action
from roost.scheduler.client.advice import WITHOUT_BACKEND, Advice

ROOT = Path(roost.__file__).parent
FOLDERS = ("launchers", "placement", "provisioners", "scheduler")
IN_BACKTICKS = re.compile(r"`((?:[\w%]+=\S+ )?(?:roost|jupyter) [^`]*)`")
BARE = re.compile(
    r"(?<![`.\w-])roost (?:doctor|drain|events|explain|kernels|kernelspec|logs|machine|nodes|stop|up)\b"
)
SHELL = re.compile(r"\b(?:chmod|chown|export|kill|mkdir|pip install|rm|sudo) ['{\w./+-]|[:;] run: ")
"""A command of the shell."""
HELP = "commands.py"
"""The help of options, which argparse prints."""
WRITER = "advice.py"
"""The module that completes commands."""


def _find_texts(tree: ast.AST) -> Iterator[str]:
    """Yield the texts of a module but its docstrings. A value that is filled in becomes the word `filled`."""
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else "filled" for part in node.values
            )
        elif isinstance(node, ast.Constant) and id(node) not in parts | docstrings:
            yield str(node.value)


def _read_sources() -> list[tuple[str, str]]:
    """Return all texts of roost's sources, each with the name of its file."""
    files = (path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")))
    return [
        (path.name, text)
        for path in files
        if path.name != WRITER
        for text in _find_texts(ast.parse(path.read_text()))
    ]


TEXTS = _read_sources()
COMMANDS = sorted({found for _, text in TEXTS for found in IN_BACKTICKS.findall(text)})


def test_the_commands_are_found() -> None:
    """The search below would pass if it found nothing."""
    assert "roost drain filled --off" in COMMANDS
    assert "roost doctor --fix" in COMMANDS
    assert len(COMMANDS) > 9


def test_each_command_parses_as_it_is_printed() -> None:
    def check(case: tuple[str, str]) -> None:
        command, backend = case
        options = {"namespace": "a b"} if backend == "kubernetes" else {}
        words = shlex.split(Advice(backend, options).complete(f"`{command}`").strip("`"))
        arguments = build_parser().parse_args(words[1:])
        assert find_action(arguments.action) is not None
        if words[1] not in WITHOUT_BACKEND:
            assert (arguments.backend or "local") == backend
            assert arguments.backend_option == (["namespace=a b"] if backend == "kubernetes" else [])

    commands = [each for each in COMMANDS if each.startswith("roost ")]
    assert find_wrong(itertools.product(commands, ("local", "ray", "kubernetes")), check) == []


def test_no_text_names_a_command_without_backticks() -> None:
    """`Advice` completes only commands in backticks."""
    bare = {text for file, text in TEXTS if file != HELP and BARE.search(IN_BACKTICKS.sub("", text))}
    assert bare == set()


def test_no_shell_command_stands_without_backticks() -> None:
    """A full stop behind it would become a part of the command."""
    texts = {text for file, text in TEXTS if file != HELP and "\n" not in text}
    bare = {text for text in texts if SHELL.search(re.sub(r"`[^`]*`", "", text))}
    assert bare == set()


def test_only_commands_that_ask_a_scheduler_get_a_backend() -> None:
    parser = build_parser()
    (commands,) = (action.choices for action in parser._actions if action.dest == "==SUPPRESS==")
    takes = {
        name
        for name, each in dict(commands or {}).items()
        if any("--backend" in action.option_strings and action.default == "" for action in each._actions)
    }
    assert set(commands or ()) - takes == WITHOUT_BACKEND
