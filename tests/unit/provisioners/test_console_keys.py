"""Jupyter's console applications pass the keys of a connection file, with the configuration of roost's wheel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from roost.testing.deadlines import allow_s

JUPYTER_CONFIG = Path(__file__).parents[3] / "provisioners" / "jupyter_config"
"""The folder of what a wheel installs for Jupyter's consoles. The tests run on an editable install."""
CONSOLE = """
import sys
from jupyter_client.consoleapp import JupyterConsoleApp
from jupyter_core.application import JupyterApp

class Client:
    def __init__(self, *, connection_file, curve_publickey=None, curve_secretkey=None, **others):
        print(connection_file, curve_publickey, curve_secretkey)
    def start_channels(self):
        pass

class Console(JupyterApp, JupyterConsoleApp):
    name = sys.argv[1]
    kernel_client_class = Client
    if name == "jupyter-qtconsole":
        kernel_manager_class = object  # so the Qt console hides the setting
    def initialize(self, argv):
        super().initialize(argv)
        JupyterConsoleApp.initialize(self)

console = Console()
console.existing = sys.argv[2]
console.initialize([])
assert console.kernel_client_class is Client
"""


@pytest.mark.parametrize("name", ["jupyter-console", "jupyter-qtconsole", "jupyter run"])
@pytest.mark.parametrize("keys", [{}, {"curve_publickey": "public", "curve_secretkey": "secret"}])
def test_a_console_passes_the_keys(tmp_path: Path, name: str, keys: dict[str, str]) -> None:
    file = tmp_path / "kernel.json"
    ports = {f"{channel}_port": 1 for channel in ("shell", "iopub", "stdin", "control", "hb")}
    file.write_text(json.dumps({"ip": "127.0.0.1", "transport": "tcp", "key": "", **ports, **keys}))
    environment = {**os.environ, "JUPYTER_CONFIG_PATH": str(JUPYTER_CONFIG)}
    done = subprocess.run(
        [sys.executable, "-c", CONSOLE, name, str(file)],
        capture_output=True,
        text=True,
        timeout=allow_s(60),
        env=environment,
    )
    passed = [key.encode() for key in keys.values()] or [None, None]
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{file} {passed[0]} {passed[1]}\n", "")
