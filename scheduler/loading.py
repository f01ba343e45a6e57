"""Policies that are anybody's code: found by their name, file or module, and made."""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from roost.placement.policies import PolicyError, find

from .errors import ConfigError

log = logging.getLogger(__name__)

T = TypeVar("T")

_LONGEST = 200
"""Characters of an error of anybody's that are shown."""


def found(spec: str) -> object:
    """What is named: `path/to/file.py:Name`, or what `placement.policies.find` knows. Raises whatever it raises.

    A file is run as a module of a name of its own, which nothing else imports; its folder is not put on `sys.path`.
    """
    path, _, attribute = spec.rpartition(":")
    if not path.endswith(".py"):
        return find(spec)
    file = Path(path).expanduser().resolve()
    source = file.read_bytes()
    name = f"_roost_policy_{hashlib.sha256(bytes(file)).hexdigest()[:12]}"
    module = ModuleType(name)
    module.__file__ = str(file)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        exec(compile(source, str(file), "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    if not hasattr(module, attribute):
        raise PolicyError(f"{file} has no {attribute!r:.80}: a policy is given as path/to/file.py:Name.")
    return getattr(module, attribute)


def loaded(name: str, load: Callable[[], T]) -> T:
    """What `load` gives; what it raises becomes a `ConfigError` that names the policy."""
    try:
        return load()
    except PolicyError as problem:
        raise ConfigError(str(problem)) from None
    except BaseException as problem:  # anybody's code, which may even ask to exit
        log.exception("policy=%s cannot be loaded", name)  # its author needs the stack
        raise ConfigError(
            f"the placement policy {name} cannot be loaded ({told(problem)}); ask for another."
        ) from None


def told(problem: BaseException) -> str:
    """An error of anybody's in one short line."""
    try:
        text = " ".join(str(problem).split())
    except Exception:  # noqa: BLE001 - its own __str__ raises
        text = ""
    text = f"{type(problem).__name__}: {text}".rstrip(": ")
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
