"""Without metrics the load stays proportional to size, in whatever order nodes come and go.

No policy can move the kernels that it placed before the cluster changed: a new node has no kernels, and those of a
removed node are gone. The load is therefore checked twice. At each request, the chosen node gets at most 10 % more than
its proportional share. When all kernels are younger than the last change of the cluster, every node is within 10 % of
its share. Two kernels more or less are allowed, because a kernel cannot be divided and one has just ended.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from roost.placement import Device, Node, Policy, Request, Snapshot, Workload, get_policy

REQUESTS = 1000
LIFE = 250
"""A kernel ends after this many later starts, so that about 250 run at any time."""
SIZES = st.sampled_from([4, 8, 16, 24, 32, 64])
MOVES = st.sampled_from(["comes", "is lost", "is away", "is back"])
WORKLOAD = Workload.of([Request(gpus=0.5, cpus=2)] * 30, {"": 99})


def _node(name: str, size: int, metrics_age_s: float | None) -> Node:
    devices = tuple(Device(id=str(i), used=0.9) for i in range(size // 4))
    used = {"cpus_used": float(size), "memory_used_bytes": 7}
    return Node(id=name, cpus=size, memory_bytes=2**40, devices=devices, metrics_age_s=metrics_age_s, **used)  # type: ignore[arg-type]


class Cluster:
    """Nodes that come and go while kernels start and end. Nodes in ``away`` are missing, and their kernels live."""

    def __init__(self, sizes: list[int], request: Request, metrics_age_s: float | None) -> None:
        self.request, self.metrics_age_s = request, metrics_age_s
        self.running: deque[tuple[str, tuple[str, ...]]] = deque()
        self.away: dict[str, Node] = {}
        self.made = 0
        self.snapshot = Snapshot.of([])
        for size in sizes:
            self.move("comes", size)

    def move(self, kind: str, size: int) -> bool:
        """Let a node come, leave or return. Return False if nothing changed: at least two nodes must stay."""
        nodes = self.snapshot.nodes
        if kind == "comes":
            self.made += 1
            name = f"{'mazbk'[self.made % 5]}{self.made}"  # ids before, between and after the existing ones
            self.snapshot = self.snapshot.apply([_node(name, size, self.metrics_age_s)])
        elif kind == "is back" and self.away:
            self.snapshot = self.snapshot.apply([self.away.pop(next(iter(self.away)))])
        elif kind in ("is lost", "is away") and len(nodes) > 2:
            gone = nodes[size % len(nodes)]
            if kind == "is away":
                self.away[gone] = self.snapshot.node(gone)
            else:
                self.running = deque(kernel for kernel in self.running if kernel[0] != gone)
            self.snapshot = self.snapshot.apply(removed=[gone])
        else:
            return False
        return True

    def start(self, chosen: Policy, life: int = LIFE) -> tuple[str, str | None]:
        """Start the next kernel. Return its node and the text of a fallback."""
        decision = chosen.place(self.request, self.snapshot)
        assert decision.placement is not None, decision.reason
        node_id, ids = decision.placement.node_id, decision.placement.device_ids
        self.snapshot = self.snapshot.apply([self.snapshot.node(node_id).with_kernel(self.request, ids)])
        self.running.append((node_id, ids))
        if len(self.running) > life:
            self.end(*self.running.popleft())
        return node_id, decision.fallback

    def end(self, node_id: str, ids: tuple[str, ...]) -> None:
        if node_id in self.away:
            self.away[node_id] = self.away[node_id].without_kernel(self.request, ids)
        else:
            self.snapshot = self.snapshot.apply(
                [self.snapshot.node(node_id).without_kernel(self.request, ids)]
            )

    def loads(self) -> dict[str, tuple[float, float]]:
        """Return, for each node, its number of kernels and the number that its size entitles it to."""
        c = self.snapshot.columns
        sizes = c.gpus if self.request.gpus else c.cpus
        shares = c.kernels.sum() * sizes / sizes.sum()
        return dict(
            zip(self.snapshot.nodes, zip(c.kernels.tolist(), shares.tolist(), strict=True), strict=True)
        )


@pytest.mark.parametrize(
    ("name", "workload", "request_", "metrics_age_s", "said"),
    [
        ("balanced", Workload(), Request(), None, "since no node that fits has metrics"),
        (
            "balanced",
            Workload(),
            Request(gpus=0.001),
            31.0,
            "since the newest metrics of nodes that fit are 31 s old",
        ),
        ("balanced", WORKLOAD, Request(gpus=0.001), None, "since no node that fits has metrics"),
        ("round_robin", Workload(), Request(cpus=0.01), None, ""),
    ],
    ids=["absent", "stale", "workload", "round_robin"],
)
@settings(
    max_examples=4,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    sizes=st.lists(SIZES, min_size=2, max_size=6),
    moves=st.lists(st.tuples(st.integers(0, REQUESTS - LIFE - 100), MOVES, SIZES), min_size=3, max_size=12),
)
def test_load_stays_proportional_to_size(
    name: str,
    workload: Workload,
    request_: Request,
    metrics_age_s: float | None,
    said: str,
    sizes: list[int],
    moves: list[tuple[int, str, int]],
) -> None:
    chosen, cluster = get_policy(name, workload), Cluster(sizes, request_, metrics_age_s)
    settled, judged = LIFE, 0
    for at in range(REQUESTS):
        moved = [cluster.move(kind, size) for due, kind, size in moves if due == at]
        settled = 0 if any(moved) else settled + 1
        node_id, fallback = cluster.start(chosen)
        if said:
            assert fallback is not None
            assert fallback.startswith(f"ranked by round robin, {said}")
        loads = cluster.loads()
        kernels, share = loads[node_id]
        if len(loads) * 10 <= sum(kernels for kernels, _ in loads.values()):
            assert kernels <= max(1.1 * share, share + 2)
        if settled > LIFE and len(cluster.running) == LIFE:
            judged += 1
            for kernels, share in loads.values():
                assert abs(kernels - share) <= max(0.1 * share, 2.0)
    assert judged >= 50


@settings(max_examples=4, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(
    sizes=st.permutations([4, 8, 8, 16, 32, 64]),
    absences=st.lists(st.tuples(st.integers(0, 500), st.integers(0, 5)), max_size=5),
)
def test_a_thousand_kernels_that_stay_end_up_proportional(
    sizes: list[int], absences: list[tuple[int, int]]
) -> None:
    """Nodes join one after the other, and some are missing for 50 requests. The end result is within 10 %."""
    chosen, cluster = get_policy("balanced"), Cluster(sizes[:2], Request(), None)
    for at in range(REQUESTS):
        if at % 40 == 39 and sizes[2:]:
            cluster.move("comes", sizes.pop(2))
        for due, which in absences:
            if at == due:
                cluster.move("is away", which)
            if at == due + 50:
                cluster.move("is back", 0)
        cluster.start(chosen, life=REQUESTS)
    while cluster.move("is back", 0):
        pass
    assert cluster.snapshot.columns.kernels.sum() == REQUESTS
    for kernels, share in cluster.loads().values():
        assert abs(kernels - share) <= 0.1 * share


def test_with_fresh_metrics_nothing_falls_back() -> None:
    cluster = Cluster([4, 8], Request(cpus=0.01), 1.0)
    assert cluster.start(get_policy("balanced"))[1] is None
    node = cluster.snapshot.node(cluster.snapshot.nodes[0])
    cluster.snapshot = cluster.snapshot.older_by(40.0).apply([replace(node, metrics_age_s=0.0)])
    assert cluster.start(get_policy("balanced"))[1] is None  # one node with fresh metrics is enough
