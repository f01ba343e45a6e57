"""The preferences of each shipped policy, and the search for policies by name."""

from __future__ import annotations

import sys
import types
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import EntryPoint

import pytest

from roost.placement import NOWHERE, Decision, Device, Node, Request, Snapshot, get_policy, shipped_policies

GIB = 2**30


def _node(name: str, *promised: float, used: float | None = None, **values: object) -> Node:
    """Return an idle node with 4 CPUs, 8 GiB, fresh metrics, and one device for each promised share."""
    devices = tuple(
        Device(id=str(i), promised=share, used=share if used is None else used)
        for i, share in enumerate(promised)
    )
    plain = {"cpus": 4, "memory_bytes": 8 * GIB, "cpus_used": 0, "memory_used_bytes": 0, "metrics_age_s": 1.0}
    return Node(id=name, devices=devices, **{**plain, **values})  # type: ignore[arg-type]


def _choice(name: str, request: Request, *nodes: Node) -> str:
    decision = get_policy(name).place(request, Snapshot.of(nodes))
    assert decision.placement is not None, decision.reason
    assert decision.fallback is None
    return decision.placement.node_id


def _run(name: str, request: Request, nodes: list[Node], count: int) -> Counter[str]:
    snapshot, seen = Snapshot.of(nodes), Counter[str]()
    for _ in range(count):
        placement = get_policy(name).place(request, snapshot).placement
        assert placement is not None
        seen[placement.node_id] += 1
        snapshot = snapshot.apply(
            [snapshot.node(placement.node_id).with_kernel(request, placement.device_ids)]
        )
    return seen


class TestBalanced:
    def test_gpu_share_comes_before_memory(self) -> None:
        little_memory = _node("b", 0, 0, memory_promised_bytes=6 * GIB)
        assert (
            _choice("balanced", Request(gpus=0.5, memory_bytes=GIB), _node("a", 0, 0.5), little_memory) == "b"
        )

    def test_memory_comes_before_cpu(self) -> None:
        memory, cpus = _node("a", memory_promised_bytes=4 * GIB), _node("b", cpus_promised=3)
        assert _choice("balanced", Request(memory_bytes=GIB, cpus=1), memory, cpus) == "b"

    def test_cpu_decides_if_gpu_and_memory_are_equal(self) -> None:
        request = Request(gpus=0.5, memory_bytes=GIB, cpus=1)
        assert _choice("balanced", request, _node("a", 0, cpus_promised=1), _node("b", 0)) == "b"

    def test_real_use_counts_if_it_exceeds_the_promises(self) -> None:
        assert (
            _choice("balanced", Request(cpus=1), _node("a", cpus_used=3), _node("b", cpus_promised=2)) == "b"
        )
        nodes = _node("a", memory_used_bytes=7 * GIB), _node("b", memory_promised_bytes=4 * GIB)
        assert _choice("balanced", Request(memory_bytes=GIB), *nodes) == "b"

    def test_devices_busy_beyond_their_promises_are_avoided(self) -> None:
        busy, fuller = _node("a", 0, 0, used=0.9), _node("b", 0.5, 0.4)
        assert _choice("balanced", Request(gpus=0.5), busy, fuller) == "b"
        assert _choice("balanced", Request(gpus=0.5), busy) == "a"  # avoided, not refused
        assert _choice("balanced", Request(gpus=1), busy, _node("b", 0.1, 0)) == "b"

    def test_one_idle_device_is_enough_on_a_busy_node(self) -> None:
        devices = (Device(id="0", used=0.9), Device(id="1", used=0.0))
        mixed = Node(id="b", devices=devices, metrics_age_s=1.0)
        decision = get_policy("balanced").place(
            Request(gpus=1), Snapshot.of([_node("a", 0, used=0.5), mixed])
        )
        assert decision.placement is not None
        assert (decision.placement.node_id, decision.placement.device_ids) == ("b", ("1",))

    def test_all_chosen_devices_count(self) -> None:
        devices = (Device(id="0", used=0.0), Device(id="1", used=0.9))
        half_busy = Node(id="a", devices=devices, metrics_age_s=1.0)
        assert _choice("balanced", Request(gpus=2), half_busy, _node("b", 0, 0, used=0.2)) == "b"

    def test_unknown_devices_rank_between_idle_and_busy(self) -> None:
        unknown = Node(id="b", devices=(Device(id="0"),), metrics_age_s=1.0)
        assert _choice("balanced", Request(gpus=1), _node("a", 0, used=1.0), unknown) == "b"
        assert _choice("balanced", Request(gpus=1), unknown, _node("c", 0)) == "c"

    @pytest.mark.parametrize("request_", [Request(), Request(cpus=1), Request(memory_bytes=GIB)])
    def test_requests_without_gpus_avoid_gpu_nodes_while_others_fit(self, request_: Request) -> None:
        gpu, plain = _node("a", 0), _node("b", cpus_promised=2, memory_promised_bytes=4 * GIB, kernels=3)
        assert _choice("balanced", request_, gpu, plain) == "b"
        full = _node("b", cpus_promised=4, memory_promised_bytes=8 * GIB)
        if not request_.is_best_effort:
            assert _choice("balanced", request_, gpu, full) == "a"

    def test_best_effort_goes_by_load_and_kernels(self) -> None:
        assert _choice("balanced", Request(), _node("a", cpus_used=2), _node("b", cpus_used=1)) == "b"
        assert _choice("balanced", Request(), _node("a", memory_used_bytes=4 * GIB), _node("b")) == "b"
        assert _choice("balanced", Request(), _node("a", kernels=1), _node("b")) == "b"
        assert _choice("balanced", Request(), _node("a", kernels=4), _node("b", cpus_used=3)) == "a"

    def test_a_burst_of_best_effort_is_spread_before_load_shows(self) -> None:
        assert _run("balanced", Request(), [_node("a"), _node("b"), _node("c")], 9) == {
            "a": 3,
            "b": 3,
            "c": 3,
        }

    def test_quarters_fill_one_device_before_the_next(self) -> None:
        used: list[str] = []
        snapshot, request = Snapshot.of([_node("a", 0, 0)]), Request(gpus=0.25)
        while (placement := get_policy("balanced").place(request, snapshot).placement) is not None:
            used += placement.device_ids
            snapshot = snapshot.apply([snapshot.node("a").with_kernel(request, placement.device_ids)])
        assert used == ["0"] * 4 + ["1"] * 4


class TestPack:
    def test_fills_the_fullest_node(self) -> None:
        assert _choice("pack", Request(cpus=1), _node("a"), _node("b", cpus_promised=2)) == "b"
        assert (
            _choice("pack", Request(memory_bytes=1), _node("a"), _node("b", memory_promised_bytes=GIB)) == "b"
        )
        assert _choice("pack", Request(gpus=1), _node("a", 0, 0), _node("b", 0, 1)) == "b"

    def test_fills_the_fullest_device_even_on_an_emptier_node(self) -> None:
        assert _choice("pack", Request(gpus=0.5), _node("a", 1, 0), _node("b", 0.5, 0, 0, 0)) == "b"

    def test_stays_on_one_node_while_it_fits(self) -> None:
        assert _run("pack", Request(cpus=1), [_node("a"), _node("b")], 5) == {"a": 4, "b": 1}


class TestSpread:
    def test_takes_the_emptiest_node_and_device(self) -> None:
        decision = get_policy("spread").place(
            Request(gpus=0.25), Snapshot.of([_node("a", 0.5, 0.5), _node("b", 0.5, 0)])
        )
        assert decision.placement is not None
        assert (decision.placement.node_id, decision.placement.device_ids) == ("b", ("1",))

    @pytest.mark.parametrize("request_", [Request(), Request(cpus=0.5), Request(memory_bytes=GIB)])
    def test_alternates_between_equal_nodes(self, request_: Request) -> None:
        assert _run("spread", request_, [_node("a"), _node("b")], 6) == {"a": 3, "b": 3}


class TestRoundRobin:
    def test_stays_proportional_to_size(self) -> None:
        nodes = [_node("a", cpus=2), _node("b", cpus=4), _node("c", cpus=8)]
        assert _run("round_robin", Request(), nodes, 70) == {"a": 10, "b": 20, "c": 40}

    def test_the_first_goes_to_the_largest(self) -> None:
        assert _choice("round_robin", Request(), _node("a", cpus=2), _node("b", cpus=4)) == "b"

    def test_size_is_gpus_for_gpu_requests(self) -> None:
        nodes = [_node("a", 0, cpus=64), _node("b", 0, 0, 0, cpus=4)]
        assert _run("round_robin", Request(gpus=0.25), nodes, 8) == {"a": 2, "b": 6}

    def test_counts_the_kernels_already_there(self) -> None:
        assert _run("round_robin", Request(), [_node("a", kernels=4), _node("b")], 4) == {"b": 4}

    def test_needs_no_metrics(self) -> None:
        assert _choice("round_robin", Request(), Node(id="a"), Node(id="b", kernels=1)) == "a"


class Always:
    """A policy that is a plain object: it has `place` and no filters or scorers of its own."""

    name = "always"

    def place(self, request: Request, snapshot: Snapshot, *, avoid: Mapping[str, str] = NOWHERE) -> Decision:
        return get_policy("round_robin").place(request, snapshot, avoid=avoid)


ALWAYS = Always()


class TestGetPolicy:
    @pytest.mark.parametrize("name", list(shipped_policies.SHIPPED))
    def test_shipped_policies_by_name(self, name: str) -> None:
        assert get_policy(name).name == name

    def test_objects_are_returned(self) -> None:
        assert get_policy(ALWAYS) is ALWAYS

    def test_by_module_and_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        module = types.ModuleType("own_policies")
        module.__dict__.update(ALWAYS=ALWAYS, Always=Always, nothing=object())
        monkeypatch.setitem(sys.modules, "own_policies", module)
        assert get_policy("own_policies:ALWAYS") is ALWAYS
        assert get_policy("own_policies:Always").name == "always"
        with pytest.raises(ValueError, match="own_policies:nothing is not a policy"):
            get_policy("own_policies:nothing")
        with pytest.raises(ValueError, match="policy 'own_policies:Missing' cannot be loaded"):
            get_policy("own_policies:Missing")

    def test_by_entry_point(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "own_policies", types.ModuleType("own_policies"))
        sys.modules["own_policies"].__dict__.update(Always=Always)
        point = EntryPoint(name="always", value="own_policies:Always", group=shipped_policies.ENTRY_POINTS)
        monkeypatch.setattr(shipped_policies, "entry_points", lambda group: [point])
        assert isinstance(get_policy("always"), Always)
        known = "balanced, pack, spread, fgd, best_fit, random, round_robin, always"
        with pytest.raises(ValueError, match=f"unknown policy 'nope'; known are {known}"):
            get_policy("nope")

    @pytest.mark.parametrize("name", ["nope", "", "no_such_module:Name"])
    def test_unknown_names_are_a_clear_error(self, name: str) -> None:
        with pytest.raises(ValueError, match=r"unknown policy|cannot be loaded"):
            get_policy(name)

    def test_other_objects_are_refused(self) -> None:
        with pytest.raises(ValueError, match="is not a policy"):
            get_policy(object())  # type: ignore[arg-type]
