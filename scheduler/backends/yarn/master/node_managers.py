"""Starts and stops containers at their NodeManagers. Each operation has a connection of its own."""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Iterable
from urllib.parse import urlsplit

from roost.launchers.daemon.tasks import backoff
from roost.launchers.protocol.start_archive import add_start

from .hadoop_rpc import CallRefused, ConnectionLost, HadoopConnection
from .messages import CODE_ALIAS, Ask, Unpacked
from .sasl import SaslError
from .schema import (
    URL,
    ContainerLaunchContext,
    Grant,
    LocalResource,
    NMToken,
    NodeId,
    StartContainerRequest,
    StartContainersRequest,
    StartContainersResponse,
    StopContainersRequest,
    StopContainersResponse,
    StringLocalResourceMap,
    Token,
)
from .tokens import Credentials, write_credentials

log = logging.getLogger(__name__)

_PROTOCOL = "org.apache.hadoop.yarn.api.ContainerManagementProtocolPB"
_CALL_S = 5.0
_ARCHIVE, _PRIVATE = 1, 2  # of LocalResourceTypeProto and LocalResourceVisibilityProto
_START_S = 15.0
"""How long the master tries to start a container. A NodeManager that has just been started refuses at first."""
_PROBE_S = 1.0
_NO_TOKEN = Token(identifier=b"", password=b"", kind="", service="")


class NodeError(Exception):
    """A NodeManager refuses or fails. The text is a sentence for users."""


class NodeManagers:
    """All NodeManagers that run containers of this application, with the tokens for them."""

    def __init__(self) -> None:
        self._tokens: dict[NodeId, Token] = {}

    def keep(self, tokens: Iterable[NMToken]) -> None:
        """Keep tokens for NodeManagers. The ResourceManager sends each one once, with the first container there."""
        self._tokens.update({entry.node_id: entry.token for entry in tokens if entry.token is not None})

    async def start(self, container: Grant, context: ContainerLaunchContext) -> None:
        """Start a container. Raises `NodeError`."""
        request = StartContainersRequest(
            start_container_request=(
                StartContainerRequest(
                    container_launch_context=context, container_token=container.container_token
                ),
            )
        )
        try:
            await asyncio.wait_for(self._start(container.node_id, request), _START_S)
        except asyncio.TimeoutError:
            host = container.node_id.host
            raise NodeError(f"the NodeManager of {host} did not start it within {_START_S:g} s") from None
        except (CallRefused, SaslError) as problem:
            raise NodeError(f"the NodeManager of {container.node_id.host} refused: {problem}") from problem

    async def _start(self, node: NodeId, request: StartContainersRequest) -> None:
        for pause_s in backoff(0.1, 1.0):
            problem: Exception
            try:
                with self._connect(node) as connection:
                    answer = await connection.call(
                        "startContainers", request, StartContainersResponse, timeout_s=_CALL_S
                    )
                if not answer.failed_requests:
                    return
                failure = answer.failed_requests[0].exception
                problem = CallRefused(failure.class_name, failure.message)
            except (ConnectionLost, CallRefused) as trouble:
                problem = trouble
            if isinstance(problem, CallRefused):
                if "already is running" in problem.text:  # an earlier try, the answer to which was lost
                    return
                if problem.name != "NMNotYetReadyException":
                    raise problem
            log.warning("node=%s: a container does not start yet: %s", node.host, problem)
            await asyncio.sleep(pause_s)

    async def stop(self, container: Grant) -> None:
        """Stop a container at once. Raises `NodeError`. May be repeated."""
        request = StopContainersRequest(container_id=(container.id,))
        try:
            with self._connect(container.node_id) as connection:
                await connection.call("stopContainers", request, StopContainersResponse, timeout_s=_CALL_S)
        except (ConnectionLost, CallRefused, SaslError) as problem:
            raise NodeError(f"{container.node_id.host}: {problem}") from problem

    async def answers(self, address: str) -> bool:
        """True if the NodeManager at `host:port` answers within a second. Needs no token."""
        host, _, port = address.rpartition(":")
        return await HadoopConnection(host, int(port), protocol=_PROTOCOL, token=_NO_TOKEN).answers(_PROBE_S)

    def _connect(self, node: NodeId) -> HadoopConnection:
        token = self._tokens.get(node)
        if token is None:
            raise NodeError(f"the ResourceManager has sent no token for {node.host}")
        return HadoopConnection(node.host, node.port, protocol=_PROTOCOL, token=token)


def build_context(ask: Ask, archive: bytes) -> ContainerLaunchContext:
    """Return what a NodeManager needs to start a container: command, files and credentials.

    The credentials contain a zip archive, which Python runs from the private file that the NodeManager writes.
    """
    code = add_start(archive, base64.b64decode(ask.assignment_base64))
    credentials = Credentials(secrets={CODE_ALIAS: code})
    return ContainerLaunchContext(
        local_resources=tuple(
            StringLocalResourceMap(key=each.name, value=_describe(each)) for each in ask.unpacked
        ),
        tokens=write_credentials(credentials),
        command=(ask.command,),
    )


def _describe(archive: Unpacked) -> LocalResource:
    """Return an archive as a message for YARN. All containers of the user share one copy on a node."""
    url = urlsplit(archive.url)
    return LocalResource(
        resource=URL(scheme=url.scheme, host=url.hostname or "", port=url.port or -1, file=url.path),
        size=archive.size_bytes,
        timestamp=archive.modified_ms,
        type=_ARCHIVE,
        visibility=_PRIVATE,
    )
