"""Run one test thirty times beside busy loops on all processors: `python -m kit.gate.flaky TEST`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from contextlib import ExitStack

RUNS = 30
"""With this many passes, a test that fails once in ten runs is missed in 4 % of the cases."""
_BUSY = "while True: pass"


def main() -> int:
    parser = argparse.ArgumentParser(prog="flaky", description=__doc__)
    parser.add_argument("test")
    test = parser.parse_args().test or parser.error("TEST=tests/... names the test")
    os.environ.pop("PYTHONPATH", None)  # of this process alone: kernels would have it
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test]
    with ExitStack() as loops:
        for _ in range(os.cpu_count() or 1):
            busy = loops.enter_context(subprocess.Popen([sys.executable, "-S", "-c", _BUSY]))
            loops.callback(busy.kill)
        passed = sum(subprocess.run(command, check=False).returncode == 0 for _ in range(RUNS))
    print(f"{passed} of {RUNS} passed: {test}")
    return int(passed < RUNS)


if __name__ == "__main__":
    sys.exit(main())
