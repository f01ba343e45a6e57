"""The `roost` command as a person uses it: processes of its own, a real scheduler, real kernels."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from kit.jupyter.notebook import SLEEP
from roost.testing.deadlines import allow_s

nbformat = pytest.importorskip("nbformat", reason="notebooks are written with it (extra: test)")
pytest.importorskip("nbclient", reason="`roost run` needs it (extra: test)")

pytestmark = pytest.mark.backends("local", "ray", why="the same command on every backend")
DEADLINE_S = 180.0

T = TypeVar("T")


class Shell:
    """The `roost` command with `--backend`, as a process of its own."""

    def __init__(self, backend: str) -> None:
        self.backend = backend

    def words(self, verb: str, *argv: str) -> list[str]:
        """Return the command line of a subcommand of `roost`, such as `explain`."""
        return [sys.executable, "-m", "roost", verb, "--backend", self.backend, *argv]

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a subcommand with its arguments until it ends."""
        return subprocess.run(
            self.words(*argv),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=allow_s(DEADLINE_S),
        )

    def answer(self, *argv: str) -> dict[str, Any]:
        """Return the JSON that a subcommand prints with `--json`. The subcommand must succeed."""
        done = self.run(*argv, "--json")
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))


def notebook(folder: Path, *sources: str) -> str:
    """Write a notebook of these code cells and return its path."""
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    path = folder / "notebook.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return str(path)


@pytest.fixture
def shell(backend: str, backend_runtime_dir: Path) -> Shell:
    """Return the `roost` command for the backend. All tests of a backend share a service."""
    return Shell(backend)


def test_a_notebook_runs_on_a_placed_kernel(shell: Shell, tmp_path: Path) -> None:
    path = notebook(tmp_path, "import os\nprint(os.getcwd())", "6 * 7")
    done = shell.run("run", path, "--cpus", "0.1", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (
        f"starting on {told['kernel']['node']}\n" in done.stderr
    )  # stderr is no terminal: each state has a line
    assert told["kernel"]["node"] in [node["id"] for node in shell.answer("nodes")["nodes"]]
    assert [cell["status"] for cell in told["cells"]] == ["ok", "ok"]
    first, second = nbformat.read(tmp_path / "notebook.out.ipynb", as_version=4).cells
    assert first.outputs[0].text.strip() == str(tmp_path)
    assert second.outputs[0].data["text/plain"] == "42"
    assert shell.answer("kernels") == {"kernels": []}


def test_a_cells_error_is_shown_and_is_the_exit_code(shell: Shell, tmp_path: Path) -> None:
    path = notebook(tmp_path, "x = 1", "x / 0", "never = 1")
    done = shell.run("run", path, "--output", str(tmp_path / "done.ipynb"))
    assert done.returncode == 1
    assert "Cell 2 failed: ZeroDivisionError: division by zero" in done.stderr
    assert "\x1b" not in done.stderr
    counts = [cell.execution_count for cell in nbformat.read(tmp_path / "done.ipynb", as_version=4).cells]
    assert counts == [1, 2, None]


@pytest.mark.backends("local", why="the end of a kernel is the same everywhere")
@pytest.mark.parametrize("last", ["6 * 7", "1 / 0"])
def test_the_kernel_ends_by_itself_after_the_last_cell(shell: Shell, tmp_path: Path, last: str) -> None:
    """Its exit functions run, and no event says that it was killed."""
    found = []
    for number in range(3):  # a kernel that takes 3 s to end is killed, as with plain Jupyter
        mark = tmp_path / f"done{number}"
        code = f"import atexit, pathlib; atexit.register(pathlib.Path({str(mark)!r}).touch)"
        told = json.loads(shell.run("run", notebook(tmp_path, code, last), "--json").stdout)
        events = [each for each in shell.answer("events")["events"] if each["kind"] in ("exited", "released")]
        details = [each["detail"] for each in events if each["kernel"]["id"] == told["kernel"]["id"]]
        if mark.exists() and details == ["the kernel exited with code 0"] * 2:
            return
        found.append((mark.exists(), details))
    raise AssertionError(found)


def test_a_notebook_without_code_is_written_too(shell: Shell, tmp_path: Path) -> None:
    done = shell.run("run", notebook(tmp_path))
    assert done.returncode == 0, done.stderr
    assert nbformat.read(tmp_path / "notebook.out.ipynb", as_version=4).cells == []


def test_a_notebook_that_cannot_be_written_is_not_lost(shell: Shell, tmp_path: Path) -> None:
    done = shell.run("run", notebook(tmp_path, "6 * 7"), "--output", "/dev/full")
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    message = done.stderr.splitlines()[-1]
    start = "roost: /dev/full cannot be written (No space left on device): the executed notebook is in "
    assert message.startswith(start)
    kept = Path(message.removeprefix(start).removesuffix("."))
    (cell,) = nbformat.read(kept, as_version=4).cells
    assert cell.outputs[0]["data"]["text/plain"] == "42"
    shutil.rmtree(kept.parent)


def test_a_kernels_death_is_reported(shell: Shell, tmp_path: Path) -> None:
    done = shell.run("run", notebook(tmp_path, "import os; os.kill(os.getpid(), 9)"))
    assert done.returncode == 1
    assert "Cell 1 failed: KernelDied" in done.stderr
    assert "SIGKILL" in done.stderr


@pytest.mark.backends("local", why="kernels elsewhere have not the variables of the command")
def test_a_kernel_that_ends_before_its_first_answer_is_reported(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    startup = tmp_path / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "exit.py").write_text("import os; os._exit(3)")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    done = shell.run("run", notebook(tmp_path, "1"))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "exited with code 3" in done.stderr


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_kernel(shell: Shell, tmp_path: Path, signum: int, code: int) -> None:
    ready = tmp_path / "ready"
    os.mkfifo(ready)
    path = notebook(tmp_path, f"open({str(ready)!r}, 'w').close()\n{SLEEP}")
    with subprocess.Popen(
        shell.words("run", path), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as running:
        ready.read_bytes()  # returns once the cell has opened and closed it
        running.send_signal(signum)
        _, err = running.communicate(timeout=allow_s(DEADLINE_S))
    assert running.returncode == code, err.decode()
    assert b"Traceback" not in err
    assert shell.answer("kernels") == {"kernels": []}


def test_explain_names_the_kernels_that_hold_the_short_resource(shell: Shell, tmp_path: Path) -> None:
    node = max(shell.answer("nodes")["nodes"], key=lambda node: float(node["cpus"]))
    ready, saved = tmp_path / "ready", tmp_path / "nodes.json"
    os.mkfifo(ready)
    path = notebook(tmp_path, f"open({str(ready)!r}, 'w').close()\n{SLEEP}")
    all_cpus = str(node["cpus"])
    with subprocess.Popen(
        shell.words("run", path, "--cpus", all_cpus), stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as running:
        try:
            ready.read_bytes()  # returns once the cell has opened and closed it
            (kernel,) = shell.answer("kernels")["kernels"]
            explanation = shell.answer("explain", "--cpus", all_cpus)["decision"]
            saved.write_text(shell.run("nodes", "--json").stdout)
        finally:
            running.terminate()
    assert explanation["placement"] is None
    assert explanation["soonest"]["node_id"] == node["id"]
    assert [held["id"] for held in explanation["soonest"]["kernels"]] == [kernel["id"]]
    again = shell.answer("explain", "--cpus", all_cpus, "--snapshot", str(saved))["decision"]
    assert again["reason"] == explanation["reason"]
    _await(
        lambda: shell.answer("explain", "--cpus", all_cpus)["decision"]["placement"], "it is not free again"
    )


def test_a_queued_start_is_shown_and_stopped(shell: Shell, tmp_path: Path) -> None:
    nodes = [node["id"] for node in shell.answer("nodes")["nodes"]]
    for node in nodes:
        assert shell.answer("drain", node)["is_draining"]
    try:
        waiting = subprocess.Popen(
            shell.words("run", notebook(tmp_path, "1")),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        with waiting:
            (queued, *_) = _await(
                lambda: [
                    each for each in shell.answer("kernels", "--pending")["kernels"] if each["waits_for"]
                ],
                "nothing was queued",
            )
            assert queued["position"] == 1
            assert "draining" in queued["waits_for"]
            assert queued["created_at"] > 0
            assert shell.answer("stop", queued["id"][:8]) == {
                "stopped": [{"id": queued["id"], "outcome": "removed from the queue"}]
            }
            _, err = waiting.communicate(timeout=allow_s(DEADLINE_S))
        assert waiting.returncode == 1
        queued_line, outcome = err.splitlines()
        assert queued_line.startswith("queued at position 1: no node has room now")
        assert "taken back" in outcome
    finally:
        for node in nodes:
            shell.answer("drain", node, "--off")


def _await(question: Callable[[], T], complaint: str) -> T:
    """Call `question`, at most 200 times, until its answer is not empty, and return the answer."""
    for _ in range(200):
        if found := question():
            return found
    raise AssertionError(complaint)


def test_doctor_finds_nothing_wrong(shell: Shell) -> None:
    levels = {finding["level"] for finding in shell.answer("doctor")["findings"]}
    assert "error" not in levels


def test_each_command_that_a_text_names_works_as_it_is_printed(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands of findings, remedies and errors are typed in a shell, in the order in which they were printed."""
    (tmp_path / "roost").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m roost "$@"\n')
    (tmp_path / "roost").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("COLUMNS", "1000")  # no line is broken
    nodes = [node["id"] for node in shell.answer("nodes")["nodes"]]
    for node in nodes:
        shell.answer("drain", node)
    texts = [
        shell.run(*words)
        for words in (
            ("doctor",),
            ("explain",),
            ("drain", "no-such-node"),
            ("stop",),
            ("stop", "no-such-kernel"),
            ("logs", "no-such-kernel"),
        )
    ]
    printed = "\n".join(done.stdout + done.stderr for done in texts)
    commands = list(dict.fromkeys(re.findall("`(roost [^`]*)`", printed)))
    backend = "" if shell.backend == "local" else f" --backend {shell.backend}"
    assert {
        f"roost nodes{backend}",
        f"roost kernels{backend}",
        *(f"roost drain {node} --off{backend}" for node in nodes),
    } <= set(commands)
    for command in commands:
        typed = subprocess.run(
            ["sh", "-c", command], capture_output=True, text=True, timeout=allow_s(DEADLINE_S)
        )
        assert typed.returncode == 0, (command, typed.stdout, typed.stderr)
    assert not any(node["is_draining"] for node in shell.answer("nodes")["nodes"])
    assert shell.answer("explain")["decision"]["placement"]


def test_recorded_decisions_can_be_simulated(shell: Shell, tmp_path: Path) -> None:
    assert shell.run("run", notebook(tmp_path, "1"), "--cpus", "0.5").returncode == 0
    nodes = shell.answer("nodes")["nodes"]
    more = ("--add", f"1x{nodes[0]['id']}")
    done = shell.run("simulate", "--live", "--recorded", *more, "--policy", "spread", "--json", "-")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["nodes"], told["resource"]) == (len(nodes) + 1, "cpus")
    (run,) = told["policies"]["spread"]["runs"]
    assert run["arrived"] >= 0.5
    assert run["placed"] >= 0.5
