"""`LatestCaller`: the SSH_AUTH_SOCK and KRB5CCNAME with which new connections are made.

The latest caller counts whose agent or tickets are still there. A Jupyter Server of yesterday starts kernels today, but
its ssh-agent may have ended with the session of yesterday. A program of cron has no ssh-agent, and takes nobody's away.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Mapping

_MOST_VALUES = 16
"""At most this many values of each variable are remembered."""
_BUSY = frozenset({errno.EAGAIN, errno.EINPROGRESS})
"""The errors of a socket that listens, and has others to accept first."""


class LatestCaller:
    """The variables of the callers of one service, the latest last. The values are secrets: nothing writes them down.

    >>> caller = LatestCaller({})
    >>> caller.note({"SSH_AUTH_SOCK": "", "KRB5CCNAME": "KCM:"})
    True
    >>> caller.variables()
    {'SSH_AUTH_SOCK': '', 'KRB5CCNAME': 'KCM:'}
    """

    def __init__(self, own: Mapping[str, str]) -> None:
        """Begin with the variables of the service's process, which are those of its first caller."""
        self._values: dict[str, list[str]] = {"SSH_AUTH_SOCK": [], "KRB5CCNAME": []}
        self._used: dict[str, str] = {}
        self.note({name: own.get(name, "") for name in self._values})
        self.variables()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"  # the values stay out of logs

    def note(self, variables: Mapping[str, str]) -> bool:
        """Note the variables of a caller. Return True if the next connection gets other ones than the latest had.

        A failure of the latest connection may then be over.
        """
        for name, value in variables.items():
            known = self._values.get(name)
            if known is not None and value:
                if value in known:
                    known.remove(value)
                known.append(value)
                del known[:-_MOST_VALUES]
        return self._choose() != self._used

    def variables(self) -> dict[str, str]:
        """Return the variables for a new connection. Empty: ssh gets none, because no caller has one that works."""
        self._used = self._choose()
        return dict(self._used)

    def _choose(self) -> dict[str, str]:
        return {
            name: next((value for value in reversed(values) if is_there(name, value)), "")
            for name, values in self._values.items()
        }


def is_there(name: str, value: str) -> bool:
    """True if a variable's agent listens, or if its tickets may exist. Does not block."""
    if name == "SSH_AUTH_SOCK":
        return _listens(value)
    kind, mark, path = value.partition(":")
    if mark and kind not in ("FILE", "DIR"):
        return True  # the kernel or a daemon has the tickets
    return os.path.exists(path if mark else value)


def _listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as agent:
        agent.setblocking(False)
        try:
            agent.connect(path)
        except OSError as problem:
            return problem.errno in _BUSY
        except ValueError:  # no path can be so long, or have a zero byte
            return False
        return True
