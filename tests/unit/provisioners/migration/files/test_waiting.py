"""A kernelspec for a missing backend is written, and `roost doctor` names the backend."""

from __future__ import annotations

from pathlib import Path

import pytest
from jupyter_client.manager import KernelManager

from kit.fakes.service import FakeService
from kit.jupyter.kernelspecs import read_kernelspec, register
from kit.jupyter.old_kernelspecs import answer_all, separate_jupyter, write_old
from roost.provisioners import kernelspecs
from roost.scheduler.cli import main
from roost.scheduler.errors import ConfigError


def test_doctor_says_that_a_kernelspec_waits(
    service: FakeService,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folders = separate_jupyter(tmp_path, monkeypatch)
    write_old(folders.system, "boxed")
    answer_all(monkeypatch, backend="slurm", waits_for="slurm")
    assert main.main(["migrate", "boxed"]) == 3
    assert "It waits for slurm" in capsys.readouterr().out
    document = read_kernelspec(folders.user / "kernels" / "boxed")
    assert document["metadata"]["roost_migration"]["waits_for"] == "slurm"
    (finding,) = [each for each in kernelspecs.find_problems() if "boxed" in each["what"]]
    assert finding["level"] == "not now"
    assert "waits for the backend slurm, which this roost does not have" in finding["what"]
    register()
    with pytest.raises(ConfigError, match="cannot start kernels: it waits for the backend slurm, which"):
        KernelManager(kernel_name="boxed").start_kernel()
    answer_all(monkeypatch, backend="local", waits_for="local")  # it has come
    main.main(["migrate", "--undo"])
    main.main(["migrate", "boxed"])
    found = [each for each in kernelspecs.find_problems() if "boxed" in each["what"]]
    assert found
    assert not any("waits" in each["what"] for each in found)
