"""When hosts are contacted: how many at once, and when again after a problem.

sshd refuses connections if many logins are under way (MaxStartups). It bans an address after some failed logins
(PerSourcePenalties, OpenSSH 9.8). So contacts are few at once, and a login that failed is not tried again by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .open_ssh import HostProblem, read_options, run_on_host

_MOST, _FIRST = 16, 4
"""At most this many contacts are made at once, and at first: fewer share the processors, so the first end sooner."""
_FIRST_S = 1.0
"""How long `_FIRST` holds. Each contact that ends before adds one."""
_LONG_S = 3.0
"""A contact that takes longer does not count among `_MOST`: its host is probably off, and delays no other."""
_MOST_ROUTES = 4
"""At most this many ways are found at once. ssh needs some milliseconds of the processor for one."""
_MOST_EACH = 8
"""sshd's default of MaxStartups begins to refuse at 10."""
_PAUSES_S = (1.0, 2.0, 4.0)
_REST_S = 5.0
"""How long the sentence of a host that cannot be used is repeated, before the host is asked again."""
_ROUTE_S = 2.0
_NEEDS_A_PERSON = ("authentication", "host_key")

Run = Callable[..., Awaitable[dict[str, Any]]]
"""The function that contacts a host, with the parameters of `run_on_host`."""
FindRoute = Callable[[str, Sequence[str]], Awaitable[Sequence[str]]]
"""A function of a host and the client's command. It returns the sshd servers on the way to the host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failure:
    """A contact that failed. `at` is a time of the event loop."""

    problem: HostProblem
    at: float


class Contacts:
    """The contacts of one service with all its hosts.

    >>> contacts = Contacts()
    >>> answer = await contacts.run("n1", "say({'cpus': 4})", {}, archive=bytes)      # doctest: +SKIP
    """

    def __init__(
        self,
        *,
        run: Run = run_on_host,
        find_route: FindRoute | None = None,
        jitter: Callable[[], float] = lambda: random.uniform(0.5, 1.5),
        first: int = _FIRST,
    ) -> None:
        self._run = run
        self._find_route = find_route or find_route_of
        self._jitter = jitter
        self._first = first
        self._places = 0
        """How many contacts may be made at once; 0 before the first one."""
        self._all = asyncio.Semaphore(0)
        self._finding = asyncio.Semaphore(_MOST_ROUTES)
        self._each: dict[str, asyncio.Semaphore] = {}
        self._routes: dict[str, Sequence[str]] = {}
        self._failures: dict[str, _Failure] = {}

    async def run(
        self,
        host: str,
        program: str,
        arguments: Mapping[str, Any],
        *,
        ssh: Sequence[str] = ("ssh",),
        **options: Any,
    ) -> dict[str, Any]:
        """Call `run_on_host` when the host's turn comes, and again if a connection is refused. Raises `HostProblem`.

        A host that failed a moment ago raises the same problem again, without a contact. So does a failed login or an
        unknown host key, until `clear` is called.
        """
        pauses = iter(_PAUSES_S)
        while True:
            self._raise_known(host)
            async with self._turn(host, ssh):
                # Another contact may have failed while this one waited.
                self._raise_known(host)
                try:
                    answer = await self._run(host, program, arguments, ssh=ssh, **options)
                except HostProblem as caught:
                    problem = caught
                else:
                    self._failures.pop(host, None)
                    return answer
            pause_s = next(pauses, None) if problem.kind == "refused" else None
            if pause_s is None:
                now = asyncio.get_running_loop().time()
                self._failures[host] = _Failure(problem=problem, at=now)
                raise problem
            await asyncio.sleep(pause_s * self._jitter())

    def clear(self, host: str | None = None) -> None:
        """Forget the failures of a host, or of all hosts, and the ways to them. The next call makes a contact."""
        for known in [host] if host is not None else [*self._failures, *self._routes]:
            self._failures.pop(known, None)
            self._routes.pop(known, None)

    def problem_of(self, host: str) -> HostProblem | None:
        """Return the problem of the last contact of a host; `None` if it succeeded."""
        failure = self._failures.get(host)
        return None if failure is None else failure.problem

    def _raise_known(self, host: str) -> None:
        failure = self._failures.get(host)
        if failure is None:
            return
        needs_a_person = failure.problem.kind in _NEEDS_A_PERSON
        if needs_a_person or asyncio.get_running_loop().time() < failure.at + _REST_S:
            raise HostProblem(failure.problem.user_message, kind=failure.problem.kind)

    @contextlib.asynccontextmanager
    async def _turn(self, host: str, ssh: Sequence[str]) -> AsyncIterator[None]:
        """Wait until a contact of this host may begin."""
        if host not in self._routes:
            async with self._finding:
                route = await self._find_route(host, ssh)
            self._routes[host] = route
        async with contextlib.AsyncExitStack() as stack:
            # In one order for all, and the common one last: a host that is slow must not hold a place for others.
            for server in sorted({host, *self._routes[host]}):
                await stack.enter_async_context(self._each.setdefault(server, asyncio.Semaphore(_MOST_EACH)))
            await stack.enter_async_context(self._place())
            yield

    @contextlib.asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        """Hold one of the common places until the end of the block, or for `_LONG_S`."""
        if not self._places:
            self._add_places(self._first)
            asyncio.get_running_loop().call_later(_FIRST_S, self._add_places, _MOST)
        await self._all.acquire()
        is_held = True

        def leave() -> None:
            nonlocal is_held
            if is_held:
                is_held = False
                self._all.release()

        timer = asyncio.get_running_loop().call_later(_LONG_S, leave)
        try:
            yield
        finally:
            timer.cancel()
            leave()
            self._add_places(1)

    def _add_places(self, count: int) -> None:
        """Let so many more contacts be made at once, up to `_MOST`."""
        for _ in range(min(count, _MOST - self._places)):
            self._places += 1
            self._all.release()


async def find_route_of(host: str, ssh: Sequence[str]) -> Sequence[str]:
    """Return the servers on the way to a host: itself, and its jump hosts. Without an answer: only the host."""
    options = await read_options(host, ssh=ssh, deadline_s=_ROUTE_S)
    server = options.get("hostname", host)
    jumps = [_strip(jump) for jump in options.get("proxyjump", "none").split(",") if jump != "none"]
    return (f"{server}:{options.get('port', '22')}", *jumps)


def _strip(jump: str) -> str:
    """Return a jump host without its user: it is one server for all users."""
    return jump.removeprefix("ssh://").rpartition("@")[2]
