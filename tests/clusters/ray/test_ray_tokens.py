"""Kernels on a Ray cluster that asks for a token: with it, without it, and with the token of another cluster."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest

import roost
from kit.machine.live_folders import read_files
from roost.scheduler.errors import ConfigError
from roost.testing.clusters.raylets import Machine, Raylets, why_not
from roost.testing.deadlines import allow_s
from roost.testing.leftovers import VARIABLE, end

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

OURS = "a-token-that-only-this-cluster-knows"
THEIRS = "a-token-of-some-other-cluster"
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": OURS}
REFUSED_S = 100.0
"""How long a refusal may take on a busy machine, with the start of the service. Else it takes 2 s."""

RAY_WITHIN = """
import os, ray
ray.init(log_to_driver=False)
print(os.environ["RAY_AUTH_MODE"], int(ray.cluster_resources()["CPU"]))
ray.shutdown()
"""


@pytest.fixture(scope="module")
def nodes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the ROOST_RUNTIME_DIR of the cluster's nodes."""
    folder = tmp_path_factory.mktemp("n")
    folder.chmod(0o700)
    return folder


@pytest.fixture(scope="module")
def asks_for_a_token(private_environment: None, nodes_folder: Path) -> Iterator[Raylets]:
    with Raylets(Machine(cpus=3), environment={**TOKEN, VARIABLE: str(nodes_folder)}) as cluster:
        yield cluster
    assert end(str(nodes_folder)) == []


@pytest.fixture
def service(
    asks_for_a_token: Raylets, settled_runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Return the runtime folder of a service that starts without a token, and with an empty HOME."""
    monkeypatch.setenv("RAY_ADDRESS", asks_for_a_token.address)
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.setenv("HOME", str(tmp_path))
    return settled_runtime_dir


def set_all(monkeypatch: pytest.MonkeyPatch, variables: Mapping[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def find_in(token: str, *folders: Path) -> list[str]:
    """Return each file below the folders that contains the token, and each command line on this machine."""
    commands = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    found = [command for command in commands if token in command]
    files = (file for folder in folders for file in read_files(folder))
    return found + [str(path) for path, content in files if token.encode() in content]


def test_a_kernel_starts_with_the_token_and_tells_it_to_nobody(
    asks_for_a_token: Raylets, nodes_folder: Path, service: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ray.init` works in the kernel. Neither a log nor a file nor a command line has the token."""
    set_all(monkeypatch, TOKEN)
    with roost.start_kernel("python3", backend="ray") as kernel:
        assert kernel.execute(RAY_WITHIN, timeout_s=100, check=True).stdout.split() == ["token", "3"]
        assert list(nodes_folder.glob("agent-ray-*/log"))
        assert find_in(OURS, service, nodes_folder, asks_for_a_token.folder) == []


def test_the_token_of_the_home_is_used_once_the_mode_says_so(
    service: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refused service has ended, so that the next attempt starts one with the new environment."""
    file = tmp_path / ".ray/auth_token"
    file.parent.mkdir()
    file.write_text(f"{OURS}\n")
    with pytest.raises(ConfigError, match=r"unless ~/\.ray/auth_token has the token$"):
        roost.start_kernel("python3", backend="ray")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with roost.start_kernel("python3", backend="ray") as kernel:
        assert kernel.execute("6 * 7").text == "42"


def test_a_wrong_token_is_refused_in_one_sentence(service: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal comes soon, in Python and in the shell, and does not show the token."""
    set_all(monkeypatch, {**TOKEN, "RAY_AUTH_TOKEN": THEIRS})
    with pytest.raises(ConfigError, match=r"refuses the token: .* where roost's service starts$") as refusal:
        roost.start_kernel("python3", backend="ray")
    assert "\n" not in str(refusal.value)
    command = [sys.executable, "-m", "roost", "nodes", "--backend", "ray"]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=allow_s(REFUSED_S), cwd="/"
    )
    assert done.returncode == 2
    assert "refuses the token" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert THEIRS not in str(refusal.value) + done.stderr
    assert find_in(THEIRS, service) == []
