"""`roost kernels`, `roost logs` and `roost stop`, with a stub client."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kit.fakes.client import QUEUED, RUNNING, StubClient, build_kernel, document, run
from roost.launchers.protocol.shared_values import KernelUse
from roost.scheduler.client.running_services import RunningService
from roost.scheduler.errors import BackendUnavailable


def test_kernels_as_json(client: StubClient, capsys: pytest.CaptureFixture[str]) -> None:
    client.known[0] = replace(RUNNING, use=KernelUse(kernel_id=RUNNING.id, memory_bytes=180 << 20))
    listed = document(capsys, "kernels")["kernels"]
    assert [known["id"] for known in listed] == [known.id for known in client.known]
    assert listed[0]["process"]["connection"] is None
    assert [known["how"] for known in listed] == ["exec", "", ""]
    assert listed[0]["why_not_forked"] == ""
    assert listed[0]["use"]["memory_bytes"] == 180 << 20
    (queued,) = document(capsys, "kernels", "--pending")["kernels"]
    assert queued["position"] == 1


def test_a_kernel_of_a_server_has_a_connection_file(
    client: StubClient, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    file = tmp_path / f"kernel-{RUNNING.id}.json"
    file.touch()
    listed = document(capsys, "kernels")["kernels"]
    assert [known["connection_file"] for known in listed] == [str(file), "", ""]


def test_kernels_of_other_worlds_are_listed_and_stopped(
    client: StubClient, capsys: pytest.CaptureFixture[str]
) -> None:
    other, silent = StubClient(), StubClient()
    client.elsewhere = [other, silent]
    other.world, silent.world, other.is_elsewhere, silent.is_elsewhere = "0ddba11f", "f0011000", True, True
    other.known, silent.error = [build_kernel("cccc-1")], BackendUnavailable("It is silent.")
    code, out, error = run(capsys, "kernels")
    assert code == 0
    assert "cccc-1 is in another world: 0ddba11f" in out
    assert error == "roost: kernels of another world are not listed: It is silent.\n"
    assert run(capsys, "stop", "cc")[:2] == (0, "cccc-1 removed from the queue\n")
    assert ("stop", "cccc-1", 5.0) in other.asked
    assert not [each for each in client.asked if each[0] == "stop"]


def test_one_sentence_says_that_there_are_no_kernels(
    client: StubClient, capsys: pytest.CaptureFixture[str]
) -> None:
    client.known = []
    assert run(capsys, "kernels", "--pending")[1] == "No kernel is queued.\n"
    assert run(capsys, "kernels")[1] == "There are no kernels.\n"
    client.elsewhere_count = 2
    assert "2 kernels of yours were started on this cluster by other services" in run(capsys, "kernels")[1]


def test_the_log_of_an_ended_kernel_ends_with_the_reason(
    client: StubClient, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "logs", "gone")[2] == "roost: there is no kernel gone\n"
    client.ended = replace(RUNNING, id="gone-1", state="exited", reason="culled: idle for longer than 1 h")
    said = "roost: the kernel has ended: culled: idle for longer than 1 h\n"
    assert run(capsys, "logs", "gone") == (0, "log of gone-1\n", said)


def test_a_kernel_is_named_by_the_beginning_of_its_id(
    client: StubClient, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "logs", "b", "--tail", "1k") == (0, "log of bbbb-1\n", "")
    assert client.asked[-1] == ("logs", "bbbb-1", 1024)
    assert document(capsys, "logs", "b") == {"kernel": "bbbb-1", "text": "log of bbbb-1\n", "reason": ""}
    code, _, err = run(capsys, "logs", "aaaa")
    assert code == 2
    assert "2 kernels begin with 'aaaa'" in err
    code, _, err = run(capsys, "stop", "zz")
    assert code == 1
    assert "There is no kernel 'zz': `roost kernels` lists them." in err


def test_nothing_is_stopped_if_one_of_several_kernels_is_not_known(
    client: StubClient, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for names, problem in (
        (("bb", "zz"), "There is no kernel 'zz'"),
        (("bb", "aaaa"), "Give more of the id."),
    ):
        code, _, err = run(capsys, "stop", *names)
        assert code != 0
        assert problem in err
        assert err.endswith(" No kernel was stopped.\n")
    assert not any(asked[0] == "stop" for asked in client.asked)
    other = RunningService(folder=Path("/x"), backend="dask", address="a:1", pid=1)
    monkeypatch.setattr("roost.scheduler.cli.kernels.find_services", lambda: [other])
    assert "lists them, and those of other clusters with --backend dask." in run(capsys, "stop", "zz")[2]
    assert "dask" not in run(capsys, "kernels")[1]
    client.known = []
    assert "Services of other clusters run too: give --backend dask." in run(capsys, "kernels")[1]


def test_stop_takes_several_kernels_and_ended_ones(
    client: StubClient, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "stop", "aaaaaaaa-1", "aaaaaaaa-2", "bb", "bbbb", "--grace", "2")
    assert code == 0
    assert out.splitlines() == [
        "aaaaaaaa-1 stopped",
        "aaaaaaaa-2 had ended already",
        "bbbb-1 removed from the queue",
    ]
    stops = [asked for asked in client.asked if asked[0] == "stop"]
    assert stops == [("stop", id_, 2.0) for id_ in ("aaaaaaaa-1", "aaaaaaaa-2", "bbbb-1")]
    assert document(capsys, "stop", "bb") == {
        "stopped": [{"id": "bbbb-1", "outcome": "removed from the queue"}]
    }


def test_stop_reports_what_the_service_did(client: StubClient, capsys: pytest.CaptureFixture[str]) -> None:
    """A queued kernel may get a lease, or run, between the list and the stop."""
    client.ended = replace(QUEUED, lease_id="lease")
    assert run(capsys, "stop", "bb")[1] == "bbbb-1 removed while it was starting\n"
    client.ended = replace(RUNNING, id=QUEUED.id, state="exited")
    assert run(capsys, "stop", "bb")[1] == "bbbb-1 stopped\n"
