"""The options of `docker run` in an old command, and their equivalents for a kernel of roost's."""

from __future__ import annotations

from .amounts import format_memory, read_cpus, read_memory
from .docker_run import DockerRun
from .draft import Draft
from .secrets import is_secret, show
from .stanza_options import HANDLERS

_NEEDLESS = (
    "--rm", "-i", "-t", "-d", "--interactive", "--tty", "--detach", "--init", "--name", "--pull", "--hostname",
    "--restart", "--quiet",
)  # fmt: skip
"""Options that say nothing about the kernel: roost makes and removes the container."""
_REQUEST_OPTIONS = {"--volume": "volumes", "--workdir": "cwd", "--shm-size": "shm_size"}
"""Options that a kernelspec of the backend `docker` may have. The operator must allow some of them."""


def apply_docker_run(draft: Draft, run: DockerRun) -> None:
    """Take over the image and the options of `docker run`, with a line for each."""
    HANDLERS["image_name"](draft, run.image, f"argv {run.engine} run IMAGE")
    if run.before:
        draft.say(
            "argv",
            "none",
            f"{len(run.before)} words before {run.engine} are left out: roost makes the container",
        )
    for name, value in run.options:
        _apply(draft, f"argv {name}", name, value)


def _apply(draft: Draft, place: str, name: str, value: str) -> None:
    try:
        if name in _NEEDLESS:
            draft.say(place, "dropped", "roost makes and removes the container itself")
        elif name == "--gpus":
            _set_gpus(draft, place, value)
        elif name == "--cpus":
            draft.config["cpus"] = read_cpus(value)
            draft.say(place, "translated", f"cpus = {draft.config['cpus']}")
        elif name == "--memory":
            draft.config["memory"] = format_memory(read_memory(value, is_jvm=value[-1:].isalpha()))
            draft.say(place, "translated", f"memory = {draft.config['memory']}")
        elif name == "--env" and "=" in value:
            _set_variable(draft, place, value)
        elif name in _REQUEST_OPTIONS:
            text = f"{show(name, value)}: set options.{_REQUEST_OPTIONS[name]}, if the operator allows it"
            draft.say(place, "decision", text, "none")
        else:
            text = f"{show(name, value)}: an option of the backend docker for all its kernels"
            draft.say(place, "decision", text, "the backend's own")
    except ValueError as problem:
        draft.say(place, "decision", f"{problem}: set it in the kernelspec", "none")


def _set_gpus(draft: Draft, place: str, value: str) -> None:
    if value.isdecimal() and int(value) <= 1024:
        draft.config["gpus"] = int(value)
        draft.say(place, "translated", f"gpus = {int(value)}")
    else:
        draft.config["gpus"] = 1
        text = f"roost promises a number of GPUs to a kernel, not {show('gpus', value)}: how many?"
        draft.say(place, "decision", text, "1")


def _set_variable(draft: Draft, place: str, value: str) -> None:
    name, _, text = value.partition("=")
    shown = name if name.isidentifier() else "a variable"
    if not name or "\0" in value or name.startswith("KERNEL_"):
        draft.say(f"{place} {shown}", "dropped", "the kernel gets it from its client")
        return
    draft.env[name] = text
    warning = (
        ", but a secret in a kernelspec is readable by everybody: move it" if is_secret(name, text) else ""
    )
    draft.say(f"{place} {shown}", "translated", f"the variable {shown} of the kernel{warning}")
