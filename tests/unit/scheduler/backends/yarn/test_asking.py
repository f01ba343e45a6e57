"""The command that starts the agent in a container of YARN."""

import os
import subprocess
from pathlib import Path

import pytest

from roost.scheduler.backends.yarn.asking import _build_command


@pytest.mark.parametrize("is_relative", [False, True])
def test_a_kernelspecs_python_is_the_agents(tmp_path: Path, is_relative: bool) -> None:
    folder = tmp_path / "environment" / "bin"
    folder.mkdir(parents=True)
    python = folder / "python"
    python.write_text('#!/bin/sh\ncommand -v python; echo "$@"; env | grep HADOOP || echo "no token"\n')
    python.chmod(0o700)
    named = "environment/bin/python" if is_relative else str(python)
    command = _build_command(named).replace("<LOG_DIR>", str(tmp_path))
    token_file = str(tmp_path / "a token")
    environment = {"PATH": os.environ["PATH"], "HADOOP_TOKEN_FILE_LOCATION": token_file}

    # As in the script that YARN writes: the command is between double quotes.
    script = f'exec /bin/bash -c "{command}"'
    subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, check=True)

    found, arguments, token = (tmp_path / "stdout").read_text().splitlines()
    assert (tmp_path / found).samefile(python)
    assert arguments == f"{token_file} roost"
    assert token == "no token"  # a Hadoop client in the kernel would send the file to its own containers
