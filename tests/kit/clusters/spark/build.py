"""The environment with PySpark and ipykernel, in a cache outside this repository.

The name of a folder in the cache holds a hash of its inputs. A folder gets its name when it is complete.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from kit.clusters.hadoop_nodes.build import java
from kit.machine import debian_packages

VERSION = "3.5.9"
"""The version of PySpark. Its Scala, 2.12, is that of Apache Toree."""
PACKAGE = "default-jdk-headless"
"""The Debian package with Java."""
QUICK_JAVA = "-XX:+UseSerialGC -XX:TieredStopAtLevel=1"
"""Options of Java with which a short run takes half the CPU time."""
_INSTALL_TIMEOUT_S = 900.0


def cache() -> Path:
    """Return the folder of the cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "roost-tests" / "spark"


def environment() -> Path:
    """Return the folder of the environment, built or not."""
    inputs = hashlib.sha256(f"{sys.version}\0{sys.base_prefix}".encode()).hexdigest()[:12]
    return cache() / f"{VERSION}-{inputs}"


def python() -> str:
    """Return the path of the environment's Python."""
    return str(environment() / "bin" / "python")


def spark_home() -> Path:
    """Return the folder of PySpark in the environment."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    return environment() / "lib" / version / "site-packages" / "pyspark"


def why_not() -> str | None:
    """Return why no kernel can have Spark here, in one sentence, or None."""
    if java() is None:
        return (
            f"Java is missing, which runs Spark {VERSION}: apt-get install --no-install-recommends {PACKAGE}"
        )
    if not environment().exists():
        return f"Spark {VERSION} is not installed yet: `make build-spark` (two minutes, once)"
    return None


def build(report: Callable[[str], object] = print) -> None:
    """Install PySpark, if it is not in the cache. Raise RuntimeError if that is impossible.

    A second build waits for the first. The download has 320 MB.
    """
    if java() is None:
        debian_packages.install(PACKAGE)
    cache().mkdir(parents=True, exist_ok=True)
    with open(cache() / "build.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not environment().exists():
            began = time.monotonic()
            report(f"installs Spark {VERSION} into {environment()} (320 MB)")
            with tempfile.TemporaryDirectory(dir=cache(), prefix="half-built-") as folder:
                _install(Path(folder) / "environment")
                (Path(folder) / "environment").rename(environment())
            report(f"installed in {time.monotonic() - began:.0f} s")
    if reason := why_not():
        raise RuntimeError(reason)


def _install(folder: Path) -> None:
    """Make the environment in a folder. Its `bin/python` also works after a rename of the folder."""
    packages = [f"pyspark=={VERSION}", "ipykernel>=7.3"]
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *packages],
    ):
        if subprocess.run(command, stdin=subprocess.DEVNULL, timeout=_INSTALL_TIMEOUT_S).returncode:
            raise RuntimeError(f"Spark {VERSION} cannot be installed: the lines above say why.")


def write_defaults(folder: Path) -> None:
    """Write a `spark-defaults.conf` for small and quick applications on a YARN cluster of the tests."""
    (folder / "spark-defaults.conf").write_text(
        f"spark.yarn.jars local:{spark_home()}/jars/*\n"
        f"spark.yarn.stagingDir file://{folder}\n"
        "spark.executor.memory 512m\n"
        "spark.log.level ERROR\n"
        f"spark.driver.extraJavaOptions {QUICK_JAVA}\n"
        f"spark.executor.extraJavaOptions {QUICK_JAVA}\n"
        f"spark.yarn.am.extraJavaOptions {QUICK_JAVA}\n"
    )
