"""The line for the login shell."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from roost.scheduler.backends.ssh.remote_line import write_line, write_mark, write_program
from roost.testing.deadlines import allow_s

NONCE = "0123456789abcdef"


@pytest.mark.parametrize("python", ["", "/opt/my python/bin/python", "~/venv/bin/python"])
def test_the_line_has_only_characters_that_shells_read_alike(python: str) -> None:
    line = write_line(NONCE, 12345, python)
    start, quoted, end = line.split("'")
    assert (start, end) == ("exec /bin/sh -c ", "")
    assert not set(quoted) & set("!\\\n")
    assert len(line) < 1000  # an old csh takes no longer word
    assert write_mark(NONCE) not in line


@pytest.mark.parametrize("shell", ["sh", "dash", "bash", "tcsh", "fish", "zsh", "ksh"])
def test_the_program_answers(shell: str, tmp_path: object) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} here")
    program = write_program("say(ARGUMENTS)", {"text": "\"'\\\n\x00é\ud800"}, NONCE, 10.5)
    done = subprocess.run(
        [shell, "-c", write_line(NONCE, len(program), sys.executable)],
        input=program,
        capture_output=True,
        timeout=allow_s(20),
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        check=True,
    )
    assert done.stdout.decode().split("\n") == [
        "",
        "ROOST-0123456789abcdef shell",
        "",
        'ROOST-0123456789abcdef {"step": "python"}',
        "",
        'ROOST-0123456789abcdef {"text": "\\"\'\\\\\\n\\u0000\\u00e9\\ud800"}',
        "",
    ]


def test_a_module_of_the_home_replaces_none(tmp_path: object) -> None:
    with open(f"{tmp_path}/json.py", "w") as file:
        file.write("raise SystemExit('wrong')")
    program = write_program("say(1)", {}, NONCE, 10)
    command = ["sh", "-c", write_line(NONCE, len(program), sys.executable)]
    done = subprocess.run(
        command, input=program, capture_output=True, timeout=allow_s(20), cwd=str(tmp_path), check=True
    )
    assert done.stdout.endswith(b" 1\n")
