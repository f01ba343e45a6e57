"""Compares the files that an old kernelspec runs or fills in with those that the three systems ship.

`shipped_files.txt` has a line for each name of a file: digests of whole files, then digests of all their lines.
`tests/kit/jupyter/shipped_files.py` writes it. Comments and spaces at the ends of a line do not count.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from roost.scheduler.errors import ConfigError
from roost.scheduler.input_files import read_input_text

from .old_kernelspec import OldKernelspec
from .sheet import DECIDE, Sheet
from .values import show

_SHIPPED = Path(__file__).with_name("shipped_files.txt")
_DIGITS = 6
_ENDINGS = (".sh", ".py", ".r", ".jl", ".m", ".pl", ".j2", ".yaml", ".yml")
"""The endings of files that a kernelspec runs or fills in."""
_WRITTEN_BY_SITES = ("run.sh", ".j2", ".yaml", ".yml")
"""The endings of files in which sites have lines of their own. It matters if such a file cannot be read here."""
_MOST_LINES = 12
"""At most this many lines of a file stand in a report."""


def digest_lines(text: str) -> list[str]:
    """Return the digests of the lines of a file that count, and of all of them together as the last one."""
    lines = [line for each in text.splitlines() if (line := each.strip()) and not line.startswith("#")]
    return [_digest(line) for line in [*lines, "\n".join(lines)]]


def compare_files(sheet: Sheet, old: OldKernelspec) -> None:
    """Add a decision for each file that has another content than the shipped one, with the lines that differ."""
    for path in _list_files(old):
        name = str(path.relative_to(old.folder) if path.is_relative_to(old.folder) else path)
        try:
            text = read_input_text(path)
        except ConfigError:
            text = ""
            if path.name.endswith(_WRITTEN_BY_SITES):
                question = (
                    "it cannot be read here: does it have lines of your own, which roost does not take over?"
                )
                sheet.say(f"file {name}", DECIDE, question, "left out")
        whole, known = _read_shipped().get(path.name, (frozenset(), frozenset()))
        *digests, total = digest_lines(text)
        if not digests or total in whole:
            continue
        lines = [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]
        own = [line for line, digest in zip(lines, digests, strict=True) if digest not in known]
        what = "the file shipped" if known else "any file shipped, and the new command does not run it"
        question = f"it differs from {what}: move what kernels need of it"
        if not own:
            question += "; it has no line of its own, and lacks some"
        sheet.say(f"file {name}", DECIDE, question, "left out", list(_show_lines(own)))


def _show_lines(lines: Sequence[str]) -> Iterator[str]:
    yield from (show("", line) for line in lines[:_MOST_LINES])
    if len(lines) > _MOST_LINES:
        yield f"… and {len(lines) - _MOST_LINES} lines more"


def _list_files(old: OldKernelspec) -> Iterable[Path]:
    """Return the files of the kernelspec's folder that it may run or fill in, and others that its command names."""
    found = [path for path in sorted(old.folder.rglob("*")) if os.path.isfile(path)]
    names = {path.name for path in found}
    for word in old.command.words if not old.command.image else ():
        path = Path(word.removeprefix("local://"))
        if path.is_absolute() and path.name not in names:  # else it is that file, where it was installed
            names.add(path.name)
            found.append(path)
    return [path for path in found if path.name.lower().endswith(_ENDINGS)]


@cache
def _read_shipped() -> Mapping[str, tuple[frozenset[str], frozenset[str]]]:
    """Return the digests of whole files and of lines, by the name of the file."""
    found = {}
    for line in _SHIPPED.read_text(encoding="ascii").splitlines():
        name, *both = line.split(" ")
        whole, lines = (
            frozenset(digits[at : at + _DIGITS] for at in range(0, len(digits), _DIGITS)) for digits in both
        )
        found[name] = (whole, lines)
    return found


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]
