"""Files of any form are read right, refused with one sentence, or put aside. There is no other error.

`make long` reads more of them.
"""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import hypothesis.strategies as st
import pytest
import zmq
from hypothesis import HealthCheck, Phase, given, settings
from kubernetes.client import Configuration

from kit.fakes.client import build_kernel
from kit.machine.bad_files import BAD_FILES
from kit.machine.cases import find_wrong
from kit.machine.real_agent import as_it_is, no_limits
from roost.bench.trace_files import read_nodes, read_trace
from roost.launchers.agent.launch.kernels import Kernels
from roost.launchers.agent.launch.place import OnNode
from roost.launchers.agent.leases.ledger import LeaseLedger
from roost.launchers.agent.leases.manager_watch import ManagerWatch
from roost.launchers.agent.machine.disk_room import DiskRoom
from roost.launchers.agent.warm.zygote_pool import ZygotePool
from roost.launchers.daemon.daemon import _read_ready
from roost.launchers.daemon.tasks import Timers
from roost.launchers.protocol.agent_settings import AgentSettings, Forking
from roost.launchers.protocol.messages import Connection, KernelProcess, Lease, Manager, Owner, Reserve
from roost.launchers.protocol.rpc import ClientKeys
from roost.placement import Device, Node, Request
from roost.placement.model.json_codec import encode
from roost.provisioners.kernel_json import find_provisioner, read_document
from roost.provisioners.kernelspecs import _to_kernelspec
from roost.provisioners.server_extension.server_state import ServerState
from roost.scheduler.backends.agent_calls import Agents
from roost.scheduler.backends.agent_per_kernel.pod_agent import read_address
from roost.scheduler.backends.agent_per_node.agents import AgentPool
from roost.scheduler.backends.base import AgentAddress, Backend
from roost.scheduler.backends.dask.join import _read_scheduler_file
from roost.scheduler.backends.key_pair import load_key_pair
from roost.scheduler.backends.kubernetes.api import _read_configuration
from roost.scheduler.backends.kubernetes.pod_spec import PodTemplate
from roost.scheduler.backends.kubernetes.settings import RoostKubernetesBackend
from roost.scheduler.backends.yarn.hadoop_conf import read_site
from roost.scheduler.backends.yarn.rest import _read_password
from roost.scheduler.config.files import load_settings
from roost.scheduler.core.backend_access import BackendAccess
from roost.scheduler.core.ended_kernels import EndedKernels
from roost.scheduler.core.ender import KernelEnder
from roost.scheduler.core.kernel_table import KernelTable
from roost.scheduler.errors import RoostError
from roost.scheduler.policies.loader import find_policy, load_policy
from roost.scheduler.policies.offline import read_snapshot
from roost.scheduler.policies.recent_requests import RecentRequests
from roost.scheduler.service.server import scheduler_name

FILES = int(os.environ.get("ROOST_MESSAGES", "2000"))
MEMORY = "/dev/shm"
NO_PID = 2**22 + 1
"""No process has this pid: it is the greatest of Linux, and one more."""
CONNECTION = Connection(shell_port=1, iopub_port=2, stdin_port=3, control_port=4, hb_port=5, key="k")
ENDED = build_kernel("k", node_id="n", state="exited", reason="it was killed")
LEASE = Lease(
    id="roost:k:1", kernel_id="k", owner=Owner(user="ada"), request=Request(cpus=1, gpus=0.5), device_ids=("0",)
)  # fmt: skip
RECORD = KernelProcess(
    kernel_id="k",
    launch_id="1",
    lease_id=LEASE.id,
    pid=NO_PID,
    process_started_at=1e9,
    how="exec",
    connection=CONNECTION,
    launched_at=1.0,
)
ADDRESS = AgentAddress(
    endpoint="tcp://127.0.0.1:1", keys=ClientKeys(server="a" * 40, public="a" * 40, secret="a" * 40)
)
PUBLIC, SECRET = (key.decode() for key in zmq.curve_keypair())
MANAGER = Manager(name="Ray", pid=NO_PID, process_started_at=1e9, address="127.0.0.1:1")
KERNEL_JSON = {
    "argv": ["python", "{connection_file}"],
    "display_name": "P",
    "language": "python",
    "env": {"A": "b"},
    "interrupt_mode": "signal",
    "metadata": {"kernel_provisioner": {"provisioner_name": "roost", "config": {"gpus": 1}}},
}
POD = {
    "metadata": {"labels": {"a": "b"}},
    "spec": {"containers": [{"name": "kernel", "env": [{"name": "A", "value": "b"}]}], "tolerations": []},
}
ONE_GPU = Device(id="0", model="T4")


def adopt(file: Path) -> None:
    """Adopt the kernel whose folder has this file."""

    async def run() -> None:
        home = file.parents[2]
        kernels = Kernels(
            home / "kernels",
            ZygotePool(Forking()),
            DiskRoom(home, list),
            no_limits(),
            place=OnNode(AgentSettings()),
            prepare=as_it_is,
            on_launched=lambda _: None,
            on_exited=lambda _: None,
        )
        try:
            kernels.adopt([LEASE.id])
            await asyncio.sleep(0)
        finally:
            await kernels.close()

    asyncio.run(run())


def resume(file: Path) -> None:
    async def ignore(_: str) -> None:
        pass

    async def run() -> None:
        watch = ManagerWatch(file, ignore, lambda _: None)
        watch.resume()
        await asyncio.sleep(0)
        watch.close()

    asyncio.run(run())


def list_kernelspec(file: Path) -> None:
    document, malformed = read_document(file.parent)
    if find_provisioner(document) == "roost":
        _to_kernelspec("k", file.parent, document, malformed)


def open_server_state(file: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(file.parents[3]))
        state = ServerState("ours")
        for kernel_id, facts in state.kernels.items():
            assert all(isinstance(text, str) for text in (kernel_id, *facts.values()))
        for headers in state.lost_cells.values():
            assert all(header["msg_id"] + header["session"] is not None for header in headers)
        assert state.problem == ""
        state.close()


async def _pool(file: Path) -> None:
    AgentPool(file, Agents(), cast(Any, None), AgentSettings())


OWN: Mapping[str, tuple[Any, Callable[[Path], object]]] = {
    "leases/x.json": (
        encode(Reserve(lease=LEASE)),
        lambda file: LeaseLedger(file.parent, cpus=4, memory_bytes=100, devices=[ONE_GPU]),
    ),
    "kernels/a/record.json": (encode(RECORD), adopt),
    "kernels/a/starting.json": ({"pid": NO_PID, "started_at": 1e9}, adopt),
    "manager.json": ({"managers": [encode(MANAGER)]}, resume),
    "ready.json": ({"pid": 1, "endpoint": "x", "keys": {}}, lambda file: _read_ready(file.parent)),
    "pod/ready.json": (encode(ADDRESS), lambda file: read_address(str(file.parent))),
    "requests.json": ({"requests": [[1, 0.5, 7, ["T4"]]]}, lambda file: RecentRequests(file, clock=float)),
    "ends.json": (
        {LEASE.id: "1"},
        lambda file: KernelEnder(cast(BackendAccess, None), cast(KernelTable, None), Timers(), file),
    ),
    "ended.json": ({"kernels": [encode(ENDED)]}, lambda file: EndedKernels(Timers(), file)),
    "drained.json": (["a"], lambda file: BackendAccess(cast(Backend, None), Agents(), file)),
    "name.json": ("local-1", lambda file: scheduler_name(file.parent)),
    "agents.json": (
        {"cluster": "a:1", "agents": {"n": {"address": encode(ADDRESS), "daemon": "d"}}, "settings": "s"},
        lambda file: asyncio.run(_pool(file)),
    ),
    "state/roost/servers/ae0bec9e9d33c563/kernels.json": (
        {"k": {"name": "p", "cwd": "/", "session": ""}},
        open_server_state,
    ),
    "state/roost/servers/ae0bec9e9d33c563/held.json": (
        {"k": [{"msg_id": "m", "session": "s"}]},
        open_server_state,
    ),
}
"""For each file of roost's own: a good document, and a function that reads the file. It never raises."""
USERS: Mapping[str, tuple[Any, Callable[[Path], object]]] = {
    "kernel.json": (KERNEL_JSON, list_kernelspec),
    "nodes.json": (
        {"nodes": [Node(id="a", cpus=1, devices=(ONE_GPU,)).to_dict()]},
        lambda file: read_snapshot(str(file)),
    ),
    "config.json": (
        {"RoostScheduler": {"idle_exit_s": 7}, "RoostLocalBackend": {"cpus": 1}},
        lambda file: load_settings("local", {"config_file": str(file)}),
    ),
    "scheduler.json": ({"address": "tcp://a:1"}, lambda file: _read_scheduler_file(str(file))),
    "pod.yaml": (POD, lambda file: PodTemplate(RoostKubernetesBackend(image="a", pod_template=str(file)))),
    "identity.json": (
        {"public": PUBLIC, "secret": SECRET},
        lambda file: load_key_pair(str(file), name="ray", section="RoostRayBackend"),
    ),
}
"""For each JSON file of users and operators: a good document, and a function that reads it or raises `RoostError`."""
OTHERS: Mapping[str, Callable[[Path], object]] = {
    "trace.csv": lambda file: read_trace(str(file)),
    "nodes.csv": lambda file: read_nodes(str(file)),
    "policy.py": lambda file: load_policy("p", lambda: find_policy(f"{file}:Policy")),
    "config.py": lambda file: load_settings("local", {"config_file": str(file)}),
    "kubeconfig": lambda file: _read_configuration(Configuration(), str(file), ""),
    "yarn-site.xml": lambda file: read_site(str(file.parent)),
    "password": lambda file: _read_password(str(file)),
}
"""The readers of their other files."""
ASIDE = (
    "requests.json",
    "ends.json",
    "ended.json",
    "drained.json",
    "name.json",
    "agents.json",
    "manager.json",
)
"""The files of roost's own that are put aside. The others belong to a kernel, an agent or a server."""
READERS = {**OWN, **USERS}

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
    st.sampled_from([2**63, -(2**63), 10**300, 1e308, -1, "", "\0", "\ud800", "../..", "\n", "a" * 300, "a=b", "a:1"]),
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["pid", "lease", "id", "k", "managers", "env", ""]), inner, max_size=3
        ),
    ),
    max_leaves=6,
)


@st.composite
def changed(draw: st.DrawFn, document: Any) -> Any:
    """Return the document with one part replaced, removed or added, at any depth."""
    value = copy.deepcopy(document)
    if not isinstance(value, (dict, list)) or not value or draw(st.integers(0, 9)) == 0:
        return draw(values)
    at: Any = value
    while True:
        key = draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
        if not (isinstance(at[key], (dict, list)) and at[key]) or draw(st.integers(0, 3)) == 0:
            break
        at = at[key]
    how = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add"]))
    if how == "remove":
        del at[key]
    elif how == "add" and isinstance(at, dict):
        at[draw(st.text(max_size=5))] = draw(values)
    else:
        at[key] = draw(values)
    return value


@st.composite
def files(draw: st.DrawFn) -> tuple[str, bytes]:
    """Return the name of a file, and a content of any form."""
    name = draw(st.sampled_from(sorted(READERS)))
    good = READERS[name][0]
    how = draw(st.sampled_from(["changed", "changed", "changed", "truncated", "bytes", "any"]))
    if how == "bytes":
        return name, draw(st.binary(max_size=60))
    if how == "truncated":
        content = json.dumps(good).encode()
        return name, content[: draw(st.integers(0, len(content)))]
    value = draw(changed(good) if how == "changed" else values)
    return name, json.dumps(value).encode()


def read(name: str, content: bytes) -> str:
    """Write and read a file. Return the sentence of its refusal; empty if it is not refused."""
    with tempfile.TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else None) as home:
        file = Path(home, name)
        file.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
        for parent in file.parents[: len(Path(name).parts)]:
            parent.chmod(0o700)
        file.write_bytes(content)
        try:
            READERS[name][1](file)
        except RoostError as refusal:
            sentence = refusal.user_message
        else:
            return ""
    assert name in USERS, "a file of roost's own is put aside"
    assert len(sentence.splitlines()) == 1, sentence
    return sentence


@pytest.mark.parametrize("name", READERS)
def test_a_good_file_is_read(name: str, caplog: pytest.LogCaptureFixture) -> None:
    assert read(name, json.dumps(READERS[name][0]).encode()) == ""
    if name != "leases/x.json":  # a lease has a file of its own name
        assert [record for record in caplog.records if "put aside" in record.getMessage()] == []


@settings(
    max_examples=FILES,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(files())
def test_a_file_of_any_form_is_read_or_refused_in_one_sentence(made: tuple[str, bytes]) -> None:
    logging.disable(logging.CRITICAL)
    try:
        read(*made)
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", [*ASIDE, *USERS, *OTHERS])
def test_what_is_no_file_is_put_aside_or_refused_in_one_sentence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """Some of these are good files, such as an empty configuration."""
    read = READERS[name][1] if name in READERS else OTHERS[name]

    def check(kind: str) -> None:
        file = tmp_path / kind / name
        file.parent.mkdir(mode=0o700)
        BAD_FILES[kind](file)
        if kind == "brackets" and name in ("pod.yaml", "kubeconfig"):
            file.write_text("[\n" * 200_000)  # PyYAML takes seconds for as many in one line
        if not file.is_symlink():
            file.chmod(0o600)
        refusal = ""
        try:
            read(file)
        except RoostError as refused:
            refusal = refused.user_message
        assert "\n" not in refusal
        assert len(refusal) < 1_000
        if name not in ASIDE:
            assert (
                refusal or file.is_file() or name == "kernel.json"
            )  # without a file, there is no kernelspec
        elif not (kind in ("types", "infinite") and name == "ends.json"):  # an object without launches
            told = [each for each in caplog.records if f"{file} is put aside" in each.getMessage()]
            assert (len(told), os.path.lexists(file.with_suffix(".unreadable"))) == (1, True)

    assert find_wrong(BAD_FILES, check) == []
