"""A registry of images on the loopback of an engine, without TLS."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

from roost.testing.clusters.cluster_folder import wait_until
from roost.testing.deadlines import allow_s

from . import registry_server
from .build import image_file
from .engine import MARK, DockerEngine

_TYPES = "application/vnd.docker"
_ADDED_BYTES = 4_000_000
_START_S = 20.0


class Registry:
    """A registry with one image: that of kernels and one more layer, so that the engine has to pull it.

    `login` is `NAME:PASSWORD` if it wants one. Its files are in `folder`.
    """

    def __init__(self, engine: DockerEngine, folder: Path, login: str = "") -> None:
        self._engine, self._folder, self._login = engine, folder, login
        self._process: subprocess.Popen[bytes] | None = None
        self.address = ""

    def __enter__(self) -> Registry:
        self._folder.mkdir()
        self._write_image()
        self.go_on()
        command = self._engine.inside(
            sys.executable, registry_server.__file__, str(self._folder), self._login
        )
        self._process = subprocess.Popen(command, env={**os.environ, MARK: str(self._engine.folder)})
        file = self._folder / "port"
        wait_until(file.exists, "the registry does not start", timeout_s=allow_s(_START_S))
        self.address = f"127.0.0.1:{file.read_text()}"
        self._engine.trust(self.address)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    @property
    def image(self) -> str:
        """The name of the image, with the registry's address."""
        return f"{self.address}/team/python:3"

    def hold(self, after_bytes: int) -> None:
        """Let each layer stop after this many bytes, until `go_on` is called."""
        (self._folder / "hold.new").write_text(str(after_bytes))
        (self._folder / "hold.new").rename(self._folder / "hold")

    def go_on(self) -> None:
        (self._folder / "hold").unlink(missing_ok=True)

    def requests(self) -> list[str]:
        """Return the paths that the engine has asked for."""
        file = self._folder / "requests"
        return file.read_text().splitlines() if file.exists() else []

    def _write_image(self) -> None:
        """Write the manifest, and where each blob is: most are in the file of the image of kernels."""
        blobs: dict[str, tuple[str, int, int]] = {}
        layers: list[dict[str, Any]] = []
        with tarfile.open(image_file()) as image:
            (listed,) = json.load(image.extractfile("manifest.json") or sys.stdin)
            config = json.load(image.extractfile(listed["Config"]) or sys.stdin)
            for name, digest in zip(listed["Layers"], config["rootfs"]["diff_ids"], strict=True):
                member = image.getmember(name)
                blobs[digest] = str(image_file()), member.offset_data, member.size
                layers.append(
                    {"mediaType": f"{_TYPES}.image.rootfs.diff.tar", "size": member.size, "digest": digest}
                )
        added = self._write_layer()
        config["rootfs"]["diff_ids"].append(self._add(blobs, "layer", added))
        layers.append(
            {
                "mediaType": f"{_TYPES}.image.rootfs.diff.tar",
                "size": len(added),
                "digest": config["rootfs"]["diff_ids"][-1],
            }
        )
        config["history"] = [{"created_by": "test"} for _ in layers]
        content = json.dumps(config).encode()
        described = {
            "mediaType": f"{_TYPES}.container.image.v1+json",
            "size": len(content),
            "digest": self._add(blobs, "config", content),
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{_TYPES}.distribution.manifest.v2+json",
            "config": described,
            "layers": layers,
        }
        (self._folder / "manifest.json").write_text(json.dumps(manifest))
        (self._folder / "blobs.json").write_text(json.dumps(blobs))

    def _add(self, blobs: dict[str, tuple[str, int, int]], name: str, content: bytes) -> str:
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        (self._folder / name).write_bytes(content)
        blobs[digest] = str(self._folder / name), 0, len(content)
        return digest

    def _write_layer(self) -> bytes:
        """Return a layer with a file that is new for each registry."""
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            Path(folder, "added").write_bytes(os.urandom(_ADDED_BYTES))
            with tarfile.open(Path(folder, "layer.tar"), "w") as tar:
                tar.add(Path(folder, "added"), arcname="added")
            return Path(folder, "layer.tar").read_bytes()
