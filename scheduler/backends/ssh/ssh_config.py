"""The names of `Host` lines in a person's configuration of ssh, as its manual page ssh_config(5) describes the file."""

from __future__ import annotations

import glob
import os
import pwd
import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from roost.scheduler.errors import ConfigError
from roost.scheduler.input_files import read_input

from .host import Host, make_host

_MOST_LEVELS = 16
"""At most this deep are files included. OpenSSH has the same limit."""
_MOST_FILES = 1_000
_LINE = re.compile(r"(?P<keyword>[^\s=#]+)(?:\s*=\s*|\s+|$)(?P<arguments>.*)")
_ARGUMENT = re.compile(r'"(?P<quoted>[^"]*)"|(?P<plain>\S+)')


def find_config(ssh: Sequence[str]) -> Path:
    """Return the file of configuration that this command of ssh reads: that of its option -F, else the person's own."""
    words, found = iter(ssh), ""
    for word in words:
        if word.startswith("-F"):
            found = word.removeprefix("-F") or next(words, "")
    return Path(found).expanduser() if found else _find_folder() / "config"


def read_aliases(path: Path, patterns: str) -> list[Host]:
    """Return the hosts whose names match, in the order of the file. Raises `ConfigError`, which names the line.

    `patterns` has one or more patterns between commas. A pattern that begins with `!` excludes names. Names that are
    patterns themselves are left out. `Match` lines and the file of the whole system are not read.
    """
    if str(path) == "none":  # as OpenSSH reads `-F none`
        raise ConfigError(
            "ssh_config_pattern has no file, because of the option `-F none` in ssh: name the hosts."
        )
    found: dict[str, Host] = {}
    for file, number, name in _read_names(path, [0], 0):
        if matches(name, patterns) and name not in found:
            try:
                found[name] = make_host(name, {})
            except ValueError as problem:
                raise ConfigError(
                    f"{file}, line {number}: {problem}, or exclude it by ssh_config_pattern."
                ) from None
    return list(found.values())


def matches(name: str, patterns: str) -> bool:
    """True if a name matches one of the patterns, and no pattern that begins with `!`.

    >>> [name for name in ("gpu1", "gpu7", "cpu1") if matches(name, "gpu*, !gpu7")]
    ['gpu1']
    """
    each = [pattern.strip() for pattern in patterns.split(",") if pattern.strip()]
    if any(_matches(name, pattern[1:]) for pattern in each if pattern.startswith("!")):
        return False
    return any(_matches(name, pattern) for pattern in each if not pattern.startswith("!"))


def _matches(name: str, pattern: str) -> bool:
    """True for `*` and `?` as ssh reads them. A bracket means itself."""
    return fnmatchcase(name, pattern.replace("[", "[[]"))


def _read_names(path: Path, files: list[int], level: int) -> Iterator[tuple[Path, int, str]]:
    """Yield the file, the line's number and each name of its `Host` lines. `files` has the number of files so far."""
    files[0] += 1
    if level > _MOST_LEVELS or files[0] > _MOST_FILES:
        raise ConfigError(f"{path} is included too deeply, or includes itself: correct the lines `Include`.")
    text = read_input(path).decode(errors="surrogateescape")  # comments may have any encoding
    for number, line in enumerate(text.split("\n"), start=1):
        found = _LINE.fullmatch(line.strip())
        if found is None:
            continue
        words = _split(found["arguments"])
        if found["keyword"].lower() == "host":
            excluded = {word[1:] for word in words if word.startswith("!")}
            for word in words:
                if not set("*?!") & set(word) and word not in excluded:
                    yield path, number, word
        elif found["keyword"].lower() == "include":
            for word in words:
                for included in _find_included(word):
                    yield from _read_names(included, files, level + 1)


def _split(arguments: str) -> list[str]:
    """Return the arguments of a line, up to a comment."""
    words = []
    for found in _ARGUMENT.finditer(arguments):
        if found["quoted"] is None and found["plain"].startswith("#"):
            break
        words.append(found["plain"] if found["quoted"] is None else found["quoted"])
    return words


def _find_included(word: str) -> list[Path]:
    """Return the files of an `Include`. A relative path starts at the folder of the person's own configuration."""
    home = str(_find_folder().parent)
    path = home + word[1:] if word == "~" or word.startswith("~/") else os.path.expanduser(word)
    path = re.sub(r"\$\{(\w+)\}", lambda name: os.environ.get(name[1], ""), path)
    found = map(Path, sorted(glob.glob(os.path.join(_find_folder(), path))))
    return [each for each in found if each.exists()]  # ssh takes no notice of a link that leads nowhere


def _find_folder() -> Path:
    """Return the folder of the person's own configuration. OpenSSH takes no notice of HOME."""
    try:
        home = pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:  # a container without names of users, where ssh does not run either
        home = os.path.expanduser("~")
    return Path(home) / ".ssh"
