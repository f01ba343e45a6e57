"""`roost machine install` by real root, with a /run and an /etc of its own in a mount namespace."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from roost.testing.deadlines import allow_s

pytestmark = [
    pytest.mark.backends("local", why="the machine's book divides this machine alone"),
    pytest.mark.skipif(
        os.geteuid() != 0 or not shutil.which("unshare"), reason="only root can make mount namespaces"
    ),
]
OWN_FOLDERS = 'mount -t tmpfs tmpfs /run; mount --bind "$0" /etc; exec "$@"'
"""The first parameter is a copy of /etc."""
INSTALL = """
import json, os, subprocess, sys
from pathlib import Path

def install(*options):
    command = [sys.executable, "-m", "roost", "machine", "install", *options]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout

def look():
    folder, line = Path("/run/roost"), Path("/etc/tmpfiles.d/roost.conf")
    return {
        "folder": f"{folder.stat().st_mode:o} {folder.stat().st_uid} {folder.stat().st_gid}" if folder.exists() else "",
        "line": line.read_text() if line.exists() else "",
    }

def act_as(uid, action):
    if os.fork() == 0:
        os.setgid(uid)
        os.setuid(uid)
        try:
            action()
            os._exit(0)
        except PermissionError:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.wait()[1])

def replace_it():
    mine = name.with_name("mine")
    mine.write_text("y")
    mine.rename(name)

from roost.launchers.machine_book.places import find_place
facts = {"dry": install("--dry-run"), "after_dry": look(), "first": install(), "after_first": look()}
name = Path("/run/roost/roost-4711-x.json")
facts["writes"] = act_as(4711, lambda: name.write_text("x"))
facts["removes_others"] = act_as(4712, name.unlink)
facts["replaces_others"] = act_as(4712, replace_it)
os.chmod("/run/roost", 0o755)
facts |= {"second": install(), "after_second": look(), "kept": name.read_text(), "third": install()}
facts["way"] = find_place().way
print(json.dumps(facts))
"""
OTHER_GPUS = """
import json, threading
from pathlib import Path
import roost

rules = Path("/etc/roost/machine.toml")
rules.parent.mkdir()
rules.write_text("gpus = 1")
client = roost.connect("local")
facts = {}
first = roost.start_kernel("python3", backend="local", gpus=1)
facts["before"] = [each["id"] for each in client.nodes().result(60)[0]["devices"]]
rules.with_name("new").write_text('gpus = ["0", "1"]')
rules.with_name("new").replace(rules)
started = []
def start():
    started.append(roost.start_kernel("python3", backend="local", gpus=1))
second = threading.Thread(target=start)
second.start()
first.stop()
second.join(100)
facts["after"] = [each["id"] for each in client.nodes().result(60)[0]["devices"]]
started[0].stop()
print(json.dumps(facts))
"""
Run = Callable[[str], dict[str, Any]]


@pytest.fixture
def run(tmp_path: Path, settled_runtime_dir: Path) -> Run:
    """Return a function that runs a program as root, with a /run and an /etc of its own, and returns its document."""
    etc = tmp_path / "etc"
    subprocess.run(["cp", "-a", "/etc", str(etc)], check=True)
    shutil.rmtree(etc / "roost", ignore_errors=True)
    (etc / "tmpfiles.d" / "roost.conf").unlink(missing_ok=True)

    def run_inside(program: str) -> dict[str, Any]:
        command = ["unshare", "--mount", "sh", "-ec", OWN_FOLDERS, str(etc), sys.executable, "-c", program]
        done = subprocess.run(command, capture_output=True, text=True, timeout=allow_s(180))
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    return run_inside


def test_root_installs_the_folder_and_may_repeat_it(run: Run) -> None:
    facts = run(INSTALL)
    line = "d /run/roost 1777 root root -\n"
    assert "Would write /etc/tmpfiles.d/roost.conf" in facts["dry"]
    assert facts["after_dry"] == {"folder": "", "line": ""}
    assert facts["after_first"] == facts["after_second"] == {"folder": "41777 0 0", "line": line}
    assert "Made the folder /run/roost" in facts["first"]
    assert "it had mode 755" in facts["second"]
    assert "nothing is to do" in facts["third"]
    assert facts["kept"] == "x"
    assert facts["way"] == "installed", "ROOST_MACHINE_DIR does not count beside root's folder"
    assert (facts["writes"], facts["removes_others"], facts["replaces_others"]) == (0, 1, 1)


def test_other_gpus_are_taken_up_after_the_last_kernel(run: Run) -> None:
    facts = run(OTHER_GPUS)
    assert facts["before"] == ["0"]
    assert facts["after"] == ["0", "1"]
