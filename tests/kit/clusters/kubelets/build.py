"""Functions that build the program and the images of clusters, once, in a cache outside this repository.

The name of a folder in the cache holds a hash of its inputs. A folder gets its name when it is complete.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from kit.machine import debian_packages
from roost.testing.deadlines import allow_s

from . import containerd, image

VERSION = "1.35.4"
"""The version of Kubernetes in program/go.mod."""
PACKAGES = ("busybox-static", "containerd", "containernetworking-plugins", "iproute2", "runc")
"""The Debian packages that a cluster needs."""
_PROGRAMS = ("busybox", "containerd", "ctr", "ip", "runc")
_SOURCES = Path(__file__).parent / "program"
_START_TIMEOUT_S = 60.0
_KEPT_S = 14 * 86_400.0
"""How long the builds of other versions are kept. Another checkout may use them."""


def cache() -> Path:
    """Return the folder of the cache. Its file system must support overlayfs on top."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "roost-tests" / "kubernetes"


def program() -> Path:
    """Return the path of the program with all parts of Kubernetes, built or not."""
    files = [path.read_bytes() for path in sorted(_SOURCES.iterdir())]
    return cache() / f"program-{_hash(files)}" / "kubernetes"


def images() -> Path:
    """Return the path of a containerd root with the unpacked images, built or not."""
    source = Path(image.__file__).read_bytes()
    return cache() / f"images-{_hash([source, sys.version.encode(), *_packages()])}" / "containerd"


def why_not_build() -> str | None:
    """Return why nothing can be built here, in one sentence, or None."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "clusters of kubelets need Linux and root"
    if not _are_packages_there():
        return f"Debian packages are missing: apt-get install --no-install-recommends {' '.join(PACKAGES)}"
    if not program().exists() and shutil.which("go") is None:
        return f"Go is missing, which compiles Kubernetes {VERSION}: https://go.dev/dl"
    return None


def why_not() -> str | None:
    """Return why no cluster can start here, in one sentence, or None."""
    reason = why_not_build()
    if reason is None and not (program().exists() and images().exists()):
        return "Kubernetes is not built yet: `make build-kubernetes` (10 minutes, once)"
    return reason


def install() -> None:
    """Install the Debian packages, unless they are there."""
    if not _are_packages_there():
        debian_packages.install(*PACKAGES)


def _are_packages_there() -> bool:
    return all(shutil.which(name) for name in _PROGRAMS) and containerd.CNI_PLUGINS.is_dir()


def build(report: Callable[[str], object] = print) -> None:
    """Build the program and the images, if they are not in the cache. Raise RuntimeError if that fails.

    A second build waits for the first. The compile takes 7 minutes of two cores, and 3 GiB of memory at its end.
    """
    if reason := why_not_build():
        raise RuntimeError(reason)
    cache().mkdir(parents=True, exist_ok=True)
    with open(cache() / "build.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for path, make in ((program(), _compile), (images(), _unpack_all)):
            if path.exists():
                continue
            began = time.monotonic()
            report(f"builds {path}" + (" (about 10 minutes)" if path == program() else ""))
            with tempfile.TemporaryDirectory(dir=cache(), prefix="half-built-") as folder:
                make(Path(folder, path.name))
                os.chmod(folder, 0o755)
                Path(folder).rename(path.parent)
                os.mkdir(folder)  # for its removal
            report(f"built in {time.monotonic() - began:.0f} s")
        _forget_old()


def _forget_old() -> None:
    """Remove old builds of other versions from the cache."""
    for folder in cache().glob("*-*"):
        is_current = folder in (program().parent, images().parent)
        if not is_current and time.time() - folder.stat().st_mtime > _KEPT_S:
            shutil.rmtree(folder)


@functools.cache
def _packages() -> list[bytes]:
    """Return the names and versions of the Python packages in the images. This takes 0.1 s."""
    return [f"{each.name} {each.version}".encode() for each in image.required("ipykernel")]


def _compile(program: Path) -> None:
    major, minor, _ = VERSION.split(".")
    values = {"gitVersion": f"v{VERSION}", "gitMajor": major, "gitMinor": minor}
    flags = [
        "-s",
        "-w",
        *(f"-X k8s.io/component-base/version.{name}={value}" for name, value in values.items()),
    ]
    command = ["go", "build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags", " ".join(flags)]
    subprocess.run(["nice", "-n", "15", *command, "-o", str(program), "."], cwd=_SOURCES, check=True)


def _unpack_all(root: Path) -> None:
    unpack(root, image.write_pause, image.write_python)


def unpack(root: Path, *writers: Callable[[Path], None]) -> None:
    """Unpack images into a containerd root with a temporary containerd. Each writer writes the archive of one."""
    with tempfile.TemporaryDirectory(prefix="kubelets-") as folder:
        settings = Path(folder, "containerd.toml")
        settings.write_text(containerd.settings(root=root, state=folder, networks=folder))
        with _running_containerd(settings, Path(folder, "containerd.sock")) as socket:
            for write in writers:
                archive = Path(folder, "image.tar")
                write(archive)
                command = ["ctr", "--address", str(socket), "--namespace", "k8s.io", "images", "import"]
                subprocess.run([*command, str(archive)], check=True, stdout=subprocess.DEVNULL)


@contextlib.contextmanager
def _running_containerd(settings: Path, socket: Path) -> Iterator[Path]:
    log = settings.with_suffix(".log")
    command = ["unshare", "--mount", "containerd", "--log-level", "warn", "--config", str(settings)]
    with open(log, "wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            deadline = time.monotonic() + allow_s(_START_TIMEOUT_S)
            ping = ["ctr", "--address", str(socket), "version"]
            while subprocess.run(ping, capture_output=True).returncode:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"containerd does not start:\n{log.read_text()[-2000:]}")
                time.sleep(0.1)
            yield socket
        finally:
            process.terminate()


def _hash(inputs: list[bytes]) -> str:
    return hashlib.sha256(b"\0".join(inputs)).hexdigest()[:12]
