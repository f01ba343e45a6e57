"""`Rest`: the ResourceManager's REST API by `yarn-api-client`, in threads and with deadlines."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from shlex import quote
from typing import Any
from urllib.parse import urlsplit

import requests
from yarn_api_client.base import BaseYarnAPI
from yarn_api_client.resource_manager import ResourceManager

from roost.launchers.daemon.file_input import UnfitFile, read_text
from roost.launchers.daemon.process import name_user
from roost.launchers.daemon.tasks import in_thread
from roost.scheduler.errors import BackendUnavailable, ConfigError

from .hadoop_conf import Conf, find_web_addresses
from .settings import RoostYarnBackend

log = logging.getLogger(__name__)

JsonObject = dict[str, Any]

_CONNECT_S = 4.0
_ANSWER_S = 20.0
"""How long one ResourceManager may take for an answer. The nodes of a large cluster take a second."""
_LONGEST = 300
_STATES = ["NEW", "NEW_SAVING", "SUBMITTED", "ACCEPTED", "RUNNING"]
"""The states of applications that have not ended."""


class RestError(Exception):
    """The ResourceManager refuses a call. `text` is its own message, without the names of Java classes."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status, self.text = status, text


class _Standby(Exception):
    """The ResourceManager that was asked is in standby, or is starting. The text is its state."""


class _Api(ResourceManager):  # type: ignore[misc,unused-ignore]
    """The ResourceManager at one address. A path in the address takes the place of `/ws`, as at a gateway."""

    def __init__(self, address: str, session: requests.Session) -> None:
        # The constructor of ResourceManager would read the HTML page of the cluster from each address.
        BaseYarnAPI.__init__(self, address, (_CONNECT_S, _ANSWER_S))
        self.address, self.session = address, session

    def request(self, api_path: str, method: str = "GET", **kwargs: Any) -> Any:
        path = urlsplit(self.address).path
        url = self.address + (api_path.removeprefix("/ws") if path else api_path)
        kwargs.setdefault("headers", {"Accept": "application/json"})
        answer = self.session.request(method, url, timeout=self.timeout, allow_redirects=False, **kwargs)
        text = answer.text
        if answer.is_redirect or "This is standby RM" in text[:200]:
            raise _Standby("in standby")
        if answer.status_code in (401, 403) and "RemoteException" not in text:
            raise BackendUnavailable(_describe_refusal(self.address, answer.status_code))
        try:
            content = json.loads(text) if text else {}
        except (ValueError, RecursionError):
            raise BackendUnavailable(
                f"{self.address} answers with a page instead of YARN's REST API: correct "
                "c.RoostYarnBackend.address, or the proxy between."
            ) from None
        if answer.status_code >= 400:
            problem = content.get("RemoteException") if isinstance(content, dict) else None
            message = problem.get("message") if isinstance(problem, dict) else None
            raise RestError(answer.status_code, _simplify(str(message or "")) or answer.reason)
        return content


class Rest:
    """Calls to the active ResourceManager. Every call raises `BackendUnavailable` if none answers.

    `address` is the address that answered last, and `addresses` are all of them.
    """

    def __init__(self, settings: RoostYarnBackend) -> None:
        self.user = settings.user or name_user()
        session = _open_session(settings, self.user)
        self._session = session
        self.addresses = find_web_addresses(settings.address)
        self._apis = [_Api(address, session) for address in self.addresses]
        self.address = self._apis[0].address

    def close(self) -> None:
        self._session.close()

    async def info(self) -> JsonObject:
        """Return the facts about the cluster. Its `id` changes when the cluster is set up again.

        Only this call finds the active ResourceManager. A ResourceManager in standby redirects other calls. A
        ResourceManager that is starting answers other calls, although it does not know its applications and labels yet.
        """

        def ask(api: _Api) -> JsonObject:
            with reading(api.address):
                info = dict(api.cluster_information()["clusterInfo"])
            if (state := info.get("haState", "ACTIVE")) != "ACTIVE":
                raise _Standby("in standby" if state == "STANDBY" else str(state).lower())
            return info

        return dict(await self.call(ask))

    async def nodes(self) -> list[JsonObject]:
        """Return all nodes, also nodes that have left."""
        answer = await self.call(lambda api: api.cluster_nodes())
        with reading(self.address):
            return list(map(dict, (answer["nodes"] or {}).get("node", [])))

    async def queues(self) -> JsonObject:
        """Return the root queue with its children."""
        answer = await self.call(lambda api: api.cluster_scheduler())
        with reading(self.address):
            return dict(answer["scheduler"]["schedulerInfo"])

    async def labels(self) -> dict[str, bool]:
        """Return the node labels by name, and whether only containers with that label may run there."""
        answer = await self.call(lambda api: api.request("/ws/v1/cluster/get-node-labels"))
        with reading(self.address):
            infos = answer.get("nodeLabelInfo") or ()
            infos = [infos] if isinstance(infos, dict) else infos
            return {
                one["name"]: one.get("exclusivity", True) in (True, "true") for one in infos if one["name"]
            }

    async def conf(self) -> Conf:
        """Return the ResourceManager's configuration; empty where a gateway does not show it."""
        try:
            answer = await self.call(lambda api: api.request("/conf"))
        except (RestError, BackendUnavailable) as problem:
            log.info("the ResourceManager does not show its configuration: %s", problem)
            return {}
        with reading(self.address):
            return {one["key"]: one["value"] for one in answer.get("properties", ())}

    async def applications(self, tag: str) -> list[JsonObject]:
        """Return the applications with this tag that have not ended."""
        answer = await self.call(lambda api: api.cluster_applications(states=_STATES, application_tags=[tag]))
        with reading(self.address):
            return list(map(dict, (answer["apps"] or {}).get("app", [])))

    async def application(self, application_id: str) -> JsonObject:
        """Return one application. Raises `RestError` if YARN does not know it."""
        try:
            return await self._application(application_id)
        except RestError as problem:
            if problem.status != 404:
                raise
        await self.info()  # it may be starting
        return await self._application(application_id)

    async def _application(self, application_id: str) -> JsonObject:
        answer = await self.call(lambda api: api.cluster_application(application_id))
        with reading(self.address):
            return dict(answer["app"])

    async def new_application(self) -> tuple[str, JsonObject]:
        """Return a new application id, and the largest container of the cluster."""
        answer = await self.call(lambda api: api.cluster_new_application())
        with reading(self.address):
            return str(answer["application-id"]), dict(answer["maximum-resource-capability"])

    async def submit(self, context: Mapping[str, Any]) -> None:
        """Submit an application. YARN accepts unknown queues too: read the application's state afterwards."""
        await self.call(lambda api: api.cluster_submit_application(context))

    async def kill(self, application_id: str) -> None:
        """End an application, with all its containers. May be repeated."""
        await self.call(lambda api: api.cluster_application_kill(application_id))

    async def get(self, url: str, **query: str) -> JsonObject:
        """Return the answer of another service of the cluster, such as HDFS; empty if it is an error."""

        def ask() -> JsonObject:
            answer = self._session.get(url, params=query, timeout=(_CONNECT_S, _ANSWER_S))
            return dict(answer.json()) if answer.ok else {}

        try:
            return await in_thread(ask, deadline_s=_CONNECT_S + _ANSWER_S, name="roost-yarn")
        except (
            asyncio.TimeoutError, ValueError, TypeError, RecursionError, requests.RequestException
        ) as problem:  # fmt: skip
            raise BackendUnavailable(f"{url} does not answer: {_shorten(problem) or 'too late'}.") from None

    async def call(self, ask: Callable[[_Api], Any]) -> Any:
        """Return what `ask` returns for the active ResourceManager."""
        deadline_s = (_CONNECT_S + _ANSWER_S) * len(self._apis)
        try:
            return await in_thread(lambda: self._ask_each(ask), deadline_s=deadline_s, name="roost-yarn")
        except asyncio.TimeoutError:
            raise BackendUnavailable(f"YARN's ResourceManager at {self.address} does not answer.") from None

    def _ask_each(self, ask: Callable[[_Api], Any]) -> Any:
        problems = []
        for api in sorted(self._apis, key=lambda api: api.address != self.address):
            try:
                answer = ask(api)
            except _Standby as state:
                problems.append(f"{api.address} is {state}")
            except requests.exceptions.SSLError as problem:
                raise BackendUnavailable(
                    f"the certificate of {api.address} is not trusted: set c.RoostYarnBackend.ca_file "
                    f"({_shorten(problem)})."
                ) from None
            except requests.Timeout:
                problems.append(f"{api.address} does not answer")
            except requests.ConnectionError as problem:
                problems.append(f"{api.address} {_describe_failure(problem)}")
            except requests.RequestException as problem:
                raise BackendUnavailable(f"{api.address} cannot be asked: {_shorten(problem)}.") from None
            else:
                self.address = api.address
                return answer
        raise BackendUnavailable(f"YARN has no active ResourceManager: {', '.join(problems)}.")


@contextlib.contextmanager
def reading(address: str = "YARN's ResourceManager") -> Iterator[None]:
    """Raise `BackendUnavailable` if an answer of this address lacks a field, or has a field of another kind."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError) as problem:
        raise BackendUnavailable(
            f"{address} answers with something else than YARN's REST API ({_describe_shape(problem)})."
        ) from None


def _describe_shape(problem: Exception) -> str:
    return f"{type(problem).__name__}: {problem}"[:_LONGEST]


def _open_session(settings: RoostYarnBackend, user: str) -> requests.Session:
    session = requests.Session()
    session.verify = settings.ca_file or True
    if settings.authentication == "simple":
        session.params = {"user.name": user}
    elif settings.authentication == "kerberos":
        session.auth = _kerberos()
    else:
        session.auth = (user, _read_password(settings.password_file))
    return session


def _kerberos() -> Any:
    try:
        from requests_gssapi import OPTIONAL, HTTPSPNEGOAuth
    except ModuleNotFoundError:
        raise ConfigError(
            'c.RoostYarnBackend.authentication = "kerberos" needs the package requests-gssapi: install it into the '
            "environment of roost."
        ) from None
    return HTTPSPNEGOAuth(mutual_authentication=OPTIONAL, opportunistic_auth=True)


def _read_password(path: str) -> str:
    try:
        if Path(path).stat().st_mode & 0o077:
            raise ConfigError(f"{path} can be read by other users; run `chmod 600 {quote(path)}`.")
        return read_text(path, may_be_link=True).strip()
    except UnfitFile as problem:
        raise ConfigError(f"c.RoostYarnBackend.password_file: {problem}.") from None
    except OSError as problem:
        raise ConfigError(
            f"c.RoostYarnBackend.password_file = {path!r} cannot be read: {problem.strerror}."
        ) from None


def _describe_refusal(address: str, status: int) -> str:
    if status == 401:
        return (
            f"{address} does not accept how roost shows who it is: set c.RoostYarnBackend.authentication, and with "
            "kerberos run kinit."
        )
    return f"{address} forbids this user to use YARN's REST API: ask the cluster's administrator."


def _simplify(message: str) -> str:
    """Return a message without the names of Java classes.

    >>> _simplify("java.lang.Exception: app with id: application_1_1 not found")
    'app with id: application_1_1 not found'
    """
    text = " ".join(message.split())
    while (head := text.partition(": "))[0].startswith(("java.", "org.apache.")):
        text = head[2]
    return text[:_LONGEST].rstrip(".")


def _describe_failure(problem: requests.ConnectionError) -> str:
    text = str(problem)
    if "refused" in text:
        return "refuses connections"
    if "Connection aborted" in text:
        return "closes connections without an answer"
    return f"cannot be reached ({_shorten(problem)})"


def _shorten(problem: Exception) -> str:
    return str(problem).rpartition("] ")[2].strip("')(\" ")[:_LONGEST]
