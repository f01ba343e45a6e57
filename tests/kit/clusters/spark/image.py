"""The image of kernels with Spark and of Spark's executors. Java and Python have the paths that they have here."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from kit.clusters.hadoop_nodes.build import java_home
from kit.clusters.kubelets import build as kubelets
from kit.clusters.kubelets import image

from .build import QUICK_JAVA, cache, spark_home, why_not

SPARK = "docker.io/library/roost-spark:1"
USER = 12345
"""The user of the image. Spark refuses a user without a name."""
_EXAMPLES = Path(__file__).parents[4] / "docs" / "examples" / "spark" / "kubernetes"
_FILES = ("executor.sh", "executor.yaml")
_APPLETS = ("basename", "dirname", "expr", "head", "mkdir", "rm", "sed", "tail", "tr", "uname")
_NOT_IN_A_JRE = {"include", "jmods", "legal", "man"}
_NOT_IN_SPARK = {"data", "examples", "licenses"}


def images() -> Path:
    """Return the path of a containerd root with this image, built or not."""
    inputs = [Path(__file__).read_bytes(), str(kubelets.images()).encode(), str(spark_home()).encode()]
    inputs += [(_EXAMPLES / name).read_bytes() for name in _FILES]
    return cache() / f"images-{hashlib.sha256(b'|'.join(inputs)).hexdigest()[:12]}" / "containerd"


def why_no_image() -> str | None:
    """Return why no pod can have Spark here, in one sentence, or None."""
    reason = kubelets.why_not() or why_not()
    if reason is None and not images().exists():
        return "the image with Spark is not built yet: `make build-spark`"
    return reason


def build(report: Callable[[str], object] = print) -> None:
    """Build the image, if it is not in the cache. The environment with PySpark must be there."""
    with open(cache() / "build.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if images().exists():
            return
        began = time.monotonic()
        report(f"builds {images()}")
        with tempfile.TemporaryDirectory(dir=cache(), prefix="half-built-") as folder:
            kubelets.unpack(Path(folder, "containerd"), image.write_pause, write_spark)
            os.chmod(folder, 0o755)
            Path(folder).rename(images().parent)
            os.mkdir(folder)  # for its removal
        for old in cache().glob("images-*"):
            if old != images().parent:
                shutil.rmtree(old)
        report(f"built in {time.monotonic() - began:.0f} s")


def write_spark(file: Path) -> None:
    """Write the image. Its entry point and its pod template of executors are those of the documentation."""
    user = f"kernel:x:{USER}:0::/tmp:/bin/sh\n"
    layer = image.build_python_layer(file, users=user)
    for program in ("bash", "env"):
        layer.add(Path(image.find_program(program)), f"usr/bin/{program}")
    layer.add_link("bin/bash", "/usr/bin/bash")
    for applet in _APPLETS:
        layer.add_link(f"bin/{applet}", "busybox")
    home = java_home()
    layer.add_tree(Path(home), home, skipped=_NOT_IN_A_JRE)
    site_packages = spark_home().parent
    for name in ("pyspark", "py4j"):
        layer.add_tree(site_packages / name, f"{image.STDLIB}/site-packages/{name}", skipped=_NOT_IN_SPARK)
    for name in _FILES:
        layer.add(_EXAMPLES / name, f"opt/spark/{name}")
    layer.add_libraries()
    variables = [
        *image.environment(f"{home}/bin:/usr/bin:/bin"),
        f"JAVA_HOME={home}",
        f"JAVA_TOOL_OPTIONS={QUICK_JAVA}",
        f"SPARK_HOME={image.STDLIB}/site-packages/pyspark",
    ]
    config = {
        "Entrypoint": ["/opt/spark/executor.sh"],
        "Env": variables,
        "WorkingDir": "/tmp",
        "User": str(USER),
    }
    layer.write(file, SPARK, config)
