"""An agent learns which modules kernels import, and its next zygote imports them in advance."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from kit.jupyter.kernelspecs import IPYKERNEL, kernelspecs
from kit.machine.daemons import agent_folder, daemon_pids, settle, wait_gone
from kit.machine.started_kernels import start_as
from roost.launchers.agent.warm.learnt_preloads import FEWEST
from roost.provisioners.kernel_object import BlockingKernel
from roost.scheduler.client.client import disconnect
from roost.testing.deadlines import allow_s, until_blocking

pytestmark = [
    pytest.mark.backends("local", why="the same agent on every backend"),
    pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux only"),
]
OPTIONS = {"learn_preloads": True}
WITHIN_S = 180


def start(name: str = "python3", **options: object) -> BlockingKernel:
    return start_as("forked", name, WITHIN_S, OPTIONS, **options)


def find_loaded(names: set[str], wanted: str, **options: object) -> set[str]:
    """Start kernels until one has imported `wanted` before its first cell. Return the modules of `names` that it has.

    Each kernel then imports all of `names`, so that the agent learns these modules.
    """
    loaded: set[str] = set()

    def is_loaded() -> bool:
        nonlocal loaded
        with start(**options) as kernel:
            text = kernel.execute(f"sorted({names!r} & set(__import__('sys').modules))").text
            kernel.execute(f"import {', '.join(names)}", check=True)
        loaded = {name for name in names if repr(name) in text}
        return wanted in loaded

    until_blocking(is_loaded, lambda: f"a kernel has imported {wanted}: {loaded}", WITHIN_S, 0.0)
    return loaded


def test_what_kernels_import_is_in_the_next_zygote_and_survives_the_agent(settled_runtime_dir: Path) -> None:
    for _ in range(FEWEST):
        with start() as kernel:
            assert kernel.execute("'numpy' in __import__('sys').modules").text == "False"
            kernel.execute("import numpy", check=True)
    find_loaded({"numpy"}, "numpy")
    log = (agent_folder(settled_runtime_dir) / "log").read_text()
    assert re.search(r"learnt: numpy \((\d+) of \1 kernels\)", log)
    assert log.count("replaces it") == 1
    with start() as kernel:
        assert kernel.execute("import numpy; float(numpy.ones(3) @ numpy.ones(3))").text == "3.0"
        other = kernel.execute("numpy.random.random()").text
    with start() as kernel:
        assert kernel.execute("import numpy; numpy.random.random()").text != other
    (agent,) = daemon_pids(settled_runtime_dir, "agent")
    disconnect()
    settle(settled_runtime_dir)
    assert wait_gone(agent)
    find_loaded({"numpy"}, "numpy")
    assert (agent_folder(settled_runtime_dir) / "log").read_text().count("zygote=") == 1, (
        "the first zygote has it"
    )


def test_a_package_that_starts_a_thread_and_the_users_own_modules_are_left_out(
    settled_runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv, notebooks = tmp_path / "venv", tmp_path / "notebooks"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True, timeout=allow_s(60))
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "ours.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    notebooks.mkdir()
    for module in (site / "fit.py", notebooks / "mine.py"):
        module.write_text("import wave")
    thread = "import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()"
    (site / "threaded.py").write_text(thread)
    python = str(venv / "bin" / "python")
    kernelspecs(tmp_path, "own", argv=[python, *IPYKERNEL[1:]])
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    for _ in range(FEWEST):
        with start("own", cwd=notebooks) as kernel:
            kernel.execute("import mine, fit, threaded, colorsys", check=True)
    names = {"mine", "fit", "threaded", "colorsys"}
    loaded = find_loaded(names, "fit", name="own", cwd=notebooks)
    assert loaded == {"fit"}
    assert (
        f"threaded is not preloaded for {python}: it starts a thread"
        in (agent_folder(settled_runtime_dir) / "log").read_text()
    )
    with start("own", cwd=notebooks) as kernel:
        kernel.execute("import mine, fit, threaded", check=True)
