"""The four sources of users. A source names the caller of a request, or refuses the request.

A source raises `HTTPError`: 401 for a caller whom it does not know, 403 for one who may not use this gateway, and 503
while it cannot tell. It then lets nobody in.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from tornado.httpclient import AsyncHTTPClient, HTTPRequest

from roost.placement.model.last_entries import LastEntries
from roost.provisioners.application import build_http_error as refuse
from roost.scheduler.errors import ConfigError

from .settings import RoostGateway
from .token_file import NAME_RULE, TokenFile, hash_token, is_name

EVERYBODY = "everybody"
"""The one person whom the source `trust` knows."""
_AUTHORIZATION = re.compile(r"(?:token|bearer)\s+([!-~]+)", re.IGNORECASE)
_TOKEN = re.compile(r"[!-~]+")
_KNOWN_S, _UNKNOWN_S = 30.0, 5.0
"""How long an answer of the hub is kept: about a known token, and about an unknown one."""
_MOST_ANSWERS = 10_000
_HUB_S = 5.0
"""How long the hub may take to answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The caller of a request."""

    name: str
    has_token: bool = True
    """True if the request brought a token. If not, a browser may have sent it for a foreign web site."""


class UserSource(Protocol):
    """A source of users."""

    async def identify(self, request: Any) -> Caller:
        """Return the caller of an HTTP request, or raise `HTTPError`."""


def check_name(name: str) -> str:
    """Return the name of a person. Raises `HTTPError` if it is not possible."""
    if not is_name(name):
        raise refuse(403, f"The name {name!a:.80} is not possible here: a name has {NAME_RULE}.")
    return name


def read_token(request: Any) -> str:
    """Return the token of a request: in the header `Authorization`, else as `?token=`; empty if it has none."""
    if match := _AUTHORIZATION.fullmatch(request.headers.get("Authorization", "").strip()):
        return match[1]
    given = request.query_arguments.get("token", [b""])[-1].decode(errors="replace")
    return given if _TOKEN.fullmatch(given) else ""


def build_source(settings: RoostGateway, *, asks_for_token: bool) -> UserSource:
    """Return the source that the settings choose. `asks_for_token` is for `trust`. Raises `ConfigError`."""
    if settings.users == "hub":
        return HubSource(*settings.find_hub())
    if settings.users == "header":
        return HeaderSource(settings.user_header)
    source = FileSource(TokenFile())
    if settings.users == "file":
        return source
    return TrustSource(source if asks_for_token else None)


class FileSource:
    """The source `file`: the tokens of `roost gateway token`."""

    def __init__(self, tokens: TokenFile) -> None:
        self._tokens = tokens

    async def identify(self, request: Any) -> Caller:
        text = read_token(request)
        try:
            token = self._tokens.find(text) if text else None
        except ConfigError as problem:
            raise refuse(503, "The gateway cannot read its tokens now: try again later.") from problem
        if token is None:
            raise _refuse_unknown(text)
        return Caller(name=token.user)


class TrustSource:
    """The source `trust`: all callers are one person. With `tokens`, each needs one of them."""

    def __init__(self, tokens: UserSource | None) -> None:
        self._tokens = tokens

    async def identify(self, request: Any) -> Caller:
        if self._tokens is not None:
            await self._tokens.identify(request)
        return Caller(name=EVERYBODY, has_token=self._tokens is not None)


class HeaderSource:
    """The source `header`: a trusted proxy names the caller. Tokens do not count."""

    def __init__(self, header: str) -> None:
        self._header = header

    async def identify(self, request: Any) -> Caller:
        names = request.headers.get_list(self._header)
        if len(names) != 1 or not names[0].strip():
            raise refuse(401, f"The proxy must name one person in {self._header}: ask the operator.")
        return Caller(name=names[0].strip(), has_token=False)


class HubSource:
    """The source `hub`: JupyterHub says whose a token is, and whether it is for this service."""

    def __init__(self, url: str, service: str, *, now: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._scope = f"access:services!service={service}"
        self._now = now
        self._answers = LastEntries[str, tuple[float, str, int, str]](_MOST_ANSWERS)
        """By the hash of a token: until when the answer counts, the name, or the status and the sentence."""

    async def identify(self, request: Any) -> Caller:
        text = read_token(request)
        if not text:
            raise _refuse_unknown(text)
        key = hash_token(text)
        until, name, status, sentence = self._answers.get(key, (0.0, "", 0, ""))
        if until <= self._now():
            name, status, sentence = await self._ask(text)
            self._answers.pop(key, None)  # so that it becomes the newest
            self._answers[key] = self._now() + (_KNOWN_S if name else _UNKNOWN_S), name, status, sentence
        if not name:
            raise refuse(status, sentence)
        return Caller(name=name)

    async def _ask(self, text: str) -> tuple[str, int, str]:
        """Return the name of the token's user, or the status and the sentence of the refusal."""
        asked = HTTPRequest(
            f"{self._url}/user",
            headers={"Authorization": f"token {text}"},
            connect_timeout=_HUB_S,
            request_timeout=_HUB_S,
            follow_redirects=False,
        )
        try:
            answer = await AsyncHTTPClient().fetch(asked, raise_error=False)
            facts = json.loads(answer.body) if answer.code == 200 else None
        except (OSError, ValueError) as problem:
            raise _refuse_for_now() from problem
        if answer.code in (401, 403):
            return "", 401, "JupyterHub does not know this token: make a new one on its page."
        if not isinstance(facts, dict):  # also 599: it does not answer
            raise _refuse_for_now()
        if facts.get("kind") != "user" or self._scope not in (facts.get("scopes") or ()):
            return (
                "",
                403,
                f"This token of JupyterHub is not for this gateway: it needs the scope {self._scope}.",
            )
        return str(facts.get("name", "")), 403, "JupyterHub has not named a person for this token."


def _refuse_unknown(text: str) -> Exception:
    what = "This token is unknown, or has expired" if text else "A token is missing"
    return refuse(401, f"{what}: ask the operator for one.")


def _refuse_for_now() -> Exception:
    return refuse(503, "JupyterHub does not answer, so nobody can be let in: try again later.")
