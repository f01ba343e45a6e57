"""Forked kernels are like plain ones: a real zygote, real kernels, and this process in the agent's place."""

from __future__ import annotations

import os
import signal
import site
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.jupyter.notebook import SLEEP
from kit.machine.forked_kernels import REPLY_S, Agent, children, command_of, wait_for
from kit.programs.program import explain_old_ipykernel
from roost.launchers.agent.machine.ports import claim
from roost.launchers.agent.warm import fork_report
from roost.launchers.agent.warm.fork_report import KernelDiedEarly
from roost.launchers.agent.warm.kernel_command import NotForked
from roost.launchers.protocol.messages import PORT_NAMES, Connection
from roost.testing.clusters.cluster_folder import END_TIMEOUT_S
from roost.testing.deadlines import allow_s, until_blocking

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux only")
NO_STANDBY = explain_old_ipykernel(sys.executable)


@pytest.fixture(scope="module", params=["fork", "standby"])
def shared_agent(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Agent]:
    agent = Agent(tmp_path_factory.mktemp("agent"), how=request.param)
    agent.warm()
    yield agent
    agent.close()
    agent.reap()


@pytest.fixture
def agent(shared_agent: Agent) -> Iterator[Agent]:
    yield shared_agent
    shared_agent.end_kernels()


def test_a_users_own_module_hides_a_preloaded_one(tmp_path: Path) -> None:
    """IPython puts the working folder behind the standard library, and before installed packages."""
    (tmp_path / "agent").mkdir()
    own = Agent(tmp_path / "agent", preload=("numpy",))
    try:
        own.warm()
        (tmp_path / "json.py").touch()
        assert own.start(cwd=tmp_path).value("__import__('numpy').__file__").endswith("numpy/__init__.py")
        (tmp_path / "numpy.py").touch()
        with pytest.raises(NotForked, match=f"its working folder has {tmp_path}/numpy.py"):
            own.fork(cwd=tmp_path)
        assert own.start(cwd="/").value("__import__('numpy').__file__").endswith("numpy/__init__.py")
    finally:
        own.close()
        own.reap()


def test_proc_shows_no_other_kernels_environment(tmp_path: Path) -> None:
    """/proc/PID/environ shows the variables with which a process has started."""
    own = Agent(tmp_path)
    try:
        own.env["FIRST_SECRET"] = "first"
        zygote = own.warm()
        first = own.start(cwd=tmp_path)
        del own.env["FIRST_SECRET"]
        own.env["SECOND_SECRET"] = "second"
        second = own.start(cwd=tmp_path)
        for kernel, name in ((first, "FIRST_SECRET"), (second, "SECOND_SECRET")):
            assert kernel.value(f"__import__('os').environ['{name}']") == name.partition("_")[0].lower()
            assert kernel.value("[n for n in __import__('os').environ if 'SECRET' in n]") == [name]
        for pid, secret in (
            (zygote, b""),
            (first.pid, b"FIRST_SECRET=first"),
            (second.pid, b"SECOND_SECRET=second"),
        ):
            shown = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            assert b"".join(each for each in shown if b"SECRET" in each) == secret
    finally:
        own.close()
        own.reap()


def test_a_forked_kernel_gets_variables_in_no_coding(agent: Agent, tmp_path: Path) -> None:
    odd = {"SEEN": "s\udcff", "JPY_PARENT_PID": str(os.getpid())}
    agent.env |= odd
    try:
        forked = agent.start(cwd=tmp_path)
    finally:
        for name in odd:
            del agent.env[name]
    variables = "[__import__('os').environ[name] for name in ('SEEN', 'JPY_PARENT_PID')]"
    assert forked.value(variables) == ["s\udcff", "1"]
    assert forked.value("int(open('/proc/self/status').read().partition('FDSize:')[2].split()[0])") == 256
    times_ms = forked.forked.timing_ms
    assert times_ms["standby" if forked.was_standby else "ready"] >= times_ms["pid"] > 0
    assert "Ctrl-C" not in forked.log.read_text()


def test_an_interrupt_stops_a_cell_and_leaves_an_idle_kernel_alone(agent: Agent, tmp_path: Path) -> None:
    kernel = agent.start()
    kernel.run("1")
    os.kill(kernel.pid, signal.SIGINT)
    assert kernel.run("1+1")["status"] == "ok"
    has_printed = tmp_path / "has printed"  # ipykernel may hang if it is interrupted while it prints
    mark = f"open({str(has_printed)!r}, 'w').close()"
    msg_id = kernel.client.execute(f"print('running', flush=True)\n{mark}\n{SLEEP}")
    while True:
        message = kernel.client.get_iopub_msg(timeout=allow_s(REPLY_S))
        if message["parent_header"].get("msg_id") == msg_id and message["msg_type"] == "stream":
            break
    until_blocking(has_printed.exists, "the cell has printed", REPLY_S, 0.01)
    os.killpg(kernel.pid, signal.SIGINT)
    reply = kernel.client.get_shell_msg(timeout=allow_s(REPLY_S))
    assert reply["content"]["ename"] == "KeyboardInterrupt"


@pytest.mark.parametrize("is_forked", [True, False])
def test_a_kernel_frees_what_its_user_made_before_it_ends(
    agent: Agent, tmp_path: Path, is_forked: bool
) -> None:
    ended = tmp_path / "ended"
    (tmp_path / "own_module.py").write_text(f"""
file = open({str(tmp_path / "unflushed")!r}, "w")
file.write("kept")
class Freed:
    def __init__(self, name): self.name = name
    def __del__(self, path={str(ended)!r}, open=open):
        with open(path, "a") as log: log.write(self.name + " ")
of_module = Freed("module")
of_module.cycle = of_module
""")
    kernel = agent.start() if is_forked else agent.start_plain(cwd=tmp_path)
    code = f"""
import sys, threading, time; sys.path.insert(0, {str(tmp_path)!r})
import own_module
variable = own_module.Freed("variable")
def work():
    time.sleep(0.3)
    own_module.Freed("thread")
threading.Thread(target=work).start()
"""
    assert kernel.run(code)["status"] == "ok"
    kernel.client.shutdown()
    assert kernel.wait() == 0
    assert ended.read_text().split() == ["thread", "variable", "module"]
    assert (tmp_path / "unflushed").read_text() == "kept"


SLOW_CONTROL = """
import collections, sys, threading, time
class SlowEvents(collections.deque):
    def append(self, event):
        if threading.current_thread().name == "Control":
            time.sleep(0.1)
        super().append(event)
sys.stdout.pub_thread._events = SlowEvents(sys.stdout.pub_thread._events)
"""


def test_a_kernel_ends_when_its_control_thread_has_ended(agent: Agent) -> None:
    """The control thread needs the output thread. A kernel that stopped the output thread first would never end."""
    kernel = agent.start()
    assert kernel.run(SLOW_CONTROL)["status"] == "ok"
    kernel.client.shutdown()
    assert kernel.wait() == 0
    assert "Error" not in kernel.log.read_text()


def test_a_failed_start_is_reported_with_its_exit_status(agent: Agent) -> None:
    with pytest.raises(KernelDiedEarly) as caught:
        agent.start("--IPKernelApp.no_such_option=1", "--IPKernelApp.kernel_class=no.such.Class")
    assert wait_for(caught.value.args[0]) == 1
    with pytest.raises(KernelDiedEarly) as caught:
        agent.start(cwd=agent.folder / "missing")
    assert wait_for(caught.value.args[0]) == 1


def test_each_kernel_has_its_own_command_line_options(agent: Agent) -> None:
    with_option, without = (
        agent.start("--IPKernelApp.exec_lines=a = 5", "--InteractiveShell.xmode=Minimal"),
        agent.start(),
    )
    assert with_option.value("[a, get_ipython().InteractiveTB.mode]") == [5, "Minimal"]
    assert without.value("['a' in dir(), get_ipython().InteractiveTB.mode]") == [False, "Context"]


def test_kernels_of_one_zygote_draw_different_random_numbers(agent: Agent) -> None:
    draw = (
        "[__import__('random').random(), __import__('numpy').random.random(), __import__('uuid').uuid4().hex]"
    )
    first, second = (agent.start().value(draw) for _ in range(2))
    assert all(a != b for a, b in zip(first, second, strict=True))


def test_each_kernel_runs_the_current_startup_files(agent: Agent, tmp_path: Path) -> None:
    startup = Path(agent.env["IPYTHONDIR"]) / "profile_default" / "startup"
    startup.mkdir(parents=True, exist_ok=True)
    file = startup / "00-test.py"
    config = startup.parent / "ipython_kernel_config.py"
    try:
        for value in (1, 2):
            file.write_text(f"import os; started = [{value}, os.getcwd()]")
            config.write_text(f"get_config().InteractiveShell.cache_size = {100 + value}")
            kernel = agent.start(cwd=tmp_path, how="any")
            assert not kernel.was_standby, "a standby has not loaded this configuration"
            assert kernel.value("[started, get_ipython().cache_size]") == [
                [value, str(tmp_path)],
                100 + value,
            ]
    finally:
        file.unlink()
        config.unlink()


def test_fixed_ports_are_used_unless_they_are_taken(agent: Agent) -> None:
    ip = f"127.99.{os.getpid() >> 8 & 0xFF}.{os.getpid() & 0xFF | 1}"  # no other process of the tests listens there
    with claim(Connection(ip=ip)) as chosen:  # outside the range from which the system chooses
        ports = {name: getattr(chosen, name) for name in PORT_NAMES}
    first = agent.start(ports=ports, ip=ip)
    assert first.ports == ports
    assert first.run("1")["status"] == "ok"  # ipykernel may hang if it is shut down while it starts
    first.client.shutdown()
    first.wait()
    again = agent.start(ports=ports, ip=ip)
    assert again.ports == ports
    assert again.run("1")["status"] == "ok"
    again.client.shutdown()
    again.wait()
    with socket.create_server((ip, ports["hb_port"])):
        moved = agent.start(ports=ports, ip=ip)
    assert not set(moved.ports.values()) & set(ports.values())
    assert moved.run("1")["status"] == "ok"


def test_a_kernel_on_ipc_is_started_once_its_sockets_are_bound(agent: Agent, tmp_path: Path) -> None:
    """A client that connects before the sockets listen loses time, because ZeroMQ retries only after a pause."""
    for _ in range(3):
        kernel = agent.try_start(transport="ipc", ip=str(tmp_path / "kernel"))
        assert kernel is not None
        assert "ready" in kernel.forked.timing_ms
        assert all((tmp_path / f"kernel-{port}").is_socket() for port in kernel.ports.values())
        assert kernel.run("1+1")["status"] == "ok"
        kernel.client.shutdown()
        assert kernel.wait() == 0


def test_a_kernel_that_is_not_confirmed_ends_and_does_nothing(
    agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The zygote's files have changed, so the fork ends. Its ports are free at once for a kernel that is executed."""
    monkeypatch.setattr(fork_report, "_ENDS_S", allow_s(60))
    (zygote,) = agent.zygotes._zygotes
    (tmp_path / "changed").write_text("by an upgrade")
    zygote.fingerprint.files[str(tmp_path / "changed")] = (0, 0, 0)
    ip = f"127.98.{os.getpid() >> 8 & 0xFF}.{os.getpid() & 0xFF | 1}"
    with claim(Connection(ip=ip)) as chosen:
        wanted = {name: getattr(chosen, name) for name in PORT_NAMES}
    before = set(agent.folder.glob("*.log"))
    assert agent.try_start(ports=wanted, ip=ip) is None
    with claim(chosen) as again:
        assert again == chosen, "nobody listens there any more"
    (log,) = set(agent.folder.glob("*.log")) - before
    assert log.read_text() == ""
    assert agent.warm() != zygote.pid
    assert agent.start().run("1+1")["status"] == "ok"


def test_a_kernel_that_cannot_be_recorded_ends_and_does_nothing(agent: Agent) -> None:
    """If the agent ended before it has recorded the kernel, nobody would know of it."""
    pids: list[int] = []

    def refuse(pid: int) -> None:
        pids.append(pid)
        raise OSError("the disk is full")

    before = set(agent.folder.glob("*.log"))
    with pytest.raises(OSError, match="the disk is full"):
        agent.start(on_pid=refuse)
    assert wait_for(pids[0]) == 0
    (log,) = set(agent.folder.glob("*.log")) - before
    assert log.read_text() == ""


def test_a_burst_may_be_larger_than_the_number_of_spares(agent: Agent) -> None:
    kernels = [agent.start() for _ in range(5)]
    assert len({kernel.pid for kernel in kernels}) == 5
    assert all(kernel.run("1+1")["status"] == "ok" for kernel in kernels)


def test_a_killed_zygote_is_replaced_and_its_kernels_live_on(agent: Agent) -> None:
    kernel = agent.start()
    pid = list(agent.zygotes.interpreters())[-1]
    os.kill(pid, signal.SIGKILL)
    assert agent.zygotes.on_reaped(*os.waitpid(pid, 0))
    assert agent.try_start() is None
    assert kernel.run("1+1")["status"] == "ok"
    kernel.client.shutdown()
    assert kernel.wait() == 0
    assert agent.warm() != pid
    assert agent.start().run("1+1")["status"] == "ok"


def test_spares_end_with_their_zygote_while_its_kernels_live(tmp_path: Path) -> None:
    def spares() -> list[int]:
        return [pid for pid in children() if pid != zygote and has_environment_of(agent, pid)]

    agent = Agent(tmp_path)
    try:
        zygote = agent.warm()
        agent.start(how="standby")  # the first one makes IPython's folder, which ends the spares of before
        until_blocking(lambda: bool(spares()), "a spare waits", END_TIMEOUT_S)
        kernel = agent.start("--InteractiveShell.xmode=Minimal")
        assert not kernel.was_standby
        os.kill(zygote, signal.SIGKILL)
        assert agent.zygotes.on_reaped(*os.waitpid(zygote, 0))
        until_blocking(lambda: not spares(), "the spares end", END_TIMEOUT_S)
        assert kernel.run("1+1")["status"] == "ok"
    finally:
        agent.close()


def has_environment_of(agent: Agent, pid: int) -> bool:
    """True if this process has the environment variables of this agent."""
    try:
        return os.fsencode(agent.env["LC_TEST"]) in Path(f"/proc/{pid}/environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_the_next_kernel_imports_an_upgraded_package(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", venv], check=True, timeout=allow_s(REPLY_S)
    )
    (packages,) = venv.glob("lib/python*/site-packages")
    source = tmp_path / "source"
    source.mkdir()
    (packages / "ours.pth").write_text("\n".join([*site.getsitepackages(), str(source)]))
    (source / "roost_tiny.py").write_text("version = 1")
    agent = Agent(tmp_path, preload=("roost_tiny",))
    agent.command = command_of(str(venv / "bin" / "python"))
    try:
        agent.warm()
        assert agent.start().value("__import__('roost_tiny').version") == 1
        (source / "unrelated.txt").write_text("people write files beside their modules")
        assert agent.start().value("'roost_tiny' in __import__('sys').modules")
        (source / "roost_tiny.py").write_text("version = 22")
        assert agent.try_start() is None
        time.sleep(0.02)  # a file that is newer than its zygote is not trusted
        agent.warm()
        assert agent.start().value("__import__('roost_tiny').version") == 22
    finally:
        agent.close()


@pytest.mark.skipif(bool(NO_STANDBY), reason=NO_STANDBY or "there are standbys")
def test_a_standby_that_nobody_needs_leaves_nothing(tmp_path: Path) -> None:
    """An unused standby adds no session to IPython's history, and ends with its zygote."""
    agent = Agent(tmp_path, how="standby")
    try:
        agent.warm(tmp_path)
        first = agent.start(cwd=tmp_path)
        sessions = "get_ipython().history_manager.session_number"
        number, second = first.value(sessions), first

        def is_ready() -> bool:
            nonlocal number, second
            second = agent.fork(cwd=tmp_path)
            if not second.was_standby:
                number = second.value(sessions)
            return second.was_standby

        until_blocking(is_ready, "a standby is ready", 60, 1)
        assert second.value(sessions) == number + 1
    finally:
        agent.close()


@pytest.mark.skipif(bool(NO_STANDBY), reason=NO_STANDBY or "there are standbys")
def test_a_smaller_pool_ends_its_spares_at_once(tmp_path: Path) -> None:
    agent = Agent(tmp_path, how="standby")
    try:
        agent.warm(tmp_path)
        agent.start(cwd=tmp_path)
        agent.end_kernels()
        agent.zygotes.limit_spares(0)
        kernel = agent.try_start(cwd=tmp_path)
        assert kernel is not None
        assert not kernel.was_standby
        agent.zygotes.limit_spares(1)
        assert agent.start(cwd=tmp_path).was_standby
    finally:
        agent.close()
