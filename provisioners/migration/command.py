"""The command of the new kernelspec, in the place of a launcher: the kernel's own, or the bridge to the launcher."""

from __future__ import annotations

import re
from pathlib import PurePath

from .draft import Draft
from .old_kernelspec import OldKernelspec
from .sheet import DECIDE, TAKEN
from .spark import PYTHON_START, R_START, SCALA_SCRIPT, is_plain_path
from .tables import COMMANDS, LAUNCHERS, MAKES_CONTAINERS
from .values import join_words, show

BRIDGE = ("python", "-m", "roost.launchers.bridge", "{connection_file}")
"""The command that starts a launcher as a kernel. The launcher's own command follows."""
_IPYKERNEL = ("-m", "ipykernel_launcher", "-f", "{connection_file}")
_OWN_CLASS = "ipykernel.ipkernel.IPythonKernel"
_CHANGES_USER = ("sudo", "su", "runuser", "doas", "ssh", "kubectl")
_PYTHON = re.compile(r"(python|pypy)[0-9.]*")
_INTERPRETER = re.compile(r"(python|pypy)[0-9.]*|R|Rscript|sh|bash|-.*")
"""A word before a launcher that says nothing but how to run it."""
_TOREE = {
    "TOREE_JAR": "/usr/local/share/jupyter/kernels/toree/lib/toree-assembly.jar",
    "SPARK_HOME": "/opt/spark",
}


def find_language(old: OldKernelspec) -> str:
    """Return the kernel's language, by the launcher first, and by what the kernelspec declares last; else ""."""
    declared = str(old.document.get("language", "")).strip().lower()
    if language := LAUNCHERS.get(old.command.launcher, ""):
        return language
    if any(name == "kernel-class-name" for name, _ in old.command.flags):
        return "python"
    if any(name in old.env for name in ("__TOREE_SPARK_OPTS__", "__TOREE_OPTS__", "DEFAULT_INTERPRETER")):
        return "scala"
    for language in ("python", "scala"):
        if declared.startswith(language):
            return language
    return declared if declared != "text" else ""


def build_command(draft: Draft, spark_words: list[str]) -> None:
    """Set the new command, with its lines. `spark_words` are the arguments of spark-submit."""
    command = draft.old.command
    if command.form == "plain":
        draft.argv = list(command.words)
        draft.say("argv", TAKEN, "")
        return
    for name in set(_CHANGES_USER) & {PurePath(word).name for word in command.before}:
        question = f"{name} starts the kernel elsewhere or as another user, and roost could not end it"
        draft.say(f"argv {name}", DECIDE, question, "it is left out")
    declared = str(draft.old.document.get("language", "")).lower()
    is_odd = draft.language == "python" and "~class" not in draft.values
    if is_odd and not declared.startswith("python") and declared not in ("", "text"):
        draft.say(
            "language",
            DECIDE,
            f"it is {show('language', declared)}, and the launcher starts Python",
            "Python",
        )
    if draft.keep_launcher and not draft.launcher_stays:
        question = "this launcher cannot stay: it makes the container itself, or gets no {public_key}"
        draft.say("argv", DECIDE, question, "the kernel's own command")
    if draft.launcher_stays:
        _keep_launcher(draft)
        draft.say(
            "argv", TAKEN, "the bridge starts the launcher, whose inner ports stay readable on the node"
        )
    elif draft.language == "r":
        _build_r(draft)
    elif draft.language == "scala":
        _build_scala(draft, spark_words)
    elif draft.language == "python":
        _build_python(draft)
    else:
        _build_other(draft)
    if draft.is_spark and draft.argv[: len(BRIDGE)] == list(BRIDGE):
        name = "__TOREE_SPARK_OPTS__" if draft.language == "scala" else "SPARK_OPTS"
        draft.env[name] = join_words(spark_words, for_shell=True) + " ${KERNEL_EXTRA_SPARK_OPTS}"
    elif draft.is_spark and draft.language == "python":
        draft.env["PYSPARK_SUBMIT_ARGS"] = join_words([*spark_words, "pyspark-shell"])
    elif draft.is_spark and draft.language == "r":  # R gives it to a shell
        draft.env["SPARKR_SUBMIT_ARGS"] = join_words([*spark_words, "sparkr-shell"], for_shell=True)


def _keep_launcher(draft: Draft) -> None:
    draft.argv = [*BRIDGE, *draft.old.command.words]
    for name in ("LAUNCH_OPTS", "__TOREE_OPTS__", "TOREE_OPTS", "DEFAULT_INTERPRETER"):
        if draft.old.env.get(name, "").strip():
            draft.env[name] = draft.old.env[name]
    draft.metadata["supported_encryption"] = ["curve"]


def _build_other(draft: Draft) -> None:
    """Set the command of a language without launchers of theirs. A person decides, whatever it is."""
    language = draft.language if re.fullmatch(r"[a-z]\w*", draft.language) else ""
    if draft.launcher_can_stay:
        _keep_launcher(draft)
    else:
        draft.argv = list(
            COMMANDS.get(language, ("python", "-m", f"{language or 'your'}_kernel", *_IPYKERNEL[2:]))
        )
    question = f"how does a kernel of {language or 'this language'} start? Write its own command"
    draft.say("argv", DECIDE, question, " ".join(draft.argv[: len(BRIDGE)]))


def _build_r(draft: Draft) -> None:
    code = R_START if draft.is_spark and draft.values.get("~mode") != "none" else COMMANDS["r"][3]
    draft.argv = [code if word == COMMANDS["r"][3] else word for word in COMMANDS["r"]]
    _say_left_out(draft)
    needs = "; SparkR must be in SPARK_HOME/R/lib" if draft.is_spark else ""
    draft.say("argv", TAKEN, f"IRkernel, which encrypts nothing{needs}")


def _build_scala(draft: Draft, spark_words: list[str]) -> None:
    mode = f"--spark-context-initialization-mode {draft.values['~mode']}" if "~mode" in draft.values else ""
    draft.argv = ["/bin/sh", "-c", SCALA_SCRIPT, "toree", "{connection_file}", mode, *spark_words]
    _say_left_out(draft)
    jars = sorted((draft.old.folder / "lib").glob("toree-assembly-*.jar"))
    if jars and draft.backend == "local":
        draft.env.setdefault("TOREE_JAR", str(jars[0].absolute()))
    for name, path in _TOREE.items():
        draft.env.setdefault(name, path)
    jar = show("jar", draft.env["TOREE_JAR"])
    draft.say(
        "argv", TAKEN, f"Toree, which encrypts nothing, and which nothing interrupts; TOREE_JAR = {jar}"
    )


def _build_python(draft: Draft) -> None:
    command, own_class = draft.old.command, draft.values.get("~class", "")
    words = [*_IPYKERNEL]
    if own_class not in ("", _OWN_CLASS):
        words.append(f"--IPKernelApp.kernel_class={own_class}")
    flags = [(name, value) for name, value in command.flags if re.fullmatch(r"--[A-Z]\w+\.\w+", name)]
    words += [f"{name}={value}" if value else name for name, value in flags]
    if any("exec_lines" in name for name, _ in flags) and draft.is_spark:
        question = "it has exec_lines of its own, so nothing makes `spark` and `sc`: add lines that do"
        draft.say("argv exec_lines", DECIDE, question, "its own")
    elif draft.is_spark and draft.values.get("~mode") != "none":
        words.append(f"--IPKernelApp.exec_lines={[PYTHON_START]!r}")
    is_own = command.form == "foreign"
    is_elsewhere = command.launcher in MAKES_CONTAINERS or is_own or "options.archive" in draft.values
    draft.argv = [*(["python"] if is_elsewhere else _find_python(draft)), *words]
    if is_own:
        name = show("launcher", PurePath(command.before[-1]).name if command.before else "it")
        question = (
            f"{name} is none of their launchers: write the kernel's own command, or use --keep-launcher"
        )
        draft.say("argv", DECIDE, question, f"{draft.argv[0]} -m ipykernel_launcher")
    else:
        _say_left_out(draft)
        makes = "; `spark` and `sc` are made at their first use" if draft.is_spark else ""
        draft.say("argv", TAKEN, f"ipykernel without the launcher{makes}")
    if draft.backend == "ssh" and "supported_encryption" not in draft.metadata:
        draft.metadata["supported_encryption"] = ["curve"]
        draft.say("metadata.supported_encryption", TAKEN, "the hosts' Python needs ipykernel 7.3 or newer")


def _find_python(draft: Draft) -> list[str]:
    """Return the words that start the kernel's Python: those before the launcher, or PYSPARK_PYTHON.

    Programs that change the user or the machine are left out with their options.
    """
    words = list(draft.old.command.before)
    names = [PurePath(word).name for word in words]
    pythons = [at for at, name in enumerate(names) if _PYTHON.fullmatch(name)]
    if pythons and all(word.startswith("-") for word in words[pythons[-1] + 1 :]):
        return words[pythons[-1] :] if set(_CHANGES_USER) & set(names) else words
    python = draft.env.get("PYSPARK_PYTHON", "python")
    python = "python" if not python or "$" in python else python
    if draft.backend == "yarn" and python.startswith("/") and is_plain_path(python):
        draft.values.setdefault("options.python", python)
    return [python]


def _say_left_out(draft: Draft) -> None:
    """Report the words before a launcher that the new command has no use for, such as `source activate`."""
    before = draft.old.command.before
    rest = [word for word in before if not _INTERPRETER.fullmatch(PurePath(word).name)]
    in_text = [word for word in draft.old.command.words if " " in word and draft.old.command.launcher in word]
    if (rest and draft.argv[: len(before)] != list(before)) or in_text:
        shown = show("", " ".join(in_text or rest))
        draft.say("argv", DECIDE, f"does the kernel need a part of `{shown}`?", "it is left out")
