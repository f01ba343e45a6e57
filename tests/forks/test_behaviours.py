"""A forked kernel, and a kernel from a standby, behave like a kernel that a new Python process runs.

`ROOST_TEST_PYTHON` names another Python with ipykernel. The tests then compare kernels of that Python.
"""

from __future__ import annotations

import os
import queue
import signal
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from kit.machine.forked_kernels import REPLY_S, Agent, Kernel, command_of
from kit.programs.program import explain_old_ipykernel
from roost.testing.deadlines import allow_s, until_blocking

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux only")

PYTHON = os.environ.get("ROOST_TEST_PYTHON", sys.executable)
NO_STANDBY = explain_old_ipykernel(PYTHON)
SETUP = """
import asyncio, atexit, faulthandler, gc, json, locale, logging, os, re, resource, signal, sqlite3, sys, tempfile
import threading, time, warnings, __main__
ip = get_ipython()
kernel, app, history = ip.kernel, ip.parent.parent, ip.history_manager

def plainly(value):
    text = re.sub(r" at 0x[0-9a-f]+|(?<=daemon )[0-9]+|(?<=port': )[0-9]+", "", repr(value))
    return re.sub(r"[0-9a-f]{8}-?[0-9a-f-]{20,}|[0-9a-f]{32}_?[0-9]*", "ID", text)

def traits(owner, leave_out=()):
    names = [name for name in owner.trait_names() if name not in leave_out]
    return {name: plainly(getattr(owner, name, None)) for name in sorted(names)}

def descriptors():
    kinds = []
    for name in os.listdir("/proc/self/fd"):
        try:
            kinds.append(re.sub(r"[0-9]+", "N", os.readlink("/proc/self/fd/" + name)))
        except OSError:
            pass
    return {kind: kinds.count(kind) for kind in sorted(kinds) if kind.startswith(("pipe", "anon_inode:[eventpoll"))}
"""
EXPRESSIONS = {
    "argv": "[sys.argv[0], sys.argv[1], sys.argv[3:], sys.orig_argv[:-1]]",
    "sys.path": "sys.path",
    "flags": "list(sys.flags)",
    "executable": "[sys.executable, sys.prefix, sys.base_prefix]",
    "cwd": "[os.getcwd(), ip.run_line_magic('pwd', '')]",
    "directory history": "[str(folder) for folder in ip.user_ns['_dh']]",
    "starting folder": "ip.starting_dir",
    "environment": "dict(os.environ)",
    "%env": "sorted(ip.run_line_magic('env', ''))",
    "__main__": "[__name__, str(__main__.__spec__), sorted(name for name in vars(__main__) if name[0] == '_')]",
    "user namespace": "sorted(name for name in ip.user_ns if not name.startswith(('_i', '__s')))",
    "hidden names": "sorted(ip.user_ns_hidden)",
    "session name": "ip.user_ns.get('__session__')",
    "session and group": "[os.getsid(0) == os.getpgid(0) == os.getpid(), os.getppid()]",
    "threads": "sorted(thread.name for thread in threading.enumerate())",
    "daemon threads": "sorted(thread.name for thread in threading.enumerate() if thread.daemon)",
    "signal handlers": "[str(signal.getsignal(number)) for number in range(1, 32)]",
    "signal mask": "len(signal.pthread_sigmask(0, []))",
    "standard streams": "[s.encoding + s.errors for s in (sys.__stdin__, sys.__stdout__, sys.__stderr__)]",
    "captured streams": "[[type(s).__name__, s.isatty(), s.encoding] for s in (sys.stdout, sys.stderr)]",
    "pipes and polls": "descriptors()",
    "exception hook": "sys.excepthook.__qualname__",
    "display hook": "type(sys.displayhook).__name__",
    "locale and zone": "[locale.setlocale(locale.LC_ALL), time.tzname, tempfile.gettempdir()]",
    "umask and nice": "[os.umask(0o22), os.nice(0)]",
    "limits": "[resource.getrlimit(number) for number in range(10)]",
    "recursion limit": "sys.getrecursionlimit()",
    "switch interval": "sys.getswitchinterval()",
    "collector": "[gc.isenabled(), gc.get_threshold(), gc.get_debug(), len(gc.callbacks)]",
    "faulthandler": "faulthandler.is_enabled()",
    "warnings": "[str(each[:3]) for each in warnings.filters if 'numpy' not in str(each)]",
    "logging": "[logging.root.level, len(logging.root.handlers), len(app.log.handlers), app.log.level]",
    "loop": "[type(asyncio.get_event_loop()).__name__, asyncio.get_event_loop().is_running()]",
    "execution count": "[ip.execution_count, kernel.execution_count]",
    "history is saved": "[history.enabled, history.save_thread is not None and history.save_thread.is_alive()]",
    "history file": "[str(history.hist_file), len(history.input_hist_raw), history.session_number > 0]",
    "history sessions": "history.db.execute('select count(*) from sessions where session >= ?',"
    " (history.session_number,)).fetchone()[0]",
    "magics": "sorted(ip.magics_manager.magics['line']) + sorted(ip.magics_manager.magics['cell'])",
    "aliases": "sorted(ip.alias_manager.aliases)",
    "callbacks": "{name: len(found) for name, found in ip.events.callbacks.items()}",
    "input transformers": "[len(ip.input_transformers_cleanup), len(ip.input_transformers_post)]",
    "configuration": "plainly({name: dict(ip.config[name]) for name in ip.config if name != 'IPKernelApp'})",
    "traits of the shell": "traits(ip, ('db', 'starting_dir', 'last_execution_result', 'parent_header'))",
    "traits of the kernel": "traits(kernel, ('session', 'last_activity', 'profile_dir', '_parents'))",
    "traits of the app": "traits(app, ('connection_file', 'argv', 'hb_port', 'shell_port', 'iopub_port', 'stdin_port',"
    " 'control_port', 'curve_publickey', 'curve_secretkey', 'session', 'heartbeat', 'config', 'kernel', 'cli_config',"
    " 'displayhook', 'io_loop', '_ports', 'parent_handle'))",
    "traits of the session": "traits(kernel.session, ('session', 'key', 'auth', 'digest_history', 'bsession', 'pid'))",
    "recorded ports": "kernel._recorded_ports == {n: json.load(open(app.abs_connection_file))[n] for n in"
    " ('shell_port', 'iopub_port', 'stdin_port', 'control_port', 'hb_port')}",
    "connection file": "[app.abs_connection_file == os.path.abspath(sys.argv[2]), app.connection_file == sys.argv[2]]",
    "signing key": "kernel.session.key.decode() == json.load(open(sys.argv[2]))['key']",
    "exit handlers": "atexit._ncallbacks()",
    "descriptor table": "int(open('/proc/self/status').read().partition('FDSize:')[2].split()[0]) <= 256",
    "standard modules": "[name in sys.modules for name in ('roost', '_roost_zygote', 'matplotlib', 'IPython')]",
}


@pytest.fixture(scope="module")
def kernels_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory, kernels_folder: Path) -> Iterator[dict[str, Agent]]:
    """Return two agents by name: `agent`, and `preload`, whose zygotes have imported numpy."""
    folder = tmp_path_factory.mktemp("agent")
    agents = {"agent": Agent(folder), "preload": Agent(folder, preload=("numpy",))}
    for agent in agents.values():
        agent.command = command_of(PYTHON)
        agent.env |= {"JPY_SESSION_NAME": "/work/a.ipynb", "TZ": "Asia/Tokyo"}
        agent.warm(kernels_folder)
    yield agents
    for agent in agents.values():
        agent.close()
    agents["agent"].reap()


def start(agents: dict[str, Agent], how: str, folder: Path) -> Kernel:
    """Start a kernel: `fresh` (executed), `fork`, `standby`, or `preload` (a standby that has imported numpy)."""
    if how == "fresh":
        return agents["agent"].start_plain(cwd=folder)
    if how != "fork" and NO_STANDBY:
        pytest.skip(NO_STANDBY)
    agent = agents["preload" if how == "preload" else "agent"]
    agent.zygotes.limit_spares(0 if how == "fork" else 5)
    return agent.start(how="fork" if how == "fork" else "standby", cwd=folder)


def end_kernels(agents: dict[str, Agent]) -> None:
    for agent in agents.values():
        agent.end_kernels()


@pytest.fixture(scope="module")
def values_seen(agents: dict[str, Agent], kernels_folder: Path) -> dict[str, dict[str, Any]]:
    """Return the values of `EXPRESSIONS` by their names, for each kind of kernel that `start` knows."""
    found: dict[str, dict[str, Any]] = {}
    for how in ("fresh", "fork", *(() if NO_STANDBY else ("standby", "preload"))):
        kernel = start(agents, how, kernels_folder)
        assert kernel.run(SETUP)["status"] == "ok"
        found[how] = {name: kernel.value(expression) for name, expression in EXPRESSIONS.items()}
        end_kernels(agents)
    return found


@pytest.mark.parametrize("how", ["fork", "standby", "preload"])
@pytest.mark.parametrize("name", EXPRESSIONS)
def test_a_kernel_looks_like_a_fresh_one(values_seen: dict[str, dict[str, Any]], name: str, how: str) -> None:
    if how not in values_seen:
        pytest.skip(NO_STANDBY)
    assert values_seen[how][name] == values_seen["fresh"][name]


def streams(kernel: Kernel, code: str) -> dict[str, str]:
    """Execute code and return the text of its streams."""
    request = kernel.client.execute(code)
    texts = {"stdout": "", "stderr": ""}
    while True:
        message = kernel.client.get_iopub_msg(timeout=allow_s(REPLY_S))
        if message["parent_header"].get("msg_id") != request:
            continue
        if message["msg_type"] == "stream":
            texts[message["content"]["name"]] += message["content"]["text"]
        elif message["content"].get("execution_state") == "idle":
            kernel.client.get_shell_msg(timeout=allow_s(REPLY_S))
            return texts


def wait_until_subscribed(kernel: Kernel) -> None:
    """Wait until the client receives messages on IOPub. Messages that a kernel sends before do not reach the client."""
    for _ in range(100):
        kernel.client.kernel_info(reply=True, timeout=allow_s(REPLY_S))
        with suppress(queue.Empty):
            kernel.client.get_iopub_msg(timeout=0.1)
            return
    raise AssertionError("no message on IOPub")


@pytest.fixture(params=["fresh", "fork", "standby"])
def kernel(
    agents: dict[str, Agent], kernels_folder: Path, request: pytest.FixtureRequest
) -> Iterator[Kernel]:
    started = start(agents, request.param, kernels_folder)
    wait_until_subscribed(started)
    yield started
    end_kernels(agents)


def test_output_of_every_kind_arrives(kernel: Kernel) -> None:
    """Python's output arrives as messages. Output of a child process or to a file descriptor is in the kernel's log."""
    texts = streams(kernel, "import os, sys; print('one'); print('two', file=sys.stderr)")
    assert texts == {"stdout": "one\n", "stderr": "two\n"}
    streams(
        kernel,
        "import subprocess, time; subprocess.run(['echo', 'three']); os.write(2, b'four\\n'); time.sleep(0.5)",
    )
    until_blocking(
        lambda: {"three", "four"} <= set(kernel.log.read_text().split()),
        "the log has what children write",
        REPLY_S,
    )


def test_a_cell_may_await_and_a_cell_may_ask(kernel: Kernel) -> None:
    assert (
        streams(kernel, "import asyncio; await asyncio.sleep(0); print('awaited')")["stdout"] == "awaited\n"
    )
    request = kernel.client.execute("name = input('who? ')", allow_stdin=True)
    question = kernel.client.get_stdin_msg(timeout=allow_s(REPLY_S))
    assert question["content"]["prompt"] == "who? "
    kernel.client.input("ada")
    reply = kernel.client.get_shell_msg(timeout=allow_s(REPLY_S))
    assert (reply["parent_header"]["msg_id"], reply["content"]["status"]) == (request, "ok")
    assert kernel.value("name") == "ada"


def test_requests_of_a_notebook_are_answered(kernel: Kernel) -> None:
    client = kernel.client
    kernel.run("import os; answer = 6 * 7")
    completed = client.complete("answ", reply=True, timeout=allow_s(REPLY_S))["content"]["matches"]
    assert "answer" in completed
    assert client.inspect("os.path.join", reply=True, timeout=allow_s(REPLY_S))["content"]["found"]
    client.is_complete("for x in y:")
    assert client.get_shell_msg(timeout=allow_s(REPLY_S))["content"]["status"] == "incomplete"
    history = client.history(hist_access_type="tail", n=1, reply=True, timeout=allow_s(REPLY_S))["content"][
        "history"
    ]
    assert history[-1][2] == "import os; answer = 6 * 7"
    info = client.kernel_info(reply=True, timeout=allow_s(REPLY_S))["content"]
    assert info["implementation"] == "ipython"
    assert client.comm_info(reply=True, timeout=allow_s(REPLY_S))["content"]["comms"] == {}


def test_comms_work_in_both_directions(kernel: Kernel) -> None:
    kernel.run(
        "from comm import create_comm; got = []; comm = create_comm('target'); comm.on_msg(got.append)"
    )
    comm = kernel.value("comm.comm_id")
    client = kernel.client
    message = client.session.msg("comm_msg", {"comm_id": comm, "data": {"value": 3}})
    client.shell_channel.send(message)
    assert kernel.value("got[0]['content']['data']") == {"value": 3}


def ask(kernel: Kernel, kind: str, content: dict[str, Any]) -> dict[str, Any]:
    """Send a request on the control channel and return the content of the reply."""
    request = kernel.client.session.msg(kind, content)
    kernel.client.control_channel.send(request)
    while True:
        reply = kernel.client.get_control_msg(timeout=allow_s(REPLY_S))
        if reply["parent_header"]["msg_id"] == request["header"]["msg_id"]:
            return dict(reply["content"])


def test_the_debugger_starts(kernel: Kernel) -> None:
    call = {
        "type": "request",
        "seq": 1,
        "command": "initialize",
        "arguments": {"clientID": "t", "adapterID": ""},
    }
    assert ask(kernel, "debug_request", call)["success"]
    call = {"type": "request", "seq": 2, "command": "debugInfo"}
    assert ask(kernel, "debug_request", call)["body"]["isStarted"] in (True, False)


def test_a_subshell_runs_beside_a_busy_cell(kernel: Kernel) -> None:
    info = kernel.client.kernel_info(reply=True, timeout=allow_s(REPLY_S))["content"]
    if "kernel subshells" not in info.get("supported_features", []):
        pytest.skip("this ipykernel has no subshells")
    subshell = ask(kernel, "create_subshell_request", {})["subshell_id"]
    kernel.client.execute("import time; time.sleep(600)")
    beside = kernel.client.session.msg(
        "execute_request",
        {"code": "beside = 1", "silent": False, "user_expressions": {}, "allow_stdin": False},
    )
    beside["header"]["subshell_id"] = subshell
    kernel.client.shell_channel.send(beside)
    reply = kernel.client.get_shell_msg(timeout=allow_s(30))
    assert reply["parent_header"]["msg_id"] == beside["header"]["msg_id"]


def test_an_interrupt_ends_a_cell_with_its_children(kernel: Kernel) -> None:
    kernel.client.execute("import subprocess; subprocess.run(['sleep', '60'])")
    children = psutil.Process(kernel.pid).children
    until_blocking(
        lambda: any(child.name() == "sleep" for child in children()), "the child runs", REPLY_S, 0.02
    )
    os.killpg(kernel.pid, signal.SIGINT)
    assert kernel.client.get_shell_msg(timeout=allow_s(REPLY_S))["content"]["ename"] == "KeyboardInterrupt"


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_and_threads_work(kernel: Kernel, method: str) -> None:
    pool = f"__import__('multiprocessing').get_context({method!r}).Pool(2).map(abs, [-1, -2])"
    assert kernel.value(pool) == [1, 2]
    threads = "__import__('concurrent.futures').futures.ThreadPoolExecutor(4).map(abs, [-1, -2])"
    assert kernel.value(f"list({threads})") == [1, 2]


def test_linear_algebra_runs_in_threads(kernel: Kernel) -> None:
    assert kernel.run("import numpy as np; a = np.ones((400, 400)); b = a @ a")["status"] == "ok"
    assert kernel.value("float(b[0, 0])") == 400.0


@pytest.mark.parametrize("is_asked", [False, True])
def test_the_end_of_a_kernel_is_the_users(kernel: Kernel, tmp_path: Path, is_asked: bool) -> None:
    mark = tmp_path / "end"
    kernel.run(f"import atexit, pathlib; atexit.register(pathlib.Path({str(mark)!r}).touch)")
    file = kernel.value("str(get_ipython().history_manager.hist_file)")
    if is_asked:
        kernel.client.shutdown()
    else:
        kernel.client.execute("exit")
    assert kernel.wait() == 0
    assert mark.exists()
    with closing(sqlite3.connect(file)) as history:
        end, cells = history.execute("select end, num_cmds from sessions order by session desc").fetchone()
    assert end, "IPython closes the session in an exit handler, before another one closes the file"
    assert cells >= 2


def test_no_two_kernels_draw_the_same_random_numbers(agents: dict[str, Agent], kernels_folder: Path) -> None:
    draw = (
        "[__import__('random').random(), __import__('numpy').random.random(), __import__('uuid').uuid4().hex]"
    )
    drawn = [start(agents, how, kernels_folder).value(draw) for how in ("fork", "standby", "standby")]
    end_kernels(agents)
    assert all(len(set(column)) == 3 for column in zip(*drawn, strict=True))


@pytest.mark.skipif(bool(NO_STANDBY), reason=NO_STANDBY or "there are standbys")
def test_a_standby_that_nobody_needs_leaves_nothing(tmp_path: Path) -> None:
    """An unused standby adds no session to IPython's history, and ends with its zygote."""
    agent = Agent(tmp_path, how="standby")
    agent.command = command_of(PYTHON)
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
    agent.command = command_of(PYTHON)
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
