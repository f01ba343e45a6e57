"""`roost restart-service`: the next service has the new settings, kernels live on, and programs join it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import roost
from kit.machine.daemons import settle, wait_gone
from roost.scheduler.client import service_restart
from roost.scheduler.client.client import Client, disconnect
from roost.scheduler.client.service_restart import restart_service
from roost.scheduler.errors import ConfigError
from roost.scheduler.messages import Event
from roost.testing.deadlines import allow_s


@pytest.fixture
def config(runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the file of settings, which does not exist yet. The services and agents of the test end with it."""
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path))
    yield tmp_path / "jupyter_roost_config.py"
    disconnect()
    settle(runtime_dir)


@pytest.fixture
def client(config: Path) -> Client:
    return roost.connect()


def shell(*argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "roost", *argv]
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=allow_s(120)
    )


def read_pid(client: Client) -> int:
    return client.service().result(allow_s(60))["pid"]


def test_a_restart_applies_a_changed_setting(client: Client, config: Path) -> None:
    joined = threading.Event()

    def note(event: Event) -> None:
        if event.kind == "resync":
            joined.set()

    with roost.start_kernel() as kernel:
        kernel.execute("answer = 41", check=True)
        stop = client.listen(note)
        before = read_pid(client)
        (config.parent / "zone.py").write_text(
            "from roost.placement import get_policy\nmine = get_policy('pack')"
        )
        config.write_text("c.RoostScheduler.policies = {'file_zone': 'zone.py:mine'}")

        refused = shell("explain", "--policy", "file_zone")
        assert refused.returncode == 2
        assert "unknown policy 'file_zone'" in refused.stderr

        done = shell("restart-service")
        assert done.returncode == 0, done.stderr
        first, second = done.stdout.splitlines()
        assert first == f"The service of local (pid {before}) has ended."
        assert "1 kernel lives on" in second
        assert joined.wait(allow_s(60)), "a program that listens has not joined the next service"
        stop()
        assert read_pid(client) != before
        assert wait_gone(before)
        assert shell("explain", "--policy", "file_zone").returncode == 0
        assert kernel.execute("answer + 1", check=True).text == "42"


def test_a_service_that_could_not_start_again_is_not_ended(client: Client, config: Path) -> None:
    before = read_pid(client)
    config.write_text("c.RoostScheduler.max_gpu_per_user = 1")
    done = shell("restart-service")
    assert done.returncode == 2
    assert (
        "no option of c.RoostScheduler named max_gpu_per_user: did you mean max_gpus_per_user? Correct"
        in done.stderr
    )
    assert done.stderr.rstrip().endswith("? Correct this first. The service that runs was not ended.")
    assert read_pid(client) == before


def test_a_move_to_another_cluster_leaves_no_kernel_behind(
    client: Client, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read_pid(client)
    monkeypatch.setattr(service_restart, "_check_settings", lambda *_: "h:2")
    with pytest.raises(ConfigError, match=r"cluster at h:2, but 1 kernel lives at .* was not ended\."):
        restart_service(client.service_folder(), "local", {}, count_kernels=lambda: 1)
    assert read_pid(client) == before
    assert restart_service(client.service_folder(), "local", {}, count_kernels=lambda: 0).ended_pid == before


def test_metrics_for_everybody_do_not_end_the_service(client: Client, config: Path) -> None:
    before = read_pid(client)
    config.write_text("c.RoostScheduler.metrics = '0.0.0.0:9476'")
    with pytest.raises(ConfigError, match=r"give a loopback address.* The service that runs was not ended\."):
        restart_service(client.service_folder(), "local", {})
    assert read_pid(client) == before


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("import sys; sys.exit(3)", r"cannot be read: it ends Python \(SystemExit\(3\)\)\."),
        ("import os; os._exit(3)", r"ends Python with exit code 3, without a message\."),
        ("import time; time.sleep(1000)", r"cannot be read within 5 s\."),
    ],
)
def test_settings_that_end_or_delay_python_are_named(
    client: Client, config: Path, monkeypatch: pytest.MonkeyPatch, code: str, problem: str
) -> None:
    before = read_pid(client)
    config.write_text(code)
    monkeypatch.setattr(service_restart, "_CHECK_S", 5.0 if "sleep" in code else allow_s(45))
    with pytest.raises(ConfigError, match=f"^{config} {problem} Correct this first. .* not ended\\.$"):
        restart_service(client.service_folder(), "local", {})
    assert read_pid(client) == before


def test_a_policy_that_cannot_be_loaded_keeps_the_service_as_wrong_settings_do(
    client: Client, config: Path
) -> None:
    before = read_pid(client)
    policy = config.parent / "zone.py"
    policy.write_text("print('loading --check')\ndef mine(:\n")
    config.write_text("c.RoostScheduler.policies = {'file_zone': 'zone.py:mine'}")
    with pytest.raises(ConfigError, match=r"policies\['file_zone'\].*SyntaxError.*was not ended\."):
        restart_service(client.service_folder(), "local", {})
    assert read_pid(client) == before
    policy.write_text(
        "print('loading --check')\nfrom roost.placement import get_policy\nmine = get_policy('pack')"
    )
    assert restart_service(client.service_folder(), "local", {}).ended_pid == before


def test_the_next_service_has_the_environment_and_options_of_the_last(
    client: Client, config: Path, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = client.service_folder()
    assert restart_service(folder, "local", {}).ended_pid is None
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(runtime_dir / "elsewhere"))
    config.write_text("c.RoostScheduler.allowed_users = ['nobody-else']")
    kept = restart_service(folder, "local", {})
    assert (kept.kept, kept.path_before, kept.path_now) == (("JUPYTER_CONFIG_DIR",), (), ())
    (warning,) = (
        each
        for each in json.loads(shell("doctor", "--json").stdout)["findings"]
        if each["what"].startswith(
            f"this service reads its settings from {config.parent}, and this shell from"
        )
    )
    assert warning["do"].endswith("run `roost restart-service --here`: kernels live on")
    refused = shell("explain")
    assert refused.returncode == 1
    assert "may not start kernels" in refused.stderr
    here = restart_service(folder, "local", {}, is_here=True)
    assert here.ended_pid == kept.pid
    assert here.kept == ()
    assert (here.path_before, here.path_now) == ((str(config.parent),), (str(runtime_dir / "elsewhere"),))
    assert shell("explain").returncode == 0


def test_a_home_without_effect_on_the_settings_is_not_named(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    restart_service(client.service_folder(), "local", {})
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert restart_service(client.service_folder(), "local", {}).kept == ()
    monkeypatch.delenv("JUPYTER_CONFIG_DIR")
    assert restart_service(client.service_folder(), "local", {}).kept == ("JUPYTER_CONFIG_DIR", "HOME")


def test_a_service_that_hangs_is_killed(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_restart, "_END_S", 0.2)
    before = read_pid(client)
    os.kill(before, signal.SIGSTOP)
    done = restart_service(client.service_folder(), "local", {})
    assert (done.ended_pid, done.was_killed) == (before, True)
    assert read_pid(client) == done.pid


def test_a_start_that_fails_says_that_no_service_runs(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read_pid(client)
    monkeypatch.setattr(service_restart, "_check_settings", lambda *_: None)
    monkeypatch.setattr(
        service_restart,
        "_read_command",
        lambda *_: ([sys.executable, "-c", "raise SystemExit('no luck')"], {}),
    )
    with pytest.raises(Exception, match=r"No service runs now, and kernels live on.*no luck") as caught:
        restart_service(client.service_folder(), "local", {})
    assert not isinstance(caught.value, ConfigError)
    assert wait_gone(before)
    assert read_pid(client) != before  # the next call starts one


def test_an_open_folder_is_named_and_ends_no_service(client: Client, runtime_dir: Path) -> None:
    before = read_pid(client)
    (folder,) = runtime_dir.glob("scheduler-local*")
    folder.chmod(0o755)
    why = f"{folder} can be entered by other users; run `chmod 700 {folder}`."
    for command in ("kernels", "restart-service"):
        refused = shell(command)
        assert refused.returncode != 0
        assert why in refused.stderr
        assert "did not answer in time" not in refused.stderr
    (found,) = (
        each
        for each in json.loads(shell("doctor", "--json").stdout)["findings"]
        if str(folder) in each["what"]
    )
    assert found["level"] == "error"
    folder.chmod(0o700)
    assert read_pid(roost.connect()) == before
