"""A container with a uid of its own: no HOME, and no name for the user."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kit import TESTS
from kit.machine.racing_users import skip_without_namespaces
from roost.testing.deadlines import allow_s
from roost.testing.leftovers import processes, terminate

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

UID = 23453
BECOME = """
import json, subprocess, sys
from pathlib import Path
import roost
from kit.machine.racing_users import open_to_all

open_to_all(Path(sys.base_prefix), Path(sys.prefix), Path(roost.__file__).parent)
uid, env, commands = json.loads(sys.argv[1])
done = [
    subprocess.run(
        [sys.executable, *command], env=env, cwd="/", user=uid, group=0, extra_groups=[], capture_output=True, text=True
    )
    for command in commands
]
print(json.dumps([[each.stdout, each.stderr] for each in done]))
"""
USE = """
import roost
with roost.start_kernel(backend="local") as kernel:
    print(kernel.execute("import os; [os.getuid(), os.environ.get('HOME')]", check=True).text)
"""
IN_NAMESPACE = 'mount -t tmpfs -o mode=755 tmpfs /run && exec "$@"'


@pytest.mark.parametrize("home", [None, "/"])
def test_a_user_without_a_home_has_kernels(runtime_dir: Path, home: str | None) -> None:
    skip_without_namespaces()
    os.chown(runtime_dir, UID, 0)
    env = {
        "PATH": os.environ["PATH"],
        "ROOST_RUNTIME_DIR": str(runtime_dir),
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
    }
    env["JUPYTER_DATA_DIR"] = str(runtime_dir / "jupyter")  # plain Jupyter wants it, too
    if home is not None:
        env["HOME"] = home
    commands = [["-c", USE], ["-m", "roost", "doctor"], ["-m", "roost", "kernels"]]
    given = json.dumps([UID, env, commands])
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", IN_NAMESPACE, "sh", sys.executable, "-c", BECOME, given],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), env["PYTHONPATH"]])},
        stdout=subprocess.PIPE, text=True, check=True, timeout=allow_s(240),
    )  # fmt: skip
    terminate(processes(str(runtime_dir)))
    (used, errors), *others = json.loads(done.stdout)
    assert used.strip() == str([UID, home]), errors
    assert not any("Traceback" in errors for _, errors in others)
