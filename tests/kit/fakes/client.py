"""A client without a scheduler for tests of the `roost` command, and its nodes and kernels."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from roost.launchers.protocol.messages import Connection, KernelProcess, Owner
from roost.placement import Device, Node, NodeType, Request, Snapshot, get_policy
from roost.scheduler.cli import main
from roost.scheduler.client.client import KernelList
from roost.scheduler.errors import UnknownKernel
from roost.scheduler.messages import Event, Kernel
from roost.scheduler.policies.explain import build_explanation

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


def build_kernel(id_: str, **values: Any) -> Kernel:
    """Return a kernel as the service lists it. `values` are fields of `Kernel`."""
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
RUNNING = build_kernel("aaaaaaaa-1", node_id="big", device_ids=("GPU-0",), process=PROCESS)
SECOND = build_kernel("aaaaaaaa-2", node_id="small", request=Request())
QUEUED = build_kernel("bbbb-1", state="queued", position=1, waits_for="0.25 GPU on big: 0 free")


class Answer:
    """The future of a call. Its result is the answer, which is raised if it is an exception."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def result(self, timeout: float | None = None) -> Any:
        assert timeout is not None
        assert timeout < 120
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class StubClient:
    """A client without a service. If `error` is set, every call raises it."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.worlds: list[str] = []
        self.elsewhere_count = 0
        self.backend, self.options = "ray", dict[str, Any]()
        self.asked: list[tuple[Any, ...]] = []
        self.cluster: list[Node] = list(NODES)
        self.types: list[NodeType] = []
        self.known: list[Kernel] = [RUNNING, SECOND, QUEUED]
        self.unreachable: list[str] = []
        self.soonest: dict[str, Any] | None = None
        self.others: dict[str, Any] | None = None
        self.ended: Kernel | None = None
        self.is_damaged = False
        self.happened: list[Event] = []
        self.coming: list[Event] = []

    def _answer(self, answer: Any, *asked: Any) -> Answer:
        self.asked.append(asked)
        return Answer(self.error or answer)

    def may_have_kernels(self) -> bool:
        return True

    def service_folder(self) -> Path:
        return Path("/nowhere/scheduler-ray")

    def find_worlds(self) -> list[str]:
        return self.worlds

    def service(self) -> Answer:
        who = {"protocol": 2, "version": "9", "pid": 7, "backend": "ray", "address": "192.0.2.1:6379"}
        return self._answer(who, "service")

    def nodes(self) -> Answer:
        return self._answer([node.to_dict() for node in self.cluster], "nodes")

    def node_types(self) -> Answer:
        return self._answer([each.to_dict() for each in self.types], "node_types")

    def explain(self, request: Request, kernel_name: str = "") -> Answer:
        asked = Request(cpus=request.cpus, gpus=request.gpus, memory_bytes=request.memory_bytes)
        snapshot = Snapshot.of(self.cluster)
        document = build_explanation(get_policy("balanced").place(asked, snapshot), snapshot)
        return self._answer({**document, "soonest": self.soonest, "others": self.others}, "explain", request)

    def kernels(self, *, with_use: bool = False) -> Answer:
        # The age of the constants above grows while the tests run, and "10 min" is wider than "90 s".
        known = [replace(each, created_at=time.time() - 90) for each in self.known]
        return self._answer(KernelList(known, self.unreachable), "kernels")

    def count_elsewhere(self) -> Answer:
        return self._answer(self.elsewhere_count, "elsewhere")

    def kernel(self, kernel_id: str) -> Answer:
        return self._answer(
            self.ended or UnknownKernel(f"there is no kernel {kernel_id}"), "kernel", kernel_id
        )

    def logs(self, kernel_id: str, tail_bytes: int) -> Answer:
        return self._answer(f"log of {kernel_id}\n", "logs", kernel_id, tail_bytes)

    def stop(self, kernel_id: str, grace_s: float) -> Answer:
        gone = UnknownKernel("gone")
        known = {kernel.id: kernel for kernel in self.known if kernel is not SECOND}
        return self._answer(self.ended or known.get(kernel_id, gone), "stop", kernel_id, grace_s)

    def events(self, limit: int) -> Answer:
        return self._answer(self.happened[-limit:], "events", limit)

    def listen(self, callback: Callable[[Event], None]) -> None:
        for event in self.coming:
            callback(event)

    def drain(self, node_id: str, on: bool) -> Answer:
        return self._answer(None, "drain", node_id, on)

    def doctor(self, fix: bool = False) -> Answer:
        lost = {"what": "kernel k has lost its lease", "fix": "the kernel is dropped"}
        found = [
            {"level": "ok", "what": "the agent answers", "do": ""},
            {"level": "warning", "what": "no GPU metrics", "do": "install the driver"},
        ]
        if self.is_damaged:
            found.append({"level": "fixed" if fix else "error", "do": "run `roost doctor --fix`", **lost})
            self.is_damaged = not fix
        return self._answer(found, "doctor", fix)


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
