"""The command of the new kernelspec, in the place of a launcher: the kernel's own, or the bridge to the launcher."""

from __future__ import annotations

import dataclasses
import re
from pathlib import PurePosixPath

from .command import LAUNCHERS, MAKES_CONTAINERS, SHELLS, Command
from .draft import Draft
from .kernel_file import OldKernelspec
from .secrets import show
from .spark_options import is_plain_path
from .spark_start import PYTHON_START, R_START, SCALA_SCRIPT
from .words import join_words

BRIDGE = ("python", "-m", "roost.launchers.bridge", "{connection_file}")
"""The command that starts a launcher as a kernel. The launcher's own command follows."""
_IPYKERNEL = ("-m", "ipykernel_launcher", "-f", "{connection_file}")
_OF_TOREE = ("__TOREE_SPARK_OPTS__", "__TOREE_OPTS__", "DEFAULT_INTERPRETER")
_OWN_CLASS = "ipykernel.ipkernel.IPythonKernel"
_CHANGES_USER = ("sudo", "su", "runuser", "doas", "ssh", "kubectl")
_INTERPRETER = re.compile(r"(exec\s+)?(python|pypy)[0-9.]*|R|Rscript|sh|bash|-c|-lc|(exec\s+)?")
"""A word before a launcher that says nothing but how to run it."""
_PYTHON_AT_END = re.compile(r"(python|pypy)[0-9.]*[\"']?(\s+-\S+)*\s*$")
_TOREE_JAR = "/usr/local/share/jupyter/kernels/toree/lib/toree-assembly.jar"
_SPARK_HOME = "/opt/spark"
_OPTION_SOURCES = ("LAUNCH_OPTS", "__TOREE_OPTS__", "TOREE_OPTS", "DEFAULT_INTERPRETER")
"""The variables that a launcher reads."""


def find_language(command: Command, old: OldKernelspec) -> str:
    """Return `python`, `r` or `scala`, by the launcher first, and by what the kernelspec declares last; else ""."""
    declared, config = (
        str(old.document.get("language", "")).strip().lower(),
        old.stanza.config if old.stanza else {},
    )
    image = str(config.get("image_name", ""))
    if language := LAUNCHERS.get(command.launcher, ""):
        return language
    if command.find("kernel-class-name"):
        return "python"
    if any(name in old.env for name in _OF_TOREE):
        return "scala"
    for language in ("python", "scala"):
        if declared.startswith(language):
            return language
    if declared == "r":
        return "r"
    if match := re.search(r"kernel-(spark-|tf-|tf-gpu-)?(py|r|scala)\b", image):
        return {"py": "python"}.get(match.group(2), match.group(2))
    return "python" if "PYSPARK_PYTHON" in old.env else ""


def build_command(draft: Draft, spark_words: list[str]) -> None:
    """Set the new command, with its lines. `spark_words` are the arguments of spark-submit."""
    command = draft.command
    if command.form == "plain":
        draft.argv = list(command.argv)
        draft.say("argv", "kept", "the command has {connection_file}: roost runs it as it is")
        return
    _say_wrappers(draft)
    if draft.keep_launcher and not draft.launcher_stays:
        text = "this launcher cannot stay: it makes the container itself, or gets no {public_key}"
        draft.say("argv", "decision", text, "the kernel's own command")
    if draft.launcher_stays:
        _keep_launcher(draft)
    elif draft.language == "r":
        _build_r(draft)
    elif draft.language == "scala":
        _build_scala(draft, spark_words)
    elif draft.language == "python" or command.form == "launcher":
        _build_python(draft)
    elif draft.launcher_can_stay:
        _keep_launcher(draft)
    else:
        draft.argv = ["python", *_IPYKERNEL]
        text = "the command has neither {connection_file} nor their launcher: write the kernel's own command"
        draft.say("argv", "decision", text, " ".join(draft.argv))


def set_submit_arguments(draft: Draft, words: list[str]) -> None:
    """Put the arguments of spark-submit where the kernel, or the launcher that stays, reads them."""
    if draft.argv[: len(BRIDGE)] == list(BRIDGE):
        name = "__TOREE_SPARK_OPTS__" if draft.language == "scala" else "SPARK_OPTS"
        draft.env[name] = join_words(words, for_shell=True) + " ${KERNEL_EXTRA_SPARK_OPTS}"
    elif draft.language == "python":
        draft.env["PYSPARK_SUBMIT_ARGS"] = join_words([*words, "pyspark-shell"])
    elif draft.language == "r":  # R gives it to a shell
        draft.env["SPARKR_SUBMIT_ARGS"] = join_words([*words, "sparkr-shell"], for_shell=True)


def _say_wrappers(draft: Draft) -> None:
    changes = [PurePosixPath(word).name for word in draft.command.before]
    for name in _CHANGES_USER:
        if name in changes:
            text = f"{name} starts the kernel elsewhere or as another user, and roost could not end it: leave it out"
            draft.say(f"argv {name}", "decision", text, "it is left out")


def _keep_launcher(draft: Draft) -> None:
    draft.argv = [*BRIDGE, *draft.command.argv]
    for name in _OPTION_SOURCES:
        if draft.old.env.get(name, "").strip():
            draft.env[name] = draft.old.env[name]
    draft.metadata["supported_encryption"] = ["curve"]
    text = "the bridge starts the launcher: its inner ports stay readable on the node"
    if draft.keep_launcher:
        draft.say("argv", "translated", text)
    else:
        draft.say("argv", "decision", f"the language of this launcher is not known; {text}", "the bridge")


def _build_python(draft: Draft) -> None:
    command = draft.command
    words = [*_IPYKERNEL]
    if draft.kernel_class not in ("", _OWN_CLASS):
        words.append(f"--IPKernelApp.kernel_class={draft.kernel_class}")
    own = _list_application_options(command)
    words += own
    if any("exec_lines" in word for word in own) and draft.is_spark:
        text = "the command has exec_lines of its own, so `spark` and `sc` are not made: add lines that make them"
        draft.say("argv exec_lines", "decision", text, "its own")
    elif draft.is_spark and draft.start_mode != "none":
        words.append(f"--IPKernelApp.exec_lines={[PYTHON_START]!r}")
    if command.launcher in MAKES_CONTAINERS or command.form == "foreign" or "archive" in draft.options:
        draft.argv = ["python", *words]
        if command.form != "foreign":
            _say_left_out(draft)
    else:
        draft.argv = _rebuild_python(draft, words)
    if command.form == "foreign":
        name = show("launcher", PurePosixPath(command.before[-1]).name if command.before else "it")
        text = (
            f"{name} is none of their launchers: the kernel's own command takes its place, or --keep-launcher"
        )
        draft.say("argv", "decision", text, f"{draft.argv[0]} -m ipykernel_launcher")
    else:
        draft.say("argv", "translated", f"{command.launcher} becomes python -m ipykernel_launcher")
    if draft.backend == "ssh" and "supported_encryption" not in draft.metadata:
        draft.metadata["supported_encryption"] = ["curve"]
        text = "the backend ssh encrypts each kernel: its Python on the hosts needs ipykernel 7.3 or newer"
        draft.say("metadata.supported_encryption", "translated", text)


def _list_application_options(command: Command) -> list[str]:
    """Return the options of ipykernel that stand behind a launcher."""
    return [
        f"{flag.written}={flag.value}" if flag.value else flag.written
        for flag in command.flags
        if re.fullmatch(r"--[A-Z]\w+\.\w+", flag.written)
    ]


def _rebuild_python(draft: Draft, words: list[str]) -> list[str]:
    """Return the command with these words for the launcher, behind its Python or PYSPARK_PYTHON."""
    command = draft.command
    kept = dataclasses.replace(command, before=_list_wrappers(command))
    if kept.find_interpreter() is not None or (kept.is_in_text and _PYTHON_AT_END.search(kept.text_before)):
        return kept.rebuild(words)
    python = draft.env.get("PYSPARK_PYTHON", "python")
    if not python or "$" in python:
        python = "python"
    if draft.backend == "yarn" and python.startswith("/") and is_plain_path(python):
        draft.options.setdefault("python", python)
    return kept.rebuild([python, *words])


def _list_wrappers(command: Command) -> tuple[str, ...]:
    """Return the words before the launcher that a kernel's own command needs too.

    A program that changes the user or the machine is left out with its options, and so is the shell of a script.
    """
    words, names = command.before, [PurePosixPath(word).name for word in command.before]
    if command.is_in_text:
        return words
    python = command.find_interpreter()
    changes = max((at for at, name in enumerate(names) if name in _CHANGES_USER), default=None)
    if changes is not None:
        words = words[python:] if python is not None and python > changes else ()
    shell = max((at for at, word in enumerate(words) if PurePosixPath(word).name in SHELLS), default=None)
    if shell is not None and all(word.startswith("-") for word in words[shell + 1 :]):
        words = words[:shell]
    return tuple(words)


def _say_left_out(draft: Draft) -> None:
    """Report the words before a launcher that the new command has no use for, such as `source activate`."""
    command = draft.command
    rest = [word for word in command.before if not _INTERPRETER.fullmatch(PurePosixPath(word).name)]
    if rest or (command.is_in_text and _INTERPRETER.fullmatch(command.text_before.strip()) is None):
        text = "the words before the launcher are left out: does the kernel need a part of them?"
        draft.say("argv", "decision", text, "left out")


def _build_r(draft: Draft) -> None:
    code = R_START if draft.is_spark and draft.start_mode != "none" else "IRkernel::main()"
    draft.argv = ["R", "--slave", "-e", code, "--args", "{connection_file}"]
    _say_left_out(draft)
    text = (
        f"{draft.command.launcher or 'the launcher'} becomes R with IRkernel::main(), which encrypts nothing"
    )
    draft.say("argv", "translated", text + ("; SparkR must be in SPARK_HOME/R/lib" if draft.is_spark else ""))


def _build_scala(draft: Draft, spark_words: list[str]) -> None:
    mode = ["--spark-context-initialization-mode", draft.start_mode] if draft.start_mode else []
    draft.argv = ["/bin/sh", "-c", SCALA_SCRIPT, "toree", "{connection_file}", " ".join(mode), *spark_words]
    _say_left_out(draft)
    jars = sorted((draft.old.folder / "lib").glob("toree-assembly-*.jar"))
    if jars and draft.backend == "local":
        draft.env.setdefault("TOREE_JAR", str(jars[0].absolute()))
    draft.env.setdefault("TOREE_JAR", _TOREE_JAR)
    draft.env.setdefault("SPARK_HOME", _SPARK_HOME)
    text = (
        "ToreeLauncher becomes Toree itself, by spark-submit: it encrypts nothing, and nothing interrupts it"
    )
    draft.say(
        "argv", "translated", f"{text}; is TOREE_JAR = {show('jar', draft.env['TOREE_JAR'])} right there?"
    )
