"""Metrics that a real Prometheus scrapes while kernels come and go.

ROOST_CHURN_S is the length of the run in seconds (default 10). The documentation has figures of a run of 300 s.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kit.machine import debian_packages
from kit.machine.daemons import settle
from kit.machine.tiny_kernel import tiny
from roost.scheduler.client.client import connect
from roost.testing.clusters.free_ports import free_port
from roost.testing.deadlines import allow_s, until_blocking

pytestmark = pytest.mark.backends("local", why="the same service on every backend")
CHURN_S = float(os.environ.get("ROOST_CHURN_S", "10"))
CONFIGURATION = """
global: {{scrape_interval: 500ms, scrape_timeout: 400ms}}
scrape_configs: [{{job_name: roost, static_configs: [{{targets: ["127.0.0.1:{0}"]}}]}}]
"""


@contextmanager
def prometheus(folder: Path, target: int) -> Iterator[str]:
    """Run a Prometheus that scrapes the port `target` of this machine, and yield the URL of Prometheus."""
    if shutil.which("prometheus") is None:
        debian_packages.install("prometheus")
    if shutil.which("prometheus") is None:
        pytest.skip("there is no Prometheus: install Debian's package `prometheus`")
    (folder / "prometheus.yml").write_text(CONFIGURATION.format(target))
    address = f"127.0.0.1:{free_port()}"
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log)
        try:
            yield f"http://{address}"
        finally:
            process.terminate()
            process.wait(allow_s(30))


def query(address: str, expression: str, label: str) -> dict[str, float]:
    """Return the values of an expression, by one label. The result is empty if Prometheus does not answer yet."""
    url = f"{address}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    try:
        with urllib.request.urlopen(url, timeout=allow_s(10)) as answer:
            found = json.load(answer)["data"]["result"]
    except OSError:
        return {}
    return {each["metric"].get(label, ""): float(each["value"][1]) for each in found}


def read(address: str, expression: str, label: str) -> dict[str, float]:
    """Query until there are values. After a reading that came too late, Prometheus has none."""
    return until_blocking(lambda: query(address, expression, label), expression, 30, 0.2)


@pytest.mark.timeout(600 + CHURN_S)
def test_prometheus_counts_the_same_events_as_a_listener(
    runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    settings = {"RoostScheduler": {"metrics": f"127.0.0.1:{port}"}, "RoostLocalBackend": {"cpus": 2}}
    (tmp_path / "jupyter_roost_config.json").write_text(json.dumps(settings))
    monkeypatch.setenv("JUPYTER_CONFIG_PATH", str(tmp_path))
    client = connect("local")
    heard: Counter[str] = Counter()
    unlisten = client.listen(lambda event: heard.update([event.kind]))
    client.kernels().result(allow_s(20))
    with prometheus(tmp_path, port) as address:
        until = time.monotonic() + CHURN_S
        while time.monotonic() < until:
            starts = [client.start(tiny(cpus=1)) for _ in range(3)]  # the third waits for room
            for start in starts:
                client.stop(start.result(allow_s(60)).id, grace_s=0).result(allow_s(60))
        found: dict[str, float] = {}

        def are_equal() -> bool:
            nonlocal found
            expected = {kind: float(count) for kind, count in heard.items()}
            found = query(address, "roost_events_total", "kind")
            return bool(found) and found == expected

        until_blocking(are_equal, lambda: f"both count the same: {found}, {dict(heard)}", 30, 0.2)
        assert found["running"] == found["released"] >= 3
        assert sum(read(address, "roost_start_seconds_count", "how").values()) == found["running"]
        assert read(address, "roost_kernel_ends_total", "cause") == {"stopped": found["exited"]}
        assert read(address, "roost_nodes_promised", "resource")["cpus"] == 0
    print(f"{CHURN_S:g} s: {dict(found)}")
    unlisten()
    settle(runtime_dir)
