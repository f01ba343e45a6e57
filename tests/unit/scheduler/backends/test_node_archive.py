"""The code that a node needs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from roost.scheduler.backends.node_archive import pack, unpack
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
