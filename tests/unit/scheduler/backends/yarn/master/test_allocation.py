"""The content of a master's heartbeats to the ResourceManager, also after refusals, lost answers and restarts."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from roost.scheduler.backends.yarn.master.allocation import (
    Allocation,
    AllocationEntry,
    build_rows,
    name_container,
    read_resource,
)
from roost.scheduler.backends.yarn.master.hadoop_rpc import CallRefused
from roost.scheduler.backends.yarn.master.messages import Ask, MasterEvent, Resources
from roost.scheduler.backends.yarn.master.schema import (
    AllocateRequest,
    AllocateResponse,
    ApplicationAttemptId,
    ApplicationId,
    ContainerId,
    ContainerStatus,
    Grant,
    NodeId,
    NodeReport,
    PreemptionContainer,
    PreemptionContract,
    PreemptionMessage,
    RegisterApplicationMasterResponse,
    Resource,
    StrictPreemptionContract,
)

ATTEMPT = ApplicationAttemptId(application_id=ApplicationId(id=7, cluster_timestamp=1_700_000), attempt_id=2)
REFUSED = CallRefused("org.apache.hadoop.yarn.exceptions.InvalidResourceRequestException", "no\nat Java.java")


def make_ask(number: int, *nodes: str, **changes: Any) -> Ask:
    values = {"lease": "", "resources": Resources(memory_mb=512, vcores=1), "command": "x", "archive": "a"}
    return Ask(**{"number": number, "nodes": nodes, **values, **changes})


def make_grant(number: int, container: int, host: str = "n1") -> Grant:
    return Grant(
        id=ContainerId(app_attempt_id=ATTEMPT, id=container),
        node_id=NodeId(host=host, port=1),
        resource=Resource(memory=512, virtual_cores=1),
        allocation_request_id=number,
    )


def show(request: AllocateRequest) -> list[tuple[int, str, int]]:
    """Return the ask's number, the node or rack (`*`: any), and the count of containers of each row of a heartbeat."""
    return [(row.allocation_request_id, row.resource_name, row.num_containers) for row in request.ask]


class RecordedAllocation:
    """An `Allocation` and its events. `beat` takes one heartbeat from it and gives it an answer."""

    def __init__(self) -> None:
        self.events: list[MasterEvent] = []
        self.allocation = Allocation(self.events.append)
        self.count = 0

    def beat(self, **answer: Any) -> tuple[AllocateRequest, list[AllocationEntry]]:
        request = self.allocation.next_request()
        self.count += 1
        return request, self.allocation.take(AllocateResponse(response_id=self.count, **answer))

    @property
    def states(self) -> list[tuple[int, str]]:
        found = (event.container for event in self.events if event.kind == "container")
        return [(each.number, each.state) for each in found if each is not None]


@pytest.fixture
def recorded() -> RecordedAllocation:
    return RecordedAllocation()


def test_rows() -> None:
    """Only the rows of nodes relax their locality, or the row `*` if it is alone. Only the row `*` has the label."""
    ask = make_ask(1, "n1", "n2", "n3", racks={"n1": "/a", "n3": "/a"}, label="vip")
    rows = [(row.resource_name, row.relax_locality, row.node_label_expression) for row in build_rows(ask)]
    assert rows == [
        ("n1", True, ""),
        ("n2", True, ""),
        ("n3", True, ""),
        ("/a", False, ""),
        ("/default-rack", False, ""),
        ("*", False, "vip"),
    ]
    assert [(row.resource_name, row.relax_locality) for row in build_rows(make_ask(1))] == [("*", True)]
    assert {row.num_containers for row in build_rows(ask, count=0)} == {0}


def test_an_ask_is_sent_once(recorded: RecordedAllocation) -> None:
    recorded.allocation.ask(make_ask(1, "n1"))
    recorded.allocation.ask(make_ask(1, "n1"))
    request, _ = recorded.beat()
    assert show(request) == [(1, "n1", 1), (1, "/default-rack", 1), (1, "*", 1)]
    assert show(recorded.beat()[0]) == []


def test_a_heartbeat_without_an_answer_is_repeated_unchanged(recorded: RecordedAllocation) -> None:
    """The ResourceManager may have handled the first heartbeat. It would ignore anything new in the repeated one."""
    recorded.allocation.ask(make_ask(1))
    lost = recorded.allocation.next_request()
    recorded.allocation.ask(make_ask(2))
    assert recorded.beat()[0] == lost
    assert show(recorded.beat()[0]) == [(2, "*", 1)]


def test_the_asks_of_a_refused_heartbeat_are_sent_one_by_one(recorded: RecordedAllocation) -> None:
    for number in (1, 2, 3):
        recorded.allocation.ask(make_ask(number))
    recorded.allocation.next_request()
    assert recorded.allocation.refuse(REFUSED)
    assert show(recorded.beat()[0]) == [(1, "*", 1)]
    assert show(recorded.allocation.next_request()) == [(2, "*", 1)]
    assert recorded.allocation.refuse(REFUSED)
    assert recorded.states == [(2, "ended")]
    assert "InvalidResourceRequestException: no" in recorded.allocation.entries[2].diagnostics
    assert "Java.java" not in recorded.allocation.entries[2].diagnostics
    recorded.allocation.ask(make_ask(4))
    assert show(recorded.beat()[0]) == [(3, "*", 1)]
    assert show(recorded.beat()[0]) == [(4, "*", 1)]


def test_an_empty_heartbeat_is_refused(recorded: RecordedAllocation) -> None:
    recorded.allocation.next_request()
    assert not recorded.allocation.refuse(REFUSED)


def test_a_grant(recorded: RecordedAllocation) -> None:
    recorded.allocation.ask(make_ask(1, "n1", lease="l"))
    _, granted = recorded.beat(allocated_containers=(make_grant(1, 5),))
    assert [entry.number for entry in granted] == [1]
    assert show(recorded.beat()[0]) == []
    recorded.allocation.set_started(granted[0])
    assert recorded.states == [(1, "granted"), (1, "started")]
    found = granted[0].describe()
    assert (found.node, found.lease, found.container_id) == ("n1", "l", "container_1700000_0007_02_000005")


def test_grants_that_nobody_waits_for(recorded: RecordedAllocation) -> None:
    """A second grant for an ask, a grant for a withdrawn ask and a grant for an unknown ask are released."""
    recorded.allocation.ask(make_ask(1))
    recorded.allocation.ask(make_ask(2))
    recorded.beat()
    recorded.allocation.release(2)
    request, granted = recorded.beat(
        allocated_containers=(make_grant(1, 5), make_grant(1, 6), make_grant(2, 7), make_grant(9, 8))
    )
    assert show(request) == [(2, "*", 0)]
    assert [entry.number for entry in granted] == [1]
    assert [each.id for each in recorded.beat()[0].release] == [6, 7, 8]
    assert set(recorded.allocation.entries) == {1}


def test_a_grant_of_several_nodes_withdraws_the_rest(recorded: RecordedAllocation) -> None:
    recorded.allocation.ask(make_ask(1, "n1", "n2"))
    recorded.beat(allocated_containers=(make_grant(1, 5),))
    assert show(recorded.beat()[0]) == [(1, "n1", 0), (1, "n2", 0), (1, "/default-rack", 0), (1, "*", 0)]


def test_a_widened_ask(recorded: RecordedAllocation) -> None:
    recorded.allocation.ask(make_ask(1, "n1", racks={"n1": "/a"}))
    recorded.beat()
    recorded.allocation.widen(1, ("n2",), {"n2": "/b"})
    assert show(recorded.beat()[0]) == [(1, "n1", 0), (1, "/a", 0), (1, "n2", 1), (1, "/b", 1), (1, "*", 1)]


def test_a_release(recorded: RecordedAllocation) -> None:
    recorded.allocation.ask(make_ask(1))
    _, (entry,) = recorded.beat(allocated_containers=(make_grant(1, 5),))
    recorded.allocation.set_started(entry)
    assert recorded.allocation.release(1) is entry
    assert not recorded.allocation.is_empty
    request, _ = recorded.beat()
    assert [each.id for each in request.release] == [5]
    ended = ContainerStatus(container_id=make_grant(1, 5).id, exit_status=-100, diagnostics="released\n")
    recorded.beat(completed_container_statuses=(ended,))
    assert recorded.states[-1] == (1, "ended")
    assert recorded.allocation.entries == {}
    assert recorded.allocation.release(1) is None


def test_nobody_takes_over_a_container_that_was_released_and_still_runs(recorded: RecordedAllocation) -> None:
    """A new service would take such a container as a lease, and lose the lease when the container ends."""
    for number in (1, 2):
        recorded.allocation.ask(make_ask(number))
    _, (entry, _) = recorded.beat(allocated_containers=(make_grant(1, 5), make_grant(2, 6)))
    recorded.allocation.release(1)
    recorded.allocation.set_started(entry)
    assert recorded.states == [(1, "granted"), (2, "granted")]
    assert [each.number for each in recorded.allocation.wanted] == [2]


def test_a_container_that_ends_is_kept_until_it_is_released(recorded: RecordedAllocation) -> None:
    recorded.allocation.ask(make_ask(1))
    recorded.beat(allocated_containers=(make_grant(1, 5),))
    ended = ContainerStatus(container_id=make_grant(1, 5).id, exit_status=137, diagnostics="killed")
    recorded.beat(completed_container_statuses=(ended, ended))
    entry = recorded.allocation.entries[1]
    assert (entry.exit_status, entry.diagnostics) == (137, "killed")
    assert recorded.states == [(1, "granted"), (1, "ended")]
    assert recorded.allocation.is_empty
    assert recorded.allocation.release(1) is None
    assert show(recorded.beat()[0]) == []
    assert recorded.allocation.entries == {}


def test_a_release_that_is_never_confirmed(recorded: RecordedAllocation) -> None:
    """A restarted ResourceManager may not know the container, or lose the report of its end."""
    recorded.allocation.ask(make_ask(1))
    recorded.beat(allocated_containers=(make_grant(1, 5),))
    recorded.allocation.release(1)
    recorded.beat()
    assert not recorded.allocation.is_empty
    recorded.allocation.entries[1].changed_at -= 31
    recorded.beat()
    assert recorded.states == [(1, "granted"), (1, "ended")]
    assert recorded.allocation.is_empty


def test_a_failed_start_gives_the_container_back(recorded: RecordedAllocation) -> None:
    recorded.allocation.ask(make_ask(1))
    _, (entry,) = recorded.beat(allocated_containers=(make_grant(1, 5),))
    recorded.allocation.fail(entry, "no disk")
    recorded.allocation.fail(entry, "again")
    assert [each.id for each in recorded.beat()[0].release] == [5]
    assert (entry.state, entry.diagnostics) == ("ended", "no disk")


def test_a_restart_of_the_resource_manager(recorded: RecordedAllocation) -> None:
    """Asks that wait and releases are sent again, and known containers stay known."""
    for number in (1, 2, 3):
        recorded.allocation.ask(make_ask(number))
    _, granted = recorded.beat(allocated_containers=(make_grant(1, 5), make_grant(2, 6)))
    for entry in granted:
        recorded.allocation.set_started(entry)
    recorded.allocation.release(2)
    recorded.allocation.next_request()  # its answer is lost
    recorded.allocation.resync(
        RegisterApplicationMasterResponse(
            containers_from_previous_attempts=(make_grant(1, 5), make_grant(2, 6))
        )
    )
    request = recorded.allocation.next_request()
    assert request.response_id == 0
    assert show(request) == [(3, "*", 1)]
    assert [each.id for each in request.release] == [6]
    assert len(recorded.states) == 4


def test_containers_of_an_earlier_attempt(recorded: RecordedAllocation) -> None:
    before = make_grant(1, 5)
    recorded.allocation.resync(RegisterApplicationMasterResponse(containers_from_previous_attempts=(before,)))
    entry = recorded.allocation.entries[1]
    assert (entry.state, entry.lease, entry.ask) == ("started", "", None)
    assert recorded.allocation.ask(make_ask(1, lease="x")) is entry
    assert show(recorded.beat()[0]) == []


def test_a_container_that_is_recovered_after_its_ask_was_repeated(recorded: RecordedAllocation) -> None:
    recorded.allocation.ask(make_ask(1, lease="x"))
    recorded.beat(containers_from_previous_attempts=(make_grant(1, 5),))
    assert recorded.allocation.entries[1].state == "started"
    assert recorded.allocation.entries[1].lease == "x"
    assert show(recorded.beat()[0]) == [(1, "*", 0)]


def test_events(recorded: RecordedAllocation) -> None:
    recorded.allocation.ask(make_ask(1))
    recorded.beat(allocated_containers=(make_grant(1, 5),))
    container = (PreemptionContainer(id=make_grant(1, 5).id),)
    other = (PreemptionContainer(id=make_grant(1, 99).id),)
    recorded.beat(
        preempt=PreemptionMessage(
            strict_contract=StrictPreemptionContract(container=other + container),
            contract=PreemptionContract(container=container),
        ),
        updated_nodes=(NodeReport(node_id=NodeId(host="n1"), node_state=5), NodeReport(node_state=99)),
        limit=Resource(memory=100, virtual_cores=2),
    )
    found = [(event.kind, event.text) for event in recorded.events if event.kind != "container"]
    assert found == [("preempt", "strict"), ("preempt", "contract"), ("nodes", "n1 lost,  99")]
    assert recorded.allocation.headroom == Resources(memory_mb=100, vcores=2)


def test_names_of_containers() -> None:
    assert name_container(ContainerId(app_attempt_id=ATTEMPT, id=(3 << 40) + 12)).startswith(
        "container_e03_1700000_"
    )
    large = dataclasses.replace(
        ATTEMPT, application_id=ApplicationId(id=12_345, cluster_timestamp=1), attempt_id=1
    )
    assert name_container(ContainerId(app_attempt_id=large, id=1_234_567)) == "container_1_12345_01_1234567"


def test_resources_of_old_releases() -> None:
    assert read_resource(Resource(memory=5, virtual_cores=2)) == Resources(memory_mb=5, vcores=2)
