"""Who calls: tokens, a proxy's header, trust, and JupyterHub."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tornado.httpclient import HTTPRequest
from tornado.httputil import HTTPHeaders
from tornado.web import HTTPError

from roost.provisioners.gateway import user_sources
from roost.provisioners.gateway.token_file import TokenFile
from roost.provisioners.gateway.user_sources import (
    EVERYBODY,
    FileSource,
    HeaderSource,
    HubSource,
    TrustSource,
    UserSource,
    check_name,
    read_token,
)
from roost.scheduler.errors import ConfigError


def a_request(token: str = "", *, query: str = "", **headers: str) -> Any:
    given = HTTPHeaders({name.replace("_", "-"): value for name, value in headers.items()})
    if token:
        given["Authorization"] = f"token {token}"
    arguments = {"token": [query.encode()]} if query else {}
    return SimpleNamespace(headers=given, query_arguments=arguments)


async def refusal(source: UserSource, request: Any) -> int:
    with pytest.raises(HTTPError) as refused:
        await source.identify(request)
    return int(refused.value.status_code)


@pytest.fixture
def tokens(tmp_path: Path) -> TokenFile:
    return TokenFile(tmp_path / "tokens.json")


def test_a_token_is_read_from_its_header_or_from_the_address() -> None:
    assert read_token(a_request("abc")) == "abc"
    assert read_token(a_request(Authorization="Bearer  abc ")) == "abc"
    assert read_token(a_request(query="abc")) == "abc"
    assert read_token(a_request("abc", query="other")) == "abc"
    for header in ("Basic abc", "token", "token a b", "abc"):
        assert read_token(a_request(Authorization=header)) == ""
    assert read_token(a_request(query="abc\r\nX-Forwarded-User: root")) == ""


@pytest.mark.parametrize("name", ["ada", "0", "a.b-c_d@e", "a" * 64])
def test_possible_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "Ada", "-a", ".a", "a" * 65, "a b", "a\n", "ä", "../x", "a/b", "a'b", "\0"]
)
def test_impossible_names(name: str) -> None:
    with pytest.raises(HTTPError, match="not possible here") as refused:
        check_name(name)
    assert refused.value.status_code == 403


async def test_a_token_of_the_file(tokens: TokenFile) -> None:
    text, token = tokens.add("ada", 1)
    assert len(text) >= 43  # 256 bits
    assert text not in tokens.path.read_text()
    assert stat.S_IMODE(tokens.path.stat().st_mode) == 0o600
    source = FileSource(TokenFile(tokens.path))
    assert (await source.identify(a_request(text))).name == "ada"
    assert await refusal(source, a_request()) == 401
    assert await refusal(source, a_request(text[:-1])) == 401
    assert await refusal(source, a_request(token.sha256)) == 401
    assert await refusal(source, a_request(token.id)) == 401


async def test_a_file_that_changes_is_read_again(tokens: TokenFile) -> None:
    source = FileSource(TokenFile(tokens.path))
    text, token = tokens.add("ada", 1)
    other, _ = tokens.add("eve", 1)
    assert (await source.identify(a_request(text))).name == "ada"
    assert [each.id for each in tokens.remove(token.id)] == [token.id]
    assert await refusal(source, a_request(text)) == 401
    assert (await source.identify(a_request(other))).name == "eve"
    assert [each.user for each in tokens.remove("eve")] == ["eve"]
    assert tokens.remove("eve") == []
    tokens.path.unlink()
    assert await refusal(source, a_request(other)) == 401


async def test_a_token_expires(tokens: TokenFile, monkeypatch: pytest.MonkeyPatch) -> None:
    text, token = tokens.add("ada", 1)
    monkeypatch.setattr("roost.provisioners.gateway.token_file.time.time", lambda: token.expires_at)
    assert await refusal(FileSource(tokens), a_request(text)) == 401
    tokens.add("eve", 1)
    assert [each.user for each in tokens.list_all()] == ["eve"]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"tokens": [1]}', '{"tokens": [{"user": "ada"}]}'])
async def test_an_unreadable_file_lets_nobody_in(tokens: TokenFile, content: str) -> None:
    tokens.path.write_text(content)
    with pytest.raises(ConfigError, match="cannot be read"):
        tokens.list_all()
    assert await refusal(FileSource(tokens), a_request("x")) == 503
    assert await refusal(FileSource(tokens), a_request()) == 401


async def test_trust_knows_one_person() -> None:
    caller = await TrustSource(None).identify(a_request())
    assert (caller.name, caller.has_token) == (EVERYBODY, False)


async def test_trust_may_ask_for_a_token(tokens: TokenFile) -> None:
    text, _ = tokens.add("team", 1)
    source = TrustSource(FileSource(tokens))
    assert await refusal(source, a_request()) == 401
    caller = await source.identify(a_request(text))
    assert (caller.name, caller.has_token) == (EVERYBODY, True)


async def test_a_proxy_names_one_person_and_tokens_do_not_count() -> None:
    source = HeaderSource("X-User")
    caller = await source.identify(a_request("token of root", X_User=" ada "))
    assert (caller.name, caller.has_token) == ("ada", False)
    assert await refusal(source, a_request("token of root")) == 401
    assert await refusal(source, a_request(X_User="")) == 401
    twice = a_request(X_User="ada")
    twice.headers.add("X-User", "root")
    assert await refusal(source, twice) == 401


class Hub:
    """A stand-in for JupyterHub's API, and for the time."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, object]] = {}
        self.asked: list[HTTPRequest] = []
        self.now = 1000.0

    async def fetch(self, request: HTTPRequest, *, raise_error: bool) -> Any:
        assert not raise_error
        self.asked.append(request)
        status, body = self.answers.get(request.headers["Authorization"].split()[1], (403, {}))
        return SimpleNamespace(
            code=status, body=body if isinstance(body, bytes) else json.dumps(body).encode()
        )


SCOPE = "access:services!service=gateway"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub()
    monkeypatch.setattr(user_sources, "AsyncHTTPClient", lambda: hub)
    return hub


async def test_a_person_of_the_hub(hub: Hub) -> None:
    hub.answers["t"] = 200, {"kind": "user", "name": "ada", "scopes": ["self", SCOPE]}
    source = HubSource("http://hub/hub/api", "gateway", now=lambda: hub.now)
    assert (await source.identify(a_request("t"))).name == "ada"
    (asked,) = hub.asked
    assert (asked.url, asked.headers["Authorization"], asked.follow_redirects) == (
        "http://hub/hub/api/user",
        "token t",
        False,
    )


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ((200, {"kind": "service", "name": "ada", "scopes": [SCOPE]}), 403),
        ((200, {"kind": "user", "name": "ada", "scopes": ["access:services!service=other"]}), 403),
        ((200, {"kind": "user", "name": "ada", "scopes": []}), 403),
        ((200, {"kind": "user", "name": "ada"}), 403),
        ((200, {"kind": "user", "scopes": [SCOPE]}), 403),
        ((200, [1]), 503),
        ((200, b"<html>"), 503),
        ((401, {}), 401),
        ((403, {}), 401),
        ((302, b""), 503),
        ((404, {}), 503),
        ((500, {}), 503),
        ((599, b""), 503),
    ],
)
async def test_answers_of_the_hub_that_let_nobody_in(
    hub: Hub, answer: tuple[int, object], status: int
) -> None:
    hub.answers["t"] = answer
    source = HubSource("http://hub", "gateway", now=lambda: hub.now)
    assert await refusal(source, a_request("t")) == status


async def test_an_answer_of_the_hub_is_kept_for_a_while(hub: Hub) -> None:
    source = HubSource("http://hub", "gateway", now=lambda: hub.now)
    assert await refusal(source, a_request("t")) == 401
    hub.answers["t"] = 200, {"kind": "user", "name": "ada", "scopes": [SCOPE]}
    hub.now += 4.9
    assert await refusal(source, a_request("t")) == 401
    hub.now += 0.2
    assert (await source.identify(a_request("t"))).name == "ada"
    del hub.answers["t"]
    hub.now += 29.9
    assert (await source.identify(a_request("t"))).name == "ada"
    hub.now += 0.2
    assert await refusal(source, a_request("t")) == 401
    assert len(hub.asked) == 3


async def test_no_answer_is_not_kept(hub: Hub) -> None:
    source = HubSource("http://hub", "gateway", now=lambda: hub.now)
    hub.answers["t"] = 500, {}
    assert await refusal(source, a_request("t")) == 503
    hub.answers["t"] = 200, {"kind": "user", "name": "ada", "scopes": [SCOPE]}
    assert (await source.identify(a_request("t"))).name == "ada"


async def test_a_request_without_a_token_does_not_reach_the_hub(hub: Hub) -> None:
    assert await refusal(HubSource("http://hub", "gateway"), a_request()) == 401
    assert hub.asked == []
