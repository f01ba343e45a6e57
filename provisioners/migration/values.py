"""Reads the values of the three systems: amounts, lists, words of a command. Secrets among them are never shown."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterable
from typing import Any

_UNITS = {
    "n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15,
    "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50,
}  # fmt: skip
"""The units of Kubernetes."""
_JVM_UNITS = {"": 2.0**20, "b": 1.0, "k": 2.0**10, "m": 2.0**20, "g": 2.0**30, "t": 2.0**40, "p": 2.0**50}
_AMOUNT = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([A-Za-z]*)")
_MOST_BYTES = 1 << 60

_UNSAFE = re.compile(r"""[\s'"\\]""")

_SECRET_NAME = re.compile(
    r"TOKEN|SECRET|PASSW|PASSPHRASE|CREDENTIAL|KEY(?!TAB|WORD|BOARD)"
    r"|(^|[^A-Z])(AUTH|AUTHORIZATION|BEARER|COOKIE|CREDS?|JWT|PASS|PAT|PW|PWD|SIG|SIGNATURE)([^A-Z]|$)",
    re.IGNORECASE,
)
_SECRET_URL = re.compile(
    r"\w://[^/\s@]*:[^/\s@]*@|\w://[^/\s:@]+@|(^|[\s,;='\"])[\w.-]+:[^/\s@]+@(?!sha256:)"
)
"""A URL with a user or a password, or `USER:PASSWORD@HOST`. An image may have the digest `@sha256:…`."""
_ASSIGNMENT = re.compile(r"""([A-Za-z][\w.-]*)["']?\s*[=:]\s*(\S*)|--?([A-Za-z][\w.-]*)\s+(?=(\S*))""")
"""A name to which a text gives a value, as in `NAME=…`, `"name": …` and `--name …`, and the value.

The value of an option may be an assignment itself.
"""
_REFERENCE = re.compile(r"""["']?(\$\{?\w+(:-)?\}?|\$?\{\w+\})["',]*""")
"""A value that only names another one, and so is no secret itself."""
_LONGEST_SHOWN = 120
_HIDDEN = "(a secret, not shown)"


def read_amount(value: object) -> float:
    """Return one of Kubernetes' quantities. Raises `ValueError`.

    >>> read_amount("2500m"), read_amount("6Gi")
    (2.5, 6442450944.0)
    """
    match = _AMOUNT.fullmatch(str(value).strip())
    if match is None or match.group(2) not in _UNITS or isinstance(value, bool):
        raise ValueError("it is no amount")
    return float(match.group(1)) * _UNITS[match.group(2)]


def read_cpus(value: object) -> float:
    """Return a number of CPUs above 0. Raises `ValueError`."""
    cpus = read_amount(value)
    if not 0 < cpus < 1e6:
        raise ValueError("it is no number of CPUs")
    return int(cpus) if cpus == int(cpus) else round(cpus, 3)


def read_gpus(value: object) -> int:
    """Return a whole number of GPUs. Raises `ValueError`."""
    gpus = read_amount(value)
    if gpus != int(gpus) or gpus > 1024:
        raise ValueError("it is no whole number of GPUs")
    return int(gpus)


def read_memory(value: object, *, is_jvm: bool = False) -> int:
    """Return bytes. `is_jvm`: Spark's notation, in which a bare number is in MiB. Raises `ValueError`."""
    size = 0.0
    if is_jvm:
        match = _AMOUNT.fullmatch(str(value).strip())
        unit = match.group(2).lower().removesuffix("ib") if match else "?"
        unit = unit.removesuffix("b") or unit
        if match is not None and unit in _JVM_UNITS:
            size = float(match.group(1)) * _JVM_UNITS[unit]
    else:
        size = read_amount(value)
    if not (1 << 20) <= size <= _MOST_BYTES:
        raise ValueError("it is no amount of memory")
    return int(size)


def format_memory(size: float, *, in_gib: bool = False) -> str:
    """Return bytes as a kernelspec has them. `in_gib` rounds them up to whole GiB.

    >>> format_memory(6 << 30), format_memory(6_000_000_000)
    ('6GiB', '6000000000')
    """
    if in_gib:
        return f"{math.ceil(size / (1 << 30))}GiB"
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if size % factor == 0:
            return f"{int(size) // factor}{unit}"
    return str(int(size))


def read_names(value: Any) -> list[str]:
    """Return the names in a list, a set or a text with commas or spaces. Those of a set are sorted.

    >>> read_names("bob, alice")
    ['bob', 'alice']
    """
    if isinstance(value, (set, frozenset)):
        value = sorted(map(str, value))
    if isinstance(value, (list, tuple)):
        found = [str(item).strip() for item in value]
    else:
        found = re.split(r"[,\s]+", str(value).strip().strip("[](){}").replace("'", "").replace('"', ""))
    return [name for name in found if name]


def read_bool(value: Any) -> bool:
    """Return the truth of a value or a text, as the three systems read their variables."""
    return str(value).strip().lower() in ("true", "1", "yes", "on")


def read_seconds(value: Any) -> float:
    """Return seconds above 0. Raises `ValueError`."""
    try:
        seconds = float(value)
    except (ValueError, TypeError, OverflowError):  # its text has the value, which may be a secret
        raise ValueError("it is no number of seconds") from None
    if isinstance(value, bool) or not (0 < seconds < 1e9):
        raise ValueError("it is no number of seconds")
    return int(seconds) if seconds == int(seconds) else seconds


def join_words(words: Iterable[str], *, for_shell: bool = False) -> str:
    """Return a text from which a program makes these words.

    If `for_shell`, a shell makes them too: it fills in no variable. Otherwise only a word with a space, a quote or a
    backslash gets quotes, because a program splits the text.
    """
    if for_shell:
        return shlex.join(words)
    return " ".join(shlex.quote(word) if _UNSAFE.search(word) or not word else word for word in words)


def is_secret(name: str, value: str = "") -> bool:
    """True if a variable or option of this name is probably a secret, or if the value contains one.

    The value contains one if it is a URL with a user or a password, a host with both, or if it assigns to such a name.
    A value that only names another variable is none.
    """
    if _SECRET_URL.search(value) or (_SECRET_NAME.search(name) and not _REFERENCE.fullmatch(value)):
        return True
    return any(
        _SECRET_NAME.search(name) and name.lower() != "key" and not _REFERENCE.fullmatch(value)
        for pair in _ASSIGNMENT.findall(value)
        for name, value in (pair[:2], pair[2:])
    )


def show(name: str, value: object) -> str:
    """Return a value for a sentence: a secret is hidden, a long value is cut, and an object is only mentioned."""
    if not isinstance(value, (str, int, float)):
        return ", ".join(show(name, each) for each in value) if isinstance(value, list) else "a value"
    text = " ".join(str(value).split())
    if is_secret(name, text):
        return _HIDDEN
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"
