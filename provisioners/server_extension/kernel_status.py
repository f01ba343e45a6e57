"""The texts that JupyterLab shows: the status of a roost kernel, and the request of each card in the launcher.

This module makes the texts, and the folder labextension/ shows them.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler
from jupyter_server.utils import url_path_join
from tornado import web

from roost.placement.model.format import format_amount, format_bytes, format_count
from roost.provisioners import RoostProvisioner
from roost.provisioners.exit_watch import describe_wait
from roost.provisioners.kernelspecs import list_kernelspecs
from roost.provisioners.request_options import read_start_options
from roost.scheduler.errors import RoostError, UnknownKernel
from roost.scheduler.messages import Kernel

_ANSWER_S = 5.0
_NOT_OURS = {"text": "", "detail": ""}


class StatusHandler(APIHandler):  # type: ignore[misc]
    """A handler that returns the status of a kernel: a short `text` and a longer `detail`. Both may be empty."""

    auth_resource = "kernels"

    @web.authenticated
    @authorized  # type: ignore[untyped-decorator]
    async def get(self, kernel_id: str) -> None:
        culled = getattr(self.kernel_manager, "culled", {})
        if kernel_id in culled:
            self.finish(json.dumps({"text": "not running", "detail": culled[kernel_id]}))
            return
        if kernel_id not in self.kernel_manager:
            raise web.HTTPError(404, f"There is no kernel {kernel_id}.")
        self.finish(json.dumps(await read_status(self.kernel_manager.get_kernel(kernel_id))))


class CardsHandler(APIHandler):  # type: ignore[misc]
    """A handler that returns what the kernels of each roost kernelspec ask for, by the launcher card's title."""

    auth_resource = "kernelspecs"

    @web.authenticated
    @authorized  # type: ignore[untyped-decorator]
    async def get(self) -> None:
        self.finish(json.dumps({"cards": await asyncio.to_thread(list_cards)}))


async def read_status(km: Any) -> dict[str, str]:
    """Return the status of the kernel of manager `km`; both texts are empty if the kernel is not roost's."""
    provisioner = km.provisioner
    if not isinstance(provisioner, RoostProvisioner):
        return _NOT_OURS
    reason = getattr(km, "reason", "")  # a waiting or failed start has one
    if getattr(km, "execution_state", "") == "dead":
        return {"text": "not running", "detail": reason}
    try:
        kernel = await provisioner.service.kernel(km.kernel_id, with_use=True).within(_ANSWER_S)
    except UnknownKernel:
        return {"text": "not running" if reason else "starting", "detail": reason}
    except RoostError as problem:
        return {"text": "scheduler out of reach", "detail": problem.user_message}
    except asyncio.TimeoutError:
        return {"text": "scheduler out of reach", "detail": f"It has not answered within {_ANSWER_S:g} s."}
    status = describe_status(kernel)
    return {**status, "detail": reason or status["detail"]} if kernel.state == "queued" else status


def describe_status(kernel: Kernel) -> dict[str, str]:
    """Return a kernel's status: its node, its share of GPUs, and its memory in use and promised."""
    if kernel.state == "exited":
        return {"text": "not running", "detail": kernel.reason}
    if kernel.state == "queued":
        place = "pending" if kernel.is_pending else f"position {kernel.position or 1} in the queue"
        return {"text": place, "detail": describe_wait(kernel)}
    if kernel.state == "starting":
        return {"text": f"starting on {kernel.node_id}" if kernel.node_id else "starting", "detail": ""}
    request, use = kernel.request, kernel.use
    parts = [kernel.node_id]
    if request.gpus:
        parts.append(format_count(request.gpus, "GPU"))
    used = format_bytes(use.memory_bytes) if use else "?"
    if request.memory_bytes:
        parts.append(f"{used} of {format_bytes(request.memory_bytes)}")
    elif use:
        parts.append(used)
    devices = f", GPU {', '.join(kernel.device_ids)}" if kernel.device_ids else ""
    lines = [f"Runs on {kernel.node_id}{devices}.", f"Asked for: {request.describe()}."]
    if use:
        gpu = f", {format_bytes(use.gpu_memory_bytes)} of GPU memory" if use.gpu_memory_bytes else ""
        lines.append(f"Uses {used} of memory{gpu} and {format_amount(use.cpu_percent / 100)} CPU.")
    else:
        lines.append("Its use is unknown: its agent does not answer.")
    if kernel.prospect:
        parts.append(f"⚠ {kernel.prospect.partition(';')[0]}")
        lines.insert(0, f"{kernel.prospect[0].upper()}{kernel.prospect[1:]}.")
    return {"text": " · ".join(parts), "detail": "\n".join(lines)}


def list_cards() -> list[dict[str, str]]:
    """Return the title of each kernelspec of roost's, and a `text` that says what its kernels ask for."""
    cards = []
    for spec in list_kernelspecs():
        text = spec.malformed
        if not text:
            try:
                text = read_start_options(spec.config, spec.env).request.describe()
            except RoostError as problem:
                text = problem.user_message
        cards.append({"title": spec.display_name, "text": text})
    return cards


def add_kernel_status(web_app: Any) -> None:
    """Add the two handlers to a server, below its base URL."""
    base = url_path_join(web_app.settings["base_url"], "roost", "api")
    web_app.add_handlers(
        ".*$", [(rf"{base}/kernels/([\w-]+)", StatusHandler), (f"{base}/cards", CardsHandler)]
    )
