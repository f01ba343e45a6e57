"""The comparison with Gateway Provisioners on SSH hosts, without that package, hosts and kernels."""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import replace

import psutil
import pytest
import ssh_peer
from claims import Report


def test_a_missing_package_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ssh_peer, "why_not", lambda hosts: None)
    monkeypatch.setattr(ssh_peer, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["ssh_peer.py"])
    assert ssh_peer.main() == ssh_peer.SKIPPED
    said = capsys.readouterr().err
    assert "pip install gateway_provisioners" in said
    assert said.count("\n") == 1


def test_a_kernel_left_on_a_host_misses_the_claims() -> None:
    report = Report("ssh_peer")
    for side, start_ms in (("roost", 100.0), (ssh_peer.GATEWAY, 300.0)):
        report.add(f"start/{side}", start_ms, "ms")
    report.compare("start", ["roost", ssh_peer.GATEWAY])
    for fault, count in (("server", 0), ("program", 1), ("ssh", 0)):
        report.add(f"{fault}: left/roost", count, "processes")
    ssh_peer.claim(report)
    assert [claim.verdict for claim in report.claims] == ["missed", "kept", "missed", "kept"]


@pytest.mark.skipif(sys.platform != "linux", reason="the script reads /proc")
def test_a_port_that_another_machine_can_reach_counts() -> None:
    kernel = ssh_peer.find_kernel("k", os.readlink("/proc/self/ns/pid"), os.getpid())
    assert psutil.Process() in kernel.living()
    kernel = replace(kernel, processes=[psutil.Process()])  # those of other tests open and close ports
    before = kernel.open_ports()
    with socket.socket() as open_to_all, socket.socket() as local, socket.socket() as silent:
        for each, address in ((open_to_all, "0.0.0.0"), (local, "127.0.0.1"), (silent, "0.0.0.0")):
            each.bind((address, 0))
        open_to_all.listen()
        local.listen()
        assert kernel.open_ports() == before + 1
    assert kernel.open_ports() == before
