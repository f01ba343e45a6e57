"""The ledger of leases in Dask's scheduler grants nothing twice, whichever workers leave and return."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kit.clusters.dask.slots import held, ledger, slot
from roost.scheduler.backends.dask.plugin.slot_ledger import GPU, Refused, Slot

CRUMB = 1e-5


class Books(RuleBasedStateMachine):
    """Random leases on two machines: one has a worker for all GPUs, the other one per GPU. Workers leave and return."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = ledger(
            slot("s0", "one", gpus=3, devices="012", licence=2),
            slot("t0", "two", gpus=1, devices="0", licence=1),
            slot("t1", "two", gpus=1, devices="1", licence=1),
        )
        self.gone: list[Slot] = []
        self.names = 0

    @rule(
        number=st.integers(0, 9),
        machine=st.sampled_from(["one", "two"]),
        gpus=st.sampled_from([0, 1 / 3, 0.5, 0.7, 1, 2]),
        cpus=st.sampled_from([0, 0.5, 1, 4]),
        licence=st.sampled_from([0, 0.3, 1, 1.5]),
        preferred=st.lists(st.sampled_from("0129"), max_size=3),
        is_again=st.booleans(),
    )
    def take(
        self,
        number: int,
        machine: str,
        gpus: float,
        cpus: float,
        licence: float,
        preferred: list[str],
        is_again: bool,
    ) -> None:
        asked = held(
            str(number), machine, gpus=gpus, cpus=cpus, resources={"licence": licence} if licence else {}
        )
        before = dict(self.ledger.leases)
        try:
            if is_again:
                devices = list(dict.fromkeys([*preferred, *"012"]))[: max(1, round(gpus)) if gpus else 0]
                lease = self.ledger.take_again(asked, device_ids=devices)
            else:
                lease = self.ledger.take(asked, preferred=preferred)
        except Refused:
            assert self.ledger.leases == {
                name: one for name, one in before.items() if name != asked.lease_id or one.machine == machine
            }
            return
        if lease is asked and not is_again:
            threads = sum(each.threads for each in self.ledger.ready_slots(machine))
            assert not cpus or sum(one.cpus for one in self.ledger.leases_on(machine)) <= threads + CRUMB
        if lease is asked:
            assert len(set(lease.device_ids)) == len(lease.device_ids) == (max(1, round(gpus)) if gpus else 0)
            assert not is_again or lease.device_ids == devices
            assert sum(claim.get(GPU, 0) for claim in lease.claims.values()) == pytest.approx(gpus)
            assert sum(claim.get("licence", 0) for claim in lease.claims.values()) == pytest.approx(licence)

    @rule(number=st.integers(0, 9))
    def release(self, number: int) -> None:
        self.ledger.leases.pop(str(number), None)

    @rule(data=st.data())
    def lose_a_worker(self, data: st.DataObject) -> None:
        if self.ledger.slots:
            name = data.draw(st.sampled_from(sorted(self.ledger.slots)))
            self.gone.append(self.ledger.slots.pop(name))

    @rule(is_same_nanny=st.booleans())
    def a_worker_is_back(self, is_same_nanny: bool) -> None:
        if self.gone:
            back = self.gone.pop(0)
            if not is_same_nanny:
                self.names += 1
                back.name = f"new{self.names}"
            self.ledger.slots[back.name] = back
            self.ledger.move(back)

    @invariant()
    def nothing_is_given_twice(self) -> None:
        for machine in ("one", "two"):
            assert all(share <= 1 + CRUMB for share in self.ledger.shares(machine).values())
        for name, each in self.ledger.slots.items():
            for what, amount in self.ledger.leased(name).items():
                assert amount <= each.resources.get(what, 0.0) + CRUMB


Books.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
test_books = Books.TestCase
