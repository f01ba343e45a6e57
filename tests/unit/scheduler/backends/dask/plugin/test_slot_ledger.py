"""The ledger of leases in Dask's scheduler grants and refuses leases, and moves claims with their worker."""

from __future__ import annotations

import pytest

from kit.clusters.dask.slots import held, ledger, slot
from roost.scheduler.backends.dask.plugin.slot_ledger import GPU, Refused


def test_preferred_devices_are_granted_or_else_the_fullest_with_room() -> None:
    books = ledger(slot("s", gpus=3, devices="012"))
    assert books.take(held("a", gpus=0.5), preferred=["1"]).device_ids == ["1"]
    assert books.take(held("b", gpus=0.5), preferred=[]).device_ids == ["1"]
    assert books.take(held("c", gpus=0.5), preferred=["1"]).device_ids == ["0"]
    assert books.take(held("d", gpus=1), preferred=["0"]).device_ids == ["2"]
    assert books.shares("m") == {"0": 0.5, "1": 1.0, "2": 1.0}
    assert books.leased("s") == {GPU: 2.5}
    with pytest.raises(Refused, match=r"m has no 1 GPU that no other kernel has"):
        books.take(held("e", gpus=1), preferred=[])


def test_a_live_kernel_claims_again_its_own_devices_or_nothing() -> None:
    books = ledger(slot("s", gpus=2, devices="01"))
    books.take(held("a", gpus=0.7), preferred=["0"])
    with pytest.raises(Refused, match="another kernel has GPU 0 of m"):
        books.take_again(held("b", gpus=0.5), device_ids=["0"])
    again = books.take_again(held("b", gpus=0.3), device_ids=["0"])
    assert (again.device_ids, again.claims) == (["0"], {"s": {GPU: 0.3}})
    assert books.take_again(held("b", gpus=0.3), device_ids=["0"]) is again


def test_a_live_kernels_amounts_on_missing_workers_are_claimed_when_they_return() -> None:
    books = ledger(slot("s", licence=1))
    lease = books.take_again(held("a", gpus=1, resources={"licence": 2}), device_ids=["1"])
    assert lease.claims["s"] == {"licence": 1}
    with pytest.raises(Refused):
        books.take(held("b", resources={"licence": 0.5}), preferred=[])
    for late in (slot("t", licence=1), slot("u", gpus=2, devices="01")):
        books.slots[late.name] = late
        assert books.move(late) == ["a"]
    assert lease.claims == {"s": {"licence": 1}, "t": {"licence": 1}, "u": {GPU: 1}}
    assert books.take(held("b", gpus=1), preferred=["1"]).device_ids == ["0"]


def test_whole_gpus_and_other_resources_may_come_from_several_workers_of_a_machine() -> None:
    books = ledger(slot("s", gpus=1, devices="0", licence=1), slot("t", gpus=1, devices="1", licence=2))
    lease = books.take(held("a", gpus=2, resources={"licence": 2.5}), preferred=[])
    assert sorted(lease.device_ids) == ["0", "1"]
    assert lease.claims == {"s": {GPU: 1.0, "licence": 1}, "t": {GPU: 1.0, "licence": 1.5}}
    with pytest.raises(Refused, match=r"no 1\.5 more of licence"):
        books.take(held("b", resources={"licence": 1.5}), preferred=[])


def test_threads_and_memory_are_counted_for_the_whole_machine() -> None:
    books = ledger(slot("s"), slot("t"), slot("u", "elsewhere"))
    books.take(held("a", cpus=6, memory_bytes=1500), preferred=[])
    with pytest.raises(Refused, match="m has 2 threads that no kernel has"):
        books.take(held("b", cpus=3), preferred=[])
    with pytest.raises(Refused, match="m has 500 bytes of memory that no kernel has"):
        books.take(held("b", memory_bytes=501), preferred=[])
    books.slots["t"].is_leaving = True
    with pytest.raises(Refused, match="m has 0 threads"):
        books.take(held("b", cpus=0.1), preferred=[])
    with pytest.raises(Refused, match="no worker of the Dask cluster is on nowhere now"):
        books.take(held("b", "nowhere"), preferred=[])


def test_a_claim_may_be_repeated_and_an_earlier_one_on_another_machine_is_forgotten() -> None:
    books = ledger(slot("s", gpus=1, devices="0"), slot("t", "other", gpus=1, devices="0"))
    first = books.take(held("a", gpus=1), preferred=[])
    assert books.take(held("a", gpus=1), preferred=[]) is first
    second = books.take(held("a", "other", gpus=1), preferred=[])
    assert books.leases == {"a": second}
    assert books.shares("m") == {}


def test_claims_move_to_a_worker_with_the_same_devices() -> None:
    books = ledger(slot("s", gpus=2, devices="01", licence=1))
    books.take(held("a", gpus=1, resources={"licence": 1}), preferred=["1"])
    books.take(held("b", gpus=0.5), preferred=["0"])
    del books.slots["s"]
    for less in (slot("x", gpus=2, devices="23", licence=1), slot("y", gpus=0.4, devices="0")):
        books.slots[less.name] = less
        assert books.move(less) == []
        del books.slots[less.name]
    books.slots["t"] = slot("t", gpus=2, devices="01", licence=1)
    assert books.move(books.slots["t"]) == ["a", "b"]
    assert books.move(books.slots["t"]) == []
    assert books.claims_of("t") == {"a": {GPU: 1.0, "licence": 1}, "b": {GPU: 0.5}}


def test_each_worker_gets_the_claims_on_its_own_devices() -> None:
    books = ledger()
    lease = books.take_again(held("a", gpus=2), device_ids=["1", "2"])
    for name, devices in (("s", "01"), ("t", "23")):
        books.slots[name] = slot(name, gpus=2, devices=devices)
        books.move(books.slots[name])
    assert lease.claims == {"s": {GPU: 1}, "t": {GPU: 1}}
