"""Bad files in the agent's folder, and impossible values in requests: one line or sentence for each, and no stack."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kit.machine.bad_files import BAD_FILES
from kit.machine.daemons import agent_folder
from kit.machine.real_agent import agent_session, end_agent
from roost.launchers.daemon.private_files import private_folder
from roost.launchers.daemon.world import name_in_world
from roost.launchers.protocol.rpc import RemoteError


@pytest.fixture
async def folder(runtime_dir: Path) -> AsyncIterator[Path]:
    """Yield the folder of an agent that has not started yet."""
    yield private_folder(runtime_dir / name_in_world("agent"))
    await end_agent()


async def test_an_agent_starts_in_spite_of_bad_files(folder: Path) -> None:
    for name in ("leases", "kernels"):
        (folder / name).mkdir(mode=0o700)
    files = []
    for kind, make in BAD_FILES.items():
        files.append(folder / "leases" / f"{kind}.json")
        for name in ("record", "starting"):
            (folder / "kernels" / f"{name}-{kind}").mkdir()
            files.append(folder / "kernels" / f"{name}-{kind}" / f"{name}.json")
        for file in files[-3:]:
            make(file)
    BAD_FILES["pipe"](folder / "manager.json")
    files.append(folder / "manager.json")
    async with agent_session() as session:
        assert agent_folder(folder.parent) == folder
        await session.reserve("k")
        process = await session.launch("k")
        assert process.is_running
        await session.client.release("roost:k:1")
    log = (folder / "log").read_text().splitlines()
    for file in files:
        assert sum(str(file) in line for line in log) == 1, file
    assert {file.suffix for file in (folder / "leases").iterdir()} == {".unreadable"}
    assert len(list((folder / "leases").iterdir())) == len(BAD_FILES)
    assert not list((folder / "kernels").iterdir())
    assert len(list((folder / "kernels.unreadable").iterdir())) == 2 * len(BAD_FILES)
    assert "Traceback" not in "\n".join(log)
    for left in (folder / "leases").iterdir():
        left.rmdir() if left.is_dir() and not left.is_symlink() else left.unlink()


IMPOSSIBLE: tuple[dict[str, Any], ...] = (
    {"env": {"A=B": "c"}},
    {"env": {"A\0": "c"}},
    {"env": {"": "c"}},
    {"env": {"A": "\ud800"}},
    {"cwd": "/\0"},
    {"cwd": "/" + "a" * 100_000},
    {"argv": ("/bin/true", "\0")},
    {"argv": ("/bin/true", "a" * 200_000)},
    {"argv": ("a" * 10_000,)},
    {"argv": ("",)},
)


async def test_what_no_process_can_have_is_one_sentence(folder: Path) -> None:
    async with agent_session() as session:
        await session.reserve("k")
        for change in IMPOSSIBLE:
            with pytest.raises(RemoteError) as refused:
                await session.launch("k", **change)
            assert refused.value.kind == "bad_command", change
            assert "\n" not in refused.value.message
            assert len(refused.value.message) < 12_000
        with pytest.raises(RemoteError, match="an id has characters that cannot be shown"):
            await session.reserve("k\nforged")
    assert "Traceback" not in (folder / "log").read_text()
