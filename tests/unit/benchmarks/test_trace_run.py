"""Runs of streams of requests: requests that are placed, refused or ended, and how the streams are drawn."""

from __future__ import annotations

import pytest
from trace_data import draw_poisson_arrivals

from roost.bench.trace_run import Arrival, draw_arrivals_to_demand, empty_node, run_trace
from roost.placement import Decision, Device, Node, Placement, Request, Snapshot, get_policy


def node(node_id: str, gpus: int = 2, cpus: float = 8, **values: object) -> Node:
    devices = tuple(Device(id=str(i), model="A100") for i in range(gpus))
    return empty_node(Node(id=node_id, cpus=cpus, memory_bytes=64 << 30, devices=devices, **values))  # type: ignore[arg-type]


ONE = Request(cpus=1, gpus=1)
CLUSTER = Snapshot.of([node("a"), node("b")])


def stream(*requests: Request) -> list[Arrival]:
    return [Arrival(request=request, at_s=float(at)) for at, request in enumerate(requests)]


def test_requests_are_refused_once_the_cluster_is_full() -> None:
    done = run_trace(get_policy("pack"), CLUSTER, stream(*[ONE] * 6))
    assert (done.requests, done.placed_requests, done.refused_requests) == (6, 4, 2)
    assert (done.capacity, done.arrived, done.placed, done.refused) == (4.0, 6.0, 4.0, 2.0)
    assert (done.at_100, done.at_end) == (4.0, 4.0)
    assert [done.last.node(node_id).kernels for node_id in "ab"] == [2, 2]


def test_a_kernel_that_ends_makes_room_at_that_moment() -> None:
    arrivals = [
        Arrival(request=Request(gpus=2), at_s=0.0, duration_s=10.0),
        Arrival(request=Request(gpus=2), at_s=1.0, duration_s=1.0),
        Arrival(request=Request(gpus=2), at_s=1.5),
        Arrival(request=Request(gpus=2), at_s=2.0, duration_s=None),
        Arrival(request=Request(gpus=2), at_s=10.0),
        Arrival(request=Request(gpus=1), at_s=1e9),
    ]
    done = run_trace(get_policy("balanced"), CLUSTER, arrivals)
    assert (done.placed_requests, done.refused) == (4, 3.0)
    assert (done.at_100, done.at_end) == (4.0, 4.0)


def test_several_kernels_end_on_one_node() -> None:
    arrivals = [Arrival(request=Request(gpus=0.5), duration_s=1.0) for _ in range(8)]
    arrivals += [Arrival(request=Request(gpus=2), at_s=5.0) for _ in range(2)]
    done = run_trace(get_policy("spread"), CLUSTER, arrivals)
    assert done.refused_requests == 0
    assert (done.at_100, done.at_end) == (4.0, 4.0)


def test_demand_can_be_counted_in_cpus() -> None:
    done = run_trace(get_policy("pack"), CLUSTER, stream(*[Request(cpus=4)] * 5), resource="cpus")
    assert (done.capacity, done.placed, done.refused) == (16.0, 16.0, 4.0)


def test_a_resource_that_no_node_has_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"^the cluster has no GPUs"):
        run_trace(get_policy("pack"), Snapshot.of([node("a", gpus=0)]), stream(ONE))


class Stubborn:
    """A policy that places every request on node a, with the devices that the test names."""

    name = "stubborn"

    def __init__(self, *device_ids: str) -> None:
        self.placement = Placement(node_id="a", device_ids=device_ids)

    def place(self, request: Request, snapshot: Snapshot, *, avoid: object = None) -> Decision:
        return Decision(request=request, policy=self.name, placement=self.placement)


@pytest.mark.parametrize(("devices", "placed"), [((), 2), (("0",), 1), (("0", "1"), 0), (("9",), 0)])
def test_a_placement_that_the_node_cannot_hold_is_refused(devices: tuple[str, ...], placed: int) -> None:
    assert run_trace(Stubborn(*devices), CLUSTER, stream(*[ONE] * 4)).placed_requests == placed


def test_a_placement_on_an_unknown_node_is_refused() -> None:
    assert run_trace(Stubborn(), Snapshot.of([node("b")]), stream(ONE)).refused_requests == 1


def test_requests_are_left_out_or_drawn_again_to_meet_the_demand() -> None:
    requests = [Request(gpus=1), Request(cpus=2), Request(gpus=0.5), Request(gpus=4)]
    for capacity in (4.0, 40.0):
        arrivals = draw_arrivals_to_demand(requests, capacity, 1.3, seed=1)
        total = sum(arrival.request.gpus for arrival in arrivals)
        assert 1.3 * capacity - 4 <= total <= 1.3 * capacity
        assert {arrival.request for arrival in arrivals} <= set(requests)
        assert [arrival.at_s for arrival in arrivals] == [float(i) for i in range(len(arrivals))]
        assert arrivals == draw_arrivals_to_demand(requests, capacity, 1.3, seed=1)
        assert arrivals != draw_arrivals_to_demand(requests, capacity, 1.3, seed=2)


def test_no_requests_for_the_resource_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"^the trace asks for no GPUs"):
        draw_arrivals_to_demand([Request(cpus=1)], 4.0, 1.3, seed=1)
    with pytest.raises(ValueError, match=r"^no task of the trace that ends asks for GPUs"):
        draw_poisson_arrivals([Arrival(request=ONE)], 4.0, 1.0, 10, seed=1)


def test_poisson_arrivals_offer_the_load_in_the_long_run() -> None:
    tasks = [Arrival(request=ONE, duration_s=10.0), Arrival(request=Request(gpus=2), duration_s=90.0)]
    arrivals = draw_poisson_arrivals(tasks, 100.0, 0.8, 4_000, seed=3)
    first = [arrival for arrival in arrivals if not arrival.at_s]
    assert len(arrivals) - len(first) == 4_000
    assert sorted(arrival.at_s for arrival in arrivals) == [arrival.at_s for arrival in arrivals]

    def held(at_s: float) -> float:
        return sum(a.request.gpus for a in arrivals if a.at_s <= at_s < a.at_s + (a.duration_s or 0))

    span_s = arrivals[-1].at_s
    times = [span_s * (0.1 + 0.9 * i / 200) for i in range(200)]
    assert sum(map(held, times)) / len(times) == pytest.approx(80.0, rel=0.1)
    assert held(0.0) == pytest.approx(80.0, rel=0.35)


def test_an_emptied_node_has_no_use() -> None:
    busy = Node(id="a", cpus=4, cpus_used=3, metrics_age_s=None, devices=(Device(id="0", used=0.9),))
    calm = empty_node(busy.with_kernel(ONE, ["0"]))
    assert (calm.kernels, calm.cpus_promised, calm.cpus_used, calm.metrics_age_s) == (0, 0.0, 0.0, 0.0)
    assert (calm.devices[0].promised, calm.devices[0].excess) == (0.0, 0.0)
