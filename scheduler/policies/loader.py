"""Finds and imports foreign policies, which roost does not ship: by name, file or module."""

from __future__ import annotations

import hashlib
import logging
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import TypeVar

import numpy as np

import roost
from roost.launchers.daemon.file_input import UnfitFile, read_content
from roost.placement.shipped_policies import PolicyError, import_policy
from roost.scheduler.errors import ConfigError

log = logging.getLogger(__name__)

T = TypeVar("T")

_LONGEST = 200
"""At most this many characters of an error in a foreign policy are shown."""
_MOST_BYTES = 16 << 20
_NO_NAMES: Mapping[str, str] = MappingProxyType({})


def find_policy(name: str, named: Mapping[str, str] = _NO_NAMES) -> object:
    """Return the policy called `name`: a key of `named`, `path/to/file.py:Name`, or an importable name.

    `named` has the operator's names. Raises `PolicyError` and every error of the imported code. A file is
    imported under a module name that is made from its path.
    """
    spec = named.get(name, name)
    path, _, attribute = spec.rpartition(":")
    if not path.endswith(".py"):
        if spec.endswith(".py"):
            raise PolicyError(f"policy {spec} is a file: give it as path/to/file.py:Name.")
        return import_policy(spec, named)
    file = Path(path).expanduser().resolve()
    try:
        source = read_content(file, most_bytes=_MOST_BYTES, may_be_link=True)
    except UnfitFile as problem:
        raise PolicyError(f"{problem}.") from None
    module_name = f"_roost_policy_{hashlib.sha256(bytes(file)).hexdigest()[:12]}"
    module = ModuleType(module_name)
    module.__file__ = str(file)
    sys.modules[module_name] = module  # dataclasses look up their module
    try:
        exec(compile(source, str(file), "exec"), module.__dict__)
    except BaseException:
        del sys.modules[module_name]
        raise
    if not hasattr(module, attribute):
        raise PolicyError(f"{file} has no {attribute!r:.80}: a policy is given as path/to/file.py:Name.")
    return getattr(module, attribute)


def load_policy(name: str, load: Callable[[], T]) -> T:
    """Return the result of `load`. Every error becomes a `ConfigError` that names the policy."""
    try:
        return load()
    except PolicyError as problem:
        raise ConfigError(str(problem)) from None
    except BaseException as problem:  # foreign code may even raise SystemExit
        log.exception("policy=%s cannot be loaded", name)  # the policy's author needs the traceback
        raise ConfigError(
            f"the placement policy {name} cannot be loaded ({format_error(problem)}); choose another."
        ) from None


def format_error(problem: BaseException) -> str:
    """Return an error that a foreign policy has raised as one short line, with its place in the policy's code."""
    try:
        text = " ".join(str(problem).split())
    except Exception:  # noqa: BLE001 - its own __str__ raises
        text = ""
    text = f"{type(problem).__name__}: {text}".rstrip(": ")
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
    place = _find_place(problem)
    return f"{text}, at {place}" if place else text


def _find_place(problem: BaseException) -> str:
    """Return file and line of the last call in foreign code that led to an error; empty if there is none."""
    others = tuple(f"{Path(module.__file__ or '').parent}/" for module in (roost, np))
    python = f"{Path(logging.__file__).parent.parent}/"
    for frame in reversed(traceback.extract_tb(problem.__traceback__)):
        file = frame.filename
        is_python = file.startswith("<") or (file.startswith(python) and "site-packages" not in file)
        if not is_python and not file.startswith(others):
            return f"{Path(file).name:.80}:{frame.lineno}"
    return ""
