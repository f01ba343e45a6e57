"""One policy over a long series of changes. Its cache never changes a decision."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from roost.placement import EPSILON, Decision, Device, Node, Policy, Request, Snapshot, Workload, get_policy
from roost.placement.shipped_policies import SHIPPED

WORKLOAD = Workload.of(
    [Request(cpus=1, gpus=0.25)] * 9
    + [Request(cpus=2, gpus=0.5)] * 4
    + [Request(cpus=4, gpus=1, gpu_models=("A100",))] * 6
    + [Request(cpus=8, gpus=2)] * 5
    + [Request(cpus=2)] * 4,
    {"A100": 6, "T4": 4},
)
CLASSES = [
    Request(),
    Request(environment="py", near={"zone": "a"}),
    Request(cpus=1),
    Request(cpus=0.3, memory_bytes=70, tolerates=("spot",)),
    Request(memory_bytes=300, labels={"zone": "a"}),
    Request(gpus=0.25, cpus=0.1),
    Request(gpus=0.3, near={"zone": "b"}, environment="py"),
    Request(gpus=1, gpu_models=("A100",)),
    Request(gpus=1, cpus=2, memory_bytes=100),
    Request(gpus=0.25, gpu_memory_bytes=16),
    Request(gpus=2, gpu_models=("A100",), gpu_memory_bytes=40),
    Request(cpus=1, gpus=2, gpu_models=("A100",), gpu_memory_bytes=40),
    Request(gpus=2, tolerates=("spot",)),
    Request(gpus=3, labels={"zone": "b"}),
    Request(resources={"licence": 0.5}),
    Request(cpus=0.3, gpus=0.25, resources={"tpu": 1, "licence": 1}),
]
NAMES = ["e", "b", "d", "a", "c", "aa"]
AGES = st.sampled_from([None, 0.0, 5.0, 29.0, 31.0])
USE = st.none() | st.sampled_from([0.0, 0.2, 0.5, 1.0])


@st.composite
def empty_nodes(draw: st.DrawFn, name: str) -> Node:
    """Draw an unused node of any kind."""
    models = draw(st.lists(st.sampled_from(["A100", "A100", "T4"]), max_size=4))
    return Node(
        id=name,
        labels=draw(st.sampled_from([{}, {"zone": "a"}, {"zone": "b"}])),
        taints=draw(st.sampled_from([(), (), (), ("spot",)])),
        warm=draw(st.sampled_from([(), ("py",)])),
        cpus=draw(st.sampled_from([1.0, 4.0, 9.5])),
        resources=draw(st.sampled_from([{}, {"licence": 1.0}, {"licence": 2.5, "tpu": 2.0}])),
        memory_bytes=draw(st.sampled_from([0, 300, 1000])),
        devices=tuple(
            Device(id=str(i), model=model, used=draw(USE), memory_bytes=draw(st.sampled_from([0, 16, 40])))
            for i, model in enumerate(models)
        ),
        cpus_used=draw(st.none() | st.sampled_from([0.0, 1.0, 3.0])),
        memory_used_bytes=draw(st.none() | st.sampled_from([0, 50, 900])),
        metrics_age_s=draw(AGES),
    )


class Engine(RuleBasedStateMachine):
    """Kernels and nodes that come and go, and one policy that decides all requests.

    ``held`` are the running kernels. They give the promises of each node, independently of the snapshot's sums.
    ``older`` are snapshots that a caller may still use.
    """

    name = "balanced"
    workload = Workload()

    @initialize(names=st.lists(st.sampled_from(NAMES), max_size=4, unique=True), data=st.data())
    def start(self, names: list[str], data: st.DataObject) -> None:
        self.living = self.fresh()
        self.snapshot = Snapshot.of(data.draw(empty_nodes(name)) for name in names)
        self.older = [self.snapshot]
        self.held: list[tuple[str, Request, tuple[str, ...]]] = []

    def fresh(self) -> Policy:
        """Return the same policy with an empty cache."""
        return get_policy(self.name, self.workload)

    def go_on(self, *nodes: Node, removed: tuple[str, ...] = ()) -> None:
        self.snapshot = self.snapshot.apply(nodes, removed)
        self.older = [*self.older[-3:], self.snapshot]

    @property
    def has_nodes(self) -> bool:
        return bool(len(self.snapshot))

    def some_node(self, data: st.DataObject) -> Node:
        return self.snapshot.node(data.draw(st.sampled_from(self.snapshot.nodes)))

    @rule(name=st.sampled_from(NAMES), data=st.data())
    def node_comes(self, name: str, data: st.DataObject) -> None:
        if name not in self.snapshot:
            self.go_on(data.draw(empty_nodes(name)))

    @precondition(lambda self: self.has_nodes)
    @rule(data=st.data())
    def node_goes(self, data: st.DataObject) -> None:
        gone = self.some_node(data).id
        self.held = [kernel for kernel in self.held if kernel[0] != gone]
        self.go_on(removed=(gone,))

    @rule()
    def all_nodes_go(self) -> None:
        self.held = []
        self.go_on(removed=self.snapshot.nodes)

    @precondition(lambda self: self.has_nodes)
    @rule(data=st.data())
    def node_changes_in_kind(self, data: st.DataObject) -> None:
        node, other = self.some_node(data), data.draw(empty_nodes("any"))
        self.go_on(replace(node, labels=other.labels, taints=other.taints, warm=other.warm))

    @precondition(lambda self: self.has_nodes)
    @rule(data=st.data())
    def node_drains_or_comes_back(self, data: st.DataObject) -> None:
        node = self.some_node(data)
        self.go_on(replace(node, is_draining=not node.is_draining))

    @precondition(lambda self: self.has_nodes)
    @rule(data=st.data(), age_s=AGES)
    def node_is_measured(self, data: st.DataObject, age_s: float | None) -> None:
        node = self.some_node(data)
        devices = tuple(replace(device, used=data.draw(USE)) for device in node.devices)
        self.go_on(replace(node, devices=devices, cpus_used=data.draw(USE), metrics_age_s=age_s))

    @rule(elapsed_s=st.sampled_from([0.5, 26.0]))
    def time_passes(self, elapsed_s: float) -> None:
        self.snapshot = self.snapshot.older_by(elapsed_s)

    @rule(request=st.sampled_from(CLASSES), is_older=st.booleans(), data=st.data())
    def somebody_asks(self, request: Request, is_older: bool, data: st.DataObject) -> None:
        """Decide on the current snapshot, an older one or a changed older one, perhaps with avoided nodes."""
        snapshot = data.draw(st.sampled_from(self.older)) if is_older else self.snapshot
        if is_older and len(snapshot) and data.draw(st.booleans()):
            node = snapshot.node(data.draw(st.sampled_from(snapshot.nodes)))
            snapshot = snapshot.apply([replace(node, kernels=node.kernels + 7)])
        avoid = dict.fromkeys(data.draw(st.sets(st.sampled_from(NAMES), max_size=2)), "refused it")
        decision = self.living.place(request, snapshot, avoid=avoid)
        assert_same(decision, self.fresh().place(request, snapshot, avoid=avoid))
        assert_same(decision, self.living.place(request, snapshot, avoid=avoid))
        assert decision.placement is None or decision.placement.node_id not in avoid

    @rule(request=st.sampled_from(CLASSES))
    def kernel_starts(self, request: Request) -> None:
        decision = self.living.place(request, self.snapshot)
        assert_same(decision, self.fresh().place(request, self.snapshot))
        placement = decision.placement
        if placement is None:
            return
        before = self.snapshot.node(placement.node_id)
        assert len(placement.device_ids) == request.gpu_count
        assert set(placement.device_ids) <= {device.id for device in before.fitting_devices(request)}
        held = before.with_kernel(request, placement.device_ids)
        assert held.without_kernel(request, placement.device_ids) == before
        self.held.append((before.id, request, placement.device_ids))
        self.go_on(held)

    @precondition(lambda self: bool(self.held))
    @rule(data=st.data())
    def kernel_ends(self, data: st.DataObject) -> None:
        kernel = data.draw(st.sampled_from(self.held))
        self.held.remove(kernel)
        node_id, request, device_ids = kernel
        self.go_on(self.snapshot.node(node_id).without_kernel(request, device_ids))

    @precondition(lambda self: self.has_nodes)
    @rule(request=st.sampled_from(CLASSES), data=st.data())
    def more_would_not_hurt(self, request: Request, data: st.DataObject) -> None:
        """A feasible request stays feasible if a node grows or a node is added."""
        node, extra = self.some_node(data), data.draw(empty_nodes("zz"))
        larger = replace(
            node,
            cpus=node.cpus + extra.cpus,
            memory_bytes=node.memory_bytes + extra.memory_bytes,
            resources={
                name: node.resources.get(name, 0.0) + extra.resources.get(name, 0.0)
                for name in {**node.resources, **extra.resources}
            },
            devices=(*node.devices, *(replace(device, id=f"x{device.id}") for device in extra.devices)),
        )
        more = self.snapshot.apply([larger, extra])
        if self.living.place(request, self.snapshot).placement is not None:
            assert self.living.place(request, more).placement is not None

    @precondition(lambda self: self.has_nodes)
    @rule(request=st.sampled_from(CLASSES), data=st.data())
    def what_is_undone_is_as_before(self, request: Request, data: st.DataObject) -> None:
        """A node leaves and comes back unchanged: the version is new, and the decision is the same."""
        before, node = self.snapshot, self.some_node(data)
        back = before.apply(removed=[node.id]).apply([node])
        assert list(map(back.node, back.nodes)) == list(map(before.node, before.nodes))
        if self.name != "random":  # random depends on the version
            assert_same(
                self.living.place(request, back),
                replace(self.living.place(request, before), snapshot_version=back.version),
            )

    @invariant()
    def nothing_is_over_committed(self) -> None:
        for node in map(self.snapshot.node, self.snapshot.nodes):
            here = [(request, ids) for node_id, request, ids in self.held if node_id == node.id]
            assert node.kernels == len(here)
            assert sum(request.cpus for request, _ in here) <= node.cpus + 1e-6 * len(here)
            assert sum(request.memory_bytes for request, _ in here) <= node.memory_bytes
            for name in ("licence", "tpu"):
                asked = [request.resources.get(name, 0.0) for request, _ in here]
                assert sum(asked) <= node.resources.get(name, 0.0) + EPSILON * len(asked)
                assert node.resources_promised.get(name, 0.0) == pytest.approx(sum(asked))
            for device in node.devices:
                shares = [request.gpu_share for request, ids in here if device.id in ids]
                assert sum(shares) <= 1 + EPSILON * len(shares)
                assert device.promised == pytest.approx(sum(shares), abs=1e-6)


def assert_same(one: Decision, other: Decision) -> None:
    """Compare everything that a caller sees, explanations included."""
    assert one == other


def _machine(name: str, workload: Workload, kind: str) -> type[Engine]:
    return type(f"Engine_{name}_{kind}", (Engine,), {"name": name, "workload": workload})


LEARNERS = ("balanced", "fgd")  # the others pay no heed to a workload
MACHINES = [_machine(name, Workload(), "without_profile") for name in SHIPPED] + [
    _machine(name, WORKLOAD, "with_profile") for name in LEARNERS
]
for machine in MACHINES:
    machine.TestCase.settings = settings(
        max_examples=20,
        stateful_step_count=40,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    globals()[f"Test_{machine.__name__}"] = machine.TestCase
