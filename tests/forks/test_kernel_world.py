"""Each part of a kernel's world has a test: a program that all kinds of kernels run, or a test that is named."""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.machine.forked_kernels import Agent, Kernel, command_of
from kit.programs.program import load
from roost.launchers.agent.warm.kernel_command import NotForked
from roost.launchers.agent.warm.kernel_world import KERNEL_WORLD

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux only")

ROOT = Path(__file__).resolve().parents[2]
SETUP = """
import gc, os, sys

def read(path):
    with open(path) as file:
        return file.read()
"""
PROGRAMS = {
    "interpreter flags": "interpreter_flags",
    "environment": "environment_of_the_process",
    "notebook variable": "environment_names_of_jupyter",
    "working folder": "process_folder",
    "session": "process_group_and_session",
    "standard streams": "descriptors_standard_three",
    "descriptors": "descriptors_inheritable",
    "signals": "signals_handlers",
    "time zone": "zone_of_time",
    "folder for temporary files": "tempfile_folder",
    "command line": "process_command_line",
    "shown variables": "process_environ_file",
    "main module": "imports_of_main",
    "main thread": "threads_main_native_id",
    "user and rights": "process_users_and_groups",
    "namespaces": "process_namespaces",
    "import path": "interpreter_path",
    "locale": "locale_of_c_library",
    "settings of the interpreter": "recursion_limit",
}
"""The parts that every kernel has alike, each with a program that prints the part."""
TESTED = {
    "tests/machine/test_assigned_agent.py": {
        "`fork` is false": "test_a_kernel_in_a_container_is_executed_without_files_of_its_agent_or_of_the_container",
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
    assert sorted([*PROGRAMS, *elsewhere, *DIFFERENT, *OWN]) == sorted(each.name for each in KERNEL_WORLD)
    assert all(load(name).is_in_ci for name in PROGRAMS.values())
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
