"""The program of the application master's container.

    python "$HADOOP_TOKEN_FILE_LOCATION"

That file holds the tokens of the attempt, and the zip archive with this code and `settings.json`.
"""

from __future__ import annotations

import sys

if "asyncio" not in sys.modules:
    sys.modules["ssl"] = None  # type: ignore[assignment] # asyncio does without it, which saves memory

import asyncio
import json
import logging
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from roost.launchers.protocol.json_codec import decode
from roost.launchers.protocol.rpc import ServerKeys
from roost.launchers.protocol.rpc_server import Operation, RpcServer
from roost.launchers.protocol.shared_values import Nothing

from .master import Ended, Master
from .messages import SETTINGS_ENTRY, Archive, Ask, MasterSettings, Numbered, Update, Widen
from .resource_manager import ResourceManager
from .tokens import AMRM_KIND, read_credentials

T = TypeVar("T")

log = logging.getLogger(__name__)

_CONTAINER = re.compile(r"container_(?:e\d+_)?(\d+_\d+)_(\d+)_\d+")


class Service:
    """The port on which the service reaches the master."""

    def __init__(self, settings: MasterSettings) -> None:
        keys = ServerKeys(
            public=settings.public_key, secret=settings.secret_key, clients=frozenset(settings.clients)
        )
        self._ports = settings.ports
        self._master: Master | None = None
        self.server = RpcServer(
            {
                "hello": self._operation(Nothing, lambda master, _: master.hello()),
                "put_archive": self._operation(Archive, Master.put_archive),
                "ask": self._operation(Ask, Master.ask),
                "widen": self._operation(Widen, Master.widen),
                "update": self._operation(Update, Master.update),
                "release": Operation(Numbered, self._release),
                "containers": self._operation(Nothing, lambda master, _: master.containers()),
                "finish": Operation(Nothing, self._finish),
                "subscribe": Operation(Nothing, self._subscribe),
            },
            keys=keys,
        )

    def listen(self) -> int:
        """Listen on the first free port of the settings and return it. Raises `zmq.ZMQError`."""
        endpoint = self.server.start(*(f"tcp://*:{port or '*'}" for port in self._ports))
        return int(endpoint.rpartition(":")[2])

    def serve(self, master: Master) -> None:
        self._master = master

    async def _ready(self) -> Master:
        """Return the master once it is registered."""
        assert self._master is not None
        await self._master.registered.wait()
        return self._master

    def _operation(self, arguments: type[T], operate: Callable[[Master, T], object]) -> Operation:
        async def handle(_: bytes, value: Any) -> object:
            return operate(await self._ready(), value)

        return Operation(arguments, handle)

    async def _release(self, _: bytes, request: Numbered) -> None:
        await (await self._ready()).release(request)

    async def _subscribe(self, peer: bytes, _: Nothing) -> None:
        self.server.subscribers.add(peer)

    async def _finish(self, _: bytes, __: Nothing) -> None:
        await (await self._ready()).finish()


async def run(settings: MasterSettings, credentials: bytes) -> int:
    """Be the master until the application or this attempt is over. Return the exit code."""
    token = next(token for token in read_credentials(credentials).tokens.values() if token.kind == AMRM_KIND)
    application, attempt = parse_container(os.environ["CONTAINER_ID"])
    service = Service(settings)
    master = Master(
        ResourceManager(settings.schedulers, token),
        settings,
        application_id=application,
        attempt=attempt,
        host=os.environ["NM_HOST"],
        port=service.listen(),
        publish=service.server.publish,
        count_listeners=lambda: len(service.server.subscribers),
    )
    service.serve(master)
    beats = asyncio.ensure_future(master.run())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, beats.cancel)
    try:
        await beats
    except asyncio.CancelledError:
        log.info("SIGTERM: this attempt ends")
        return 128 + signal.SIGTERM
    except Ended as problem:
        log.error("this attempt ends: %s", problem)
        return 1
    finally:
        await master.close()
        await service.server.close()
    return 0


def parse_container(container_id: str) -> tuple[str, int]:
    """Return the id of the application and the number of the attempt of a container's id."""
    found = _CONTAINER.fullmatch(container_id)
    if found is None:
        raise ValueError(f"{container_id!r} is no id of a container")
    return f"application_{found[1]}", int(found[2])


def main() -> None:
    """Run the master, with the settings that are a file of the archive, and exit."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    loader: Any = sys.modules["__main__"].__loader__
    settings = decode(MasterSettings, json.loads(loader.get_data(SETTINGS_ENTRY)), ignore_unknown=True)
    credentials = Path(os.environ["HADOOP_TOKEN_FILE_LOCATION"]).read_bytes()
    sys.exit(asyncio.run(run(settings, credentials)))
