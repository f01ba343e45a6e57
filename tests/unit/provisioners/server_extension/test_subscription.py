"""After a kernel's restart, a request is held until the client's output subscription works again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest
from jupyter_server.services.kernels.kernelmanager import ServerKernelManager

from kit.jupyter.client_messages import a_message
from roost.provisioners.provisioner import RoostProvisioner
from roost.provisioners.server_extension import held_messages, subscription
from roost.provisioners.server_extension.client_message import ClientMessage
from roost.provisioners.server_extension.quick_manager import make_quick
from roost.provisioners.server_extension.subscription import Subscription
from roost.testing import deadlines


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a process take as long as it likes to answer a probe, unless a test says otherwise."""
    monkeypatch.setattr(subscription, "_DEAF_S", 600.0)


class Provisioner:
    launch_id = "first"
    is_launching = False
    has_ended = False


class Connection:
    """A stand-in for a connection. It records the probes, and the requests that are not held."""

    def __init__(self) -> None:
        self.provisioner = Provisioner()
        self.probes: list[str] = []
        self.delivered: list[str] = []
        self.refused: list[str] = []
        self.restart: Any = None
        self.waiting: list[str] = []
        self.is_probe_open = False
        self.km: Any = ServerKernelManager()
        make_quick(self.km)
        self.subscription = Subscription(self, self.km, cast(RoostProvisioner, self.provisioner))

    def probe(self) -> str:
        self.is_probe_open = True
        self.probes.append(f"{self.provisioner.launch_id}-{len(self.probes)}")
        return self.probes[-1]

    def end_probe(self) -> None:
        self.is_probe_open = False

    def find_restart(self) -> Any:
        return self.restart

    def take(self, request: ClientMessage) -> None:
        if self.restart is None:
            self.deliver(request)
        else:
            self.waiting.append(request.header["msg_id"])

    def deliver(self, request: ClientMessage) -> None:
        if not self.subscription.hold(request):
            self.delivered.append(request.header["msg_id"])

    def refuse_full(self, request: ClientMessage) -> None:
        self.refused.append(request.header["msg_id"])


async def until(is_met: Callable[[], Any]) -> None:
    await deadlines.until(is_met, "the client reaches its next state", 60, 0.001)


async def test_a_request_goes_straight_to_a_kernel_that_was_not_restarted() -> None:
    client = Connection()
    client.deliver(a_message("cell"))
    assert client.delivered == ["cell"]
    assert (client.probes, client.subscription.is_listening) == ([], False)


async def test_requests_go_over_to_a_restart_that_has_to_wait() -> None:
    client = Connection()
    client.provisioner.has_ended = True
    client.deliver(a_message("cell"))
    await asyncio.sleep(0)
    assert (client.delivered, client.waiting) == ([], [])
    client.restart = object()
    client.km.wake()
    await until(lambda: client.waiting == ["cell"])
    assert not client.subscription.is_listening
    client.restart, client.provisioner.has_ended = None, False
    client.provisioner.launch_id = "second"
    client.deliver(a_message("cell"))
    assert client.delivered == [], "the next process has not been heard yet"
    client.subscription.close()


async def test_requests_after_a_restart_wait_until_a_probe_is_answered_on_iopub() -> None:
    client = Connection()
    client.provisioner.launch_id = "second"
    client.deliver(a_message("cell"))
    client.deliver(a_message("next cell"))
    await until(lambda: len(client.probes) >= 2)
    client.subscription.note("a request of another client")
    client.subscription.note(None)
    await asyncio.sleep(0.05)
    assert client.delivered == []
    client.subscription.note(client.probes[0])
    await until(lambda: client.delivered)
    assert client.delivered == ["cell", "next cell"]
    assert (client.is_probe_open, client.subscription.is_listening) == (False, False)
    client.deliver(a_message("last cell"))
    assert client.delivered == ["cell", "next cell", "last cell"]


async def test_a_launch_that_goes_on_gets_no_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscription, "_DEAF_S", 0.05)
    client = Connection()
    client.provisioner.launch_id, client.provisioner.is_launching = "second", True
    client.deliver(a_message("cell"))
    await asyncio.sleep(0.2)
    assert (client.probes, client.delivered) == ([], [])
    client.provisioner.is_launching = False
    await until(lambda: client.delivered)
    assert client.probes


async def test_an_answer_of_the_process_before_the_last_restart_does_not_count() -> None:
    client = Connection()
    client.provisioner.launch_id = "second"
    client.deliver(a_message("cell"))
    await until(lambda: client.probes)
    client.provisioner.launch_id = "third"
    await until(lambda: client.probes[-1].startswith("third"))
    client.subscription.note(client.probes[0])
    await asyncio.sleep(0.05)
    assert client.delivered == []
    client.subscription.note(client.probes[-1])
    await until(lambda: client.delivered)


@pytest.mark.parametrize("is_automatic", [False, True])
async def test_requests_wait_while_there_is_no_process(is_automatic: bool) -> None:
    client = Connection()
    client.km.is_restarting, client.provisioner.has_ended = not is_automatic, is_automatic
    client.deliver(a_message("cell"))
    await asyncio.sleep(0.05)
    assert (client.probes, client.delivered) == ([], [])
    started = client.km.started
    client.km.started = asyncio.Event()
    started.set()  # a restart has failed
    await asyncio.sleep(0.05)
    assert (client.probes, client.delivered) == ([], [])
    client.km.is_restarting = client.provisioner.has_ended = False
    client.provisioner.launch_id = "second"
    client.km.started.set()
    await until(lambda: client.probes)
    assert client.delivered == []
    client.subscription.note(client.probes[0])
    await until(lambda: client.delivered)
    assert client.delivered == ["cell"]


async def test_a_process_that_ends_before_its_first_answer_gets_no_request() -> None:
    client = Connection()
    client.provisioner.launch_id = "second"
    client.deliver(a_message("cell"))
    await until(lambda: client.probes)
    client.provisioner.has_ended = True
    await asyncio.sleep(0.05)
    asked = len(client.probes)
    await asyncio.sleep(0.3)
    assert (len(client.probes), client.delivered) == (asked, [])
    client.provisioner.launch_id, client.provisioner.has_ended = "third", False
    client.km.started.set()
    await until(lambda: client.probes[-1].startswith("third"))
    client.subscription.note(client.probes[-1])
    await until(lambda: client.delivered)


async def test_a_kernel_that_publishes_nothing_gets_its_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscription, "_DEAF_S", 0.05)
    client = Connection()
    client.provisioner.launch_id = "second"
    client.deliver(a_message("cell"))
    await until(lambda: client.delivered)


async def test_a_connection_that_closes_sends_what_it_holds_at_once() -> None:
    client = Connection()
    client.provisioner.launch_id = "second"
    client.deliver(a_message("cell"))
    client.subscription.close()
    assert client.delivered == ["cell"]
    await asyncio.sleep(0)
    assert (client.delivered, client.is_probe_open) == (["cell"], False)


async def test_there_is_a_limit_to_the_requests_that_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_messages, "MOST_MESSAGES", 2)
    client = Connection()
    client.provisioner.launch_id = "second"
    for name in "abc":
        client.deliver(a_message(name))
    client.subscription.close()
    assert (client.delivered, client.refused) == (["a", "b"], ["c"])
