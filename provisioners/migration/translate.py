"""Translates one kernelspec of the three systems into a kernelspec of roost's, with a line for each of its options."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from roost.provisioners.kernel_json import PROVISIONER
from roost.provisioners.kernelspecs import check_config
from roost.provisioners.spark_mode import check_deploy_mode
from roost.scheduler.backends.registry import get_spec
from roost.scheduler.errors import ConfigError, RoostError
from roost.scheduler.messages import is_loopback

from .command import build_command, find_language
from .draft import Draft
from .old_kernelspec import OldKernelspec, list_places, read_flags, read_kernelspec
from .server import NotLiteral, find_key, is_server_variable
from .sheet import DECIDE, NEEDLESS, TAKEN, Option, Translation
from .site_files import compare_files
from .spark import set_driver_resources, translate_spark
from .tables import (
    FLAG_VARIABLES,
    FLAGS,
    FOR_THEIRS,
    HANDSHAKE,
    NEEDLESS_FLAGS,
    NEEDLESS_SETTINGS,
    NEEDLESS_VARIABLES,
    OPTIONS,
    REFUSALS,
    read_address,
)
from .values import is_secret, read_names, show

_SPARK_SOURCES = (
    "KERNEL_EXTRA_SPARK_OPTS",
    "SPARK_OPTS",
    "__TOREE_SPARK_OPTS__",
    "PYSPARK_SUBMIT_ARGS",
    "SPARKR_SUBMIT_ARGS",
)
"""Variables with arguments of spark-submit. A later option wins, so the client's are the first."""
_OPTION_SOURCES = ("LAUNCH_OPTS", "__TOREE_OPTS__", "TOREE_OPTS")
"""Variables with options of the launcher, which stand before those of the command. So the command's win."""
_NEVER_EMPTY = ("HADOOP_CONF_DIR", "YARN_CONF_DIR", "SPARK_CONF_DIR", "SPARK_HOME", "PYTHONPATH", "JAVA_HOME")
"""Variables that mean nothing if they are empty, or lead to a wrong folder."""
_UNFILLED = re.compile(r"\$\{[a-z_]+\}|^\{[a-z_]+\}$")
"""A name that a generator of theirs fills in. Variables have upper-case letters."""
_RESERVED_KEYS = ("argv", "env", "metadata", "process_proxy", "kernel_provisioner", "resource_dir")
"""The keys of a kernel.json that the new one has from elsewhere."""
_UNKNOWN = "roost does not know this option"


def translate(
    folder: Path, *, name: str = "", server: Mapping[str, Any] | None = None, keep_launcher: bool = False
) -> Translation:
    """Translate the kernelspec in `folder`, whose files stay as they are. `name` is its name, if not the folder's.

    `server` has the settings of the old server, as `read_server` returns them. If `keep_launcher`, the bridge starts
    the old launcher instead of the kernel's own command. Raises `ConfigError` for a file that cannot be read, is no
    JSON object or has wrong types, and for a kernelspec that is roost's already.
    """
    old, server = read_kernelspec(Path(folder), name), server or {}
    hosts = _find_hosts(old, server)
    is_spark = bool(old.command.spark) or any(old.env.get(name, "").strip() for name in _SPARK_SOURCES)
    draft = Draft(
        backend=_choose_backend(old, hosts),
        old=old,
        language=find_language(old),
        is_spark=is_spark and old.command.form != "plain",
        keep_launcher=keep_launcher,
    )
    refusal = _find_refusal(old)
    if not refusal:
        _take_variables(draft, hosts, server)
        _take_command(draft, hosts)
        _drop_refused(draft)
        refusal = _find_late_refusal(draft)
    if refusal:
        return Translation(old.name, draft.backend, None, refusal=refusal)
    _sweep(draft)
    settings = draft.list_settings()
    return Translation(old.name, draft.backend, _build_document(draft), tuple(draft.lines), settings)


def _find_hosts(old: OldKernelspec, server: Mapping[str, Any]) -> list[str]:
    """Return the hosts of a kernelspec of the kind `distributed`: its own, or those of its server."""
    in_env = [value for name, value in old.env.items() if find_key(name) == "remote_hosts"]
    in_server = [value for name, value in server.items() if find_key(name) == "remote_hosts"]
    given = next((value for value in (old.config.get("remote_hosts"), *in_env, *in_server) if value), "")
    hosts = [] if isinstance(given, NotLiteral) or old.kind != "distributed" else read_names(given)
    return [host for host in hosts if not is_loopback(host)]


def _choose_backend(old: OldKernelspec, hosts: list[str]) -> str:
    if old.kind in REFUSALS:
        return ""
    if old.command.image and old.kind in ("local", "distributed"):
        return "docker"
    return ("ssh" if hosts else "local") if old.kind == "distributed" else old.kind


def _find_refusal(old: OldKernelspec) -> str:
    """Return why roost has nothing in the kernelspec's place, as a sentence; empty if it has."""
    named = [str(old.document.get(key, "")) for key in ("language", "display_name")]
    if any(map(_UNFILLED.search, [*named, *(word for word in old.command.words if word.startswith("$"))])):
        return REFUSALS["template"]
    is_dask = ("cluster-type", "dask") in old.command.flags or {"DASK_OPTS", "DASK_YARN_EXE"} & old.env.keys()
    return REFUSALS["dask"] if is_dask and old.command.form != "plain" else REFUSALS.get(old.kind, "")


def _find_late_refusal(draft: Draft) -> str:
    """Return why roost would refuse each start, as a sentence; empty if it would not."""
    if draft.backend == "ssh" and "curve" not in (draft.metadata.get("supported_encryption") or ()):
        program = {"r": "IRkernel", "scala": "Toree"}.get(draft.language, "this kernel")
        return f"The backend ssh encrypts each kernel, which {program} cannot do: use yarn or kubernetes."
    try:
        check_deploy_mode(draft.argv, draft.env)
    except ConfigError as problem:
        return problem.user_message
    return ""


def _take_variables(draft: Draft, hosts: list[str], server: Mapping[str, Any]) -> None:
    """Take the class, the options of the stanza, and the variables that mean the same. A variable of theirs wins."""
    old = draft.old
    if old.place and not old.is_known:
        question = (
            f"{show('class', old.class_name)} is no class of theirs, so the backend is a guess: choose it"
        )
        key = "class_name" if old.place.endswith("process_proxy") else "provisioner_name"
        draft.say(f"{old.place}.{key}", DECIDE, question, f"backend {draft.backend}")
    try:
        get_spec(draft.backend).check_packages()
    except RoostError as problem:
        draft.say("backend", DECIDE, problem.user_message.rstrip("."), "its kernels cannot start")
    names = [name for name in OPTIONS if name in old.env and name.startswith("KERNEL_")]
    names += [name for name in old.env if is_server_variable(name)]
    for name in names:
        key = find_key(name) if is_server_variable(name) else name
        if is_server_variable(name) and key in old.config:
            draft.say(f"env {name}", NEEDLESS, f"{old.place}.config.{key} wins")
        elif name not in NEEDLESS_VARIABLES:
            _take(draft, key, old.env[name], f"env {name}", hosts, server)
    for key, value in old.config.items():
        _take(draft, key, value, f"{old.place}.config.{key}", hosts, server)
    for key, value in old.document.get("metadata", {}).items():
        if key not in ("process_proxy", "kernel_provisioner"):
            draft.metadata[key] = value


def _take(
    draft: Draft, key: str, value: Any, place: str, hosts: list[str], server: Mapping[str, Any]
) -> None:
    """Take over an option of the stanza, which a variable in `env` can set too."""
    name = draft.old.name.lower()
    option = OPTIONS.get(key)
    if option and option.target == "~executor_image" and not draft.is_spark:
        draft.say(place, NEEDLESS, "the kernel has no executors")
    elif option and option.target in ("options.uid", "options.gid") and draft.backend == "docker":
        question = "c.RoostDockerBackend.user is the user of all containers: set it, if kernels need this one"
        draft.say(place, DECIDE, question, "the image's user")
    elif option:
        draft.take(option, value, place)
    elif key == "remote_hosts" and draft.backend != "ssh":
        draft.say(place, NEEDLESS, f"the backend {draft.backend} has nodes of its own")
    elif key == "remote_hosts" and is_secret("", ", ".join(hosts)):
        question = (
            "a host has a password: name the hosts in c.RoostSshBackend.hosts, and use keys or an agent"
        )
        draft.say(place, DECIDE, question, "no hosts of this kernelspec")
    elif key == "remote_hosts":
        draft.values["c.RoostSshBackend.hosts"] = {host: {name: "yes"} for host in hosts}
        draft.values[f"labels.{name}"] = "yes"
        draft.say(place, TAKEN, f"c.RoostSshBackend.hosts = {show('hosts', hosts)}, with the label {name}")
    elif key in ("authorized_users", "unauthorized_users"):
        rules = draft.values.setdefault("c.RoostScheduler.kernelspec_users", {}).setdefault(name, {})
        users = rules["allowed" if key == "authorized_users" else "denied"] = sorted(set(read_names(value)))
        draft.say(place, TAKEN, f"c.RoostScheduler.kernelspec_users: {show('users', users)}")
    elif key in ("yarn_endpoint", "alt_yarn_endpoint"):
        _take_endpoint(draft, place, server)
    elif key in NEEDLESS_SETTINGS:
        draft.say(place, NEEDLESS, FOR_THEIRS)
    else:
        draft.say(place, DECIDE, _UNKNOWN, "it is left out")


def _take_endpoint(draft: Draft, place: str, server: Mapping[str, Any]) -> None:
    """Take both ResourceManagers together: the server has the second one, if the kernelspec has not."""
    keys = ("yarn_endpoint", "alt_yarn_endpoint")
    of_server = {find_key(name): value for name, value in server.items()}
    of_env = {find_key(name): value for name, value in draft.old.env.items() if is_server_variable(name)}
    own = {**of_server, **of_env, **draft.old.config}
    try:
        address, shared = (
            ",".join(dict.fromkeys(filter(None, (read_address(each.get(key)) for key in keys))))
            for each in (own, of_server)
        )
    except ValueError as problem:
        draft.say(place, DECIDE, f"{problem}: set c.RoostYarnBackend.address", "HADOOP_CONF_DIR")
        return
    draft.values.pop("backend_options.address", None)
    read_all = Option("backend_options.address", lambda _: address if address != shared else None, ("yarn",))
    draft.take(read_all, address, place)


def _take_command(draft: Draft, hosts: list[str]) -> None:
    """Take the container, the launcher's options, Spark's arguments, and the variables that are left."""
    old, command = draft.old, draft.old.command
    env = {
        name: value for name, value in old.env.items() if name not in OPTIONS and not is_server_variable(name)
    }
    if command.image:
        draft.take(OPTIONS["image_name"], command.image, "argv image")
        where = f" on {show('hosts', hosts)}, and roost starts containers on one engine" if hosts else ""
        question = f"the container had these options{where}: {show('', ' '.join(command.container))}"
        draft.say("argv run", DECIDE, question, "they are left out")
    if draft.backend in ("kubernetes", "docker") and "options.image" not in draft.values:
        question = "no image is named: name one with Python 3.10 or newer and ipykernel"
        draft.say("options.image", DECIDE, question, f"c.{draft.section}.image")
    words: list[str] = []
    if command.form != "plain":
        _take_flags(draft, env)
        sources = [("argv", list(command.spark))]
        for name in _SPARK_SOURCES:
            if name == "__TOREE_SPARK_OPTS__" and name in env and old.env.get("SPARK_OPTS", "").strip():
                draft.say(f"env {name}", NEEDLESS, "env SPARK_OPTS wins")  # so does run.sh
                del env[name]
            sources.append((f"env {name}", _split(draft, name, env.pop(name, ""))))
        words = translate_spark(draft, sources)
    for name, value in env.items():
        if (name in _NEVER_EMPTY and not value.strip()) or name in NEEDLESS_VARIABLES:
            draft.say(f"env {name}", NEEDLESS, NEEDLESS_VARIABLES.get(name, "it is empty"))
        else:
            draft.keep_variable(name, value, f"env {name}")
    build_command(draft, words)
    if extra := [word for word in command.extra if word != "{connection_file}"]:
        question = f"{len(extra)} of its words belong to no option of the launcher"
        draft.say("argv", DECIDE, question, "they are left out")
    if draft.is_spark:
        set_driver_resources(draft)
    if command.form != "plain" and not draft.launcher_stays:
        compare_files(draft, old)


def _take_flags(draft: Draft, env: dict[str, str]) -> None:
    """Take the options of the launcher: those of its command first, because a launcher takes the last ones."""
    flags = [("argv", name, value) for name, value in draft.old.command.flags]
    for source in _OPTION_SOURCES:
        found, extra = read_flags(_split(draft, source, env.pop(source, "")))
        flags += [(f"env {source}", name, value) for name, value in found]
        if extra:
            draft.say(f"env {source}", DECIDE, "it has words of no option", "they are left out")
    flags += [
        (f"env {each}", name, env.pop(each).strip()) for each, name in FLAG_VARIABLES.items() if each in env
    ]
    for source, name, value in flags:
        place = f"{source} --{name.removeprefix('--')}"
        if draft.launcher_stays or re.fullmatch(r"--[A-Z]\w+\.\w+", name):
            draft.say(place, TAKEN, "")
        elif name in (*HANDSHAKE, *NEEDLESS_FLAGS):
            draft.say(place, NEEDLESS, "the handshake" if name in HANDSHAKE else FOR_THEIRS)
        elif name in FLAGS:
            draft.take(FLAGS[name], value, place)
        else:
            draft.say(place, DECIDE, _UNKNOWN, "it is left out")


def _split(draft: Draft, name: str, text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:
        draft.say(f"env {name}", DECIDE, "a quote in it is not closed: correct it", "split at its spaces")
        return text.split()


def _drop_refused(draft: Draft) -> None:
    """Take the options and variables out that roost would refuse at each start: each is a decision now."""
    for name in [name for name in draft.env if name.startswith("KERNEL_")]:
        if not _is_accepted(draft, {}, {name: draft.env[name]}):
            del draft.env[name]
            _replace(draft, f"env {name}", "roost reads it as a wish and refuses this value: rename it")
    for target in [target for target in draft.values if not target.startswith(("c.", "~"))]:
        group, dot, name = target.partition(".")
        value = draft.values[target]
        if not _is_accepted(draft, {group: {name: value}} if dot else {target: value}, {}):
            del draft.values[target]
            _replace(
                draft, draft.places.get(target, target), f"roost refuses the value: set {target} by hand"
            )


def _replace(draft: Draft, place: str, question: str) -> None:
    draft.lines = [line for line in draft.lines if line.option != place]
    draft.say(place, DECIDE, question, "left out")


def _is_accepted(draft: Draft, config: Mapping[str, Any], env: Mapping[str, str]) -> bool:
    try:
        check_config({"backend": draft.backend, **config}, env)
    except ConfigError:
        return False
    return True


def _build_document(draft: Draft) -> dict[str, Any]:
    old = draft.old.document
    document: dict[str, Any] = {"argv": draft.argv}
    document |= {key: value for key, value in old.items() if key not in _RESERVED_KEYS}
    document.setdefault("display_name", draft.old.name)
    document.setdefault("language", draft.language)
    if draft.env or "env" in old:
        document["env"] = draft.env
    config: dict[str, Any] = {"backend": draft.backend}
    for target, value in draft.values.items():
        group, dot, name = target.partition(".")
        if not target.startswith(("c.", "~")):
            (config.setdefault(group, {}) if dot else config)[name or target] = value
    own = {"provisioner_name": PROVISIONER, "config": config}
    document["metadata"] = {**draft.metadata, "kernel_provisioner": own}
    return document


def _sweep(draft: Draft) -> None:
    """Add a line for each place that has none yet: what stays as it was, and what roost does not know."""
    named = {line.option for line in draft.lines}
    for place in list_places(draft.old.document):
        key = place.removeprefix("metadata.")
        if place in named or any(option.startswith(f"{place} ") for option in named):
            continue
        if place.startswith("env "):
            name = place.removeprefix("env ")
            draft.say(place, NEEDLESS, NEEDLESS_VARIABLES.get(name, "it is empty"))
        elif place.rpartition(".")[2] in ("class_name", "provisioner_name") and place.startswith(
            draft.old.place
        ):
            draft.say(place, TAKEN, f"backend {draft.backend}")
        elif not key.startswith(("process_proxy", "kernel_provisioner")) and key not in _RESERVED_KEYS:
            draft.say(place, TAKEN, "")
        elif not place.startswith(draft.old.place or "?"):
            draft.say(place, NEEDLESS, f"{draft.old.place} counts")
        else:
            draft.say(place, DECIDE, _UNKNOWN, "it is left out")
