"""`roost kernels`, `roost logs` and `roost stop`, with a stub client."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kit.fakes.client import QUEUED, RUNNING, StubClient, build_kernel, document, run
from roost.launchers.protocol.shared_values import KernelUse
from roost.scheduler.client.running_services import RunningService


def test_kernels(client: StubClient, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "kernels")
    assert code == 0
    assert "aaaaaaaa-1" in out  # eight characters would name two kernels
    assert "0.25 GPU, 8" in out  # the rest of it is in the next line
    assert "ada/lab" in out
    assert max(map(len, out.splitlines())) <= 80
    listed = document(capsys, "kernels")["kernels"]
    assert [known["id"] for known in listed] == [known.id for known in client.known]
    assert listed[0]["process"]["connection"] is None
    assert [known["how"] for known in listed] == ["exec", "", ""]
    assert listed[0]["why_not_forked"] == ""


def test_a_kernel_of_a_server_has_a_connection_file(
    client: StubClient, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    file = tmp_path / f"kernel-{RUNNING.id}.json"
    file.touch()
    listed = document(capsys, "kernels")["kernels"]
    assert [known["connection_file"] for known in listed] == [str(file), "", ""]


def test_other_worlds_are_named(client: StubClient, capsys: pytest.CaptureFixture[str]) -> None:
    client.worlds = ["0ddba11f"]
    code, out, _ = run(capsys, "kernels")
    assert code == 0
    assert out.endswith(
        "Kernels of another world are not listed: `ROOST_SERVICE_NAME=0ddba11f roost kernels` lists them.\n"
    )


def test_kernels_show_what_they_use(
    client: StubClient, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    use = KernelUse(kernel_id=RUNNING.id, processes=2, cpu_percent=150.0, memory_bytes=180 << 20)
    client.known[0] = replace(RUNNING, use=use)
    first, second, queued = run(capsys, "kernels")[1].splitlines()[1:]
    assert "180 MiB, 1.5 CPU" in first
    assert "unknown" in second
    assert "unknown" not in queued
    assert document(capsys, "kernels")["kernels"][0]["use"]["memory_bytes"] == 180 << 20


@pytest.mark.parametrize("command", ["kernels", "top"])
def test_a_state_of_a_kernel_cannot_colour_the_terminal(
    client: StubClient, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    use = KernelUse(kernel_id=RUNNING.id, execution_state="\x1b[31mred\x1b]0;title\x07")
    client.known[0] = replace(RUNNING, use=use)
    out = run(capsys, command)[1]
    assert "\\u001b[31mred" in out
    assert "\x1b" not in out


def test_pending_kernels_say_what_they_wait_for(
    client: StubClient, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = run(capsys, "kernels", "--pending")
    assert "0.25 GPU on big: 0 free" in out
    assert "aaaaaaaa" not in out
    assert [known["position"] for known in document(capsys, "kernels", "--pending")["kernels"]] == [1]
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


def test_a_pending_lease_is_shown_with_its_reason(
    client: StubClient, capsys: pytest.CaptureFixture[str]
) -> None:
    reason = "its agent is starting"
    client.known = [
        build_kernel("cccc", state="queued", lease_id="l", node_id="big", position=1, waits_for=reason)
    ]
    _, out, _ = run(capsys, "kernels")
    assert out.splitlines()[1].split()[:5] == ["cccc", "-", "pending", "ada/lab", "big"]
    assert out.splitlines()[-1] == "cccc is pending: its agent is starting"
    _, out, _ = run(capsys, "kernels", "--pending")
    assert out.splitlines()[1].split()[0] == "pending"
    assert reason in out
