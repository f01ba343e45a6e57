"""The kernels of a gateway: starts for a person, caps, and what an adopted kernel had at its start."""

from __future__ import annotations

import asyncio
import getpass
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from jupyter_client.kernelspec import NoSuchKernel
from tornado.web import HTTPError
from traitlets import TraitError

from roost.placement.model.format import format_count
from roost.provisioners.application import build_http_error as refuse
from roost.provisioners.kernel_json import PROVISIONER, find_provisioner
from roost.provisioners.request_options import read_seconds
from roost.provisioners.server_extension.chosen_id import read_kernel_id
from roost.provisioners.server_extension.pending_starts import PendingStarts
from roost.provisioners.server_extension.reasons import describe
from roost.scheduler.backends.registry import get_spec
from roost.scheduler.backends.spec import DEFAULT_BACKEND
from roost.scheduler.client.client import Client
from roost.scheduler.errors import ConfigError, RoostError

from .gateway import Gateway
from .own_kernels import KernelRecord, refuse_kernel
from .start_variables import build_variables, check_references, inherit

_UNREADABLE = (NoSuchKernel, TraitError, TypeError, AttributeError, ValueError, OSError)
"""The errors of a kernelspec that is missing or malformed."""


class GatewayKernels(PendingStarts):
    """The kernel manager of a gateway. A kernel starts by `start_for` alone, which knows its person."""

    answer_after_s = 20.0
    shows_others = False

    @property
    def gateway(self) -> Gateway:
        """The gateway that all parts of the server share."""
        gateway: Gateway = self.parent.gateway
        return gateway

    async def start_for(
        self, person: str, kernel_name: str | None, *, kernel_id: str = "", env: Any = None, session: str = ""
    ) -> str:
        """Start a kernel for a person and return its id, once caps, users and the service have accepted the start.

        Raises `HTTPError`. If the caller is cancelled, the start is taken back.
        """
        name = kernel_name or self.default_kernel_name
        facts: dict[str, Any] = {"person": person, "kernelspec": name}
        try:
            kernel_id, record = self._admit(person, name, kernel_id, env, session)
            is_own = record.backend in self.gateway.settings.impersonate
            facts |= {"user": record.user, "kernel": kernel_id, "backend": record.backend}
            facts["account"] = person if is_own else getpass.getuser()
            environment = self.find_environment(kernel_id)
            try:
                await self.start_kernel(
                    kernel_id=kernel_id, kernel_name=name, env=environment, cwd=self.root_dir
                )
            except BaseException:
                if kernel_id in self:  # it came as its client went
                    await self.shutdown_kernel(kernel_id, now=True)
                else:
                    self.gateway.own.forget(kernel_id, has_run=False)
                raise
        except asyncio.CancelledError:
            self.gateway.audit.write("start", outcome="taken back", **facts)
            raise
        except Exception as problem:
            sentence = describe(problem)
            self.gateway.audit.write("start", outcome="refused", sentence=sentence, **facts)
            if isinstance(problem, HTTPError):
                raise refuse(problem.status_code, sentence) from None
            raise
        self.gateway.audit.write("start", **facts)
        return kernel_id

    async def start_kernel(self, *, kernel_id: str | None = None, **kwargs: Any) -> str:
        """Start a kernel that `start_for` has admitted. Raises `HTTPError` for all others."""
        if kernel_id not in self.gateway.own.records or "env" not in kwargs:
            raise refuse(403, "The gateway does not know for whom this kernel is, so it does not start.")
        return await super().start_kernel(kernel_id=kernel_id, **kwargs)

    def _admit(
        self, person: str, name: str, kernel_id: str, env: Any, session: str
    ) -> tuple[str, KernelRecord]:
        """Check a start and keep its record, in one step: of many starts, only as many as the caps allow get in."""
        gateway = self.gateway
        spec = self._read_spec(name)
        timeout_s = self._find_timeout(spec)
        variables = build_variables(env, person, gateway.settings, timeout_s=timeout_s)
        user = variables["KERNEL_USERNAME"]
        if obstacle := self.find_obstacle(name, user):
            raise refuse(403, obstacle)
        chosen = kernel_id or variables.pop("KERNEL_ID", "")
        variables.pop("KERNEL_ID", None)
        chosen = self._check_id(chosen, person) or str(uuid.uuid4())
        if session:
            variables["JPY_SESSION_NAME"] = session
        if self.find_backend(spec) not in gateway.settings.impersonate:  # the person's agent knows the others
            check_references(name, spec.env, {**inherit(gateway.settings), **variables})
        self._check_caps(user)
        record = KernelRecord(
            person=person,
            user=user,
            kernel_name=name,
            backend=self.find_backend(spec),
            variables=variables,
            started_at=time.time(),
        )
        try:
            gateway.own.note(chosen, record)
        except OSError as problem:
            raise refuse(503, "The gateway cannot keep whose kernel this is: ask the operator.") from problem
        return chosen, record

    def _check_id(self, chosen: str, person: str) -> str:
        """Return the id that a client has chosen, if it is free. An id of another person does not exist for it."""
        known = chosen.strip().lower()
        owner = self.gateway.own.find_person(known)
        if owner != person and (owner or self.has(known)):
            raise refuse_kernel(chosen)
        return read_kernel_id({"KERNEL_ID": chosen}, [known] if self.has(known) else ())

    def _check_caps(self, user: str) -> None:
        """Raise `HTTPError` if there is no room for one more kernel, of all backends, of this user or of all."""
        settings = self.gateway.settings
        own = sum(record.user == user for record in self.list_counted())
        if settings.max_kernels_per_user is not None and own >= settings.max_kernels_per_user:
            allowed = f"max_kernels_per_user allows {settings.max_kernels_per_user}"
            raise refuse(429, f"{user} has {format_count(own, 'kernel')}, and {allowed}: end one first.")
        count = len({*self.list_kernel_ids(), *self.starts.pending})  # also those of nobody
        if settings.max_kernels is not None and count >= settings.max_kernels:
            raise refuse(
                429, f"The gateway has as many kernels as it may, {settings.max_kernels}: try later."
            )

    def list_counted(self) -> list[KernelRecord]:
        """Return the records of the kernels that count: they run, start or are being adopted."""
        return [record for kernel_id, record in self.gateway.own.records.items() if self.has(kernel_id)]

    def has(self, kernel_id: str) -> bool:
        """True if a kernel runs, starts or is being adopted."""
        return kernel_id in self or kernel_id in self.starts.pending

    def _read_spec(self, name: Any) -> Any:
        try:
            spec = self.kernel_spec_manager.get_kernel_spec(name)
            _read_options(spec)
        except _UNREADABLE:
            raise refuse(404, f"There is no kernelspec {str(name)!a:.80}.") from None
        return spec

    def find_obstacle(self, name: str, user: str | None) -> str:
        """Return why this user may not start kernels of a kernelspec, as a sentence; empty if she may.

        Without a user, only the kernelspec itself counts.
        """
        try:
            spec = self.kernel_spec_manager.get_kernel_spec(name)
            backend = self.find_backend(spec)
        except _UNREADABLE:
            return f"There is no kernelspec {name!a:.80}."
        settings = self.gateway.settings
        if find_provisioner(spec.to_dict()) != PROVISIONER:
            return f"The gateway starts roost's kernelspecs only, and {name} is none: ask the operator."
        try:
            has_own_place = get_spec(backend).separates_kernels or backend in settings.impersonate
            if not has_own_place and backend not in settings.shared_accounts:
                return f"Kernels of {backend} would share one account: the operator has to add it to shared_accounts."
            if user is not None:
                self.gateway.check_user(user, name)
        except RoostError as problem:
            return problem.user_message
        return ""

    def find_backend(self, spec: Any) -> str:
        """Return the name of the backend that a kernelspec chooses, or the configuration for it."""
        otherwise = self.config.get("RoostProvisioner", {}).get("backend", DEFAULT_BACKEND)
        return str(_read_options(spec).get("backend") or otherwise)

    def _find_timeout(self, spec: Any) -> float:
        """Return how long a start of a kernelspec may take if the client says nothing, in seconds."""
        timeout = _read_options(spec).get("launch_timeout")
        try:
            return read_seconds("launch_timeout", timeout) if timeout else self.gateway.default_timeout_s
        except ConfigError as problem:
            raise refuse(400, problem.user_message) from None

    def find_environment(self, kernel_id: str) -> dict[str, str]:
        """Return the gateway's variables for all kernels, and those of this kernel's start."""
        record = self.gateway.own.records.get(kernel_id)
        if record is not None and record.backend in self.gateway.settings.impersonate:
            return dict(record.variables)  # and nothing of the gateway's own
        return {**inherit(self.gateway.settings), **(record.variables if record is not None else {})}

    def find_client(self, kernel_id: str, backend: str) -> Client | None:
        """Return the client of the person's own service, if the kernel runs as the person."""
        record = self.gateway.own.records.get(kernel_id)
        if record is None or backend not in self.gateway.settings.impersonate:
            return None
        return self.gateway.relays.find_client(record.person, backend)

    def list_clients(self, kernel_name: str, own: Client) -> Sequence[Client]:
        """Return the clients of the people who had kernels of a kernelspec, if these ran as the people."""
        if own.backend not in self.gateway.settings.impersonate:
            return [own]
        records = self.gateway.own.records.values()
        people = {each.person for each in records if each.kernel_name == kernel_name}
        return [self.gateway.relays.find_client(person, own.backend) for person in sorted(people)]

    def may_have(self, client: Client, kernel_id: str) -> bool:
        """True unless a person's service names a kernel that is not hers."""
        if not client.is_of_another_user:
            return True
        person = self.gateway.own.find_person(kernel_id)
        if person and client is self.gateway.relays.find_client(person, client.backend):
            return True
        self.log.warning("roost: a person's service names the kernel %s, which is not hers", kernel_id)
        return False

    def update_env(self, *, kernel_id: str, env: Mapping[str, str]) -> None:
        """Change the session's name in a kernel's next restart. Jupyter Server would add its whole environment."""
        names = {name: value for name, value in env.items() if name == "JPY_SESSION_NAME"}
        super().update_env(kernel_id=kernel_id, env=names)

    async def restart_kernel(self, kernel_id: str, now: bool = False) -> Any:
        """Restart a kernel, and write it into the audit file."""
        outcome = "failed"
        try:
            answer = await super().restart_kernel(kernel_id, now=now)
            outcome = "done"
            return answer
        finally:
            self._write("restart", kernel_id, outcome=outcome)

    def remove_kernel(self, kernel_id: str) -> Any:
        """Forget a kernel that has ended. A failed start that begins again keeps its record."""
        reason = getattr(self.get_kernel(kernel_id), "reason", "") if kernel_id in self else ""
        removed = super().remove_kernel(kernel_id)
        if kernel_id not in self.starts.pending:
            self._write("end", kernel_id, sentence=reason)
            self.gateway.own.forget(kernel_id)
        return removed

    def keep_reason(self, kernel_id: str, reason: str) -> None:
        """Keep the reason why a kernel is not listed any more, also in the audit file."""
        super().keep_reason(kernel_id, reason)
        self._write("culled", kernel_id, sentence=reason)

    def _write(self, what: str, kernel_id: str, **facts: Any) -> None:
        own = self.gateway.own
        record = own.records.get(kernel_id)
        name = "" if record is None else record.kernel_name
        person = own.find_person(kernel_id)  # also after its end
        self.gateway.audit.write(what, person=person, kernelspec=name, kernel=kernel_id, **facts)


def _read_options(spec: Any) -> Mapping[str, Any]:
    """Return the options in a kernelspec's `config`; raises `TypeError` or `AttributeError` if it is malformed."""
    options = (spec.metadata or {}).get("kernel_provisioner", {}).get("config", {})
    if not isinstance(options, Mapping):
        raise TypeError(options)
    return options
