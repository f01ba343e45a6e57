"""Each part of a kernel's world has a test: fresh, forked and standby kernels are compared, or a test is named."""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.machine.forked_kernels import Agent, Kernel, command_of
from roost.launchers.agent.warm.kernel_command import NotForked
from roost.launchers.agent.warm.kernel_world import KERNEL_WORLD

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux only")

ROOT = Path(__file__).resolve().parents[2]
SETUP = """
import __main__, ctypes, gc, locale, os, re, resource, signal, stat, sys, tempfile, threading, time, warnings
getenv = ctypes.CDLL(None).getenv
getenv.restype = ctypes.c_char_p

def read(path):
    with open(path) as file:
        return file.read()

def status(*names):
    lines = dict(line.split(":", 1) for line in read("/proc/self/status").splitlines())
    return [lines[name].split() for name in names]

def namespaces():
    return [os.readlink(f"/proc/self/ns/{name}") for name in sorted(os.listdir("/proc/self/ns"))]

def inheritable():
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.get_inheritable(int(name)):
                found.append(int(name))
        except OSError:
            pass
    return sorted(found)
"""
EQUAL = {
    "interpreter flags": "[list(sys.flags), sys.warnoptions, sorted(sys._xoptions)]",
    "environment": "[dict(os.environ), getenv(b'SEEN').decode(), getenv(b'ABSENT')]",
    "notebook variable": "os.environ['JPY_PARENT_PID']",
    "working folder": "[os.getcwd(), os.readlink('/proc/self/cwd')]",
    "session": "os.getsid(0) == os.getpgid(0) == os.getpid()",
    "standard streams": "[os.read(0, 1).decode(), os.isatty(0), os.fstat(1).st_mode, os.fstat(1) == os.fstat(2)]",
    "descriptors": "inheritable()",
    "signals": "[[str(signal.getsignal(n)) for n in range(1, 65) if n not in (32, 33)],"
    " status('SigBlk', 'SigIgn', 'SigCgt')]",
    "time zone": "[time.tzname, time.localtime(0).tm_hour]",
    "folder for temporary files": "tempfile.gettempdir()",
    "command line": "[sys.argv[0], sys.argv[1], sys.argv[3:], sys.orig_argv[:-1],"
    " read('/proc/self/cmdline').split(chr(0))[:-2], read('/proc/self/cmdline')[-6:], read('/proc/self/comm')]",
    "shown variables": "sorted(read('/proc/self/environ').split(chr(0)))",
    "main module": "[__main__.__name__, str(__main__.__spec__), sorted(n for n in vars(__main__) if n[:2] == '__')]",
    "main thread": "threading.main_thread().native_id == threading.get_native_id() == os.getpid()",
    "user and rights": "status('Uid', 'Gid', 'Groups', 'CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb', 'NoNewPrivs',"
    " 'Seccomp')",
    "namespaces": "namespaces()",
    "import path": "sys.path",
    "locale": "[locale.setlocale(locale.LC_ALL), locale.getpreferredencoding(), sys.getfilesystemencoding()]",
    "settings of the interpreter": "[sys.getrecursionlimit(), sys.getswitchinterval(), gc.isenabled(),"
    " gc.get_threshold(), threading.stack_size(), sys.gettrace() is None, sys.getprofile() is None,"
    " sys.excepthook.__qualname__, [str(each[:3]) for each in warnings.filters if 'numpy' not in str(each)]]",
}
"""The parts that every kernel has alike, each with an expression that shows the part."""
TESTED = {
    "tests/machine/test_assigned_agent.py": {
        "`fork` is false": "test_the_first_process_leaves_other_kernels_to_the_agent",
    },
    "tests/unit/launchers/agent/warm/test_kernel_command.py": {
        "program": "test_a_program_that_starts_an_interpreter_is_none",
        "other commands": "test_other_commands_are_no_ipykernel",
    },
    "tests/forks/test_preloads.py": {
        "variables read at import": "test_a_zygote_serves_only_kernels_with_the_variables_that_its_preloads_have_read",
        "threads of imports": "test_a_preload_that_starts_a_thread_is_refused_with_its_reason",
    },
    "tests/forks/test_startup_code.py": {
        "start-up code": "test_start_up_code_sees_all_variables_of_a_forked_kernel",
        "process of start-up code": "test_start_up_code_sees_all_variables_of_a_forked_kernel",
        "what start-up code began": "test_what_start_up_code_has_begun_is_named",
    },
    "tests/forks/test_zygote.py": {
        "imported files": "test_the_next_kernel_imports_an_upgraded_package",
        "modules in the working folder": "test_a_users_own_module_hides_a_preloaded_one",
        "configuration of IPython": "test_each_kernel_runs_the_current_startup_files",
        "random numbers": "test_kernels_of_one_zygote_draw_different_random_numbers",
    },
    "tests/machine/test_contexts.py": {
        "counted CPUs": "test_libraries_count_the_cpus_of_the_application",
        "stack limit": "test_the_depth_of_the_stack_and_of_a_threads_stack",
        "limits": "test_the_largest_file",
        "affinity and priority": "test_affinity_and_niceness",
        "groups": "test_the_group_of_new_files",
    },
    "tests/suites/test_kernel_object.py": {
        "umask": "test_a_kernel_has_the_umask_of_its_application",
    },
    "tests/machine/test_limits.py": {
        "control group": "test_only_the_kernel_that_needs_too_much_memory_dies",
    },
    "tests/suites/test_async_manager.py": {
        "connection file": "test_the_connection_file_has_the_kernels_id",
    },
}
"""The parts that another test shows, by its file."""
DIFFERENT = {
    "start time": "int(read('/proc/self/stat').rpartition(')')[2].split()[19])",
    "garbage collector": "gc.get_freeze_count() > 10_000",
    "loaded modules": "len(sys.modules)",
}
"""The parts in which a forked kernel differs from a fresh one."""


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    agent = Agent(tmp_path_factory.mktemp("agent"))
    agent.command = command_of(sys.executable)
    agent.env |= {"SEEN": "ä", "TZ": "Asia/Tokyo", "JPY_SESSION_NAME": "/work/a.ipynb"}
    agent.env.pop("ABSENT", None)
    agent.warm()
    yield agent
    agent.close()
    agent.reap()


@pytest.fixture(scope="module")
def kernels(agent: Agent, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kernel]:
    """Return a fresh kernel, a fork and a standby, in the same folder."""
    folder = tmp_path_factory.mktemp("work")
    found = {"fresh": agent.start_plain(cwd=folder)}
    for how, spares in (("fork", 0), ("standby", 5)):
        agent.zygotes.limit_spares(spares)
        found[how] = agent.start(how=how, cwd=folder)
    for kernel in found.values():
        assert kernel.run(SETUP)["status"] == "ok"
    return found


@pytest.mark.parametrize("how", ["fork", "standby"])
@pytest.mark.parametrize("part", EQUAL)
def test_a_fork_has_the_part_of_a_fresh_kernel(kernels: dict[str, Kernel], part: str, how: str) -> None:
    assert kernels[how].value(EQUAL[part]) == kernels["fresh"].value(EQUAL[part])


@pytest.mark.parametrize("how", ["fork", "standby"])
@pytest.mark.parametrize("part", DIFFERENT)
def test_a_documented_difference_exists(kernels: dict[str, Kernel], part: str, how: str) -> None:
    """Otherwise the difference has gone, and its row belongs to another group."""
    assert kernels[how].value(DIFFERENT[part]) != kernels["fresh"].value(DIFFERENT[part])


def test_kernels_of_one_zygote_share_the_seed_of_hashes(agent: Agent, kernels: dict[str, Kernel]) -> None:
    seen = {how: kernel.value("hash('a word')") for how, kernel in kernels.items()}
    assert seen["fork"] == seen["standby"] != seen["fresh"]


def test_the_parent_of_a_kernel_is_the_agent(kernels: dict[str, Kernel]) -> None:
    assert {kernel.value("os.getppid()") for kernel in kernels.values()} == {os.getpid()}


def test_if_memory_runs_out_kernels_end_first(kernels: dict[str, Kernel]) -> None:
    seen = {how: int(kernel.value("read('/proc/self/oom_score_adj')")) for how, kernel in kernels.items()}
    assert seen["fork"] == seen["standby"] == 500 > seen["fresh"]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="immortal objects are new in Python 3.12")
def test_objects_of_the_zygote_are_immortal(kernels: dict[str, Kernel]) -> None:
    seen = {how: kernel.value("sys.getrefcount(os.path.join)") for how, kernel in kernels.items()}
    assert seen["fork"] == seen["standby"] > 1 << 30 > seen["fresh"]


def test_a_first_kernel_is_executed(tmp_path: Path, agent: Agent) -> None:
    own = agent.env["OMP_NUM_THREADS"] = "3"  # no zygote has started with it
    with pytest.raises(NotForked, match="no warm process for its Python and environment was ready"):
        agent.fork(cwd=tmp_path)
    assert agent.env.pop("OMP_NUM_THREADS") == own


OWN = {
    "hash seed": test_kernels_of_one_zygote_share_the_seed_of_hashes,
    "parent": test_the_parent_of_a_kernel_is_the_agent,
    "out of memory score": test_if_memory_runs_out_kernels_end_first,
    "reference counts": test_objects_of_the_zygote_are_immortal,
    "no warm process": test_a_first_kernel_is_executed,
}


def test_each_part_has_a_test() -> None:
    elsewhere = [part for parts in TESTED.values() for part in parts]
    assert sorted([*EQUAL, *elsewhere, *DIFFERENT, *OWN]) == sorted(each.name for each in KERNEL_WORLD)
    for path, parts in TESTED.items():
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        functions = [
            each.name for each in ast.walk(tree) if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        assert not set(parts.values()) - set(functions)


def test_the_page_shows_the_list() -> None:
    page = (ROOT / "docs" / "forks.md").read_text(encoding="utf-8")
    _, _, table = page.partition("<!-- the list")
    rows = [line for line in table.splitlines() if line.startswith("|")][2:]
    assert rows == [f"| {each.name} | {each.treatment} | {each.how} |" for each in KERNEL_WORLD]
