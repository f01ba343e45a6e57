"""roost's Jupyter Server extension. Without it, starts that wait block, and a server adopts no kernels.

extension.py        RoostExtension: its settings, and its parts in one server
pending_starts.py   wraps the kernel manager: a start that waits does not block its caller
chosen_id.py        the id of a kernel that its client has chosen
waiting_starts.py   the starts that wait: listed, followed, withdrawn, begun again
pending_start.py    one start that waits, the messages held for its kernel, and the connections of its clients
early_client.py     a client of another extension that waits for the start
client_message.py   a message that a client has sent, checked when it arrives
held_messages.py    the messages that clients have sent to a waiting kernel
connection.py       the websocket of a client, which answers for a waiting kernel
subscription.py     holds a request during and after a restart until its output can arrive
server_state.py     the server's name, and its files for the next server of that name
adoption.py         finds the kernels of the earlier server of that name
adopted_kernels.py  lists them under their old ids
shutdown.py         the end of a kernel that waits or restarts, and of all kernels: some outlive the server
server_end.py       the end of the server: files are written, and no thread stays
replay.py           the missed messages of a client, before the live ones
outputs.py          the missed outputs of a page that was loaded again, by cell
reasons.py          why a kernel did not start or has ended, as sentences
waiting_report.py   what a start waits for, and what would make room soonest
waiting_line.py     the line with that report in the first held cell
quick_manager.py    a kernel's manager without the pauses of jupyter_client and ZeroMQ
kernel_sockets.py   the open sockets of a kernel, which go over to its new ports after a restart
restarter.py        restarts dead kernels, except kernels that must stay ended
setup_check.py      tells `roost doctor` if the extension is off
warm_up.py          the service, the agent and warm processes, ready before the first start
cluster_page.py     `/roost`: the clusters live, with its files in page/
kernel_status.py    the node and the use of a kernel, for JupyterLab and Notebook
labextension/       shows that node and use in JupyterLab and Notebook, and keeps cells that are run early
kernel_gateway.py   pending starts for Jupyter Kernel Gateway, by configuration
gateway_kernels.py  the kernels of a server that run behind a gateway, for the next server
jupyter_config/     enables the extension on install

    Jupyter Server ── starts, restarts, ends ──> PendingStarts ──> RoostProvisioner ──> service
        │                                          │  ^  └── found at the server's start: KernelFinder
        │                                          v  └── what a start waits for: WaitingReport
        ├── websocket ──> RoostConnection ──> PendingStart, while the kernel waits: HeldMessages, WaitingLine
        │                        └──────────> the kernel, and after a loss its journal: Replay
        └── requests of pages ──> cluster_page, kernel_status, outputs

Jupyter Server calls the three functions below: the first while it is configured, the second before it listens, the
third once its event loop runs.
"""

from __future__ import annotations

from typing import Any

from .extension import RoostExtension as RoostExtension

__all__ = ["RoostExtension"]


def _link_jupyter_server_extension(serverapp: Any) -> None:
    serverapp.roost = RoostExtension(parent=serverapp)
    serverapp.roost.link()


def _load_jupyter_server_extension(serverapp: Any) -> None:
    serverapp.web_app.settings["roost"] = serverapp.roost
    serverapp.roost.load()


async def _start_jupyter_server_extension(serverapp: Any) -> None:
    await serverapp.roost.start()
