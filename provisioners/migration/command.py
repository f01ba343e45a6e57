"""Finds the launcher and its options in a command of any form.

The launcher may stand anywhere: behind an interpreter and other programs, in `docker run`, behind `spark-submit`, or in
the text of `sh -c`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import PurePath
from typing import Literal

from .docker_run import DockerRun, read_docker_run
from .words import join_words, split_words

LAUNCHERS = {
    "launch_ipykernel.py": "python",
    "launch_IRkernel.R": "r",
    "launcher.ToreeLauncher": "scala",
    "launch_kubernetes.py": "",
    "launch_docker.py": "",
    "launch_custom_resource.py": "",
    "bootstrap-kernel.sh": "",
    "run.sh": "",
}
"""The launchers of the three systems, and the language of each if it has only one."""
MAKES_CONTAINERS = ("launch_kubernetes.py", "launch_docker.py", "launch_custom_resource.py")
"""The launchers that make a pod, a container or a resource, in which another launcher runs."""
HANDSHAKE = ("kernel-id", "response-address", "public-key", "port-range", "transport-encryption")
"""The launchers' options that carry the handshake."""
_KNOWN = (
    *HANDSHAKE, "spark-context-initialization-mode", "kernel-class-name", "cluster-type", "customAppName",
    "pod-template", "spark-opts-out",
)  # fmt: skip
_PREFIX = "RemoteProcessProxy."
_SIGNS = re.compile(
    r"\{(response_address|public_key|port_range|transport_encryption)\}"
    r"|--(RemoteProcessProxy\.[\w-]+|response-address|public-key)\b"
    r"|launch_(ipykernel|IRkernel|kubernetes|docker|custom_resource)\.|ToreeLauncher|bootstrap-kernel\.sh"
)
_IN_TEXT = re.compile(
    r"""[^\s'"]*(launch_ipykernel\.py|launch_IRkernel\.R|launch_kubernetes\.py|launch_docker\.py|bootstrap-kernel\.sh"""
    r"""|launch_custom_resource\.py|\brun\.sh)["']?|(?:--class\s+)?launcher\.ToreeLauncher"""
)
_OPERATOR = re.compile(r"(?<!\S)[0-9]*[<>]|[;&|<>\n]")
SHELLS = ("sh", "bash", "dash", "zsh", "ksh")
_PYTHON = re.compile(r"(python|pypy)[0-9.]*")


@dataclasses.dataclass(frozen=True, slots=True)
class Flag:
    """An option of a launcher. `written` is its name in the command, such as `--RemoteProcessProxy.kernel-id`."""

    name: str
    written: str
    value: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command, taken apart.

    `form` is `plain` for a command that roost can run as it is, `launcher` for one of theirs, and `foreign` for one
    that is neither. `before` are the words in front of the launcher, with its interpreter. `spark` are the words of
    `spark-submit`. `extra` are the words behind the launcher that belong to no option. In `sh -c`, `text_before` and
    `text_after` are the text around the launcher's own command.
    """

    form: Literal["plain", "launcher", "foreign"]
    argv: tuple[str, ...]
    launcher: str = ""
    before: tuple[str, ...] = ()
    flags: tuple[Flag, ...] = ()
    extra: tuple[str, ...] = ()
    spark: tuple[str, ...] = ()
    docker: DockerRun | None = None
    is_in_text: bool = False
    text_before: str = ""
    text_after: str = ""

    def find(self, name: str) -> str:
        """Return the value of an option; empty if it is not there."""
        return next((flag.value for flag in self.flags if flag.name == name), "")

    def find_interpreter(self) -> int | None:
        """Return the place in `before` of the Python that runs the launcher; None if no Python does."""
        for at in range(len(self.before) - 1, -1, -1):
            if _PYTHON.fullmatch(PurePath(self.before[at]).name):
                return at if all(word.startswith("-") for word in self.before[at + 1 :]) else None
        return None

    def rebuild(self, words: Sequence[str]) -> list[str]:
        """Return the command with these words in the place of the launcher and its options."""
        if not self.is_in_text:
            return [*self.before, *words]
        text = f"{self.text_before}{join_words(words, for_shell=True)}{self.text_after}"
        return [*self.before, text]


def has_handshake(argv: Sequence[str]) -> bool:
    """True if a command has one of their launchers, or an option or template of their handshake."""
    return any(_SIGNS.search(word) for word in argv)


def read_command(argv: Sequence[str]) -> Command:
    """Take a command apart."""
    docker = read_docker_run(argv)
    words = list(docker.inner if docker else argv)
    if not has_handshake(argv):
        runs = any("{connection_file}" in word for word in words)
        return Command(form="plain" if runs else "foreign", argv=tuple(words), docker=docker)
    found = _read_text(words) or _read_words(words)
    return dataclasses.replace(found, argv=tuple(argv), docker=docker)


def read_flags(words: Sequence[str]) -> tuple[list[Flag], list[str]]:
    """Return the options in `words`, and the words that belong to none."""
    flags, extra, rest = [], [], list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or word == "--":
            extra.append(word)
            continue
        written, equals, value = word.partition("=")
        if not equals and rest and not rest[0].startswith("--"):
            value = rest.pop(0)
        flags.append(Flag(_find_option(written), written, value))
    return flags, extra


def _find_option(written: str) -> str:
    """Return the launchers' name of an option. Gateway Provisioners has also written it with underscores."""
    name = written.removeprefix("--").removeprefix(_PREFIX)
    return name.replace("_", "-") if name.replace("_", "-") in _KNOWN else name


def _read_words(words: list[str]) -> Command:
    at = next((number for number, word in enumerate(words) if _find_launcher(word)), None)
    if at is None:
        at = next((number for number, word in enumerate(words) if word.startswith("--")), len(words))
        flags, extra = read_flags(words[at:])
        return Command(
            form="foreign", argv=(), before=tuple(words[:at]), flags=tuple(flags), extra=tuple(extra)
        )
    launcher, before, after = _find_launcher(words[at]), words[:at], words[at + 1 :]
    before, early = _take_known(before)
    before, spark = _take_spark(before)
    if launcher == "launcher.ToreeLauncher":
        if spark[-1:] == ["--class"]:
            spark.pop()
        after = [word for word in after if not word.endswith(".jar")]
    flags, extra = read_flags(after)
    return Command(
        form="launcher",
        argv=(),
        launcher=launcher,
        before=tuple(before),
        flags=(*early, *flags),
        extra=tuple(extra),
        spark=tuple(spark),
    )


def _read_text(words: list[str]) -> Command | None:
    """Return the command in the text of `sh -c`; None if the launcher is not in such a text."""
    for at, word in enumerate(words):
        match = _IN_TEXT.search(word)
        if match is None or not at or not re.fullmatch(r"-[a-z]*c", words[at - 1]):
            continue
        if not any(PurePath(earlier).name in SHELLS for earlier in words[:at]):
            continue
        before, after = word[: match.start()], word[match.end() :]
        end = _OPERATOR.search(after)
        own, rest = (after[: end.start()], after[end.start() :]) if end else (after, "")
        spark: list[str] = []
        if submit := re.search(r"[^\s;&|]*spark-submit[\"']?\s", before):
            spark, before = _split(before[submit.end() :]), before[: submit.start()]
        flags, extra = read_flags(_split(own))
        late, others = read_flags(words[at + 1 :])
        return Command(
            form="launcher",
            argv=(),
            launcher=_find_launcher(match.group().strip("\"'")) or "launcher.ToreeLauncher",
            before=tuple(words[:at]),
            flags=(*flags, *late),
            extra=tuple(part for part in (*extra, *others) if part not in ("$@", "$*")),
            spark=tuple(spark),
            is_in_text=True,
            text_before=before,
            text_after=f" {rest}" if rest else "",
        )
    return None


def _split(text: str) -> list[str]:
    try:
        return split_words(text)
    except ValueError:  # a quote that is not closed
        return text.split()


def _find_launcher(word: str) -> str:
    name = PurePath(word).name
    if name.startswith("toree-launcher") and name.endswith(".jar"):
        return "launcher.ToreeLauncher"
    return name if name in LAUNCHERS else ""


def _take_known(words: list[str]) -> tuple[list[str], list[Flag]]:
    """Return words without the launchers' options, and these options."""
    kept, flags, rest = [], [], list(words)
    while rest:
        word = rest.pop(0)
        written, equals, value = word.partition("=")
        name = _find_option(written)
        if not word.startswith("--") or name not in _KNOWN:
            kept.append(word)
            continue
        if not equals and rest and not rest[0].startswith("--"):
            value = rest.pop(0)
        flags.append(Flag(name, written, value))
    return kept, flags


def _take_spark(words: list[str]) -> tuple[list[str], list[str]]:
    """Return the words before `spark-submit`, and those behind it."""
    for at, word in enumerate(words):
        if PurePath(word).name == "spark-submit":
            return words[:at], words[at + 1 :]
    return words, []
