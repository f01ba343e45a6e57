"""The entry point of the `roost` command: its exit codes and its error output.

Tables on stdout are for people. With `--json`, stdout is one JSON document for programs. The exit code is 0 for
success, 1 for failure, 2 for wrong usage or configuration, 3 if a person has to act, and 130 after an interrupt.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Sequence
from typing import TextIO

_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Errors that a user can fix are printed, not raised."""
    can_interrupt = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if can_interrupt:  # at once and in silence: nothing has begun that must be undone
        signal.signal(signal.SIGINT, lambda *_: os._exit(_INTERRUPTED))
    try:
        from .clean_text import CleanOutput, clean, clean_but_colours
        from .commands import build_parser, find_action

        arguments = build_parser().parse_args(argv)
        action = find_action(arguments.action)
        from roost.launchers.daemon.daemon import DaemonError
        from roost.launchers.daemon.private_files import FolderError, settle_home
        from roost.scheduler.errors import ConfigError, RoostError

        from .options import advise, choose_backend
    finally:
        if can_interrupt:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    out = sys.stdout
    sys.stdout = CleanOutput(out)
    try:
        settle_home()
        choose_backend(arguments)
        code = action(arguments)
        out.flush()
        return code
    except (RoostError, DaemonError, FolderError) as error:
        print(f"roost: {clean(advise(arguments).complete(str(error)))}", file=sys.stderr)
        if log_tail := getattr(error, "fields", {}).get("log_tail"):
            print(clean_but_colours(str(log_tail).rstrip()), file=sys.stderr)
        return 2 if isinstance(error, (ConfigError, FolderError)) else 1
    except KeyboardInterrupt:
        print("roost: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:  # `roost kernels | head`
        _write_no_more(out)
        return 0
    except OSError as problem:
        if problem.errno != errno.ENOSPC:
            raise
        _write_no_more(out)
        print(
            f"roost: {problem.filename or 'its output'} cannot be written: the disk is full.", file=sys.stderr
        )
        return 1
    finally:
        sys.stdout = out


def _write_no_more(out: TextIO) -> None:
    """Let the rest of the output go nowhere, so that the interpreter's end does not fail to write it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
