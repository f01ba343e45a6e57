"""The variables in an old kernelspec's `env`: Spark's arguments, the servers' settings, and all others."""

from __future__ import annotations

import re
from collections.abc import Container

from roost.provisioners.spark_mode import check_deploy_mode
from roost.scheduler.errors import ConfigError

from .command import Flag, read_flags
from .draft import Draft
from .kernel_variables import translate_variables
from .options_table import describe
from .secrets import is_secret
from .server_settings import find_key, is_server_variable
from .stanza_options import HANDLERS
from .words import join_words, split_words

SPARK_SOURCES = (
    "SPARK_OPTS",
    "__TOREE_SPARK_OPTS__",
    "KERNEL_EXTRA_SPARK_OPTS",
    "PYSPARK_SUBMIT_ARGS",
    "SPARKR_SUBMIT_ARGS",
)
"""The variables with arguments of spark-submit. run.sh takes the second only if the first is empty."""
_OPTION_SOURCES = ("LAUNCH_OPTS", "__TOREE_OPTS__", "TOREE_OPTS")
"""The variables with options of the launcher."""
_NEVER_EMPTY = ("HADOOP_CONF_DIR", "YARN_CONF_DIR", "SPARK_CONF_DIR", "SPARK_HOME", "PYTHONPATH", "JAVA_HOME")
"""Variables that mean nothing if they are empty, or lead to a wrong folder."""
_GONE = {
    "SPARK_YARN_USER_ENV": "Spark no longer reads it (since 2.0): its parts are spark.yarn.appMasterEnv.*, "
    "of no use in client mode",
    "DEFAULT_INTERPRETER": "Scala is Toree's default",
    "EG_ALTERNATE_SIGINT": "interrupt_mode has signal and message only, and no second signal interrupts Toree",
}
_OLD_PATH = re.compile(r"/usr/hdp/|python3\.[0-9]\b|py4j-0\.[0-9.]+-src")


def take_server_variables(draft: Draft, env: dict[str, str], own: Container[str]) -> None:
    """Take a server's settings out of `env`: those of this kernelspec as its options, the others with a line.

    The options that the stanza has itself (`own`) win.
    """
    for name in [name for name in env if is_server_variable(name)]:
        value, key = env.pop(name), find_key(name)
        place = f"env {name}"
        if name in _GONE:
            draft.say(place, "none", _GONE[name])
        elif key in own:
            draft.say(place, "dropped", "the same option in the stanza wins")
        elif key in HANDLERS:
            HANDLERS[key](draft, value, place)
        else:
            text = describe("env-server", name) or "roost has no such setting"
            draft.say(place, "dropped", f"a setting of their server, of no effect in a kernelspec: {text}")


def take_kernel_variables(draft: Draft, env: dict[str, str]) -> None:
    """Take the `KERNEL_*` variables that have a meaning out of `env`, and KERNEL_USERNAME, which roost refuses."""
    if "KERNEL_USERNAME" in env:
        del env["KERNEL_USERNAME"]
        draft.say("env KERNEL_USERNAME", "dropped", "only the application names the owner of a kernel")
    translate_variables(draft, env)


def take_spark_words(draft: Draft, env: dict[str, str]) -> list[tuple[str, list[str]]]:
    """Take the arguments of spark-submit out of `env`; return each variable's place and words."""
    sources = [("argv", list(draft.command.spark))] if draft.command.spark else []
    for name in SPARK_SOURCES:
        text = env.pop(name, None)
        if text is None:
            continue
        if name == "__TOREE_SPARK_OPTS__" and draft.old.env.get("SPARK_OPTS", "").strip():
            draft.say(f"env {name}", "dropped", "run.sh takes SPARK_OPTS, which is there too")
            continue
        words = _split(draft, name, text)
        if name == "KERNEL_EXTRA_SPARK_OPTS":
            sources.insert(0, (f"env {name}", words))  # a later option wins, so the client's are the first
        else:
            sources.append((f"env {name}", words))
    return sources


def take_options(draft: Draft, env: dict[str, str]) -> list[tuple[str, Flag]]:
    """Take the options of the launcher out of `env` and the command; return each with its place."""
    found = [("argv", flag) for flag in draft.command.flags]
    for name in _OPTION_SOURCES:
        if (text := env.pop(name, None)) is None:
            continue
        flags, extra = read_flags(_split(draft, name, text))
        found += [(f"env {name}", flag) for flag in flags]
        if extra:
            draft.say(f"env {name}", "none", "its words that belong to no option are left out")
        elif not flags:
            draft.say(f"env {name}", "dropped", "it is empty")
    return found


def mend_plain_spark(draft: Draft, env: dict[str, str]) -> None:
    """Put client mode into the variables of a plain command, because roost refuses cluster mode."""
    for name in ("SPARK_OPTS", "PYSPARK_SUBMIT_ARGS", "KERNEL_EXTRA_SPARK_OPTS"):
        try:
            check_deploy_mode((), {name: env.get(name, "")})
        except ConfigError:
            words = _split(draft, name, env[name])
            changed = [
                "client" if word == "cluster" else word.replace("=cluster", "=client") for word in words
            ]
            env[name] = join_words("yarn" if word == "yarn-cluster" else word for word in changed)
            draft.say(f"env {name}", "translated", "client mode: roost leases no driver of cluster mode")


def keep_rest(draft: Draft, env: dict[str, str]) -> None:
    """Keep the variables that are left, with a line for each."""
    for name, value in env.items():
        place = f"env {name}"
        if name in _GONE:
            draft.say(place, "dropped", _GONE[name])
        elif name in _NEVER_EMPTY and not value.strip():
            draft.say(place, "dropped", "it is empty")
        else:
            draft.env.setdefault(name, value)
            draft.say(place, "kept", _describe_kept(draft, name, value))


def _describe_kept(draft: Draft, name: str, value: str) -> str:
    if is_secret(name, value):
        return "stays, but a secret in a kernelspec is readable by everybody who can read the file: move it"
    if draft.env[name] != value:
        return "replaced by Spark's option of the same name"
    if name.startswith("KERNEL_"):
        return "stays; in roost a kernelspec's variable wins over the client's"
    if _OLD_PATH.search(value) or (draft.backend != "local" and "/" in value):
        return "stays: are the paths in it right where the kernel runs?"
    return "stays"


def _split(draft: Draft, name: str, text: str) -> list[str]:
    try:
        return split_words(text)
    except ValueError:
        draft.say(f"env {name}", "decision", "a quote in it is not closed: correct it", "split at its spaces")
        return text.split()
