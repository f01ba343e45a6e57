"""The log of roost's background processes. No line of it quotes the output of a kernel."""

from __future__ import annotations

import logging
import re

from .shared_values import LAST_LINE

_QUOTE = re.compile(f"{re.escape(LAST_LINE)}.*")
_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"


def hide_output(text: object) -> str:
    """Return an error's text without the line of a kernel's output that it may quote after `LAST_LINE`."""
    return _QUOTE.sub("", str(text))


class QuietFormatter(logging.Formatter):
    """A formatter that leaves out the output of kernels, also in the texts of exceptions."""

    def format(self, record: logging.LogRecord) -> str:
        return hide_output(super().format(record))


def set_up_log() -> None:
    """Have this process write its log to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(QuietFormatter(_FORMAT))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
