"""The records of all kernels of the gateway, which say whose they are, and the authorizer that reads them.

The records are in the gateway's state folder, because a kernel outlives the gateway. A kernel that has no record
belongs to nobody: only admins see it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jupyter_server.auth import Authorizer, User
from tornado.web import HTTPError

from roost.placement.model.last_entries import LastEntries
from roost.provisioners.application import build_http_error as refuse
from roost.scheduler.client.state_folder import take_json, write_private_json

_FILE = "owners.json"
_MOST_ENDED = 10_000
"""At most this many owners of ended kernels are remembered."""
_UNFINISHED_S = 86_400.0
"""How long the record of a start counts whose kernel the next gateway has not found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelRecord:
    """A kernel's person, and what the gateway needs to start it again."""

    person: str
    """Who may use the kernel."""
    user: str
    """For whom it counts in caps. It differs from `person` with the source `trust` alone."""
    kernel_name: str
    backend: str
    variables: Mapping[str, str]
    """The variables of its start, without those of the gateway."""
    started_at: float


class OwnKernels:
    """The records of a gateway's kernels, by kernel id. `folder` is the gateway's state folder."""

    def __init__(self, folder: Path, log: logging.Logger) -> None:
        self._path = folder / _FILE
        self._log = log
        self._is_closed = False
        self._ended = LastEntries[str, str](_MOST_ENDED)
        self._records: dict[str, KernelRecord] = {}
        for kernel_id, document in (take_json(self._path, log) or {}).items():
            try:
                self._records[kernel_id] = _read_record(document)
            except TypeError:
                log.error("kernel=%s has an unreadable record, so it belongs to nobody", kernel_id)

    @property
    def records(self) -> Mapping[str, KernelRecord]:
        return self._records

    def find_person(self, kernel_id: str) -> str:
        """Return who may use a kernel, also after its end; empty if nobody may."""
        record = self._records.get(kernel_id)
        return record.person if record is not None else self._ended.get(kernel_id, "")

    def note(self, kernel_id: str, record: KernelRecord) -> None:
        """Keep a record. Raises `OSError` if it cannot be kept: the kernel would belong to nobody later."""
        self._records[kernel_id] = record
        try:
            self._write()
        except OSError:
            del self._records[kernel_id]
            raise

    def forget(self, kernel_id: str, *, has_run: bool = True) -> KernelRecord | None:
        """Forget a kernel that has ended. Its person may still ask why, if it has run."""
        record = self._records.pop(kernel_id, None)
        if record is not None:
            if has_run:
                self._ended[kernel_id] = record.person
            try:
                self._write()
            except OSError as problem:
                self._log.warning("roost: %s cannot be written: %s", self._path, problem.strerror)
        return record

    def forget_unfinished(self, known: Mapping[str, object]) -> None:
        """Forget the records of old starts that have not become one of the `known` kernels."""
        oldest = time.time() - _UNFINISHED_S
        for kernel_id, record in list(self._records.items()):
            if kernel_id not in known and record.started_at < oldest:
                del self._records[kernel_id]

    def close(self) -> None:
        """Leave the file to the next gateway. A start that ends late changes nothing there."""
        self._is_closed = True

    def _write(self) -> None:
        if not self._is_closed:
            write_private_json(
                self._path, {kernel_id: asdict(each) for kernel_id, each in self._records.items()}
            )


def _read_record(document: Mapping[str, Any]) -> KernelRecord:
    """Return the record in a file. Raises `TypeError` if it is none."""
    record = KernelRecord(**document)
    if not isinstance(record.variables, dict) or not isinstance(record.started_at, float | int):
        raise TypeError(document)
    texts = (record.person, record.user, record.kernel_name, record.backend, *record.variables.values())
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(document)
    return record


def refuse_kernel(kernel_id: str) -> Exception:
    """Return Jupyter Server's answer for a kernel that does not exist, also for a kernel of another person."""
    return refuse(404, f"Kernel does not exist: {kernel_id}")


class OwnKernelsOnly(Authorizer):  # type: ignore[misc]
    """The authorizer of a gateway. Each handler class says in `access` what a request needs.

    `person` needs a known caller, and `admin` an admin. `kernel` and `session` need an owner, and `kernelspec` a person
    who may start it. A class without `access` gets 403.
    """

    async def is_authorized(self, handler: Any, user: User, action: str, resource: str) -> bool:
        """Return True, or raise 404 for what the caller must not know of. Jupyter Server turns False into 403."""
        access = getattr(handler, "access", "")
        given = {**handler.path_kwargs}
        if access == "person":
            return True
        if access == "admin":
            return bool(handler.gateway.is_admin(user.username))
        if access == "kernel":
            kernel_id = given.get("kernel_id") or handler.path_args[0]
            return self._check_kernel(handler, user, kernel_id)
        if access == "session":
            try:
                session = await handler.session_manager.get_session(session_id=given["session_id"])
                return self._check_kernel(handler, user, session["kernel"]["id"])
            except HTTPError:  # its text may name a kernel
                raise refuse(404, f"Session not found: session_id={given['session_id']!r}") from None
        if access == "kernelspec":
            if handler.kernel_manager.find_obstacle(given["kernel_name"], user.username):
                raise refuse(404, f"Kernel spec {given['kernel_name']} not found")
            return True
        self.log.error("roost: %s says nothing about its access", type(handler).__name__)
        return False

    def _check_kernel(self, handler: Any, user: User, kernel_id: str) -> bool:
        gateway = handler.gateway
        if gateway.own.find_person(kernel_id) == user.username:
            return True
        if handler.is_for_all and handler.request.method in handler.admin_methods:
            gateway.audit.write(
                "admin", person=user.username, kernel=kernel_id, sentence=f"{handler.request.method} a kernel",
                address=handler.request.remote_ip,
            )  # fmt: skip
            return True
        raise refuse_kernel(kernel_id)
