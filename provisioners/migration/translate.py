"""Translates one kernelspec of the three systems into a kernelspec of roost's, with a line for each of its options."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from roost.provisioners.kernel_json import PROVISIONER
from roost.provisioners.spark_mode import check_deploy_mode
from roost.scheduler.backends.registry import backend_names, get_spec
from roost.scheduler.errors import ConfigError, RoostError

from .amounts import read_names
from .classes import BACKENDS, REFUSALS
from .command import Command, read_command
from .container_options import apply_docker_run
from .draft import Draft
from .kernel_commands import build_command, find_language, set_submit_arguments
from .kernel_file import OldKernelspec, list_places, read_kernelspec
from .launcher_options import apply_launcher_options
from .options_table import describe
from .refused_options import drop_refused
from .report import Line, Translation
from .secrets import show
from .server_settings import NotLiteral, find_key, is_server_variable
from .server_translation import apply_server
from .spark_options import set_driver_resources, translate_spark
from .stanza_options import HANDLERS, LOCAL_HOSTS
from .variables import (
    SPARK_SOURCES,
    keep_rest,
    mend_plain_spark,
    take_kernel_variables,
    take_options,
    take_server_variables,
    take_spark_words,
)

_DASK_REFUSAL = (
    "It starts dask-yarn, which has had no release since 2021: use a kernel of the backend yarn with dask.distributed, "
    "or the backend dask."
)
_TEMPLATE_REFUSAL = (
    "It is a half-written template, with names in braces that its generator has not filled in: install it again "
    "(`jupyter yarn-spec install` without --yarn-endpoint), then migrate it."
)
_ENCRYPTION_REFUSAL = (
    "The backend ssh starts no kernel without encryption, which {} cannot do: use yarn or kubernetes."
)
_PROGRAMS = {"r": "IRkernel", "scala": "Toree"}
_TEMPLATE = re.compile(r"\$?\{[a-z_]+\}")
"""A language or a name that is only a name in braces."""
_UNFILLED = re.compile(r"\$\{[a-z_]+\}")
"""A name in a command that a generator of theirs fills in. Variables have upper-case letters."""
_RESERVED_KEYS = ("argv", "env", "metadata", "process_proxy", "kernel_provisioner", "resource_dir")
"""The keys of a kernel.json that the new one has from elsewhere."""


def translate(
    folder: Path, *, server: Mapping[str, Any] | None = None, keep_launcher: bool = False
) -> Translation:
    """Translate the kernelspec in `folder`, whose files stay as they are.

    `server` has the settings of the old server, as `read_server` returns them. If `keep_launcher`, the bridge starts
    the old launcher instead of the kernel's own command. Raises `ConfigError` for a file that cannot be read, is no
    JSON object or has wrong types, and for a kernelspec that is roost's already.
    """
    old, server = read_kernelspec(Path(folder)), server or {}
    if old.stanza is not None and old.stanza.class_name == PROVISIONER:
        raise ConfigError(f"The kernelspec {old.name} is roost's already: there is nothing to migrate.")
    command = read_command(old.argv)
    draft = Draft(
        old=old,
        command=command,
        backend=_choose_backend(old, server, command),
        language=find_language(command, old),
        is_spark=_is_spark(old, command),
        keep_launcher=keep_launcher,
    )
    refusal = _find_refusal(old, command)
    if not refusal:
        _translate_parts(draft, server)
        drop_refused(draft)
        refusal = _find_late_refusal(draft)
    if refusal:
        lines = tuple(Line(place, "none", "the kernelspec is refused as a whole") for place in _list_all(old))
        return Translation(old.name, draft.backend, None, lines, refusal=refusal)
    _sweep(draft)
    return Translation(
        name=old.name,
        backend=draft.backend,
        kernel_json=_build_document(draft),
        lines=tuple(draft.lines),
        config=draft.settings,
        waits_for=_find_missing(draft.backend),
    )


def _choose_backend(old: OldKernelspec, server: Mapping[str, Any], command: Command) -> str:
    """Return the backend by the class, the hosts, and a `docker run` in the command; empty if roost has none."""
    kind = old.stanza.kind if old.stanza else "local"
    if kind in REFUSALS:
        return ""
    if command.docker is not None and kind in ("local", "distributed"):
        return "docker"
    if kind != "distributed":
        return BACKENDS[kind]
    own = (old.stanza.config if old.stanza else {}).get("remote_hosts")
    in_env = [value for name, value in old.env.items() if find_key(name) == "remote_hosts"]
    in_server = [value for name, value in server.items() if find_key(name) == "remote_hosts"]
    given = next((value for value in (own, *in_env, *in_server) if value), "")
    hosts = [] if isinstance(given, NotLiteral) else read_names(given)
    return "ssh" if any(host not in LOCAL_HOSTS for host in hosts) else "local"


def _find_refusal(old: OldKernelspec, command: Command) -> str:
    if old.stanza and old.stanza.kind in REFUSALS:
        return REFUSALS[old.stanza.kind]
    named = [str(old.document.get(key, "")) for key in ("language", "display_name")]
    if any("${" in text for text in named) or any(map(_TEMPLATE.fullmatch, named)):
        return _TEMPLATE_REFUSAL
    if not command.is_in_text and any(map(_UNFILLED.search, old.argv)):
        return _TEMPLATE_REFUSAL
    is_dask = command.find("cluster-type") == "dask" or {"DASK_OPTS", "DASK_YARN_EXE"} & old.env.keys()
    return _DASK_REFUSAL if is_dask and command.form != "plain" else ""


def _find_late_refusal(draft: Draft) -> str:
    """Return why roost would refuse each start, as a sentence; empty if it would not."""
    if draft.backend == "ssh" and not _declares_curve(draft.metadata):
        return _ENCRYPTION_REFUSAL.format(_PROGRAMS.get(draft.language, "this kernel"))
    try:
        check_deploy_mode(draft.argv, draft.env)
    except ConfigError as problem:
        return problem.user_message
    return ""


def _declares_curve(metadata: Mapping[str, Any]) -> bool:
    declared = metadata.get("supported_encryption")
    return declared == "curve" or (isinstance(declared, list) and "curve" in declared)


def _is_spark(old: OldKernelspec, command: Command) -> bool:
    has_words = any(old.env.get(name, "").strip() for name in SPARK_SOURCES)
    return command.form != "plain" and (has_words or bool(command.spark))


def _translate_parts(draft: Draft, server: Mapping[str, Any]) -> None:
    """Translate the stanza, the server's settings, the variables and the command, in this order."""
    env = dict(draft.old.env)
    own = set(draft.old.stanza.config) if draft.old.stanza else set()
    _translate_stanza(draft)
    take_server_variables(draft, env, own)
    apply_server(draft, server, own | {find_key(name) for name in draft.old.env if is_server_variable(name)})
    _keep_metadata(draft)
    take_kernel_variables(draft, env)
    if draft.command.docker is not None:
        apply_docker_run(draft, draft.command.docker)
    if draft.has_containers and "image" not in draft.options:
        text = "the kernelspec names no image: name one with Python 3.10 or newer and ipykernel"
        draft.say("options.image", "decision", text, f"c.{draft.section}.image")
    if draft.command.form == "plain":
        mend_plain_spark(draft, env)
        keep_rest(draft, env)
        build_command(draft, [])
        return
    sources = take_spark_words(draft, env)
    apply_launcher_options(draft, take_options(draft, env))
    words = translate_spark(draft, sources)
    keep_rest(draft, env)
    build_command(draft, words)
    if draft.command.extra:
        count = len(draft.command.extra)
        draft.say(
            "argv", "dropped", f"{count} words behind the launcher that belong to no option are left out"
        )
    if draft.is_spark:
        set_driver_resources(draft)
        set_submit_arguments(draft, words)


def _translate_stanza(draft: Draft) -> None:
    stanza = draft.old.stanza
    if stanza is None:
        return
    place, name = f"{stanza.place}.{stanza.class_key}", show("class", stanza.class_name)
    if stanza.is_known:
        draft.say(place, "translated", f"backend {draft.backend}")
    else:
        text = f"{name} is no class of theirs, so the backend is a guess: choose it"
        draft.say(place, "decision", text, f"backend {draft.backend}")
    for key, handle in HANDLERS.items():
        if key in stanza.config:
            handle(draft, stanza.config[key], f"{stanza.place}.config.{key}")
    for key in [key for key in stanza.config if key not in HANDLERS]:
        text = describe("kernelspec", f"config.{key}") or "roost does not know this option of theirs"
        draft.say(f"{stanza.place}.config.{key}", "none", text)


def _keep_metadata(draft: Draft) -> None:
    for key, value in draft.old.metadata.items():
        if key not in ("process_proxy", "kernel_provisioner"):
            draft.metadata[key] = value
            note = ", which needs ipykernel 7.3 or newer" if key == "supported_encryption" else ""
            draft.say(f"metadata.{key}", "kept", f"stays{note}")


def _build_document(draft: Draft) -> dict[str, Any]:
    old = draft.old.document
    document: dict[str, Any] = {"argv": draft.argv}
    document |= {key: value for key, value in old.items() if key not in _RESERVED_KEYS}
    document.setdefault("display_name", draft.old.name)
    document.setdefault("language", draft.language)
    if str(old.get("interrupt_mode", "signal")).lower() not in ("signal", "message"):
        document["interrupt_mode"] = "signal"
    if draft.env or "env" in old:
        document["env"] = draft.env
    config = {"backend": draft.backend, **draft.config}
    if draft.options:
        config["options"] = draft.options
    document["metadata"] = {
        **draft.metadata,
        "kernel_provisioner": {"provisioner_name": PROVISIONER, "config": config},
    }
    return document


def _sweep(draft: Draft) -> None:
    """Add a line for each place that has none yet: what stays as it was, and what roost does not know."""
    named = {line.option for line in draft.lines}
    for place in _list_all(draft.old):
        if place in named or any(option.startswith(f"{place} ") for option in named):
            continue
        if place == "interrupt_mode" and str(draft.old.document[place]).lower() not in ("signal", "message"):
            draft.say(place, "decision", "it is neither signal nor message", "signal")
        elif place in draft.old.document and place not in _RESERVED_KEYS:
            draft.say(place, "kept", "stays")
        elif draft.old.stanza and not place.startswith(draft.old.stanza.place):
            draft.say(place, "dropped", f"{draft.old.stanza.place} counts, and not this")
        else:
            draft.say(place, "none", "roost does not know this option of theirs")


def _list_all(old: OldKernelspec) -> list[str]:
    return list(list_places(old.document))


def _find_missing(backend: str) -> str:
    """Return the backend's name if it is not installed here, or does not exist yet; else an empty text."""
    if backend not in backend_names():
        return backend
    try:
        get_spec(backend).check_packages()
    except RoostError:
        return backend
    return ""
