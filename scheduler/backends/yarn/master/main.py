"""The program of the application master's container.

    python "$HADOOP_TOKEN_FILE_LOCATION"

That file holds the tokens of the attempt, and the zip archive with this code and `settings.json`.
"""

from __future__ import annotations

import sys

if "asyncio" not in sys.modules:
    sys.modules["ssl"] = None  # type: ignore[assignment] # asyncio does without it, which saves memory

import asyncio
import inspect
import json
import logging
import os
import re
import signal
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from roost.launchers.protocol.process_log import set_up_log
from roost.launchers.protocol.rpc import ServerKeys
from roost.launchers.protocol.rpc_server import Operation, RpcServer
from roost.placement.model.json_codec import decode

from .master import Ended, Master
from .messages import SETTINGS_ENTRY, Archive, Ask, MasterSettings, Numbered, Probe, Update, Widen
from .resource_manager import ResourceManager
from .tokens import AMRM_KIND, read_credentials

log = logging.getLogger(__name__)

_CONTAINER = re.compile(r"container_(?:e\d+_)?(\d+_\d+)_(\d+)_\d+")


class MasterServer:
    """A server through which the service calls the operations of the master."""

    def __init__(self, settings: MasterSettings) -> None:
        keys = ServerKeys(
            public=settings.public_key, secret=settings.secret_key, clients=frozenset(settings.clients)
        )
        self._ports = settings.ports
        self._master: Master | None = None
        self.server = RpcServer(
            {
                "hello": self._operation(Master.hello),
                "put_archive": self._operation(Master.put_archive, Archive),
                "ask": self._operation(Master.ask, Ask),
                "widen": self._operation(Master.widen, Widen),
                "update": self._operation(Master.update, Update),
                "probe": self._operation(Master.probe, Probe),
                "release": self._operation(Master.release, Numbered),
                "containers": self._operation(Master.containers),
                "finish": self._operation(Master.finish),
            },
            keys=keys,
        )

    def listen(self) -> int:
        """Listen on the first free port of the settings and return it. Raises `zmq.ZMQError`."""
        endpoint = self.server.start(*(f"tcp://*:{port or '*'}" for port in self._ports))
        return int(endpoint.rpartition(":")[2])

    def serve(self, master: Master) -> None:
        self._master = master

    def _operation(self, operate: Callable[..., Any], message: type | None = None) -> Operation:
        """Return the operation of a method of the master, which answers once the master is registered."""

        @wraps(operate)
        async def handle(*asked: Any) -> object:
            assert self._master is not None
            await self._master.registered.wait()
            result = operate(self._master, *asked)
            return await result if inspect.isawaitable(result) else result

        return Operation(handle, message)


async def run(settings: MasterSettings, credentials: bytes) -> int:
    """Run the master until the application or this attempt is over. Return the exit code."""
    token = next(token for token in read_credentials(credentials).tokens.values() if token.kind == AMRM_KIND)
    application, attempt = parse_container(os.environ["CONTAINER_ID"])
    server = MasterServer(settings)
    master = Master(
        ResourceManager(settings.schedulers, token),
        settings,
        application_id=application,
        attempt=attempt,
        host=os.environ["NM_HOST"],
        port=server.listen(),
        publish=server.server.publish,
        count_listeners=lambda: len(server.server.subscribers),
    )
    server.serve(master)
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
        await server.server.close()
    return 0


def parse_container(container_id: str) -> tuple[str, int]:
    """Return the id of the application and the number of the attempt of a container's id."""
    found = _CONTAINER.fullmatch(container_id)
    if found is None:
        raise ValueError(f"{container_id!r} is no id of a container")
    return f"application_{found[1]}", int(found[2])


def main() -> None:
    """Run the master with the settings in its archive, then exit."""
    set_up_log()
    loader: Any = sys.modules["__main__"].__loader__
    settings = decode(MasterSettings, json.loads(loader.get_data(SETTINGS_ENTRY)), ignore_unknown=True)
    credentials = Path(os.environ["HADOOP_TOKEN_FILE_LOCATION"]).read_bytes()
    sys.exit(asyncio.run(run(settings, credentials)))
