"""A client of the REST interface of a ResourceManager or a NodeManager, with plain JSON."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

from roost.testing.deadlines import allow_s

TIMEOUT_S = 10.0


class Refused(OSError):
    """A reply with a status of 400 or more."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class Rest:
    """A client of one daemon, as the user `user`. One request takes at most TIMEOUT_S."""

    def __init__(self, address: str, user: str = "roost") -> None:
        self.address = address
        self._user = user

    def call(self, method: str, path: str, body: object = None) -> Any:
        """Send a request. Return the reply: JSON, the line of text that confirms some changes, or None if it is empty.

        Raise Refused if the daemon refuses, OSError without an answer, ValueError if a GET gets no JSON.
        """
        mark = "&" if "?" in path else "?"
        request = urllib.request.Request(
            f"http://{self.address}{path}{mark}user.name={self._user}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Accept": "application/json"},
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=allow_s(TIMEOUT_S)) as reply:
                text = reply.read()
        except urllib.error.HTTPError as error:
            with error:
                raise Refused(error.code, error.read().decode(errors="replace")[:1000]) from None
        try:
            return json.loads(text) if text else None
        except ValueError:
            if method != "GET":  # some changes are confirmed by a line of text
                return text.decode()
            raise

    def get(self, path: str) -> Any:
        """Return the reply to a GET."""
        return self.call("GET", path)
