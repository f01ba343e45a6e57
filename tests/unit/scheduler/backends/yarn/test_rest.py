"""An unexpected answer becomes a one-sentence error, and the active ResourceManager is found."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from roost.scheduler.backends.yarn.hadoop_conf import find_web_addresses, read_site, scheduler_addresses
from roost.scheduler.backends.yarn.rest import Rest, RestError
from roost.scheduler.backends.yarn.settings import RoostYarnBackend
from roost.scheduler.errors import BackendUnavailable, ConfigError

Answer = tuple[int, str, dict[str, str]]
INFO: Answer = (200, json.dumps({"clusterInfo": {"id": 7}}), {})
INFO_OF_STANDBY: Answer = (200, json.dumps({"clusterInfo": {"id": 7, "haState": "STANDBY"}}), {})
INFO_AT_START: Answer = (200, json.dumps({"clusterInfo": {"id": 7, "haState": "INITIALIZING"}}), {})
"""The answer of a ResourceManager that has not read its node labels yet, and must not be used."""
STANDBY: Answer = (
    307,
    "This is standby RM. The redirect url is: http://active:8088",
    {"Location": "http://active:8088"},
)


@contextmanager
def serve(answer: Answer, seen: list[str]) -> Iterator[str]:
    """Run a server with one answer for all requests, and yield its URL. Add path and `Authorization` to `seen`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.path + " " + self.headers.get("Authorization", ""))
            status, text, headers = answer
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(text))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text.encode())

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def requests_seen() -> list[str]:
    return []


@pytest.fixture
def start_server(requests_seen: list[str]) -> Iterator[Callable[[Answer], str]]:
    with ExitStack() as servers:
        yield lambda answer: servers.enter_context(serve(answer, requests_seen))


@pytest.fixture
def dead_address() -> Iterator[str]:
    """Yield an address that refuses connections. Its port stays taken, so that no server gets it."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


async def ask(address: str, **settings: str) -> object:
    rest = Rest(RoostYarnBackend(address=address, **settings))
    try:
        return (await rest.info())["id"]
    finally:
        rest.close()


async def test_the_active_one_of_several_is_asked(
    start_server: Callable[[Answer], str], requests_seen: list[str], dead_address: str
) -> None:
    """A standby ResourceManager reports its state when it is asked. It redirects all other calls."""
    addresses = ",".join(
        [dead_address, start_server(STANDBY), start_server(INFO_OF_STANDBY), start_server(INFO)]
    )
    assert await ask(addresses, user="ada") == 7
    assert requests_seen == ["/ws/v1/cluster/info?user.name=ada "] * 3


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (STANDBY, "is in standby"),
        (INFO_OF_STANDBY, "is in standby"),
        (INFO_AT_START, "is initializing"),
        ((401, "<html>Authentication required</html>", {}), "run kinit"),
        ((403, "<html>Forbidden</html>", {}), "forbids this user"),
        ((200, "<html>A proxy's page</html>", {}), "correct c.RoostYarnBackend.address"),
        ((200, "[" * 200_000, {}), "correct c.RoostYarnBackend.address"),
        ((200, "[1]", {}), "something else than YARN's REST API"),
        ((200, '{"clusterInfo": 7}', {}), "something else than YARN's REST API"),
        ((200, "{}", {}), "something else than YARN's REST API"),
    ],
)
async def test_other_answers_become_sentences(
    start_server: Callable[[Answer], str], answer: Answer, words: str
) -> None:
    with pytest.raises(BackendUnavailable, match=words):
        await ask(start_server(answer))


async def test_a_refused_connection_is_named(dead_address: str) -> None:
    with pytest.raises(BackendUnavailable, match=r"no active ResourceManager.*refuses connections"):
        await ask(dead_address)


@pytest.mark.parametrize(
    "answer", ["[1]", "7", '"text"', '{"nodes": [1], "apps": 7, "app": 7, "scheduler": []}', "{}"]
)
async def test_answers_of_another_shape_become_sentences(
    start_server: Callable[[Answer], str], answer: str
) -> None:
    rest = Rest(RoostYarnBackend(address=start_server((200, answer, {}))))
    calls = (
        rest.nodes,
        rest.queues,
        rest.new_application,
        partial(rest.applications, "t"),
        partial(rest.application, "a"),
    )
    try:
        for call in calls:
            with pytest.raises(BackendUnavailable, match="something else"):
                await call()
    finally:
        rest.close()


@pytest.mark.parametrize("problem", ["7", '{"RemoteException": 7}', '{"RemoteException": {"message": [1]}}'])
async def test_a_refusal_of_another_shape_is_a_refusal(
    start_server: Callable[[Answer], str], problem: str
) -> None:
    with pytest.raises(RestError) as raised:
        await ask(start_server((404, problem, {})))
    assert raised.value.status == 404


async def test_yarns_own_refusals_keep_their_text(start_server: Callable[[Answer], str]) -> None:
    problem = {"RemoteException": {"message": "java.lang.Exception: app with id: a_1 not found."}}
    with pytest.raises(RestError) as raised:
        await ask(start_server((404, json.dumps(problem), {})))
    assert (raised.value.status, raised.value.text) == (404, "app with id: a_1 not found")


async def test_a_gateway_stands_for_ws_and_gets_the_password(
    start_server: Callable[[Answer], str], requests_seen: list[str], tmp_path: Path
) -> None:
    password = tmp_path / "password"
    password.touch(mode=0o600)
    password.write_text("secret\n")
    address = f"{start_server(INFO)}/gateway/default/resourcemanager"
    settings = {"authentication": "basic", "user": "ada", "password_file": str(password)}
    assert await ask(address, **settings) == 7
    assert requests_seen == ["/gateway/default/resourcemanager/v1/cluster/info Basic YWRhOnNlY3JldA=="]
    password.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        await ask(address, **settings)


SITE = """<configuration>
<property><name>yarn.resourcemanager.ha.enabled</name><value>true</value></property>
<property><name>yarn.resourcemanager.ha.rm-ids</name><value>rm1, rm2</value></property>
<property><name>yarn.resourcemanager.hostname.rm1</name><value>a.example.org</value></property>
<property><name>yarn.resourcemanager.hostname.rm2</name><value>b.example.org</value></property>
<property><name>yarn.resourcemanager.webapp.address.rm2</name>
  <value>${yarn.resourcemanager.hostname.rm2}:9088</value></property>
</configuration>"""


def test_a_folder_with_yarn_site_names_the_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "yarn-site.xml").write_text(SITE)
    webs = ("http://a.example.org:8088", "http://b.example.org:9088")
    assert find_web_addresses(str(tmp_path)) == webs
    monkeypatch.setenv("HADOOP_CONF_DIR", str(tmp_path))
    assert find_web_addresses("") == webs
    assert scheduler_addresses(read_site(str(tmp_path))) == ("a.example.org:8030", "b.example.org:8030")
    assert find_web_addresses("rm:8088, https://rm2:8090/") == ("http://rm:8088", "https://rm2:8090")


def test_no_cluster_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HADOOP_CONF_DIR", str(tmp_path))
    with pytest.raises(ConfigError, match="no YARN cluster is named"):
        find_web_addresses("")
    (tmp_path / "yarn-site.xml").write_text("<configuration>")
    with pytest.raises(ConfigError, match="cannot be read"):
        find_web_addresses("")
    with pytest.raises(ConfigError, match="is no folder"):
        find_web_addresses("/no/such/folder")


async def test_an_application_is_unknown_only_to_a_resource_manager_that_has_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A ResourceManager answers before it has read its applications. roost must not believe that answer."""
    rest = Rest(RoostYarnBackend(address="http://127.0.0.1:9"))
    state, found = "INITIALIZING", RestError(404, "app with id: application_1 not found")

    def refuse(_: str) -> None:
        raise found

    def info() -> dict[str, Any]:
        return {"clusterInfo": {"haState": state}}

    starting = SimpleNamespace(
        address=rest.address, cluster_application=refuse, cluster_information=lambda: info()
    )
    monkeypatch.setattr(rest, "_apis", [starting])
    with pytest.raises(BackendUnavailable, match="is initializing"):
        await rest.application("application_1")
    state = "ACTIVE"
    with pytest.raises(RestError):
        await rest.application("application_1")
    rest.close()
