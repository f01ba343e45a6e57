"""The texts that JupyterLab shows for a kernel and on the launcher's cards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kit.fakes.client import build_kernel
from kit.jupyter.kernelspecs import kernelspecs
from roost.launchers.protocol.shared_values import KernelUse
from roost.placement.model import Request
from roost.provisioners.server_extension.kernel_status import describe_status, list_cards

USE = KernelUse(kernel_id="k", memory_bytes=3 << 30, cpu_percent=120.0)
RUNNING = build_kernel(
    "k", node_id="gpu-3", device_ids=("0",), request=Request(gpus=0.5, memory_bytes=16 << 30)
)


def test_a_running_kernel_shows_its_node_its_gpus_and_its_memory() -> None:
    assert describe_status(replace(RUNNING, use=USE)) == {
        "text": "gpu-3 · 0.5 GPU · 3 GiB of 16 GiB",
        "detail": "Runs on gpu-3, GPU 0.\n"
        "Asked for: 0.5 GPU, 16 GiB memory.\n"
        "Uses 3 GiB of memory and 1.2 CPU.",
    }


def test_what_nobody_promised_or_reports_is_left_out() -> None:
    plain = build_kernel("k", node_id="n1", request=Request())
    assert describe_status(replace(plain, use=USE))["text"] == "n1 · 3 GiB"
    assert describe_status(plain)["text"] == "n1"
    assert describe_status(RUNNING)["text"] == "gpu-3 · 0.5 GPU · ? of 16 GiB"
    assert "its agent does not answer" in describe_status(RUNNING)["detail"]


def test_what_will_end_a_kernel_is_shown_first() -> None:
    shown = describe_status(replace(RUNNING, prospect="the Ray cluster is away; this kernel lives on"))
    assert shown["text"] == "gpu-3 · 0.5 GPU · ? of 16 GiB · ⚠ the Ray cluster is away"
    assert shown["detail"].startswith("The Ray cluster is away; this kernel lives on.\nRuns on gpu-3")


def test_kernels_that_do_not_run() -> None:
    queued = replace(RUNNING, state="queued", node_id="", position=2, waits_for="no room.")
    assert describe_status(queued) == {
        "text": "position 2 in the queue",
        "detail": "Position 2 in the queue: no room.",
    }
    pending = describe_status(replace(queued, lease_id="l", waits_for="a node is being started"))
    assert pending == {"text": "pending", "detail": "Waiting for the cluster: a node is being started."}
    assert describe_status(replace(RUNNING, state="starting"))["text"] == "starting on gpu-3"
    ended = replace(RUNNING, state="exited", reason="Its node was lost.")
    assert describe_status(ended) == {"text": "not running", "detail": "Its node was lost."}


def test_a_card_says_what_the_kernel_asks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    kernelspecs(tmp_path, "half", config={"gpus": 0.5}, env={"KERNEL_MEMORY": "2GiB"})
    kernelspecs(tmp_path, "wrong", config={"gpus": -1})
    shown = {card["title"]: card["text"] for card in list_cards()}
    assert shown["half"] == "0.5 GPU, 2 GiB memory"
    assert "gpus" in shown["wrong"]
