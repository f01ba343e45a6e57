"""The rules that decide whether a kernel is forked (argv, environment, files), and a pool of stand-ins for zygotes."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from pathlib import Path

import pytest

from roost.launchers.agent.warm.fingerprint import Fingerprint, find_shadow, stamp
from roost.launchers.agent.warm.kernel_command import KernelCommand, NotForked
from roost.launchers.agent.warm.zygote_key import choose_import_folder, select_import_environment
from roost.launchers.agent.warm.zygote_pool import ZygotePool


def test_the_variables_that_c_code_reads_are_selected() -> None:
    env = {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": "/x",
        "LC_ALL": "C",
        "CUDA_VISIBLE_DEVICES": "0",
        "HOME": "/h",
    }
    assert select_import_environment(env) == {
        "HOME": "/h",
        "LC_ALL": "C",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": "/x",
    }


@pytest.mark.parametrize(
    ("path", "folder"), [("", "/"), ("/a:/b", "/"), ("/a:", "/work"), ("src:/a", "/work")]
)
def test_the_working_directory_counts_if_imports_depend_on_it(path: str, folder: str) -> None:
    assert choose_import_folder({"PYTHONPATH": path}, "/work") == folder


@pytest.fixture
def module(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    path = tmp_path / "module.py"
    path.write_text("a = 1")
    return path


def fingerprint(module: Path) -> Fingerprint:
    folder = str(module.with_name("folder"))
    return Fingerprint(
        files={str(module): stamp(str(module))},
        folders={folder: stamp(folder)},
        imported_names=frozenset({"module"}),
    )


def test_a_fingerprint_holds_until_a_file_is_replaced_changed_or_removed(module: Path) -> None:
    known = fingerprint(module)
    assert known.broken_by() is None
    module.write_text("a = 22")
    assert known.broken_by() == str(module)
    known = fingerprint(module)
    other = module.with_name("other.py")
    other.write_text("a = 33")
    os.utime(other, ns=(module.stat().st_atime_ns, module.stat().st_mtime_ns))
    other.replace(module)
    assert known.broken_by() == str(module)
    known = fingerprint(module)
    module.unlink()
    assert known.broken_by() == str(module)


def test_a_folder_on_the_path_counts_if_it_has_an_imported_name(module: Path) -> None:
    known = fingerprint(module)
    folder = module.with_name("folder")
    (folder / "notebook.ipynb").touch()
    assert known.broken_by() is None
    (folder / "module.py").touch()
    assert known.broken_by() == str(folder)


def test_a_module_in_the_working_folder_hides_an_imported_one(tmp_path: Path) -> None:
    names = frozenset({"numpy", "yaml"})
    assert find_shadow(str(tmp_path), names) == ""
    (tmp_path / "numpy").mkdir()
    (tmp_path / "yaml.txt").touch()
    assert find_shadow(str(tmp_path), names) == "", "a folder without __init__ hides no installed package"
    (tmp_path / "numpy" / "__init__.py").touch()
    assert find_shadow(str(tmp_path), names) == str(tmp_path / "numpy")
    assert find_shadow(str(tmp_path), frozenset({"other"})) == ""
    (tmp_path / "other.cpython-311-x86_64-linux-gnu.so").touch()
    assert find_shadow(str(tmp_path), frozenset({"other"})).endswith(".so")
    assert find_shadow(str(tmp_path / "missing"), names) == ""


def test_a_settled_working_folder_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long_ago = time.time() - 100
    os.utime(tmp_path, (long_ago, long_ago))
    names = frozenset({"a_module"})
    assert find_shadow(str(tmp_path), names) == ""
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", None)
        assert find_shadow(str(tmp_path), names) == ""
    (tmp_path / "a_module.py").touch()
    assert find_shadow(str(tmp_path), names) == str(tmp_path / "a_module.py")


def reap(pid: int) -> tuple[int, int]:
    """Wait for a child, as the agent does."""
    return os.waitpid(pid, 0)


async def test_a_failed_zygote_is_logged_once_and_its_kernels_are_execed(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.symlink_to(sys.executable)
    script = tmp_path / "zygote.py"
    script.write_text("raise SystemExit(3)")
    zygotes = ZygotePool(warm_delay_s=0.0, script=script)
    command = KernelCommand(python=str(python))
    assert zygotes.problems() == []
    with caplog.at_level(logging.WARNING):
        await zygotes.warm(command, {"PATH": "/bin"})
        await zygotes.warm(command, {"PATH": "/bin"})
    problem = f"kernels of {python} are not forked: it ended while loading; see /dev/null"
    assert [record.message for record in caplog.records] == [problem]
    assert zygotes.problems() == [problem]
    with pytest.raises(NotForked, match="it ended while loading"):
        await zygotes.launch(
            command,
            connection_file=tmp_path / "c",
            env={"PATH": "/bin"},
            cwd=tmp_path,
            log_fd=2,
            deadline_s=1.0,
        )
    assert zygotes.interpreters() == {}
    (loading,) = zygotes.pids
    pid, status = reap(loading)
    assert zygotes.on_reaped(pid, status)
    assert not zygotes.on_reaped(pid, status)
    await zygotes.close()


STAND_IN = """\
import json, socket, sys
agent = socket.socket(fileno=int(sys.argv[-2]))
_, (fd,), _, _ = socket.recv_fds(agent, 1 << 20, 1)
print("it was here", flush=True)
names = [f"module_{n:0100}" for n in range(5000)]
answer = {"op": "ready", "notes": [], "problems": [], "environment": {}}
answer |= {"files": [], "folders": [], "names": names, "late_names": [], "absent": []}
with open(fd, "w") as file:
    json.dump(answer, file)
agent.send(b"prepared")
agent.recv(1 << 20)
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """Return the script of a stand-in for a zygote, which is ready at once and forks nothing."""
    script = tmp_path / "zygote.py"
    script.write_text(STAND_IN)
    return script


async def test_the_least_recently_used_zygote_ends_if_there_are_too_many(
    stand_in: Path, tmp_path: Path
) -> None:
    zygotes = ZygotePool(max_zygotes=2, output=tmp_path / "output", script=stand_in)
    pids = []
    for n in range(3):
        await zygotes.warm(KernelCommand(python=sys.executable), {"OMP_NUM_THREADS": str(n)})
        pids.append(next(iter(zygotes.interpreters())))
    assert list(zygotes.interpreters()) == [pids[2], pids[1]]
    assert (tmp_path / "output").read_text() == "it was here\n", "the output of the latest zygote alone"
    await zygotes.close()
    assert zygotes.interpreters() == {}
    for pid in pids:
        assert zygotes.on_reaped(*reap(pid))


async def test_a_fingerprint_larger_than_a_packet_arrives(stand_in: Path) -> None:
    zygotes = ZygotePool(script=stand_in)
    await zygotes.warm(KernelCommand(python=sys.executable), {})
    (zygote,) = zygotes._zygotes
    assert len(zygote.fingerprint.imported_names) == 5000
    await zygotes.close()
    assert zygotes.on_reaped(*reap(zygote.pid))


async def test_a_start_is_execed_if_the_zygote_dies_with_its_request(stand_in: Path, tmp_path: Path) -> None:
    zygotes = ZygotePool(warm_delay_s=60.0, script=stand_in)
    command = KernelCommand(python=sys.executable)
    await zygotes.warm(command, {})
    (pid,) = zygotes.interpreters()
    with pytest.raises(
        NotForked, match=r"forked no process|took no request"
    ):  # it ends after its next packet
        await zygotes.launch(
            command, connection_file=tmp_path / "c", env={}, cwd=tmp_path, log_fd=2, deadline_s=20.0
        )
    assert zygotes.on_reaped(*reap(pid))
    assert zygotes.interpreters() == {}
    await zygotes.close()


async def test_a_start_is_execed_if_its_request_is_too_large_for_a_packet(
    stand_in: Path, tmp_path: Path
) -> None:
    zygotes = ZygotePool(warm_delay_s=60.0, script=stand_in)
    command = KernelCommand(python=sys.executable)
    await zygotes.warm(command, {})
    (pid,) = zygotes.interpreters()
    large = {f"V{n}": "x" * 100_000 for n in range(100)}
    with pytest.raises(NotForked, match="took no request"):
        await zygotes.launch(
            command, connection_file=tmp_path / "c", env=large, cwd=tmp_path, log_fd=2, deadline_s=20.0
        )
    assert len(zygotes.interpreters()) == 1
    await zygotes.close()
    assert zygotes.on_reaped(*reap(pid))


async def test_a_pipe_in_the_place_of_the_log_is_named(stand_in: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "output"
    os.mkfifo(pipe)
    zygotes = ZygotePool(output=pipe, script=stand_in)
    command = KernelCommand(python=sys.executable)
    await zygotes.warm(command, {})
    with pytest.raises(NotForked, match=f"could not be made: .*{pipe}"):
        await zygotes.launch(
            command, connection_file=tmp_path / "c", env={}, cwd="/", log_fd=2, deadline_s=20.0
        )
    await zygotes.close()


async def test_launches_of_a_burst_share_a_check_that_starts_after_all_of_them() -> None:
    starts: list[int] = []
    callers = 0

    class Recorded(Fingerprint):
        def broken_by(self) -> None:
            starts.append(callers)

    fingerprint = Recorded(files={})

    async def check() -> None:
        nonlocal callers
        callers += 1
        await fingerprint.check()

    await asyncio.gather(*(check() for _ in range(5)))
    await check()
    assert starts == [5, 6]
    impatient = asyncio.create_task(check())
    patient = asyncio.create_task(check())
    await asyncio.sleep(0)
    impatient.cancel()
    await patient
    assert starts == [5, 6, 8], "a cancelled caller does not disturb the others"
