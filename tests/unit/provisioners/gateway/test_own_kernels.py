"""The records of a gateway's kernels outlive it, and an ended kernel still has its person."""

from __future__ import annotations

import json
import logging
import stat
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from roost.provisioners.gateway import own_kernels
from roost.provisioners.gateway.own_kernels import KernelRecord, OwnKernels

LOG = logging.getLogger("gateway")
RECORD = KernelRecord(
    person="ada",
    user="ada",
    kernel_name="roosted",
    backend="local",
    variables={"KERNEL_CPUS": "2"},
    started_at=1.0,
)


def test_the_next_gateway_knows_people_and_variables(tmp_path: Path) -> None:
    own = OwnKernels(tmp_path, LOG)
    own.note("k", RECORD)
    (file,) = tmp_path.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    found = OwnKernels(tmp_path, LOG)
    assert found.records == {"k": RECORD}
    assert (found.find_person("k"), found.find_person("other"), found.find_person("")) == ("ada", "", "")


def test_an_ended_kernel_has_a_person_and_a_refused_start_has_none(tmp_path: Path) -> None:
    own = OwnKernels(tmp_path, LOG)
    own.note("k", RECORD)
    own.note("refused", RECORD)
    assert own.forget("k") == RECORD
    assert own.forget("refused", has_run=False) == RECORD
    assert own.forget("k") is None
    assert (own.find_person("k"), own.find_person("refused")) == ("ada", "")
    assert OwnKernels(tmp_path, LOG).records == {}


def test_old_starts_that_became_no_kernel_are_forgotten(tmp_path: Path) -> None:
    own = OwnKernels(tmp_path, LOG)
    for kernel_id, started_at in (("old", 1.0), ("new", time.time()), ("runs", 1.0)):
        own.note(kernel_id, replace(RECORD, started_at=started_at))
    own.forget_unfinished({"runs": {}})
    assert own.records.keys() == {"new", "runs"}


def change(**facts: object) -> str:
    return json.dumps({"k": {**asdict(RECORD), **facts}})


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", '{"k": 1}', '{"k": {"person": "eve"}}', '{"k": {"person": "eve", "x": 1}}'),
        *(change(person=1), change(variables=["a"]), change(variables={"A": 1}), change(started_at="now")),
    ],
)
def test_an_unreadable_record_belongs_to_nobody(tmp_path: Path, content: str) -> None:
    (tmp_path / "owners.json").write_text(content)
    own = OwnKernels(tmp_path, LOG)
    assert (own.records, own.find_person("k")) == ({}, "")


def test_a_record_that_cannot_be_kept_stops_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = OwnKernels(tmp_path, LOG)

    def fail(*_: object) -> None:
        raise OSError("no room")

    monkeypatch.setattr(own_kernels, "write_private_json", fail)
    with pytest.raises(OSError, match="no room"):
        own.note("k", RECORD)
    assert own.records == {}


def test_the_file_belongs_to_the_next_gateway_after_the_end(tmp_path: Path) -> None:
    own, successor = OwnKernels(tmp_path, LOG), OwnKernels(tmp_path, LOG)
    own.note("k", RECORD)
    own.close()
    successor.note("other", RECORD)
    own.forget("k")
    assert OwnKernels(tmp_path, LOG).records == {"other": RECORD}


def test_the_file_has_no_more_than_it_needs(tmp_path: Path) -> None:
    OwnKernels(tmp_path, LOG).note("k", RECORD)
    (document,) = json.loads((tmp_path / "owners.json").read_text()).values()
    assert document.keys() == {"person", "user", "kernel_name", "backend", "variables", "started_at"}
