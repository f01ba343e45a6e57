"""The arguments of `spark-submit`: from the cluster mode of the three systems to client mode in a kernel of roost's.

In client mode the kernel is the driver, in the container that roost has leased. The first lines of a kernel with Spark
stand in its command, because nodes need no roost.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from .draft import Draft
from .sheet import DECIDE, NEEDLESS, TAKEN
from .tables import SPARK_OPTIONS
from .values import format_memory, show

PYTHON_START = """\
def _start():
    import atexit, importlib.util, os, sys
    words = (os.environ.get("KERNEL_EXTRA_SPARK_OPTS", ""), os.environ.get("PYSPARK_SUBMIT_ARGS", "pyspark-shell"))
    os.environ["PYSPARK_SUBMIT_ARGS"] = " ".join(words).strip()
    names = get_ipython().user_ns
    class Later:
        def __init__(self, name):
            self.__dict__["_name"] = name
        def __getattr__(self, key):
            if key.startswith(("_repr_", "_ipython_")) or key in ("__wrapped__", "_name"):
                raise AttributeError(key)
            from pyspark.sql import SparkSession
            session = SparkSession.builder.getOrCreate()
            names.update(spark=session, sc=session.sparkContext, sql=session.sql)
            atexit.register(session.stop)
            return getattr(names[self._name], key)
    def cancel(cell):
        if isinstance(cell.error_in_exec, KeyboardInterrupt) and "pyspark" in sys.modules:
            context = sys.modules["pyspark"].SparkContext._active_spark_context
            if context:
                context.cancelAllJobs()
    if importlib.util.find_spec("pyspark"):
        get_ipython().events.register("post_run_cell", cancel)
        spark = Later("spark")
        names.update(spark=spark, sc=Later("sc"), sql=lambda query: spark.sql(query))
_start()
del _start
"""
"""Python: `spark`, `sc` and `sql` make the session at their first use, with the client's options before the others.

An interrupt of a cell also ends Spark's jobs.
"""
R_START = (
    'Sys.setenv(SPARKR_SUBMIT_ARGS = trimws(paste(Sys.getenv("KERNEL_EXTRA_SPARK_OPTS"), '
    'Sys.getenv("SPARKR_SUBMIT_ARGS")))); '
    '.libPaths(c(file.path(Sys.getenv("SPARK_HOME"), "R", "lib"), .libPaths())); '
    "library(SparkR); "
    'delayedAssign("spark", sparkR.session()); delayedAssign("sc", spark); '
    "IRkernel::main()"
)
"""R: the same for `spark` and `sc`."""
SCALA_SCRIPT = (
    'file=$1 mode=$2; shift 2; exec "$SPARK_HOME/bin/spark-submit" "$@" $KERNEL_EXTRA_SPARK_OPTS '
    '--class org.apache.toree.Main "$TOREE_JAR" --profile "$file" $mode'
)
"""Scala: a script of sh, with the connection file, Toree's options, and the arguments of spark-submit."""

_SWITCHES = ("--verbose", "-v", "--supervise", "--help", "-h", "--version", "--usage-error")
_CONF = {
    "--name": "spark.app.name", "--queue": "spark.yarn.queue", "--master": "spark.master",
    "--deploy-mode": "spark.submit.deployMode", "--driver-memory": "spark.driver.memory",
    "--driver-cores": "spark.driver.cores", "--archives": "spark.yarn.dist.archives",
}  # fmt: skip
"""The options of spark-submit that have a property with the same meaning."""
_CLUSTER_ONLY = re.compile(
    r"spark\.yarn\.(submit\.waitAppCompletion|am\.waitTime|maxAppAttempts)|spark\.kubernetes\.submission\..*"
    r"|spark\.kubernetes\.driver\.(label|annotation|container|request|limit)\..*|spark\.kubernetes\.pyspark\..*"
)
"""Properties of cluster mode, which are about the pod or container of a driver that roost now starts."""
_DRIVER_POD = re.compile(r"spark\.kubernetes\.driver\.(node|podTemplate|volumes|secrets).*")
_DRIVER_VARIABLE = re.compile(r"spark\.(yarn\.appMasterEnv|kubernetes\.driverEnv)\.(.+)")
_IMAGE = "spark.kubernetes.executor.container.image"
_ADDRESSES: Mapping[str, Mapping[str, str]] = {
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
_USER_PREFIX = re.compile(r"(\$KERNEL_USERNAME\b|\$\{KERNEL_USERNAME(:-[^}]*)?\})[-_.](?=\$)")
_CLIENT_OPTIONS = re.compile(r"\$\{?KERNEL_EXTRA_SPARK_OPTS(:-)?\}?")
_PYTHON_OVERHEAD = 512 << 20
"""Memory for Python and roost's agent beside the driver's JVM."""


def translate_spark(draft: Draft, sources: Iterable[tuple[str, list[str]]]) -> list[str]:
    """Return the words for spark-submit in client mode, with a line for each old option.

    A source is a place, such as `env SPARK_OPTS`, and its words. Sets the kernel's memory, CPUs, queue and archive.
    """
    kept: list[str] = []
    names: set[str] = set()
    for place, words in sources:
        for name, value, given in _read_options(words):
            new = _translate(draft, f"{place} {name or value}".strip(), name, value, given)
            kept += new
            names |= {name} if new else set()
    added = dict(_ADDRESSES.get(draft.backend, {})) if "spark.master" in names else {}
    image = draft.values.get("~executor_image") or draft.values.get("options.image")
    if draft.backend == "kubernetes" and added and image:
        added[_IMAGE] = image
    if "~name" in draft.values and "spark.app.name" not in names:
        kept += ["--name", draft.values["~name"]]
    if "spark.master" in names and "spark.submit.deployMode" not in names:
        kept += ["--deploy-mode", "client"]
    for name, value in added.items():
        kept += [] if name in names else ["--conf", f"{name}={value}"]
    return kept


def set_driver_resources(draft: Draft) -> None:
    """Promise the memory and the CPUs of the driver to the kernel, if nothing else has set them."""
    if draft.backend in ("yarn", "kubernetes", "docker"):
        size = draft.values.get("~driver_memory", 1 << 30)
        overhead = draft.values.get("~driver_overhead", max(384 << 20, size // 10))  # as Spark counts
        draft.values.setdefault("memory", format_memory(size + overhead + _PYTHON_OVERHEAD, in_gib=True))
        draft.values.setdefault("cpus", 1)


def is_plain_path(python: str) -> bool:
    """True if YARN's shell takes a path of a Python as it is. roost refuses other paths."""
    return re.fullmatch(r"[A-Za-z0-9/._+-]+", python) is not None


def _read_options(words: list[str]) -> Iterator[tuple[str, str, list[str]]]:
    """Yield each option as the property of its meaning, its value, and its words. A word of no option has no name."""
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            yield "", word, [word]
            continue
        written, equals, value = word.partition("=")
        given = [word]
        if not equals and written not in _SWITCHES and rest:
            value = rest.pop(0)
            given.append(value)
        if written in ("--conf", "-c"):
            name, _, own = value.partition("=")
            yield name, own, ["--conf", value]
        else:
            yield _CONF.get(written, written), value, given


def _translate(draft: Draft, place: str, name: str, value: str, given: list[str]) -> list[str]:
    """Return the new words of one option."""
    variable = _DRIVER_VARIABLE.fullmatch(name)
    if not name and (_CLIENT_OPTIONS.fullmatch(value) or value in ("pyspark-shell", "sparkr-shell")):
        draft.say(place, TAKEN, "")
    elif not name:
        draft.say(
            place, DECIDE, "it belongs to no option of spark-submit: leave it out, or correct it", "left out"
        )
    elif _CLUSTER_ONLY.fullmatch(name):
        draft.say(place, NEEDLESS, "client mode")
    elif _DRIVER_POD.fullmatch(name):
        question = f"write it into c.RoostKubernetesBackend.pod_template ({show(name, value)})"
        draft.say(place, DECIDE, question, "left out")
    elif variable and (draft.backend not in _ADDRESSES or variable[2].startswith("KERNEL_")):
        draft.say(place, NEEDLESS, "client mode: the driver has the kernel's variables")
    elif variable:
        draft.keep_variable(variable[2], value, place)
    elif name == "spark.submit.deployMode":
        draft.say(
            place, TAKEN, "client mode in the container that roost leases" if value == "cluster" else ""
        )
        return ["--deploy-mode", "client"]
    elif name == "spark.master" and (
        value.startswith("yarn-") or (value.startswith("k8s:") and "$" in value)
    ):
        draft.say(place, TAKEN, "the same cluster, in client mode")
        return ["--master", "yarn" if value.startswith("yarn-") else "k8s://https://kubernetes.default.svc"]
    elif name in SPARK_OPTIONS:
        option, stays = SPARK_OPTIONS[name]
        if re.fullmatch(r"\$\{?KERNEL_\w+\}?", value):
            draft.say(place, NEEDLESS, "roost reads the client's variable itself")
            return []
        draft.take(option, value, place)
        return given if stays and (draft.places.get(option.target) == place or not option.target) else []
    elif name in ("spark.yarn.dist.archives", "spark.archives") and _take_archive(draft, place, value):
        return given
    else:
        return _keep(draft, place, given)
    return []


def _keep(draft: Draft, place: str, given: list[str]) -> list[str]:
    """Keep an option that means the same in client mode. A default of the shell's, `${NAME:-text}`, is filled in."""
    words = [_KERNEL_ID.sub("${KERNEL_ID}", _USER_PREFIX.sub("", word)) for word in given]
    filled = [_DEFAULT.sub(r"\2", word) for word in words]
    if draft.language == "scala" and "$KERNEL_" in words[-1].replace("${", "$"):
        draft.say(place, NEEDLESS, "nothing fills in a variable of the kernel in Toree's command")
        return []
    if filled != words:
        names = ", ".join(sorted({match[0] for match in _DEFAULT.findall(words[-1])}))
        question = f"nothing fills in {names} with its default in a kernelspec: write the value"
        draft.say(place, DECIDE, question, show(place, filled[-1]))
    elif doubt := draft.find_doubt(words[-1]):
        draft.say(place, DECIDE, doubt, "it stays")
    else:
        draft.say(place, TAKEN, "")
    return filled


def _take_archive(draft: Draft, place: str, value: str) -> bool:
    """Take the archive with the driver's Python for the kernel; the executors keep theirs. True if there is one."""
    words = " ".join([*draft.old.env.values(), *draft.old.command.words])
    pythons = re.findall(r"spark\.yarn\.appMasterEnv\.PYSPARK_PYTHON=([^\s'\"]+)", words)
    pythons.append(draft.old.env.get("PYSPARK_PYTHON", "/"))
    python = next((word for word in pythons if not word.startswith(("/", "$"))), "")
    folder, *inner = PurePosixPath(python).parts or ("",)
    for part in value.split(",") if draft.backend == "yarn" and is_plain_path(python) else ():
        address, _, alias = part.strip().partition("#")
        try:
            url = urlsplit(address)
        except ValueError:  # such as an IPv6 address without its end
            continue
        name = alias or PurePosixPath(url.path).name
        if name == folder and url.path.endswith((".tar.gz", ".tgz", ".tar", ".zip")):
            if url.scheme not in ("webhdfs", "swebhdfs", "file"):
                address = f"webhdfs://{url.hostname or 'NAMENODE'}:9870{url.path}"
            draft.values |= {"options.archive": address, "options.python": str(PurePosixPath(*inner))}
            question = (
                "is this the archive's address in WebHDFS, from which YARN unpacks the kernel's Python?"
            )
            draft.say(place, DECIDE, question, show("archive", address))
            return True
    return False
