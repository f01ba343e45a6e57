"""The form of a kernel.json: reads it, and says what is malformed."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import KernelSpecManager

from roost.scheduler.errors import ConfigError

PROVISIONER = "roost"
"""The name under which jupyter_client knows RoostProvisioner."""


def read_document(folder: str | Path) -> tuple[Any, str]:
    """Return a kernel.json and a sentence that says why it is malformed (empty if it is not); raises `OSError`."""
    path = Path(folder) / "kernel.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        return None, f"{path} is not JSON: {error}."
    wrong = _find_malformed(document)
    return document, f"In {path} {wrong}." if wrong else ""


def _find_malformed(document: Any) -> str:
    """Return which part of a kernel.json is malformed; empty if none is."""
    if not isinstance(document, dict):
        return "the document is not a table"
    argv, env, metadata = (
        document.get(key, empty) for key, empty in (("argv", []), ("env", {}), ("metadata", {}))
    )
    if not isinstance(argv, list) or not argv or not all(isinstance(part, str) for part in argv):
        return "argv is empty or not a list of texts"
    if not isinstance(env, dict) or not all(isinstance(value, str) for value in env.values()):
        return "env is not a table of names and texts"
    if not isinstance(metadata, dict):
        return "metadata is not a table"
    own = metadata.get("kernel_provisioner", {})
    if not isinstance(own, dict):
        return "metadata.kernel_provisioner is not a table"
    if not isinstance(own.get("config", {}), dict):
        return "metadata.kernel_provisioner.config is not a table"
    return ""


def may_be_ours(document: Any) -> bool:
    """True if a kernel.json names the roost provisioner, or is too malformed to tell."""
    metadata = document.get("metadata", {}) if isinstance(document, dict) else None
    if not isinstance(metadata, dict):
        return True
    own = metadata.get("kernel_provisioner", {})
    return (own.get("provisioner_name") if isinstance(own, dict) else own) == PROVISIONER


def check_form(specs: KernelSpecManager, name: str) -> None:
    """Raise `ConfigError` for a malformed kernelspec. A missing one is not an error here."""
    folder = specs.find_kernel_specs().get(name.lower())  # Jupyter ignores case
    malformed = ""
    if folder is not None:
        with contextlib.suppress(OSError):  # Jupyter reports it, or finds the kernelspec elsewhere
            malformed = read_document(folder)[1]
    if malformed:
        raise ConfigError(malformed)
