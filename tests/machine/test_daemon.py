"""One daemon per folder, private folders and files, and processes by pid and start time."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import resource
import select
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from kit.machine.killed_writer import die_while_writing
from roost.launchers.daemon import daemon, private_files, process
from roost.launchers.daemon.daemon import (
    AlreadyRunning,
    DaemonError,
    announce,
    ensure,
    hold,
    is_alive,
    read_announcement,
)
from roost.launchers.daemon.private_files import FolderError, private_folder, tail, write_private
from roost.launchers.daemon.private_files import runtime_dir as find_runtime_dir
from roost.launchers.daemon.process import Watch, is_running, signal_group, start_time
from roost.testing.deadlines import allow_s, until_blocking

SERVE = """
import sys, signal
from pathlib import Path
from roost.launchers.daemon.daemon import announce, hold
with hold(Path(sys.argv[1])):
    announce(Path(sys.argv[1]), {"hello": 1})
    signal.sigwait([signal.SIGTERM])
"""
START = """
import json, sys
from pathlib import Path
from roost.launchers.daemon.daemon import ensure
folder, program = sys.argv[1:]
command = [sys.executable, "-c", program, folder, "1", program]
print(json.dumps(ensure(Path(folder), command, deadline_s=20)))
"""


def command(folder: Path) -> list[str]:
    block = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"
    return [sys.executable, "-c", block + SERVE, str(folder)]


def end(pid: int) -> None:
    descriptor = os.pidfd_open(pid)
    os.kill(pid, signal.SIGTERM)
    assert select.select([descriptor], [], [], allow_s(10))[0], "the daemon did not end"
    os.close(descriptor)


def test_many_callers_share_one_daemon(runtime_dir: Path) -> None:
    folder = runtime_dir / "d"
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: ensure(folder, command(folder), deadline_s=allow_s(20)), range(8)))
    assert len({answer["pid"] for answer in found}) == 1
    pid = found[0]["pid"]
    assert is_alive(folder)
    assert is_running(pid, found[0]["process_started_at"])
    assert os.getsid(pid) != os.getsid(0)
    end(pid)
    assert not is_alive(folder)
    again = ensure(folder, command(folder), deadline_s=allow_s(20))
    assert again["pid"] != pid
    os.kill(again["pid"], signal.SIGKILL)  # its lock's file, its announcement and its log stay
    until_blocking(
        lambda: not is_running(again["pid"], again["process_started_at"]), "the daemon ends", 60, 0.01
    )
    third = ensure(folder, command(folder), deadline_s=allow_s(20))
    assert third["pid"] != again["pid"]
    end(third["pid"])


FAIL = "from roost.launchers.daemon.daemon import announce_failure; announce_failure('ConfigError', 'no such option')"


def test_a_daemon_that_reports_its_failure_leaves_no_folder(runtime_dir: Path) -> None:
    folder = runtime_dir / "d"
    with pytest.raises(DaemonError):
        ensure(folder, [sys.executable, "-c", "raise SystemExit('boom')"], deadline_s=allow_s(20))
    assert (folder / "log").exists(), "the error named this file"

    def fail(_: int) -> str:
        with pytest.raises(DaemonError, match=r"^no such option$") as failure:
            ensure(folder, [sys.executable, "-c", FAIL], deadline_s=allow_s(20))
        return failure.value.kind

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(fail, range(4))) == {"ConfigError"}
    assert not folder.exists()


def test_a_folder_with_other_files_is_kept_after_a_failure(runtime_dir: Path) -> None:
    folder = private_folder(runtime_dir / "d")
    (folder / "drained.json").touch()
    with pytest.raises(DaemonError, match="no such option"):
        ensure(folder, [sys.executable, "-c", FAIL], deadline_s=allow_s(20))
    assert (folder / "log").exists()


def test_a_daemon_serves_though_its_starter_has_ended(
    runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    monkeypatch.setenv("ROOST_READY_FD", str(writing))
    announce(private_folder(runtime_dir / "x"), {"hello": 1})
    assert (runtime_dir / "x" / "ready.json").exists()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(writing)


def test_a_start_has_a_deadline(runtime_dir: Path) -> None:
    fifo = runtime_dir / "fifo"
    os.mkfifo(fifo)
    late = [sys.executable, "-S", "-c", "import sys; open(sys.argv[1])", str(fifo)]
    limit_s = allow_s(3)  # in it, a shell starts the process
    with pytest.raises(DaemonError, match=re.escape(f"not ready within {limit_s:g} s")):
        ensure(runtime_dir / "d", late, deadline_s=limit_s)
    fifo.open("w").close()  # it ends


def test_the_log_of_the_daemon_before_is_kept(runtime_dir: Path) -> None:
    for reason in ("first", "second"):
        with pytest.raises(DaemonError, match=reason):
            ensure(
                runtime_dir / "d",
                [sys.executable, "-c", f"raise SystemExit('{reason}')"],
                deadline_s=allow_s(20),
            )
    assert (runtime_dir / "d" / "log.old").read_text() == "first\n"
    assert (runtime_dir / "d" / "log").read_text() == "second\n"


def test_waiting_for_another_starter_has_a_deadline(runtime_dir: Path) -> None:
    folder = private_folder(runtime_dir / "d")
    with (folder / "start.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(DaemonError, match=r"held .*start.lock for 0\.1 s"):
            ensure(folder, command(folder), deadline_s=0.1)


def test_a_lock_is_released_even_if_a_fork_has_its_file_open(
    runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = []
    flock = fcntl.flock

    def copying(descriptor: int, how: int) -> None:
        copies.append(os.dup(descriptor))  # the same open file, as a forked child has it
        flock(descriptor, how)

    monkeypatch.setattr("fcntl.flock", copying)
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # this process keeps its handlers
    folder = private_folder(runtime_dir / "d")
    (folder / "lock").touch()
    assert not is_alive(folder)
    with hold(folder):
        assert is_alive(folder)
    assert not is_alive(folder)
    for copy in copies:
        os.close(copy)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows the size of the table")
def test_a_daemon_and_its_children_have_room_for_descriptors(runtime_dir: Path) -> None:
    sizes = f"""
import subprocess, sys
from pathlib import Path
from roost.launchers.daemon.daemon import hold
with hold(Path({str(runtime_dir / "d")!r})):
    print(Path("/proc/self/status").read_text())
    subprocess.run(["cat", "/proc/self/status"], stdout=sys.stdout.fileno())
"""
    done = subprocess.run([sys.executable, "-u", "-c", sizes], capture_output=True, text=True, check=True)
    assert re.findall(r"FDSize:\s*(\d+)", done.stdout) == ["256", "256"]


def test_a_daemon_may_open_as_many_files_as_possible_and_its_children_as_many_as_before(
    runtime_dir: Path,
) -> None:
    program = """
import resource, subprocess, sys
from pathlib import Path
from roost.launchers.daemon.daemon import announce, ensure, hold
from roost.launchers.daemon.open_files import restore_limit
folder, levels = Path(sys.argv[1]), int(sys.argv[2])
with hold(folder):
    own = resource.getrlimit(resource.RLIMIT_NOFILE)
    child = subprocess.Popen(["/bin/sh", "-c", "read _; ulimit -S -n"], stdin=-1, stdout=-1)
    restore_limit(child.pid)
    found = {"raised": own[0] == own[1], "child": int(child.communicate(b"\\n")[0])}
    if levels:
        command = [sys.executable, "-c", sys.argv[3], str(folder / "next"), "0", ""]
        found["next"] = ensure(folder / "next", command, deadline_s=20)
    announce(folder, found)
"""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    code = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (512, {hard}))\n{START}"
    arguments = [str(runtime_dir / "d"), program]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert (found["raised"], found["child"]) == (True, 512)
    assert (found["next"]["raised"], found["next"]["child"]) == (True, 512)


def test_a_daemon_starts_while_others_call_is_alive(
    runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    folder = private_folder(runtime_dir / "d")
    (folder / "lock").touch()
    with (folder / "lock").open() as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)
        assert not is_alive(folder), "a second caller of is_alive is no daemon"
        with pytest.raises(AlreadyRunning), hold(folder):
            pass
        monkeypatch.setattr(daemon, "_PROBE_S", allow_s(10))
        timer = threading.Timer(0.05, fcntl.flock, (asking, fcntl.LOCK_UN))
        timer.start()
        with hold(folder):
            assert is_alive(folder)
        timer.join()


def test_folders_must_be_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert private_folder(tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    (tmp_path / "open to all").mkdir(mode=0o755)
    with pytest.raises(FolderError) as refused:
        private_folder(tmp_path / "open to all")
    assert str(refused.value).endswith(f"; run `chmod 700 '{tmp_path}/open to all'`")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(FolderError, match="not a folder"):
        private_folder(tmp_path / "link")
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match="ROOST_RUNTIME_DIR"):
        private_folder(tmp_path / "file" / "x")
    monkeypatch.setenv("ROOST_RUNTIME_DIR", str(tmp_path / "own"))
    assert find_runtime_dir() == tmp_path / "own"
    monkeypatch.delenv("ROOST_RUNTIME_DIR")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert find_runtime_dir() == tmp_path / "roost"


def test_the_runtime_folder_must_not_be_in_a_folder_of_all_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user could rename the runtime folder and put a folder with other sockets in its place."""
    shared = tmp_path / "shared"
    monkeypatch.setenv("ROOST_RUNTIME_DIR", str(shared / "team" / "own"))
    (shared / "team").mkdir(parents=True)
    shared.chmod(0o777)
    with pytest.raises(FolderError, match=rf"other users can replace .*; run `chmod \+t {shared}`, or set"):
        find_runtime_dir()
    shared.chmod(0o1777)
    assert find_runtime_dir() == shared / "team" / "own"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file of another user")
def test_an_announcement_of_another_user_is_none(runtime_dir: Path) -> None:
    folder = runtime_dir / "d"
    with hold(folder):
        announce(folder, {"endpoint": "ipc:///ours"})
        assert (read_announcement(folder) or {})["endpoint"] == "ipc:///ours"
        os.chown(folder / "ready.json", 65534, 65534)
        assert read_announcement(folder) is None
        (folder / "ready.json").rename(folder / "other")
        os.chown(folder / "other", 0, 0)
        (folder / "ready.json").symlink_to("other")
        assert read_announcement(folder) is None


def test_all_callers_find_the_same_runtime_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ROOST_RUNTIME_DIR")
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "elsewhere"))
    find = partial(find_runtime_dir, run_user=tmp_path, tmp=tmp_path / "tmp")
    assert find() == tmp_path / "tmp" / f"roost-{os.getuid()}"
    own = tmp_path / str(os.getuid())
    own.mkdir()
    assert find() == own / "roost"
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(other))
    assert find() == other / "roost"
    monkeypatch.setattr(private_files, "is_own_folder", lambda folder: folder != str(other))  # as with sudo
    assert find() == own / "roost"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of another user")
@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_another_user_cannot_take_the_runtime_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.delenv("ROOST_RUNTIME_DIR")
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    taken = tmp_path / f"roost-{os.getuid()}"
    {"folder": taken.mkdir, "file": taken.touch, "link": partial(taken.symlink_to, "nowhere")}[kind]()
    (tmp_path / f"{taken.name}.1").mkdir()
    for path in tmp_path.iterdir():
        os.chown(path, 65534, 65534, follow_symlinks=False)
    found = find_runtime_dir(run_user=tmp_path / "none", tmp=tmp_path)
    assert found not in (taken, tmp_path / f"{taken.name}.1")
    assert found.stat().st_mode & 0o777 == 0o700
    assert found == find_runtime_dir(run_user=tmp_path / "none", tmp=tmp_path)
    taken.rmdir() if kind == "folder" else taken.unlink()
    assert found == find_runtime_dir(run_user=tmp_path / "none", tmp=tmp_path), "nobody can hide it"


def test_files_are_private_and_written_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_private(path, b"one\ntwo\nthree\n")
    assert path.stat().st_mode & 0o777 == 0o600
    assert tail(path, 8) == "three\n"
    assert tail(path, 100) == "one\ntwo\nthree\n"
    with pytest.raises(TypeError):
        write_private(path, "text")  # type: ignore[arg-type]
    assert path.read_bytes() == b"one\ntwo\nthree\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["f"]


def test_what_a_killed_daemon_left_of_a_file_is_removed(runtime_dir: Path) -> None:
    folder = private_folder(runtime_dir / "d")
    die_while_writing(folder / "ready.json")
    assert list(folder.glob(".ready.json.*"))
    with hold(folder):
        assert [entry.name for entry in folder.iterdir()] == ["lock"]


async def test_a_watch_reports_the_end_of_a_process() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "input()", stdin=asyncio.subprocess.PIPE
    )
    started_at = start_time(process.pid)
    assert is_running(process.pid, started_at)
    assert not is_running(process.pid, started_at + 1)
    ended, never = asyncio.Event(), asyncio.Event()
    Watch(process.pid, started_at, ended.set)
    stopped = Watch(process.pid, started_at, never.set)
    stopped.close()
    assert not ended.is_set()
    process.kill()
    await asyncio.wait_for(ended.wait(), allow_s(60))
    await process.wait()
    ended.clear()
    Watch(process.pid, started_at, ended.set)  # it has ended already
    await asyncio.wait_for(ended.wait(), allow_s(60))
    assert not never.is_set()


async def test_a_watch_never_calls_from_its_constructor(monkeypatch: pytest.MonkeyPatch) -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "")
    started_at = start_time(process.pid)
    await process.wait()
    own = start_time(os.getpid())
    for pid, then, has_pidfd in (
        (process.pid, started_at, True),
        (process.pid, started_at, False),
        (os.getpid(), own + 1, True),  # another process has the pid now
    ):
        if not has_pidfd:
            monkeypatch.delattr(os, "pidfd_open")
        ended = asyncio.Event()
        Watch(pid, then, ended.set)
        assert not ended.is_set()
        await asyncio.wait_for(ended.wait(), allow_s(60))
        monkeypatch.undo()


def test_a_process_of_another_user_counts_as_running(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, signum: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "killpg", refuse)
    monkeypatch.setattr(os, "kill", refuse)
    assert signal_group(1, signal.SIGTERM)


def test_a_record_of_an_earlier_boot_names_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a reboot, an early process can have the same pid and the same start time since boot."""
    boots = [7, 7, 8]
    monkeypatch.setattr(process, "_find_boot", lambda: boots.pop(0))
    started_at = start_time(os.getpid())
    assert is_running(os.getpid(), started_at)
    assert not is_running(os.getpid(), started_at)


def test_a_start_time_that_a_script_without_roost_has_noted_is_understood() -> None:
    since_boot = start_time(os.getpid()) % 1e9
    assert is_running(os.getpid(), since_boot)
    assert not is_running(os.getpid(), since_boot + 1)
