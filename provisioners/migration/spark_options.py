"""The arguments of `spark-submit`: from the cluster mode of the three systems to client mode in a kernel of roost's.

In client mode the kernel is the driver, in the container that roost has leased.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePosixPath

from .amounts import format_memory, read_cpus, read_memory, read_url, round_up_to_gib
from .draft import Draft
from .secrets import show
from .stanza_options import set_allowed

_SWITCHES = ("--verbose", "-v", "--supervise", "--help", "-h", "--version", "--usage-error")
_CONF = {
    "--name": "spark.app.name", "--queue": "spark.yarn.queue", "--master": "spark.master",
    "--deploy-mode": "spark.submit.deployMode", "--driver-memory": "spark.driver.memory",
    "--driver-cores": "spark.driver.cores", "--archives": "spark.yarn.dist.archives",
}  # fmt: skip
"""The options of spark-submit that have a property with the same meaning."""
_CLUSTER_ONLY = re.compile(
    r"spark\.yarn\.(submit\.waitAppCompletion|am\.waitTime|maxAppAttempts)|spark\.kubernetes\.submission\..*"
    r"|spark\.kubernetes\.driver\.(label|annotation|container|node|podTemplate|request|limit|volumes|secrets).*"
    r"|spark\.kubernetes\.pyspark\.pythonVersion"
)
"""Properties of cluster mode, which are about the pod or container of a driver that roost now starts."""
_EXECUTOR_IMAGES = {"spark.kubernetes.container.image", "spark.kubernetes.executor.container.image"}
_CLUSTER_HOST = "k8s://https://kubernetes.default.svc"
_ADDRESSES = {
    "yarn": {"spark.driver.host": "${env:NM_HOST}"},
    "kubernetes": {
        "spark.driver.host": "${env:ROOST_POD_IP}",
        "spark.kubernetes.driver.pod.name": "${env:ROOST_POD_NAME}",
        "spark.kubernetes.namespace": "${env:ROOST_POD_NAMESPACE}",
    },
}
"""The properties that tell a driver in a container its own address, by backend. Spark fills in the variables."""
_DEFAULT = re.compile(r"\$\{(\w+):-([^}]*)\}")
_KERNEL_ID = re.compile(r"\$KERNEL_ID\b|\$\{KERNEL_ID(:-[^}]*)?\}")
_USER_NAME = re.compile(r"(\$KERNEL_USERNAME\b|\$\{KERNEL_USERNAME(:-[^}]*)?\})[-_.]?")
_VARIABLE = re.compile(r"\$\{?(\w+)")
_ARCHIVES = (".tar.gz", ".tgz", ".tar", ".zip")
"""The endings of the archives that YARN unpacks."""
_DRIVER = 1 << 30
"""Memory of a driver that sets none: Spark's default."""
_LEAST_OVERHEAD, _PART_OVERHEAD = 384 << 20, 0.1
"""Memory of a container beside its JVM, as Spark counts it: at least this, and this part of the JVM's."""
_OF_PYTHON = 512 << 20
"""Memory for Python and roost's agent beside the driver's JVM."""


@dataclasses.dataclass(frozen=True, slots=True)
class SparkOption:
    """An option of spark-submit: the property with its meaning, its value, and its words in the command."""

    name: str
    value: str
    words: tuple[str, ...]
    place: str


def translate_spark(draft: Draft, sources: Iterable[tuple[str, list[str]]]) -> list[str]:
    """Return the words for spark-submit in client mode, with a line for each old option.

    A source is a place, such as `env SPARK_OPTS`, and its words. Sets the kernel's memory, CPUs, queue and archive.
    """
    kept: list[str] = []
    names: set[str] = set()
    for place, words in sources:
        for option in _read_options(place, words):
            handle = _RULES.get(option.name) or _find_rule(option.name)
            new = handle(draft, option)
            kept += new
            names |= {option.name} if new else set()
    image = draft.executor_image or str(draft.options.get("image", ""))
    if draft.backend == "kubernetes" and image and not names & _EXECUTOR_IMAGES and names & {"spark.master"}:
        kept += ["--conf", f"spark.kubernetes.executor.container.image={image}"]
    if draft.app_name and "spark.app.name" not in names:
        kept += ["--name", draft.app_name]
    if "spark.master" in names and "spark.submit.deployMode" not in names:
        kept += ["--deploy-mode", "client"]
    for name, value in _ADDRESSES.get(draft.backend, {}).items():
        if name not in names and names & {"spark.master"}:
            kept += ["--conf", f"{name}={value}"]
    return kept


def set_driver_resources(draft: Draft) -> None:
    """Promise the memory and the CPUs of the driver to the kernel, if nothing else has set them."""
    if draft.backend not in ("yarn", "kubernetes", "docker"):
        return
    size = draft.driver_memory_bytes or _DRIVER
    overhead = draft.driver_overhead_bytes or max(_LEAST_OVERHEAD, int(size * _PART_OVERHEAD))
    draft.config.setdefault("memory", format_memory(round_up_to_gib(size + overhead + _OF_PYTHON)))
    draft.config.setdefault("cpus", draft.driver_cores or 1)


def is_plain_path(python: str) -> bool:
    """True if YARN's shell takes a path of a Python as it is. roost refuses other paths."""
    return re.fullmatch(r"[A-Za-z0-9/._+-]+", python) is not None


def _read_options(place: str, words: list[str]) -> Iterable[SparkOption]:
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            yield SparkOption("", word, (word,), place)
            continue
        written, equals, value = word.partition("=")
        given = [word]
        if not equals and written not in _SWITCHES and rest:
            value = rest.pop(0)
            given.append(value)
        if written in ("--conf", "-c"):
            name, _, own = value.partition("=")
            yield SparkOption(name, own, ("--conf", value), f"{place} {name}")
        else:
            yield SparkOption(_CONF.get(written, written), value, tuple(given), f"{place} {written}")


def _keep(draft: Draft, option: SparkOption) -> list[str]:
    """Keep an option that means the same in client mode. A default of the shell's, `${NAME:-text}`, is filled in."""
    words = [_fill_kernel_id(word) for word in option.words]
    value = _fill_kernel_id(option.value)
    if "$KERNEL_" in value.replace("${", "$") and draft.language == "scala":
        draft.say(option.place, "dropped", "nothing fills in a variable of the kernel in Toree's command")
        return []
    filled = [_DEFAULT.sub(lambda match: match.group(2), word) for word in words]
    if filled != words:
        names = ", ".join(sorted({match[0] for match in _DEFAULT.findall(value)}))
        text = f"nothing fills in {names} with its default in a kernelspec: write the value"
        draft.say(option.place, "decision", text, show(option.name, _DEFAULT.sub(r"\2", value)))
        return filled
    variables = sorted({name for name in _VARIABLE.findall(value) if name not in ("env", "KERNEL_ID")})
    text = "stays"
    if "${KERNEL_ID}" in value:
        text += "; roost fills in the kernel's id"
    if variables:
        text += f"; {', '.join(variables)}: filled in from the application's variables"
    draft.say(option.place, "kept", text)
    return filled


def _fill_kernel_id(text: str) -> str:
    """Return a text with roost's form of the kernel's id, and without the user's name, which roost does not fill in."""
    return _KERNEL_ID.sub("${KERNEL_ID}", _USER_NAME.sub("", text))


def _keep_word(draft: Draft, option: SparkOption) -> list[str]:
    """Handle a word that belongs to no option: the client's own options, or the program."""
    if re.fullmatch(r"\$\{?KERNEL_EXTRA_SPARK_OPTS(:-)?\}?", option.value):
        draft.say(
            f"{option.place} KERNEL_EXTRA_SPARK_OPTS",
            "translated",
            "the kernel puts the client's options before these",
        )
    elif option.value in ("pyspark-shell", "sparkr-shell"):
        draft.say(option.place, "translated", f"{option.value} stays the last word")
    elif option.value.strip():
        text = "a word that belongs to no option of spark-submit: leave it out, or correct it"
        draft.say(option.place, "decision", text, "left out")
    return []


def _drop_cluster_only(draft: Draft, option: SparkOption) -> list[str]:
    draft.say(option.place, "dropped", "of no use in client mode: roost starts the driver")
    return []


def _set_mode(draft: Draft, option: SparkOption) -> list[str]:
    if option.value == "cluster":
        text = "client mode in the container that roost leases: the driver is the kernel, and runs on the cluster too"
        draft.say(option.place, "translated", text)
    else:
        draft.say(option.place, "kept", "client mode")
    return ["--deploy-mode", "client"]


def _set_master(draft: Draft, option: SparkOption) -> list[str]:
    value = option.value
    if value in ("yarn-cluster", "yarn-client"):
        draft.say(option.place, "translated", "yarn, in client mode")
        return ["--master", "yarn"]
    if value.startswith("k8s:") and "$" in value:
        draft.say(option.place, "translated", f"{_CLUSTER_HOST}, the same API server by its name in each pod")
        return ["--master", _CLUSTER_HOST]
    return _keep(draft, option)


def _set_queue(draft: Draft, option: SparkOption) -> list[str]:
    if draft.backend == "yarn" and "$" not in option.value:
        draft.options["queue"] = option.value
        shown = show("queue", option.value)
        draft.say(
            option.place, "translated", f"options.queue = {shown} for the kernel; the executors keep it too"
        )
        return list(option.words)
    return _keep(draft, option)


def _set_memory(draft: Draft, option: SparkOption) -> list[str]:
    try:
        draft.driver_memory_bytes = read_memory(option.value, is_jvm=True)
    except ValueError as problem:
        draft.say(option.place, "decision", f"{problem}: set memory", "1 GiB for the driver")
        return []
    text = "stays; the kernel's memory is this, the driver's overhead and 512 MiB for Python"
    draft.say(option.place, "translated" if draft.backend in _ADDRESSES else "kept", text)
    return list(option.words)


def _set_overhead(draft: Draft, option: SparkOption) -> list[str]:
    try:
        draft.driver_overhead_bytes = read_memory(option.value, is_jvm=True)
    except ValueError as problem:
        draft.say(option.place, "decision", f"{problem}: add it to memory", "10 % of the driver's memory")
        return []
    draft.say(option.place, "translated", "the kernel's memory is larger by it")
    return []


def _set_cores(draft: Draft, option: SparkOption) -> list[str]:
    try:
        draft.driver_cores = read_cpus(option.value)
    except ValueError as problem:
        draft.say(option.place, "decision", f"{problem}: set cpus", "1")
        return []
    draft.say(option.place, "translated", f"cpus = {draft.driver_cores}")
    return list(option.words)


def _set_proxy_user(draft: Draft, option: SparkOption) -> list[str]:
    text = "Spark would run as another user than the kernel: run a Jupyter Server for each user (JupyterHub)"
    draft.say(option.place, "decision", text, "the user of roost's service")
    return []


def _set_account(draft: Draft, option: SparkOption) -> list[str]:
    needs = "its token must be allowed to make pods (c.RoostKubernetesBackend.token_service_accounts)"
    if "$" in option.value:
        draft.say(option.place, "translated", f"the client's KERNEL_SERVICE_ACCOUNT_NAME chooses it; {needs}")
    else:
        set_allowed(draft, "service_account", "token_service_accounts", option.value, option.place)
    return []


def _set_namespace(draft: Draft, option: SparkOption) -> list[str]:
    if "$" in option.value:
        draft.say(option.place, "translated", "the namespace of the kernel's pod")
    else:
        set_allowed(draft, "namespace", "allowed_namespaces", option.value, option.place)
    return []


def _set_executor_image(draft: Draft, option: SparkOption) -> list[str]:
    image = option.value
    if "$" in image:
        image = draft.executor_image or str(draft.options.get("image", ""))
    if not image:
        draft.say(option.place, "decision", "no image is named for the executors: name one", "none")
        return []
    draft.say(option.place, "translated", f"the executors' image is {show('image', image)}")
    return ["--conf", f"{option.name}={image}"]


def _set_variable(draft: Draft, option: SparkOption) -> list[str]:
    """Take a variable of the driver, which is now the kernel."""
    name = re.split(r"appMasterEnv\.|driverEnv\.", option.name, maxsplit=1)[1]
    if draft.backend not in _ADDRESSES:
        draft.say(option.place, "dropped", "of no use in client mode: the driver has the kernel's variables")
    elif name and "=" not in name and "\0" not in name and not name.startswith("KERNEL_"):
        draft.env[name] = option.value
        filled = "; Jupyter fills in its variables from the application's" if "$" in option.value else ""
        draft.say(
            option.place, "translated", f"the variable {name} of the kernel, which is the driver{filled}"
        )
    else:
        draft.say(option.place, "dropped", "the kernel gets it from its client")
    return []


def _set_archives(draft: Draft, option: SparkOption) -> list[str]:
    """Keep the archives for the executors, and find the one with the driver's Python."""
    python = next((word for word in _list_pythons(draft) if not word.startswith(("/", "$"))), "")
    folder = PurePosixPath(python).parts[:1]
    for part in option.value.split(","):
        url, _, alias = part.strip().partition("#")
        path = read_url(url).path
        is_python = (
            bool(folder) and (alias or PurePosixPath(path).name) == folder[0] and is_plain_path(python)
        )
        if draft.backend == "yarn" and is_python and path.endswith(_ARCHIVES):
            return _take_archive(draft, option, url, str(PurePosixPath(*PurePosixPath(python).parts[1:])))
    return _keep(draft, option)


def _list_pythons(draft: Draft) -> list[str]:
    words = " ".join([*draft.old.env.values(), *draft.old.argv])
    found = re.findall(r"spark\.yarn\.appMasterEnv\.PYSPARK_PYTHON=([^\s'\"]+)", words)
    return [*found, draft.old.env.get("PYSPARK_PYTHON", "/")]


def _take_archive(draft: Draft, option: SparkOption, url: str, python: str) -> list[str]:
    parts = read_url(url)
    draft.options["python"] = python
    if parts.scheme in ("webhdfs", "swebhdfs", "file"):
        draft.options["archive"] = url
        draft.say(option.place, "translated", f"options.archive with its {python}; the executors keep theirs")
    else:
        address = f"webhdfs://{parts.hostname or 'NAMENODE'}:9870{parts.path}"
        draft.options["archive"] = address
        text = "options.archive for the kernel, which needs the address of WebHDFS; the executors keep theirs"
        draft.say(option.place, "decision", text, show("archive", address))
    return list(option.words)


def _find_rule(name: str) -> Callable[[Draft, SparkOption], list[str]]:
    if _CLUSTER_ONLY.fullmatch(name):
        return _drop_cluster_only
    if name.startswith(("spark.yarn.appMasterEnv.", "spark.kubernetes.driverEnv.")):
        return _set_variable
    return _keep


_RULES: Mapping[str, Callable[[Draft, SparkOption], list[str]]] = {
    "": _keep_word,
    "spark.submit.deployMode": _set_mode,
    "spark.master": _set_master,
    "spark.yarn.queue": _set_queue,
    "spark.driver.memory": _set_memory,
    "spark.driver.memoryOverhead": _set_overhead,
    "spark.yarn.driver.memoryOverhead": _set_overhead,
    "spark.driver.cores": _set_cores,
    "--proxy-user": _set_proxy_user,
    "spark.kubernetes.authenticate.driver.serviceAccountName": _set_account,
    "spark.kubernetes.namespace": _set_namespace,
    "spark.kubernetes.container.image": _set_executor_image,
    "spark.kubernetes.executor.container.image": _set_executor_image,
    "spark.yarn.dist.archives": _set_archives,
    "spark.archives": _set_archives,
}
