"""Kernelspecs are read, listed, checked and removed."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager, NoSuchKernel
from jupyter_client.provisioning import KernelProvisionerFactory

import roost
from kit.fakes.service import FakeService, fake_service
from kit.jupyter.kernelspecs import read_kernelspec, roost_metadata, search_one_folder, write_kernelspec
from kit.machine.bad_files import BAD_FILES
from roost.placement.model import Request
from roost.provisioners import kernelspecs
from roost.scheduler.backends.registry import get_spec
from roost.scheduler.backends.spec import BackendSpec, MachineAnswer, PythonQuestion
from roost.scheduler.cli import main
from roost.scheduler.client.interpreter_probe import ProbeResult, probe
from roost.scheduler.errors import BackendUnavailable, ConfigError, LimitExceeded, NotAllowed
from roost.scheduler.messages import Event, EventKind, Kernel, Owner

Make = Callable[..., Path]
ARGV = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the user's empty folder of kernelspecs."""
    return search_one_folder(tmp_path / "data", monkeypatch)


@pytest.fixture
def make(kernels: Path) -> Make:
    """Return a function that writes a kernelspec (without `metadata`, not roost's) and returns its folder."""
    return partial(write_kernelspec, kernels)


def test_a_missing_executable_is_refused_unless_not_checked(make: Make, kernels: Path) -> None:
    make("far", ["/no/such/R", "-f", "{connection_file}"])
    with pytest.raises(ConfigError, match="/no/such/R"):
        kernelspecs.install("far", name="r-far", config={})
    assert not (kernels / "r-far").exists()
    _, found = kernelspecs.install("far", name="r-far", config={}, is_checked=False)
    assert found is None
    assert read_kernelspec(kernels / "r-far")["argv"][0] == "/no/such/R"
    findings = kernelspecs.find_problems()
    (broken,) = [
        finding for finding in findings if finding["level"] == "error" and "r-far" in finding["what"]
    ]
    assert broken["do"] == f"if its kernels do not start, change {kernels}/r-far/kernel.json"


def test_a_command_may_lie_beside_its_kernelspec(
    make: Make, kernels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["{resource_dir}/bin/helper", "{prefix}/x", "-f", "{connection_file}"]
    helper = make("helped", argv) / "bin" / "helper"
    helper.parent.mkdir()
    helper.write_text("#!/bin/sh\n")
    helper.chmod(0o755)
    _, found = kernelspecs.install("helped", name="copy", config={})
    assert found is not None
    assert found.executable == str(helper)
    assert read_kernelspec(kernels / "copy")["argv"] == argv
    assert (kernels / "copy" / "bin" / "helper").stat().st_mode & 0o111
    asked: list[str] = []

    def note(argv: Sequence[str], env: object) -> ProbeResult:
        asked.extend(argv)
        return ProbeResult()

    monkeypatch.setattr(kernelspecs, "probe", note)
    kernelspecs.find_problems(silent=("local", {}))
    assert asked == [f"{kernels}/copy/bin/helper", f"{sys.prefix}/x", "-f", "{connection_file}"]


def test_a_kernelspec_whose_kernels_the_backend_refuses_is_refused(make: Make) -> None:
    make("plain", ARGV)
    with pytest.raises(ConfigError, match="leave out encrypt = 'never'"):
        kernelspecs.install(
            "plain", name="open", config={"backend": "ssh", "encrypt": "never"}, is_checked=False
        )


def test_an_environment_without_ipykernel_is_refused(make: Make, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    python.chmod(0o755)
    make("bare", [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"])
    with pytest.raises(ConfigError, match="pip install ipykernel"):
        kernelspecs.install("bare", name="r-bare", config={})


@pytest.mark.parametrize("script", ["exit 3", "echo nonsense", "printf 7"])
def test_an_executable_that_is_not_python_is_refused(tmp_path: Path, script: str) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    found = probe([str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"], {})
    assert "does not run as a Python interpreter" in found.problem


@pytest.mark.parametrize(
    ("source", "name", "said"),
    [
        ("no-such", "a", "no kernelspec 'no-such'"),
        ("python3", "a b", "not a valid kernel name"),
        ("python3", "../a", "not a valid kernel name"),
        ("python3", "..", "not a valid kernel name"),
        ("absent", "a", "not installed"),
        ("taken", "a", "'elsewhere'"),
        ("driver-elsewhere", "a", "use `--deploy-mode client`"),
    ],
)
def test_refusals(make: Make, monkeypatch: pytest.MonkeyPatch, source: str, name: str, said: str) -> None:
    make("absent", ["sh", "{connection_file}"], metadata={"kernel_provisioner": {"provisioner_name": "yarn"}})
    make(
        "taken",
        ["sh", "{connection_file}"],
        metadata={"kernel_provisioner": {"provisioner_name": "elsewhere"}},
    )
    make(
        "driver-elsewhere",
        ["spark-submit", "--deploy-mode", "cluster", "launch_ipykernel.py", "{connection_file}"],
    )
    monkeypatch.setattr(KernelProvisionerFactory, "is_provisioner_available", _is_installed)
    with pytest.raises(ConfigError, match=said):
        kernelspecs.install(source, name=name, config={})


def _is_installed(factory: KernelProvisionerFactory, spec: Any) -> bool:
    return factory._get_provisioner_config(spec)["provisioner_name"] != "yarn"


def test_a_folder_that_cannot_be_written(kernels: Path, tmp_path: Path) -> None:
    (tmp_path / "env").write_text("a file")
    with pytest.raises(ConfigError, match="another --prefix"):
        kernelspecs.install("python3", name="p", config={}, prefix=str(tmp_path / "env"), is_checked=False)


def test_a_copy_of_a_kernelspec_of_roosts_keeps_its_request(make: Make, kernels: Path) -> None:
    config = {
        "gpus": 0.5,
        "backend": "ray",
        "backend_options": {"address": "h:1"},
        "options": {"namespace": "n"},
    }
    make("half", ["sh", "{connection_file}"], metadata=roost_metadata(**config))

    def copy(**changed: Any) -> Mapping[str, Any]:
        spec, _ = kernelspecs.install("half", name="copy", config=changed, is_checked=False, may_replace=True)
        return spec.config

    assert copy(backend="ray", cpus=1) == {**config, "cpus": 1}
    assert copy(backend="ray", gpus=1) == {**config, "gpus": 1}
    assert copy(cpus=1) == {"gpus": 0.5, "cpus": 1}, "another backend has other options"


def test_titles_that_would_be_alike_say_what_their_kernels_ask_for(make: Make) -> None:
    make("plain", ["sh", "{connection_file}"])
    titles = []
    for name, config in (
        ("one", {"backend": "local"}),
        ("two", {"backend": "local", "gpus": 1}),
        ("three", {"backend": "ray", "gpus": 1}),
        ("four", {"backend": "local", "gpus": 2}),
    ):
        spec, _ = kernelspecs.install("plain", name=name, config=config, is_checked=False)
        titles.append(spec.display_name)
    plain = titles[0]
    assert plain.endswith(" on roost")
    assert titles[1:] == [f"{plain}: 1 GPU", f"{plain}, ray: 1 GPU", f"{plain}: 2 GPUs"]


def test_remove_refuses_other_kernelspecs(make: Make, kernels: Path) -> None:
    make("mine", ["sh", "{connection_file}"])
    kernelspecs.install("python3", name="ours", config={}, is_checked=False)
    with pytest.raises(ConfigError, match="not roost's"):
        kernelspecs.remove("mine")
    with pytest.raises(ConfigError, match="no kernelspec"):
        kernelspecs.remove("none")
    assert kernelspecs.remove("ours") == str(kernels / "ours")
    assert kernelspecs.list_kernelspecs() == []


def test_doctor_finds_unknown_options(make: Make) -> None:
    provisioner = {"provisioner_name": "roost", "config": {"gpu": 1}}
    make("typo", [sys.executable, "{connection_file}"], metadata={"kernel_provisioner": provisioner})
    (found,) = [finding for finding in kernelspecs.find_problems() if "typo" in finding["what"]]
    assert found["level"] == "error"
    assert "named gpu:" in found["what"]


PROVISIONED = {"provisioner_name": "roost"}
COMMAND = {"argv": ["sh", "{connection_file}"]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        *[
            (
                json.dumps(
                    {**COMMAND, "metadata": {"kernel_provisioner": {**PROVISIONED, "config": config}}}
                ),
                "config",
            )
            for config in (None, [], [1], "x")
        ],
        *[
            (json.dumps({"argv": argv, "metadata": roost_metadata()}), "argv")
            for argv in ([1, 2], [], None, ["sh"])
        ],
        *[
            (json.dumps({**COMMAND, "env": env, "metadata": roost_metadata()}), "env is not an object")
            for env in (["A=1"], {"A": 1}, {"A": {"B": "1"}}, None)
        ],
        *[
            (json.dumps({**COMMAND, "env": {name: "1"}, "metadata": roost_metadata()}), f"named {name!r}")
            for name in ("", "A=B")
        ],
        *[
            (json.dumps({**COMMAND, name: value, "metadata": roost_metadata()}), name)
            for name, value in (("interrupt_mode", "zz"), ("display_name", 5), ("language", None))
        ],
        (json.dumps({**COMMAND, "metadata": []}), "metadata"),
        (json.dumps({**COMMAND, "metadata": {"kernel_provisioner": "roost"}}), "kernel_provisioner"),
        ("[]", "not an object"),
        ("{", "not JSON"),
    ],
)
def test_every_command_reports_a_malformed_kernelspec(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    (make("bad", ["sh", "{connection_file}"]) / "kernel.json").write_text(text)
    (found,) = [finding for finding in kernelspecs.find_problems() if "kernelspec bad" in finding["what"]]
    assert found["level"] == "error"
    assert said in found["what"]
    assert found["do"]
    assert main.main(["kernelspec", "list"]) == 0
    assert "broken" in capsys.readouterr().out
    assert main.main(["kernelspec", "list", "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)["kernelspecs"]
    assert said in listed["problem"]
    with pytest.raises(ConfigError, match=re.escape(said)):
        roost.start_kernel("bad")
    with pytest.raises(ConfigError, match=said):
        kernelspecs.install("bad", name="other", config={}, is_checked=False)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"memroy": "1GiB"}, "memroy"),
        ({"memory": "lots"}, "memory"),
        ({"encrypt": "maybe"}, "encrypt = 'maybe' is not possible: give one of auto, never, required"),
        ({"fork": "no"}, "fork"),
        ({"backend": "mars"}, "mars"),
        ({"backend": []}, "backend"),
        ({"environment": ["*"]}, "environment"),
        ({"launch_timeout": -1}, "above 0"),
        ({"backend_options": None}, "backend_options = None is not an object"),
        ({"backend_options": []}, "backend_options = [] is not an object"),
        ({"enforce": 1}, "enforce = 1 is not possible: give one of auto, required"),
    ],
)
def test_install_refuses_options_that_a_start_would_refuse(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], config: dict[str, Any], said: str
) -> None:
    make("typo", ["sh", "{connection_file}"], metadata=roost_metadata(**config))
    (found,) = [finding for finding in kernelspecs.find_problems() if "kernelspec typo" in finding["what"]]
    assert found["level"] == "error"
    assert said in found["what"]
    assert main.main(["kernelspec", "list", "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)["kernelspecs"]
    assert said in listed["problem"]
    with pytest.raises(ConfigError, match=re.escape(said)):
        roost.start_kernel("typo")


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"KERNEL_MEMORY": "lots"}, "KERNEL_MEMORY"),
        ({"KERNEL_CPUS": "-3"}, "KERNEL_CPUS"),
        ({"KERNEL_LAUNCH_TIMEOUT": "x"}, "KERNEL_LAUNCH_TIMEOUT"),
        ({"KERNEL_USERNAME": "bob"}, "KERNEL_USERNAME"),
    ],
)
def test_variables_that_a_start_would_refuse_are_a_problem(
    make: Make, env: dict[str, str], said: str
) -> None:
    make("ours", ["sh", "{connection_file}"], env=env, metadata=roost_metadata())
    make("other", ["sh", "{connection_file}"], env=env)
    (spec,) = kernelspecs.list_kernelspecs()
    assert said in kernelspecs.find_outlook_of(spec).reason
    with pytest.raises(ConfigError, match=said):
        kernelspecs.install("other", name="a", config={}, is_checked=False)
    spec = replace(spec, env={"KERNEL_CPUS": "${N_CPUS}"})  # the application may have this variable
    assert kernelspecs.find_outlook_of(spec).kind != "never"


FULL = "no node has room now for 8 GPUs (a: needs 8 GPUs, 0 free)"
THERE = {"placement": {"node_id": "a"}, "is_never": False}
ONE = LimitExceeded(
    "with this one ada would have 9 GPUs, and max_gpus_per_user allows 8: ask for less, or stop another"
)


@pytest.mark.parametrize(
    ("answer", "level", "what", "do"),
    [
        (THERE, "ok", "greedy can start kernels", ""),
        (
            {"placement": None, "is_never": True, "reason": "no node could ever hold 8 GPUs"},
            "error",
            "greedy: no node could ever hold 8 GPUs",
            "kernelspec remove greedy",
        ),
        (
            LimitExceeded("one kernel asks for 8 GPUs: ask for less", is_never=True),
            "error",
            "greedy: one",
            "ask for",
        ),
        (
            LimitExceeded("ada has 1 kernel, and a cap allows 1: stop one first"),
            "not now",
            "greedy can start no kernel now: ada has 1 kernel, and a cap allows 1",
            "stop one first",
        ),
        (NotAllowed("user 'ada' may not start kernels here"), "error", "may not start", "ask the operator"),
        (
            ConfigError("/p.py is broken", policy="mine", setting="c.RoostScheduler.default_policy"),
            "error",
            "greedy: /p.py is broken",
            "correct c.RoostScheduler.default_policy, or the file that it names; or name another policy in kernel.json",
        ),
        (
            ConfigError("unknown policy 'x'", policy="x", setting=""),
            "error",
            "greedy: unknown policy 'x'",
            "name another policy in kernel.json",
        ),
        (ConfigError("no queue x"), "error", "greedy: no queue x", "kernelspec remove greedy"),
        (
            {
                "placement": None,
                "is_never": False,
                "reason": FULL,
                "others": {"text": "3 of 4 GPUs are held by tasks"},
            },
            "not now",
            f"greedy can start no kernel now: {FULL}",
            "3 of 4 GPUs are held by tasks",
        ),
        (
            {
                "placement": None,
                "is_never": True,
                "is_policys_refusal": True,
                "reason": "policy none gives no node for 1 GPU: it is Monday",
            },
            "error",
            "greedy: policy none gives no node for 1 GPU: it is Monday",
            "correct this policy, or name another one in c.RoostScheduler.default_policy",
        ),
        (
            ONE,
            "not now",
            "would have 9 GPUs, and max_gpus_per_user allows 8",
            "ask for less, or stop another",
        ),
        (BackendUnavailable("Ray is away."), "not asked", "greedy may start kernels: Ray is away", ""),
    ],
)
def test_the_finding_says_whether_a_kernel_can_never_start_or_not_now(
    make: Make, service: FakeService, answer: Any, level: str, what: str, do: str
) -> None:
    """Only a kernelspec that can never start kernels is an error, and only then is its removal a remedy."""
    make("greedy", ["sh", "{connection_file}"], metadata=roost_metadata(gpus=8))
    service.answers["explain"] = answer if isinstance(answer, Exception) else lambda _: {"decision": answer}
    (found,) = [finding for finding in kernelspecs.find_problems() if "greedy" in finding["what"]]
    assert found["level"] == level
    assert what in found["what"]
    assert do in found["do"]
    assert ("remove" in found["do"]) == ("remove" in do)
    assert [asked.request.gpus for asked in service.called("explain")] == [8]


def test_what_keeps_several_kernelspecs_from_starting_is_said_once(make: Make, service: FakeService) -> None:
    for name in ("greedy-a", "greedy-b"):
        make(name, ["sh", "{connection_file}"], metadata=roost_metadata(gpus=8))

    async def away(_: object) -> None:
        raise BackendUnavailable("Ray is away.")

    service.answers["explain"] = away
    (found,) = [finding for finding in kernelspecs.find_problems() if "greedy" in finding["what"]]
    assert found["what"] == "kernelspecs greedy-a, greedy-b may start kernels: Ray is away"


LOST = "no agent on a: No module named 'zmq'"
FAILED = {"kind": "failed", "detail": LOST}
RAN = {"kind": "running"}


@pytest.mark.parametrize(
    ("events", "level"),
    [
        ([FAILED], "not now"),
        ([FAILED, RAN], "ok"),
        ([RAN, FAILED], "not now"),
        ([{**FAILED, "name": "another"}], "ok"),
        ([{**FAILED, "age_s": 3600.0}], "ok"),
        ([{**FAILED, "node_id": ""}], "ok"),
    ],
    ids=["failed", "failed, then ran", "ran, then failed", "another", "changed since", "never placed"],
)
def test_a_start_that_failed_lately_is_named(
    make: Make, service: FakeService, events: list[dict[str, Any]], level: str
) -> None:
    make("greedy", ["sh", "{connection_file}"], metadata=roost_metadata(gpus=8))
    service.answers["explain"] = lambda _: {"decision": THERE}
    service.answers["events"] = lambda _: {"events": [_event(**event) for event in events]}
    (found,) = [finding for finding in kernelspecs.find_problems() if "greedy" in finding["what"]]
    assert found["level"] == level
    assert ("No module named 'zmq'" in found["what"]) == (level != "ok")


def _event(
    kind: EventKind, detail: str = "", name: str = "greedy", age_s: float = 0.0, node_id: str = "a"
) -> dict[str, Any]:
    kernel = Kernel(
        id="k", launch_id="l", state="exited", owner=Owner(user="ada"), request=Request(), node_id=node_id,
        kernel_name=name,
    )  # fmt: skip
    return dataclasses.asdict(Event(kind=kind, at=time.time() - age_s, kernel=kernel, detail=detail))


def test_a_kernelspec_whose_scheduler_does_not_run_is_not_asked(
    make: Make, service: FakeService, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its Python here says nothing about the cluster's nodes. The finding says which command asks."""
    monkeypatch.setenv("ROOST_SERVICE_PYTHON", "/a/python/with/ray")
    metadata = roost_metadata(gpus=8, backend="ray", backend_options={"address": "h:1"})
    make("far", ["/only/there/python", "{connection_file}"], metadata=metadata)
    (found,) = [finding for finding in kernelspecs.find_problems() if "far" in finding["what"]]
    assert found["level"] == "not asked"
    assert found["what"] == "kernelspec far may start kernels: no service of ray with address=h:1 runs"
    assert found["do"] == "run `roost doctor --backend ray --backend-option address=h:1`"
    assert service.called("explain") == []
    assert main.main(["kernelspec", "list"]) == 0
    assert "not asked" in capsys.readouterr().out


def test_only_the_kernelspecs_of_a_silent_scheduler_are_not_asked(
    make: Make, service: FakeService, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scheduler of this machine and those of other addresses may well answer."""
    monkeypatch.setenv("ROOST_SERVICE_PYTHON", "/a/python/with/ray")
    argv = ["sh", "{connection_file}"]
    make("here", argv, metadata=roost_metadata(gpus=1))
    make("unnamed", argv, metadata=roost_metadata(gpus=1, backend="ray"))
    make("near", argv, metadata=roost_metadata(gpus=1, backend="ray", backend_options={"address": "h:1"}))
    make("far", argv, metadata=roost_metadata(gpus=1, backend="ray", backend_options={"address": "h:2"}))
    service.answers["explain"] = lambda _: {"decision": THERE}
    with fake_service(backend="ray", address="h:1") as other:
        other.answers["explain"] = lambda _: {
            "decision": {**THERE, "agent": {"has_run": True, "problem": ""}}
        }
        other.answers["events"] = lambda _: {"events": [_event("running", name="near")]}
        found = kernelspecs.find_problems(silent=("ray", {}))
    said = {each["what"].split()[1]: each["what"] for each in found if each["what"].startswith("kernelspec")}
    assert said["here"] == "kernelspec here can start kernels"
    assert said["near"] == "kernelspec near can start kernels"
    assert "nobody has asked the scheduler" in said["unnamed"]
    assert said["far"].endswith("no service of ray with address=h:2 runs, only for h:1")


def test_a_kernelspec_without_an_address_is_told_of_the_cluster_that_is_served(
    make: Make, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has named the address on the command line believes that the kernelspec has it too."""
    monkeypatch.setenv("ROOST_SERVICE_PYTHON", "/a/python/with/ray")
    make("unnamed", ["sh", "{connection_file}"], metadata=roost_metadata(gpus=1, backend="ray"))
    with fake_service(backend="ray", address="h:1"):
        (found,) = [each for each in kernelspecs.find_problems() if "unnamed" in each["what"]]
    assert found["what"].endswith("no service of ray runs, only for h:1")
    assert found["do"] == (
        'if it is for that cluster, write "backend_options": {"address": "h:1"} into its kernel.json; '
        "else run `roost doctor --backend ray`"
    )


@pytest.mark.parametrize(
    ("agent", "level", "said", "do"),
    [
        (
            {"has_run": True, "problem": ""},
            "not asked",
            "the service knows no start of such a kernel, so nobody has seen the Python there",
            "start one",
        ),
        (
            {"has_run": False, "problem": ""},
            "not asked",
            "no agent of roost runs on a yet",
            "`roost up --backend ray",
        ),
        ({"has_run": False, "problem": LOST}, "not now", LOST, "`roost up --backend ray"),
    ],
)
def test_a_kernelspec_of_a_cluster_depends_on_the_agent_of_its_node(
    make: Make, runtime_dir: Path, agent: dict[str, Any], level: str, said: str, do: str
) -> None:
    make("far", ["/only/there/python", "{connection_file}"], metadata=roost_metadata(gpus=1, backend="ray"))
    with fake_service(backend="ray") as service:
        service.answers["explain"] = lambda _: {"decision": {**THERE, "agent": agent}}
        (found,) = [finding for finding in kernelspecs.find_problems() if "far" in finding["what"]]
    assert found["level"] == level
    assert said in found["what"]
    assert do in found["do"]


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (["/no/such/R"], "/no/such/R is no executable here"),
        (
            [sys.executable, "-m", "no_such_kernel"],
            "has no module no_such_kernel: install it, or correct argv.",
        ),
        ([sys.executable, "-m", "json.tool"], ""),
        ([sys.executable, "kernel.py"], ""),
        (["sh", "-m", "no_such_kernel"], ""),
    ],
)
def test_a_command_that_cannot_be_run_is_a_problem(argv: list[str], problem: str) -> None:
    found = probe([*argv, "{connection_file}"], {**os.environ}).problem
    assert problem in found
    assert bool(problem) == bool(found)


def test_a_machine_without_any_kernelspec_gets_the_command_that_helps() -> None:
    class NoSpecs(KernelSpecManager):  # type: ignore[misc]
        def find_kernel_specs(self) -> dict[str, str]:
            return {}

        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
            raise NoSuchKernel(kernel_name)

    with pytest.raises(
        ConfigError, match="no kernelspec 'python3', nor any other: run `pip install ipykernel`"
    ):
        kernelspecs.read_kernelspec(NoSpecs(), "python3")


def _install(source: str = "plain", name: str = "r", **options: Any) -> None:
    kernelspecs.install(source, name=name, config={}, is_checked=False, **options)


def test_a_copy_has_the_files_and_the_links_inside_of_the_folder(make: Make, kernels: Path) -> None:
    folder = make("plain", ARGV)
    (folder / "logo.svg").write_text("<svg/>")
    (folder / "logo-32x32.png").symlink_to("logo.svg")
    (folder / "bin").mkdir()
    (folder / "bin" / "run").write_text("#!/bin/sh")
    (folder / "bin" / "run").chmod(0o755)
    (folder / "bin" / "absolute").symlink_to(folder / "logo.svg")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "x.pyc").write_text("x")
    _install()
    copy = kernels / "r"
    assert (copy / "logo-32x32.png").read_text() == (copy / "bin" / "absolute").read_text() == "<svg/>"
    assert not any(path.is_symlink() for path in copy.rglob("*"))
    assert os.access(copy / "bin" / "run", os.X_OK)
    assert not (copy / "__pycache__").exists()
    assert "roost" in (copy / "kernel.json").read_text()


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("link", "is a link to a file outside of"),
        ("loop", "is a link to nothing"),
        ("pipe", "cannot be read: it is a pipe"),
        ("sparse", "have more than 10 MiB together"),
    ],
)
def test_a_file_that_cannot_be_copied_is_one_sentence(
    make: Make, kernels: Path, kind: str, said: str
) -> None:
    BAD_FILES[kind](make("plain", ARGV) / "logo.svg")
    with pytest.raises(ConfigError, match=said) as refused:
        _install()
    assert "\n" not in str(refused.value)
    assert sorted(path.name for path in kernels.iterdir()) == ["plain"], "nothing is left of the copy"


@pytest.mark.parametrize("target", ["/dev/zero", "/etc", "nothing", "."])
def test_a_link_that_leaves_the_folder_is_refused(make: Make, kernels: Path, target: str) -> None:
    (make("plain", ARGV) / "logo.svg").symlink_to(target)
    with pytest.raises(ConfigError, match="is a link"):
        _install()
    assert not (kernels / "r").exists()


def test_too_many_files_are_refused(make: Make) -> None:
    folder = make("plain", ARGV)
    for number in range(1_001):
        (folder / str(number)).touch()
    with pytest.raises(ConfigError, match="more than 1,000 files"):
        _install()


def test_a_name_or_prefix_that_no_folder_can_have_is_refused(make: Make, tmp_path: Path) -> None:
    make("plain", ARGV)
    with pytest.raises(ConfigError, match="300 letters is too long"):
        _install(name="a" * 300)
    with pytest.raises(ConfigError, match="cannot be the name of a folder"):
        _install(prefix=f"{tmp_path}/\0")
    with pytest.raises(ConfigError, match="cannot be written"):
        _install(prefix=f"{tmp_path}/{'a' * 300}")


FAR = "/opt/env/bin/python"
FINE = ProbeResult(executable=FAR, is_ipykernel=True, python="3.11.7", ipykernel="7.4.0", has_curve=True)


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> list[MachineAnswer]:
    """Let the backend ssh have the machines with these answers, which are asked in place of hosts."""
    answers: list[MachineAnswer] = []

    def answer(settings: object, question: PythonQuestion, report: Callable[..., object]) -> None:
        for each in answers:
            report(each)

    monkeypatch.setitem(sys.modules, "a_lab", SimpleNamespace(probe=answer))
    spec = replace(get_spec("ssh"), probe="a_lab:probe")

    def find(name: str) -> BackendSpec:
        return spec if name == "ssh" else get_spec(name)

    for module in ("scheduler.client.interpreter_probe", "provisioners.kernelspecs"):
        monkeypatch.setattr(f"roost.{module}.get_spec", find)
    return answers


def test_the_python_of_machines_is_tested_there(
    kernels: Path, lab: list[MachineAnswer], capsys: pytest.CaptureFixture[str]
) -> None:
    lab[:] = [
        MachineAnswer(machine="n1", took_s=0.1, problem="ssh cannot reach n1: check it"),
        MachineAnswer(machine="n2", took_s=1.23, result=FINE),
    ]
    command = ["kernelspec", "install", "--backend", "ssh", "--name", "far", "--python", FAR]
    assert main.main(command) == 0
    document = read_kernelspec(kernels / "far")
    assert document["argv"] == [FAR, *ARGV[1:]]
    assert document["metadata"]["supported_encryption"] == ["curve"]
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        "n1  ssh cannot reach n1: check it",
        "n2  Python 3.11.7, ipykernel 7.4.0, 1.2 s",
    ]
    assert f"  command     {FAR}" in captured.out.splitlines()
    assert main.main([*command, "--replace", "--json"]) == 0
    machines = json.loads(capsys.readouterr().out)["machines"]
    assert [(each["machine"], bool(each["result"])) for each in machines] == [("n1", False), ("n2", True)]


@pytest.mark.parametrize(("count", "lines"), [(1, 0), (2, 2), (3, 3)])
def test_each_machine_that_fails_has_one_sentence(
    kernels: Path, lab: list[MachineAnswer], capsys: pytest.CaptureFixture[str], count: int, lines: int
) -> None:
    problem = f"{FAR} is no executable here: install it."
    bad = ProbeResult(problem=problem)
    lab[:] = [MachineAnswer(machine=f"n{n}", took_s=0.1, result=bad, problem=problem) for n in range(count)]
    assert main.main(["kernelspec", "install", "--backend", "ssh", "--name", "far", "--python", FAR]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[:-1] == [f"n{n}  {problem}" for n in range(lines)]
    assert said[-1].startswith("roost: n0: " if count == 1 else "roost: these kernels cannot start on n0")
    assert not (kernels / "far").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--python", "python3"], "--python = 'python3' is no whole path: begin it with /."),
        (["--python", "bin/python"], "is no whole path"),
        (["--python", "/a\nb"], "is no whole path"),
        (
            ["--check-on", "n1"],
            "the backend local cannot test a Python on its machines: leave out --check-on",
        ),
        (["--python", "/x", "--from", "other"], "--python needs a kernelspec of ipykernel"),
    ],
)
def test_a_python_that_cannot_be_meant_is_refused(
    make: Make, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    make("other", ["R", "{connection_file}"])
    assert main.main(["kernelspec", "install", "--name", "far", *options]) == 2
    assert said in capsys.readouterr().err


def test_a_python_on_this_machine_is_tested_here(kernels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["kernelspec", "install", "--name", "far", "--python", FAR]) == 2
    assert f"{FAR} is no executable here" in capsys.readouterr().err
    assert main.main(["kernelspec", "install", "--name", "far", "--python", FAR, "--no-check"]) == 0
    assert read_kernelspec(kernels / "far")["argv"][0] == FAR


def test_the_doctor_asks_a_machine_and_the_list_asks_none(
    make: Make, lab: list[MachineAnswer], runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("far", [FAR, *ARGV[1:]], metadata=roost_metadata(backend="ssh"))
    make("farther", [FAR, *ARGV[1:]], metadata=roost_metadata(backend="ssh"))

    def find(level: str) -> list[str]:
        return [each["what"] for each in kernelspecs.find_problems() if each["level"] == level]

    lab[:] = [MachineAnswer(machine="n1", took_s=0.1, result=FINE)]
    assert find("warning") == []
    problem = f"{FAR} cannot import ipykernel (ModuleNotFoundError: No module named 'ipykernel'): `pip`."
    lab[:] = [MachineAnswer(machine="n1", took_s=0.1, result=ProbeResult(problem=problem), problem=problem)]
    what = f"n1: {problem.rpartition(': ')[0]}"
    assert find("warning") == [f"kernelspec far: {what}", f"kernelspec farther: {what}"]
    lab[:] = [MachineAnswer(machine="n1", took_s=9.0, problem="ssh cannot reach n1")]
    assert find("warning") == []
    assert find("error") == []
    monkeypatch.delitem(sys.modules, "a_lab")  # who asks a machine fails now
    assert {kernelspecs.find_outlook_of(spec).kind for spec in kernelspecs.list_kernelspecs()} == {
        "not asked"
    }


@pytest.mark.parametrize(("is_fine", "level"), [(True, "ok"), (False, "not asked")])
def test_a_kernelspec_that_a_machine_has_tested_can_start(
    make: Make, lab: list[MachineAnswer], runtime_dir: Path, is_fine: bool, level: str
) -> None:
    make("far", [FAR, *ARGV[1:]], metadata=roost_metadata(backend="ssh"))
    bad = ProbeResult(problem="It fails.")
    lab[:] = [
        MachineAnswer(
            machine="n1", took_s=0.1, result=FINE if is_fine else bad, problem="" if is_fine else "It fails."
        )
    ]
    with fake_service(backend="ssh") as service:
        agent = {"has_run": False, "problem": ""}
        service.answers["explain"] = lambda _: {"decision": {**THERE, "agent": agent}}
        found = {each["level"] for each in kernelspecs.find_problems() if "kernelspec far " in each["what"]}
    assert found == {level}


def test_a_kernelspec_whose_node_has_left_lately_is_not_broken(make: Make, lab: list[MachineAnswer]) -> None:
    make("far", [FAR, *ARGV[1:]], metadata=roost_metadata(backend="ssh"))
    lab[:] = [MachineAnswer(machine="n1", took_s=0.1, result=FINE)]
    decision = {**THERE, "placement": None, "is_never": True, "reason": "no node could ever hold 1 GPU"}
    for left, level in (("", "error"), ("lately left the cluster: b 20 s ago", "not now")):
        with fake_service(backend="ssh") as service:
            service.answers["explain"] = lambda _, left=left: {"decision": {**decision, "left": left}}
            found = [each for each in kernelspecs.find_problems() if "kernelspec far" in each["what"]]
        assert [each["level"] for each in found] == [level]
        assert left in found[0]["what"]
