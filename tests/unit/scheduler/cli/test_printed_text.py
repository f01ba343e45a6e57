"""The whole text that commands print, with a stub client. `expected/` has a file for each case."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kit.fakes.client import NODES, PROCESS, QUEUED, RUNNING, SECOND, StubClient, build_kernel, run
from roost.launchers.protocol.shared_values import KernelUse
from roost.placement import Device, Node, NodeType, Request
from roost.scheduler.cli import services
from roost.scheduler.client.service_restart import Restart
from roost.scheduler.messages import Event

EXPECTED = Path(__file__).parent / "expected"
EVIL = "\x1b[31mred\x1b]0;title\x07"
Case = Callable[[StubClient, pytest.MonkeyPatch], Iterator[str]]
"""Yields the command lines that run one after the other, and changes the state before each of them."""


def kernels(client: StubClient, patch: pytest.MonkeyPatch) -> Iterator[str]:
    """Eight characters would name two of the kernels. The state of the fourth one tries to colour the terminal."""
    use = KernelUse(kernel_id="", cpu_percent=150.0, memory_bytes=180 << 20)
    evil = KernelUse(kernel_id="", execution_state=EVIL, gpu_memory_bytes=3 << 30)
    large = Request(gpus=2, gpu_models=("A100",), gpu_memory_bytes=40 << 30, cpus=0.125, near={"rack": "7"})
    pending = {"state": "queued", "lease_id": "l", "position": 2, "waits_for": "its agent is starting"}
    client.known = [
        replace(RUNNING, use=use),
        SECOND,
        QUEUED,
        build_kernel("cccc", node_id="small", request=large, use=evil),
        build_kernel("dddd", node_id="big", **pending),
    ]
    yield "kernels"
    yield "kernels --pending"


def piped_kernels(client: StubClient, patch: pytest.MonkeyPatch) -> Iterator[str]:
    """Programs such as grep need each row on one line."""
    patch.delenv("COLUMNS")
    client.known = [build_kernel("cccc", state="queued", position=1, waits_for="word " * 60)]
    yield "kernels --pending"


def top(client: StubClient, patch: pytest.MonkeyPatch) -> Iterator[str]:
    """The busiest kernel comes first, and that of a silent agent last. A narrow terminal has fewer columns."""
    idle = KernelUse(
        kernel_id="",
        processes=2,
        cpu_percent=1.0,
        memory_bytes=950 << 20,
        read_bytes=7,
        execution_state="idle",
    )
    busy = KernelUse(kernel_id="", processes=1, cpu_percent=150.0, memory_bytes=9, gpu_memory_bytes=3 << 30)
    limited = replace(RUNNING, use=idle, request=Request(cpus=2, memory_bytes=1 << 30))
    silent = build_kernel("dddd", node_id="big")
    evil = build_kernel("cccc", node_id="small", use=KernelUse(kernel_id="", execution_state=EVIL))
    client.known = [silent, evil, limited, replace(SECOND, use=busy), QUEUED]
    yield "top"
    client.known = [silent, limited]
    patch.setenv("COLUMNS", "80")
    yield "top"


def nodes(client: StubClient, patch: pytest.MonkeyPatch) -> Iterator[str]:
    """At first no node has other properties, and no type of nodes is known."""
    yield "nodes --backend ray"
    traits = {"labels": {"zone": "a", "disk": "ssd"}, "warm": (f"/home/ada/{'deep/' * 20}bin/python",)}
    traits |= {"resources": {"licence": 2}, "resources_promised": {"licence": 0.5}}
    client.cluster[0] = replace(NODES[0], **traits)
    devices = (Device(id="0", model="A100"), Device(id="1", model="A100"))
    large = Node(id="a100x2", cpus=8, memory_bytes=2**35, devices=devices, labels={"pool": "a100"})
    client.types = [NodeType(node=large, running=1, limit=3)]
    yield "nodes --backend ray"


def gpus_of_others(client: StubClient, patch: pytest.MonkeyPatch) -> Iterator[str]:
    """Ray says how many GPUs of a node are held, not which ones: they are not shown as free."""
    gpus = (Device(id="0", model="T4", promised=1.0), Device(id="1", model="T4"))
    for others in (0.0, 0.5, 1.0):
        client.cluster[:] = [Node(id="n", cpus=4, devices=gpus, gpus_promised=1.0 + others)]
        yield "nodes --backend ray"


def events(client: StubClient, patch: pytest.MonkeyPatch) -> Iterator[str]:
    """Little CPU time is shown with tenths of a second, and unknown CPU time not at all."""
    why = "the kernel was killed: it used 4 GiB of its 4 GiB of memory"
    ended = [
        replace(RUNNING, state="exited", process=replace(PROCESS, peak_bytes=4 << 30, cpu_s=cpu_s))
        for cpu_s in (90.0, 1.62, 0.0)
    ]
    client.happened = [
        Event(kind="queued", at=0.0, kernel=QUEUED),
        *(Event(kind="exited", at=1.0, kernel=kernel, detail=why) for kernel in ended),
        Event(kind="nodes", at=2.0, detail="the nodes have \x1b[2Jchanged"),
    ]
    yield "events"


def explain_never(client: StubClient, patch: pytest.MonkeyPatch) -> Iterator[str]:
    """The second command explains why a kernel waits in the queue."""
    yield "explain --cpus 1000"
    client.ended = replace(QUEUED, request=Request(cpus=1000))
    client.known = [client.ended]
    yield f"explain {QUEUED.id}"


def explain_one_node(client: StubClient, patch: pytest.MonkeyPatch) -> Iterator[str]:
    """A node that is only full has no remedy."""
    client.cluster = [Node(id="only", cpus=8, memory_bytes=1 << 30, is_draining=True)]
    yield "explain --cpus 1"
    client.cluster = [Node(id="only", cpus=8, memory_bytes=1 << 30, cpus_promised=8)]
    yield "explain --cpus 1"


def explain_holders(client: StubClient, patch: pytest.MonkeyPatch) -> Iterator[str]:
    """Other programs and two kernels hold the GPUs, then one kernel."""
    text = "3 of 4 GPUs are held by Ray actors and tasks that roost did not start (Trainer of job 01)"
    client.others = {"text": text}
    kernel = {"id": RUNNING.id, "user": "ada", "application": "lab", "cpus": 0.0, "memory_bytes": 8 << 30}
    kernel |= {"gpus": 0.25, "resources": {"licence": 2}}
    held = {**kernel, "device_ids": ["GPU-0"], "since": time.time() - 90}
    client.soonest = {"node_id": "big", "kernels": [held, {**held, "id": SECOND.id, "since": None}]}
    yield "explain --gpus 1"
    client.others, client.soonest = None, {"node_id": "big", "kernels": [held]}
    yield "explain --gpus 1"


def restart_service(client: StubClient, patch: pytest.MonkeyPatch) -> Iterator[str]:
    """The next service reads its settings from other folders, from one more, from one less, and from the same."""
    done = Restart(ended_pid=1, was_killed=False, pid=2, address_before="h:1", took_s=0.1, kept=())
    client.unreachable = ["n7"]
    for before, now in ((("/a", "/b"), ("/c",)), ((), ("/c",)), (("/a",), ()), ((), ())):
        moved = replace(done, path_before=before, path_now=now)
        patch.setattr(services, "restart_service", lambda *_, moved=moved, **__: moved)
        yield "restart-service --backend ray --here"
        client.unreachable = []


TABLES: tuple[Case, ...] = (kernels, nodes, explain_never, explain_holders)
CASES: tuple[Case, ...] = (
    *TABLES,
    piped_kernels,
    top,
    gpus_of_others,
    explain_one_node,
    events,
    restart_service,
)


@pytest.fixture(autouse=True)
def _terminal(client: StubClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the terminal be so wide that no line is folded, and let no time pass."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(time, "time", lambda: 1e9)
    monkeypatch.setattr(time, "localtime", time.gmtime)


def show(
    case: Case, client: StubClient, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch
) -> str:
    """Return each command with all that it prints, its errors after `2>`, and its exit code unless it is 0."""
    shown = ""
    for command in case(client, patch):
        code, out, err = run(capsys, *shlex.split(command))
        errors = "".join(f"2> {line}" for line in err.splitlines(keepends=True))
        shown += f"$ roost {command}\n{out}{errors}" + (f"exit code {code}\n" if code else "")
    return shown


def read_expected(case: Case) -> str:
    return (EXPECTED / f"{case.__name__}.txt").read_text()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_a_command_prints_the_expected_text(
    case: Case, client: StubClient, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert show(case, client, capsys, monkeypatch) == read_expected(case)


@pytest.mark.parametrize("case", TABLES, ids=lambda case: case.__name__)
def test_a_narrow_terminal_folds_tables_and_cuts_nothing(
    case: Case, client: StubClient, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = show(case, client, capsys, monkeypatch)
    assert max(map(len, shown.splitlines())) <= 80
    assert sorted("".join(shown.split())) == sorted("".join(read_expected(case).split()))


def test_each_file_belongs_to_a_case() -> None:
    assert {path.stem for path in EXPECTED.iterdir()} == {case.__name__ for case in CASES}
