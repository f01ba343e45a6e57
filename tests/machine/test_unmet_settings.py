"""`roost doctor` names the settings that an agent cannot carry out. Its kernels start anyway."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import roost
from roost.testing.deadlines import allow_s, until_blocking

pytestmark = [
    pytest.mark.backends("local", why="the same agent on every backend"),
    pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux only"),
]
OPTIONS: dict[str, Any] = {"preload": ["no_such_package"]}
WITHIN_S = 180


def diagnose() -> dict[str, str]:
    """Return the level of each finding of `roost doctor`, by its text."""
    options = [f"--backend-option={name}={json.dumps(value)}" for name, value in OPTIONS.items()]
    command = [sys.executable, "-m", "roost", "doctor", "--json", *options]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=allow_s(WITHIN_S)
    )
    return {found["what"]: found["level"] for found in json.loads(done.stdout)["findings"]}


def test_doctor_names_what_an_agent_cannot_do(settled_runtime_dir: Path) -> None:
    with roost.start_kernel("python3", backend="local", backend_options=OPTIONS) as kernel:
        assert kernel.execute("6 * 7").text == "42"
        found: dict[str, str] = {}

        def find_missing() -> list[str]:
            nonlocal found
            found = diagnose()
            return [what for what in found if "no_such_package" in what]

        # Until a zygote has tried to import the package.
        missing = until_blocking(find_missing, lambda: f"doctor names the package: {found}", WITHIN_S, 0.0)
    assert found[missing[0]] == "warning"
    assert missing[0].endswith(": no_such_package is not preloaded, because it is not installed")
