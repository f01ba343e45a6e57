"""The code that a node needs."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from roost.scheduler.backends.node_archive import bring_up, find_noted, pack, unpack
from roost.testing.deadlines import allow_s


@pytest.mark.parametrize("has_bytecode", [True, False])
def test_the_bytecode_that_was_sent_is_used(tmp_path: Path, has_bytecode: bool) -> None:
    """It is never compared with the sources, which cannot be imported here."""
    code = Path(unpack(*_packed(has_bytecode, tmp_path)))
    for source in code.rglob("*.py"):
        source.write_text("raise RuntimeError('a source was read')")
    done = subprocess.run(
        [sys.executable, "-c", "import roost.launchers.agent.main"],
        env={**os.environ, "PYTHONPATH": str(code)}, cwd=tmp_path, capture_output=True, text=True, timeout=allow_s(30),
    )  # fmt: skip
    assert ("a source was read" in done.stderr) != has_bytecode, done.stderr
    assert (done.returncode == 0) == has_bytecode


def _packed(has_bytecode: bool, folder: Path) -> tuple[bytes, str, str]:
    archive, digest = pack(has_bytecode=has_bytecode)
    return archive, str(folder), digest


def test_the_leases_of_an_agent_are_looked_for_in_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder does not depend on XDG_RUNTIME_DIR, with which an agent would choose another one."""
    asked: list[list[str]] = []

    def run(command: list[str], **_: object) -> SimpleNamespace:
        asked.append(command)
        return SimpleNamespace(stdout="{}", stderr="")

    base, lease_id = tmp_path / "base", "roost:k:s/1"
    base.mkdir(mode=0o700)
    (base / "code-1").mkdir()
    monkeypatch.setattr(subprocess, "run", run)
    variables = {"ROOST_RUNTIME_DIR": str(base), "XDG_RUNTIME_DIR": str(tmp_path)}
    bring_up(b"", "1", "agent-dask-1", "{}", {"pid": os.getpid()}, [], "", variables)
    folder = Path(asked[0][3])
    assert folder.is_absolute()
    (folder / "leases").mkdir(parents=True)
    (folder / "leases" / f"{hashlib.sha256(lease_id.encode()).hexdigest()[:32]}.json").touch()
    assert find_noted("agent-dask-1", [lease_id, "roost:k:s/2"], variables) == [lease_id]
