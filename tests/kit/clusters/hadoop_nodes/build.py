"""Functions that copy Hadoop's jars from Maven's repositories into a cache outside this repository.

The name of a folder in the cache holds the version and a hash of pom.xml. A folder gets its name when it is complete.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from kit.machine import debian_packages
from roost.testing.clusters.cluster_folder import why_no_address
from roost.testing.deadlines import allow_s

VERSION = "3.4.2"
"""The version of Hadoop in pom.xml. The environment variable ROOST_TEST_HADOOP chooses another one."""
VARIABLE = "ROOST_TEST_HADOOP"
PACKAGES = ("default-jdk-headless", "maven")
"""The Debian packages that a cluster needs. Maven is needed for the build only."""
BUILD_TIMEOUT_S = 900.0
_POM = Path(__file__).with_name("pom.xml")


def version() -> str:
    """Return the chosen version of Hadoop."""
    return os.environ.get(VARIABLE) or VERSION


def cache() -> Path:
    """Return the folder of the cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "roost-tests" / "yarn"


def jars() -> Path:
    """Return the folder with the jars of the chosen version, built or not."""
    return cache() / f"{version()}-{hashlib.sha256(_POM.read_bytes()).hexdigest()[:12]}"


def java() -> str | None:
    """Return the path of the program `java`, in JAVA_HOME or on the PATH, or None."""
    home = os.environ.get("JAVA_HOME")
    return shutil.which("java", path=f"{home}/bin") if home else shutil.which("java")


def java_home() -> str:
    """Return the folder of the Java that `java` names. YARN's scripts for containers need it."""
    program = java()
    assert program is not None, "Java is missing"
    return str(Path(program).resolve().parents[1])


def why_not_build() -> str | None:
    """Return why nothing can be built here, in one sentence, or None."""
    if reason := why_no_address():
        return reason
    hint = f"apt-get install --no-install-recommends {' '.join(PACKAGES)}"
    if java() is None:
        return f"Java is missing, which runs Hadoop {version()}: {hint}"
    if not jars().exists() and shutil.which("mvn") is None:
        return f"Maven is missing, which downloads Hadoop {version()}: {hint}"
    return None


def why_not() -> str | None:
    """Return why no cluster can start here, in one sentence, or None."""
    reason = why_not_build()
    if reason is None and not jars().exists():
        return f"Hadoop {version()} is not downloaded yet: `make build-yarn` (one minute, once)"
    return reason


def install() -> None:
    """Install the Debian packages, unless they are there."""
    if java() is None or not (jars().exists() or shutil.which("mvn")):
        debian_packages.install(*PACKAGES)


def build(report: Callable[[str], object] = print) -> None:
    """Download the jars, if they are not in the cache. Raise RuntimeError if that is impossible.

    A second build waits for the first. The download has 81 MB and takes half a minute.
    """
    if reason := why_not_build():
        raise RuntimeError(reason)
    cache().mkdir(parents=True, exist_ok=True)
    with open(cache() / "build.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if jars().exists():
            return
        report(f"downloads Hadoop {version()} into {jars()} (81 MB)")
        began = time.monotonic()
        with tempfile.TemporaryDirectory(dir=cache(), prefix="half-built-") as folder:
            _download(Path(folder) / "jars")
            (Path(folder) / "jars").rename(jars())
        report(f"downloaded in {time.monotonic() - began:.0f} s")


def _download(folder: Path) -> None:
    """Let Maven copy all jars into a folder. Raise RuntimeError with the end of Maven's output if it fails."""
    command = ["mvn", "--batch-mode", "--quiet", "--file", str(_POM), f"-Dhadoop={version()}"]
    goal = ["dependency:copy-dependencies", f"-DoutputDirectory={folder}"]
    done = subprocess.run(
        [*command, *goal], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=allow_s(BUILD_TIMEOUT_S),
    )  # fmt: skip
    if done.returncode:
        print(done.stdout[-4000:], file=sys.stderr)
        raise RuntimeError(f"Maven cannot download Hadoop {version()}: its last lines are above")
