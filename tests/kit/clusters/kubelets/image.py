"""Container images without a registry, as archives for `ctr images import`.

The Python image holds the Python that runs this, ipykernel with the packages that it requires, and busybox. Everything
has the path that it has here. The image holds no roost.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Collection
from pathlib import Path

from packaging.requirements import Requirement

PAUSE, PYTHON = "docker.io/library/roost-pause:1", "docker.io/library/roost-test:1"
PAUSE_COMMAND = ["/bin/busybox", "sleep", "2147483647"]
_APPLETS = (
    "cat",
    "env",
    "false",
    "find",
    "grep",
    "id",
    "ip",
    "kill",
    "ls",
    "nc",
    "ps",
    "sh",
    "sleep",
    "true",
)
STDLIB = Path(sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix}))
_SKIPPED = {"ensurepip", "idlelib", "lib2to3", "site-packages", "test", "tests", "tkinter", "turtledemo"}
_FOLDERS = ("dev", "etc", "home", "proc", "root", "run", "sys", "var")


def write_pause(file: Path) -> None:
    """Write the image of the first container of every pod."""
    layer = Layer(file.with_suffix(".layer"))
    layer.add(Path(find_program("busybox")), "bin/busybox")
    layer.write(file, PAUSE, {"Cmd": PAUSE_COMMAND})


def write_python(file: Path) -> None:
    """Write the image of kernels. Its file system may be read-only, and any user may run it."""
    layer = build_python_layer(file)
    layer.add_libraries()
    layer.write(file, PYTHON, {"Cmd": ["python3"], "Env": environment(), "WorkingDir": "/tmp"})


def build_python_layer(file: Path, users: str = "") -> Layer:
    """Return a layer with Python, ipykernel and busybox, for the image in `file`. `users` are lines of passwd."""
    layer = Layer(file.with_suffix(".layer"))
    for folder in _FOLDERS:
        layer.add_folder(folder)
    layer.add_folder("tmp", 0o1777)
    layer.add_text("etc/passwd", f"root:x:0:0:root:/root:/bin/sh\n{users}")
    layer.add_text("etc/group", "root:x:0:\n")
    layer.add(Path(find_program("busybox")), "bin/busybox")
    for applet in _APPLETS:
        layer.add_link(f"bin/{applet}", "busybox")
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    python = f"{sys.base_prefix}/bin/{version}"
    layer.add(Path(python), python)
    for name in ("python", "python3", version):
        layer.add_link(f"usr/bin/{name}", python)
    layer.add_tree(STDLIB, str(STDLIB))
    for distribution in required("ipykernel"):
        for installed in distribution.files or ():
            if ".." not in installed.parts:  # a script
                layer.add(Path(str(installed.locate())), f"{STDLIB}/site-packages/{installed}")
    return layer


def environment(path: str = "/usr/bin:/bin") -> list[str]:
    """Return the variables of an image with Python. `path` is its PATH."""
    return ["HOME=/tmp", f"LD_LIBRARY_PATH={sys.base_prefix}/lib", f"PATH={path}", "PYTHONUNBUFFERED=1"]


def required(name: str) -> list[importlib.metadata.Distribution]:
    """Return an installed distribution and all that it requires, sorted by name."""
    found: dict[str, importlib.metadata.Distribution] = {}
    names = [name]
    while names:
        key = re.sub(r"[-_.]+", "-", names.pop()).lower()
        if key in found:
            continue
        found[key] = importlib.metadata.distribution(key)
        requirements = map(Requirement, found[key].requires or ())
        names += [
            each.name for each in requirements if not each.marker or each.marker.evaluate({"extra": ""})
        ]
    return [found[key] for key in sorted(found)]


class Layer:
    """A layer of files in a tar file. It holds each name once, and all folders above it."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._tar = tarfile.open(file, "w", format=tarfile.GNU_FORMAT)  # noqa: SIM115 - until write()
        self._names: set[str] = set()
        self._programs: list[str] = []

    def add(self, source: Path, name: str) -> None:
        """Add a file with its time, so that Python's compiled files stay valid. Everybody may read it."""
        if not source.is_file() or not self._is_new(name):
            return
        with open(source, "rb") as file:
            entry = self._tar.gettarinfo(arcname=name.strip("/"), fileobj=file)
            entry.type, entry.linkname, entry.size = tarfile.REGTYPE, "", os.fstat(file.fileno()).st_size
            entry.mode = 0o755 if entry.mode & 0o100 else 0o644
            entry.uid = entry.gid = 0
            if file.read(4) == b"\x7fELF":
                self._programs.append(str(source))
            file.seek(0)
            self._tar.addfile(entry, file)

    def add_tree(self, source: Path, name: str, skipped: Collection[str] = _SKIPPED) -> None:
        """Add a folder without the folders of the names `skipped`, and without static libraries."""
        for folder, folders, files in os.walk(source):
            folders[:] = [each for each in folders if each not in skipped and not each.startswith("config-")]
            for file in files:
                if not file.endswith((".a", ".opt-1.pyc", ".opt-2.pyc")) and "_tkinter" not in file:
                    path = Path(folder, file)
                    self.add(path, f"{name}/{path.relative_to(source)}")

    def add_libraries(self) -> None:
        """Add the libraries that the files of this layer are linked with."""
        environment = {"LD_LIBRARY_PATH": f"{sys.base_prefix}/lib", "PATH": os.environ["PATH"]}
        linked = subprocess.run(
            ["ldd", *self._programs], capture_output=True, text=True, env=environment
        ).stdout
        for path in sorted(set(re.findall(r"(?:=> |^\s+)(/\S+) \(0x", linked, re.MULTILINE))):
            if "site-packages" not in path:  # else its package has brought it
                self.add(Path(path), path)

    def add_folder(self, name: str, mode: int = 0o755) -> None:
        if self._is_new(name):
            self._add(name, tarfile.DIRTYPE, mode)

    def add_link(self, name: str, target: str) -> None:
        if self._is_new(name):
            self._add(name, tarfile.SYMTYPE, linkname=target)

    def add_text(self, name: str, text: str) -> None:
        if self._is_new(name):
            self._add(name, tarfile.REGTYPE, data=text.encode())

    def write(self, file: Path, name: str, config: dict[str, object]) -> None:
        """Write the image of this layer and remove the layer's own file."""
        self._tar.close()
        with open(self._file, "rb") as layer:
            digest = hashlib.sha256()
            while part := layer.read(1 << 20):
                digest.update(part)
        layers = {"type": "layers", "diff_ids": [f"sha256:{digest.hexdigest()}"]}
        machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
        settings = json.dumps(
            {"architecture": machine, "os": "linux", "config": config, "rootfs": layers}
        ).encode()
        manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
        with tarfile.open(file, "w") as tar:
            tar.add(self._file, "layer.tar")
            for path, data in (("config.json", settings), ("manifest.json", json.dumps(manifest).encode())):
                entry = tarfile.TarInfo(path)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
        self._file.unlink()

    def _is_new(self, name: str) -> bool:
        name = name.strip("/")
        if name in self._names:
            return False
        self._names.add(name)
        parent = os.path.dirname(name)
        if parent:
            self.add_folder(parent)
        return True

    def _add(
        self, name: str, kind: bytes, mode: int = 0o644, *, linkname: str = "", data: bytes = b""
    ) -> None:
        entry = tarfile.TarInfo(name.strip("/"))
        entry.type, entry.mode, entry.linkname, entry.size = kind, mode, linkname, len(data)
        self._tar.addfile(entry, io.BytesIO(data))


def find_program(program: str) -> str:
    """Return the path of an installed program."""
    found = shutil.which(program)
    assert found is not None, f"{program} is not installed"
    return found
