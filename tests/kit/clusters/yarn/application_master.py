"""An application master on a YARN cluster of the tests, and a connection to it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import itertools
import os
import sys
import zipfile
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import psutil
import zmq

from kit.clusters.faults import read_name
from kit.clusters.hadoop_nodes import HadoopNodes, Refused
from roost.launchers.protocol.rpc import ClientKeys, Disconnected
from roost.launchers.protocol.rpc_client import RpcClient
from roost.placement.model.json_codec import decode
from roost.scheduler.backends.yarn.master.messages import (
    CODE_ALIAS,
    Archive,
    Ask,
    Container,
    MasterEvent,
    MasterSettings,
    MasterStatus,
    Numbered,
    Resources,
)
from roost.scheduler.backends.yarn.packing import pack_master
from roost.testing.deadlines import until

T = TypeVar("T")

DIGEST = "sleeper"
WAIT_S = 180.0
CALL_S = 60.0
_SLEEPER = """
import os, sys, time
with open(__loader__.get_data("start.json").decode() + ".new", "w") as file:
    file.write(str(os.getpid()))
os.rename(file.name, file.name[:-4])
time.sleep(1000)
"""
"""The program of a container: it writes its pid into the file that its assignment names, and sleeps."""
RUNS = f'exec {sys.executable} "$HADOOP_TOKEN_FILE_LOCATION" 1><LOG_DIR>/stdout 2><LOG_DIR>/stderr'


class YarnMaster:
    """A submitted application. `events` has all events that its master has sent to this connection."""

    def __init__(self, cluster: HadoopNodes, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        self.application = ""
        self.events: list[MasterEvent] = []
        self._numbers = itertools.count(int.from_bytes(os.urandom(7), "big"))
        self._keys = [key.decode() for _ in range(2) for key in zmq.curve_keypair()]
        self._client: RpcClient | None = None

    @property
    def public_key(self) -> str:
        return self._keys[0]

    # The application

    def submit(self, *, queue: str = "default", **settings: Any) -> None:
        public, secret, client, _ = self._keys
        self.application = self.cluster.rest.call("POST", "/ws/v1/cluster/apps/new-application")[
            "application-id"
        ]
        code = pack_master(
            MasterSettings(
                schedulers=tuple(f"{self.cluster.address_of(name)}:8030" for name in self.cluster.resource_managers),
                public_key=public, secret_key=secret, clients=(client,), **settings,
            )
        )  # fmt: skip
        context = {
            "application-id": self.application,
            "application-name": "roost",
            "application-type": "roost",
            "queue": queue,
            "max-app-attempts": 4,
            "attempt-failures-validity-interval": 60_000,
            "keep-containers-across-application-attempts": True,
            "resource": {"memory": 128, "vCores": 1},
            "am-container-spec": {
                "commands": {"command": RUNS},
                "environment": {"entry": [{"key": "PYTHONDONTWRITEBYTECODE", "value": "1"}]},
                "credentials": {
                    "tokens": {},
                    "secrets": {"entry": [{"key": CODE_ALIAS, "value": base64.b64encode(code).decode()}]},
                },
            },
        }
        self.cluster.rest.call("POST", "/ws/v1/cluster/apps", context)

    def report(self) -> dict[str, Any]:
        """Return the ResourceManager's REST record of the application."""
        return dict(self.cluster.rest.get(f"/ws/v1/cluster/apps/{self.application}")["app"])

    def process(self) -> psutil.Process:
        """Return the process of the current master."""
        container = self.report()["amContainerLogs"].split("/")[-2]
        found = self.cluster.container_processes(container=container)
        (process,) = [each for each in found if read_name(each) not in ("bash", "")]
        return process

    def log(self) -> str:
        """Return the logs of all attempts."""
        files = self.cluster.folder.glob(f"*/logs/{self.application}/*_000001/std*")
        return "\n".join(path.read_text() for path in sorted(files))

    async def until(self, is_true: Callable[[], object], what: str, seconds: float = WAIT_S) -> None:
        """Wait until something is true. An error has the master's log."""
        await until(is_true, lambda: f"{what}\n{self.log()}", seconds, 0.02)

    async def await_end(self) -> str:
        """Wait for the end of the application, and return its final status."""
        await self.until(
            lambda: self.report()["state"] in ("FINISHED", "FAILED", "KILLED"), "the application ends"
        )
        return str(self.report()["finalStatus"])

    # The connection

    async def connect(self) -> None:
        """Connect to the master, subscribe, and send it the containers' archive."""

        async def is_there() -> bool:
            with contextlib.suppress(Disconnected, Refused, OSError, asyncio.TimeoutError):
                await self._connect()
                await self.hello()
                return True
            return False

        await until(is_there, lambda: f"the master answers: {self.report()}\n{self.log()}", WAIT_S)
        await self.call("subscribe")
        await self.call("put_archive", Archive(digest=DIGEST, data_base64=_build_archive()))

    async def _connect(self) -> None:
        await self.close()
        public, _, *own = self._keys
        address = self.report().get("amRPCAddress", ":-1")
        if address.rpartition(":")[2] in ("-1", "0"):
            raise Disconnected("it is not registered")
        self._client = RpcClient(
            f"tcp://{address}",
            keys=ClientKeys(server=public, public=own[0], secret=own[1]),
            on_event=lambda event: self.events.append(decode(MasterEvent, event)),
        )
        await self._client.connect(timeout_s=3.0)

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def call(self, op: str, arguments: object = None) -> Any:
        assert self._client is not None
        try:
            return await self._client.call(op, arguments, timeout_s=CALL_S)
        except Disconnected as problem:
            raise Disconnected(f"{problem}\n{self.log()}") from problem

    async def hello(self) -> MasterStatus:
        return decode(MasterStatus, await self.call("hello"))

    async def containers(self) -> list[Container]:
        return [decode(Container, each) for each in await self.call("containers")]

    async def ask(self, *nodes: str, **changes: Any) -> Ask:
        """Ask for a container on these nodes (`nm1`), or anywhere."""
        number = changes.pop("number", next(self._numbers))
        ask = Ask(
            **{
                "number": number,
                "lease": f"lease of {number}",
                "resources": Resources(memory_mb=256, vcores=1),
                "nodes": tuple(self.cluster.address_of(node) for node in nodes),
                "command": RUNS,
                "archive": DIGEST,
                "assignment_base64": base64.b64encode(str(self.folder / str(number)).encode()).decode(),
                **changes,
            }
        )
        await self.call("ask", ask)
        return ask

    async def release(self, ask: Ask) -> None:
        await self.call("release", Numbered(number=ask.number))

    # What happens

    def states(self, ask: Ask) -> list[str]:
        """Return the states of the requested container that events have reported so far, oldest first."""
        return [each.state for each in self.reports(ask)]

    def reports(self, ask: Ask) -> list[Container]:
        found = (event.container for event in self.events if event.kind == "container")
        return [container for container in found if container is not None and container.number == ask.number]

    async def await_state(self, ask: Ask, state: str) -> Container:
        await self.until(lambda: state in self.states(ask), f"the container is {state}")
        return next(each for each in self.reports(ask) if each.state == state)

    async def await_event(self, kind: str) -> MasterEvent:
        await self.until(lambda: any(event.kind == kind for event in self.events), f"an event `{kind}` comes")
        return next(event for event in self.events if event.kind == kind)

    async def await_pid(self, ask: Ask) -> int:
        """Wait until the container's program runs, and return its pid."""
        file = self.folder / str(ask.number)
        await self.until(file.exists, "the container's program runs")
        return int(file.read_text())


@asynccontextmanager
async def running_master(cluster: HadoopNodes, folder: Path, **settings: Any) -> AsyncIterator[YarnMaster]:
    """Submit a master and connect to it. At the end the application is killed, unless it has ended."""
    master = YarnMaster(cluster, folder)
    master.submit(**settings)
    try:
        await master.connect()
        yield master
    finally:
        await master.close()
        kill(master)


def kill(master: YarnMaster) -> None:
    """Kill the application of a master, unless it has ended."""
    with contextlib.suppress(Refused):
        path = f"/ws/v1/cluster/apps/{master.application}/state"
        master.cluster.rest.call("PUT", path, {"state": "KILLED"})


def live(pids: Iterable[int]) -> list[int]:
    """Return the pids whose processes live."""
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
    return found


def _build_archive() -> str:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("__main__.py", _SLEEPER)
        archive.writestr("ballast", os.urandom(150_000))  # as large as the agent's code
    return base64.b64encode(content.getvalue()).decode()
