"""`roost explain`, with a stub client."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from kit.fakes.client import NODES, PROCESS, QUEUED, RUNNING, SECOND, StubClient, document, run
from roost.launchers.protocol.messages import KernelProcess
from roost.placement import Node, Request, Snapshot, get_policy
from roost.scheduler.cli import explain
from roost.scheduler.policies.explain import build_explanation


def test_explain_ranks_and_refuses(client: StubClient, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["explain", "--gpus", "0.5", "--memory", "8GiB", "--gpu-model", "H200", "--label", "zone=a"]
    options += ["--gpu-memory", "80GiB"]
    options += ["--near", "rack=7", "--tolerate", "lab", "--tolerate", "night"]
    options += ["--resource", "licence=2", "--resource", "odd=name=0.5"]
    code, out, _ = run(capsys, *options)
    assert code == 0
    assert "It would go to big, GPU GPU-0." in out
    assert "small" in out
    assert "never" in out
    assert max(map(len, out.splitlines())) <= 80
    _, request = client.asked[-1]
    assert request == Request(
        gpus=0.5,
        memory_bytes=8 << 30,
        gpu_models=("H200",),
        gpu_memory_bytes=80 << 30,
        labels={"zone": "a"},
        near={"rack": "7"},
        resources={"licence": 2, "odd=name": 0.5},
        tolerates=("lab", "night"),
    )
    decision = document(capsys, *options)["decision"]
    assert decision["placement"]["node_id"] == "big"


def test_explain_says_why_no_node_fits(client: StubClient, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "explain", "--cpus", "1000")
    assert code == 1
    assert "No node could ever hold 1000 CPUs" in out


def test_explain_of_one_node_shows_remedies_unless_the_node_is_only_full(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for changed, is_told in (({"is_draining": True}, True), ({"cpus_promised": 8}, False)):
        only = Snapshot.of([Node(id="only", cpus=8, memory_bytes=1 << 30, **changed)])  # type: ignore[arg-type]
        document = build_explanation(get_policy("balanced").place(Request(cpus=1), only), only)
        explain.show_decision({**document, "soonest": None})
        out = capsys.readouterr().out
        assert ("would do but" in out) == is_told
        assert ("`roost drain only --off` lets kernels on it again." in out) == is_told


def test_explain_names_the_fallback_and_counts_refusals(
    client: StubClient, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(capsys, "nodes", "--json")[0] == 0
    nodes = [replace(NODES[0], id=f"n{i:02}", metrics_age_s=None) for i in range(14)]
    nodes[0] = replace(nodes[0], memory_bytes=0, gpus_promised=1.0, memory_promised_bytes=0)
    saved = tmp_path / "nodes.json"
    saved.write_text(json.dumps({"nodes": [node.to_dict() for node in nodes]}))
    _, out, _ = run(capsys, "explain", "--snapshot", str(saved), "--gpus", "0.5", "--memory", "1GiB")
    assert "It would go to n01" in out
    flat = " ".join(out.split())
    assert "Policy balanced was asked; ranked by round robin, since no node that fits has metrics." in flat
    assert "14 of 14 nodes have no metrics" in flat
    assert "n00 never needs 1 GiB memory, has 0 bytes" in flat
    _, out, _ = run(capsys, "explain", "--snapshot", str(saved), "--gpus", "1", "--memory", "1GiB")
    flat = " ".join(out.split())
    assert "13 of 14 nodes have too few GPUs free now" in flat
    assert "… and 4 more nodes (--json has the first 1,000 reasons)." in flat
    assert "13 nodes would do but have too few GPUs free now; nearest n01: needs 1 GPU, 0.75 free." in flat
    assert "n09" in out
    assert "n10" not in out
    assert max(map(len, out.splitlines())) <= 80
    assert client.asked == [("nodes",), ("node_types",), ("service",)]


def test_texts_of_other_programs_cannot_colour_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """`roost` keeps the colours of its own tables, so `explain` must clean a policy's exception itself."""
    only = Snapshot.of([Node(id="only", cpus=8, memory_bytes=1 << 30)])
    document = build_explanation(get_policy("balanced").place(Request(cpus=1), only), only)
    bad = "\x1b[2J\x1b[31mRED"
    placement = {**document["placement"], "node_id": bad}
    texts = {"fallback": bad, "policy": bad, "reason": bad, "warnings": [bad], "remedies": [bad]}
    for changed in ({"placement": placement}, {"placement": None, "is_never": True}):
        explain.show_decision({**document, **texts, **changed, "soonest": None})
        out = capsys.readouterr().out
        assert out.count("\\u001b[31mRED") >= 4
        assert "\x1b" not in out


def test_explain_names_others_that_hold_gpus(client: StubClient, capsys: pytest.CaptureFixture[str]) -> None:
    text = "3 of 4 GPUs are held by Ray actors and tasks that roost did not start"
    client.others = {"text": text}
    out = " ".join(run(capsys, "explain", "--gpus", "1")[1].split())
    assert f"{text}." in out
    assert document(capsys, "explain", "--gpus", "1")["decision"]["others"] == client.others


def test_explain_lists_the_kernels_that_hold_scarce_resources(
    client: StubClient, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel = {"id": RUNNING.id, "user": "ada", "application": "lab", "cpus": 0.0, "memory_bytes": 8 << 30}
    kernel |= {"gpus": 0.25, "resources": {"licence": 2}}
    held = {**kernel, "device_ids": ["GPU-0"], "since": time.time() - 90}
    client.soonest = {"node_id": "big", "kernels": [held, {**held, "id": SECOND.id, "since": None}]}
    out = " ".join(run(capsys, "explain", "--gpus", "1")[1].split())
    assert "The soonest to free: big would have room if these 2 kernels ended." in out
    assert "aaaaaaaa-1 ada lab 0.25 GPU, 8 GiB, 2 licence GPU-0 90 s" in out
    assert "unknown" in out
    client.soonest = {"node_id": "big", "kernels": [held]}
    code, out, _ = run(capsys, "explain", "--gpus", "1")
    assert code == 0
    assert "if this kernel ended" in out
    assert document(capsys, "explain", "--gpus", "1")["decision"]["soonest"] == client.soonest


def test_explain_on_saved_nodes(
    client: StubClient, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    saved = tmp_path / "nodes.json"
    saved.write_text(run(capsys, "nodes", "--json")[1])
    options = ["explain", "--gpus", "0.5", "--snapshot", str(saved)]
    assert document(capsys, *options)["decision"]["placement"]["node_id"] == "big"
    for wrong in ("no-such-file", "."):
        code, out, err = run(capsys, "explain", "--snapshot", wrong)
        assert (code, out, err.count("\n")) == (2, "", 1)


@pytest.mark.parametrize(
    ("process", "said"),
    [
        (PROCESS, "It was executed, not forked."),
        (
            replace(PROCESS, why_not_forked="/b/python is a script"),
            "not forked, because /b/python is a script.",
        ),
        (replace(PROCESS, how="forked"), "It was forked from a warm process."),
    ],
)
def test_explain_says_how_a_kernel_was_started(
    client: StubClient, capsys: pytest.CaptureFixture[str], process: KernelProcess, said: str
) -> None:
    decision = get_policy("balanced").place(Request(cpus=1), Snapshot.of(NODES)).to_dict(refusals=20)
    started = replace(RUNNING, process=process, decision=decision)
    client.known, client.ended = [started], started
    code, out, _ = run(capsys, "explain", "aaaa")
    assert code == 0
    assert "It went to big" in out
    assert said in " ".join(out.split())
    found = document(capsys, "explain", "aaaa")
    assert (found["how"], found["why_not_forked"]) == (process.how, process.why_not_forked)
    client.ended = replace(started, decision=None)
    assert "an earlier scheduler" in run(capsys, "explain", "aaaa")[1]


def test_explain_takes_a_kernel_or_a_request(client: StubClient, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = run(capsys, "explain", "aaaa", "--gpus", "1")
    assert code == 2
    assert "a kernel's request is known already" in error


def test_explain_of_a_kernel_in_the_queue_says_why_it_waits(
    client: StubClient, capsys: pytest.CaptureFixture[str]
) -> None:
    client.ended = replace(QUEUED, request=Request(cpus=1000))  # what `kernel` answers
    client.known = [client.ended]
    code, out, _ = run(capsys, "explain", QUEUED.id)
    assert code == 0
    assert "It is at position" in out
    assert "No node could ever hold 1000 CPUs" in out
    assert "kept no reasons" not in out
