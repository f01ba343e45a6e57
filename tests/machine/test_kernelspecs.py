"""Kernelspecs are installed after a check with their real Python."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jupyter_client.kernelspec import KernelSpecManager

from kit.fakes.service import FakeService, fake_service
from kit.jupyter.kernelspecs import read_kernelspec, roost_metadata, search_one_folder, write_kernelspec
from roost.placement import Request
from roost.provisioners import kernelspecs
from roost.scheduler.backends.registry import get_spec
from roost.scheduler.cli import main
from roost.scheduler.client.client import disconnect
from roost.scheduler.config.section import Section
from roost.scheduler.errors import BackendUnavailable, ConfigError

Make = Callable[..., Path]


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the user's empty folder of kernelspecs."""
    return search_one_folder(tmp_path / "data", monkeypatch)


@pytest.fixture
def make(kernels: Path) -> Make:
    """Return a function that writes a kernelspec (without `metadata`, not roost's) and returns its folder."""
    return partial(write_kernelspec, kernels)


@pytest.fixture
def service(runtime_dir: Path) -> Iterator[FakeService]:
    with fake_service() as service:
        yield service
        disconnect()


def test_install_copies_the_python_kernelspec_and_reports_its_features(kernels: Path) -> None:
    config = {"backend": "local", "gpus": 1, "memory": "8GiB"}
    made, found = kernelspecs.install("python3", name="Roost-GPU", config=config, display_name="GPU")
    assert found is not None
    assert found.is_ipykernel
    assert found.executable == sys.executable
    assert found.ipykernel
    assert found.problem == ""
    document = read_kernelspec(kernels / "roost-gpu")
    assert document["argv"][0] == sys.executable
    assert document["metadata"]["kernel_provisioner"] == {"provisioner_name": "roost", "config": config}
    assert document["metadata"].get("supported_encryption") == (["curve"] if found.has_curve else None)
    assert (kernels / "roost-gpu" / "logo-svg.svg").is_file()
    spec = KernelSpecManager().get_kernel_spec("roost-gpu")
    assert spec.display_name == "GPU"
    assert [known.name for known in kernelspecs.list_kernelspecs()] == ["roost-gpu"] == [made.name]


def test_encryption_is_declared_only_if_ipykernel_has_it(make: Make, kernels: Path) -> None:
    argv = [sys.executable, "-m", "json.tool", "{connection_file}"]
    make("other", argv, metadata={"supported_encryption": ["curve"], "mine": 1}, env={"A": "${HOME}/a"})
    _, found = kernelspecs.install("other", name="r-other", config={})
    assert found is not None
    assert not found.is_ipykernel
    assert not found.can_fork
    document = read_kernelspec(kernels / "r-other")
    assert document["metadata"]["supported_encryption"] == [
        "curve"
    ]  # unknown without a check, and therefore kept
    assert document["metadata"]["mine"] == 1
    assert document["env"] == {"A": "${HOME}/a"}
    assert (kernels / "r-other" / "logo-64x64.png").read_bytes() == b"png"


@pytest.mark.parametrize("starts", ["script", "env", "module"])
def test_install_and_doctor_name_the_command_to_write(make: Make, tmp_path: Path, starts: str) -> None:
    """A script, `env` and `-m ipykernel` are executed. They may do more than start the interpreter."""
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\nexport LOADED=1\nexec {sys.executable} "$@"\n')
    script.chmod(0o755)
    launcher = ["-m", "ipykernel_launcher", "-f", "{connection_file}"]
    argv, reason = {
        "script": ([str(script), *launcher], f"{script} is not the Python interpreter itself"),
        "env": (["env", "LOADED=1", sys.executable, *launcher], "env starts the interpreter"),
        "module": ([sys.executable, "-m", "ipykernel", *launcher[2:]], "its command runs ipykernel"),
    }[starts]
    make("wrapped", argv)
    _, found = kernelspecs.install("wrapped", name="roosted", config={})
    assert found is not None
    assert reason in found.why_not_forked
    command = f"write {sys.executable} -m ipykernel_launcher in argv"
    assert command in found.why_not_forked
    findings = kernelspecs.find_problems(silent=("local", {}))
    warning = next(each for each in findings if each["level"] == "warning" and "roosted" in each["what"])
    assert reason in warning["what"]
    assert command in warning["do"]
    kernelspecs.install("wrapped", name="roosted", config={"fork": False}, may_replace=True)
    findings = kernelspecs.find_problems(silent=("local", {}))
    assert not [each for each in findings if each["level"] == "warning" and "roosted" in each["what"]]


def test_an_existing_name_is_kept_without_replace(make: Make, kernels: Path) -> None:
    make("mine", ["/bin/sh", "{connection_file}"])
    with pytest.raises(ConfigError, match="--replace"):
        kernelspecs.install("python3", name="mine", config={})
    assert read_kernelspec(kernels / "mine")["argv"][0] == "/bin/sh"
    kernelspecs.install("python3", name="mine", config={"cpus": 1}, may_replace=True)
    assert read_kernelspec(kernels / "mine")["metadata"]["kernel_provisioner"]["config"] == {"cpus": 1}
    assert [path.name for path in kernels.iterdir()] == ["mine"]
    kernelspecs.install("mine", name="mine", config={"cpus": 2}, may_replace=True)  # replaces itself
    assert read_kernelspec(kernels / "mine")["metadata"]["kernel_provisioner"]["config"] == {"cpus": 2}


def test_prefix(kernels: Path, tmp_path: Path) -> None:
    made, _ = kernelspecs.install("python3", name="p", config={}, prefix=str(tmp_path / "env"))
    assert made.folder == str(tmp_path / "env" / "share" / "jupyter" / "kernels" / "p")
    with pytest.raises(ConfigError, match="--replace"):  # even where Jupyter does not search
        kernelspecs.install("python3", name="p", config={}, prefix=str(tmp_path / "env"))
    kernelspecs.install("python3", name="p", config={}, is_checked=False)  # for the user
    with pytest.raises(ConfigError, match="There is a kernelspec 'p'"):
        kernelspecs.install("python3", name="p", config={}, is_checked=False)
    kernelspecs.install("python3", name="p", config={}, prefix=str(tmp_path / "other"), is_checked=False)
    with pytest.raises(ConfigError, match="--prefix names no folder"):
        kernelspecs.install("python3", name="p", config={}, prefix="")


def test_install_and_doctor_refuse_the_same(
    make: Make, service: FakeService, capsys: pytest.CaptureFixture[str]
) -> None:
    """`kernelspec install` and `doctor` refuse the same options. The fake service knows no custom policy."""
    wrong = {
        "policy": ({"policy": "gone"}, ["--policy", "gone"], "is not known"),
        "backend": ({"backend": "far"}, ["--backend", "far"], "no backend 'far'"),
        "option": ({"backend_options": {"gpus": 1}}, ["--backend-option", "gpus=1"], "'gpus'"),
    }
    for name, (config, given, said) in wrong.items():
        make(
            name, [sys.executable, "-m", "json.tool", "{connection_file}"], metadata=roost_metadata(**config)
        )
        assert main.main(["kernelspec", "install", "--name", f"new-{name}", *given]) == 2
        assert said in capsys.readouterr().err
    make(
        "shipped",
        [sys.executable, "-m", "json.tool", "{connection_file}"],
        metadata=roost_metadata(policy="pack"),
    )

    def explain(asked: Any) -> dict[str, Any]:
        if asked.request.policy == "gone":
            raise ConfigError("policy 'gone' is not known.", policy="gone", setting="")
        return {"decision": {"placement": {"node_id": "a"}, "is_never": False}}

    service.answers["explain"] = explain
    found = {finding["what"].partition(":")[0]: finding for finding in kernelspecs.find_problems()}
    for name, (_, _, said) in wrong.items():
        assert said in found[f"kernelspec {name}"]["what"]
        assert found[f"kernelspec {name}"]["level"] == "error"
    assert found["kernelspec shipped can start kernels"]["level"] == "ok"
    assert [asked.names for asked in service.called("check_policies")] == [["gone"]]
    assert len(service.called("explain")) == 2
    unasked = {finding["what"] for finding in kernelspecs.find_problems(silent=("local", {}))}
    silent = "nobody has asked the scheduler, which does not answer"
    assert f"kernelspecs policy, shipped may start kernels: {silent}" in unasked
    assert len(service.called("explain")) == 2
    assert not [spec.name for spec in kernelspecs.list_kernelspecs() if spec.name.startswith("new-")]


def test_install_says_what_no_node_can_hold(
    kernels: Path, service: FakeService, capsys: pytest.CaptureFixture[str]
) -> None:
    decision = {"placement": None, "is_never": True, "reason": "no node could ever hold 900 CPUs"}
    service.answers["explain"] = lambda asked: {"decision": decision}
    assert main.main(["kernelspec", "install", "--name", "huge", "--cpus", "900"]) == 0
    assert "No kernel of it starts: no node could ever hold 900 CPUs." in capsys.readouterr().err
    assert [spec.name for spec in kernelspecs.list_kernelspecs()] == ["huge"]


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        (None, 0, ""),
        (ConfigError("the pod template has no image."), 2, "the pod template has no image."),
        (
            BackendUnavailable("nobody answers"),
            0,
            "The cluster has not checked these kernels: nobody answers",
        ),
    ],
)
def test_install_asks_the_cluster(
    kernels: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    answer: Exception | None,
    status: int,
    said: str,
) -> None:
    asked = []

    def check(settings: Section, request: Request) -> None:
        asked.append(request.cpus)
        if answer is not None:
            raise answer

    monkeypatch.setitem(sys.modules, "a_cluster", SimpleNamespace(check=check))
    spec = replace(get_spec("local"), check="a_cluster:check")
    monkeypatch.setattr("roost.scheduler.client.service_checks.get_spec", lambda _: spec)
    assert main.main(["kernelspec", "install", "--name", "ours", "--cpus", "3"]) == status
    assert asked == [3]
    assert said in capsys.readouterr().err
    assert [spec.name for spec in kernelspecs.list_kernelspecs()] == ["ours"] * (not status)
    assert main.main(["kernelspec", "install", "--name", "unchecked", "--no-check"]) == 0
    assert len(asked) == 1


def test_only_an_agent_of_many_kernels_forks_them(
    kernels: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for has_agent_per_kernel, says in ((False, "forked from a warm process"), (True, "from its command")):
        spec = replace(get_spec("local"), has_agent_per_kernel=has_agent_per_kernel)
        monkeypatch.setattr("roost.scheduler.cli.jupyter.get_spec", lambda _, spec=spec: spec)
        assert main.main(["kernelspec", "install", "--name", "ours", "--replace"]) == 0
        assert says in capsys.readouterr().out


def test_a_kernelspec_can_name_its_cluster(kernels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    address = ["--backend", "ray", "--backend-option", "address=192.0.2.1:6379"]
    assert main.main(["kernelspec", "install", "--name", "far", *address]) == 0
    config = read_kernelspec(kernels / "far")["metadata"]["kernel_provisioner"]["config"]
    assert config == {"backend": "ray", "backend_options": {"address": "192.0.2.1:6379"}}
    capsys.readouterr()
    assert main.main(["kernelspec", "list"]) == 0
    assert "ray 192.0.2.1:6379" in capsys.readouterr().out
    assert main.main(["kernelspec", "install", "--name", "odd", *address[:3], "python=/x"]) == 2
    assert "only the address" in capsys.readouterr().err


def test_the_command(kernels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [
        "kernelspec",
        "install",
        "--name",
        "ours",
        "--gpus",
        "0.5",
        "--memory",
        "8GiB",
        "--label",
        "a=b",
        "--near",
        "c=d",
        "--tolerate",
        "lab",
        "--resource",
        "licence=2",
        "--enforce",
        "required",
    ]
    assert main.main(argv) == 0
    assert str(kernels / "ours") in capsys.readouterr().out
    config = read_kernelspec(kernels / "ours")["metadata"]["kernel_provisioner"]["config"]
    wishes = {"labels": {"a": "b"}, "near": {"c": "d"}, "tolerates": ["lab"], "resources": {"licence": 2}}
    assert config == {"backend": "local", "gpus": 0.5, "memory": "8GiB", "enforce": "required", **wishes}
    assert main.main(["kernelspec", "list"]) == 0
    assert "0.5 GPU, 8 GiB, 2 licence," in capsys.readouterr().out
    assert main.main(["kernelspec", "list", "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)["kernelspecs"]
    assert (listed["name"], listed["config"], listed["problem"]) == ("ours", config, "")
    assert main.main(["kernelspec", "install", "--option", "queue=a", "--name", "x"]) == 2
    assert "the backend local has no options for requests" in capsys.readouterr().err
    assert main.main(["kernelspec", "install", "--name", ""]) == 2
    assert "'' is not a valid kernel name" in capsys.readouterr().err
    assert main.main(["kernelspec", "install", "--gpus", "1.5", "--name", "x"]) == 2
    assert "1.5" in capsys.readouterr().err
    assert main.main(["kernelspec", "remove", "ours", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"][0]["name"] == "ours"
