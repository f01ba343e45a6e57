"""The closed list of a gateway's routes, and their handlers. All other paths are 404.

A handler's `access` tells the authorizer what to check. Most handlers are those of Jupyter Server and the extension.
The lists, the starts and the kernelspecs are the gateway's own: they show and take a person's own things only.
"""

from __future__ import annotations

import asyncio
import json
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import prometheus_client
from jupyter_client.jsonutil import json_default
from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler, APIVersionHandler, JupyterHandler
from jupyter_server.kernelspecs.handlers import KernelSpecResourceHandler
from jupyter_server.services.api.handlers import IdentityHandler
from jupyter_server.services.kernels.handlers import KernelActionHandler, KernelHandler
from jupyter_server.services.kernels.websocket import KernelWebsocketHandler
from jupyter_server.services.kernelspecs.handlers import kernelspec_model
from jupyter_server.services.sessions.handlers import SessionHandler
from jupyter_server.utils import url_path_join
from tornado import web

from roost.provisioners.application import build_http_error as refuse
from roost.provisioners.server_extension.kernel_status import StatusHandler
from roost.provisioners.server_extension.outputs import OutputsHandler

from .gateway import Gateway
from .own_kernels import refuse_kernel
from .start_variables import check_text
from .user_sources import TrustSource

_METHODS = ("GET", "OPTIONS")
_REFUSED = 1008
"""The websocket's code for a connection that may not go on (RFC 6455, 7.4.1)."""


class GatewayHandler(JupyterHandler):  # type: ignore[misc]
    """The part that all handlers of a gateway share. The others are mixed with Jupyter Server's."""

    access = ""
    admin_methods: Sequence[str] = ()
    """The methods by which an admin reaches the kernels of others with `?all=1`."""

    @property
    def gateway(self) -> Gateway:
        gateway: Gateway = self.serverapp.gateway
        return gateway

    @property
    def person(self) -> str:
        return str(self.current_user.username)

    @property
    def is_for_all(self) -> bool:
        """True if an admin asks for the things of all people."""
        return self.get_query_argument("all", "") == "1" and self.gateway.is_admin(self.person)

    def owns(self, kernel_id: Any) -> bool:
        return isinstance(kernel_id, str) and self.gateway.own.find_person(kernel_id) == self.person

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Answer with JSON. Jupyter Server's pages for errors are for browsers, and say much about the server."""
        APIHandler.write_error(self, status_code, **kwargs)

    def read_body(self) -> dict[str, Any]:
        try:
            body = self.get_json_body()
        except UnicodeDecodeError:
            raise refuse(400, "The body must be JSON in UTF-8.") from None
        if body is not None and not isinstance(body, dict):
            raise refuse(400, "The body must be a JSON object.")
        return body or {}

    def write_json(self, value: Any, *, status: int = 200) -> None:
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps(value, default=json_default))


class StartHandler(GatewayHandler):
    """A handler that starts kernels. If its client goes before the answer, the start is taken back."""

    access = "person"
    _starting: asyncio.Task[str] | None = None

    async def start_kernel(
        self, body: Mapping[str, Any], kernel: Mapping[str, Any], session: str = ""
    ) -> str:
        """Start the kernel that a request describes, and return its id. Raises `HTTPError`."""
        name, kernel_id = kernel.get("name"), kernel.get("kernel_id")
        start = self.kernel_manager.start_for(
            self.person,
            None if name is None else check_text("name", name),
            kernel_id="" if kernel_id is None else check_text("kernel_id", kernel_id),
            env=body.get("env"),
            session=session,
        )
        self._starting = asyncio.ensure_future(start)
        try:
            return await self._starting
        except asyncio.CancelledError:
            if not self._starting.cancelled():  # the handler itself is cancelled
                self._starting.cancel()
                raise
            raise web.Finish from None

    def on_connection_close(self) -> None:
        """Take back the start that the client does not wait for any more."""
        if self._starting is not None:
            self._starting.cancel()
        super().on_connection_close()


class Version(APIVersionHandler):  # type: ignore[misc]
    """The version of the server, for probes. It is open."""

    SUPPORTED_METHODS = _METHODS
    access = "open"


class Me(GatewayHandler, IdentityHandler):  # type: ignore[misc]
    """The caller's own identity."""

    SUPPORTED_METHODS = _METHODS
    access = "person"


class Kernels(StartHandler, APIHandler):  # type: ignore[misc]
    """The list of the caller's kernels, and the start of one."""

    auth_resource = "kernels"

    @web.authenticated
    @authorized  # type: ignore[untyped-decorator]
    async def get(self) -> None:
        manager, for_all = self.kernel_manager, self.is_for_all
        ids = [each for each in manager.list_kernel_ids() if for_all or self.owns(each)]
        models = [manager.kernel_model(each) for each in ids]
        if for_all:
            models = [{**each, "user": self.gateway.own.find_person(each["id"])} for each in models]
        self.write_json(models)

    @web.authenticated
    @authorized  # type: ignore[untyped-decorator]
    async def post(self) -> None:
        body = self.read_body()
        kernel_id = body.get("kernel_id")
        if not (self.owns(kernel_id) and kernel_id in self.kernel_manager):
            kernel_id = await self.start_kernel(body, body)
        self.set_header("Location", url_path_join(self.base_url, "api", "kernels", kernel_id))
        self.write_json(self.kernel_manager.kernel_model(kernel_id), status=201)


class OneKernel(GatewayHandler, KernelHandler):  # type: ignore[misc]
    """One kernel: its state, and its end."""

    access = "kernel"
    admin_methods = ("GET", "DELETE")


class KernelAction(GatewayHandler, KernelActionHandler):  # type: ignore[misc]
    """The restart and the interrupt of a kernel."""

    access = "kernel"


class Channels(GatewayHandler, KernelWebsocketHandler):  # type: ignore[misc]
    """The websocket of a kernel. It closes when its caller is not known any more."""

    access = "kernel"
    opened: weakref.WeakSet[Channels] = weakref.WeakSet()

    async def open(self, kernel_id: str) -> None:
        """Note the open websocket, also in the audit file."""
        self.opened.add(self)
        address = self.request.remote_ip
        self.gateway.audit.write("connection", person=self.person, kernel=kernel_id, address=address)
        await super().open(kernel_id)

    async def check_again(self) -> None:
        """Close the websocket if the source of users would now refuse its request. Stay if it cannot tell."""
        try:
            is_same = await self.identity_provider.identify(self.request) == self.person
        except web.HTTPError as problem:
            is_same = problem.status_code == 503
        if not is_same:
            self.close(_REFUSED, "The token has expired, or was removed.")

    @classmethod
    async def check_all(cls) -> None:
        """Check the callers of all open websockets again."""
        await asyncio.gather(*(each.check_again() for each in cls.opened if each.ws_connection is not None))


class Sessions(StartHandler, APIHandler):  # type: ignore[misc]
    """The list of the caller's sessions, and a new one. The path of a session counts among her own only."""

    auth_resource = "sessions"

    async def list_own(self) -> list[dict[str, Any]]:
        return [
            each for each in await self.session_manager.list_sessions() if self.owns(each["kernel"]["id"])
        ]

    @web.authenticated
    @authorized  # type: ignore[untyped-decorator]
    async def get(self) -> None:
        self.write_json(await (self.session_manager.list_sessions() if self.is_for_all else self.list_own()))

    @web.authenticated
    @authorized  # type: ignore[untyped-decorator]
    async def post(self) -> None:
        body = self.read_body()
        names = {name: check_text(name, body.get(name) or "") for name in ("path", "name", "type")}
        if not names["path"] or not names["type"]:
            raise refuse(400, "A session needs a path and a type.")
        kernel = read_kernel(body)
        found = next((each for each in await self.list_own() if each["path"] == names["path"]), None)
        if found is None:
            kernel_id = kernel.get("id")
            if kernel_id is None:
                kernel_id = await self.start_kernel(body, kernel, session=names["path"])
            else:
                self.check_own(kernel_id)
            found = await self.session_manager.create_session(**names, kernel_id=kernel_id)
        self.set_header("Location", url_path_join(self.base_url, "api", "sessions", found["id"]))
        self.write_json(found, status=201)

    def check_own(self, kernel_id: Any) -> None:
        """Raise the same `HTTPError` for a kernel of another person as for none."""
        if not self.owns(kernel_id) or kernel_id not in self.kernel_manager:
            raise refuse_kernel(str(kernel_id))


class OneSession(Sessions, SessionHandler):  # type: ignore[misc]
    """One session: its state, its end, and its change to another name or kernel."""

    SUPPORTED_METHODS = ("GET", "PATCH", "DELETE", "OPTIONS")
    access = "session"
    get = SessionHandler.get

    @web.authenticated
    @authorized  # type: ignore[untyped-decorator]
    async def patch(self, session_id: str) -> None:
        sessions, body = self.session_manager, self.read_body()
        changes: dict[str, str] = {
            name: check_text(name, body[name]) for name in ("path", "name", "type") if name in body
        }
        kernel = read_kernel(body)
        before = await sessions.get_session(session_id=session_id)
        if kernel.get("id") is not None:
            self.check_own(kernel["id"])
            changes["kernel_id"] = kernel["id"]
        elif kernel.get("name") is not None:
            changes["kernel_id"] = await self.start_kernel(body, kernel, session=before["path"])
        await sessions.update_session(session_id, **changes)
        after = await sessions.get_session(session_id=session_id)
        if after["kernel"]["id"] != before["kernel"]["id"]:
            await self.kernel_manager.shutdown_kernel(before["kernel"]["id"])
        self.write_json(after)


def read_kernel(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the kernel that a session's request describes, without the id of a start. Raises `HTTPError`."""
    kernel = body.get("kernel") or {}
    if not isinstance(kernel, dict):
        raise refuse(400, "kernel must be a JSON object.")
    return {name: value for name, value in kernel.items() if name != "kernel_id"}


class Kernelspecs(GatewayHandler, APIHandler):  # type: ignore[misc]
    """The kernelspecs that the caller may start."""

    auth_resource = "kernelspecs"
    access = "person"

    @web.authenticated
    @authorized  # type: ignore[untyped-decorator]
    async def get(self) -> None:
        manager = self.kernel_manager
        found = await asyncio.to_thread(self.kernel_spec_manager.get_all_specs)
        user = self.find_user()
        specs = {
            name: self.describe(name, each)
            for name, each in found.items()
            if not manager.find_obstacle(name, user)
        }
        default = manager.default_kernel_name
        self.write_json(
            {"default": default if default in specs else next(iter(sorted(specs)), ""), "kernelspecs": specs}
        )

    def find_user(self) -> str | None:
        """Return for whom the kernelspecs are listed: the caller, or whom an admin or a trusted caller names."""
        named = self.get_query_argument("user", "")
        if isinstance(self.gateway.source, TrustSource):
            return named or None
        return named if named and self.gateway.is_admin(self.person) else self.person

    def describe(self, name: str, found: Mapping[str, Any]) -> dict[str, Any]:
        """Return a kernelspec for a notebook: not its command, its variables, or where its kernels run."""
        spec = found["spec"]
        model: dict[str, Any] = kernelspec_model(self, name, {}, found["resource_dir"])
        logos = {key: each for key, each in model["resources"].items() if key.startswith("logo-")}
        metadata = spec.get("metadata") or {}
        shown = {
            "argv": [],  # JupyterLab leaves out a kernelspec without it
            "env": {},
            "display_name": spec.get("display_name", name),
            "language": spec.get("language", ""),
            "interrupt_mode": spec.get("interrupt_mode", "signal"),
            "metadata": {key: metadata[key] for key in ("debugger",) if key in metadata},
        }
        return {"name": name, "spec": shown, "resources": logos}


class OneKernelspec(Kernelspecs):
    """One kernelspec that the caller may start."""

    access = "kernelspec"

    @web.authenticated
    @authorized  # type: ignore[untyped-decorator]
    async def get(self, kernel_name: str) -> None:
        spec = self.kernel_spec_manager.get_kernel_spec(kernel_name)
        found = {"spec": spec.to_dict(), "resource_dir": spec.resource_dir}
        self.write_json(self.describe(kernel_name, found))


class Logo(GatewayHandler, KernelSpecResourceHandler):  # type: ignore[misc]
    """A logo of a kernelspec."""

    access = "kernelspec"
    SUPPORTED_METHODS = ("GET", "HEAD")


class Status(GatewayHandler, StatusHandler):
    """The status of a kernel of the caller, also the reason of its end."""

    access = "kernel"


class Outputs(GatewayHandler, OutputsHandler):
    """The outputs of a kernel of the caller that her page has missed."""

    access = "kernel"


class Metrics(GatewayHandler):
    """The metrics of the server, and the kernels of each user, for admins."""

    auth_resource = "metrics"
    access = "admin"

    @web.authenticated
    @authorized  # type: ignore[untyped-decorator]
    def get(self) -> None:
        counts = Counter(record.user for record in self.kernel_manager.list_counted())
        lines = ["# TYPE roost_gateway_kernels gauge"]
        lines += [f'roost_gateway_kernels{{user="{user}"}} {count}' for user, count in sorted(counts.items())]
        self.set_header("Content-Type", prometheus_client.CONTENT_TYPE_LATEST)
        text = prometheus_client.generate_latest(prometheus_client.REGISTRY)
        self.finish(text + "\n".join(lines).encode() + b"\n")


class NotFound(web.RequestHandler):
    """The answer for all other paths, to anybody."""

    def check_xsrf_cookie(self) -> None:
        """Check nothing: tornado would refuse some methods in another way."""

    def prepare(self) -> None:
        self.set_status(404)
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps({"message": "Not Found", "reason": None}))


_ID = r"\w+-\w+-\w+-\w+-\w+"
_NAME = r"(?P<kernel_name>[\w\.\-%]+)"
_ROUTES: Sequence[tuple[str, type[Any]]] = (
    ("/api", Version),
    ("/api/me", Me),
    ("/api/kernels", Kernels),
    (rf"/api/kernels/(?P<kernel_id>{_ID})", OneKernel),
    (rf"/api/kernels/(?P<kernel_id>{_ID})/(?P<action>restart|interrupt)", KernelAction),
    (rf"/api/kernels/(?P<kernel_id>{_ID})/channels", Channels),
    ("/api/sessions", Sessions),
    (rf"/api/sessions/(?P<session_id>{_ID})", OneSession),
    ("/api/kernelspecs", Kernelspecs),
    (f"/api/kernelspecs/{_NAME}", OneKernelspec),
    (rf"/kernelspecs/{_NAME}/(?P<path>logo-[\w\.\-]+)", Logo),
    (r"/roost/api/kernels/([\w-]+)", Status),
    (r"/roost/api/kernels/([\w-]+)/outputs", Outputs),
    ("/metrics", Metrics),
)


def build_routes(base_url: str) -> list[tuple[str, type[Any]]]:
    """Return all routes of a gateway below its base URL."""
    return [*((url_path_join(base_url, path), handler) for path, handler in _ROUTES), ("(.*)", NotFound)]


def close_routes(application: Any, base_url: str) -> None:
    """Leave an application these routes alone, whatever Jupyter Server and its extensions have added."""
    del application.default_router.rules[:-1]  # the last one leads to the wildcard router
    application.wildcard_router.rules.clear()
    application.wildcard_router.add_rules(build_routes(base_url))
