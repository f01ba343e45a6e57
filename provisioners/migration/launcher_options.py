"""The options of the old launchers, in the command and in variables such as LAUNCH_OPTS."""

from __future__ import annotations

import re
from collections.abc import Iterable

from .command import HANDSHAKE, Flag
from .draft import Draft
from .options_table import describe
from .secrets import show

_MODES = ("lazy", "eager", "none")
"""When a launcher makes the context of Spark."""


def apply_launcher_options(draft: Draft, flags: Iterable[tuple[str, Flag]]) -> None:
    """Take over the options of a launcher, with a line for each. `flags` has the place of each."""
    for place, flag in flags:
        option = f"{place} {flag.written}"
        if draft.launcher_stays:
            draft.say(option, "kept", "the launcher stays and reads it; the bridge fills in the handshake")
            continue
        if flag.name in HANDSHAKE:
            draft.say(option, "dropped", "roost starts a kernel with a connection file, without a handshake")
        elif flag.name == "spark-context-initialization-mode":
            set_mode(draft, flag.value, option)
        elif flag.name == "kernel-class-name":
            set_class(draft, flag.value, option)
        elif flag.name == "customAppName":
            _set_app_name(draft, flag.value, option)
        elif re.fullmatch(r"--[A-Z]\w+\.\w+", flag.written) and not flag.written.startswith("--Remote"):
            draft.say(option, "kept", "an option of the kernel's own application stays")
        elif text := describe("launcher", f"--{flag.name}"):
            draft.say(option, "dropped", text)
        else:
            draft.say(option, "none", "roost's command has no such option: it is left out")


def set_mode(draft: Draft, mode: str, option: str) -> None:
    """Take over when the launcher makes the context of Spark. `option` is the place of the mode."""
    draft.start_mode = mode
    if draft.language == "scala" and mode in _MODES:
        draft.say(option, "translated", "Toree's own option of the same name")
    elif mode == "eager" and draft.is_spark:
        text = "`spark` and `sc` are made at their first use: begin with `spark.version` to make them at once"
        draft.say(option, "translated", text)
    elif mode in ("lazy", "eager") and draft.is_spark:
        draft.say(option, "translated", "`spark` and `sc` are made at their first use")
    elif mode in _MODES or not mode:
        draft.say(option, "dropped", "no context of Spark is made")
    else:
        draft.say(
            option, "decision", f"{show('mode', mode)} is none of {', '.join(_MODES)}", "at the first use"
        )


def set_class(draft: Draft, name: str, option: str) -> None:
    """Take over a subclass of ipykernel. `option` is its place."""
    if re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", name):
        draft.kernel_class = name
        draft.say(
            option, "translated", f"--IPKernelApp.kernel_class={name}; ipykernel's own class needs no option"
        )
    else:
        draft.say(
            option,
            "decision",
            "it is no name of a class: leave it out, or correct it",
            "ipykernel's own class",
        )


def _set_app_name(draft: Draft, name: str, option: str) -> None:
    if draft.language == "scala" or not name:
        draft.say(option, "dropped", "Spark has the option --name for it")
    else:
        draft.app_name = name
        draft.say(option, "translated", f"--name {show('name', name)}, an option of spark-submit")
