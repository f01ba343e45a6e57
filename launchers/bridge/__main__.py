"""The program of the bridge.

    python -m roost.launchers.bridge CONNECTION_FILE [--launch-timeout SECONDS] LAUNCHER ARGUMENT...

It ends with the launcher's exit code, or by the signal that has ended the launcher. It prints one sentence and ends
with code 1 if the kernel cannot run.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from .bridge import BridgeError, run

_USAGE = "python -m roost.launchers.bridge {connection_file} [--launch-timeout SECONDS] LAUNCHER ARGUMENT..."
_OPTION = "--launch-timeout"
_VARIABLE = "KERNEL_LAUNCH_TIMEOUT"
"""The variable by which a client or a kernelspec sets the limit of a start, in seconds."""
_LAUNCH_TIMEOUT_S = 60.0
"""How long a launcher may take until its kernel listens, if nothing else is set. roost's agent waits as long."""
_EARLIER_S = 2.0
"""How much earlier the bridge gives up than roost's agent, so that the bridge's reason reaches the user."""


def main(arguments: list[str]) -> int:
    """Run the bridge, and return its exit code."""
    logging.basicConfig(format="roost's bridge: %(message)s")
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # an interrupt before the kernel runs has nothing to interrupt
    try:
        path, timeout_s, launcher = read_arguments(arguments, os.environ)
        return asyncio.run(run(path, launcher, max(timeout_s - _EARLIER_S, 1.0)))
    except BridgeError as problem:
        print(problem, file=sys.stderr)
        return 1


def read_arguments(arguments: Sequence[str], variables: Mapping[str, str]) -> tuple[Path, float, list[str]]:
    """Return the connection file, the launch timeout in seconds, and the launcher's command. Raises `BridgeError`."""
    path, rest = arguments[:1], list(arguments[1:])
    name, text = _VARIABLE, variables.get(_VARIABLE, "")
    if rest[:1] == [_OPTION]:
        name, text, rest = _OPTION, "".join(rest[1:2]) or "nothing", rest[2:]
    if not path or not rest:
        raise BridgeError(f"The bridge is started as `{_USAGE}`: correct argv in the kernelspec.")
    try:
        timeout_s = float(text or _LAUNCH_TIMEOUT_S)
    except ValueError:
        timeout_s = 0.0
    if not 0 < timeout_s < float("inf"):
        raise BridgeError(f"{name} = {text:.40} is not possible: give seconds above 0.")
    return Path(path[0]), timeout_s, rest


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
