"""The Debian packages of an engine, and the image of kernels, made once in a cache outside this repository."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from kit.clusters.kubelets import image
from kit.machine import debian_packages
from roost.testing.deadlines import allow_s

IMAGE = "roost-test:1"
"""The image of kernels. It has this Python with ipykernel, runs as the user 1000, and holds no roost."""
PACKAGES = ("busybox-static", "docker.io", "iproute2", "iptables")
"""The Debian packages that an engine needs."""
_PROGRAMS = ("busybox", "dockerd", "ip", "iptables")
_NAMESPACES = ("--mount", "--net", "--pid", "--fork", "--mount-proc")
_PROBE_S = 60.0
_KEPT_S = 14 * 86_400.0
"""How long other images are kept. Another checkout may use them."""


def cache() -> Path:
    """Return the folder of the cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "roost-tests" / "docker"


def image_file() -> Path:
    """Return the path of the image, as a file for `docker load`, built or not."""
    sources = [Path(file).read_bytes() for file in (__file__, image.__file__)]
    packages = [f"{each.name} {each.version}".encode() for each in image.required("ipykernel")]
    digest = hashlib.sha256(b"\0".join([*sources, sys.version.encode(), *packages]))
    return cache() / f"image-{digest.hexdigest()[:16]}.tar"


def why_not() -> str | None:
    """Return why no engine can start here, in one sentence, or None."""
    reason = why_not_build()
    if reason is None and not image_file().exists():
        return "the image for the Docker engine is not built yet: `make build-docker` (a minute, once)"
    return reason


def why_not_build() -> str | None:
    """Return why no engine could start here even with an image, in one sentence, or None."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "a Docker engine of the tests' own needs Linux and root"
    if not _are_packages_there():
        return f"a Docker engine needs packages: apt-get install --no-install-recommends {' '.join(PACKAGES)}"
    if not _may_make_namespaces():
        return "a Docker engine of the tests' own needs namespaces, which root cannot make here"
    return None


def install() -> None:
    """Install the Debian packages, unless they are there."""
    if not _are_packages_there():
        debian_packages.install(*PACKAGES)


def build(report: Callable[[str], object] = print) -> None:
    """Write the image, if it is not in the cache. Raise RuntimeError if no engine could start here."""
    if reason := why_not_build():
        raise RuntimeError(reason)
    cache().mkdir(parents=True, exist_ok=True)
    with open(cache() / "build.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if image_file().exists():
            return
        report(f"builds {image_file()}")
        with tempfile.TemporaryDirectory(dir=cache(), prefix="half-built-") as folder:
            fresh = Path(folder, "image.tar")
            _write_image(fresh)
            fresh.rename(image_file())
        for old in cache().glob("image-*.tar"):
            if old != image_file() and time.time() - old.stat().st_mtime > _KEPT_S:
                old.unlink()


def _write_image(file: Path) -> None:
    layer = image.build_python_layer(file, "kernel:x:1000:1000:kernel:/home/kernel:/bin/sh\n")
    layer.add_folder("home/kernel", 0o1777)
    layer.add_libraries()
    config = {"Cmd": ["python3"], "Env": image.environment(), "WorkingDir": "/tmp", "User": "1000:1000"}
    layer.write(file, IMAGE, config)


def _are_packages_there() -> bool:
    return all(map(shutil.which, _PROGRAMS))


@functools.cache
def _may_make_namespaces() -> bool:
    probe = ["unshare", *_NAMESPACES, "mount", "-t", "tmpfs", "tmpfs", "/tmp"]
    return subprocess.run(probe, capture_output=True, timeout=allow_s(_PROBE_S)).returncode == 0
