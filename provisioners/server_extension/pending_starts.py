"""Pending starts: a kernel of roost's that has to wait is listed at once, and its clients can connect.

`add_pending_starts` makes a subclass of the configured kernel manager class. Starts of other kernels are as before.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, cast

from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from tornado.web import HTTPError

from roost.placement.model.format import format_age
from roost.placement.model.last_entries import LastEntries
from roost.provisioners import RoostProvisioner
from roost.provisioners.application import to_http_error
from roost.provisioners.jupyter_internals import find_restarter, read_launch_arguments
from roost.provisioners.kernel_json import PROVISIONER, check_spec, find_provisioner
from roost.scheduler.client.client import Client
from roost.scheduler.errors import ConfigError, RoostError

from .adopted_kernels import Adoption
from .chosen_id import read_kernel_id
from .reasons import describe_end
from .restarter import following_state
from .shutdown import Shutdown
from .waiting_starts import WaitingStarts

if TYPE_CHECKING:
    from .extension import RoostExtension

_MOST_KEPT = 1_000
"""At most this many reasons of kernels' ends, and times of clients' disconnections, are kept: the latest ones."""
_LOOK_S = 0.05
"""How often a restart is looked at, until it has ended or is known to wait."""
_INTERRUPTED = "The start of this kernel was withdrawn by an interrupt: restart the kernel to ask again."
_RESTARTED = "The kernel was restarted while it waited, and keeps its place: run the cell again."
_OUT_OF_REACH = "The kernel is out of reach: nobody knows whether it runs. Shut it down, or wait."


class PendingStarts(AsyncMappingKernelManager):  # type: ignore[misc]
    """A kernel manager whose starts of roost's kernels do not block.

    It asks `starts`, `adoption` and `shutdown` what differs from Jupyter Server's own manager. For the provisioner it
    is the `Holder`.
    """

    answer_after_s = 0.12
    """How long a start may take before its kernel is listed as starting.

    JupyterLab drops cells that are run before the kernel is listed.
    """

    shows_others = True
    """True if a waiting notebook may show other users and their kernels."""

    def begin(self, extension: RoostExtension, *, may_wait: bool) -> None:
        """Set the attributes of this class, because the object may have been made by the original class.

        With `may_wait`, starts need not block, because the websockets can answer for a waiting kernel.
        """
        self.queue_timeout_s = extension.queue_timeout_s
        self.server_name = extension.state.name if extension.state.has_lock else ""
        self.adopting: set[str] = set()
        self.closed_at = LastEntries[str, float](_MOST_KEPT)
        """The `time.monotonic()` at which clients of roost's kernels disconnected, by session key."""
        self.seen_sessions: set[str] = set()
        """The keys of the sessions that have had their replay after the adoption of their kernels."""
        self.culled = LastEntries[str, str](_MOST_KEPT)
        """The reasons why kernels were culled or not adopted, as sentences, by kernel id."""
        self.may_wait = may_wait
        self.is_stopping = False
        """True once the server has begun to stop: nothing starts any more."""
        self.starts = WaitingStarts(self, extension.state)
        self.adoption = Adoption(self, extension.state)
        self.shutdown = Shutdown(self, extension)
        self._extension = extension

    def find_client(self, kernel_id: str, backend: str) -> Client | None:
        """Return None: all kernels of a server run as the server's user."""
        return None

    def list_clients(self, kernel_name: str, own: Client) -> Sequence[Client]:
        """Return the clients of the services that may have kernels of a kernelspec. `own` is the server's."""
        return [own]

    def may_have(self, client: Client, kernel_id: str) -> bool:
        """True if the service of this client may have a kernel of this id."""
        return True

    def kernel_model(self, kernel_id: str) -> dict[str, Any]:
        """Return the kernel's model. Its `reason` says what will end a kernel that runs."""
        model: dict[str, Any] = super().kernel_model(kernel_id)
        prospect = getattr(self.get_kernel(kernel_id).provisioner, "prospect", "")
        return {"reason": prospect, **model} if prospect else model

    def note_waiting(self, kernel_id: str) -> None:
        """Wake the tasks that wait for a change of a start's state. Any thread may call this."""
        start = self.starts.pending.get(kernel_id)
        if start is not None:
            start.note_change()

    def find_environment(self, kernel_id: str) -> dict[str, str]:
        """Return the variables of a kernel that is adopted; with an empty id, those of a kernel in general."""
        return dict(os.environ)

    # Jupyter Server's methods

    async def start_kernel(self, *, kernel_id: str | None = None, **kwargs: Any) -> str:
        """Start a kernel and return its id, perhaps before the start has ended (`WaitingStarts.start`)."""
        is_there = kernel_id is not None and kernel_id in self
        if is_there or not self._is_of_roost(kwargs.get("kernel_name")) or not self.may_wait:
            return await self.start_at_once(kernel_id=kernel_id, **kwargs)
        kernel_id = kernel_id or self.new_kernel_id(**kwargs)
        await self.starts.start(kernel_id, kwargs)
        return kernel_id

    async def start_at_once(self, **kwargs: Any) -> str:
        """Start a kernel as Jupyter Server does, and return its id once the start has ended."""
        return cast(str, await super().start_kernel(**kwargs))

    def new_kernel_id(self, **kwargs: Any) -> str:
        """Return the id that the client has chosen by KERNEL_ID, else a new one. Raises `HTTPError`."""
        chosen = "" if "kernel_id" in kwargs else read_kernel_id(kwargs.get("env"), self)
        return chosen or cast(str, super().new_kernel_id(**kwargs))

    def pre_start_kernel(self, kernel_name: str | None, kwargs: Any) -> Any:
        km, name, kernel_id = super().pre_start_kernel(kernel_name, kwargs)
        self.starts.prepare(kernel_id, km)
        return km, name, kernel_id

    async def _finish_kernel_start(self, kernel_id: str) -> None:
        """Watch a kernel that has started. If it ends by itself, the REST model shows the reason."""
        await super()._finish_kernel_start(kernel_id)
        km = self.get_kernel(kernel_id)

        def note_end() -> None:
            km.reason = describe_end(km) or km.reason

        for event in ("restart", "dead"):
            self.add_restart_callback(kernel_id, note_end, event)
        if not isinstance(km.provisioner, RoostProvisioner):
            return
        self._remember(km)
        restarter = find_restarter(km)
        if restarter is not None:
            # With new ports, as Jupyter takes them for a kernel that dies soon, open notebooks would get no answers.
            restarter.random_ports_until_alive = False

    def remove_kernel(self, kernel_id: str) -> Any:
        self._extension.state.forget(kernel_id)
        return super().remove_kernel(kernel_id)

    def interrupt_kernel(self, kernel_id: str) -> Any:
        """Interrupt a kernel. The start of a waiting kernel is withdrawn."""
        start = self.starts.find_waiting(kernel_id)
        if start is None:
            return super().interrupt_kernel(kernel_id)
        if start.is_adoption:
            raise HTTPError(503, _OUT_OF_REACH)
        return self.starts.withdraw(start, _INTERRUPTED)

    async def restart_kernel(self, kernel_id: str, now: bool = False) -> Any:
        """Restart a kernel. A waiting kernel keeps its place, and its held cells end. A failed start begins again."""
        start = self.starts.find_waiting(kernel_id)
        if start is None or (start.is_restart and start.state == "failed"):
            km = self.get_kernel(kernel_id)
            await self._check_restart(km)
            async with following_state(km):
                restart = asyncio.ensure_future(super().restart_kernel(kernel_id, now=now))
                while not restart.done() and self.starts.find_waiting(kernel_id) is start:
                    await asyncio.wait([restart], timeout=_LOOK_S)
            if not restart.done():  # it waits, and its clients see why
                restart.add_done_callback(lambda done: done.cancelled() or done.exception())
                return None
            answer = restart.result()
            is_alive = await km.is_alive()  # else Jupyter's restarter tries again
            km.reason = "" if is_alive else describe_end(km) or km.reason
            return answer
        if start.is_adoption and start.state == "waiting":
            raise HTTPError(503, _OUT_OF_REACH)
        if start.state == "waiting":
            start.end_cells(_RESTARTED)
        else:
            await self.starts.start_again(start)
        return None

    async def _check_restart(self, km: Any) -> None:
        """Raise an `HTTPError` if the kernel's agent does not answer, before Jupyter asks the kernel to end.

        Jupyter Server answers with a text of its own, so the kernel's `reason` has the sentence.
        """
        if isinstance(km.provisioner, RoostProvisioner):
            try:
                await km.provisioner.check_reachable()
            except RoostError as problem:
                km.reason = f"The kernel was not restarted: {problem}"
                self.log.warning("kernel=%s was not restarted: %s", km.kernel_id, problem)
                raise to_http_error(problem) from None

    async def shutdown_kernel(self, kernel_id: str, now: bool = False, restart: bool = False) -> None:
        """Shut a kernel down. The start of a waiting kernel is withdrawn."""
        if await self.shutdown.prepare(kernel_id):
            await super().shutdown_kernel(kernel_id, now=now, restart=restart)

    async def shutdown_all(self, now: bool = False) -> None:
        """Leave the kernels that outlive the server to the next one; withdraw other starts, and stop other kernels."""
        await self.shutdown.end_all(super().shutdown_all, now=now)

    async def _async_shutdown_kernel(self, kernel_id: str, now: bool = False, restart: bool = False) -> None:
        # A kept kernel stays listed until the end: if it were missing, an open page would take it for dead.
        if kernel_id not in self.shutdown.kept:
            await super()._async_shutdown_kernel(kernel_id, now=now, restart=restart)

    def start_buffering(self, kernel_id: str, session_key: str, channels: Any) -> None:
        """Keep messages for a client that has disconnected, unless the kernel is left to the next server."""
        if kernel_id not in self.shutdown.kept:
            super().start_buffering(kernel_id, session_key, channels)
            return
        for stream in channels.values():
            stream.close()

    async def cull_kernel_if_idle(self, kernel_id: str) -> None:
        """Cull a kernel if it is idle. A waiting kernel does not count as idle."""
        start = self.starts.pending.get(kernel_id)
        if start is not None and start.state == "waiting":
            return
        km = self.get_kernel(kernel_id)
        await super().cull_kernel_if_idle(kernel_id)
        if kernel_id not in self and isinstance(km.provisioner, RoostProvisioner):
            idle = format_age((datetime.now(timezone.utc) - km.last_activity).total_seconds())
            self.keep_reason(
                kernel_id, f"Jupyter Server ended the kernel, because nobody had used it for {idle}."
            )

    # For connections and pages

    def take_lost_cells(self, kernel_id: str, session: str) -> list[dict[str, Any]]:
        """Return, and forget, the headers of a client's cells that an earlier server held and that will never run."""
        return self._extension.state.take_lost_cells(kernel_id, session)

    def note_closed(self, session_key: str) -> None:
        """Note that a client has disconnected. When it comes back, it gets a replay."""
        self.closed_at[session_key] = time.monotonic()

    def keep_reason(self, kernel_id: str, reason: str) -> None:
        """Keep the reason why a kernel is not listed any more."""
        self.culled[kernel_id] = reason

    def _remember(self, km: Any) -> None:
        """Keep the facts about a kernel on disk, for the next server."""
        arguments = read_launch_arguments(km)
        session = (arguments.get("env") or {}).get("JPY_SESSION_NAME", "")
        cwd = os.fspath(arguments.get("cwd") or "")
        self._extension.state.note(km.kernel_id, name=km.kernel_name, cwd=cwd, session=session)

    def _is_of_roost(self, kernel_name: str | None) -> bool:
        """True if the kernelspec starts kernels through roost. Raises an `HTTPError` if it is malformed."""
        spec = self.kernel_spec_manager.get_kernel_spec(kernel_name or self.default_kernel_name)
        default = os.environ.get("JUPYTER_DEFAULT_PROVISIONER_NAME", "")
        if (find_provisioner(spec.to_dict()) or default) != PROVISIONER:
            return False
        try:
            check_spec(spec)  # jupyter_client would fail without a reason before it makes the provisioner
        except ConfigError as problem:
            raise to_http_error(problem) from None
        return True


def add_pending_starts(kind: type[Any]) -> type[Any]:
    """Return a subclass of the kernel manager class `kind` that does not wait for starts of roost's kernels.

    `begin` must be called for each object of it. A class with pending starts stays as it is.
    """
    if issubclass(kind, PendingStarts):
        return kind
    bases = (PendingStarts,) if kind is AsyncMappingKernelManager else (PendingStarts, kind)
    return type(f"Roost{kind.__name__}", bases, {})
