"""`/roost`: a page that shows the clusters of roost's services live, to the users of this server.

The page reads the services that run. It never starts one.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler, JupyterHandler
from jupyter_server.utils import url_path_join
from tornado import web

from roost.placement import NodeType
from roost.placement.model.json_codec import decode
from roost.provisioners.application import to_http_error
from roost.scheduler.client.running_services import RunningService, find_services, read_service, stop_kernels
from roost.scheduler.errors import RoostError
from roost.scheduler.messages import Kernel

_GRACE_S = 5.0
"""How long a kernel may take to end before it is killed."""
_FILES = {"": "page.html", "page.css": "page.css", "page.js": "page.js"}
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'"
_FOLDER = Path(__file__).with_name("page")
_NODE_FIELDS = (
    "id",
    "cpus",
    "cpus_promised",
    "cpus_used",
    "memory_bytes",
    "memory_promised_bytes",
    "memory_used_bytes",
    "gpus_promised",
    "kernels",
    "is_draining",
    "drains_because",
)
_DEVICE_FIELDS = ("id", "model", "promised", "used")


class PageHandler(JupyterHandler):  # type: ignore[misc]
    """A handler that returns the page and its two files."""

    auth_resource = "kernels"

    @property
    def content_security_policy(self) -> str:
        """Let the page load its own two files, and ask this server."""
        return f"{super().content_security_policy}; {_POLICY}"

    @web.authenticated
    @authorized  # type: ignore[untyped-decorator]
    def get(self, name: str = "") -> None:
        if not name and not self.request.path.endswith("/"):
            self.redirect(f"{self.request.path}/")  # the page names its files without a folder
            return
        file = _FOLDER / _FILES[name or ""]
        self.set_header("Content-Type", f"{_TYPES[file.suffix]}; charset=UTF-8")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.finish(file.read_bytes())


class ClusterHandler(APIHandler):  # type: ignore[misc]
    """A handler that returns the state of all clusters, as JSON."""

    auth_resource = "kernels"

    @web.authenticated
    @authorized  # type: ignore[untyped-decorator]
    async def get(self) -> None:
        clusters = await asyncio.gather(*map(read_cluster, find_services()))
        self.finish(json.dumps({"clusters": clusters, "at": time.time()}))


class KernelHandler(APIHandler):  # type: ignore[misc]
    """A handler that stops a kernel of this user, whichever server or program has started it."""

    auth_resource = "kernels"

    @web.authenticated
    @authorized  # type: ignore[untyped-decorator]
    async def delete(self, kernel_id: str) -> None:
        if kernel_id in self.kernel_manager:  # Jupyter shows its end
            await self.kernel_manager.shutdown_kernel(kernel_id)
        else:
            await _stop_elsewhere(kernel_id)
        self.set_status(204)
        self.finish()


async def _stop_elsewhere(kernel_id: str) -> None:
    """Stop a kernel that no notebook of this server has. Raises `HTTPError`."""
    unread: RoostError | None = None
    for service in find_services():
        try:
            if any(each["id"] == kernel_id for each in (await read_service(service)).kernels):
                await stop_kernels(service, [kernel_id], _GRACE_S)
                return
        except RoostError as problem:
            unread = problem
    if unread is not None:
        raise to_http_error(unread)
    raise web.HTTPError(404, f"There is no kernel {kernel_id}.")


async def read_cluster(service: RunningService) -> dict[str, Any]:
    """Return the nodes and the kernels of a service, or its `problem`."""
    about = {"backend": service.backend, "address": service.address}
    try:
        found = await read_service(service)
    except RoostError as problem:
        return {**about, "problem": problem.user_message, "nodes": [], "node_types": [], "kernels": []}
    read = [decode(Kernel, kernel, ignore_unknown=True) for kernel in found.kernels]
    return {
        **about,
        "problem": "",
        "nodes": [_describe_node(node) for node in found.nodes],
        "node_types": [_describe_type(each) for each in found.node_types],
        "kernels": [_describe_kernel(kernel) for kernel in read if kernel.state != "exited"],
    }


def _describe_node(node: Mapping[str, Any]) -> dict[str, Any]:
    devices = [{name: device[name] for name in _DEVICE_FIELDS} for device in node["devices"]]
    return {**{name: node[name] for name in _NODE_FIELDS}, "devices": devices}


def _describe_type(data: Mapping[str, Any]) -> dict[str, Any]:
    node_type = NodeType.from_dict(data)
    return {
        "name": node_type.name,
        "node": node_type.describe_node(),
        "running": node_type.running,
        "limit": node_type.limit,
    }


def _describe_kernel(kernel: Kernel) -> dict[str, Any]:
    return {
        "id": kernel.id,
        "state": "pending" if kernel.is_pending else kernel.state,
        "title": kernel.title,
        "prospect": kernel.prospect,
        "owner": kernel.owner.user,
        "node": kernel.node_id,
        "devices": kernel.device_ids,
        "request": kernel.request.describe(),
        "is_busy": kernel.use is not None and kernel.use.execution_state == "busy",
        "idle_s": kernel.use.idle_s if kernel.use and kernel.use.execution_state == "idle" else None,
        "memory_bytes": kernel.use.memory_bytes if kernel.use else None,
        "position": kernel.position,
        "waits_for": kernel.waits_for,
        "age_s": max(0.0, time.time() - kernel.created_at),
    }


def add_cluster_page(web_app: Any) -> None:
    """Add the page to a server, below its base URL."""
    base = url_path_join(web_app.settings["base_url"], "roost")
    names = "|".join(name.replace(".", r"\.") for name in _FILES if name)
    web_app.add_handlers(
        ".*$",
        [
            (f"{base}/?", PageHandler),
            (f"{base}/({names})", PageHandler),
            (f"{base}/api/clusters", ClusterHandler),
            (rf"{base}/api/clusters/kernels/([\w-]+)", KernelHandler),
        ],
    )
