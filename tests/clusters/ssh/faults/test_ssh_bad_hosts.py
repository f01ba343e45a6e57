"""Hosts that give no good answer: each costs one sentence and little memory, and delays no other host."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest

from kit.clusters.faults import assert_plain, say, show_logs, until
from kit.clusters.ssh.faults import SshWorld, on_host
from kit.clusters.ssh_hosts import SshHosts, leftovers, why_not
from kit.machine.daemons import daemon_pids, settle
from roost.scheduler.client.client import disconnect
from roost.testing.deadlines import allow_s

ANSWERED_S = 60.0
"""How long roost may wait for a host that answers nothing. Its own limit is half of it."""
MOST_BYTES = 64 << 20
"""How much memory the service may take for all these hosts together."""
_MARK = """m=$(echo "$SSH_ORIGINAL_COMMAND" | sed "s/.*echo .m-\\([0-9a-f]*\\) shell.*/ROOST-\\1/")"""
_WITHOUT = 'PATH={}; exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"'
_GOOD = f"PATH={Path(sys.executable).parent}:$PATH"
BEHAVIOURS = {
    "n1": (f'{_GOOD}; exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"', ""),
    "n2": ("head -c 5000 /dev/urandom", "ran something else than roost's program (bytes that are no text)"),
    "n3": (f'{_MARK}; echo "$m shell"; printf "$m {{\\"machine\\": "', "in the middle of a line"),
    "n4": ("yes | head -c 1000000000", "printed more than 1 MiB"),
    "n5": ("cat > /dev/null", "within 30 s"),
    "n6": (_WITHOUT.format("/nowhere"), "has no Python 3.10 or newer"),
    "n7": (_WITHOUT.format("/etc/old"), "is older"),
    "n8": (_WITHOUT.format("/etc/bare"), "lacks zmq or psutil"),
    "n9": (f'{_MARK}; yes "$m {{\\"step\\": \\"x\\"}}"', "more than 1 MiB"),
    "n10": (f'{_MARK}; yes "$m {{\\"want\\": \\"archive\\"}}"', "asked twice for the archive"),
    "n11": (
        f'{_MARK}; echo "$m shell"; printf "$m {{\\"machine\\": \\""; yes x | tr -d "\\n"',
        "line without an end",
    ),
    "n12": (f'{_MARK}; echo "$m {{\\"machine\\": 7}}"', "answered with what roost cannot read"),
    "n13": ("exit 3", "ended with code 3"),
}
"""By host: the shell code that it runs instead of a command, and a part of the sentence about it."""
PYTHONS = {
    "bare/python3": '#!/bin/sh\nexec /usr/bin/python3 -I -S "$@"\n',
    "old/python3": '#!/bin/sh\nexec /usr/bin/python3 -c \'import sys; sys.version_info = (3, 9, 2, "final", 0); '
    'code = sys.argv[2]; sys.argv[1:3] = []; exec(code)\' "$@"\n',
}


@pytest.fixture(scope="module")
def bad_hosts(private_environment: None) -> Iterator[SshHosts]:
    if reason := why_not(len(BEHAVIOURS)):
        pytest.skip(reason)
    cases = " ".join(f"{name}) {does};;" for name, (does, _) in BEHAVIOURS.items())
    options = [f"ForceCommand case $(hostname) in {cases} esac"]
    with SshHosts(len(BEHAVIOURS), accounts=["ada"], sshd_options=options) as hosts:
        for name in hosts.names:
            for path, text in PYTHONS.items():
                file = hosts.root(name) / "etc" / path
                file.parent.mkdir()
                file.write_text(text)
                file.chmod(0o755)
        yield hosts
    assert not leftovers(hosts.folder)


@pytest.fixture
async def world(
    runtime_dir: Path, bad_hosts: SshHosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[SshWorld]:
    world = SshWorld(bad_hosts, runtime_dir, tmp_path, monkeypatch, python="")
    world.configure(connect_timeout_s=20.0)  # the machine may be busy with hosts that never stop to talk
    try:
        with show_logs(runtime_dir):
            yield world
            await world.close()
    finally:
        disconnect()
        settle(runtime_dir)


async def test_hosts_without_a_good_answer(world: SshWorld) -> None:
    began = time.monotonic()
    notebook = await world.open(**on_host("n1"))
    say("a kernel runs on the good host after", began)
    nodes = {node["id"]: node["drains_because"] for node in await world.service().nodes()}
    assert "not reached it yet" in nodes["n5"], "the start has waited for the host that is silent"
    (pid,) = daemon_pids(world.home, "scheduler")
    peak = 0

    def problems() -> dict[str, str]:
        nonlocal peak
        peak = max(peak, psutil.Process(pid).memory_info().rss)
        found = world.service().nodes().result(allow_s(ANSWERED_S))
        return {node["id"]: node["drains_because"] for node in found}

    first = psutil.Process(pid).memory_info().rss
    await until(
        lambda: not any("not reached it yet" in each for each in problems().values()),
        "no host is waited for",
        ANSWERED_S,
    )
    say(f"the last sentence came, with {(peak - first) >> 20} MiB more, after", began)
    found = problems()
    for name, problem in found.items():
        say(f"{name}: {problem}")
    for name, (_, expected) in BEHAVIOURS.items():
        if expected:
            assert expected in found[name]
            assert_plain(found[name])
    assert found["n1"] == ""
    assert peak - first < MOST_BYTES
    await world.lives(notebook)
