"""The ledger: shares, devices, repeated requests, and the files that remain after a crash."""

from __future__ import annotations

import json
import math
import os
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from kit.machine.bad_files import BAD_FILES
from kit.machine.killed_writer import die_while_writing
from roost.launchers.agent.leases.ledger import Conflict, LeaseLedger
from roost.launchers.protocol.messages import Connection, Launch, Lease, Owner, Reserve
from roost.placement.model import EPSILON, Device, Request

OWNER = Owner(user="ada")


def make(folder: Path, *, gpus: int = 2, cpus: float = 4, memory_bytes: int = 100) -> LeaseLedger:
    devices = [Device(id=str(index), model="T4" if index else "A100") for index in range(gpus)]
    return LeaseLedger(folder, cpus=cpus, memory_bytes=memory_bytes, devices=devices)


def ask(name: str, **amounts: object) -> Reserve:
    own = {name: amounts.pop(name) for name in ("device_ids", "is_granted") if name in amounts}
    is_granted = bool(own.pop("is_granted", False))
    lease = Lease(id=name, kernel_id=name, owner=OWNER, request=Request(**amounts), **own)  # type: ignore[arg-type]
    return Reserve(lease=lease, is_granted=is_granted)


def test_devices_have_the_memory_that_is_asked_for(tmp_path: Path) -> None:
    devices = [Device(id="a", memory_bytes=24), Device(id="b"), Device(id="c", memory_bytes=80)]
    ledger = LeaseLedger(tmp_path / "l", cpus=4, memory_bytes=100, devices=devices)
    assert ledger.reserve(ask("k", gpus=0.5, gpu_memory_bytes=40, device_ids=("a",))).device_ids == ("c",)
    with pytest.raises(Conflict, match="0 devices have that much free"):
        ledger.reserve(ask("l", gpus=1, gpu_memory_bytes=40))


def test_four_quarters_fill_a_device(tmp_path: Path) -> None:
    ledger = make(tmp_path / "l")
    granted = [ledger.reserve(ask(str(n), gpus=0.25)).device_ids for n in range(8)]
    assert [sum(ids == (device,) for ids in granted) for device in "01"] == [4, 4]
    assert granted[:4] == [("0",)] * 4, "fractions fill one device before they break another"
    with pytest.raises(Conflict):
        ledger.reserve(ask("9", gpus=0.25))
    ledger.release("0")
    assert ledger.reserve(ask("9", gpus=0.25)).device_ids == ("0",)


def test_a_share_must_fit_one_device(tmp_path: Path) -> None:
    ledger = make(tmp_path / "l")
    ledger.reserve(ask("a", gpus=0.6, device_ids=("0",)))
    ledger.reserve(ask("b", gpus=0.6, device_ids=("1",)))
    with pytest.raises(Conflict):
        ledger.reserve(ask("c", gpus=0.8))
    with pytest.raises(Conflict):
        ledger.reserve(ask("d", gpus=1))


def test_a_ledger_grants_no_custom_resources(tmp_path: Path) -> None:
    ledger = make(tmp_path / "l")
    with pytest.raises(Conflict, match="1 licence asked for, this machine has none"):
        ledger.reserve(ask("a", cpus=1, resources={"licence": 1}))
    assert len(ledger.entries()) == 0


def test_a_lease_that_a_cluster_manager_granted_is_recorded_unchanged(tmp_path: Path) -> None:
    ledger = make(tmp_path / "l", gpus=1, cpus=1)
    granted = ask(
        "a", cpus=8, memory_bytes=1000, gpus=1, device_ids=("7",), gpu_models=("H100",), is_granted=True,
        resources={"licence": 1.5},
    )  # fmt: skip
    assert ledger.reserve(granted) == granted.lease
    assert (ledger.cpus_promised, ledger.gpus_promised) == (8, 1)
    assert ledger.promised_by_device() == {"0": 0, "7": 1}, "also devices that this node does not see"
    assert make(tmp_path / "l", gpus=1).get("a") == ledger.get("a")
    with pytest.raises(Conflict, match="0 free"):
        ledger.reserve(ask("b", cpus=1))


def test_models_cpus_and_memory(tmp_path: Path) -> None:
    ledger = make(tmp_path / "l")
    assert ledger.reserve(ask("t", gpus=1, gpu_models=("T4",))).device_ids == ("1",)
    with pytest.raises(Conflict):
        ledger.reserve(ask("t2", gpus=0.5, gpu_models=("T4",)))
    ledger.reserve(ask("c", cpus=3, memory_bytes=60))
    with pytest.raises(Conflict, match="2 CPUs asked for, 1 free"):
        ledger.reserve(ask("c2", cpus=2))
    with pytest.raises(Conflict, match="memory"):
        ledger.reserve(ask("m", memory_bytes=41))


def test_a_repeated_request_changes_nothing(tmp_path: Path) -> None:
    ledger = make(tmp_path / "l")
    first = ledger.reserve(ask("a", gpus=1))
    assert ledger.reserve(ask("a", gpus=1)) == first
    assert len(ledger.entries()) == 1
    assert ledger.release("a")
    assert not ledger.release("a")


def test_leases_outlive_the_process(tmp_path: Path) -> None:
    ledger = make(tmp_path / "l")
    ledger.reserve(ask("roost:../../x:1", gpus=1))
    again = make(tmp_path / "l")
    assert again.entries() == ledger.entries()
    assert again.gpus_promised == 1
    again.release("roost:../../x:1")
    assert not list((tmp_path / "l").iterdir())


def test_an_unreadable_lease_is_put_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ledger = make(tmp_path / "l")
    for name in ("newer", "other", "damaged"):
        ledger.reserve(ask(name, gpus=0.5, cpus=1, device_ids=("1",)))
    files = {path: json.loads(path.read_text()) for path in (tmp_path / "l").iterdir()}
    paths = {content["lease"]["id"]: path for path, content in files.items()}
    newer, other = files[paths["newer"]], files[paths["other"]]
    newer["added"] = newer["lease"]["owner"]["added"] = 1
    other["lease"]["owner"] = "ada"
    paths["newer"].write_text(json.dumps(newer))
    paths["other"].write_text(json.dumps(other))
    paths["damaged"].write_text("{")
    again = make(tmp_path / "l")
    assert [entry.lease.id for entry in again.entries()] == ["newer"]
    assert (again.cpus_promised, again.gpus_promised) == (1, 0.5)
    assert "Reserve.lease.owner must be an object" in caplog.text
    aside = {paths[name].with_suffix(".unreadable") for name in ("other", "damaged")}
    assert set((tmp_path / "l").iterdir()) == {paths["newer"], *aside}
    assert again.reserve(ask("other", cpus=1)).id == "other"


def test_no_file_keeps_the_keys_or_the_environment_of_a_launch(tmp_path: Path) -> None:
    """Only the agent that gets the request launches the kernel."""
    connection = Connection(key="hmac-secret", curve_publickey="public", curve_secretkey="curve-secret")
    launch = Launch(
        launch_id="1",
        lease_id="k",
        kernel_id="k",
        argv=("a",),
        env={"TOKEN": "secret"},
        cwd="/",
        connection=connection,
    )
    request = replace(ask("k", cpus=1), launch=launch, linger_s=7)
    ledger = make(tmp_path / "l")
    assert ledger.reserve(request).id == "k"
    ledger.transfer("k", Owner(user="bob"))
    (file,) = (tmp_path / "l").iterdir()
    assert "secret" not in file.read_text()
    (entry,) = make(tmp_path / "l").entries()
    assert entry == replace(request, lease=replace(request.lease, owner=Owner(user="bob")), launch=None)


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_file_that_is_no_lease_is_put_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    ledger = make(tmp_path / "l")
    ledger.reserve(ask("k", cpus=1))
    BAD_FILES[kind](tmp_path / "l" / "x.json")
    BAD_FILES[kind](tmp_path / "l" / "x.unreadable")
    again = make(tmp_path / "l")
    assert [entry.lease.id for entry in again.entries()] == ["k"]
    assert [record.getMessage().partition(" ")[0] for record in caplog.records] == [
        str(tmp_path / "l" / "x.json")
    ]
    assert not os.path.lexists(tmp_path / "l" / "x.json")
    assert os.path.lexists(tmp_path / "l" / "x.unreadable")


def test_a_lease_in_the_file_of_another_is_put_aside(tmp_path: Path) -> None:
    """A release would not remove that file."""
    make(tmp_path / "l").reserve(ask("k", cpus=1))
    (file,) = (tmp_path / "l").iterdir()
    (tmp_path / "l" / "x.json").write_bytes(file.read_bytes())
    again = make(tmp_path / "l")
    assert again.cpus_promised == 1
    assert {each.name for each in (tmp_path / "l").iterdir()} == {file.name, "x.unreadable"}


def test_a_lease_that_cannot_be_written_is_not_granted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = make(tmp_path / "l")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("roost.launchers.agent.leases.ledger.write_private_json", full)
    with pytest.raises(OSError, match="No space"):
        ledger.reserve(ask("a", gpus=1))
    assert ledger.entries() == ()
    assert ledger.gpus_promised == 0


def test_the_sums_of_many_changes_are_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roost.launchers.agent.leases.ledger.write_private_json", lambda path, value: None)
    rng = random.Random(1)
    shares = (0, 0, 0, 1 / 3, 0.1, 2)
    asked = [
        ask(str(n), cpus=rng.random() ** 4, memory_bytes=rng.randrange(9), gpus=rng.choice(shares))
        for n in range(200)
    ]
    ledger = make(tmp_path / "l", gpus=3, cpus=10, memory_bytes=250)
    refused: Counter[str] = Counter()
    for number in range(20_000):
        request = rng.choice(asked)
        if not ledger.release(request.lease.id):
            try:
                ledger.reserve(request)
            except Conflict as problem:
                refused[str(problem).split()[1]] += 1
        if number % 100 == 0:
            held = [entry.lease for entry in ledger.entries()]
            assert ledger.cpus_promised == math.fsum(lease.request.cpus for lease in held)
            assert ledger.memory_promised_bytes == sum(lease.request.memory_bytes for lease in held)
            assert ledger.gpus_promised == math.fsum(lease.request.gpus for lease in held)
            assert ledger.promised_by_device() == {
                device_id: math.fsum(each.request.gpu_share for each in held if device_id in each.device_ids)
                for device_id in "012"
            }
            assert ledger.cpus_promised <= 10 + EPSILON
    assert refused.keys() == {"CPUs", "bytes", "GPUs"}, "each of the three was sometimes short"
    for request in asked:
        ledger.release(request.lease.id)
    assert (ledger.cpus_promised, ledger.memory_promised_bytes, ledger.gpus_promised) == (0, 0, 0)
    assert ledger.is_empty
    assert set(ledger.promised_by_device().values()) == {0}


def test_a_transfer_outlives_the_process(tmp_path: Path) -> None:
    ledger = make(tmp_path / "l")
    ledger.reserve(ask("a", cpus=1))
    for _ in range(2):
        ledger.transfer("a", Owner(user="ada", application="next"))
    ledger.transfer("unknown", OWNER)
    assert ledger.cpus_promised == 1
    (held,) = make(tmp_path / "l").entries()
    assert (held.lease.owner.application, held.lease.request.cpus) == ("next", 1)


def test_what_a_killed_process_left_of_a_file_is_removed(tmp_path: Path) -> None:
    make(tmp_path / "l").reserve(ask("a"))
    die_while_writing(tmp_path / "l" / "b.json")
    assert len(list((tmp_path / "l").iterdir())) == 2
    ledger = make(tmp_path / "l")
    assert [entry.lease.id for entry in ledger.entries()] == ["a"]
    ledger.release("a")
    assert not list((tmp_path / "l").iterdir())
