"""`Reflector`: a list of one kind of objects that a watch keeps up to date, with an alarm for a silent watch.

Watches of Kubernetes are known to fall silent without an error. Each watch therefore lasts `timeout_s` at most. The
server ends it by then. If the end does not come either, the watch is dead and everything is listed again.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from roost.launchers.daemon.tasks import in_thread, start_thread
from roost.scheduler.errors import BackendUnavailable

from .api import Api, ApiError, JsonObject, WatchStream

log = logging.getLogger(__name__)

T = TypeVar("T")

_PAGE = 500
_LATE_S = 5.0
"""How much later than its timeout the end of a watch may arrive."""
_LIST_S = 60.0
_GONE = 410


class _Expired(Exception):
    """The API server no longer knows the changes since the resource version at which the watch begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Change(Generic[T]):
    """An event of a watch. The value is None if the object is gone, and `uid` is empty for a bookmark."""

    version: str
    uid: str
    value: T | None


class Reflector(Generic[T]):
    """Objects of one kind, by uid. `read` returns the part of an object that is kept. It runs in a thread.

    `on_change` gets the uid and the values before and after a change (None: not there), on the event loop.
    """

    def __init__(
        self,
        api: Api,
        path: str,
        read: Callable[[JsonObject], T],
        on_change: Callable[[str, T | None, T | None], None],
        *,
        query: Mapping[str, str] | None = None,
        timeout_s: float,
    ) -> None:
        self._api = api
        self._path = path
        self._read = read
        self._on_change = on_change
        self._query = dict(query or {})
        self._timeout_s = timeout_s
        self.items: dict[str, T] = {}
        self.listed = asyncio.Event()
        """Set once `items` is complete."""

    async def run(self) -> None:
        """List and watch until cancelled. Raises `BackendUnavailable` or `ApiError` if listing fails."""
        while True:
            version = await self._list()
            self.listed.set()
            try:
                while True:
                    version = await self._watch(version)
            except _Expired:
                log.info("%s is listed again: its version has expired", self._path)
            except (BackendUnavailable, ApiError) as problem:
                log.warning("%s is listed again: %s", self._path, problem)
                self._api.forget_connections()

    async def _list(self) -> str:
        """List all objects, page by page, and return the resource version at which a watch begins."""
        found: dict[str, T] = {}

        def page(token: str) -> tuple[list[tuple[str, T]], str, str]:
            query: dict[str, Any] = {**self._query, "limit": _PAGE, **({"continue": token} if token else {})}
            answer = self._api.request("GET", self._path, timeout_s=_LIST_S, **query)
            try:
                metadata = answer["metadata"]
                items = [(str(item["metadata"]["uid"]), self._read(item)) for item in answer["items"]]
                return items, metadata.get("continue", ""), metadata["resourceVersion"]
            except (LookupError, TypeError, AttributeError, ValueError) as problem:
                raise BackendUnavailable(
                    f"a list of Kubernetes cannot be read ({type(problem).__name__}: {problem})"
                ) from None

        token = ""
        while True:
            try:
                items, token, version = await in_thread(
                    lambda token=token: page(token),  # type: ignore[misc]
                    deadline_s=_LIST_S,
                    name="kubernetes-list",
                )
            except ApiError as problem:
                if problem.status != _GONE or not token:
                    raise
                found, token = {}, ""  # the pages have expired: begin again
                continue
            except asyncio.TimeoutError:
                raise BackendUnavailable(f"Kubernetes does not list {self._path} in time") from None
            found.update(items)
            if not token:
                break
        for uid in [*self.items.keys() - found.keys(), *found]:
            self._set(uid, found.get(uid))
        return version

    async def _watch(self, version: str) -> str:
        """Follow one watch to its end, and return the resource version at which the next watch begins."""
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[_Change[T] | Exception | None] = asyncio.Queue()
        opened: list[WatchStream] = []
        is_over = threading.Event()

        def put(item: _Change[T] | Exception | None) -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(arrived.put_nowait, item)

        def follow() -> None:
            query = {
                **self._query,
                "resourceVersion": version,
                "allowWatchBookmarks": "true",
                "timeoutSeconds": max(1, round(self._timeout_s)),
            }
            try:
                stream = self._api.watch(self._path, query, self._timeout_s + _LATE_S)
                opened.append(stream)
                if is_over.is_set():  # nobody has seen `opened`
                    stream.close()
                for event in stream:
                    put(self._read_event(event))
                put(None)
            except (BackendUnavailable, ApiError) as problem:
                put(problem)
            except Exception as problem:  # noqa: BLE001 - the thread must not end without a word
                put(BackendUnavailable(f"a watch of Kubernetes cannot be read ({problem})"))

        silent = BackendUnavailable(f"the watch of {self._path} has fallen silent")
        alarm = loop.call_later(self._timeout_s + _LATE_S, put, silent)
        start_thread(follow, name="kubernetes-watch")
        try:
            while (event := await arrived.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                version = event.version
                if event.uid:
                    self._set(event.uid, event.value)
            return version
        finally:
            alarm.cancel()
            is_over.set()
            for stream in opened:
                stream.close()

    def _read_event(self, event: JsonObject) -> _Change[T] | Exception:
        item = event["object"]
        if event["type"] == "ERROR":
            if item.get("code") == _GONE:
                return _Expired()
            return BackendUnavailable(f"a watch of Kubernetes failed ({item.get('message')})")
        metadata = item["metadata"]
        return _Change(
            version=metadata["resourceVersion"],
            uid="" if event["type"] == "BOOKMARK" else str(metadata["uid"]),
            value=self._read(item) if event["type"] in ("ADDED", "MODIFIED") else None,
        )

    def _set(self, uid: str, value: T | None) -> None:
        before = self.items.get(uid)
        if value is None:
            self.items.pop(uid, None)
        else:
            self.items[uid] = value
        if value is not before:
            self._on_change(uid, before, value)
