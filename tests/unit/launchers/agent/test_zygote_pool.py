"""Which starts may be forked, and for how long: argv, environment and files, without any process."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from pathlib import Path

import pytest

from roost.launchers.agent.fingerprint import (
    Fingerprint,
    choose_import_folder,
    resolve_python,
    select_import_environment,
    stamp,
)
from roost.launchers.agent.zygote_pool import KernelCommand, ZygotePool, parse_ipykernel_command

FILE = "{connection_file}"


@pytest.mark.parametrize(
    ("argv", "flags", "args"),
    [
        (["python", "-m", "ipykernel_launcher", "-f", FILE], (), ()),
        (
            ["/p/python3", "-Xfrozen_modules=off", "-m", "ipykernel", "-f", FILE],
            ("-Xfrozen_modules=off",),
            (),
        ),
        (["python", "-X", "dev", "-I", "-m", "ipykernel_launcher", "-f", FILE], ("-X", "dev", "-I"), ()),
        (["python", "/x/ipykernel_launcher.py", "-f", FILE, "--debug"], (), ("--debug",)),
        (
            ["python", "-m", "ipykernel_launcher", "--matplotlib=inline", "-f", "/a/file"],
            (),
            ("--matplotlib=inline",),
        ),
    ],
)
def test_an_ipykernel_is_recognised(argv: list[str], flags: tuple[str, ...], args: tuple[str, ...]) -> None:
    assert parse_ipykernel_command(argv) == KernelCommand(python=argv[0], flags=flags, args=args)


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["R", "--slave", "-e", "IRkernel::main()", "--args", FILE],
        ["python", "-m", "bash_kernel", "-f", FILE],
        ["python", "-c", "import ipykernel", "-f", FILE],
        ["python", "-m", "ipykernel_launcher"],
        ["python", "-m", "ipykernel_launcher", "-f"],
        ["python", "-m", "ipykernel_launcher", "-f", FILE, "-f", FILE],
        ["env", "A=1", "python", "-m", "ipykernel_launcher", "-f", FILE],
        ["conda", "run", "python", "-m", "ipykernel_launcher", "-f", FILE],
        ["python", "-i", "-m", "ipykernel_launcher", "-f", FILE],
    ],
)
def test_anything_else_is_not(argv: list[str]) -> None:
    assert parse_ipykernel_command(argv) is None


def test_python_is_looked_up_in_the_kernels_path_and_its_links_are_kept(tmp_path: Path) -> None:
    (tmp_path / "python").symlink_to(sys.executable)
    assert resolve_python("python", {"PATH": str(tmp_path)}) == str(tmp_path / "python")
    assert resolve_python("no-such-python", {"PATH": str(tmp_path)}) is None


def test_the_environment_that_c_code_reads_is_told_apart() -> None:
    env = {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": "/x",
        "LC_ALL": "C",
        "CUDA_VISIBLE_DEVICES": "0",
        "HOME": "/h",
    }
    assert select_import_environment(env) == {"LC_ALL": "C", "OMP_NUM_THREADS": "1", "PYTHONPATH": "/x"}


@pytest.mark.parametrize(
    ("path", "folder"), [("", "/"), ("/a:/b", "/"), ("/a:", "/work"), ("src:/a", "/work")]
)
def test_the_working_directory_counts_where_imports_depend_on_it(path: str, folder: str) -> None:
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


def test_a_fingerprint_holds_until_a_file_is_replaced_changed_or_gone(module: Path) -> None:
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


def test_a_folder_on_the_path_counts_when_it_offers_an_imported_name(module: Path) -> None:
    known = fingerprint(module)
    folder = module.with_name("folder")
    (folder / "notebook.ipynb").touch()
    assert known.broken_by() is None
    (folder / "module.py").touch()
    assert known.broken_by() == str(folder)


def test_a_thousand_files_are_checked_in_milliseconds(tmp_path: Path) -> None:
    paths = [tmp_path / f"{n}.py" for n in range(1000)]
    for path in paths:
        path.touch()
    known = Fingerprint(files={str(path): stamp(str(path)) for path in paths})
    took = []
    for _ in range(5):
        started = time.perf_counter()
        assert known.broken_by() is None
        took.append(time.perf_counter() - started)
    assert min(took) < 0.02


def reaped(pid: int) -> tuple[int, int]:
    """Wait for a child, in the agent's place."""
    return os.waitpid(pid, 0)


async def test_what_cannot_be_forked_is_said_once_and_execed(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """A Python that is none: the start is exec'ed, whatever comes of that."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 3\n")
    python.chmod(0o755)
    zygotes = ZygotePool(warm_delay_s=0.0)
    command = KernelCommand(python=str(python))
    with caplog.at_level(logging.WARNING):
        await zygotes.warm(command, {"PATH": "/bin"})
        await zygotes.warm(command, {"PATH": "/bin"})
    assert [record.message for record in caplog.records] == [
        f"kernels of {python} are not forked: it ended while loading; see /dev/null"
    ]
    forked = await zygotes.launch(
        command, connection_file=tmp_path / "c", env={"PATH": "/bin"}, cwd=tmp_path, log_fd=2, deadline_s=1.0
    )
    assert forked is None
    assert zygotes.describe() == ()
    (made,) = zygotes._pids  # not just any child: this process is a subreaper, and others' orphans fall to it
    pid, status = reaped(made)
    assert zygotes.on_reaped(pid, status)
    assert not zygotes.on_reaped(pid, status)
    await zygotes.close()


STAND_IN = """\
import json, socket, sys
agent = socket.socket(fileno=int(sys.argv[-2]))
_, (fd,), _, _ = socket.recv_fds(agent, 1 << 20, 1)
print("it was here", flush=True)
names = [f"module_{n:0100}" for n in range(5000)]
answer = {"op": "ready", "environment": {}, "files": [], "folders": [], "names": names}
with open(fd, "w") as file:
    json.dump(answer, file)
agent.send(b"prepared")
agent.recv(1 << 20)
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A zygote that is ready at once and forks nothing."""
    script = tmp_path / "zygote.py"
    script.write_text(STAND_IN)
    monkeypatch.setattr("roost.launchers.agent.zygote_pool._SCRIPT", script)


@pytest.mark.usefixtures("stand_in")
async def test_the_least_recently_used_goes_when_there_are_too_many(tmp_path: Path) -> None:
    zygotes = ZygotePool(max_zygotes=2, output=tmp_path / "output")
    pids = []
    for n in range(3):
        await zygotes.warm(KernelCommand(python=sys.executable), {"OMP_NUM_THREADS": str(n)})
        pids.append(zygotes.describe()[0].pid)
    assert [zygote.pid for zygote in zygotes.describe()] == [pids[2], pids[1]]
    assert (tmp_path / "output").read_text() == "it was here\n", "of the latest alone"
    await zygotes.close()
    assert zygotes.describe() == ()
    for pid in pids:
        assert zygotes.on_reaped(*reaped(pid))


@pytest.mark.usefixtures("stand_in")
async def test_a_fingerprint_larger_than_a_packet_comes_through() -> None:
    zygotes = ZygotePool()
    await zygotes.warm(KernelCommand(python=sys.executable), {})
    (zygote,) = zygotes._zygotes
    assert len(zygote.fingerprint.imported_names) == 5000
    await zygotes.close()
    assert zygotes.on_reaped(*reaped(zygote.pid))


@pytest.mark.usefixtures("stand_in")
async def test_a_zygote_that_dies_with_a_request_makes_it_an_execed_start(tmp_path: Path) -> None:
    zygotes = ZygotePool(warm_delay_s=60.0)
    command = KernelCommand(python=sys.executable)
    await zygotes.warm(command, {})
    (pid,) = (zygote.pid for zygote in zygotes.describe())
    forked = await zygotes.launch(
        command, connection_file=tmp_path / "c", env={}, cwd=tmp_path, log_fd=2, deadline_s=20.0
    )
    assert forked is None
    assert zygotes.on_reaped(*reaped(pid))
    assert zygotes.describe() == ()
    await zygotes.close()


@pytest.mark.usefixtures("stand_in")
async def test_a_request_too_large_for_a_packet_is_execed(tmp_path: Path) -> None:
    zygotes = ZygotePool(warm_delay_s=60.0)
    command = KernelCommand(python=sys.executable)
    await zygotes.warm(command, {})
    (pid,) = (zygote.pid for zygote in zygotes.describe())
    large = {f"V{n}": "x" * 100_000 for n in range(100)}
    forked = await zygotes.launch(
        command, connection_file=tmp_path / "c", env=large, cwd=tmp_path, log_fd=2, deadline_s=20.0
    )
    assert forked is None
    assert len(zygotes.describe()) == 1
    await zygotes.close()
    assert zygotes.on_reaped(*reaped(pid))


@pytest.mark.usefixtures("stand_in")
async def test_launches_of_a_burst_share_a_check_that_begins_after_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zygotes = ZygotePool(warm_delay_s=60.0)
    await zygotes.warm(KernelCommand(python=sys.executable), {})
    (zygote,) = zygotes._zygotes
    begun: list[int] = []
    askers = 0

    def broken_by(_: Fingerprint) -> None:
        begun.append(askers)

    monkeypatch.setattr(Fingerprint, "broken_by", broken_by)

    async def ask() -> None:
        nonlocal askers
        askers += 1
        await zygote.checked()

    await asyncio.gather(*(ask() for _ in range(5)))
    await ask()
    assert begun == [5, 6]
    impatient = asyncio.create_task(ask())
    patient = asyncio.create_task(ask())
    await asyncio.sleep(0)
    impatient.cancel()
    await patient
    assert begun == [5, 6, 8], "who gives up takes nothing from the others"
    await zygotes.close()
    assert zygotes.on_reaped(*reaped(zygote.pid))
