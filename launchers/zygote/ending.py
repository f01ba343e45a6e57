"""The end of a forked kernel: as when an interpreter exits, but the modules of the zygote are not freed.

The interpreter takes all modules apart before a process ends. That writes to almost every page that a kernel shares
with its zygote. The copies take 50 of the 70 ms that a kernel needs to end.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import os
import sys
import threading
import traceback
import types
from collections.abc import Container
from typing import Any, NoReturn


def end_process(app: Any, known: Container[str]) -> NoReturn:
    """End the process of this `IPKernelApp` with code 0. Modules with names in `known` (the zygote's) stay.

    First come the interpreter's own steps: other threads end, then exit handlers run. In one of them IPython frees the
    user's variables. Modules that the kernel itself has imported are taken apart, the latest one first.
    """
    with contextlib.suppress(KeyboardInterrupt):
        if app.kernel._shutdown_message is not None:  # its sender, the control thread, ends now
            app.control_thread.join()  # an exit handler ends the thread that publishes for it, and it would hang
        private: Any = threading
        private._shutdown()
    atexit._run_exitfuncs()
    own = [sys.modules.pop(name) for name in reversed(list(sys.modules)) if name not in known]
    gc.collect()
    for module in own:
        if isinstance(module, types.ModuleType):
            vars(module).clear()
    gc.collect()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # there is none, or it is closed
            stream.flush()
    # The interpreter's lock stays with this thread, so that no daemon thread runs while C libraries end.
    ctypes.PyDLL(None).exit(0)
    raise SystemExit  # not reached


def end_standby(output: int | None = None) -> NoReturn:
    """End this process at once: its kernel is not wanted, or has failed. Write the current error to `output`, if given.

    An ordinary end would close ZeroMQ's context, and wait for sockets that no thread serves.
    """
    try:
        if output is not None:
            os.write(output, traceback.format_exc().encode())
    finally:
        os._exit(output is not None)
