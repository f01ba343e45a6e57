"""The workload: its counts and its tables, against figures computed by hand."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest

from roost.placement import Device, Node, Request, Snapshot, Workload


def _seen(*counted: tuple[int, Request], **gpus: float) -> Workload:
    return Workload.of([request for count, request in counted for _ in range(count)], gpus)


def test_requests_are_counted_by_their_amounts() -> None:
    asked = [
        Request(cpus=4, gpus=0.5, owner="ada"),
        Request(gpus=1, gpu_models=("T4",)),
        Request(cpus=4, gpus=0.5, labels={"zone": "a"}),
    ]
    workload = Workload.of(asked, {"T4": 2})
    assert workload.classes == (
        (Request(gpus=1, gpu_models=("T4",)), 1.0),
        (Request(cpus=4, gpus=0.5), 2.0),
    )
    assert workload == Workload.of(reversed(asked), {"T4": 2})


def test_gpus_are_counted_by_model_on_a_snapshot() -> None:
    a100 = tuple(Device(id=str(i), model="A100") for i in range(3))
    nodes = [
        Node(id="a", devices=a100),
        Node(id="b", devices=(*a100[:1], Device(id="9", model="T4"))),
        Node(id="c"),
    ]
    assert Workload.of([], Snapshot.of(nodes)).gpus == {"A100": 4.0, "T4": 1.0}


@pytest.mark.parametrize(
    ("gpu_requests", "cpu_requests", "is_useful"), [(0, 0, False), (19, 100, False), (20, 0, True)]
)
def test_useful_after_twenty_requests_of_gpus(gpu_requests: int, cpu_requests: int, is_useful: bool) -> None:
    workload = _seen((gpu_requests, Request(gpus=0.5)), (cpu_requests, Request(cpus=1)))
    assert workload.is_useful is is_useful


def test_a_pickled_workload_is_equal_and_has_no_part_in_its_tables() -> None:
    workload = _seen((3, Request(cpus=4, gpus=1, memory_bytes=7, gpu_models=("A100", "T4"))), A100=8)
    workload.fragments(("A100",))
    assert pickle.loads(pickle.dumps(workload)) == workload


class TestPressure:
    """The pressure on a GPU model: the share of the demand that requires it, over its share of the GPUs, squared."""

    def test_one_model_is_required(self) -> None:
        # half of the demand requires A100, a quarter of the GPUs
        workload = _seen((10, Request(gpus=1, gpu_models=("A100",))), (10, Request(gpus=1)), A100=5, T4=15)
        assert workload.pressure(("T4", "A100")).tolist() == [0.0, 2.0**2, 0.0]

    def test_demand_is_weighed_in_gpus(self) -> None:
        # 4 of the 10 requested GPUs must be A100, which half of the GPUs are
        workload = _seen((2, Request(gpus=2, gpu_models=("A100",))), (12, Request(gpus=0.5)), A100=8, T4=8)
        assert workload.pressure(("A100", "T4")).tolist() == pytest.approx([0.8**2, 0.0, 0.0])

    def test_several_models_share_the_demand_by_their_gpus(self) -> None:
        # 3/4 of the demand falls on A100 (6 of 8 GPUs), 1/4 on T4; of all 16 GPUs they are 6/16 and 2/16
        workload = _seen((4, Request(gpus=1, gpu_models=("A100", "T4"))), A100=6, T4=2, V100=8)
        assert workload.pressure(("A100", "T4", "V100")).tolist() == [2.0**2, 2.0**2, 0.0, 0.0]

    def test_models_that_the_cluster_or_the_workload_lacks(self) -> None:
        workload = _seen((4, Request(gpus=1, gpu_models=("H100",))), A100=1)
        assert workload.pressure(("A100", "new")).tolist() == [0.0, 0.0, 0.0]
        assert Workload().pressure(("A100",)).tolist() == [0.0, 0.0]

    def test_a_model_whose_nodes_have_left(self) -> None:
        workload = _seen((30, Request(gpus=1, gpu_models=("A100",))), A100=0.0, T4=1.0)
        assert workload.pressure(("A100", "T4")).tolist() == [0.0, 0.0, 0.0]


class TestPerGpu:
    """Typical requests: GPUs per CPU, GPUs per byte, and their share of the requested GPUs."""

    def test_requests_with_equal_ratios_are_one_class(self) -> None:
        asked = (5, Request(cpus=2, gpus=0.5, memory_bytes=8)), (9, Request(cpus=4, gpus=1, memory_bytes=16))
        per_cpu, per_byte, share = _seen(*asked, (99, Request(cpus=7))).per_gpu()
        assert (per_cpu.tolist(), per_byte.tolist(), share.tolist()) == ([0.25], [1 / 16], [1.0])

    def test_the_classes_with_most_gpus_come_first_and_rare_ones_are_left_out(self) -> None:
        asked = (
            (30, Request(cpus=8, gpus=1)),
            (33, Request(cpus=4, gpus=2)),
            (16, Request(cpus=16, gpus=0.25)),
        )
        per_cpu, per_byte, share = _seen(*asked).per_gpu()
        assert per_cpu.tolist() == [1 / 2, 1 / 8]
        assert per_byte.tolist() == [math.inf, math.inf]  # no request asks for memory
        assert share.tolist() == pytest.approx([66 / 96, 30 / 96])

    def test_no_cpus_or_no_gpus(self) -> None:
        assert _seen((1, Request(gpus=1))).per_gpu()[0].tolist() == [math.inf]
        assert [len(each) for each in _seen((1, Request(cpus=1))).per_gpu()] == [0, 0, 0]


class TestSliverWaste:
    def test_without_shares_the_whole_rest_is_wasted(self) -> None:
        alone, whole = _seen((5, Request(cpus=1))).sliver_waste(), _seen((5, Request(gpus=2))).sliver_waste()
        assert alone == pytest.approx(np.arange(1001) / 1000)
        assert whole[:1000] == pytest.approx(alone[:1000])
        assert whole[1000] == 0.0

    def test_whole_gpus_and_shares(self) -> None:
        waste = _seen((5, Request(gpus=1)), (5, Request(gpus=0.4))).sliver_waste()
        # 1.0: a whole GPU fills it in half of the cases; else 0.4 fits twice, and 0.2 stays
        assert {left: waste[left] for left in (390, 900, 1000)} == pytest.approx(
            {390: 0.39, 900: 0.1, 1000: 0.1}
        )

    def test_rare_requests_fill_little(self) -> None:
        waste = _seen((1, Request(gpus=0.5)), (99_999, Request(gpus=1))).sliver_waste()
        # after 100 requests, one in a thousand of these halves is filled
        assert waste[500] == pytest.approx(0.5 * (1 - 1e-5) ** 100)

    def test_one_share(self) -> None:
        waste = _seen((5, Request(gpus=0.4))).sliver_waste()
        # the share is taken while it fits, and the rest stays
        expected = {0: 0.0, 390: 0.39, 400: 0.0, 500: 0.1, 790: 0.39, 800: 0.0, 1000: 0.2}
        assert {left: waste[left] for left in expected} == pytest.approx(expected)

    def test_two_shares_by_their_frequency(self) -> None:
        waste = _seen((2, Request(gpus=0.3)), (2, Request(gpus=0.7))).sliver_waste()
        # 0.4: only 0.3 fits, and 0.1 stays. 0.7: in half of the cases 0 stays, else 0.4, of which 0.1 stays.
        # 1.0: in half of the cases 0.7 is left, else 0.3, which is filled.
        expected = {300: 0.0, 400: 0.1, 700: 0.05, 1000: 0.025}
        assert {left: waste[left] for left in expected} == pytest.approx(expected)
        thrice = _seen((6, Request(gpus=0.3)), (2, Request(gpus=0.7))).sliver_waste()
        assert thrice[700] == pytest.approx(0.75 * 0.1)


class TestTypicalClasses:
    def test_rare_classes_beyond_95_percent_are_left_out(self) -> None:
        workload = _seen(
            (60, Request(cpus=2, gpus=1)), (35, Request(cpus=1, gpus=0.5)), (5, Request(cpus=9, gpus=8))
        )
        tables = workload.fragments(("T4",))
        assert tables.cpus.tolist() == [1.0, 2.0]
        # with CPUs for both classes: 60 of 95 requests need a whole GPU and cannot use a free 0.7
        assert tables.device[0, 2, 700] == pytest.approx(700 * 60 / 95)

    def test_classes_fit_by_cpus(self) -> None:
        tables = _seen((1, Request(cpus=1, gpus=1)), (1, Request(cpus=4, gpus=1))).fragments(("T4",))
        assert tables.k(np.array([-1.0, 0.5, 1.0, 3.9, 4.0 - 1e-9, 64.0])).tolist() == [0, 0, 1, 1, 2, 2]

    def test_no_requests(self) -> None:
        tables = Workload().fragments(("T4",))
        assert (tables.cpus.shape, tables.device.shape, tables.many.shape) == ((0,), (2, 1, 1001), (2, 1, 65))
