"""The `roost` command itself, and `roost doctor`, with a stub client."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import roost
from kit.fakes.client import Answer, StubClient, document, run
from roost.scheduler.cli import commands, main
from roost.scheduler.client import service_connection
from roost.scheduler.client.service_connection import no_answer
from roost.scheduler.client.service_folder import service_folder
from roost.scheduler.errors import BackendUnavailable, KernelDied, RoostError
from roost.testing.deadlines import allow_s

TESTS = Path(__file__).resolve().parents[3]


def test_doctor_fails_on_errors_only(
    client: StubClient, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_connection, "read_announcement", lambda _: {"pid": 7})
    code, out, _ = run(capsys, "doctor")
    assert code == 0
    assert out.index("warning") < out.index("ok")
    assert "→ install the driver" in out
    client.error = BackendUnavailable("the scheduler does not start")
    code, out, _ = run(capsys, "doctor")
    assert code == 1
    assert "the scheduler does not start" in out
    assert "fix this first" in out
    client.error = no_answer("local", service_folder("local", {}), "did not answer `doctor` within 20 s")
    (finding,) = document(capsys, "doctor", code=1)["findings"]
    assert f"pid 7, log {service_folder('local', {})}/log" in finding["what"]
    assert "restart-service" not in finding["what"]
    assert "`roost restart-service` ends it" in finding["do"]


def test_an_error_about_a_service_that_hangs_names_the_remedy(
    client: StubClient, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_connection, "read_announcement", lambda _: {"pid": 7})
    client.error = no_answer("ray", service_folder("ray", {}), "did not answer in time")
    _, _, err = run(capsys, "kernels", "--backend", "ray")
    assert "did not answer in time. If it hangs, `roost restart-service --backend ray` ends it" in err
    monkeypatch.setattr(service_connection, "read_announcement", lambda _: None)
    client.error = no_answer("ray", service_folder("ray", {}), "did not answer in time")
    assert "restart-service" not in run(capsys, "kernels", "--backend", "ray")[2], "there is none to end"


def test_doctor_reads_the_settings_of_the_next_scheduler(
    client: StubClient, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The scheduler that runs has read an earlier file."""
    (tmp_path / "jupyter_roost_config.py").write_text("c.RoostScheduler.max_gpu = 2\n")
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path))
    findings = document(capsys, "doctor", code=1)["findings"]
    (found,) = (each for each in findings if each["level"] == "error")
    assert "no option of c.RoostScheduler named max_gpu" in found["what"]
    assert "keeps its earlier settings" in found["do"]
    found = [{"level": "warning", "what": "two", "do": "run `roost restart-service`"}]
    monkeypatch.setattr(client, "doctor", lambda **_: Answer(found))
    findings = document(capsys, "doctor", code=1)["findings"]
    (two,) = (each for each in findings if each["what"] == "two")
    assert two["do"] == "run `roost restart-service`; correct the settings first, or the restart is refused"


def test_doctor_works_without_jupyter_server(runtime_dir: Path) -> None:
    code = """
import sys
sys.modules.update(dict.fromkeys(["anyio", "jupyter_server", "nbclient", "nbformat"]))  # as if not installed
import roost
from kit.fakes.client import StubClient
from roost.scheduler.cli.main import main
roost.connect = lambda *_, **options: StubClient()
sys.exit(main(["doctor"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=allow_s(60), cwd=TESTS
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "install the driver" in done.stdout


def test_doctor_repairs_only_if_asked(client: StubClient, capsys: pytest.CaptureFixture[str]) -> None:
    client.is_damaged = True
    would = "would do: the kernel is dropped"
    for options, advice in (
        ([], "run `roost doctor --fix`"),
        (["--dry-run"], would),
        (["--fix", "--dry-run"], would),
    ):
        code, out, _ = run(capsys, "doctor", *options)
        assert code == 1
        assert f"→ {advice}" in out
        assert client.is_damaged
    code, out, _ = run(capsys, "doctor", "--fix")
    assert code == 0
    assert "fixed" in out
    assert "→ the kernel is dropped" in out
    assert run(capsys, "doctor")[0] == 0


@pytest.mark.parametrize(
    ("error", "code"),
    [(BackendUnavailable("no scheduler"), 1), (TimeoutError(), 1), (RoostError("odd"), 1)],
)
def test_errors_are_one_sentence_on_stderr(
    client: StubClient, capsys: pytest.CaptureFixture[str], error: Exception, code: int
) -> None:
    client.error = error
    exit_code, out, err = run(capsys, "nodes", "--json")
    assert (exit_code, out) == (code, "")
    assert err.startswith("roost: ")
    assert err.count("\n") == 1


def test_a_kernel_that_died_shows_its_log(client: StubClient, capsys: pytest.CaptureFixture[str]) -> None:
    client.error = KernelDied("The kernel ended with exit code 1.", exit_code=1, log_tail="no such module\n")
    assert run(capsys, "nodes")[2] == "roost: The kernel ended with exit code 1.\nno such module\n"


@pytest.mark.parametrize(
    "argv",
    [
        ["explain", "--memory", "lots"],
        ["explain", "--label", "zone"],
        ["explain", "--near", "zone"],
        ["explain", "--resource", "licence"],
        ["explain", "--resource", "licence=-1"],
        ["explain", "--resource", "licence=nan"],
        ["logs", "b", "--tail", "-1"],
        ["explain", "--gpus", "1.5"],
    ],
)
def test_wrong_options_are_code_2(
    client: StubClient, capsys: pytest.CaptureFixture[str], argv: Sequence[str]
) -> None:
    code, out, err = run(capsys, *argv)
    assert (code, out) == (2, "")
    assert err.startswith("roost: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["no-such"],
        ["explain", "--gpus", "many"],
        ["explain", "--gpus", "nan"],
        ["explain", "--cpus", "inf"],
        ["explain", "--cpus", "manym"],
        ["logs"],
    ],
)
def test_wrong_usage_is_code_2(argv: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main.main(argv)
    assert caught.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_an_unknown_option_is_answered_with_the_usage_of_its_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        main.main(["bench", "density", "--nodes", "3"])
    assert caught.value.code == 2
    usage, _, error = capsys.readouterr().err.partition("roost bench density: error: ")
    assert usage.startswith("usage: roost bench density ")
    assert error == "unrecognized arguments: --nodes 3\n"


def test_an_unknown_option_is_answered_with_the_nearest_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main.main(["kernelspec", "install", "--gpu=1"])
    assert capsys.readouterr().err.endswith("unrecognized arguments: --gpu=1 (did you mean --gpus?)\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_behind_the_output_is_one_sentence(
    client: StubClient, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main.main(["nodes"]) == 1
    assert capsys.readouterr().err == "roost: its output cannot be written: the disk is full.\n"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"roost {roost.__version__}\n"


def test_every_command_has_a_function() -> None:
    pending, actions = [commands.build_parser()], []
    while pending:
        parser = pending.pop()
        if command := parser.get_default("action"):
            actions.append(command)
        for action in parser._actions:  # argparse has no public way to its subparsers
            if isinstance(action.choices, dict):
                pending += action.choices.values()
    assert len(actions) == 29
    assert len({commands.find_action(action) for action in actions}) == 24


def test_the_help_lists_each_command_in_one_group() -> None:
    parser = commands.build_parser()
    (names,) = (action.choices for action in parser._actions if isinstance(action.choices, dict))
    lines = parser.format_help().splitlines()
    assert [sum(line.startswith(f"  {name} ") for line in lines) for name in names] == [1] * len(names)
    assert max(map(len, lines)) <= 80


def test_help_imports_no_heavy_module() -> None:
    code = (
        "import sys; from roost.scheduler.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print('loaded', *sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=allow_s(60)
    )
    loaded = set(done.stdout.rpartition("loaded ")[2].split())
    assert not loaded & {"zmq", "rich", "asyncio", "jupyter_client", "numpy", "roost.scheduler.errors"}


@pytest.mark.parametrize(
    ("module", "err"),
    [
        ("argparse", ""),
        ("roost.scheduler.cli.options", ""),
        ("rich.console", ""),
        ("roost.provisioners.kernelspecs", "roost: interrupted\n"),  # the command has begun
    ],
)
def test_ctrl_c_while_the_command_is_imported(runtime_dir: Path, module: str, err: str) -> None:
    code = f"""
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
from roost.scheduler.cli.main import main
sys.exit(main(["doctor"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=allow_s(60))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", err)


@pytest.mark.parametrize("command", ["nodes", "explain"])
def test_a_wrong_runtime_folder_is_code_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("ROOST_RUNTIME_DIR", "here")
    code, out, err = run(capsys, command)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "ROOST_RUNTIME_DIR must be an absolute path" in err
