"""Notebooks that only name a kernelspec run in pods with a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from kit.jupyter.notebook_runs import run_nbclient

WITHIN = """
import os
print(os.environ["NVIDIA_VISIBLE_DEVICES"], os.getuid(), os.environ["HOSTNAME"])
print([name for name in os.environ if name.startswith(("JPY_", "JUPYTER_"))])
"""

pytestmark = pytest.mark.backends("kubernetes", why="looks at the variables of pods")


def check(printed: str) -> None:
    """Check that the kernel had a GPU, the user id 12345, a pod of roost, and only one variable of Jupyter."""
    (device, uid, pod), variables = printed.splitlines()[0].split(), printed.splitlines()[1]
    assert device.startswith("GPU-")
    assert uid == "12345"
    assert pod.startswith("roost-")
    assert variables == "['JPY_PARENT_PID']"


def test_nbclient(on_an_a100: Path) -> None:
    check(run_nbclient(WITHIN))


OF_OTHER_GATEWAYS = {
    "KERNEL_CPUS": "250m",
    "KERNEL_UID": "23456",
    "KERNEL_GID": "100",
    "KERNEL_REMOTE_HOST": "n2",
    "KERNEL_VOLUMES": '[{"name": "scratch", "emptyDir": {}}]',
    "KERNEL_VOLUME_MOUNTS": "[{name: scratch, mountPath: /scratch, subPath: mine}]",
}
WITH_THEM = """
import os
print(os.getuid(), os.getgid(), os.path.ismount("/scratch"))
print(open("/scratch/file", "w").write("four"), open(os.path.expanduser("~/file"), "w").write("four"))
"""


def test_variables_as_for_enterprise_gateway(on_an_a100: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in OF_OTHER_GATEWAYS.items():
        monkeypatch.setenv(name, value)
    assert run_nbclient(WITH_THEM).splitlines()[:2] == ["23456 100 True", "4 4"]
