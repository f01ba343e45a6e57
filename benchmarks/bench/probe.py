"""A process that calls a service every 50 ms and tells how long each answer took.

python -m roost.bench.probe BACKEND ADDRESS

It connects at once and calls until stdin ends. It answers each line on stdin with a JSON list: the times in ms since
the line before.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import subprocess
import sys
import time
from collections.abc import Iterator

from roost.scheduler.client.client import Client, connect, disconnect

from .world import NEUTRAL, elapsed_ms

_EVERY_S = 0.05
_END_S = 10.0


class Probe:
    """The process that probes a service."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def read(self) -> list[float]:
        """Return how many ms the answers since the last reading took."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        if not (line := self._process.stdout.readline()):
            raise RuntimeError("the process that probes the service has ended")
        return [float(each) for each in json.loads(line)]


@contextlib.contextmanager
def probe(backend: str, address: str) -> Iterator[Probe]:
    """Probe the service of this backend in the block."""
    command = [sys.executable, "-m", __name__, backend, address]
    with subprocess.Popen(
        command, cwd=NEUTRAL, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Probe(process)
            process.communicate(timeout=_END_S)
        finally:
            process.kill()


async def _call(client: Client, took_ms: list[float]) -> None:
    while True:
        asked = time.perf_counter()
        await client.service()
        took_ms.append(elapsed_ms(asked))
        await asyncio.sleep(max(0.0, _EVERY_S - took_ms[-1] / 1000))


async def _main(backend: str, address: str) -> None:
    gc.disable()  # a pause of this process is none of the service
    took_ms: list[float] = []
    calls = asyncio.create_task(_call(connect(backend, address=address), took_ms))
    while await asyncio.to_thread(sys.stdin.readline):
        before = len(took_ms)
        while len(took_ms) == before:  # the call under way belongs to these
            if calls.done():
                calls.result()
            await asyncio.sleep(_EVERY_S)
        print(json.dumps(took_ms), flush=True)
        took_ms.clear()
    calls.cancel()
    disconnect()


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
