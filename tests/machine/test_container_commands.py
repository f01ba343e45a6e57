"""Kernelspecs whose command enters a container: other files below some folders, as with `apptainer exec`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import roost
from kit.jupyter.kernelspecs import write_kernelspec
from roost.launchers.agent.interpreter_probe import probe
from roost.scheduler.errors import LaunchError
from roost.testing.deadlines import allow_s, until_blocking

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")

Enter = Callable[..., list[str]]
ENCRYPTED = {"supported_encryption": ["curve"]}
"""The metadata of a kernelspec: roost cannot see which ipykernel is in a container."""


@pytest.fixture
def enter(tmp_path: Path) -> Enter:
    """Return a function that gives the command of a kernel in a container that hides these folders."""

    def build(*hidden: Path) -> list[str]:
        mounts = "".join(f"mount -t tmpfs t {folder} && " for folder in hidden)
        script = tmp_path / "enter"
        script.write_text(
            f'#!/bin/sh\nexec unshare --mount --propagation private sh -c \'{mounts}exec "$@"\' sh "$@"\n'
        )
        script.chmod(0o755)
        return [str(script), sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]

    return build


@pytest.fixture
def jupyter_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return Jupyter's folder for connection files."""
    folder = tmp_path / "jupyter"
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(folder))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    return folder


def test_a_container_without_roosts_folder_runs_a_kernel(
    settled_runtime_dir: Path, tmp_path: Path, jupyter_dir: Path, enter: Enter
) -> None:
    write_kernelspec(tmp_path / "kernels", "contained", enter(settled_runtime_dir), metadata=ENCRYPTED)
    with roost.start_kernel("contained", backend="local") as kernel:
        (file,) = (jupyter_dir / "roost").iterdir()
        assert file.name == f"kernel-{kernel.id}.json"
        assert kernel.execute(f"__import__('os').listdir({str(settled_runtime_dir)!r})").text == "[]"
        kernel.restart()
        assert kernel.execute("7").text == "7"
    until_blocking(lambda: not list((jupyter_dir / "roost").iterdir()), "its connection file is gone")


def test_a_kernel_that_does_not_see_its_file_is_one_sentence(
    settled_runtime_dir: Path, tmp_path: Path, jupyter_dir: Path, enter: Enter
) -> None:
    jupyter_dir.mkdir()
    write_kernelspec(
        tmp_path / "kernels", "contained", enter(settled_runtime_dir, jupyter_dir), metadata=ENCRYPTED
    )
    began = time.monotonic()
    with pytest.raises(
        LaunchError, match=rf"there is no file {jupyter_dir}/roost/kernel-.* as `apptainer exec"
    ):
        roost.start_kernel("contained", backend="local", timeout_s=allow_s(60))
    assert time.monotonic() - began < allow_s(15)


def test_no_advice_leaves_the_container(tmp_path: Path, enter: Enter) -> None:
    command = enter(tmp_path / "kernels")
    (tmp_path / "kernels").mkdir()
    found = probe(command, os.environ)
    assert (found.problem, found.why_not_forked) == ("", "")
    wrapper = tmp_path / "python"
    wrapper.write_text(f'#!/bin/sh\nexec {command[0]} {sys.executable} "$@"\n')
    wrapper.chmod(0o755)
    found = probe([str(wrapper), *command[2:]], os.environ)
    assert (found.problem, found.is_ipykernel, found.why_not_forked) == ("", True, "")
