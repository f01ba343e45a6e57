"""Kernelspecs for SSH hosts: a Python, a prologue and a folder that are on the hosts alone."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import roost
from kit.clusters.ssh_hosts import SshHosts, why_not
from kit.jupyter.kernelspecs import read_kernelspec, register, search_one_folder
from roost.scheduler.cli import main
from roost.scheduler.client.client import connect
from roost.scheduler.errors import LaunchError
from roost.testing.deadlines import allow_s, until_blocking

pytestmark = [
    pytest.mark.backends("ssh"),
    pytest.mark.skipif(why_not(hosts=3) is not None, reason=str(why_not(hosts=3))),
    pytest.mark.usefixtures("specs_of"),
]
HOME = Path("/home/ada")
PYTHON = HOME / "env/bin/python"
MAKE_PYTHON = f"""
set -e
"{sys.executable}" -m venv --without-pip --symlinks ~/env
echo "{sysconfig.get_path("purelib")}" > "$(echo ~/env/lib/python*/site-packages)/all.pth"
"""
Install = Callable[..., int]


@pytest.fixture
def home(ssh_hosts: SshHosts) -> Iterator[Path]:
    """Return the home on each host, which is as before at the end of the test."""
    assert not HOME.exists()
    before = {name: list_home(ssh_hosts, name) for name in ssh_hosts.names}
    yield HOME
    for name in ssh_hosts.names:
        for entry in list_home(ssh_hosts, name) - before[name]:
            run(ssh_hosts, name, f"rm -rf ~/{entry}")


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the user's empty folder of kernelspecs."""
    register()
    return search_one_folder(tmp_path / "data", monkeypatch)


@pytest.fixture
def install(backend: str, kernels: Path) -> Install:
    """Return a function that installs the kernelspec `far`, by the command."""

    def install(*options: str) -> int:
        return main.main(
            ["kernelspec", "install", "--replace", "--backend", backend, "--name", "far", *options]
        )

    return install


def run(hosts: SshHosts, name: str, script: str) -> str:
    done = hosts.run(name, "ada", ["sh", "-c", script])
    assert done.returncode == 0, done.stderr
    return done.stdout


def list_home(hosts: SshHosts, name: str) -> set[str]:
    return set(run(hosts, name, "ls -A ~").split())


def ask(kernel: Any, code: str) -> str:
    return str(kernel.execute(code, check=True).stdout).strip()


def test_the_python_is_on_the_hosts_alone(
    ssh_hosts: SshHosts, home: Path, kernels: Path, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ssh_hosts.names:
        run(ssh_hosts, name, MAKE_PYTHON)
    assert install("--python", str(PYTHON), "--check-on", "all") == 0
    captured = capsys.readouterr()
    print(captured.err)
    version = ".".join(map(str, sys.version_info[:3]))
    lines = captured.err.splitlines()
    assert sorted(line.partition("  ")[0] for line in lines) == ["n1", "n2", "n3"]
    assert all(f"  Python {version}, ipykernel " in line and line.endswith(" s") for line in lines)
    assert "encrypted (CURVE)" in captured.out
    document = read_kernelspec(kernels / "far")
    assert document["argv"][:3] == [str(PYTHON), "-m", "ipykernel_launcher"]
    assert document["metadata"]["supported_encryption"] == ["curve"]
    with roost.start_kernel("far") as kernel:
        assert ask(kernel, "import sys; print(sys.executable)") == str(PYTHON)
    assert find_about_far(capsys) == {"ok": "kernelspec far can start kernels"}
    for name in ssh_hosts.names:
        run(ssh_hosts, name, "rm -r ~/env")
    found = find_about_far(capsys)
    assert f": {PYTHON} is no executable here" in found["warning"]


def test_one_host_of_several_lacks_the_python(
    ssh_hosts: SshHosts, home: Path, kernels: Path, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("n1", "n3"):
        run(ssh_hosts, name, MAKE_PYTHON)
    assert install("--python", str(PYTHON), "--check-on", "all") == 2
    assert f"roost: n2: {PYTHON} is no executable here: install it" in capsys.readouterr().err
    assert not (kernels / "far").exists()
    assert install("--python", str(PYTHON), "--check-on", "n1,n3") == 0


def find_about_far(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """Return the findings of the doctor about the kernelspec, by their levels."""
    capsys.readouterr()
    main.main(["doctor", "--backend", "ssh", "--json"])
    findings = json.loads(capsys.readouterr().out)["findings"]
    return {each["level"]: each["what"] for each in findings if "kernelspec far" in each["what"]}


def test_a_prologue_prepares_the_environment_of_its_host(
    ssh_hosts: SshHosts, install: Install, tmp_path: Path
) -> None:
    prologue = 'export WHERE="on $(hostname)" LINES_="a\nb=c"\nexport PATH="$HOME/bin:$PATH"; unset MAIL'
    assert install("--option", f"prologue={prologue}", "--label", "rack=2") == 0
    show = "import json, os; print(json.dumps(dict(os.environ)))"
    why_not_forked: list[str] = []

    def check_one() -> bool:
        """Check a kernel. Return whether it was forked: a warm process follows the first kernel."""
        with roost.start_kernel("far") as kernel:
            found = json.loads(ask(kernel, show))
            known = connect("ssh").kernel(kernel.id).result(allow_s(30))
            why_not_forked.append(known.why_not_forked)
        assert found["WHERE"] == "on n2"
        assert found["LINES_"] == "a\nb=c"
        assert found["PATH"].startswith("/home/ada/bin:/")
        assert found["HOME"] == str(HOME)
        assert found["MAIL"] == ""
        assert not [name for name in found if name.startswith(("SSH_", "ROOST_LINES", "ROOST_PYTHON"))]
        return not known.why_not_forked

    until_blocking(check_one, lambda: f"a kernel is forked: {why_not_forked}", 120, 0.0)


def test_a_restart_on_another_service_has_the_prologue_too(install: Install) -> None:
    assert install("--option", "prologue=export WHERE=$(hostname)", "--label", "rack=3") == 0
    with roost.start_kernel("far") as kernel:
        assert ask(kernel, "import os; print(os.environ['WHERE'])") == "n3"
        assert main.main(["restart-service", "--backend", "ssh"]) == 0
        kernel.restart()
        assert ask(kernel, "import os; print(os.environ['WHERE'])") == "n3"


def test_a_prologue_that_fails_ends_the_start_on_the_first_host(
    ssh_hosts: SshHosts, home: Path, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    failing = "prologue=touch ~/tried; module load no-such"
    assert install("--option", failing) == 2
    assert "the prologue failed with code 127 (" in capsys.readouterr().err
    for name in ssh_hosts.names:
        run(ssh_hosts, name, "rm -f ~/tried")
    assert install("--option", failing, "--no-check") == 0
    with pytest.raises(LaunchError) as caught:
        roost.start_kernel("far").start()
    print(caught.value)
    tried = [name for name in ssh_hosts.names if "tried" in list_home(ssh_hosts, name)]
    assert len(tried) == 1
    assert str(caught.value).startswith(f"{tried[0]}: the prologue failed with code 127 (")
    assert "module: " in str(caught.value)


def test_no_command_line_has_the_prologue(ssh_hosts: SshHosts, home: Path, install: Install) -> None:
    wait = "touch ~/begun; until [ -e ~/go ]; do sleep 0.05; done; export SECRETLY=shown"
    assert install("--option", f"prologue={wait}", "--label", "rack=1", "--no-check") == 0
    found: list[str] = []

    def start() -> None:
        with roost.start_kernel("far") as kernel:
            found.append(ask(kernel, "import os; print(os.environ['SECRETLY'])"))

    thread = threading.Thread(target=start)
    thread.start()
    until_blocking(lambda: "begun" in list_home(ssh_hosts, "n1"), "the prologue has begun", 60, 0.0)
    commands: list[str] = []
    ours: list[str] = []
    try:
        for process in ssh_hosts.processes("n1"):
            with contextlib.suppress(psutil.NoSuchProcess):
                commands.append(" ".join(process.cmdline()))
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                ours.append(file.read_text(errors="replace"))
    finally:
        run(ssh_hosts, "n1", "touch ~/go")
        thread.join(allow_s(60))
    assert found == ["shown"]
    assert any("ROOST_PROGRAM" in command for command in commands), commands
    assert not [command for command in [*commands, *ours] if "SECRETLY" in command]


@pytest.mark.parametrize("folder", ["/usr/lib", "~/work", "~"])
def test_a_kernel_starts_in_the_folder_of_its_kernelspec(
    ssh_hosts: SshHosts, home: Path, install: Install, folder: str, tmp_path: Path
) -> None:
    run(ssh_hosts, "n1", "mkdir ~/work")
    assert install("--option", f"cwd={folder}", "--check-on", "n1", "--label", "rack=1") == 0
    with roost.start_kernel("far", cwd=tmp_path) as kernel:
        assert ask(kernel, "import os; print(os.getcwd())") == folder.replace("~", str(HOME))
        assert ask(kernel, "print(os.environ['HOME'])") == str(HOME)


def test_a_folder_that_is_missing_is_one_sentence(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    assert install("--option", "cwd=~/none", "--check-on", "n1") == 2
    said = "there is no folder /home/ada/none on that machine: make it, or change the option cwd"
    assert f"n1: {said}." in capsys.readouterr().err
    assert install("--option", "cwd=work") == 2
    assert "cwd = 'work' is no whole path: begin it with / or ~/." in capsys.readouterr().err
    assert install("--option", "cwd=~/none", "--no-check") == 0
    with pytest.raises(LaunchError, match=said):
        roost.start_kernel("far").start()


def test_a_kernel_starts_in_the_notebooks_folder_if_the_host_has_it(install: Install, tmp_path: Path) -> None:
    assert install("--check-on", "n1") == 0
    for folder, expected in ((Path("/usr/lib"), "/usr/lib"), (tmp_path, str(HOME))):
        with roost.start_kernel("far", cwd=folder) as kernel:
            assert ask(kernel, "import os; print(os.getcwd())") == expected


def test_hosts_that_are_down_are_named(
    install: Install, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = Path(os.environ["JUPYTER_CONFIG_DIR"]) / "jupyter_roost_config.json"
    document = json.loads(settings.read_text())
    hosts = document["RoostSshBackend"]["hosts"]
    document["RoostSshBackend"]["hosts"] = {"nowhere.invalid": {}, **hosts}
    (tmp_path / settings.name).write_text(json.dumps(document))
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path))
    assert install("--check-on", "all") == 0
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().err.splitlines())
    assert set(lines) == {"nowhere.invalid", *hosts}
    assert "there is no host nowhere.invalid" in lines["nowhere.invalid"]
    assert install("--check-on", "nowhere.invalid") == 1
    assert "no machine has answered, so nobody has tested the Python: " in capsys.readouterr().err
