"""Reads a kernelspec of the three systems: its document, the stanza that chooses the class, and its command."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from roost.provisioners.kernel_json import PROVISIONER, find_malformed
from roost.scheduler.errors import ConfigError
from roost.scheduler.input_files import UnfitText, parse_json, read_input_text, show_path

from .tables import BACKENDS, FLAGS, GUESSES, HANDSHAKE, LAUNCHERS, NEEDLESS_FLAGS

_PROXY, _PROVISIONER = "process_proxy", "kernel_provisioner"
_THEIR_MODULES = re.compile(r"(jupyter_)?(enterprise_gateway|kernel_gateway)\w*\.")
_SIGNS = re.compile(
    r"\{(response_address|public_key|port_range|transport_encryption)\}"
    r"|--(RemoteProcessProxy\.[\w-]+|response-address|public-key)\b"
    r"|launch_(ipykernel|IRkernel|kubernetes|docker|custom_resource)\.|ToreeLauncher|bootstrap-kernel\.sh"
)
"""Signs of their launchers and of their handshake in a command."""
_LAUNCHER_IN_TEXT = re.compile(
    r"[\w.-]*(launch_\w+\.(py|R)|bootstrap-kernel\.sh|run\.sh)|launcher\.ToreeLauncher"
)
_ENGINES = ("docker", "podman", "nvidia-docker", "nerdctl")
_SWITCHES = ("--rm", "--init", "--privileged", "--read-only", "--detach", "--interactive", "--tty", "--quiet")
"""The long options of `docker run` without a value."""
_KNOWN_FLAGS = (*HANDSHAKE, *NEEDLESS_FLAGS, *FLAGS)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command, taken apart.

    `form` is `plain` for a command that roost can run as it is, `launcher` for one of theirs, and `foreign` for one
    that is neither. `words` are the whole command, or the one in a container. `before` are those in front of the
    launcher, `spark` those of `spark-submit`, and `extra` those of no option. `flags` are the launcher's options, by
    name. `image` and `container` are of a `docker run` around it: its image, and its other words.
    """

    form: str
    words: tuple[str, ...] = ()
    launcher: str = ""
    before: tuple[str, ...] = ()
    flags: tuple[tuple[str, str], ...] = ()
    extra: tuple[str, ...] = ()
    spark: tuple[str, ...] = ()
    image: str = ""
    container: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OldKernelspec:
    """A kernelspec as it was read. `place` and `class_name` are those of the stanza that counts; empty: none.

    `kind` is a value of `BACKENDS`. If not `is_known`, the class is not theirs, and `kind` is a guess.
    """

    name: str
    folder: Path
    document: Mapping[str, Any]
    place: str
    class_name: str
    kind: str
    is_known: bool
    config: Mapping[str, Any]
    command: Command

    @property
    def env(self) -> Mapping[str, str]:
        found: Mapping[str, str] = self.document.get("env", {})
        return found


def is_theirs(document: Any) -> bool:
    """True if a kernel.json belongs to Enterprise Gateway, Gateway Provisioners or Remote Provisioners.

    It has their stanza, or its command has their launcher's options. `document` may have any type.
    """
    if not isinstance(document, dict):
        return False
    metadata = document.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    own = metadata.get(_PROVISIONER)
    name = own.get("provisioner_name") if isinstance(own, dict) else ""
    if name == PROVISIONER:
        return False
    if _PROXY in document or _PROXY in metadata or BACKENDS.get(str(name), "local") != "local":
        return True
    argv = document.get("argv")
    return isinstance(argv, list) and any(isinstance(word, str) and _SIGNS.search(word) for word in argv)


def read_kernelspec(folder: Path, name: str = "") -> OldKernelspec:
    """Return the kernelspec in `folder`. Raises `ConfigError` if its kernel.json cannot be used, or is roost's."""
    path = folder / "kernel.json"
    text = read_input_text(path)
    try:
        document = parse_json(text)
    except UnfitText as problem:
        raise ConfigError(f"{show_path(path)} {problem}.") from None
    wrong = find_malformed(document) or _find_wrong_proxy(document)
    if not wrong and (key := _find_twice(text)):
        wrong = f"the key {key!r:.40} is there twice, so that one of both would be lost"
    if wrong:
        raise ConfigError(f"In {show_path(path)} {wrong}.")
    if document.get("metadata", {}).get(_PROVISIONER, {}).get("provisioner_name") == PROVISIONER:
        raise ConfigError(f"The kernelspec {folder.name} is roost's already: there is nothing to migrate.")
    place, class_name, config = _choose_stanza(document)
    own = class_name.rpartition(".")[2]
    is_known = own in BACKENDS and ("." not in class_name or bool(_THEIR_MODULES.match(class_name)))
    kind = BACKENDS.get(own) or _guess(f"{class_name} {' '.join(config)}")
    return OldKernelspec(
        name=name or folder.name,
        folder=folder,
        document=document,
        place=place,
        class_name=class_name,
        kind=kind if place else "local",
        is_known=is_known or not place,
        config=config,
        command=read_command(document["argv"]),
    )


def list_places(document: Mapping[str, Any]) -> Iterator[str]:
    """Return every place of a kernel.json that must get a line of the report.

    These are the keys of the document, of its metadata, and of a stanza with its options, and each variable. The
    options in the command have their own lines.
    """
    for key, value in document.items():
        if key == "env":
            yield from (f"env {name}" for name in value)
        elif key == "metadata":
            for inner, part in value.items():
                yield from _list_stanza(f"metadata.{inner}", inner, part)
        else:
            yield from _list_stanza(key, key, value)


def _list_stanza(place: str, key: str, value: Any) -> Iterator[str]:
    if key not in (_PROXY, _PROVISIONER) or not isinstance(value, dict):
        yield place
        return
    for inner, part in value.items():
        if inner == "config" and isinstance(part, dict):
            yield from (f"{place}.config.{option}" for option in part)
        else:
            yield f"{place}.{inner}"


def _choose_stanza(document: Mapping[str, Any]) -> tuple[str, str, Mapping[str, Any]]:
    """Return the place, the class and the options of the stanza that counts; empty ones if there is none.

    jupyter_client's own provisioner counts last. A process proxy without a class is a local one.
    """
    metadata = document.get("metadata", {})
    found = []
    for place, part, key in (
        (f"metadata.{_PROVISIONER}", metadata.get(_PROVISIONER), "provisioner_name"),
        (f"metadata.{_PROXY}", metadata.get(_PROXY), "class_name"),
        (_PROXY, document.get(_PROXY), "class_name"),
    ):
        if part is not None:
            default = "LocalProcessProxy" if key == "class_name" else "local-provisioner"
            found.append((place, str(part.get(key) or default), part.get("config") or {}))
    found.sort(key=lambda each: each[1] == "local-provisioner")
    return found[0] if found else ("", "", {})


def _guess(text: str) -> str:
    return next((kind for words, kind in GUESSES if re.search(words, text, re.IGNORECASE)), "local")


def _find_wrong_proxy(document: Mapping[str, Any]) -> str:
    for place, part in (
        (_PROXY, document.get(_PROXY)),
        (f"metadata.{_PROXY}", document.get("metadata", {}).get(_PROXY)),
    ):
        if part is None:
            continue
        if not isinstance(part, dict) or not isinstance(part.get("class_name", ""), str):
            return f"{place} is not an object with the text class_name"
        if not isinstance(part.get("config", {}), dict):
            return f"{place}.config is not an object"
    return ""


def _find_twice(text: str) -> str:
    """Return a key that one object of a JSON text has twice; empty if there is none."""
    found: list[str] = []

    def check(pairs: list[tuple[str, Any]]) -> None:
        keys = [key for key, _ in pairs]
        found.extend(key for key in keys if keys.count(key) > 1)

    json.loads(text, object_pairs_hook=check)
    return found[0] if found else ""


def read_command(argv: Sequence[str]) -> Command:
    """Take a command apart. The launcher may stand anywhere, also in `docker run` or in the text of a shell."""
    words, image, container = _read_docker(list(argv))
    if not any(_SIGNS.search(word) for word in argv):
        form = "plain" if any("{connection_file}" in word for word in words) else "foreign"
        found = Command(form=form)
    else:
        found = _read_words(words)
    return dataclasses.replace(found, words=tuple(words), image=image, container=tuple(container))


def read_flags(words: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Return the launcher's options in `words` by their names, and the words that belong to none.

    Options that a launcher does not know keep their dashes.
    """
    flags, extra, rest = [], [], list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or word == "--":
            extra.append(word)
            continue
        written, equals, value = word.partition("=")
        if not equals and rest and not rest[0].startswith("--"):
            value = rest.pop(0)
        name = written.removeprefix("--").removeprefix("RemoteProcessProxy.")
        known = next((each for each in (name, name.replace("_", "-")) if each in _KNOWN_FLAGS), written)
        flags.append((known, value))
    return flags, extra


def _read_words(words: list[str]) -> Command:
    at = next((number for number, word in enumerate(words) if _find_launcher(word)), len(words))
    launcher = _find_launcher(words[at]) if at < len(words) else ""
    before, after = words[:at], words[at + 1 :]
    submit = next((number for number, word in enumerate(before) if PurePath(word).name == "spark-submit"), at)
    before, spark = before[:submit], before[submit + 1 :]
    if launcher == "launcher.ToreeLauncher":
        spark = spark[:-1] if spark[-1:] == ["--class"] else spark
        after = [word for word in after if not word.endswith(".jar")]
    start = next((number for number, word in enumerate(before) if read_flags([word])[0]), len(before))
    early, _ = read_flags(before[start:])
    if not launcher or any(name in _KNOWN_FLAGS for name, _ in early):
        before = before[:start]
    else:
        early = []
    flags, extra = read_flags(after)
    return Command(
        form="launcher" if launcher else "foreign",
        launcher=launcher,
        before=tuple(before),
        flags=(*early, *flags),
        extra=tuple(extra),
        spark=tuple(spark),
    )


def _find_launcher(word: str) -> str:
    """Return the launcher that a word names, also in the text of a shell; empty if it names none."""
    name = PurePath(word).name
    if name.startswith("toree-launcher") and name.endswith(".jar"):
        return "launcher.ToreeLauncher"
    found = _LAUNCHER_IN_TEXT.search(word) if " " in word else None
    name = PurePath(found[0]).name if found else name
    return name if name in LAUNCHERS else ""


def _read_docker(argv: list[str]) -> tuple[list[str], str, list[str]]:
    """Return the command in a `docker run`, its image, and its other words. Another command is returned as it is."""
    for at, word in enumerate(argv):
        run = at + 2 if argv[at + 1 : at + 2] == ["container"] else at + 1
        if PurePath(word).name not in _ENGINES or argv[run : run + 1] != ["run"]:
            continue
        end = run + 1
        while end < len(argv) and argv[end].startswith("-"):
            is_short = not argv[end].startswith("--")
            is_alone = (
                "=" in argv[end]
                or argv[end] in _SWITCHES
                or (is_short and set(argv[end][1:]) <= set("itdPq"))
            )
            end += 1 if is_alone or (is_short and len(argv[end]) > 2) else 2
        return argv[end + 1 :], "".join(argv[end : end + 1]), [*argv[:at], *argv[run + 1 : end]]
    return argv, "", []
