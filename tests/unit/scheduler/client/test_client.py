"""The client of the scheduler service: loops, threads, forks, lost and old services."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import roost
from kit.fakes.service import FakeService, fake_service
from roost.launchers.daemon.daemon import DaemonError, EndedSilently
from roost.launchers.protocol.messages import Connection
from roost.placement.model import Request
from roost.placement.model.json_codec import encode
from roost.scheduler.client import client as roost_client
from roost.scheduler.client import service_connection
from roost.scheduler.client.client import Client, connect
from roost.scheduler.client.service_connection import ServiceConnection
from roost.scheduler.client.service_folder import service_folder
from roost.scheduler.client.this_owner import this_owner
from roost.scheduler.errors import BackendUnavailable, ConfigError, NoNodeEver, UnknownKernel
from roost.scheduler.messages import SERVICE_TIMEOUT, Event, Kernel, Owner, StartKernel
from roost.testing.deadlines import allow_s


@pytest.fixture
def service(runtime_dir: Path) -> Iterator[FakeService]:
    with fake_service() as service:
        yield service


@pytest.fixture
def client(runtime_dir: Path) -> Iterator[Client]:
    client = Client()
    yield client
    client.close()


def a_start(kernel_id: str = "k", launch_id: str = "l") -> StartKernel:
    return StartKernel(
        kernel_id=kernel_id, launch_id=launch_id, request=Request(), owner=this_owner(), argv=("x",), env={},
        cwd="/", connection=Connection(),
    )  # fmt: skip


def hang_in_start(service: FakeService) -> threading.Event:
    """Have the service answer no start. Return what is set once it has one."""
    begun = threading.Event()

    async def hang(_: object) -> None:
        begun.set()
        await asyncio.sleep(30)

    service.answers["start"] = hang
    return begun


def test_calls_from_a_thread_without_a_loop(service: FakeService, client: Client) -> None:
    kernel = client.start(a_start()).result(allow_s(5))
    assert kernel.connection is not None
    assert kernel.connection.shell_port > 0
    assert [kernel.id for kernel in client.kernels().result(allow_s(5))] == ["k"]
    assert client.kernel("k").result(allow_s(5)).state == "running"
    assert client.nodes().result(allow_s(5)) == [{"id": "here"}]
    assert client.explain(Request(cpus=1)).result(allow_s(5))["placement"] is None
    assert client.logs("k").result(allow_s(5)) == "said"
    assert client.doctor().result(allow_s(5)) == []
    assert client.check_policies(["gone"]).result(allow_s(5)) == {"gone": "is not known"}
    assert client.events().result(allow_s(5))[0].kind == "nodes"
    client.signal("k", 2).result(allow_s(5))
    client.drain("here").result(allow_s(5))
    client.warm(["python"], {"A": "b"}).result(allow_s(5))
    assert client.stop("k").result(allow_s(5)).state == "exited"
    assert service.called("signal")[0].signum == 2
    assert service.called("subscribe")[0].owner.pid == os.getpid()


def test_awaited_in_several_loops_and_threads(service: FakeService, client: Client) -> None:
    async def ask() -> int:
        return len(await asyncio.gather(*(client.nodes() for _ in range(20))))

    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(asyncio.run(ask()))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(allow_s(60))
    assert found == [20] * 4
    assert len(service.called("hello")) == 1


def test_errors_keep_their_type(service: FakeService, client: Client) -> None:
    service.answers["start"] = NoNodeEver("No node has 3 GPUs.", decision={"a": 1})
    with pytest.raises(NoNodeEver, match="3 GPUs") as caught:
        client.start(a_start()).result(allow_s(5))
    assert caught.value.fields == {"decision": {"a": 1}}
    with pytest.raises(UnknownKernel):
        client.kernel("nobody").result(allow_s(5))


def test_a_policy_that_was_refused_is_not_sent_again(service: FakeService, client: Client) -> None:
    """Else each later start that names it would fail; and with an empty name, each start without a policy."""
    client.add_policy("mine", lambda work: work).result(allow_s(5))
    service.answers["add_policy"] = ConfigError("policy 'mine' needs another name.")
    for name in ("mine", ""):
        with pytest.raises(ConfigError, match="needs another name"):
            client.add_policy(name, lambda work: None).result(allow_s(5))
    del service.answers["add_policy"]
    for policy in ("mine", ""):
        start = replace(a_start(), request=Request(policy=policy))
        client.start(start).result(allow_s(5))
    sent = [call.pickled for call in service.called("add_policy")]
    assert sent[0] == sent[-1], "the earlier policy of that name is kept"
    assert len(sent) == 4


async def test_cancelling_the_call_cancels_the_start(service: FakeService, client: Client) -> None:
    begun, cancelled = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    async def queue_forever(_: StartKernel) -> None:
        loop.call_soon_threadsafe(begun.set)
        await asyncio.sleep(30)

    service.answers["start"] = queue_forever
    service.answers["cancel"] = lambda _: cancelled.set() or {}
    task = asyncio.ensure_future(asyncio.wait_for(client.start(a_start()), allow_s(60)))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(cancelled.wait, allow_s(60))
    assert service.called("cancel")[0].launch_id == "l"


async def test_a_start_is_cancelled_as_soon_as_a_silent_service_answers(
    service: FakeService, client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It reads the start from its socket when it goes on. Nobody would hold that kernel."""
    monkeypatch.setattr(roost_client, "_CANCEL_AGAIN_S", 0.01)
    cancelled = threading.Event()

    def cancel(_: object) -> dict[str, str]:
        if len(service.called("cancel")) < 3:
            raise BackendUnavailable("the service does not answer")
        cancelled.set()
        return {}

    service.answers["start"] = BackendUnavailable("the service does not answer")
    service.answers["cancel"] = cancel
    with pytest.raises(BackendUnavailable):
        await client.start(a_start())
    assert await asyncio.to_thread(cancelled.wait, allow_s(5))
    assert caplog.text.count("it is cancelled once the service answers") == 1


def test_a_start_that_names_no_time_has_that_of_the_service(service: FakeService, client: Client) -> None:
    """The deadline of the call follows, and a repeated start has only the rest of the time."""
    begun = hang_in_start(service)
    service.launch_timeout_s = 300.0
    call = client.start(replace(a_start(), launch_timeout_s=SERVICE_TIMEOUT))
    assert begun.wait(allow_s(60))
    del service.answers["start"]
    service.close()
    service.launch_timeout_s = 900.0
    service.serve()
    assert call.result(allow_s(10)).id == "k"
    first, second = service.called("start")
    assert first.launch_timeout_s == second.launch_timeout_s == 300.0


def test_a_start_that_names_no_time_does_not_outlive_that_of_the_service(
    service: FakeService, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roost_client, "CALL_DEADLINE_S", 0.5)

    async def hang(_: object) -> None:
        await asyncio.sleep(30)

    service.launch_timeout_s = 0.5
    service.answers["start"] = hang
    with pytest.raises(BackendUnavailable, match="did not answer `start` within 1 s"):
        client.start(replace(a_start(), launch_timeout_s=SERVICE_TIMEOUT)).result(allow_s(20))


def test_a_start_may_wait_for_a_new_node_besides(
    service: FakeService, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the service ends meanwhile, the start has its whole time again: its node may take long."""
    monkeypatch.setattr(roost_client, "CALL_DEADLINE_S", 0.1)
    begun = hang_in_start(service)

    async def answer_late(start: StartKernel) -> Kernel:
        await asyncio.sleep(1.0)  # longer than the call may take without a new node
        return service._start(start)

    service.node_start_timeout_s = allow_s(60)
    client.nodes().result(allow_s(60))  # it connects
    call = client.start(replace(a_start(), launch_timeout_s=0.5))
    assert begun.wait(allow_s(60))
    service.answers["start"] = answer_late
    service.close()
    service.serve()
    assert call.result(allow_s(60)).id == "k"
    first, second = service.called("start")
    assert first.launch_timeout_s == second.launch_timeout_s == 0.5


@pytest.mark.parametrize(
    ("problem", "kind"),
    [("YARN does not answer", BackendUnavailable), ("there is no option max_gpu", ConfigError)],
)
def test_a_start_goes_on_though_the_next_service_cannot_start_yet(
    service: FakeService, client: Client, monkeypatch: pytest.MonkeyPatch, problem: str, kind: type[Exception]
) -> None:
    begun, asked = hang_in_start(service), threading.Event()
    ensure = service_connection.ensure

    def fail(*_: object, **__: object) -> None:
        asked.set()
        raise DaemonError(problem, kind.__name__)

    call = client.start(a_start())
    assert begun.wait(allow_s(60))
    del service.answers["start"]
    monkeypatch.setattr(service_connection, "ensure", fail)
    service.close()
    assert asked.wait(allow_s(60))
    for told_at_once in (client.nodes(), client.stop("k")):  # they were never sent before
        with pytest.raises(kind, match=problem):
            told_at_once.result(allow_s(5))
    stop = client.stop("other", repeat_s=60.0)
    with pytest.raises(TimeoutError):
        stop.result(1.5)
    monkeypatch.setattr(service_connection, "ensure", ensure)
    service.serve()
    assert call.result(allow_s(20)).id == "k"
    assert len(service.called("start")) == 2
    with pytest.raises(UnknownKernel):  # an answer of the service
        stop.result(allow_s(20))


async def test_a_withdrawn_start_is_cancelled_by_the_next_service_that_can_start(
    service: FakeService, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel may run by then, and nobody would hold it."""
    monkeypatch.setattr(roost_client, "_NO_SERVICE_S", (0.01, 0.05))
    begun, asked, cancelled = hang_in_start(service), threading.Event(), threading.Event()
    ensure = service_connection.ensure

    def fail(*_: object, **__: object) -> None:
        asked.set()
        raise DaemonError("there is no option max_gpu", ConfigError.__name__)

    service.answers["cancel"] = lambda _: cancelled.set() or {}
    call = asyncio.ensure_future(client.start(a_start()))
    assert await asyncio.to_thread(begun.wait, allow_s(60))
    monkeypatch.setattr(service_connection, "ensure", fail)
    await asyncio.to_thread(service.close)
    assert await asyncio.to_thread(asked.wait, allow_s(60))
    call.cancel()
    await asyncio.wait([call])
    await asyncio.sleep(0.2)
    assert not cancelled.is_set()
    monkeypatch.setattr(service_connection, "ensure", ensure)
    service.serve()
    assert await asyncio.to_thread(cancelled.wait, allow_s(20))


def test_a_service_that_is_killed_while_it_starts_is_started_again(
    service: FakeService, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure, killed = service_connection.ensure, []

    def fail_twice(*arguments: Any, **options: Any) -> Any:
        if len(killed) < 2:
            killed.append(1)
            raise EndedSilently("it wrote nothing to its log")
        return ensure(*arguments, **options)

    monkeypatch.setattr(service_connection, "ensure", fail_twice)
    assert client.start(a_start()).result(allow_s(10)).id == "k"
    assert len(killed) == 2


def test_a_start_is_repeated_after_a_loss_and_says_since_when_it_waits(
    service: FakeService, client: Client
) -> None:
    begun = hang_in_start(service)
    call = client.start(replace(a_start(), queue_timeout_s=3600.0))
    assert begun.wait(allow_s(60))
    del service.answers["start"]
    service.close()
    service.serve()
    assert call.result(allow_s(10)).id == "k"
    first, second = service.called("start")
    assert first.asked_at == 0.0
    assert 0.0 < time.time() - second.asked_at < allow_s(60)
    assert 0.0 < second.waited_s < allow_s(60)
    assert replace(second, asked_at=0.0) == first


def test_unknown_fields_of_a_newer_service_are_ignored(service: FakeService, client: Client) -> None:
    def with_news(start: StartKernel) -> dict[str, object]:
        return {**encode(service._start(start)), "shape": "round"}

    service.answers["start"] = with_news
    assert client.start(a_start()).result(allow_s(5)).state == "running"
    service.answers["events"] = lambda _: {"events": [{"kind": "nodes", "at": 1.0, "colour": "red"}]}
    assert client.events().result(allow_s(5))[0].kind == "nodes"


def test_a_kernel_is_adopted_by_this_process(service: FakeService, client: Client) -> None:
    client.start(a_start()).result(allow_s(5))
    assert client.adopt("k").result(allow_s(5)).connection is not None
    assert service.called("adopt")[0].owner.pid == os.getpid()


@pytest.mark.parametrize("problem", [None, ConfigError("an option is misspelt"), RuntimeError("unexpected")])
def test_listeners_get_events_and_resync(
    service: FakeService, client: Client, monkeypatch: pytest.MonkeyPatch, problem: Exception | None
) -> None:
    """Also if the service could not be started for a while: its configuration is corrected later."""
    kinds: list[str] = []
    heard = threading.Condition()

    def listener(event: Event) -> None:
        with heard:
            kinds.append(event.kind)
            heard.notify_all()

    def hear(kind: str) -> None:
        with heard:
            assert heard.wait_for(lambda: kind in kinds, 60), kinds

    stop = client.listen(listener)
    client.nodes().result(allow_s(5))
    service.push(Event(kind="nodes", at=1.0))
    hear("nodes")
    failed = threading.Event()

    def fail(_: ServiceConnection) -> str:
        failed.set()
        assert problem is not None
        raise problem

    with monkeypatch.context() as patch:
        if problem is not None:
            patch.setattr(ServiceConnection, "_ensure_service", fail)
        service.close()
        assert problem is None or failed.wait(allow_s(60))
    service.serve()
    hear("resync")  # without a call: the client connected again for its listener
    stop()
    service.push(Event(kind="queued", at=1.0))
    client.nodes().result(allow_s(5))
    assert "queued" not in kinds


def test_a_listener_of_one_kernel_hears_of_no_other(service: FakeService, client: Client) -> None:
    heard: list[tuple[str, str]] = []
    done = threading.Event()
    stop = client.listen(lambda event: heard.append((event.kind, event.detail)), kernel_id="k1")
    client.listen(lambda event: event.kind == "idle" and done.set())
    client.nodes().result(allow_s(5))
    for kernel_id in ("k1", "k2"):
        kernel = Kernel(id=kernel_id, launch_id="1", state="queued", owner=Owner(user="a"), request=Request())
        service.push(Event(kind="queued", at=1.0, kernel=kernel, detail=kernel_id))
    service.push(Event(kind="idle", at=1.0))
    assert done.wait(allow_s(60))
    assert heard == [("queued", "k1"), ("idle", "")]
    stop()
    stop()


def test_events_of_a_kind_that_only_a_later_service_knows_are_left_out(
    service: FakeService, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    received: list[str] = []
    done = threading.Event()

    def listener(event: Event) -> None:
        received.append(event.kind)
        if event.kind == "nodes":
            done.set()

    client.listen(listener)
    client.nodes().result(allow_s(5))
    service.push(Event(kind="of_later", at=1.0))  # type: ignore[arg-type]
    service.push(Event(kind="nodes", at=2.0))
    assert done.wait(allow_s(60))
    assert received == ["nodes"]
    assert not caplog.records


def test_a_failing_listener_does_not_disturb_the_others(service: FakeService, client: Client) -> None:
    heard = threading.Event()

    def fail(_: Event) -> None:
        raise ValueError("mine")

    client.listen(fail)
    client.listen(lambda _: heard.set())
    client.nodes().result(allow_s(5))
    service.push(Event(kind="nodes", at=1.0))
    assert heard.wait(allow_s(60))


def test_a_listener_cannot_wait_for_a_call(service: FakeService, client: Client) -> None:
    problems: list[BaseException] = []
    done = threading.Event()

    def listener(_: Event) -> None:
        try:
            client.nodes().result(allow_s(5))
        except RuntimeError as problem:
            problems.append(problem)
        done.set()

    client.listen(listener)
    client.nodes().result(allow_s(5))
    service.push(Event(kind="nodes", at=1.0))
    assert done.wait(allow_s(60))
    assert "listener" in str(problems[0])


def test_an_older_service_is_asked_to_leave(service: FakeService, client: Client) -> None:
    service.version = "0.0.1"

    def leave(_: object) -> dict[str, object]:
        service.version = roost.__version__
        return {}

    service.answers["leave"] = leave
    assert client.nodes().result(allow_s(10))
    assert len(service.called("leave")) == 1


def test_an_older_service_whose_agents_do_not_fit_is_left_alone(service: FakeService, client: Client) -> None:
    service.version, service.agent_protocol = "0.0.1", 0
    with pytest.raises(
        BackendUnavailable, match=rf"stop its kernels with roost 0\.0\.1, or run `kill {os.getpid()}`"
    ):
        client.nodes().result(allow_s(5))
    assert not service.called("leave")


def test_a_newer_service_of_the_same_protocol_is_kept(service: FakeService, client: Client) -> None:
    service.version = "99.0"
    assert client.nodes().result(allow_s(5))
    assert not service.called("leave")


def test_a_service_of_a_newer_protocol_is_refused(service: FakeService, client: Client) -> None:
    service.version, service.protocol = "99.0", 99
    with pytest.raises(BackendUnavailable, match="newer than this client"):
        client.nodes().result(allow_s(5))
    assert not service.called("leave")


def test_a_service_that_cannot_start_is_one_sentence(
    runtime_dir: Path, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["/bin/sh", "-c", "echo 'no such setting' >&2; exit 3"]
    monkeypatch.setattr(service_connection, "service_command", lambda *_: (command, dict(os.environ)))
    with pytest.raises(BackendUnavailable, match="no such setting"):
        client.nodes().result(allow_s(10))


def test_a_silent_service_ends_at_the_deadline(
    service: FakeService, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(_: object) -> None:
        await asyncio.sleep(30)

    client.nodes().result(allow_s(60))  # it connects
    service.answers["nodes"] = hang
    monkeypatch.setattr(Client._ask, "__defaults__", (0.3,))
    (service.folder / "ready.json").write_text('{"pid": 7}')
    where = rf"\(local, pid 7, log {service.folder}/log\)"
    with pytest.raises(BackendUnavailable, match=rf"{where} did not answer `nodes` within 0\.3 s"):
        client.nodes().result(allow_s(5))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_gets_a_connection_of_its_own(service: FakeService, client: Client) -> None:
    shared = connect()
    assert shared.nodes().result(allow_s(5))
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writer, f"{len(connect().nodes().result(allow_s(10)))} {connect() is shared}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    assert os.read(reader, 100) == b"1 True"
    os.close(reader)
    os.waitpid(pid, 0)
    assert shared.nodes().result(allow_s(5))
    assert len({subscribe.owner.pid for subscribe in service.called("subscribe")}) == 2
    shared.close()


def test_connect_shares_by_backend_and_options(runtime_dir: Path) -> None:
    assert connect() is connect("local", gpus=None)
    assert connect(gpus=2) is connect(gpus=2)
    assert connect(gpus=2) is not connect()
    assert connect(gpus=2).options == {"gpus": 2}


def test_another_address_in_the_environment_is_another_service(
    runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")
    first = connect("ray")
    assert first is connect("ray", address="192.0.2.1:6379") is connect("ray", address="auto")
    assert connect("ray", address="192.0.2.2:6379").options == {"address": "192.0.2.2:6379"}
    assert connect("local").options == {}
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.3:6379")
    assert connect("ray").options == {"address": "192.0.2.3:6379"}
    folders = {service_folder("ray", client.options) for client in (first, connect("ray"))}
    for nowhere in ("", "auto"):
        monkeypatch.setenv("RAY_ADDRESS", nowhere)
        assert connect("ray").options == {}
    assert len({*folders, service_folder("ray", {})}) == 3


def test_what_is_no_request_is_refused(client: Client) -> None:
    with pytest.raises(ConfigError, match=r"^start takes a StartKernel, and got \{'cpus': 1\}\.$"):
        client.start({"cpus": 1})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="explain takes a Request, and got 'cpus=1'"):
        client.explain("cpus=1")  # type: ignore[arg-type]
