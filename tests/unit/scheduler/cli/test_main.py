"""The `roost` command with a stub client, without a scheduler."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_service import fake_service

import roost
from roost.launchers.protocol.messages import Connection, KernelProcess, Owner
from roost.launchers.protocol.shared_values import KernelUse
from roost.placement import Device, Node, Request, Snapshot, get_policy
from roost.scheduler.cli import explain, main, tables
from roost.scheduler.client import service_connection
from roost.scheduler.client.service_connection import no_answer
from roost.scheduler.errors import BackendUnavailable, KernelDied, RoostError, UnknownKernel
from roost.scheduler.policies.explain import build_explanation
from roost.scheduler.service.launch import service_folder
from roost.scheduler.service.messages import Kernel

ADA = Owner(user="ada", application="lab")
GPU = Request(gpus=0.25, memory_bytes=8 << 30, cpus=2)
NODES = [
    Node(
        id="big",
        cpus=64,
        memory_bytes=512 << 30,
        cpus_promised=2.5,
        memory_promised_bytes=8 << 30,
        gpus_promised=0.25,
        cpus_used=16,
        kernels=3,
        metrics_age_s=0.5,
        devices=(Device(id="GPU-0", model="H200", memory_bytes=141 << 30, promised=0.25, used=0.5),),
    ),
    Node(id="small", cpus=4, memory_bytes=16 << 30, is_draining=True),
]


def kernel(id_: str, **values: Any) -> Kernel:
    """A kernel in a list."""
    known = {
        "launch_id": "l",
        "state": "running",
        "owner": ADA,
        "request": GPU,
        "created_at": time.time() - 90,
    }
    return Kernel(id=id_, **{**known, **values})


PROCESS = KernelProcess(
    kernel_id="aaaaaaaa-1", launch_id="l", lease_id="", pid=7, process_started_at=0.0, how="exec",
    connection=Connection(key="s3cret"), launched_at=0.0,
)  # fmt: skip
RUNNING = kernel("aaaaaaaa-1", node_id="big", device_ids=("GPU-0",), process=PROCESS)
SECOND = kernel("aaaaaaaa-2", node_id="small", request=Request())
QUEUED = kernel("bbbb-1", state="queued", position=1, waits_for="0.25 GPU on big: 0 free")


class Answer:
    """A call with an answer or an error."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def result(self, timeout: float | None = None) -> Any:
        assert timeout is not None
        assert timeout < 120
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class StubClient:
    """A client without a service. Every answer raises `error` if it is set."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.asked: list[tuple[Any, ...]] = []
        self.known: list[Kernel] = [RUNNING, SECOND, QUEUED]
        self.soonest: dict[str, Any] | None = None
        self.ended: Kernel | None = None

    def _answer(self, answer: Any, *asked: Any) -> Answer:
        self.asked.append(asked)
        return Answer(self.error or answer)

    def service(self) -> Answer:
        who = {"protocol": 2, "version": "9", "pid": 7, "backend": "ray", "address": "192.0.2.1:6379"}
        return self._answer(who, "service")

    def nodes(self) -> Answer:
        return self._answer([node.to_dict() for node in NODES], "nodes")

    def explain(self, request: Request) -> Answer:
        asked = Request(cpus=request.cpus, gpus=request.gpus, memory_bytes=request.memory_bytes)
        snapshot = Snapshot.of(NODES)
        document = build_explanation(get_policy("balanced").place(asked, snapshot), snapshot)
        return self._answer({**document, "soonest": self.soonest}, "explain", request)

    def kernels(self, *, with_use: bool = False) -> Answer:
        return self._answer(list(self.known), "kernels")

    def logs(self, kernel_id: str, tail_bytes: int) -> Answer:
        return self._answer(f"log of {kernel_id}\n", "logs", kernel_id, tail_bytes)

    def stop(self, kernel_id: str, grace_s: float) -> Answer:
        gone = UnknownKernel("gone")
        known = {kernel.id: kernel for kernel in self.known if kernel is not SECOND}
        return self._answer(self.ended or known.get(kernel_id, gone), "stop", kernel_id, grace_s)

    def drain(self, node_id: str, on: bool) -> Answer:
        return self._answer(None, "drain", node_id, on)

    def doctor(self) -> Answer:
        return self._answer(
            [
                {"level": "ok", "what": "the agent answers", "do": ""},
                {"level": "warning", "what": "no GPU metrics", "do": "install the driver"},
            ],
            "doctor",
        )


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> StubClient:
    """A stub that `roost.connect` returns; the terminal has 80 columns."""
    stub = StubClient()
    monkeypatch.setattr(roost, "connect", lambda backend, **options: stub)
    monkeypatch.setattr("roost.provisioners.kernelspecs.find_problems", list)
    monkeypatch.setenv("COLUMNS", "80")
    return stub


def test_a_scheduler_with_options_can_be_named(
    capsys: pytest.CaptureFixture[str], client: StubClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(roost, "connect", lambda backend, **options: asked.append(options) or client)
    assert run(capsys, "nodes", "--backend-option", "gpus=2", "--backend-option", "gpu_model=H200")[0] == 0
    assert asked == [{"gpus": 2, "gpu_model": "H200"}]
    assert run(capsys, "nodes", "--backend-option", "gpus")[0] == 2


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    """Run a command; return exit code, stdout and stderr."""
    code = main.main(argv)
    said = capsys.readouterr()
    return code, said.out, said.err


def document(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> Mapping[str, Any]:
    """Return the document that `--json` prints. Nothing else is on stdout."""
    exit_code, out, err = run(capsys, *argv, "--json")
    assert (exit_code, err) == (code, "")
    return dict(json.loads(out))


def test_nodes_show_promises_and_devices(client: StubClient, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "nodes")
    assert code == 0
    assert "2.5 of 64" in out
    assert "8 GiB of 512 GiB" in out
    assert "draining" in out
    assert "H200" in out
    assert max(map(len, out.splitlines())) <= 80
    assert [node["id"] for node in document(capsys, "nodes")["nodes"]] == ["big", "small"]


def test_explain_ranks_and_refuses(client: StubClient, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["explain", "--gpus", "0.5", "--memory", "8GiB", "--gpu-model", "H200", "--label", "zone=a"]
    options += ["--gpu-memory", "80GiB"]
    options += ["--near", "rack=7", "--tolerate", "lab", "--tolerate", "night"]
    options += ["--resource", "licence=2", "--resource", "odd=name=0.5"]
    code, out, _ = run(capsys, *options)
    assert code == 0
    assert "It would go to big, GPU GPU-0." in out
    assert "small" in out
    assert "never" in out
    assert max(map(len, out.splitlines())) <= 80
    _, request = client.asked[-1]
    assert request == Request(
        gpus=0.5,
        memory_bytes=8 << 30,
        gpu_models=("H200",),
        gpu_memory_bytes=80 << 30,
        labels={"zone": "a"},
        near={"rack": "7"},
        resources={"licence": 2, "odd=name": 0.5},
        tolerates=("lab", "night"),
    )
    decision = document(capsys, *options)["decision"]
    assert decision["placement"]["node_id"] == "big"


def test_explain_says_why_no_node_fits(client: StubClient, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "explain", "--cpus", "1000")
    assert code == 0
    assert "No node could ever hold 1000 CPUs" in out


def test_explain_of_one_node_shows_remedies_unless_the_node_is_only_full(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for changed, is_told in (({"is_draining": True}, True), ({"cpus_promised": 8}, False)):
        only = Snapshot.of([Node(id="only", cpus=8, memory_bytes=1 << 30, **changed)])  # type: ignore[arg-type]
        document = build_explanation(get_policy("balanced").place(Request(cpus=1), only), only)
        explain.show_decision({**document, "soonest": None})
        out = capsys.readouterr().out
        assert ("would do but" in out) == is_told
        assert ("`roost drain only --off` lets kernels on it again." in out) == is_told


def test_explain_names_the_fallback_and_counts_refusals(
    client: StubClient, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(capsys, "nodes", "--json")[0] == 0
    nodes = [replace(NODES[0], id=f"n{i:02}", metrics_age_s=None) for i in range(14)]
    nodes[0] = replace(nodes[0], memory_bytes=0, gpus_promised=1.0, memory_promised_bytes=0)
    saved = tmp_path / "nodes.json"
    saved.write_text(json.dumps({"nodes": [node.to_dict() for node in nodes]}))
    _, out, _ = run(capsys, "explain", "--snapshot", str(saved), "--gpus", "0.5", "--memory", "1GiB")
    assert "It would go to n01" in out
    flat = " ".join(out.split())
    assert "Policy balanced was asked; ranked by round robin, since no node that fits has metrics." in flat
    assert "14 of 14 nodes have no metrics" in flat
    assert "n00 never needs 1 GiB memory, has 0 bytes" in flat
    _, out, _ = run(capsys, "explain", "--snapshot", str(saved), "--gpus", "1", "--memory", "1GiB")
    flat = " ".join(out.split())
    assert "13 of 14 nodes have too few GPUs free now" in flat
    assert "… and 4 more nodes (--json has the first 1,000 reasons)." in flat
    assert "13 nodes would do but have too few GPUs free now; nearest n01: needs 1 GPU, 0.75 free." in flat
    assert "n09" in out
    assert "n10" not in out
    assert max(map(len, out.splitlines())) <= 80
    assert client.asked == [("nodes",), ("service",)]


def test_explain_lists_the_kernels_that_hold_scarce_resources(
    client: StubClient, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel = {"id": RUNNING.id, "user": "ada", "application": "lab", "cpus": 0.0, "memory_bytes": 8 << 30}
    kernel |= {"gpus": 0.25, "resources": {"licence": 2}}
    held = {**kernel, "device_ids": ["GPU-0"], "since": time.time() - 90}
    client.soonest = {"node_id": "big", "kernels": [held, {**held, "id": SECOND.id, "since": None}]}
    out = " ".join(run(capsys, "explain", "--gpus", "1")[1].split())
    assert "The soonest to free: big would have room if these 2 kernels ended." in out
    assert "aaaaaaaa-1 ada lab 0.25 GPU, 8 GiB, 2 licence GPU-0 90 s" in out
    assert "unknown" in out
    client.soonest = {"node_id": "big", "kernels": [held]}
    assert "if this kernel ended" in run(capsys, "explain", "--gpus", "1")[1]
    assert document(capsys, "explain", "--gpus", "1")["decision"]["soonest"] == client.soonest


def test_explain_on_saved_nodes(
    client: StubClient, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    saved = tmp_path / "nodes.json"
    saved.write_text(run(capsys, "nodes", "--json")[1])
    options = ["explain", "--gpus", "0.5", "--snapshot", str(saved)]
    assert document(capsys, *options)["decision"]["placement"]["node_id"] == "big"
    for wrong in ("no-such-file", "."):
        code, out, err = run(capsys, "explain", "--snapshot", wrong)
        assert (code, out, err.count("\n")) == (2, "", 1)


def test_resources_labels_taints_and_warm_interpreters_are_shown(
    client: StubClient, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not {"TAINTS", "RESOURCES"} & set(run(capsys, "nodes")[1].split())
    traits = {"labels": {"zone": "a", "disk": "ssd"}, "warm": (f"/home/ada/{'deep/' * 20}bin/python",)}
    traits |= {"resources": {"licence": 2}, "resources_promised": {"licence": 0.5}}
    monkeypatch.setitem(globals(), "NODES", [replace(NODES[0], **traits), NODES[1]])
    out = run(capsys, "nodes")[1]
    assert "LABELS" in out
    assert "disk=ssd" in out
    assert "WARM" in out
    assert "0.5 of 2 licence" in out
    assert "TAINTS" not in out
    assert max(map(len, out.splitlines())) <= 80


def test_kernels(client: StubClient, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "kernels")
    assert code == 0
    assert "aaaaaaaa-1" in out  # eight characters would name two kernels
    assert "0.25 GPU, 8 GiB, 2 CPU" in out
    assert max(map(len, out.splitlines())) <= 80
    listed = document(capsys, "kernels")["kernels"]
    assert [known["id"] for known in listed] == [known.id for known in client.known]
    assert listed[0]["process"]["connection"] is None


def test_kernels_show_what_they_use(
    client: StubClient, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    use = KernelUse(kernel_id=RUNNING.id, processes=2, cpu_percent=150.0, rss_bytes=180 << 20)
    client.known[0] = replace(RUNNING, use=use)
    first, second, queued = run(capsys, "kernels")[1].splitlines()[1:]
    assert "180 MiB, 1.5 CPU" in first
    assert "unknown" in second
    assert "unknown" not in queued
    assert document(capsys, "kernels")["kernels"][0]["use"]["rss_bytes"] == 180 << 20


def test_pending_kernels_say_what_they_wait_for(
    client: StubClient, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = run(capsys, "kernels", "--pending")
    assert "0.25 GPU on big: 0 free" in out
    assert "aaaaaaaa" not in out
    assert [known["position"] for known in document(capsys, "kernels", "--pending")["kernels"]] == [1]
    client.known = []
    assert run(capsys, "kernels", "--pending")[1] == "No kernel is queued.\n"
    assert run(capsys, "kernels")[1] == "There are no kernels.\n"


def test_a_kernel_is_named_by_the_beginning_of_its_id(
    client: StubClient, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "logs", "b", "--tail", "1k") == (0, "log of bbbb-1\n", "")
    assert client.asked[-1] == ("logs", "bbbb-1", 1024)
    assert document(capsys, "logs", "b") == {"kernel": "bbbb-1", "text": "log of bbbb-1\n"}
    code, _, err = run(capsys, "logs", "aaaa")
    assert code == 2
    assert "2 kernels begin with 'aaaa'" in err
    assert run(capsys, "logs", "ended") == (0, "log of ended\n", "")
    code, _, err = run(capsys, "stop", "zz")
    assert code == 1
    assert "There is no kernel 'zz'" in err


def test_stop_takes_several_kernels_and_ended_ones(
    client: StubClient, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "stop", "aaaaaaaa-1", "aaaaaaaa-2", "bb", "bbbb", "--grace", "2")
    assert code == 0
    assert out.splitlines() == [
        "aaaaaaaa-1 stopped",
        "aaaaaaaa-2 had ended already",
        "bbbb-1 removed from the queue",
    ]
    stops = [asked for asked in client.asked if asked[0] == "stop"]
    assert stops == [("stop", id_, 2.0) for id_ in ("aaaaaaaa-1", "aaaaaaaa-2", "bbbb-1")]
    assert document(capsys, "stop", "bb") == {
        "stopped": [{"id": "bbbb-1", "outcome": "removed from the queue"}]
    }


def test_stop_reports_what_the_service_did(client: StubClient, capsys: pytest.CaptureFixture[str]) -> None:
    """A queued kernel may get a lease, or run, between the list and the stop."""
    client.ended = replace(QUEUED, lease_id="lease")
    assert run(capsys, "stop", "bb")[1] == "bbbb-1 removed while it was starting\n"
    client.ended = replace(RUNNING, id=QUEUED.id, state="exited")
    assert run(capsys, "stop", "bb")[1] == "bbbb-1 stopped\n"


def test_a_pending_lease_is_shown_with_its_reason(
    client: StubClient, capsys: pytest.CaptureFixture[str]
) -> None:
    reason = "its agent is starting"
    client.known = [kernel("cccc", state="queued", lease_id="l", node_id="big", position=1, waits_for=reason)]
    _, out, _ = run(capsys, "kernels")
    assert out.splitlines()[1].split()[:4] == ["cccc", "pending", "ada", "big"]
    assert out.splitlines()[-1] == "cccc is pending: its agent is starting"
    _, out, _ = run(capsys, "kernels", "--pending")
    assert out.splitlines()[1].split()[0] == "pending"
    assert reason in out


def test_drain(client: StubClient, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "drain", "big")[0] == 0
    assert client.asked[-1] == ("drain", "big", True)
    assert document(capsys, "drain", "big", "--off") == {"node": "big", "is_draining": False}


def test_doctor_fails_on_errors_only(
    client: StubClient, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_connection, "read_announcement", lambda _: {"pid": 7})
    code, out, _ = run(capsys, "doctor")
    assert code == 0
    assert out.index("warning") < out.index("ok")
    assert "→ install the driver" in out
    client.error = BackendUnavailable("the scheduler does not start")
    code, out, _ = run(capsys, "doctor")
    assert code == 1
    assert "the scheduler does not start" in out
    assert "fix this first" in out
    client.error = no_answer("local", {}, "did not answer `doctor` within 20 s")
    (finding,) = document(capsys, "doctor", code=1)["findings"]
    assert f"pid 7, log {service_folder('local', {})}/log" in finding["what"]
    assert "`kill -9 7`" in finding["do"]


@pytest.mark.parametrize(
    ("error", "code"),
    [(BackendUnavailable("no scheduler"), 1), (TimeoutError(), 1), (RoostError("odd"), 1)],
)
def test_errors_are_one_sentence_on_stderr(
    client: StubClient, capsys: pytest.CaptureFixture[str], error: Exception, code: int
) -> None:
    client.error = error
    exit_code, out, err = run(capsys, "nodes", "--json")
    assert (exit_code, out) == (code, "")
    assert err.startswith("roost: ")
    assert err.count("\n") == 1


def test_a_kernel_that_died_shows_its_log(client: StubClient, capsys: pytest.CaptureFixture[str]) -> None:
    client.error = KernelDied("The kernel ended with exit code 1.", exit_code=1, log_tail="no such module\n")
    assert run(capsys, "nodes")[2] == "roost: The kernel ended with exit code 1.\nno such module\n"


@pytest.mark.parametrize(
    "argv",
    [
        ["explain", "--memory", "lots"],
        ["explain", "--label", "zone"],
        ["explain", "--near", "zone"],
        ["explain", "--resource", "licence"],
        ["explain", "--resource", "licence=-1"],
        ["explain", "--resource", "licence=nan"],
        ["logs", "b", "--tail", "-1"],
        ["run", "no-such-notebook.ipynb"],
        ["run", "no-such-notebook.ipynb", "--gpus", "1.5"],
    ],
)
def test_wrong_options_are_code_2(
    client: StubClient, capsys: pytest.CaptureFixture[str], argv: Sequence[str]
) -> None:
    code, out, err = run(capsys, *argv)
    assert (code, out) == (2, "")
    assert err.startswith("roost: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["no-such"],
        ["explain", "--gpus", "many"],
        ["explain", "--gpus", "nan"],
        ["explain", "--cpus", "inf"],
        ["run", "a.ipynb", "--timeout=-1"],
        ["run", "a.ipynb", "--timeout", "0"],
        ["logs"],
    ],
)
def test_wrong_usage_is_code_2(argv: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main.main(argv)
    assert caught.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_the_cluster_is_named(client: StubClient, capsys: pytest.CaptureFixture[str]) -> None:
    where = "ray at 192.0.2.1:6379"
    assert f"Cluster: {where}." in " ".join(run(capsys, "nodes")[1].split())
    assert document(capsys, "nodes")["cluster"] == {"backend": "ray", "address": "192.0.2.1:6379"}
    assert f"the cluster is {where}" in run(capsys, "doctor")[1]


def test_version_names_running_services(runtime_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dead = runtime_dir / "scheduler-ray"
    dead.mkdir(mode=0o700)
    (dead / "ready.json").write_text("{}")
    with fake_service() as service:
        said = {"version": "9", "pid": 7, "backend": "ray", "address": "192.0.2.1:6379", "endpoint": "x"}
        (service.folder / "ready.json").write_text(json.dumps(said))
        (found,) = document(capsys, "version")["schedulers"]
        assert found == {"folder": "scheduler-local"} | {
            name: said[name] for name in said if name != "endpoint"
        }
        assert "9 for ray at 192.0.2.1:6379 (pid 7, scheduler-local)" in run(capsys, "version")[1]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert document(capsys, "version")["roost"] == roost.__version__
    with pytest.raises(SystemExit) as caught:
        main.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"roost {roost.__version__}\n"


def test_every_command_has_a_function() -> None:
    pending, commands = [main.build_parser()], []
    while pending:
        parser = pending.pop()
        if command := parser.get_default("action"):
            commands.append(command)
        for action in parser._actions:  # argparse has no public way to its subparsers
            if isinstance(action.choices, dict):
                pending += action.choices.values()
    assert len(commands) == 14
    assert len({main.find_action(command) for command in commands}) == 14


def test_help_imports_no_heavy_module() -> None:
    code = (
        "import sys; from roost.scheduler.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print('loaded', *sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    loaded = set(done.stdout.rpartition("loaded ")[2].split())
    assert not loaded & {"zmq", "rich", "asyncio", "jupyter_client", "numpy", "roost.scheduler.errors"}


def test_piped_tables_are_not_cut(
    client: StubClient, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS")
    client.known = [kernel("cccc", state="queued", position=1, waits_for="word " * 60)]
    _, out, _ = run(capsys, "kernels", "--pending")
    assert len(out.splitlines()) == 2


def test_the_request_names_the_gpus_model_and_memory() -> None:
    request = Request(gpus=2, gpu_models=("A100",), gpu_memory_bytes=40 << 30, cpus=0.125, near={"rack": "7"})
    shown = "2 GPUs of model A100 with 40 GiB each, 0.125 CPU, near rack=7"
    assert tables.format_request(request) == shown
    assert tables.format_request(Request()) == "-"


def test_ages_and_ids() -> None:
    assert [tables.format_age(0, now) for now in (-5, 59, 119, 120, 7200, 172_800)] == [
        "0 s", "59 s", "119 s", "2 min", "2 h", "2 d",
    ]  # fmt: skip
    assert tables.shorten_ids(["abcdefghij", "abcdefghik", "x"]) == {
        "abcdefghij": "abcdefghij",
        "abcdefghik": "abcdefghik",
        "x": "x",
    }


def test_run_overrides_the_kernelspecs_options(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another backend has other options, so those of the kernelspec do not count then."""
    configs = []

    def run_notebook(_: str, *, config: dict[str, Any], **__: Any) -> dict[str, Any]:
        configs.append(config)
        return {"error": None}

    monkeypatch.setattr("roost.scheduler.cli.jupyter.run_notebook", run_notebook)
    assert run(capsys, "run", "a.ipynb", "--option", "namespace=team")[0] == 0
    assert run(capsys, "run", "a.ipynb", "--backend", "ray", "--option", "namespace=team")[0] == 0
    assert run(capsys, "run", "a.ipynb", "--backend", "dask")[0] == 0
    assert run(capsys, "run", "a.ipynb", "--option", "namespace")[0] == 2
    team = {"options": {"namespace": "team"}}
    assert configs == [
        team,
        {**team, "backend": "ray", "backend_options": {}},
        {"options": {}, "backend": "dask", "backend_options": {}},
    ]
