"""Other GPUs that root declares while an agent runs: the agent grants none of them, and names the remedy."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from roost.launchers.agent.leases.ledger import LeaseLedger
from roost.launchers.agent.leases.machine_share import MachineShare
from roost.launchers.machine_book.book import Conflict, MachineBook
from roost.launchers.machine_book.places import Place
from roost.launchers.machine_book.rules import read_rules
from roost.launchers.protocol.messages import Lease, Owner, Reserve
from roost.placement.model import Device, Request


class Machine:
    """A share of a machine whose rules are in a file of the test."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "machine.toml"
        self.file.write_text("gpus = 2")
        self.file.chmod(0o644)
        book = folder / "book"
        book.mkdir(mode=0o1777)
        self.ledger = LeaseLedger(
            folder / "leases", cpus=4, memory_bytes=100, devices=[Device(id="0"), Device(id="1")]
        )
        self.share = MachineShare(
            self.ledger,
            MachineBook(
                "agent",
                cpus=4,
                memory_bytes=100,
                find=lambda: Place(book, "installed"),
                read=lambda: read_rules(self.file, root=os.getuid()),
            ),
            gpu_ids=("0", "1"),
        )

    def declare(self, text: str) -> None:
        """Replace the file, as an editor does."""
        new = self.file.with_suffix(".new")
        new.write_text(text)
        new.replace(self.file)

    async def reserve(self, name: str, **wish: float) -> Lease:
        lease = Lease(id=name, kernel_id=name, owner=Owner(user="ada"), request=Request(**wish))  # type: ignore[arg-type]
        return await self.share.reserve(Reserve(lease=lease, linger_s=1), self.ledger.reserve)


async def test_other_gpus_are_refused_and_the_rest_is_granted(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    first = await machine.reserve("a", gpus=1)
    assert not machine.share.is_outdated
    machine.declare("gpus = 4")
    with pytest.raises(
        Conflict, match=r"^/etc/roost/machine\.toml names other GPUs .* stop your kernels here"
    ):
        await machine.reserve("b", gpus=1)
    assert (await machine.reserve("c", cpus=1)).device_ids == ()
    assert machine.ledger.get("a") is not None
    assert first.device_ids
    machine.share.look()
    assert machine.share.is_outdated
    (problem,) = machine.share.problems()
    assert "names other GPUs" in problem


async def test_the_same_gpus_again_are_granted(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.declare("gpus = 4")
    machine.share.look()
    machine.declare('gpus = ["0", "1"]\ncpus = 3')
    assert len((await machine.reserve("a", gpus=2)).device_ids) == 2
    machine.share.look()
    assert not machine.share.is_outdated
    assert machine.share.problems() == ()


async def test_an_agent_that_divides_nothing_is_never_outdated(tmp_path: Path) -> None:
    share = MachineShare(Machine(tmp_path).ledger, None)
    share.look()
    assert not share.is_outdated
