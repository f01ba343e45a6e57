"""The code that runs while an interpreter starts. Each case is a process of its own with such code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kit.machine.forked_kernels import Agent, command_of
from roost.launchers.agent.warm.kernel_command import NotForked
from roost.launchers.zygote import startup
from roost.testing.deadlines import allow_s

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux only")

PACKAGES = [path for path in sys.path if path.endswith("-packages")]
LOOK = """
import sys
sys.path.insert(0, sys.argv[1])
import startup
startup._MASK_LOOKS *= int(sys.argv[2])
found = startup.look(-1)
import json, os
print(json.dumps(found), flush=True)
os._exit(0)
"""


def look(
    folder: Path, code: str, meanwhile: Callable[[], object] = lambda: None, times: int = 1, **variables: str
) -> dict[str, Any]:
    """Return the fields of `Startup` for a process whose `sitecustomize` has this code.

    The process looks at its signal masks `times` as often as usual.
    """
    (folder / "sitecustomize.py").write_text(code)
    env = {**os.environ, "PYTHONPATH": str(folder), "LC_ALL": "C.UTF-8", **variables}
    argv = [sys.executable, "-c", LOOK, str(Path(startup.__file__).parent), str(times)]
    with open(folder / "output", "w+") as output:  # both streams, as the agent has them
        with subprocess.Popen(
            argv, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        ) as process:
            meanwhile()
            assert process.wait(allow_s(60)) == 0
        output.seek(0)
        return startup.Startup(*json.loads(output.read().splitlines()[-1]))._asdict()


@pytest.mark.parametrize(
    ("code", "began"),
    [
        (
            "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()",
            "a thread",
        ),
        ("import sys; sys.settrace(lambda *_: None)", "trace or measure"),
        ("import sys; sys.setprofile(lambda *_: None)", "trace or measure"),
        ("import threading; threading.settrace(lambda *_: None)", "trace or measure"),
        ("import tracemalloc; tracemalloc.start()", "trace or measure"),
        ("import signal; signal.setitimer(signal.ITIMER_PROF, 1000)", "a timer"),
        ("import os; os.fork() or os._exit(0)", "a process"),
        ("import os; f = os.open('/dev/null', 0)", "a file or a connection"),
        ("import signal; signal.signal(signal.SIGTERM, lambda *_: None)", "handles signals"),
        ("import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])", "handles signals"),
        ("import atexit; atexit.register(print)", "for the end of the process"),
        ("import logging, atexit; atexit.register(print)", "for the end of the process"),
        ("import random; random.seed(42)", "seeded random numbers"),
        ("import os; os.umask(0o70)", "the umask"),
        ("import os; f = os.open('/dev/null', 1); os.dup2(f, 2); os.close(f)", "a standard stream"),
        ("import os; f = os.open('/etc/hostname', 0); os.dup2(f, 0); os.close(f)", "a standard stream"),
        ("import os; os.nice(1)", "priorities"),
        ("import ctypes; ctypes.CDLL(None).prctl(1, 15, 0, 0, 0)", "attributes"),
        ("import ctypes; ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)", "attributes"),
        ("import resource as r; r.setrlimit(r.RLIMIT_CORE, (0, 0))", "limits"),
    ],
)
def test_what_start_up_code_has_begun_is_named(tmp_path: Path, code: str, began: str) -> None:
    found = look(tmp_path, code)
    assert found["code"] == [str(tmp_path / "sitecustomize.py")]
    assert found["why_not_fork"].startswith(f"{tmp_path}/sitecustomize.py ")
    assert began in found["why_not_fork"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root may change its groups")
def test_a_change_of_the_groups_is_named(tmp_path: Path) -> None:
    assert "the groups" in look(tmp_path, "import os; os.setegid(1)")["why_not_fork"]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="sys.monitoring is new in Python 3.12")
def test_a_tool_that_monitors_is_named(tmp_path: Path) -> None:
    assert "measure" in look(tmp_path, "import sys; sys.monitoring.use_tool_id(3, 'x')")["why_not_fork"]


@pytest.mark.parametrize(
    "code",
    [
        "import logging",
        "import random, tempfile, uuid",
        "import multiprocessing.util, logging, weakref; weakref.finalize(set(), print).detach()",
        "import sys; sys.path.append('/opt/modules'); sys.setrecursionlimit(5000)",
    ],
)
def test_other_start_up_code_may_read_any_variable(tmp_path: Path, code: str) -> None:
    found = look(tmp_path, code)
    assert found["code"] == [str(tmp_path / "sitecustomize.py")]
    assert found["why_not_fork"] == ""
    assert found["changes"] == {}


def test_what_the_parent_has_set_is_no_work_of_start_up_code(tmp_path: Path) -> None:
    """A program under nohup ignores SIGHUP, and so does its agent."""
    before = (
        signal.signal(signal.SIGHUP, signal.SIG_IGN),
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1]),
    )
    old_umask = os.umask(0o70)
    try:
        assert look(tmp_path, "")["why_not_fork"] == ""
    finally:
        os.umask(old_umask)
        signal.signal(signal.SIGHUP, before[0])
        signal.pthread_sigmask(signal.SIG_SETMASK, before[1])


def test_a_parent_that_begins_another_process_is_no_work_of_start_up_code(tmp_path: Path) -> None:
    """It blocks all signals until that process executes its program, which may take long on a busy machine."""

    def block() -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        time.sleep(0.5)  # longer than an interpreter takes to start
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    assert look(tmp_path, "", block, 60)["why_not_fork"] == ""


def test_the_changes_of_the_environment_are_found(tmp_path: Path) -> None:
    code = "import os; os.environ['ADDED'] = '1'; os.environ['CHANGED'] = '2'; del os.environ['GONE']"
    found = look(tmp_path, code, CHANGED="1", GONE="1")
    assert found["changes"] == {"ADDED": "1", "CHANGED": "2", "GONE": None}


def test_the_interpreter_itself_may_set_the_locale(tmp_path: Path) -> None:
    """Python sets LC_CTYPE in a process without a locale (PEP 538), so a forked kernel needs it as well."""
    env = {name: os.environ[name] for name in os.environ if not name.startswith(("LC_", "LANG"))}
    argv = [sys.executable, "-c", LOOK, str(Path(startup.__file__).parent), "1"]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=allow_s(60), check=True)
    assert set(json.loads(done.stdout)[2]) <= {"LC_CTYPE"}


SETUPTOOLS = (
    "import os; var = 'SETUPTOOLS_USE_DISTUTILS'; enabled = os.environ.get(var, 'local') == 'local'; "
    "enabled and __import__('_distutils_hack')"
)


@pytest.mark.parametrize(
    "line",
    [
        f"{SETUPTOOLS}; ",
        f"{SETUPTOOLS}.add_shim(); ",
        "import __editable___roost_0_1_0_finder; __editable___roost_0_1_0_finder.install()",
        "import _virtualenv",
        "/a/folder",
        "# import x",
    ],
)
def test_lines_of_package_installers_read_no_variable(tmp_path: Path, line: str) -> None:
    (tmp_path / "x.pth").write_text(f"{line}\n")
    code = startup._read_code(str(tmp_path / "x.pth"))
    assert all(map(startup._is_harmless, code))


@pytest.mark.parametrize(
    "line",
    [
        "import coverage; coverage.process_startup()",
        "import _virtualenv; import mine",
        "import __editable___a_finder; __editable___b_finder.install()",
    ],
)
def test_any_other_line_may_read_variables(tmp_path: Path, line: str) -> None:
    (tmp_path / "x.pth").write_text(f"{line}\n")
    assert not all(map(startup._is_harmless, startup._read_code(str(tmp_path / "x.pth"))))


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    agent = Agent(tmp_path)
    yield agent
    agent.close()
    agent.reap()


def test_start_up_code_sees_all_variables_of_a_forked_kernel(agent: Agent, tmp_path: Path) -> None:
    (tmp_path / "usercustomize.py").touch()
    (tmp_path / "sitecustomize.py").write_text(
        "import builtins, os; builtins.seen = os.environ.get('MODULES'); os.environ['FROM_SITE'] = '1';"
        "builtins.seen_pid = os.getpid(); builtins.seen_folder = os.getcwd()"
    )
    agent.env |= {"PYTHONPATH": str(tmp_path), "MODULES": "a:b", "KERNEL_USERNAME": "ada"}
    zygote = agent.warm(tmp_path)
    kernel = agent.start(cwd=tmp_path)
    assert kernel.value("seen_folder") == str(tmp_path)
    assert kernel.value("seen") == "a:b"
    assert kernel.value("seen_pid") == zygote, "a documented difference"
    assert kernel.value("__import__('os').environ['FROM_SITE']") == "1"
    agent.env |= {"KERNEL_USERNAME": "bob", "ROOST_PLACEMENT_GROUP": "of this lease"}
    assert agent.start(cwd=tmp_path).value("__import__('os').environ['KERNEL_USERNAME']") == "bob"
    (tmp_path / "other").mkdir()
    assert agent.try_start(cwd=tmp_path / "other") is None, "its start-up code might read a file there"
    agent.env |= {"MODULES": "c"}
    assert agent.try_start(cwd=tmp_path) is None, "its start-up code has read the other value"
    agent.warm(tmp_path)
    assert agent.start(cwd=tmp_path).value("seen") == "c"


def test_a_new_folder_of_the_users_packages_is_searched(agent: Agent, tmp_path: Path) -> None:
    """`pip install --user` may make it. An interpreter that started before does not search it."""
    agent.command = command_of(str(Path(sys.executable).resolve()))  # venvs have no such folder
    agent.env |= {"PYTHONUSERBASE": str(tmp_path / "base"), "PYTHONPATH": os.pathsep.join(PACKAGES)}
    agent.warm(tmp_path)
    script = "import site; print(site.getusersitepackages())"
    argv = [agent.command.python, "-c", script]
    done = subprocess.run(
        argv, env=agent.env, capture_output=True, text=True, timeout=allow_s(60), check=True
    )
    folder = Path(done.stdout.strip())
    assert agent.start(cwd=tmp_path).value(f"{str(folder)!r} in __import__('sys').path") is False
    folder.mkdir(parents=True)
    (folder / "installed_later.py").write_text("x = 42")
    with pytest.raises(NotForked, match=f"{folder} has changed"):
        agent.fork(cwd=tmp_path)
    agent.warm(tmp_path)
    assert agent.start(cwd=tmp_path).value("__import__('installed_later').x") == 42


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os; os.chdir('/usr')", "the working folder"),
        ("import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})", "the CPUs"),
    ],
)
def test_a_kernel_is_executed_if_start_up_code_changes_folder_or_cpus(
    agent: Agent, tmp_path: Path, code: str, reason: str
) -> None:
    if len(os.sched_getaffinity(0)) == 1 and "CPUs" in reason:
        pytest.skip("this machine has one CPU")
    (tmp_path / "sitecustomize.py").write_text(code)
    agent.env |= {"PYTHONPATH": str(tmp_path)}
    agent.loop.run_until_complete(agent.zygotes.warm(agent.command, agent.env, tmp_path))
    with pytest.raises(NotForked, match=f"sitecustomize.py has changed {reason}"):
        agent.fork(cwd=tmp_path)


def test_start_up_code_may_choose_the_folder_for_temporary_files(agent: Agent, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(f"import tempfile; tempfile.tempdir = {str(tmp_path)!r}")
    agent.env |= {"PYTHONPATH": str(tmp_path)}
    agent.warm(tmp_path)
    assert agent.start(cwd=tmp_path).value("__import__('tempfile').gettempdir()") == str(tmp_path)


def test_a_kernel_is_executed_if_start_up_code_measures_it(agent: Agent, tmp_path: Path) -> None:
    code = "import os, sys; os.environ.get('MEASURE') and sys.setprofile(lambda *_: None)"
    (tmp_path / "sitecustomize.py").write_text(code)
    agent.env |= {"PYTHONPATH": str(tmp_path)}
    agent.warm(tmp_path)
    assert agent.start(cwd=tmp_path).value("__import__('sys').getprofile() is None")
    agent.env |= {"MEASURE": "1"}
    agent.loop.run_until_complete(agent.zygotes.warm(agent.command, agent.env, tmp_path))
    with pytest.raises(NotForked, match=r"sitecustomize.py has begun to trace or measure"):
        agent.fork(cwd=tmp_path)
