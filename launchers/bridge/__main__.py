"""The program of the bridge.

    python -m roost.launchers.bridge CONNECTION_FILE [--launch-timeout SECONDS] LAUNCHER ARGUMENT...

It ends with the launcher's exit code, or by the signal that has ended the launcher. It prints one sentence and ends
with code 1 if the kernel cannot run.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import resource
import signal
import sys
from pathlib import Path

from .bridge import BridgeError, run

_LAUNCH_TIMEOUT_S = 60.0
"""How long a launcher may take until its kernel listens, if nothing else is set. roost's agent waits as long."""
_EARLIER_S = 2.0
"""How much earlier the bridge gives up than roost's agent, so that the bridge's reason reaches the user."""


def main(arguments: list[str]) -> int:
    """Run the bridge, and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m roost.launchers.bridge", allow_abbrev=False)
    parser.add_argument("connection_file", type=Path)
    parser.add_argument("--launch-timeout", type=float, metavar="SECONDS")
    parser.add_argument("launcher", nargs=argparse.REMAINDER, help="the launcher's command")
    given = parser.parse_args(arguments)
    if not given.launcher:
        parser.error("the launcher's command is missing")
    logging.basicConfig(format="roost's bridge: %(message)s")
    timeout_s = given.launch_timeout or _read_timeout()
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # an interrupt before the kernel runs has nothing to interrupt
    try:
        code = asyncio.run(run(given.connection_file, given.launcher, max(timeout_s - _EARLIER_S, 1.0)))
    except BridgeError as problem:
        print(problem, file=sys.stderr)
        return 1
    return code


def _read_timeout() -> float:
    """Return the limit that a client or a kernelspec has set, in seconds."""
    try:
        return float(os.environ.get("KERNEL_LAUNCH_TIMEOUT", "")) or _LAUNCH_TIMEOUT_S
    except ValueError:
        return _LAUNCH_TIMEOUT_S


def end_as(code: int) -> None:
    """End this process as another one ended, given by its exit code in the form of `subprocess`."""
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the core file would be the bridge's
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    end_as(main(sys.argv[1:]))
