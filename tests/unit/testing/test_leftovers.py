"""The check for processes that a test has left behind: the check finds, names and ends them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from roost.testing import leftovers
from roost.testing.deadlines import allow_s

SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]


def test_a_clean_end_removes_the_folder_and_the_variable() -> None:
    before = os.environ.get(leftovers.VARIABLE)
    with leftovers.private_runtime_dir() as folder:
        assert os.environ[leftovers.VARIABLE] == folder
        assert Path(folder).stat().st_mode & 0o777 == 0o700
        subprocess.run([sys.executable, "-c", ""], check=True, timeout=allow_s(30))
    assert os.environ.get(leftovers.VARIABLE) == before
    assert not Path(folder).exists()


def test_a_process_in_a_session_of_its_own_is_found_and_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "GRACE_S", 0.1)
    with subprocess.Popen(SLEEP, env={leftovers.VARIABLE: "/tmp/other"}) as other:
        kept = leftovers.private_runtime_dir()
        folder = kept.__enter__()
        left = subprocess.Popen(SLEEP, start_new_session=True, stdout=subprocess.PIPE)
        assert left.stdout is not None
        with left.stdout:
            assert left.stdout.readline() == b"up\n"  # before that, Linux may not show its environment yet
        assert [process.pid for process in leftovers.processes(folder)] == [left.pid]
        with pytest.raises(AssertionError, match=rf"left behind:\n{left.pid} .*time\.sleep"):
            kept.__exit__(None, None, None)
        left.wait(allow_s(10))
        assert leftovers.processes(folder) == []
        assert other.poll() is None, "a process of another folder is left alone"
        other.kill()
