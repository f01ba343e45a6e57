"""An imitation of a ResourceManager with 1,000 nodes, for `on_yarn.py`. It repeats the nodes of a real answer."""

from __future__ import annotations

import asyncio
import copy
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from roost.bench.world import elapsed_ms

NODES = 1_000
_SERVER = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "application/json;charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass

content = sys.stdin.buffer.read()
server = HTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


def time_readings(answer: Mapping[str, Any], rounds: int) -> list[float]:
    """Read 1,000 nodes like those of a real answer with roost's own reader. Return the milliseconds of each reading.

    Each reading differs from the last one in what a tenth of the nodes use.
    """
    contents = [_multiply(answer, turn) for turn in range(2)]
    servers = [subprocess.Popen([sys.executable, "-c", _SERVER], stdin=-1, stdout=-1) for _ in contents]
    try:
        ports = []
        for server, content in zip(servers, contents, strict=True):
            assert server.stdin is not None
            assert server.stdout is not None
            server.stdin.write(content)
            server.stdin.close()
            ports.append(int(server.stdout.readline()))
        return asyncio.run(_read(ports, rounds))
    finally:
        for server in servers:
            server.kill()
            server.wait()
            assert server.stdout is not None
            server.stdout.close()


def _multiply(answer: Mapping[str, Any], turn: int) -> bytes:
    """Return an answer with NODES nodes, copied from this one. `turn` selects the tenth of them that uses more CPU."""
    rows = answer["nodes"]["node"]
    many = []
    for number in range(NODES):
        row = copy.deepcopy(rows[number % len(rows)])
        name = f"node-{number:04d}.cluster.example"
        row |= {"id": f"{name}:8041", "nodeHostName": name, "nodeHTTPAddress": f"{name}:8042"}
        row["resourceUtilization"]["nodeCPUUsage"] = 3.5 if number % 10 == turn else 0.5
        many.append(row)
    return json.dumps({"nodes": {"node": many}}).encode()


async def _read(ports: list[int], rounds: int) -> list[float]:
    from roost.scheduler.backends.yarn.node_reader import NodeReader
    from roost.scheduler.backends.yarn.queues import Queues
    from roost.scheduler.backends.yarn.rest import Rest
    from roost.scheduler.backends.yarn.settings import RoostYarnBackend

    settings = RoostYarnBackend()
    queues = Queues(settings)
    readers = [NodeReader(Rest(RoostYarnBackend(address=f"http://127.0.0.1:{port}")), settings, queues, dict)
               for port in ports]  # fmt: skip
    for reader in readers:
        reader.book = readers[0].book
    took = []
    for turn in range(rounds + 2):
        reader = readers[turn % 2]
        began = time.perf_counter()
        assert await reader.read()
        assert len(reader.nodes(())) == NODES
        took.append(elapsed_ms(began))
    return took[2:]
