"""Reads a command `docker run …` as a kernelspec has it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import PurePath

_ENGINES = ("docker", "podman", "nvidia-docker", "nerdctl")
_SWITCHES = frozenset(
    {
        "--rm", "--init", "--privileged", "--read-only", "--detach", "--interactive", "--tty", "--publish-all",
        "--no-healthcheck", "--oom-kill-disable", "--sig-proxy", "--quiet", "--disable-content-trust",
    }
)  # fmt: skip
"""The options of `docker run` without a value. Each other long option has one."""
_SHORT_SWITCHES = frozenset("itdPq")
LONG = {
    "-e": "--env", "-v": "--volume", "-u": "--user", "-w": "--workdir", "-m": "--memory", "-p": "--publish",
    "-l": "--label", "-h": "--hostname", "-c": "--cpu-shares", "--net": "--network",
}  # fmt: skip
"""The long names of some options."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DockerRun:
    """A command `docker run`: its options as (name, value), the image, and the command in the container.

    `before` are the words in front of it, such as `sudo`.
    """

    before: tuple[str, ...]
    engine: str
    options: tuple[tuple[str, str], ...]
    image: str
    inner: tuple[str, ...]


def read_docker_run(argv: Sequence[str]) -> DockerRun | None:
    """Return the `docker run` in a command; None if there is none."""
    for at, word in enumerate(argv):
        engine = PurePath(word).name
        if engine in _ENGINES:
            rest = list(argv[at + 1 :])
            if rest[:1] == ["container"]:
                rest.pop(0)
            if rest[:1] == ["run"]:
                options, image, inner = _read_options(rest[1:])
                return DockerRun(
                    before=tuple(argv[:at]),
                    engine=engine,
                    options=tuple(options),
                    image=image,
                    inner=tuple(inner),
                )
    return None


def _read_options(words: list[str]) -> tuple[list[tuple[str, str]], str, list[str]]:
    options: list[tuple[str, str]] = []
    rest = list(words)
    while rest and rest[0].startswith("-"):
        word = rest.pop(0)
        if word == "--":
            break
        name, equals, value = word.partition("=")
        if not word.startswith("--") and len(word) > 2:
            name, equals, value = word[:2], "=", word[2:]
            if set(word[1:]) <= _SHORT_SWITCHES:
                options += [(f"-{letter}", "") for letter in word[1:]]
                continue
        is_switch = name in _SWITCHES or name[1:] in _SHORT_SWITCHES
        if not equals and not is_switch and rest:
            value = rest.pop(0)
        options.append((LONG.get(name, name), value))
    return options, rest[0] if rest else "", rest[1:]
