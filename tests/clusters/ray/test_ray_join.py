"""Joining a Ray cluster with tokens: join, leave and join again. A failed join reports why within seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import psutil
import pytest

from roost.testing.clusters.raylets import Machine, Raylets, why_not
from roost.testing.deadlines import allow_s

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "of-a-cluster-that-a-test-started-here"}
SECONDS = 8.0
"""How long a step may take on a busy machine: far less than the 20 to 60 s that `ray.init` takes to fail."""

# A service: an event loop with a handler for SIGTERM, and Ray off the loop. It prints the result of each step.
SERVICE = """
import asyncio, json, os, signal, sys, time
from roost.scheduler.backends.ray.join import _import_ray, join, leave

async def main():
    said, terms = [], asyncio.Queue()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terms.put_nowait, None)
    for step in json.loads(sys.argv[1]):
        began, word = time.monotonic(), ""
        try:
            if step == "leave":
                await asyncio.to_thread(leave)
            elif step == "age":
                _import_ray()
                import ray
                ray.__version__ = "2.1.0"
            elif step == "use":
                import ray
                word = [ray.get(ray.put("kept")), ray.get_runtime_context().namespace]
            elif step == "terminate":
                os.kill(os.getpid(), signal.SIGTERM)
                await asyncio.wait_for(terms.get(), 60)
            else:
                _import_ray()
                began = time.monotonic()
                word = await asyncio.to_thread(join, step, namespace="roost-test")
        except Exception as problem:
            word = f"{type(problem).__name__}: {problem}"
        said.append([word, time.monotonic() - began])
    print(json.dumps(said))

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def raylets() -> Iterator[Raylets]:
    with Raylets(Machine(cpus=1), environment=TOKEN) as cluster:
        yield cluster


def serve(*steps: str, environment: Mapping[str, str] = TOKEN) -> list[Any]:
    """Run `SERVICE` with these steps, and return the result of each step. Check that no step takes long."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", SERVICE, json.dumps(steps)],
        check=True, capture_output=True, text=True, timeout=allow_s(100), env={**own, **environment},
    )  # fmt: skip
    assert "SIGTERM" not in done.stderr
    said = json.loads(done.stdout)
    assert [seconds for _, seconds in said if seconds > allow_s(SECONDS)] == []
    return [word for word, _ in said]


def test_join_leave_and_join_again(raylets: Raylets) -> None:
    """The service keeps its own SIGTERM handler. Joining or leaving a second time changes nothing."""
    at = raylets.address
    said = serve(
        at,
        at,
        "use",
        "terminate",
        "leave",
        "leave",
        "terminate",
        "",
        environment={**TOKEN, "RAY_ADDRESS": at},
    )
    assert said == [at, at, ["kept", "roost-test"], "", "", "", "", at]


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({}, "asks for a token: set RAY_AUTH_MODE=token"),
        ({"RAY_AUTH_MODE": "token"}, "there is no token"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/nowhere/token"}, "there is no token"),
        ({**TOKEN, "RAY_AUTH_TOKEN": "of-another-cluster-somewhere-else"}, "refuses the token"),
    ],
)  # fmt: skip
def test_tokens(raylets: Raylets, environment: Mapping[str, str], says: str) -> None:
    said = serve(raylets.address, environment={"HOME": str(raylets.folder), **environment})
    assert len(said) == 1
    assert said[0].startswith("ConfigError: ")
    assert says in said[0]


def test_a_port_of_the_cluster_that_is_not_its_address(raylets: Raylets) -> None:
    """A raylet's own ports are refused, although a raylet speaks gRPC as the cluster's address does."""
    raylet = psutil.Process(raylets.nodes[0].raylet_pid)
    ports = {at.laddr.port for at in raylet.net_connections("tcp") if at.status == psutil.CONN_LISTEN}
    assert ports
    for said in serve(*(f"{raylets.nodes[0].address}:{port}" for port in ports)):
        assert said.startswith("BackendUnavailable: what listens at")


def test_another_version(raylets: Raylets) -> None:
    said = serve("age", raylets.address)
    assert said[1].startswith(f"ConfigError: the Ray cluster at {raylets.address} has Ray ")
    assert "roost's service Ray 2.1.0" in said[1]


def test_a_raylet_that_hangs(raylets: Raylets) -> None:
    """If roost did not check the raylet first, Ray would block all threads of the service and end it after 40 s."""
    raylet = psutil.Process(raylets.nodes[0].raylet_pid)
    raylet.suspend()
    try:
        said = serve(raylets.address, "terminate")
    finally:
        raylet.resume()
    assert said[0].startswith("BackendUnavailable: the node of the Ray cluster")
    assert serve(raylets.address) == [raylets.address]
