"""No log of a background process quotes the output of a kernel."""

from __future__ import annotations

import logging
import sys

import pytest

from roost.launchers.protocol.process_log import QuietFormatter, hide_output
from roost.launchers.protocol.rpc import RemoteError
from roost.launchers.protocol.shared_values import LAST_LINE

REASON = f"the kernel exited with code 3 while it was starting{LAST_LINE}API_KEY=hush"


def test_a_reason_loses_the_line_that_it_quotes() -> None:
    assert hide_output(REASON) == "the kernel exited with code 3 while it was starting"
    assert hide_output(RemoteError("kernel_died", REASON)) == hide_output(REASON)
    assert hide_output("no lease") == "no lease"


@pytest.mark.parametrize("has_traceback", [False, True])
def test_the_log_hides_it_in_messages_and_in_tracebacks(has_traceback: bool) -> None:
    try:
        raise RemoteError("kernel_died", REASON)
    except RemoteError as problem:
        arguments = ("kernel=%s %s", ("k", problem), sys.exc_info() if has_traceback else None)
    record = logging.LogRecord("roost", logging.ERROR, __file__, 1, *arguments)
    written = QuietFormatter("%(levelname)s %(message)s").format(record)
    assert "hush" not in written
    assert written.startswith("ERROR kernel=k the kernel exited with code 3 while it was starting")
    assert ("Traceback" in written) == has_traceback
