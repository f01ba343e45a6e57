"""`/roost/api/kernels/ID/outputs`: the missed outputs of a page that was loaded again, by cell.

The page's old connection sent the requests for these outputs, so Jupyter does not show them in the new page's
cells.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from typing import Any

from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler
from jupyter_server.utils import url_path_join
from tornado import web

from roost.provisioners.journal_reader import CellRun, read_runs
from roost.provisioners.jupyter_internals import list_open_sessions
from roost.provisioners.provisioner import RoostProvisioner
from roost.scheduler.errors import RoostError

from .connection import RoostConnection
from .replay import AWAY_MARGIN_S, find_away_s

_SHARED = ("jupyter_server_ydoc", "jupyter_collaboration")
"""Extensions that write the outputs into a notebook that several pages share."""


class OutputsHandler(APIHandler):  # type: ignore[misc]
    """A handler that returns the cells whose page was closed while they ran.

    Each cell has its code, execution count and outputs, and whether it is done.
    """

    auth_resource = "kernels"

    @web.authenticated
    @authorized  # type: ignore[untyped-decorator]
    async def get(self, kernel_id: str) -> None:
        if kernel_id not in self.kernel_manager:
            raise web.HTTPError(404, f"There is no kernel {kernel_id}.")
        km = self.kernel_manager.get_kernel(kernel_id)
        cells: Mapping[str, CellRun] = {}
        if isinstance(km.provisioner, RoostProvisioner) and hasattr(self.kernel_manager, "closed_at"):
            try:
                cells = await read_missed_cells(self.kernel_manager, km)
            except (RoostError, asyncio.TimeoutError) as problem:
                raise web.HTTPError(503, f"The outputs cannot be read now: {problem}") from None
        names = ("code", "execution_count", "outputs", "is_done", "is_cut")
        found = {cell_id: {name: getattr(run, name) for name in names} for cell_id, run in cells.items()}
        is_shared = any(name in self.serverapp.extension_manager.extensions for name in _SHARED)
        self.finish(json.dumps({"cells": found, "is_shared": is_shared}))


async def read_missed_cells(kernels: Any, km: Any) -> dict[str, CellRun]:
    """Return the latest run of each cell, by cell id, if its client disconnected while the cell ran.

    The result is empty if this server started the kernel and none of its clients has disconnected. Raises
    `RoostError` and `asyncio.TimeoutError`.
    """
    kernel_id, now = km.kernel_id, time.monotonic()
    gone = [
        now - at + AWAY_MARGIN_S for key, at in kernels.closed_at.items() if key.startswith(f"{kernel_id}:")
    ]
    away_s = find_away_s(km)
    if away_s is False and not gone:
        return {}
    since_s = None if away_s is None else max([*gone, away_s or 0.0])
    runs = await read_runs(km.provisioner.service, kernel_id, since_s=since_s)
    latest = {run.cell_id: run for run in runs if run.cell_id}
    connected = list_open_sessions(RoostConnection)
    return {cell_id: run for cell_id, run in latest.items() if f"{kernel_id}:{run.session}" not in connected}


def add_outputs(web_app: Any) -> None:
    """Add the handler to a server, below its base URL."""
    base = url_path_join(web_app.settings["base_url"], "roost", "api")
    web_app.add_handlers(".*$", [(rf"{base}/kernels/([\w-]+)/outputs", OutputsHandler)])
