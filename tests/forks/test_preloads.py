"""The modules that a zygote imports for its kernels."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kit.machine.forked_kernels import Agent

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux only")


def test_a_zygote_serves_only_kernels_with_the_variables_that_its_preloads_have_read(tmp_path: Path) -> None:
    modules = tmp_path / "modules"  # not the working folder of the kernels
    modules.mkdir()
    (modules / "roost_reads.py").write_text("import os; colour = os.environ.get('COLOUR')")
    agent = Agent(tmp_path, preload=("roost_reads",))
    agent.env["PYTHONPATH"] = str(modules)
    colour = "__import__('sys').modules['roost_reads'].colour"
    try:
        agent.warm()
        assert agent.start().value(colour) is None
        agent.env["COLOUR"] = "red"
        assert agent.try_start() is None
        agent.warm()
        assert len(agent.zygotes.interpreters()) == 2
        assert agent.start().value(colour) == "red"
    finally:
        agent.close()


def test_a_preload_that_is_not_installed_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    agent = Agent(tmp_path, preload=("roost_missing.part", "json.part", "wave.part", "wave"))
    try:
        agent.warm()
        for name in ("roost_missing.part", "json.part", "wave.part"):
            assert f"; {name} is not preloaded, because it is not installed" in caplog.text
        assert len(agent.zygotes.problems()) == 3
        assert agent.start().value("'wave' in __import__('sys').modules")
    finally:
        agent.close()


def test_jedi_has_read_what_notebooks_often_import(tmp_path: Path) -> None:
    """A kernel's first completion would read these files otherwise."""
    agent = Agent(tmp_path, preload=("jedi",))
    read = "[str(path) for files in __import__('parso').cache.parser_cache.values() for path in files]"
    try:
        agent.warm()
        names = {Path(path).stem for path in agent.start().value(read)}
        assert {"builtins", "datetime", "pathlib", "random"} <= names
    finally:
        agent.close()


def test_a_preload_that_fails_is_named(tmp_path: Path) -> None:
    (tmp_path / "roost_fails.py").write_text("import roost_missing")
    agent = Agent(tmp_path, preload=("roost_fails",))
    agent.env["PYTHONPATH"] = str(tmp_path)
    try:
        agent.loop.run_until_complete(agent.zygotes.warm(agent.command, agent.env))
        (problem,) = agent.zygotes.problems()
        reason = "preload roost_fails raises ModuleNotFoundError: No module named 'roost_missing'"
        assert problem == f"kernels of {sys.executable} are not forked: {reason}"
    finally:
        agent.close()


def test_preloads_are_chosen_by_the_path_of_the_interpreter(tmp_path: Path) -> None:
    chosen = {sys.executable: ("wave",), f"{sys.prefix}/*": ("colorsys", "wave"), "/opt/*": ("mailbox",)}
    agent = Agent(tmp_path, preload_by_python=chosen)
    try:
        agent.warm()
        seen = "[name in __import__('sys').modules for name in ('wave', 'colorsys', 'mailbox')]"
        assert agent.start().value(seen) == [True, True, False]
    finally:
        agent.close()


def test_a_preload_that_starts_a_thread_is_refused_with_its_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "roost_threaded.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), name='mine', daemon=True).start()"
    )
    agent = Agent(tmp_path, preload=("roost_threaded",))
    agent.env["PYTHONPATH"] = str(tmp_path)
    try:
        agent.loop.run_until_complete(agent.zygotes.warm(agent.command, agent.env))
        assert "started a thread (mine)" in caplog.text
        assert agent.try_start() is None
        assert agent.zygotes.interpreters() == {}
    finally:
        agent.close()
