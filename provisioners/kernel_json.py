"""Reads and checks `kernel.json`, the document of a kernelspec."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import KernelSpec

from roost.scheduler.errors import ConfigError
from roost.scheduler.input_files import UnfitFile
from roost.scheduler.input_files import read_document as read_json_file

PROVISIONER = "roost"
"""The name under which jupyter_client knows RoostProvisioner."""
_FILE = "kernel.json"
_INTERRUPT_MODES = ("signal", "message")


def read_document(folder: str | Path) -> tuple[Any, str]:
    """Return the kernel.json in `folder`, and a sentence that says why it is malformed; raises `OSError`.

    The sentence is empty for a good document. The document is None if the file cannot be used.
    """
    path = Path(folder) / _FILE
    try:
        document = read_json_file(path, may_be_link=True)
    except UnfitFile as problem:
        return None, f"{problem}."
    wrong = find_malformed(document)
    if not wrong and not any("{connection_file}" in part for part in document["argv"]):
        wrong = "argv has no {connection_file}, so that the kernel would not learn its ports"
    return document, _describe(wrong, path)


def check_spec(spec: KernelSpec) -> None:
    """Raise `ConfigError` for a kernelspec that is malformed.

    jupyter_client itself does not check the values in it. A command without `{connection_file}` is accepted, as there.
    """
    document = spec.to_dict()
    if wrong := find_malformed(document):
        raise ConfigError(_describe(wrong, Path(spec.resource_dir) / _FILE))


def find_provisioner(document: Any) -> Any:
    """Return the provisioner's name in a kernel.json; empty if it names none.

    If `document` or its metadata is not an object, return roost's name, so that roost reports the defect.
    """
    metadata = document.get("metadata", {}) if isinstance(document, dict) else None
    if not isinstance(metadata, dict):
        return PROVISIONER
    own = metadata.get("kernel_provisioner", {})
    return own.get("provisioner_name", "") if isinstance(own, dict) else own


def find_wrong_env(env: Any) -> str:
    """Return the defect of a kernel's variables, as a clause; empty if they have none."""
    if not isinstance(env, dict) or not all(isinstance(text, str) for pair in env.items() for text in pair):
        return "env is not an object of names and texts"
    for name in env:
        if not name or "=" in name or "\0" in name:
            return f"env has a variable named {name!r:.40}, which is not possible"
    return ""


def _describe(wrong: str, path: Path) -> str:
    return f"In {path} {wrong}." if wrong else ""


def find_malformed(document: Any) -> str:
    """Return which part of a kernel.json is malformed, as a clause; empty if none is."""
    if not isinstance(document, dict):
        return "the document is not an object"
    argv, metadata = document.get("argv"), document.get("metadata", {})
    if not isinstance(argv, list) or not argv or not all(isinstance(part, str) for part in argv):
        return "argv is empty or not a list of texts"
    if wrong := find_wrong_env(document.get("env", {})):
        return wrong
    for name in ("display_name", "language"):
        if not isinstance(document.get(name, ""), str):
            return f"{name} is not a text"
    if str(document.get("interrupt_mode", "signal")).lower() not in _INTERRUPT_MODES:
        return f"interrupt_mode is not one of {', '.join(_INTERRUPT_MODES)}"
    if not isinstance(metadata, dict):
        return "metadata is not an object"
    own = metadata.get("kernel_provisioner", {})
    if not isinstance(own, dict):
        return "metadata.kernel_provisioner is not an object"
    if not isinstance(own.get("config", {}), dict):
        return "metadata.kernel_provisioner.config is not an object"
    return ""
