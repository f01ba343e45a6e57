"""When hosts are contacted: places, pauses and remembered problems, in virtual time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Coroutine, Iterator, Mapping, Sequence
from typing import Any

import pytest

from kit.fakes.virtual_time import VirtualLoop
from roost.scheduler.backends.ssh import contacts as contacts_module
from roost.scheduler.backends.ssh.contacts import Contacts, find_route_of
from roost.scheduler.backends.ssh.problems import HostProblem, Kind


class Hosts:
    """Hosts whose contacts take a second, or 100 if the name begins with `off`.

    `problems` has the kinds with which a host's next contacts fail.
    """

    def __init__(self) -> None:
        self.contacts: list[tuple[str, float]] = []
        self.problems: dict[str, list[Kind]] = {}
        self.routes: dict[str, tuple[str, ...]] = {}
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.route_questions = 0

    async def run(
        self, host: str, program: str, arguments: Mapping[str, Any], /, **options: Any
    ) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        self.contacts.append((host, loop.time() - 1_000))
        servers = ("all", host, *self.routes.get(host, ()))
        for server in servers:
            self.now[server] += 1
            self.most[server] = max(self.most[server], self.now[server])
        try:
            await asyncio.sleep(100 if host.startswith("off") else 1)
        finally:
            self.now.subtract(servers)
        if kinds := self.problems.get(host):
            raise HostProblem(f"{host} has a problem", kind=kinds.pop(0))
        return {"host": host}

    async def find_route(self, host: str, ssh: Sequence[str]) -> Sequence[str]:
        self.route_questions += 1
        self.now["ways"] += 1
        self.most["ways"] = max(self.most["ways"], self.now["ways"])
        try:
            await asyncio.sleep(0)
        finally:
            self.now["ways"] -= 1
        return self.routes.get(host, ())

    def times_of(self, host: str) -> list[float]:
        return [at for name, at in self.contacts if name == host]


@pytest.fixture
def hosts() -> Hosts:
    return Hosts()


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    loop = VirtualLoop()
    yield loop
    loop.close()


def make(hosts: Hosts) -> Contacts:
    return Contacts(run=hosts.run, find_route=hosts.find_route, jitter=lambda: 1.0, first=16)


def ask(contacts: Contacts, host: str) -> Coroutine[Any, Any, dict[str, Any]]:
    return contacts.run(host, "", {}, archive=bytes)


async def kind_of(question: Awaitable[object]) -> str:
    with pytest.raises(HostProblem) as caught:
        await question
    return caught.value.kind


def test_at_most_sixteen_contacts_at_once(loop: VirtualLoop, hosts: Hosts) -> None:
    async def check() -> None:
        contacts = make(hosts)
        await asyncio.gather(*(ask(contacts, f"n{n}") for n in range(100)))

    loop.run_until_complete(check())
    assert hosts.most["all"] == 16
    assert hosts.most["ways"] == 4
    assert loop.now == 1_000 + 7  # 100 contacts of a second


def test_few_contacts_begin_and_each_end_adds_one(loop: VirtualLoop, hosts: Hosts) -> None:
    async def check() -> None:
        contacts = Contacts(run=hosts.run, find_route=hosts.find_route, jitter=lambda: 1.0)
        await asyncio.gather(*(ask(contacts, f"n{n}") for n in range(100)))
        began = [at for _, at in sorted(hosts.contacts, key=lambda contact: contact[1])]
        assert [began.count(at) for at in sorted(set(began))[:3]] == [4, 16, 16]

    loop.run_until_complete(check())
    assert hosts.most["all"] == 16


def test_hosts_that_are_off_leave_their_places_to_others(loop: VirtualLoop, hosts: Hosts) -> None:
    async def check() -> None:
        contacts = make(hosts)
        off = asyncio.gather(*(ask(contacts, f"off{n}") for n in range(20)))
        await asyncio.sleep(0.5)
        await asyncio.gather(*(ask(contacts, f"n{n}") for n in range(40)))
        assert not off.done()
        assert sorted({at for name, at in hosts.contacts if name.startswith("n")}) == [3, 4, 5, 6]
        await off
        hosts.most.clear()
        await asyncio.gather(*(ask(contacts, f"n{n}") for n in range(40)))
        assert hosts.most["all"] == 16, "a place was given back twice"

    loop.run_until_complete(check())


def test_at_most_eight_contacts_with_one_host_or_jump_host(loop: VirtualLoop, hosts: Hosts) -> None:
    hosts.routes = {f"n{n}": ("login",) for n in range(20)}

    async def check() -> None:
        contacts = make(hosts)
        await asyncio.gather(
            *(ask(contacts, f"n{n}") for n in range(20)), *(ask(contacts, "other") for _ in range(20))
        )

    loop.run_until_complete(check())
    assert hosts.most["login"] == hosts.most["other"] == 8


def test_hosts_that_wait_for_a_jump_host_leave_places_to_others(loop: VirtualLoop, hosts: Hosts) -> None:
    hosts.routes = {f"n{n}": ("login",) for n in range(40)}

    async def check() -> None:
        contacts = make(hosts)
        behind = asyncio.gather(*(ask(contacts, f"n{n}") for n in range(40)))
        await asyncio.sleep(0.5)
        await ask(contacts, "other")
        assert hosts.times_of("other") == [0.5]
        await behind

    loop.run_until_complete(check())


def test_a_way_is_found_once(loop: VirtualLoop, hosts: Hosts) -> None:
    async def check() -> None:
        contacts = make(hosts)
        for _ in range(3):
            await ask(contacts, "n1")

    loop.run_until_complete(check())
    assert hosts.route_questions == 1


def test_a_refused_connection_is_tried_again(loop: VirtualLoop, hosts: Hosts) -> None:
    async def check() -> None:
        hosts.problems["n1"] = ["refused"] * 3
        assert await ask(make(hosts), "n1") == {"host": "n1"}

    loop.run_until_complete(check())
    assert hosts.times_of("n1") == [0, 2, 5, 10]  # each contact takes a second


def test_a_connection_that_stays_refused_is_a_problem(loop: VirtualLoop, hosts: Hosts) -> None:
    async def check() -> None:
        contacts = make(hosts)
        hosts.problems["n1"] = ["refused"] * 4
        assert await kind_of(ask(contacts, "n1")) == "refused"
        assert await kind_of(ask(contacts, "n1")) == "refused"
        assert len(hosts.contacts) == 4
        await asyncio.sleep(5)
        await ask(contacts, "n1")

    loop.run_until_complete(check())


def test_a_pause_holds_no_place(loop: VirtualLoop, hosts: Hosts) -> None:
    async def check() -> None:
        contacts = make(hosts)
        hosts.problems = {f"n{n}": ["refused"] for n in range(16)}
        asked = asyncio.gather(*(ask(contacts, f"n{n}") for n in range(16)))
        await asyncio.sleep(1.5)
        await ask(contacts, "other")
        assert hosts.times_of("other") == [1.5]
        await asked

    loop.run_until_complete(check())


@pytest.mark.parametrize("kind", ["authentication", "host_key"])
def test_a_failed_login_waits_for_a_person(loop: VirtualLoop, hosts: Hosts, kind: Kind) -> None:
    async def check() -> None:
        contacts = make(hosts)
        hosts.problems["n1"] = [kind, kind]
        assert await kind_of(ask(contacts, "n1")) == kind
        await asyncio.sleep(100_000)
        assert await kind_of(ask(contacts, "n1")) == kind
        assert len(hosts.contacts) == 1
        await ask(contacts, "n2")
        contacts.clear("n2")
        assert await kind_of(ask(contacts, "n1")) == kind
        assert len(hosts.times_of("n1")) == 1
        contacts.clear()
        assert await kind_of(ask(contacts, "n1")) == kind
        assert len(hosts.times_of("n1")) == 2
        contacts.clear("n1")
        await ask(contacts, "n1")

    loop.run_until_complete(check())


def test_a_failed_login_is_not_tried_again_before_it_is_cleared(loop: VirtualLoop, hosts: Hosts) -> None:
    async def check() -> None:
        contacts = make(hosts)
        hosts.problems["n1"] = ["authentication"]
        assert await kind_of(ask(contacts, "n1")) == "authentication"
        await asyncio.sleep(1000)
        assert await kind_of(ask(contacts, "n1")) == "authentication"
        contacts.clear()
        await ask(contacts, "n1")
        assert contacts.problem_of("n1") is None

    loop.run_until_complete(check())


@pytest.mark.parametrize("kind", ["unreachable", "slow", "python", "answer", "ssh"])
def test_a_host_that_fails_rests(loop: VirtualLoop, hosts: Hosts, kind: Kind) -> None:
    async def check() -> None:
        contacts = make(hosts)
        hosts.problems["n1"] = [kind]
        assert await kind_of(ask(contacts, "n1")) == kind
        await asyncio.sleep(4.9)
        assert await kind_of(ask(contacts, "n1")) == kind
        assert len(hosts.contacts) == 1
        await asyncio.sleep(0.1)
        await ask(contacts, "n1")

    loop.run_until_complete(check())


def test_callers_that_waited_get_the_problem_of_the_first(loop: VirtualLoop, hosts: Hosts) -> None:
    async def check() -> None:
        contacts = make(hosts)
        hosts.problems["n1"] = ["unreachable"] * 8
        kinds = await asyncio.gather(*(kind_of(ask(contacts, "n1")) for _ in range(30)))
        assert kinds == ["unreachable"] * 30

    loop.run_until_complete(check())
    assert len(hosts.contacts) == 8


def test_a_cancelled_caller_gives_its_place_back(loop: VirtualLoop, hosts: Hosts) -> None:
    async def check() -> None:
        contacts = make(hosts)
        for pause_s in (0.0, 0.5):
            tasks = [asyncio.ensure_future(ask(contacts, f"n{n % 3}")) for n in range(60)]
            await asyncio.sleep(pause_s)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        await asyncio.gather(*(ask(contacts, f"m{n}") for n in range(16)))

    loop.run_until_complete(check())
    assert hosts.most["all"] == 16
    assert not +hosts.now


@pytest.mark.parametrize(
    ("options", "route"),
    [
        ({}, ("n1:22",)),
        ({"hostname": "10.0.0.1", "port": "2222", "proxyjump": "none"}, ("10.0.0.1:2222",)),
        (
            {"proxyjump": "ada@login:2222,ssh://bob@gate,b@[::1]:1"},
            ("n1:22", "login:2222", "gate", "[::1]:1"),
        ),
    ],
)
async def test_the_servers_on_a_way(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, str], route: tuple[str, ...]
) -> None:
    async def read(host: str, **_: Any) -> dict[str, str]:
        return options

    monkeypatch.setattr(contacts_module, "read_options", read)
    assert await find_route_of("n1", ("ssh",)) == route
