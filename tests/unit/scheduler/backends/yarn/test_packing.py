"""The archive of the application master runs without roost being installed, and uses little memory."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

from roost.scheduler.backends.yarn.master.messages import MasterSettings
from roost.scheduler.backends.yarn.packing import pack_master
from roost.testing.deadlines import allow_s

SETTINGS = MasterSettings(schedulers=("127.0.0.1:8030",), public_key="p", secret_key="s", clients=("c",))
SHOW = """
import json, sys
sys.path.insert(0, sys.argv[1])
import roost.scheduler.backends.yarn.master.main
names = [name for name, module in sys.modules.items() if module is not None]
files = [module.__file__ for name, module in sys.modules.items() if name.partition(".")[0] == "roost"]
print(json.dumps({"names": names, "files": files}))
"""


def test_the_archive_imports_little(tmp_path: Path) -> None:
    archive = tmp_path / "credentials"
    archive.write_bytes(b"HDTS before" + pack_master(SETTINGS) + bytes(2000))
    done = subprocess.run(
        [sys.executable, "-c", SHOW, str(archive)],
        check=True,
        capture_output=True,
        text=True,
        timeout=allow_s(60),
    )
    found = json.loads(done.stdout)
    assert all(file.startswith(str(archive)) for file in found["files"])
    others = {name.partition(".")[0] for name in found["names"]} - sys.stdlib_module_names
    assert {name for name in others if not name.startswith("_")} <= {"roost", "zmq", "cython_runtime"}
    assert not {"ssl", "multiprocessing", "email", "http", "roost.launchers.protocol.messages"} & set(
        found["names"]
    )


def test_the_archive_is_small_and_has_the_settings(tmp_path: Path) -> None:
    """YARN keeps a submission of 1 MB at most in ZooKeeper."""
    content = pack_master(SETTINGS)
    assert len(content) < 64 << 10
    (tmp_path / "a.zip").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert json.loads(archive.read("settings.json"))["schedulers"] == ["127.0.0.1:8030"]
    assert pack_master(SETTINGS) == content
