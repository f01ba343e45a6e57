"""The calls to the active ResourceManager, which listens at one of several addresses."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TypeVar

from .hadoop_rpc import CallRefused, ConnectionLost, HadoopConnection
from .sasl import SaslError
from .schema import (
    AllocateRequest,
    AllocateResponse,
    FinishApplicationMasterRequest,
    FinishApplicationMasterResponse,
    RegisterApplicationMasterRequest,
    RegisterApplicationMasterResponse,
    Token,
)

T = TypeVar("T")

log = logging.getLogger(__name__)

_PROTOCOL = "org.apache.hadoop.yarn.api.ApplicationMasterProtocolPB"
_DEADLINE_S = 10.0
_SUCCEEDED = 1  # FinalApplicationStatusProto
_NOT_ACTIVE = ("StandbyException", "RetriableException", "ServerNotRunningYetException")
_NOT_TRUSTED = ("InvalidToken", "AccessControlException", "SaslException")


class Away(Exception):
    """No ResourceManager answers. `is_trusted` is False if one answered that the master's token is invalid."""

    def __init__(self, problem: Exception, *, is_trusted: bool) -> None:
        self.is_trusted = is_trusted
        super().__init__(str(problem))


class ResourceManager:
    """A client of the ResourceManager, for an application master. Its calls raise `CallRefused` or `Away`."""

    def __init__(self, addresses: Sequence[str], token: Token) -> None:
        self._addresses = list(addresses)
        self._token = token
        self._connection: HadoopConnection | None = None

    async def register(self, host: str, port: int) -> RegisterApplicationMasterResponse:
        request = RegisterApplicationMasterRequest(host=host, rpc_port=port)
        return await self._call("registerApplicationMaster", request, RegisterApplicationMasterResponse)

    async def allocate(self, request: AllocateRequest) -> AllocateResponse:
        """Send a heartbeat. A new token in the answer is used from then on."""
        answer = await self._call("allocate", request, AllocateResponse)
        token = answer.am_rm_token
        if token is not None and token.identifier != self._token.identifier:
            log.info("the ResourceManager has renewed the master's token")
            self._token = token
            self.close()
        return answer

    async def finish(self) -> bool:
        """Unregister the application. Return False while the ResourceManager has not noted that; then repeat."""
        request = FinishApplicationMasterRequest(final_application_status=_SUCCEEDED)
        answer = await self._call("finishApplicationMaster", request, FinishApplicationMasterResponse)
        return answer.is_unregistered

    def close(self) -> None:
        """Close the connection. May be repeated; a later call connects again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def _call(self, method: str, request: object, answer: type[T]) -> T:
        """Call the ResourceManager that answered last, or else the first other ResourceManager that answers."""
        problems: list[Exception] = []
        for _ in self._addresses:
            if self._connection is None:
                host, _, port = self._addresses[0].rpartition(":")
                self._connection = HadoopConnection(host, int(port), protocol=_PROTOCOL, token=self._token)
            try:
                return await self._connection.call(method, request, answer, timeout_s=_DEADLINE_S)
            except CallRefused as problem:
                if problem.name not in _NOT_ACTIVE and not _is_distrust(problem):
                    raise
                problems.append(problem)
            except (ConnectionLost, SaslError) as problem:
                problems.append(problem)
            self.close()
            self._addresses.append(self._addresses.pop(0))
        distrust = next((problem for problem in problems if _is_distrust(problem)), None)
        raise Away(distrust or problems[0], is_trusted=distrust is None)


def _is_distrust(problem: Exception) -> bool:
    return isinstance(problem, CallRefused) and problem.name.rpartition("$")[2] in _NOT_TRUSTED
