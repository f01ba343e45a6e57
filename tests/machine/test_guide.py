"""The backend of the developers' guide: its code is taken from the page, as the author of another package would."""

from __future__ import annotations

import asyncio
import importlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import roost
from kit.machine.container_agent import LEASE, a_launch, connect
from roost.launchers.protocol.agent_client import AgentClient
from roost.launchers.protocol.messages import AgentAddress
from roost.scheduler.backends.agent_per_kernel import read_address
from roost.scheduler.backends.key_pair import load_key_pair
from roost.scheduler.errors import LeaseConflict
from roost.testing import backend_context, open_backend
from roost.testing.clusters.free_ports import free_port
from roost.testing.deadlines import allow_s, until

PAGE = (Path(roost.__file__).parent / "docs" / "developers.md").read_text()


def read_blocks(heading: str, language: str = "python") -> list[str]:
    """Return the blocks of code in the section with this heading, without its subsections."""
    section = re.split(r"^#{2,4} ", PAGE.split(f"# {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Return a folder with the package `roost_demo`, whose first step is `first_step.py`."""
    spec, settings, first_step = read_blocks("The parts of a backend")
    script, add_code, pack_start = read_blocks("The pod's first process")
    (example,) = read_blocks("A whole example")
    (test,) = read_blocks("The contract suite")
    (pytest_settings,) = read_blocks("Test it", "toml")
    folder = tmp_path / "demo"
    (folder / "roost_demo").mkdir(parents=True)
    for name, text in (
        ("roost_demo/__init__.py", spec),
        ("roost_demo/settings.py", settings),
        ("roost_demo/first_step.py", first_step),
        ("roost_demo/script.py", script),
        ("roost_demo/add_code.py", add_code),
        ("roost_demo/pack_start.py", pack_start),
        ("roost_demo/backend.py", example),
        ("test_demo.py", test),
        ("pyproject.toml", pytest_settings),
    ):
        (folder / name).write_text(text)
    return folder


class Parts:
    """The modules of the package, by name."""

    def __getattr__(self, name: str) -> ModuleType:
        return importlib.import_module(f"roost_demo.{name}")


@pytest.fixture
def demo(package: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(package))
    yield Parts()
    for name in [name for name in sys.modules if name.partition(".")[0] == "roost_demo"]:
        del sys.modules[name]


def test_the_example_passes_the_contract_suite(package: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."],
        cwd=package,
        env={**os.environ, "PYTHONPATH": str(package), "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        timeout=allow_s(500),
        check=False,
    )
    assert "18 passed, 2 skipped" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0


async def test_the_first_step_shows_a_node_and_refuses_all_claims(demo: Any, tmp_path: Path) -> None:
    settings = demo.settings.RoostDemoBackend(address="demo.example.org:1234")
    opener = open_backend(lambda agents: demo.first_step.create(settings, backend_context(agents, tmp_path)))
    async with opener as (backend, _):
        assert (await backend.snapshot()).node("n1").cpus == 8
        with pytest.raises(LeaseConflict):
            await backend.claim(replace(LEASE, node_id="n1"))


async def test_the_shell_of_a_pod_sets_its_address_path_and_code(demo: Any, runtime_dir: Path) -> None:
    archive, folder = runtime_dir / "roost.zip", runtime_dir / "agent"
    script = demo.script.write_script("pod7", str(folder), sys.executable, "$(echo localhost)")
    script = demo.add_code.add_code(script, archive)
    process = await asyncio.create_subprocess_exec("sh", "-c", script)
    try:

        def find_address() -> AgentAddress | None:
            assert process.returncode is None, "the agent has ended"
            return read_address(str(folder))

        address = await until(find_address, "the agent listens", 60, 0.02)
        assert address.endpoint.startswith("tcp://127.0.0.1:")
        client = AgentClient(address.endpoint, address.keys)
        await client.connect()
        await client.close()
        environ = dict(
            entry.partition("=")[::2]
            for entry in Path(f"/proc/{process.pid}/environ").read_text().split("\0")
            if entry
        )
        assert environ["DEMO_POD"] == "pod7"
        assert environ["PATH"].startswith(os.path.dirname(sys.executable))
        assert environ["PYTHONPATH"] == str(archive)
    finally:
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), allow_s(60)) == 0


async def test_an_archive_brings_the_keys_and_the_first_launch(demo: Any, runtime_dir: Path) -> None:
    mine, port = (
        load_key_pair(str(runtime_dir / "keys"), name="demo", section="RoostDemoBackend"),
        free_port(),
    )
    content, keys = demo.pack_start.pack_start(LEASE, a_launch(), mine, port)
    archive = runtime_dir / "start.zip"
    archive.touch(mode=0o600)
    archive.write_bytes(content)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(archive),
        str(runtime_dir / "agent"),
        "a kernel of roost",
        env={**os.environ, "NODE_ADDRESS": "localhost"},
    )
    try:
        client = await connect(f"tcp://127.0.0.1:{port}", keys)
        assert (await client.launch(a_launch())).pid
        assert [lease.id for lease in (await client.holdings()).leases] == [LEASE.id]
        await client.close()
    finally:
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), allow_s(60)) == 0
